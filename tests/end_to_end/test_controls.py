"""Controls: nothing can be learnt from permuted labels, scratch does not beat itself, and a plain signal is found."""

import pytest
from end_to_end.project import Project, site

from pipeline.analysis.evaluation import EvaluateParams, evaluate
from pipeline.tables.contract import read_table
from pipeline.tables.evaluation import Metrics
from pipeline.tables.predictions import Predictions

METHODS = {
    "scratch": {"learning_rate": 1e-3},
    "linear_probe": {"inverse_l2": [1e-3, 1e-2]},
    "full_finetune": {"learning_rate": 1e-3},
    "lp_ft": {"inverse_l2": [1e-3, 1e-2], "learning_rate": 1e-4},
}


BEFORE = ("features", "choice", "baseline")
TRAINED = ("finetune", "search", "predict", "evaluate")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A cohort with an obvious finding, through the graph to its metrics."""
    made = Project.create(tmp_path_factory.mktemp("controls"))
    params = made.params
    plain = {"patients": 90, "d_prime": 6.0, "contrast": 1.5, "radius_mm": 35.0, "bad_share": 0.0}
    params["sites"] = {"home": site("home", **plain), "away": site("away", **plain)}
    params["split"] |= {"id_val_fraction": 0.2, "id_test_fraction": 0.3}
    params["methods"] = METHODS
    params["finetune"] |= {"seeds": [1, 2, 3, 4, 5, 6], "epochs": 2}
    params["evaluate"]["resamples"] = 400
    made.params = params
    made.run("pipeline.commands.fetch_weights")
    with pytest.MonkeyPatch.context() as patch:
        made.run_here(patch, "simulate", "ingest", "labels", "preprocess", "split", "gather", *BEFORE, *TRAINED)
    return made


def rows(project: Project, metric: str):
    metrics = read_table(Metrics, project.folder / "data/evaluate/metrics.parquet")
    # Without the baseline: no network, and labels are permuted for training of those alone.
    wanted = (metrics["metric"] == metric) & ~metrics["run"].str.contains("-seed|^no_pixels-")
    return metrics[wanted & metrics["group"].isin(["source", "target"]) & (metrics["split"] != "id_val")]


def test_a_plain_signal_is_found(project):
    probe = rows(project, "auroc")
    probe = probe[probe["run"].str.endswith("-linear_probe")]
    assert len(probe) == 2
    assert (probe["ci_low"] > 0.5).all(), probe.to_string()


def test_scratch_against_scratch_is_no_difference(project):
    """Three seeds of scratch against three others, as if they were two methods."""
    predictions = read_table(Predictions, project.folder / "data/predict/predictions.parquet")
    predictions = predictions[predictions["method"] == "scratch"].reset_index(drop=True)
    later = predictions["seed"] > 3
    predictions.loc[later, "method"] = "scratch_again"
    result = evaluate(predictions, EvaluateParams(seed=1, resamples=400), ["home"], ["away"]).metrics
    differences = result[(result["metric"] == "auroc_minus_scratch") & result["group"].isin(["source", "target"])]
    assert len(differences) >= 2
    assert ((differences["ci_low"] <= 0) & (differences["ci_high"] >= 0)).all(), differences.to_string()


def test_permuted_labels_leave_every_method_at_one_half(project, tmp_path, monkeypatch):
    control = project.copy(tmp_path / "permuted")
    params = control.params
    params["finetune"]["permute_labels"] = True
    control.params = params
    control.run_here(monkeypatch, *TRAINED)
    found = rows(control, "auroc")
    assert len(found) == 2 * len(METHODS)
    assert ((found["ci_low"] <= 0.5) & (found["ci_high"] >= 0.5)).all(), found.to_string()
