"""The stage over three small sites: every table, the same bytes again, poor sites, and which labels it looks at."""

from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import tiny

from pipeline.analysis.diagnosis import mean_logits
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, PlaneFormat, write_store
from pipeline.params import ParamsError
from pipeline.stages import diagnose
from pipeline.tables.contract import make_table, read_table, write_table
from pipeline.tables.diagnosis import Abstention, Diagnoses, Embedded, Outlyingness, Probes, ShiftTests
from pipeline.tables.files import Instances, Manifest
from pipeline.tables.images import Images, Splits
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions

TABLES = {
    "diagnoses": Diagnoses,
    "tests": ShiftTests,
    "probes": Probes,
    "outlyingness": Outlyingness,
    "abstention": Abstention,
}
SITES = {
    "home": ("train", "id_val", "id_test"),
    "away": ("target_adapt", "ood_test"),
    "poor": ("target_adapt", "ood_test"),
}


@pytest.fixture
def folder(tmp_path):
    """As the stages before leave it; ``away`` has another scanner, ``poor`` three patients and no labels."""
    rng = np.random.default_rng(0)
    splits, predictions, embedded, features = [], [], [], []
    for site, parts in SITES.items():
        names = [f"{site}-{part}-{index}" for part in parts for index in range(3 if site == "poor" else 24)]
        labels = np.arange(len(names)) % 2
        write_store(tiny.images(labels), np.arange(len(names))[:, None], PlaneFormat(32, 8), tmp_path / "images" / site)
        placed = [
            {"image_id": name, "array_index": index, "voi": "none", "inverted": False, "pixels_sha256": "0"}
            for index, name in enumerate(names)
        ]
        write_table(Images, placed, tmp_path / "images" / site / INDEX_FILE)
        known = [None if site == "poor" else int(label) for label in labels]
        rows = [{"image_id": name, "finding": "opacity", "label": y} for name, y in zip(names, known, strict=True)]
        write_table(Labels, rows, tmp_path / "labels" / site / "labels.parquet")
        common = {"site": site, "frame": 0, "rows": 32, "columns": 32, "source_hmac": "h"}
        instances = [
            {"image_id": n, "source_id": f"s-{n}", "patient_id": f"p-{n}", "study_id": n, **common} for n in names
        ]
        write_table(Instances, instances, tmp_path / "ingest" / site / "instances.parquet")
        sizes = [{"source_id": f"s-{n}", "size_bytes": 1000 + 500 * int(y)} for n, y in zip(names, labels, strict=True)]
        write_table(Manifest, sizes, tmp_path / "manifests" / f"{site}.parquet")
        for name, label, y in zip(names, labels, known, strict=True):
            part = name.split("-")[1]
            place = {"image_id": name, "patient_id": f"p-{name}", "site": site, "split": part}
            role = "source" if site == "home" else "target"
            splits.append({**place, "study_id": name, "role": role})
            embedded.append({**place, "row": len(features)})
            features.append(rng.normal(size=5) + np.array([2 * label, 3 * (site == "away"), 0, 0, 0]))
            for seed in (1, 2):
                if part != "train":
                    logit = float(2 * label - 1 + 2 * rng.normal())
                    run = {"run": f"net-probe-seed{seed}", "backbone": "net", "method": "probe", "seed": seed}
                    shown = None if part == "target_adapt" else y
                    values = {"label": shown, "logit": logit, "probability": 0.5, "label_fraction": 1.0}
                    predictions.append({**place, "study_id": name, "finding": "opacity", **run, **values})
    write_table(Splits, splits, tmp_path / "split/splits.parquet")
    write_table(Predictions, predictions, tmp_path / "predict/predictions.parquet")
    write_table(Embedded, embedded, tmp_path / "embed/net/index.parquet")
    np.save(tmp_path / "embed/net/features.npy", np.array(features, dtype=np.float32))
    return tmp_path


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
    assert 0.2 < verdicts.loc[("away", "label_shift_only"), "estimate"] < 0.8
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
    given = tables["tests"][tables["tests"]["test"] == "label_given_score"].set_index(["site", "hypothesis"])
    assert given.loc[("away", "covariate_shift_only"), "p_value"] > 0.01
    assert "10 patients of each label" in given.loc[("poor", "covariate_shift_only"), "note"]
    verdicts = tables["diagnoses"].set_index(["site", "hypothesis"])
    assert verdicts.loc[("away", "covariate_shift_only"), "verdict"] == "compatible"
    assert verdicts.loc[("poor", "label_and_covariate_shift"), "verdict"] == "undetermined"


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
