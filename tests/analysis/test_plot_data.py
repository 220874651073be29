"""What dvc plots draws: against scikit-learn, against evaluate's own tables, and what small cells must not tell."""

import numpy as np
import pandas as pd
import pytest
from analysis.two_hospitals import predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score, roc_curve

from pipeline.analysis import plot_data
from pipeline.analysis.evaluation import EvaluateParams, evaluate, name_families
from pipeline.analysis.plot_data import STEP, SmallCells, mean_roc, place_tables, thin
from pipeline.errors import PipelineError
from pipeline.metrics.binary import equal_mass_bins
from pipeline.stages.report import ReportParams
from pipeline.tables.contract import make_table
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Curves, Runs


def tables(frame, min_cell=0, bins=5):
    evaluated = evaluate(frame, EvaluateParams(seed=1, resamples=100, reliability_bins=bins), ["home"], ["away"])
    families = plot_data.full_families(name_families(frame))
    return evaluated, families, place_tables(frame, evaluated.thresholds, families, bins, min_cell)


def area(points):
    return np.trapezoid(points[:, 1], points[:, 0])


# --- ROC -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_run_is_scikit_learns_curve_and_several_have_the_mean_area(data):
    """scikit-learn's curve as an oracle; ties, slanted steps and the corners' order included."""
    labels = np.array([*data.draw(st.lists(st.integers(0, 1), min_size=2, max_size=25)), 0, 1])
    scores = st.lists(st.integers(-3, 3), min_size=len(labels), max_size=len(labels))
    logits = np.array(data.draw(st.lists(scores, min_size=1, max_size=3)), dtype=float)
    points = mean_roc(labels, logits[:1])
    false, true, _ = roc_curve(labels, logits[0], drop_intermediate=False)
    # All their points lie on our line (both rise, so that the sum of the rates says where), and our corners are theirs.
    np.testing.assert_allclose(np.interp(false + true, points.sum(axis=1), points[:, 0]), false, atol=1e-9)
    assert {tuple(point) for point in points.round(9)} <= {tuple(p) for p in np.column_stack([false, true]).round(9)}
    several = mean_roc(labels, logits)
    areas = [roc_auc_score(labels, row) for row in logits]
    assert area(several) == pytest.approx(np.mean(areas))
    assert (np.diff(several, axis=0) >= -1e-12).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([STEP, 0.05, 0.3]))
def test_a_thinned_curve_is_bounded_and_near(seed, step):
    rng = np.random.default_rng(seed)
    labels = rng.random(3000) < 0.4
    curve = mean_roc(labels.astype(int), rng.normal(size=(1, 3000)) + labels)
    drawn = thin(curve, step)
    assert len(drawn) <= 2 / step + 2
    assert drawn[0].tolist() == [0, 0]
    assert drawn[-1].tolist() == [1, 1]
    # Each corner that was left out lies within a step of the drawn line, in either rate.
    for false, true in curve:
        box = drawn[(np.abs(drawn - [false, true]) <= step + 1e-9).all(axis=1)]
        if not len(box):
            at = np.interp(true + false, drawn.sum(axis=1), drawn[:, 0])
            assert abs(at - false) <= step + 1e-9
    assert area(drawn) == pytest.approx(area(curve), abs=step)


# --- agreement with evaluate ---------------------------------------------------------------------------------


def test_what_is_drawn_is_what_evaluate_says():
    frame = predictions()
    evaluated, families, made = tables(frame)
    metrics = evaluated.metrics.set_index(["run", "split", "group", "metric"])["value"]
    for (run, split, site), curve in made["roc"].groupby(["run", "split", "site"]):
        value = metrics[run, split, f"site={site}", "auroc"]
        drawn = curve[["false_positive_rate", "true_positive_rate"]].to_numpy(float)
        assert area(drawn) == pytest.approx(value)
    assert made["roc"].groupby(["run", "split", "site"]).ngroups == 4
    shares = made["confusion"].set_index(["run", "split", "site", "actual", "predicted"])["share"]
    for run, split, site in {key[:3] for key in shares.index}:
        for name, cell in (("sensitivity", "present"), ("specificity", "absent")):
            assert shares[run, split, site, cell, cell] == pytest.approx(metrics[run, split, f"site={site}", name])
    assert made["confusion"].groupby(["run", "split", "site"])["count"].sum().eq(60).all()
    theirs = evaluated.calibration[evaluated.calibration["group"].str.startswith("site=")]
    theirs = theirs.assign(site=theirs["group"].str.removeprefix("site="))
    both = made["calibration"].merge(theirs, on=["finding", "run", "site", "bin"], suffixes=("", "_theirs"))
    assert len(both) == len(theirs) == len(made["calibration"])
    for column in ("mean_probability", "observed_rate"):
        np.testing.assert_allclose(both[column], both[f"{column}_theirs"])
    auroc = plot_data.site_auroc(evaluated.metrics, families)
    for row in auroc.to_dict("records"):
        assert row["auroc"] == metrics[row["run"], row["split"], f"site={row['site']}", "auroc"]
        assert row["ci_low"] < row["auroc"] < row["ci_high"]
    assert len(auroc) == 4


def test_few_labels_and_few_shots_are_told_elsewhere():
    frame = predictions()
    few = frame.assign(run=frame["run"] + "-labels25-draw0", label_fraction=0.25)
    shots = frame.assign(run=frame["run"] + "-shots5-draw0", shots=5)
    both = make_table(Predictions, pd.concat([frame, few, shots], ignore_index=True))
    assert {family.name for family in plot_data.full_families(name_families(both))} == {
        "resnet18-scratch",
        "resnet18-lp_ft",
    }


def test_runs_of_other_cases_are_refused():
    frame = predictions()
    gone = (frame["run"] == "resnet18-lp_ft-seed2") & (frame["image_id"] == "id_test-000")
    with pytest.raises(PipelineError, match="resnet18-lp_ft are not of the same cases on id_test"):
        list(plot_data.scored(frame[~gone], name_families(frame)))


def test_a_place_with_one_class_has_no_curve_and_says_so():
    frame = predictions()
    frame.loc[frame["split"] == "ood_test", "label"] = 0
    _, _, made = tables(frame)
    away = made["roc"][made["roc"]["site"] == "away"]
    assert away["true_positive_rate"].isna().all()
    assert set(away["note"]) == {"one class only: absent"}
    cells = made["confusion"][made["confusion"]["site"] == "away"].set_index(["run", "actual"])
    assert cells.loc[("resnet18-scratch", "present"), "share"].isna().all()
    assert cells.loc[("resnet18-scratch", "present"), "count"].eq(0).all()


# --- small cells ---------------------------------------------------------------------------------------------


def test_the_default_is_the_pages():
    assert SmallCells.model_fields["min_cell"].default == ReportParams.model_fields["min_cell"].default
    with pytest.raises(ValidationError):
        SmallCells(min_cell=-1)


def test_what_few_patients_would_give_away_is_null():
    """30 patients a split, 10 of them with the finding."""
    frame = predictions()
    _, _, told = tables(frame, min_cell=10)
    assert told["roc"]["true_positive_rate"].notna().all()
    _, _, made = tables(frame, min_cell=11)
    assert made["roc"]["true_positive_rate"].isna().all()
    assert set(made["roc"]["note"]) == {"under 11 patients of a class"}
    assert len(made["roc"]) == 4
    patients = frame[frame["split"].isin(["id_test", "ood_test"])].groupby(["split"])["patient_id"].nunique()
    assert set(patients) == {30}
    hidden = made["confusion"]["note"] != ""
    assert made["confusion"].loc[hidden, ["count", "share"]].isna().all().all()
    # Both cells of a class or none: one and the sum would tell the other.
    pairs = hidden.groupby([made["confusion"][name] for name in ("run", "split", "actual")]).sum()
    assert set(pairs) <= {0, 2}
    assert hidden[made["confusion"]["actual"] == "present"].all()


@pytest.mark.parametrize("min_cell", [3, 6, 14])
def test_no_told_cell_or_bin_is_of_few_patients(min_cell):
    frame = predictions(num=120)
    evaluated, families, made = tables(frame, min_cell, bins=12)
    thresholds = evaluated.thresholds.set_index("run")["threshold"]
    seen = 0
    for row in made["confusion"].to_dict("records"):
        for run in next(family for family in families if family.name == row["run"]).draws:
            own = frame[(frame["run"] == run) & (frame["split"] == row["split"])]
            called = own["probability"] >= thresholds[run]
            cell = own[(own["label"] == (row["actual"] == "present")) & (called == (row["predicted"] == "present"))]
            if row["note"] == "":
                assert not 0 < cell["patient_id"].nunique() < min_cell
                seen += 1
    assert seen
    bins = made["calibration"].set_index(["run", "split", "bin"])
    for (name, split), part in bins.groupby(["run", "split"]):
        runs = next(family for family in families if family.name == name).draws
        own = frame[frame["run"].isin(runs) & (frame["split"] == split)]
        inside = equal_mass_bins(own["logit"].to_numpy(float), np.ones(len(own)), 12)
        patients = own["patient_id"].groupby(inside).nunique()
        small = {index for index, number in patients.items() if number < min_cell}
        assert {key[2] for key, row in part.iterrows() if row["note"] != ""} == small
    hidden = bins[bins["note"] != ""]
    assert hidden[["mean_probability", "observed_rate"]].isna().all().all()
    assert len(hidden) or min_cell < 14


# --- learning curves -----------------------------------------------------------------------------------------


def test_learning_curves_are_the_table_of_those_that_train_by_epochs():
    runs = [
        {"run": f"r-{method}-seed{seed}{rest}", "backbone": "r", "method": method, "seed": seed, **budget}
        for method in ("scratch", "probe")
        for seed in (1, 2)
        for rest, budget in (("", {"label_fraction": 1.0}), ("-labels25-draw0", {"label_fraction": 0.25}))
    ]
    curves = [
        {
            "run": run["run"],
            "phase": "finetune",
            "epoch": epoch,
            "train_loss": 0.5 + run["seed"] + epoch,
            "id_val_loss": 0.25 + run["seed"],
            "learning_rate": 1e-3 if run["method"] == "scratch" else None,
        }
        for run in runs
        for epoch in range(3)
    ]
    made = plot_data.learning_curves(make_table(Curves, curves), make_table(Runs, runs))
    assert set(made["run"]) == {"r-scratch"}
    assert len(made) == 2 * 2 * 3
    cells = made.set_index(["curve", "seed", "epoch"])["loss"]
    assert cells["train", 2, 1] == 3.5
    assert cells["id_val", 1, 2] == 1.25
