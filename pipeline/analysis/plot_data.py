"""Predictions and tables to the rows that `dvc plots` draws; pure, without image or model.

**Who.** Families (a backbone and method over its runs) that had all labels: what label budgets cost is told by
``efficiency``. **Where.** Each hospital on its test split. **How much.** A ROC curve has at most 2 / ``STEP`` + 2
points; everything else is a few rows a family and hospital.

**Small cells.** What would tell a count of 1 to ``min_cell`` - 1 patients is null: a ROC curve's steps tell how many
there are of a class, a bin's rate how many are in it. Of two cells with one sum both are, if one is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from scipy.special import expit

from pipeline.analysis.evaluation import Family
from pipeline.errors import PipelineError
from pipeline.metrics.binary import FloatArray, IntArray, equal_mass_bins
from pipeline.params import StrictParams
from pipeline.tables.contract import make_table
from pipeline.tables.plots import Confusion, LearningCurves, Reliability, RocPoints, SiteAuroc

Row = dict[str, Any]

STEP = 0.01  # how far, in either rate, a drawn ROC curve may be from the true one
TEST_SPLITS = ("id_test", "ood_test")
_CLASSES = ("absent", "present")


class SmallCells(StrictParams):
    """Of section ``report`` what decides which counts are told; its default is the page's."""

    model_config = ConfigDict(extra="ignore")
    min_cell: int = Field(default=11, ge=0)


@dataclass(frozen=True)
class Scored:
    """A family's scores of the annotated cases of one finding at one hospital.

    labels (n,) int64; patients (n,) codes; logits (r, n) float64, a row for each of ``runs``.
    """

    finding: str
    family: str
    split: str
    site: str
    runs: tuple[str, ...]
    labels: IntArray
    patients: IntArray
    logits: FloatArray

    @property
    def place(self) -> Row:
        """The columns that say whose and where."""
        return {"finding": self.finding, "run": self.family, "split": self.split, "site": self.site}

    def is_small(self, cases: NDArray[np.bool_], min_cell: int) -> bool:
        """Whether these cases, (n,), are of so few patients that their number is not told."""
        return 0 < len(np.unique(self.patients[cases])) < min_cell


def full_families(families: Sequence[Family]) -> list[Family]:
    """Those that had all labels."""
    return [family for family in families if family.setting.all_labels]


def scored(predictions: pd.DataFrame, families: Sequence[Family]) -> Iterator[Scored]:
    """All families at all hospitals; ``evaluate`` has checked the predictions.

    Raises:
        PipelineError: a family's runs are not of the same cases.
    """
    known = predictions[predictions["split"].isin(TEST_SPLITS).to_numpy(bool) & predictions["label"].notna()]
    patients, _ = pd.factorize(known["patient_id"], sort=True)
    rows = known[["finding", "run", "split", "site", "image_id", "logit"]].assign(
        patient=patients, label=known["label"].to_numpy(np.int64)
    )
    family_of = {run: family.name for family in families for run in family.draws}
    rows = rows.assign(family=rows["run"].astype(object).map(family_of)).dropna(subset=["family"])
    for (finding, family, split, site), part in rows.groupby(["finding", "family", "split", "site"], sort=True):
        table = part.set_index(["image_id", "run"])["logit"].unstack()  # noqa: PD010 - a key is unique
        if table.isna().to_numpy().any():
            raise PipelineError(f"predictions: the runs of {family} are not of the same cases on {split}")
        cases = part.drop_duplicates("image_id").set_index("image_id").loc[table.index]
        yield Scored(
            str(finding),
            str(family),
            str(split),
            str(site),
            tuple(str(run) for run in table.columns),
            cases["label"].to_numpy(np.int64),
            cases["patient"].to_numpy(np.int64),
            table.to_numpy(np.float64).T,
        )


# --- ROC -----------------------------------------------------------------------------------------------------


def mean_roc(labels: IntArray, logits: FloatArray) -> FloatArray:
    """The vertical average of several runs' ROC curves (Fawcett 2006, 10.1016/j.patrec.2005.10.010), exactly.

    The area under it is the mean of the areas under theirs. Cases of one score are one step, a slanted one.

    Args:
        labels: (n,), with both classes.
        logits: (r, n).

    Returns:
        (k, 2) false and true positive rates, from (0, 0) to (1, 1), without points on the line between others.
    """
    negatives = int((labels == 0).sum())
    along = np.arange(negatives + 1)
    low, high = np.mean([_steps(labels, scores, along) for scores in logits], axis=0)
    points = np.column_stack([np.repeat(along / negatives, 2), np.column_stack([low, high]).ravel()])
    points = np.vstack([[0.0, 0.0], points, [1.0, 1.0]])
    return _corners(points)


def _steps(labels: IntArray, scores: FloatArray, along: IntArray) -> FloatArray:
    """Of one run the true positive rates, (2, n), on reaching and on leaving each number of false positives."""
    _, group = np.unique(-scores, return_inverse=True)
    positives = np.bincount(group, weights=labels == 1)
    true = np.concatenate([[0.0], np.cumsum(positives) / positives.sum()])
    false = np.concatenate([[0.0], np.cumsum(np.bincount(group, weights=labels == 0))])
    where, first = np.unique(false, return_index=True)
    low, high = true[first], true[np.append(first[1:], len(true)) - 1]
    # Between two of its corners a curve is straight.
    left = np.searchsorted(where, along, side="right") - 1
    right = np.minimum(left + 1, len(where) - 1)
    share = (along - where[left]) / np.maximum(where[right] - where[left], 1)
    between = high[left] + share * (low[right] - high[left])
    at = where[left] == along
    return np.stack([np.where(at, low[left], between), np.where(at, high[left], between)])


def _corners(points: FloatArray) -> FloatArray:
    """Without repetitions and without points on the straight line between their neighbours."""
    points = points[np.append(True, (np.abs(np.diff(points, axis=0)) > 1e-12).any(axis=1))]
    before, after = points[1:-1] - points[:-2], points[2:] - points[1:-1]
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-12
    return points[np.concatenate([[True], turns, [True]])]


def thin(points: FloatArray, step: float = STEP) -> FloatArray:
    """Corners of a rising curve that are ``step`` or more apart in a rate; no drawn point is further from the curve.

    Args:
        points: (k, 2), from (0, 0) to (1, 1).
        step: in the unit of the rates.

    Returns:
        (at most 2 / step + 2, 2).
    """
    kept = [points[0]]
    for point in points[1:-1]:
        if np.max(point - kept[-1]) >= step:
            kept.append(point)
    return np.array([*kept, points[-1]])


def roc_rows(cases: Scored, min_cell: int) -> Iterator[Row]:
    """The curve's points; one row of nulls where there is none or it is not told."""
    positive = cases.labels == 1
    note = ""
    if positive.all() or not positive.any():
        note = f"one class only: {_CLASSES[int(positive.all())]}"
    elif cases.is_small(positive, min_cell) or cases.is_small(~positive, min_cell):
        note = f"under {min_cell} patients of a class"
    if note:
        yield {**cases.place, "point": 0, "note": note}
        return
    for index, (false, true) in enumerate(thin(mean_roc(cases.labels, cases.logits))):
        yield {
            **cases.place,
            "point": index,
            "false_positive_rate": float(false),
            "true_positive_rate": float(true),
            "note": "",
        }


# --- calibration, confusion ----------------------------------------------------------------------------------


def reliability_rows(cases: Scored, bins: int, min_cell: int) -> Iterator[Row]:
    """The bins of ``evaluation``'s calibration, without those of few patients."""
    logits, labels = cases.logits.ravel(), np.tile(cases.labels, len(cases.runs))
    bin_of = equal_mass_bins(logits, np.ones(len(logits)), bins)
    for index in np.unique(bin_of):
        inside = bin_of == index
        row: Row = {**cases.place, "bin": int(index)}
        if cases.is_small(inside.reshape(cases.logits.shape).any(axis=0), min_cell):
            yield {**row, "note": f"under {min_cell} patients"}
        else:
            rates = {
                "mean_probability": float(expit(logits[inside]).mean()),
                "observed_rate": float(labels[inside].mean()),
            }
            yield {**row, **rates, "note": ""}


def confusion_rows(cases: Scored, thresholds: Sequence[float], min_cell: int) -> Iterator[Row]:
    """Four cells; ``thresholds`` on the probability are of the runs, in their order."""
    called = expit(cases.logits) >= np.asarray(thresholds)[:, None]
    for actual, name in enumerate(_CLASSES):
        own = cases.labels == actual
        cells = [called & own, ~called & own][:: 1 if actual else -1]  # first those that are called what they are
        small = any(cases.is_small(cell, min_cell) for run in cells for cell in run)
        for predicted, cell in zip((name, _CLASSES[1 - actual]), cells, strict=True):
            row: Row = {**cases.place, "actual": name, "predicted": predicted}
            if not np.isfinite(thresholds).all():
                yield {**row, "note": "no threshold: no annotated negatives on id_val"}
            elif small:
                yield {**row, "note": f"under {min_cell} patients in a cell"}
            else:
                count = float(cell.sum(axis=1).mean())
                yield {**row, "count": count, "share": count / own.sum() if own.any() else None, "note": ""}


# --- tables --------------------------------------------------------------------------------------------------


def place_tables(
    predictions: pd.DataFrame, thresholds: pd.DataFrame, families: Sequence[Family], bins: int, min_cell: int
) -> dict[str, pd.DataFrame]:
    """``roc``, ``calibration`` and ``confusion``, each keeping its contract in ``tables.plots``.

    Args:
        predictions: as ``tables.predictions.Predictions``, one row a case.
        thresholds: as ``tables.evaluation.Thresholds``.
        families: with all labels.
        bins: of the calibration.
        min_cell: counts of patients from 1 to one below this are not told.
    """
    fixed = {
        (str(run), str(finding)): float(value)
        for run, finding, value in zip(
            thresholds["run"], thresholds["finding"], thresholds["threshold"].to_numpy(np.float64), strict=True
        )
    }
    roc: list[Row] = []
    calibration: list[Row] = []
    confusion: list[Row] = []
    for cases in scored(predictions, families):
        roc += roc_rows(cases, min_cell)
        calibration += reliability_rows(cases, bins, min_cell)
        own = [fixed[run, cases.finding] for run in cases.runs]
        confusion += confusion_rows(cases, own, min_cell)
    return {
        "roc": make_table(RocPoints, roc),
        "calibration": make_table(Reliability, calibration),
        "confusion": make_table(Confusion, confusion),
    }


def site_auroc(metrics: pd.DataFrame, families: Sequence[Family]) -> pd.DataFrame:
    """The hospitals' AUROC out of ``tables.evaluation.Metrics``."""
    names = {family.name for family in families}
    wanted = (
        (metrics["metric"] == "auroc")
        & metrics["group"].str.startswith("site=")
        & metrics["split"].isin(TEST_SPLITS)
        & metrics["run"].isin(names)
    )
    rows = metrics[wanted.to_numpy(bool)]
    return make_table(
        SiteAuroc,
        rows[["finding", "run", "split", "ci_low", "ci_high", "note"]].assign(
            site=rows["group"].str.removeprefix("site="), auroc=rows["value"]
        ),
    )


def learning_curves(curves: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Losses of the phases that train by epochs (a probe has none), of runs with all labels.

    Args:
        curves: as ``tables.training.Curves``.
        runs: as ``tables.training.Runs``.
    """
    full = runs[(runs["label_fraction"] == 1.0).to_numpy(bool) & runs["shots"].isna().to_numpy(bool)]
    rows = curves[curves["learning_rate"].notna()].merge(full[["run", "backbone", "method", "seed"]], on="run")
    rows = rows.assign(run=rows["backbone"] + "-" + rows["method"])
    parts = [
        rows[["run", "phase", "seed", "epoch"]].assign(curve=curve, loss=rows[f"{curve}_loss"])
        for curve in ("train", "id_val")
    ]
    return make_table(LearningCurves, pd.concat(parts, ignore_index=True))
