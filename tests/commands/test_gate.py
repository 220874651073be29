"""gate: what fails it, in which direction, and what it refuses to compare."""

import json

import numpy as np
import pytest
import tiny

from pipeline.commands import gate
from pipeline.commands.gate import FromSeeds, Seeds, compare, learn, to_markdown, worsening
from pipeline.errors import PipelineError
from pipeline.metrics.binary import METRICS
from pipeline.params import ParamsError
from pipeline.tables.contract import write_table
from pipeline.tables.evaluation import SeedSpread
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


# --- tolerances from seeds -------------------------------------------------------------------------------------


def reruns(number, shift=0.0, models=8, places=12, seeds=3, shared=0.6, scatter=0.5):
    """How often the gate was red, and red over the first model, whose every AUROC fell by ``shift``.

    A study's AUROCs at ``places`` of ``models``, ``seeds`` trainings each, again with other seeds. The spread of seeds
    is 0.02 in the median and differs by place and model; places of one model share much of a seed's luck.
    """
    red, found = 0, 0
    for turn in range(number):
        rng = np.random.default_rng([turn, int(1000 * shift)])
        spread = 0.02 * np.exp(scatter * rng.standard_normal((models, places, 1)))
        spread *= np.exp(0.3 * rng.standard_normal((models, 1, 1)))
        centre = rng.uniform(0.6, 0.95, (models, places, 1))
        once, again = (
            centre
            + spread
            * (
                np.sqrt(shared) * rng.standard_normal((models, 1, seeds))
                + np.sqrt(1 - shared) * rng.standard_normal((models, places, seeds))
            )
            for _ in range(2)
        )
        again[0] -= shift
        names = {(m, p): f"net-m{m}/f/id_test/g{p}/auroc" for m in range(models) for p in range(places)}
        before = {name: Seeds(seeds, float(once[at].var(ddof=1))) for at, name in names.items()}
        learnt = learn(sorted(before), before, before, FromSeeds())
        means = [{name: float(side[at].mean()) for at, name in names.items()} for side in (once, again)]
        regressions, _ = compare(*means, {"auroc": 0.0}, learnt)
        red += bool(regressions)
        found += any(one.name.startswith("net-m0/") for one in regressions)
    return red, found


@pytest.mark.parametrize(
    "design",
    [{}, {"seeds": 5, "models": 4}, {"scatter": 1.0}, {"shared": 0.95}],
    ids=str,
)
def test_other_seeds_alone_keep_the_gate_green(design):
    """At a level of 5 % over all metrics. Of 1,000 reruns each were red: 2.3, 3.3 (8 models), 2.6 and 3.9 %.

    With all of the estimated prior, and not half of it, they were 3.6 to 7.5 %.
    """
    red, _ = reruns(100, **design)
    assert red <= 11  # of 100 at 5 %, more in 4 of 1,000 runs


@pytest.mark.parametrize(("design", "shift"), [({}, 0.2), ({"seeds": 5, "models": 4}, 0.1)], ids=str)
def test_a_planted_regression_turns_it_red(design, shift):
    _, found = reruns(30, shift, **design)
    assert found >= 27


def test_what_cannot_be_learnt_has_the_fixed_tolerance():
    names = [f"net-m/f/id_test/{group}/auroc" for group in ("a", "alike", "few", "undefined", "unknown", "gone")]
    before = {
        names[0]: Seeds(3, 1e-4),
        names[1]: Seeds(3, 0.0),
        names[2]: Seeds(2, 1e-4),
        names[3]: Seeds(3, None),
        names[5]: Seeds(3, 1e-4),
    }
    now = dict.fromkeys(names[:5], Seeds(3, 1e-4))
    assert set(learn(names, before, now, FromSeeds())) == {names[0]}
    told = to_markdown([], 6, learnt=1, least_seeds=3)
    assert "Tolerances of 1 metrics are learnt" in told
    assert "5 have the fixed one" in told


def test_a_better_value_inside_may_worsen_either_way():
    """A calibration slope has an interval on both sides: wider than of an AUROC of the same spread."""
    names = [f"net-m/f/id_test/source/{metric}" for metric in ("auroc", "calibration_slope")]
    seeds = dict.fromkeys(names, Seeds(3, 1e-4))
    found = learn(names, seeds, seeds, FromSeeds())
    assert found[names[1]] > found[names[0]]


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


def run(folder, monkeypatch, *options, tolerances=TOLERANCES, **changes):
    """The exit code; 0 where the command just returns."""
    params = tiny.write_params(folder / "params.yaml", gate={"tolerances": tolerances, **changes})
    paths = {"metrics": folder / "metrics.json", "runs": folder / "runs.parquet", "baseline": folder / "baseline.json"}
    paths["spread"] = folder / "spread.parquet"
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


def write_spread(folder, **variances):
    columns = dict(zip(("run", "finding", "split", "group"), AUROC.split("/")[:4], strict=True))
    rows = [{**columns, "metric": name, "num_runs": 3, "variance": value} for name, value in variances.items()]
    write_table(SeedSpread, rows, folder / "spread.parquet")


def test_tolerances_learnt_from_the_baselines_seeds(tmp_path, monkeypatch, capsys):
    """One metric can be learnt: one-sided t on 2 degrees of freedom, 2.92 * sqrt(1e-4 * 2 / 3) for the AUROC."""
    write_run(tmp_path, BEFORE)
    write_spread(tmp_path, auroc=1e-4, brier=0.0, log_loss=1.0)
    learnt = {"from_seeds": {"false_alarm": 0.05}}
    assert run(tmp_path, monkeypatch, "--update", **learnt) == 0
    kept = json.loads((tmp_path / "baseline.json").read_text())
    assert kept["seeds"] == {AUROC: [3, 1e-4], BRIER: [3, 0.0]}
    capsys.readouterr()
    for now, code in ((0.78, 0), (0.77, 1)):  # 0.0238 allowed; by the fixed number 0.05
        write_run(tmp_path, {AUROC: now, BRIER: 0.15})
        assert run(tmp_path, monkeypatch, **learnt) == code
        told = capsys.readouterr().out
        assert "Tolerances of 1 metrics are learnt" in told
        assert "; 1 have the fixed one" in told
    assert f"| {AUROC} | 0.8000 | 0.7700 | 0.0300 | 0.0238, from seeds |" in told
    assert run(tmp_path, monkeypatch) == 0  # without from_seeds the numbers count


def test_a_baseline_without_seeds_falls_back_and_says_so(baseline, monkeypatch, capsys):
    write_spread(baseline, auroc=1e-4, brier=1e-4)
    assert run(baseline, monkeypatch, from_seeds={}) == 0
    assert "Tolerances of 0 metrics are learnt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "text"),
    [({"false_alarm": 0.0}, "gate.from_seeds.false_alarm"), ({"least_seeds": 1}, "gate.from_seeds.least_seeds"),
     ({"quantile": 0.9}, "unknown key")],
)  # fmt: skip
def test_senseless_from_seeds_are_refused(baseline, monkeypatch, given, text):
    with pytest.raises(ParamsError, match=text):
        run(baseline, monkeypatch, from_seeds=given)
