"""gate: what fails it, in which direction, and what it refuses to compare."""

import json

import pytest
import tiny

from pipeline.commands import gate
from pipeline.commands.gate import compare, to_markdown, worsening
from pipeline.errors import PipelineError
from pipeline.metrics.binary import METRICS
from pipeline.params import ParamsError
from pipeline.tables.contract import write_table
from pipeline.tables.training import Runs

TOLERANCES = {"auroc": 0.05, "brier": 0.02}
AUROC, BRIER = "resnet18-lp_ft/opacity/ood_test/target/auroc", "resnet18-lp_ft/opacity/ood_test/target/brier"
BEFORE = {AUROC: 0.80, BRIER: 0.15, "resnet18-lp_ft/opacity/ood_test/target_minus_source/auroc": -0.1}


@pytest.mark.parametrize(
    ("metric", "before", "worse", "better"),
    [
        ("auroc", 0.8, 0.7, 0.9),
        ("average_precision", 0.5, 0.4, 0.6),
        ("brier", 0.1, 0.2, 0.05),
        ("log_loss", 0.5, 0.6, 0.4),
        ("ece", 0.05, 0.08, 0.01),
        ("calibration_slope", 0.9, 0.5, 1.05),
        ("calibration_slope", 1.1, 1.4, 0.95),
        ("calibration_slope", 0.9, 1.3, 1.0),
        ("calibration_intercept", -0.1, -0.5, 0.05),
        ("calibration_intercept", 0.1, -0.4, 0.0),
    ],
)
def test_the_direction_of_worse(metric, before, worse, better):
    assert metric in METRICS
    assert worsening(metric, before, worse) > 0
    assert worsening(metric, before, better) < 0
    assert worsening(metric, before, before) == 0


def test_noise_within_the_tolerance_passes():
    regressions, judged = compare(BEFORE, {AUROC: 0.76, BRIER: 0.165}, TOLERANCES)
    assert (regressions, judged) == ([], 2)  # the gap has no better and worse of its own
    assert to_markdown(regressions, judged).startswith("**Gate passed**: 2 metrics")


@pytest.mark.parametrize(
    ("now", "worse_by"),
    [({AUROC: 0.70, BRIER: 0.15}, 0.1), ({AUROC: None, BRIER: 0.15}, None), ({BRIER: 0.15}, None)],
)
def test_worse_undefined_and_vanished_fail(now, worse_by):
    (verdict,), judged = compare(BEFORE, now, TOLERANCES)
    assert (verdict.name, verdict.before, verdict.tolerance, judged) == (AUROC, 0.8, 0.05, 2)
    assert verdict.worse_by == (None if worse_by is None else pytest.approx(worse_by))
    table = to_markdown([verdict], judged).splitlines()
    assert table[0] == "**Gate failed**: 1 of 2 metrics are worse than the baseline allows."
    assert {line.count("|") for line in table[2:]} == {6}
    shown = ["none", "none"] if worse_by is None else ["0.7000", "0.1000"]
    assert table[4] == f"| {AUROC} | 0.8000 | {' | '.join(shown)} | 0.0500 |"


def test_better_new_and_formerly_undefined_metrics_pass():
    before = {**BEFORE, AUROC.replace("target", "site=west"): None}
    now = {AUROC: 0.99, BRIER: 0.01, AUROC.replace("lp_ft", "scratch"): 0.1}
    assert compare(before, now, TOLERANCES) == ([], 2)


# --- as a command --------------------------------------------------------------------------------------------


def write_run(folder, metrics, initialisation="imagenet", weights="ResNet18_Weights.IMAGENET1K_V1"):
    rows = [
        {"run": f"resnet18-{method}-seed{seed}", "backbone": "resnet18", "method": method, "seed": seed}
        | (
            {"initialisation": initialisation, "weights_name": weights}
            if method != "scratch"
            else {"initialisation": "scratch"}
        )
        for method in ("scratch", "lp_ft")
        for seed in (1, 2)
    ]
    write_table(Runs, rows, folder / "runs.parquet")
    (folder / "metrics.json").write_text(json.dumps(metrics))


def run(folder, monkeypatch, *options, tolerances=TOLERANCES):
    """The exit code; 0 where the command just returns."""
    params = tiny.write_params(folder / "params.yaml", gate={"tolerances": tolerances})
    paths = {"metrics": folder / "metrics.json", "runs": folder / "runs.parquet", "baseline": folder / "baseline.json"}
    try:
        tiny.call(monkeypatch, gate, *options, **paths, params=params)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def baseline(tmp_path, monkeypatch):
    write_run(tmp_path, BEFORE)
    assert run(tmp_path, monkeypatch, "--update") == 0
    return tmp_path


def test_the_exit_code_tells(baseline, monkeypatch, capsys):
    assert run(baseline, monkeypatch) == 0
    assert "**Gate passed**: 2 metrics" in capsys.readouterr().out
    write_run(baseline, {AUROC: 0.81, BRIER: 0.5})
    assert run(baseline, monkeypatch) == 1
    assert f"| {BRIER} | 0.1500 | 0.5000 | 0.3500 | 0.0200 |" in capsys.readouterr().out
    write_run(baseline, {})
    assert run(baseline, monkeypatch) == 1


def test_update_accepts_what_is(baseline, monkeypatch):
    write_run(baseline, {AUROC: 0.5})
    assert run(baseline, monkeypatch) == 1
    assert run(baseline, monkeypatch, "--update") == 0
    assert run(baseline, monkeypatch) == 0
    kept = json.loads((baseline / "baseline.json").read_text())
    assert kept == {
        "initialisation": {"resnet18": "ResNet18_Weights.IMAGENET1K_V1"},
        "metrics": {AUROC: 0.5},
    }


def test_no_baseline_is_an_error_with_advice(tmp_path, monkeypatch):
    write_run(tmp_path, BEFORE)
    with pytest.raises(PipelineError, match=r"baseline.json is not there; make one with --update, and commit it"):
        run(tmp_path, monkeypatch)


def test_other_initial_weights_are_not_compared(baseline, monkeypatch):
    write_run(baseline, BEFORE, "random", "random initialisation, not ImageNet")
    with pytest.raises(PipelineError, match=r"IMAGENET1K_V1.*random initialisation.*cannot be compared"):
        run(baseline, monkeypatch)


def test_a_baseline_full_of_conflict_marks_is_told(baseline, monkeypatch):
    (baseline / "baseline.json").write_text("<<<<<<< HEAD\n{}\n")
    with pytest.raises(PipelineError, match=r"baseline.json is no JSON"):
        run(baseline, monkeypatch)


def test_a_gate_that_judges_nothing_is_an_error(baseline, monkeypatch):
    with pytest.raises(PipelineError, match="nothing was judged"):
        run(baseline, monkeypatch, tolerances={"ece": 0.1})


@pytest.mark.parametrize(
    ("tolerances", "text"),
    [
        ({"aurok": 0.1}, "unknown metric 'aurok'; did you mean 'auroc'"),
        ({"prevalence": 0.1}, "'prevalence' has no better and worse"),
        ({}, "gate.tolerances"),
        ({"auroc": float("nan")}, "gate.tolerances.auroc"),  # nothing is worse than NaN
        ({"auroc": -0.1}, "gate.tolerances.auroc"),
    ],
)
def test_senseless_tolerances_are_refused(baseline, monkeypatch, tolerances, text):
    with pytest.raises(ParamsError, match=text):
        run(baseline, monkeypatch, tolerances=tolerances)
