"""The stage over three small sites: every table, the same bytes again, poor sites, and which labels it looks at."""

from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import tiny
from stages import small_sites

from pipeline.analysis.diagnosis import mean_logits
from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.stages import diagnose
from pipeline.tables.contract import make_table, read_table, write_table
from pipeline.tables.diagnosis import Abstention, Diagnoses, Outlyingness, Probes, ShiftTests
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions

TABLES = {
    "diagnoses": Diagnoses,
    "tests": ShiftTests,
    "probes": Probes,
    "outlyingness": Outlyingness,
    "abstention": Abstention,
}


@pytest.fixture
def folder(tmp_path):
    return small_sites.build(tmp_path)


def run(folder, monkeypatch, **options):
    params = tiny.write_params(
        folder / "params.yaml",
        split={"seed": 1, "source": ["home"], "target": ["away", "poor"]},
        backbones={"net": {}},
        diagnose={"permutations": 99, "seed": 1, "resamples": 100, **options},
        versions={name: version(name) for name in ("numpy", "scikit-learn", "scipy")},
    )
    names = ("embed", "predict", "split", "labels", "images", "ingest", "manifests")
    tiny.call(monkeypatch, diagnose, **{name: folder / name for name in names}, out=folder / "out", params=params)
    return {name: read_table(contract, folder / "out" / f"{name}.parquet") for name, contract in TABLES.items()}


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def test_tables(folder, monkeypatch):
    tables = run(folder, monkeypatch)
    verdicts = tables["diagnoses"].set_index(["site", "hypothesis"])
    assert verdicts.loc[("away", "no_shift"), "verdict"] == "rejected"
    assert verdicts.loc[("away", "no_shift"), "test"] == "embedding_mmd"
    assert verdicts.loc[("away", "label_shift_only"), "verdict"] == "rejected"
    for estimate in ("estimate", "likelihood"):  # half of the labels are 1
        assert 0.2 < verdicts.loc[("away", "label_shift_only"), estimate] < 0.8
    low, high = verdicts.loc[("away", "label_shift_only"), ["likelihood_low", "likelihood_high"]]
    assert low < 0.5 < high
    assert verdicts.loc[("poor", "no_shift"), "verdict"] == "undetermined"
    assert verdicts.loc[("poor", "no_shift"), "num_patients"] == 3
    probes = tables["probes"].set_index(["kind", "site", "cue"])
    assert probes.loc[("domain", "away", ""), "auroc"] > 0.8
    assert probes.loc[("domain", "away", ""), "a_distance"] > 0.5
    assert "needs 5 patients" in probes.loc[("domain", "poor", ""), "note"]
    assert probes.loc[("label_within_site", "home", ""), "auroc"] > 0.8
    assert probes.loc[("shortcut", "", "file"), "auroc"] == 1.0  # the file's size tells the label
    assert probes.loc[("shortcut", "", "acquisition"), "note"] == "the cue is the same on all images"
    assert probes.loc[("out_of_distribution", "away", "mahalanobis"), "auroc"] > 0.7
    outlying = tables["outlyingness"]
    assert outlying["score"].value_counts().to_dict() == {"mahalanobis": 126, "energy": 102}
    curve = tables["abstention"].set_index(["site", "score", "coverage"])
    assert curve.loc[("away", "energy", 1.0), "num_images"] == 24
    assert curve.loc[("away", "energy", 0.5), "num_images"] == 12
    assert curve.loc[("poor", "energy", 1.0), "note"] == "no labels"


def test_the_same_bytes_again(folder, monkeypatch):
    run(folder, monkeypatch)
    before = files(folder)
    run(folder, monkeypatch)
    assert files(folder) == before


def test_labels_of_the_target_change_nothing_but_how_abstention_is_judged(folder, monkeypatch):
    home = run(folder, monkeypatch)["abstention"].query("site == 'home'")
    before = files(folder)
    path = folder / "labels/away/labels.parquet"
    labels = read_table(Labels, path)
    write_table(Labels, labels.assign(label=1 - labels["label"]), path)
    path = folder / "predict/predictions.parquet"
    rows = read_table(Predictions, path)
    there = rows["site"] == "away"
    write_table(Predictions, rows.assign(label=rows["label"].where(~there, 1 - rows["label"])), path)
    again = run(folder, monkeypatch)["abstention"].query("site == 'home'")
    pd.testing.assert_frame_equal(home, again)  # the threshold is id_val's
    after = files(folder)
    assert {name for name in before if before[name] != after[name]} == {"abstention.parquet"}


def test_target_labels_are_used_where_params_say_so(folder, monkeypatch):
    tables = run(folder, monkeypatch, use_target_labels=True)
    given = tables["tests"].set_index(["site", "hypothesis", "test"])
    assert given.loc[("away", "no_shift", "label_given_score"), "p_value"] > 0.01
    assert "10 patients of each label" in given.loc[("poor", "no_shift", "label_given_score"), "note"]
    # Its images are like none at home: no label can say whether it would mean the same there.
    apart = given.loc[("away", "covariate_shift_only", "label_given_propensity")]
    assert "tell the hospitals apart" in apart["note"]
    assert pd.isna(apart["p_value"])
    verdicts = tables["diagnoses"].set_index(["site", "hypothesis"])
    for site in ("away", "poor"):
        assert verdicts.loc[(site, "label_and_covariate_shift"), "verdict"] == "undetermined"
    assert "5 patients on each side" in verdicts.loc[("poor", "covariate_shift_only"), "note"]


def test_target_labels_of_one_class_or_of_nobody(folder, monkeypatch):
    path = folder / "labels/away/labels.parquet"
    labels = read_table(Labels, path)
    write_table(Labels, labels.assign(label=1), path)
    one_class = run(folder, monkeypatch, use_target_labels=True)["tests"].set_index(["site", "test"])
    for test in ("label_given_score", "label_given_propensity", "slope_given_propensity"):
        assert "the smallest group has 0" in one_class.loc[("away", test), "note"]
    write_table(Labels, labels.assign(label=pd.NA), path)
    nobody = run(folder, monkeypatch, use_target_labels=True)
    verdicts = nobody["diagnoses"].set_index(["site", "hypothesis"])
    assert verdicts.loc[("away", "no_shift"), "verdict"] == "rejected"  # the images tell all the same
    assert verdicts.loc[("away", "covariate_shift_only"), "verdict"] == "undetermined"
    assert verdicts.loc[("away", "label_shift_only"), "likelihood"] == pytest.approx(0.5, abs=0.35)


def test_a_source_of_one_class_can_have_no_estimate_and_says_so(folder, monkeypatch):
    path = folder / "predict/predictions.parquet"
    rows = read_table(Predictions, path)
    write_table(Predictions, rows.assign(label=rows["label"].where(rows["label"].isna(), 0)), path)
    verdicts = run(folder, monkeypatch)["diagnoses"].set_index(["site", "hypothesis"])
    row = verdicts.loc[("away", "label_shift_only")]
    assert row["verdict"] == "undetermined"
    assert "0 source patients with a positive image" in row["note"]
    assert row[["estimate", "likelihood"]].isna().all()
    assert verdicts.loc[("away", "no_shift"), "verdict"] == "rejected"  # of the images alone


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [("probability", 1.2, r"probability must lie in \[0, 1\]; 1 of"), ("probability", -0.1, "probability must lie"),
     ("probability", float("nan"), "probability"), ("logit", float("inf"), "logit must be finite; 1 of")],
)  # fmt: skip
def test_impossible_predictions_are_refused(folder, monkeypatch, column, value, told):
    path = folder / "predict/predictions.parquet"
    rows = read_table(Predictions, path)
    rows.loc[5, column] = value
    with pytest.raises(PipelineError, match=told):
        mean_logits(rows)
    rows.to_parquet(path)  # no writer of ours would write some of these
    with pytest.raises(PipelineError, match="redictions"):
        run(folder, monkeypatch)


def test_predictions_twice_are_refused(folder, monkeypatch):
    path = folder / "predict/predictions.parquet"
    rows = read_table(Predictions, path)
    twice = pd.concat([rows, rows.iloc[:2]], ignore_index=True)
    with pytest.raises(PipelineError, match="must be unique; 2 of"):
        mean_logits(twice)
    twice.to_parquet(path)  # no writer of ours would
    with pytest.raises(PipelineError, match="Predictions"):
        run(folder, monkeypatch)


def test_damage_and_misspelling_are_told(folder, monkeypatch):
    with pytest.raises(ParamsError, match="did you mean 'permutations'"):
        run(folder, monkeypatch, permutation=9)
    np.save(folder / "embed/net/features.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(PipelineError, match="differ in their rows"):
        run(folder, monkeypatch)
    (folder / "embed/net/features.npy").unlink()
    with pytest.raises(PipelineError, match="missing or damaged"):
        run(folder, monkeypatch)


def test_mean_logits_takes_the_largest_budget_and_no_adapted_model():
    def row(run, logit, fraction, shots=None, adaptation="none"):
        fixed = {"image_id": "i", "finding": "f", "backbone": "b", "patient_id": "p", "site": "s", "split": "id_test"}
        own = {"run": run, "logit": logit, "label_fraction": fraction, "shots": shots, "adaptation": adaptation}
        return {**fixed, **own, "method": "m", "label": 1, "probability": 0.5}

    rows = [row("a", 1.0, 1.0), row("b", 3.0, 1.0), row("c", 50.0, 0.5), row("d", 90.0, 1.0, 5)]
    rows.append(row("e", 70.0, 1.0, None, "adabn"))
    assert mean_logits(make_table(Predictions, rows))["logit"].tolist() == [2.0]
    few = pd.concat(
        [make_table(Predictions, [row("d", 9.0, 1.0, 5)]), make_table(Predictions, [row("e", 4.0, 1.0, 1)])]
    )
    assert mean_logits(few)["logit"].tolist() == [9.0]
