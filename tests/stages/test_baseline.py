"""baseline as a stage: whose rows it writes, and what it must not have seen."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny
from sklearn.metrics import roc_auc_score

from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.stages import baseline
from pipeline.tables.baseline import BaselineColumns
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.files import Instances
from pipeline.tables.images import Splits
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions

PARAMS = {"inverse_l2": [0.1, 1.0]}
NUM = 40  # images a split


@pytest.fixture
def study(tmp_path):
    """Opacity is of the old; effusion has one class in training; one scanner at home, another away."""
    splits = []
    for site, sides in (("home", ("train", "id_val", "id_test")), ("away", ("target_adapt", "ood_test"))):
        role = "source" if site == "home" else "target"
        names = [(f"{site}-{side}-{number}", side) for side in sides for number in range(NUM)]
        ids = [name for name, _ in names]
        splits += [
            {"image_id": n, "patient_id": f"p-{n}", "study_id": n, "site": site, "role": role, "split": side}
            for n, side in names
        ]
        age = np.random.default_rng(len(sides)).integers(20, 90, len(names))
        facts = {"image_id": ids, "age_years": age, "model": "alpha_dr1" if site == "home" else "other"}
        common = {"source_id": "s", "frame": 0, "rows": 1, "columns": 1, "source_hmac": "h", "site": site}
        instances = pd.DataFrame(facts).assign(patient_id=[f"p-{n}" for n in ids], study_id=ids, **common)
        write_table(Instances, instances, tmp_path / "ingest" / site / "instances.parquet")
        opacity = (age + np.random.default_rng(5).normal(0, 10, len(age)) > 55).astype(int)
        labels = pd.concat(
            [
                pd.DataFrame({"image_id": ids, "finding": "opacity", "label": opacity, "status": "given"}),
                pd.DataFrame({"image_id": ids, "finding": "effusion", "label": 0, "status": "given"}),
            ]
        )
        write_table(Labels, labels, tmp_path / "labels" / site / "labels.parquet")
    write_table(Splits, splits, tmp_path / "split/splits.parquet")
    return tmp_path


def run(study, monkeypatch, out="baseline", params=PARAMS, **more):
    path = tiny.write_params(study / "params.yaml", baseline=params, **more)
    folders = {name: study / name for name in ("ingest", "labels", "split")}
    tiny.call(monkeypatch, baseline, **folders, out=study / out, params=path)
    return read_table(Predictions, study / out / "predictions.parquet")


def change(study, table, part, site, **columns):
    path = study / part / site / f"{part if part == 'labels' else 'instances'}.parquet"
    rows = read_table(table, path)
    write_table(table, rows.assign(**{name: made(rows) for name, made in columns.items()}), path)


def test_who_is_predicted_and_with_what(study, monkeypatch, capsys):
    rows = run(study, monkeypatch)
    assert rows.groupby(["site", "split"])["image_id"].nunique().to_dict() == {
        ("home", "id_val"): NUM,
        ("home", "id_test"): NUM,
        ("away", "ood_test"): NUM,
    }
    constant = ["run", "finding", "protocol", "backbone", "method", "seed", "label_fraction", "draw", "adaptation"]
    assert rows[constant].drop_duplicates().to_numpy().tolist() == [
        ["no_pixels-logistic-seed0", "opacity", "home", "no_pixels", "logistic", 0, 1.0, 0, "none"]
    ]
    assert rows["shots"].isna().all()
    truth = pd.concat([read_table(Labels, study / "labels" / site / "labels.parquet") for site in ("home", "away")])
    truth = truth[truth["finding"] == "opacity"].set_index("image_id")["label"]
    assert rows["label"].tolist() == truth[rows["image_id"]].tolist()
    np.testing.assert_allclose(rows["logit"], np.log(rows["probability"] / (1 - rows["probability"])), rtol=1e-9)
    told = capsys.readouterr().out
    assert "opacity: from age_years\n" in told
    assert re.search(r"effusion: not predicted; training needs both classes: 0 positive and 40 negative", told)
    assert "1 findings predicted without pixels, 1 refused" in told


def test_columns_say_what_was_used_and_why_not(study, monkeypatch):
    run(study, monkeypatch)
    table = read_table(BaselineColumns, study / "baseline/columns.parquet").set_index(["finding", "column"])
    assert table.index[table["used"]].tolist() == [("opacity", "age_years")]
    assert table.loc[("opacity", "model"), "note"] == "constant in training"
    assert table.loc[("opacity", "kvp"), "note"] == "all null in training"
    assert table.loc["effusion", "note"].str.startswith("training needs both classes").all()
    assert len(table) == 14


def test_what_age_tells_at_home_it_tells_elsewhere(study, monkeypatch):
    rows = run(study, monkeypatch)
    for _, part in rows.groupby("split"):
        assert roc_auc_score(part["label"].astype(int), part["logit"]) > 0.9


def test_poisoned_labels_of_the_target_and_of_the_tests_change_no_prediction(study, monkeypatch):
    before = run(study, monkeypatch)
    change(study, Labels, "labels", "away", label=lambda rows: 1 - rows["label"])
    tests = "home-id_test"
    change(
        study, Labels, "labels", "home",
        label=lambda rows: rows["label"].mask(rows["image_id"].str.startswith(tests), 1 - rows["label"]),
    )  # fmt: skip
    after = run(study, monkeypatch)
    differs = after["label"] != before["label"]
    assert set(after.loc[differs, "split"]) == {"id_test", "ood_test"}
    pd.testing.assert_frame_equal(after.drop(columns="label"), before.drop(columns="label"), check_exact=True)


def test_an_image_without_a_label_is_predicted_too(study, monkeypatch):
    before = run(study, monkeypatch)
    path = study / "labels/away/labels.parquet"
    write_table(Labels, read_table(Labels, path)[::3], path)
    after = run(study, monkeypatch)
    pd.testing.assert_frame_equal(after.drop(columns="label"), before.drop(columns="label"), check_exact=True)
    assert after.loc[after["split"] == "ood_test", "label"].isna().any()


def test_the_targets_facts_change_no_prediction_at_home(study, monkeypatch):
    before = run(study, monkeypatch)
    change(study, Instances, "ingest", "away", age_years=lambda rows: rows["age_years"] + 5)
    after = run(study, monkeypatch)
    home = before["site"] == "home"
    pd.testing.assert_frame_equal(after[home], before[home], check_exact=True)
    assert (after.loc[~home, "logit"] > before.loc[~home, "logit"]).all()


def test_the_same_inputs_give_the_same_bytes(study, monkeypatch):
    for out in ("one", "two"):
        run(study, monkeypatch, out)
    for name in ("predictions.parquet", "columns.parquet"):
        assert (study / "one" / name).read_bytes() == (study / "two" / name).read_bytes()


def test_a_site_that_was_removed_is_pruned(study, monkeypatch):
    before = run(study, monkeypatch)
    for part in ("ingest", "labels"):
        shutil.copytree(study / part / "away", study / part / "gone")
    pd.testing.assert_frame_equal(run(study, monkeypatch), before)
    assert not list(study.glob("*/gone"))


def test_several_sources_are_one_protocol(study, monkeypatch):
    splits = read_table(Splits, study / "split/splits.parquet")
    moved = splits["split"].map({"target_adapt": "train", "ood_test": "id_test"}).fillna(splits["split"])
    write_table(Splits, splits.assign(split=moved, role="source"), study / "split/splits.parquet")
    for part in ("ingest", "labels"):
        shutil.copytree(study / part / "away", study / part / "far")
        table = Instances if part == "ingest" else Labels
        change(study, table, part, "far", image_id=lambda rows: "far-" + rows["image_id"])
    rows = run(study, monkeypatch, split={"seed": 1, "source": ["home", "away"], "target": ["far"]})
    assert set(rows["protocol"]) == {"home+away"}
    table = read_table(BaselineColumns, study / "baseline/columns.parquet").set_index(["finding", "column"])
    assert table.loc[("opacity", "model"), "used"]  # two scanners at home now


def test_all_findings_refused_leaves_an_empty_table_with_the_reasons(study, monkeypatch):
    change(study, Labels, "labels", "home", label=lambda _: 1)
    assert len(run(study, monkeypatch)) == 0
    assert read_table(BaselineColumns, study / "baseline/columns.parquet")["note"].notna().all()


def test_nothing_to_predict_is_told_in_words(study, monkeypatch):
    path = study / "split/splits.parquet"
    splits = read_table(Splits, path)
    write_table(Splits, splits[splits["split"].isin(["train", "target_adapt"])], path)
    with pytest.raises(PipelineError, match="nothing to predict: none of 80 images"):
        run(study, monkeypatch)


def test_a_misspelt_parameter_is_refused(study, monkeypatch):
    with pytest.raises(ParamsError, match="did you mean 'inverse_l2'"):
        run(study, monkeypatch, params={"inverse_l": [1.0]})
