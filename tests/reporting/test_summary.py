"""The summary's answers and worries, each from tables made to have it and made not to."""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from reporting import fabricated
from reporting.page_checker import misquoted, read, untraced
from reporting.test_page import section, text_of
from reporting.test_page_shift import few_methods

from pipeline.reporting import html, summary
from pipeline.reporting.study import Study
from pipeline.tables.contract import make_table

FINDING = fabricated.FINDING


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        ({"helps"}, "helps"),
        ({"harms"}, "harms"),
        ({"equivalent"}, "equivalent"),
        ({"undecided"}, "undecided"),
        ({"undecided", "none"}, "undecided"),
        ({"none"}, "none"),
        ({"helps", "undecided"}, "helps_some"),
        ({"helps", "none"}, "helps_some"),
        ({"helps", "equivalent"}, "helps_some"),
        ({"harms", "equivalent"}, "harms_some"),
        ({"equivalent", "undecided"}, "equivalent_some"),
        ({"helps", "harms", "undecided"}, "mixed"),
    ],
)
def test_answer(verdicts: set[str], word: str):
    assert summary.answer(verdicts) == word


def test_one_method_that_is_undecided_makes_no_yes():
    study = fabricated.study()
    (home, elsewhere) = summary.helps(study, FINDING, "mobilenet_v2")
    assert (home.answer, elsewhere.answer) == ("mixed", "mixed")
    assert [f.base for f in home.families["helps"]] == ["full_finetune"]
    assert {f.base for found in home.families.values() for f in found}.isdisjoint({"scratch", "scratch_converged"})


def gap(low: float, high: float, there: float) -> Study:
    metrics = fabricated.study().frames["metrics"].copy()
    metrics.loc[metrics["group"] == "target_minus_source", ["ci_low", "ci_high"]] = [low, high]
    elsewhere = (metrics["group"] == "target") & (metrics["metric"] == "auroc")
    metrics.loc[elsewhere, "ci_low"] = there
    return fabricated.study(frames={"metrics": metrics})


@pytest.mark.parametrize(
    ("low", "high", "there", "word"),
    [
        (-0.2, -0.1, 0.6, "loses"),
        (-0.1, 0.1, 0.6, "no_loss_shown"),
        (0.1, 0.2, 0.6, "no_loss_shown"),
        (-0.2, -0.1, 0.5, "guessing"),
        (-0.1, 0.1, 0.4, "guessing"),
        (None, None, 0.6, "none"),
    ],
)
def test_survival(low: Any, high: Any, there: float, word: str):
    assert summary.survives(gap(low, high, there), FINDING, "resnet18").answer == word


def test_survival_of_some():
    metrics = fabricated.study().frames["metrics"].copy()
    metrics.loc[metrics["group"] == "target_minus_source", ["ci_low", "ci_high"]] = [-0.1, 0.1]
    own = metrics["run"].eq("resnet18-lp_ft") & metrics["group"].eq("target_minus_source")
    metrics.loc[own, ["ci_low", "ci_high"]] = [-0.2, -0.1]
    found = summary.survives(fabricated.study(frames={"metrics": metrics}), FINDING, "resnet18")
    assert found.answer == "some_lose"
    assert [family.base for family in found.families["below"]] == ["lp_ft"]


def edit(table: str, change: Callable[[pd.DataFrame], None]) -> Study:
    frame = few_methods()[table].copy() if table not in ("flow",) else fabricated.study().frames[table].copy()
    change(frame)
    return fabricated.study(frames={**few_methods(), table: frame})


def put(where: dict[str, Any], **values: Any) -> Callable[[pd.DataFrame], None]:
    """Set columns in the rows where others have these values."""

    def change(frame: pd.DataFrame) -> None:
        hit = pd.Series(True, index=frame.index)
        for column, value in where.items():
            hit &= frame[column] == value
        assert hit.any()
        for column, value in values.items():
            frame.loc[hit, column] = value

    return change


ELSEWHERE = {"split": "ood_test", "group": "target"}
# By check: the table, a change that raises it, one that does not.
CASES: dict[str, tuple[str, Any, Any]] = {
    "controls": ("controls", put({}, verdict="alarm"), put({}, verdict="passed")),
    "membership": ("attacks", put({}, ci_low=0.51), put({}, ci_low=0.5)),
    "leakage": ("leakage", put({"must_be_zero": True}, count=3), put({"must_be_zero": True}, count=0)),
    "defects": ("flow", put({"reason": "not_dicom"}, kind="defect"), lambda _: None),
    "refused": (
        "flow",
        put({"site": "north", "reason": "localizer"}, num_files=100_000),
        lambda _: None,
    ),
    "undecided": (
        "verdicts",
        put({}, verdict="undecided", ci_low=-0.2, ci_high=0.2),
        put({}, verdict="undecided", ci_low=-0.2, ci_high=0.04),
    ),
    "overlap": (
        "leakage",
        put({"check": "patients_at_two_sites"}, check="overlapping_origins", count=1),
        put({"check": "patients_at_two_sites"}, check="overlapping_origins", count=0),
    ),
    "suspects": ("outlier_counts", put({"site": "north"}, num_outliers=1), put({}, num_outliers=0)),
    "shortcuts": (
        "probes",
        put({"kind": "shortcut", "cue": "corners"}, ci_low=0.51),
        put({"kind": "shortcut", "cue": "corners"}, ci_low=0.5),
    ),
    "headers": (
        "metrics",
        put({"metric": "auroc_minus_no_pixels", "split": "id_test"}, ci_low=-0.01),
        put({"metric": "auroc_minus_no_pixels", "split": "id_test"}, ci_low=0.01),
    ),
    "shift": ("diagnoses", put({}, verdict="rejected"), put({}, verdict="compatible")),
    "stress": ("stress", put({"severity": 5}, difference_high=-0.01), put({}, difference_high=0.0)),
    "calibration": (
        "metrics",
        put({"metric": "calibration_slope", **ELSEWHERE}, ci_low=0.2, ci_high=0.9),
        lambda frame: [
            put({"metric": "calibration_slope", **ELSEWHERE}, ci_low=0.9, ci_high=1.1)(frame),
            put({"metric": "calibration_intercept", **ELSEWHERE}, ci_low=-0.1, ci_high=0.1)(frame),
        ],
    ),
    "threshold": (
        "metrics",
        put({"metric": "specificity", **ELSEWHERE}, ci_high=0.89),
        put({"metric": "specificity", **ELSEWHERE}, ci_high=0.91),
    ),
    "subgroups": (
        "metrics",
        put({"metric": "auroc", "group": "worst_sex"}, ci_high=0.3),
        put({"metric": "auroc", "group": "worst_sex"}, ci_high=0.99),
    ),
    "remedies": (
        "verdicts",
        put({"run": "resnet18-full_finetune-prevalence"}, verdict="harms"),
        put({"verdict": "harms"}, verdict="undecided"),
    ),
}


def found(study: Study, name: str) -> tuple[summary.Line, ...] | None:
    return next(check.found for check in summary.checks(study) if check.name == name)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_check_is_raised_by_its_cells_alone(name: str):
    table, raises, clears = CASES[name]
    assert found(edit(table, raises), name)
    assert found(edit(table, clears), name) == ()


def test_verdicts_that_hang_on_the_baseline():
    frame = fabricated.study().frames["verdicts"].copy()
    assert found(fabricated.study(frames={"verdicts": frame}), "baselines") == ()
    hit = (frame["against"] == "scratch_converged") & (frame["run"] == "resnet18-full_finetune")
    frame.loc[hit & (frame["group"] == "source"), "verdict"] = "undecided"
    (line,) = found(fabricated.study(frames={"verdicts": frame}), "baselines") or ()
    assert (line.key[4], line.other[4]) == ("scratch", "scratch_converged")


def test_a_worst_group_of_few_is_not_pointed_at():
    def few(frame: pd.DataFrame) -> None:
        put({"metric": "auroc", "group": "worst_sex"}, ci_high=0.3, num_patients=5)(frame)

    assert not found(edit("metrics", few), "subgroups")


def test_each_check_has_words_and_each_raised_one_is_traced():
    frames = few_methods()
    frames["flow"] = fabricated.study().frames["flow"].copy()
    for table, raises, _ in CASES.values():
        frames[table] = frames[table].copy()
        raises(frames[table])
    hit = frames["verdicts"]["against"] == "scratch_converged"
    frames["verdicts"].loc[hit, "verdict"] = "helps"
    frames["protocol"] = make_table_of_nothing_declared()
    study = fabricated.study(frames=frames)
    raised = [check.name for check in summary.checks(study) if check.found]
    assert set(raised) == set(CASES) | {"baselines", "protocol"}
    page = html.page(study, {})
    assert read(page).faults == []
    assert untraced(read(page), study.frames) == []
    assert misquoted(read(page), study.frames, study.min_cell) == []
    told = section(page, "summary").partition("What to worry about")[2]
    assert len(re.findall(r"<li[^>]*><b>", told)) == len(raised)
    assert "Checked, and nothing found" not in text_of(told)


def make_table_of_nothing_declared() -> pd.DataFrame:
    from pipeline.tables.protocol import Protocols

    return make_table(Protocols, [{"statement": "no protocol was declared: exploratory; test labels opened once"}])


def test_what_was_not_checked_is_said():
    frames = {**few_methods(), "leakage": fabricated.study().frames["leakage"].head(0)}
    told = text_of(section(html.page(fabricated.study(frames=frames), {}), "summary"))
    assert "Not checked, because this study has no such table: leakage between splits" in told
