"""AUROC against the number of labelled patients and against the cost of training, and how many labels a method saves.

**Points.** One for each family (backbone, method, label budget) at home and elsewhere: its AUROC with its interval, as
``Metrics`` has it, over the labelled patients and the floating point operations of its runs (means).

**Saving.** Which number of labelled patients gives a pretrained method what training from scratch reaches with all of
them? The curve is linear between points over the logarithm of the number. What counts is where it reaches that AUROC
and stays, so that one lucky point at few labels promises nothing. The saving is 1 - that number / all. It is read off
mean curves and has no interval: whether a method helps at all is for ``pipeline.analysis.verdict`` to say. Curves of
shares (every class as frequent as it is) and of shots (as many patients of each class) are read apart; both end at the
point with all labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis.evaluation import BASELINES, Family, Setting, family_name
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Efficiency, LabelSavings

PLACES = (("id_test", "source"), ("ood_test", "target"))

Row = dict[str, Any]


def points(metrics: pd.DataFrame, families: Sequence[Family], runs: pd.DataFrame) -> pd.DataFrame:
    """The curves' points as ``tables.evaluation.Efficiency``.

    Args:
        metrics: as ``tables.evaluation.Metrics``.
        families: whose AUROC they hold, as ``evaluation.name_families`` gives them.
        runs: as ``tables.training.Runs``; patients and cost are null where a family's runs are not all there.
    """
    costs = runs.set_index("run")[["num_train_patients", "train_tflop"]].astype("float64")
    by_name = {family.name: family for family in families}
    means = {family.name: costs.reindex(list(family.draws)).mean(skipna=False) for family in families}
    wanted = metrics[(metrics["metric"] == "auroc") & metrics["run"].isin(list(by_name))].to_dict("records")
    return make_table(
        Efficiency,
        [
            {
                **{
                    name: row[name]
                    for name in ("run", "finding", "split", "group", "value", "ci_low", "ci_high", "note")
                },
                **_told(by_name[row["run"]], families),
                "labelled_patients": means[row["run"]]["num_train_patients"],
                "train_tflop": means[row["run"]]["train_tflop"],
            }
            for row in wanted
            if (row["split"], row["group"]) in PLACES
        ],
    )


def savings(efficiency: pd.DataFrame, families: Sequence[Family]) -> pd.DataFrame:
    """What is read off the curves, as ``tables.evaluation.LabelSavings``.

    Args:
        efficiency: as ``points`` makes them.
        families: the same; they say which curve is whose twin.
    """
    twins = {
        _curve(family, families): {
            baseline: _curve(twin, families)
            for baseline in BASELINES
            for twin in families
            if (twin.backbone, twin.method) == (family.backbone, baseline)
            and _context(twin.setting) == _context(family.setting)
        }
        for family in families
    }
    rows: list[Row] = []
    keys = ["finding", "split", "group"]
    for key, place in efficiency.groupby(keys, sort=True):
        for curve, own in place.groupby("curve", sort=True):
            if own["method"].iloc[0] in BASELINES:
                continue
            for baseline, twin in twins[str(curve)].items():
                reference = place[(place["curve"] == twin) & (place["budget"] == "all")]
                for budget in ("share", "shots"):
                    if (own["budget"] == budget).any() and len(reference):
                        named = {"curve": curve, **dict(zip(keys, key, strict=True)), "budget": budget}
                        of_budget = own[own["budget"].isin([budget, "all"])]
                        rows.append({**named, "against": baseline, **_saving(of_budget, reference.iloc[0])})
    return make_table(LabelSavings, rows)


def _saving(own: pd.DataFrame, reference: Any) -> Row:
    target, everyone = float(reference["value"]), float(reference["labelled_patients"])
    row: Row = {"value": target, "all_patients": everyone}
    defined = own.dropna(subset=["value", "labelled_patients"]).sort_values(["labelled_patients", "run"])
    if not np.isfinite(target) or not np.isfinite(everyone):
        return {**row, "note": "undefined: no AUROC or no number of patients from scratch with all labels"}
    if len(defined) < 2:
        return {**row, "note": "undefined: fewer than two points with an AUROC and a number of patients"}
    left_out = "" if len(defined) == len(own) else "points without an AUROC are left out"
    bound, needed = reached(list(defined["labelled_patients"]), list(defined["value"]), target)
    if bound == "not_reached":
        return {**row, "bound": bound, "note": _joined("its AUROC is not reached", left_out)}
    return {**row, "bound": bound, "labelled_patients": needed, "saving": 1.0 - needed / everyone, "note": left_out}


def reached(numbers: Sequence[float], values: Sequence[float], target: float) -> tuple[str, float]:
    """Where a curve reaches ``target`` and stays at or above it, linear over the logarithm of the number.

    Args:
        numbers: of labelled patients, rising, above 0.
        values: as many.
        target: the value to reach.

    Returns:
        "reached" and the number; "at_least" and the smallest number, where the first value is enough already; or
        "not_reached" and NaN.
    """
    below = [index for index, value in enumerate(values) if value < target]
    if not below:
        return "at_least", numbers[0]
    last = below[-1]
    if last == len(values) - 1:
        return "not_reached", float("nan")
    share = (target - values[last]) / (values[last + 1] - values[last])
    return "reached", numbers[last] * (numbers[last + 1] / numbers[last]) ** share


def _told(family: Family, families: Sequence[Family]) -> Row:
    setting = family.setting
    return {
        "curve": _curve(family, families),
        "backbone": family.backbone,
        "method": family.method,
        "budget": "shots" if setting.shots else "all" if setting.all_labels else "share",
        "label_fraction": None if setting.shots else setting.label_fraction,
        "shots": setting.shots or None,
    }


def _context(setting: Setting) -> Setting:
    """What two label budgets of one curve share."""
    return setting._replace(label_fraction=1.0, shots=0)


def _curve(family: Family, families: Sequence[Family]) -> str:
    """The family's name as it is, or would be, with all labels."""
    whole = _context(family.setting)
    several = len({other.setting.protocol for other in families}) > 1
    return family_name(family.backbone, family.method, whole if several else whole._replace(protocol=""))


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
