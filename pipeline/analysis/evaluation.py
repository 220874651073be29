"""Predictions to metrics with intervals, reliability bins and operating points; pure, tables in and tables out.

**Who is compared.** A *family* is a backbone with a method: all its runs with the same label budget (a fraction,
or shots), adaptation and protocol, over training seeds and draws of the label subset. Its rows carry the mean over runs
and an interval that counts both patients and runs (``pipeline.metrics.intervals``). With several draws the
runs of a draw are averaged first and the draws are the repetitions: runs of one draw share their training
images, so that counting each as one would promise too much. Single runs get their AUROC as a bare value.

**Where.** ``source`` and ``site=NAME`` on id_test (``source`` on id_val too); ``target``, ``site=NAME``,
``worst_site`` and ``target_minus_source`` (ood_test less id_test, run by run) on ood_test.

**Against scratch.** A family is paired with its *twins*, the same backbone and setting trained from random weights
(``BASELINES``): by as much training, and until convergence. ``pipeline.analysis.verdict`` judges the differences.

**Operating points** are fixed per run on the source's id_val and carried over; no other label is looked at
before they stand. The intervals of sensitivity and specificity take the threshold as given.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit

from pipeline.analysis.aggregate import Aggregation
from pipeline.errors import PipelineError
from pipeline.metrics.binary import (
    METRICS,
    FloatArray,
    IntArray,
    Metric,
    Needs,
    Scale,
    equal_mass_bins,
    threshold_at_specificity,
)
from pipeline.metrics.intervals import (
    CountArray,
    Estimate,
    Interval,
    StandardError,
    difference,
    extreme,
    interval,
    over_seeds,
    patient_counts,
    patient_weights,
    standard_error,
)
from pipeline.params import Fraction, Seed, StrictParams
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Calibration, Metrics, Thresholds

Row = dict[str, Any]

SINGLE_RUN_METRIC = "auroc"
COMPARED_METRIC = "auroc"

# Methods that start from random weights: what the others are compared with. Metrics has the difference from the first.
BASELINES = ("scratch", "scratch_converged")


class PredictionsError(PipelineError, ValueError):
    """Predictions contradict themselves or the sites; the text says which constraint and how often."""


class EvaluateParams(StrictParams):
    """How predictions are evaluated.

    ``unit``: what counts as one case; of a study's images the predictions are brought together as ``aggregate`` says.
    """

    seed: Seed
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    confidence: Fraction = 0.95
    specificity: Fraction = 0.9
    ece_bins: Annotated[int, Field(ge=1, le=1000)] = 15
    reliability_bins: Annotated[int, Field(ge=1, le=1000)] = 10
    unit: Literal["image", "study"] = "image"
    aggregate: Aggregation = "mean"


class Setting(NamedTuple):
    """What two families must share to be compared; ``shots`` 0 is no few-shot run, the text "" the plain case."""

    protocol: str
    label_fraction: float
    shots: int
    adaptation: str

    @property
    def all_labels(self) -> bool:
        """Whether every training patient is annotated."""
        return self.label_fraction == 1.0 and not self.shots


@dataclass(frozen=True)
class Family:
    """What a backbone's and method's runs have in common, and the runs with their draws."""

    name: str
    backbone: str
    method: str
    setting: Setting
    draws: Mapping[str, int]  # run -> draw of the label subset


@dataclass(frozen=True)
class Comparison:
    """A family's AUROC less its twin's, at one place: what a verdict is made of.

    ``num_runs`` are the repetitions (seeds, or draws) of the side that has fewer; ``num_patients`` those tested.
    """

    finding: str
    family: Family
    twin: Family
    split: str
    group: str
    difference: float
    error: StandardError
    interval: Interval
    num_patients: int
    num_runs: int
    note: str


@dataclass(frozen=True)
class Evaluation:
    """Three tables, each keeping its contract in ``pipeline.tables``, and the comparisons with scratch."""

    metrics: pd.DataFrame
    calibration: pd.DataFrame
    thresholds: pd.DataFrame
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Block:
    """One finding on one split: the same n images for each of r runs.

    labels (n,) float64, NaN where not annotated; patients (n,) rows of the resample counts; sites (n,); logits
    (r, n) float64.
    """

    split: str
    runs: tuple[str, ...]
    labels: FloatArray
    patients: IntArray
    sites: NDArray[np.object_]
    logits: FloatArray


@dataclass(frozen=True)
class Group:
    """The annotated images of a block that belong to a group, and each run's metrics on them.

    values[metric] is (r,) float64, draws[metric] (r, resamples).
    """

    split: str
    name: str
    runs: tuple[str, ...]
    labels: IntArray
    patients: IntArray
    logits: FloatArray
    num_unlabelled: int
    values: dict[str, FloatArray] = field(default_factory=dict)
    draws: dict[str, FloatArray] = field(default_factory=dict)

    @cached_property
    def num_patients(self) -> dict[Needs, int]:
        """Patients in the class that limits a metric: the rarer one where it needs both."""
        positives, negatives = (len(np.unique(self.patients[self.labels == label])) for label in (1, 0))
        everyone = len(np.unique(self.patients))
        return {
            "both": min(positives, negatives),
            "positives": positives,
            "negatives": negatives,
            "any": everyone,
        }


def evaluate(
    predictions: pd.DataFrame,
    params: EvaluateParams,
    source_sites: Sequence[str],
    target_sites: Sequence[str],
) -> Evaluation:
    """All metrics of all runs and families.

    Args:
        predictions: as ``tables.predictions.Predictions``; a null label is not annotated.
        params: resamples, seed, bins and wanted specificity.
        source_sites: the hospitals trained on.
        target_sites: the others.

    Raises:
        PredictionsError: the predictions contradict themselves or the sites; says which constraint and how often.
    """
    _check(predictions, source_sites, target_sites)
    families = name_families(predictions)
    patient_codes, patients = pd.factorize(predictions["patient_id"], sort=True)
    counts = patient_counts([str(patient) for patient in patients], params.resamples, params.seed)
    plain = predictions.assign(
        patient=patient_codes, label=predictions["label"].to_numpy(dtype=np.float64, na_value=np.nan)
    )
    metrics: list[Row] = []
    calibration: list[Row] = []
    thresholds: list[Row] = []
    comparisons: list[Comparison] = []
    for finding, rows in plain.groupby("finding", sort=True):
        blocks = {str(split): _block(str(split), part) for split, part in rows.groupby("split", sort=True)}
        # Before any other split's labels are read.
        points = _operating_points(blocks.get("id_val"), sorted(set(rows["run"])), params)
        groups = [
            _scored(group, points, counts, params)
            for block in blocks.values()
            for group in _groups(block, source_sites, target_sites)
        ]
        for family in families:
            _check_complete(family, blocks.values())
        cells = {family.name: _cells(family, groups, target_sites, points) for family in families}
        made = [*_family_rows(families, cells, params), *_single_run_rows(families, groups)]
        comparisons += _comparisons(str(finding), families, cells, params)
        metrics += [{"finding": finding, **row} for row in made]
        calibration += [{"finding": finding, **row} for row in _calibration_rows(families, groups, params)]
        thresholds += [{"finding": finding, "run": run, **point} for run, point in points.items()]
    return Evaluation(
        make_table(Metrics, metrics),
        make_table(Calibration, calibration),
        make_table(Thresholds, thresholds),
        tuple(comparisons),
    )


def family_name(backbone: str, method: str, setting: Setting) -> str:
    """``backbone-method``, with what departs from the plain case behind it."""
    parts = [backbone, method]
    if setting.label_fraction < 1:
        parts.append(f"labels{setting.label_fraction * 100:g}")  # per cent, as in the names of runs
    if setting.shots:
        parts.append(f"shots{setting.shots}")
    return "-".join(parts + [part for part in (setting.adaptation, setting.protocol) if part])


def name_families(predictions: pd.DataFrame) -> list[Family]:
    """The families, by name; the protocol stands in the names only where there are several.

    Raises:
        PredictionsError: one run's rows disagree on what the run is.
    """
    columns = ["run", "backbone", "method", "label_fraction", "shots", "draw", "adaptation", "protocol"]
    runs = predictions[columns].drop_duplicates()
    if runs["run"].duplicated().any():
        raise PredictionsError(
            f"predictions: {int(runs['run'].duplicated().sum())} runs have rows of different {columns[1:]}"
        )
    runs = runs.fillna({"label_fraction": 1.0, "shots": 0, "draw": 0, "adaptation": "", "protocol": ""})
    runs["adaptation"] = runs["adaptation"].where(runs["adaptation"] != "none", "")
    protocols = runs["protocol"].nunique()
    families = []
    for key, members in runs.groupby(["backbone", "method", *Setting._fields], sort=True):
        backbone, method, protocol, fraction, shots, adaptation = key
        setting = Setting(protocol, float(fraction), int(shots), adaptation)
        name = family_name(backbone, method, setting if protocols > 1 else setting._replace(protocol=""))
        draws = {str(run): int(draw) for run, draw in zip(members["run"], members["draw"], strict=True)}
        families.append(Family(name, backbone, method, setting, draws))
    return sorted(families, key=lambda family: family.name)


# --- the predictions, checked and laid out as arrays ---------------------------------------------------------


def _check(predictions: pd.DataFrame, source_sites: Sequence[str], target_sites: Sequence[str]) -> None:
    def refuse(bad: Any, constraint: str) -> None:
        if number := int(np.asarray(bad, dtype=bool).sum()):
            raise PredictionsError(f"predictions: {constraint}; {number} of {len(predictions)} rows are not so")

    if both := sorted(set(source_sites) & set(target_sites)):
        raise PredictionsError(f"sites {both} are source and target at once")
    refuse(predictions.duplicated(["run", "finding", "image_id"]), "run, finding and image_id must be unique")
    logits = predictions["logit"].to_numpy(dtype=np.float64, na_value=np.nan)
    probabilities = predictions["probability"].to_numpy(dtype=np.float64, na_value=np.nan)
    refuse(~np.isfinite(logits), "logit must be finite")
    refuse(~((probabilities >= 0) & (probabilities <= 1)), "probability must lie in [0, 1]")
    # Half precision is 5e-4 near 1; what is off by more is not the same model.
    refuse(np.abs(expit(logits) - probabilities) > 1e-3, "probability must be the logistic function of logit")
    refuse(~(predictions["label"].isna() | predictions["label"].isin([0, 1])), "label must be 0, 1 or null")
    known = sorted({*source_sites, *target_sites})
    unknown = sorted(set(predictions["site"]) - set(known))
    if unknown:
        raise PredictionsError(f"predictions: unknown sites {unknown}; known are {known}")
    refuse(
        predictions["split"].isin(["id_val", "id_test"]) & ~predictions["site"].isin(source_sites),
        "id_val and id_test must hold source sites only",
    )
    refuse(
        (predictions["split"] == "ood_test") & ~predictions["site"].isin(target_sites),
        "ood_test must hold target sites only",
    )
    sides = predictions[["patient_id", "split"]].drop_duplicates()
    if number := int(sides["patient_id"].duplicated().sum()):
        raise PredictionsError(f"predictions: a patient must be in one split only; {number} are in several")


def _block(split: str, rows: pd.DataFrame) -> Block:
    run_codes, runs = pd.factorize(rows["run"], sort=True)
    image_codes, images = pd.factorize(rows["image_id"], sort=True)
    shape = (len(runs), len(images))
    per_run = np.bincount(run_codes, minlength=shape[0])
    if (per_run < shape[1]).any():
        short = int(per_run.argmin())
        raise PredictionsError(
            f"predictions: all runs must cover the same images of a split; on {split}, run {runs[short]} has "
            f"{per_run[short]} of {shape[1]}"
        )
    order = np.argsort(run_codes * shape[1] + image_codes, kind="stable")

    def per_image(column: str, dtype: Any) -> NDArray[Any]:
        cells = rows[column].to_numpy(dtype=dtype)[order].reshape(shape)
        same = (cells == cells[0]) | (pd.isna(cells) & pd.isna(cells[0]))
        if not same.all():
            raise PredictionsError(
                f"predictions: {column} of an image must be the same in all runs; {int((~same).any(axis=0).sum())} "
                f"images of {split} differ"
            )
        return np.asarray(cells[0])

    return Block(
        split,
        tuple(str(run) for run in runs),
        per_image("label", np.float64),
        per_image("patient", np.int64),
        per_image("site", object),
        rows["logit"].to_numpy(dtype=np.float64)[order].reshape(shape),
    )


def _check_complete(family: Family, blocks: Iterable[Block]) -> None:
    for block in blocks:
        missing = sorted(set(family.draws) - set(block.runs))
        if missing and len(missing) < len(family.draws):
            raise PredictionsError(
                f"predictions: {family.name} lacks {missing} on {block.split}, but has its other runs"
            )


def _groups(block: Block, source_sites: Sequence[str], target_sites: Sequence[str]) -> Iterator[Group]:
    sites = target_sites if block.split == "ood_test" else source_sites
    members = {"target" if block.split == "ood_test" else "source": sorted(sites)}
    if block.split != "id_val":
        members |= {f"site={site}": [site] for site in sorted(sites)}
    for name, chosen in members.items():
        inside = np.isin(block.sites, chosen)
        annotated = inside & np.isfinite(block.labels)
        yield Group(
            block.split,
            name,
            block.runs,
            block.labels[annotated].astype(np.int8),
            block.patients[annotated],
            block.logits[:, annotated],
            int(inside.sum() - annotated.sum()),
        )


# --- metrics per run, on the images and on their resamples ---------------------------------------------------


def _operating_points(block: Block | None, runs: Sequence[str], params: EvaluateParams) -> dict[str, Row]:
    """Per run the threshold fixed on id_val; ``num_images`` are the negatives it rests on."""
    points = {}
    for run in runs:
        threshold, reached, number = float("nan"), float("nan"), 0
        if block is not None and run in block.runs:
            annotated = np.isfinite(block.labels)
            labels = block.labels[annotated].astype(np.int8)
            number = int((labels == 0).sum())
            logits = block.logits[block.runs.index(run), annotated]
            threshold, reached = threshold_at_specificity(labels, logits, params.specificity)
        points[run] = {
            "threshold": threshold,
            "wanted_specificity": params.specificity,
            "reached_specificity": reached,
            "num_images": number,
        }
    return points


def _scored(group: Group, points: Mapping[str, Row], counts: CountArray, params: EvaluateParams) -> Group:
    """``group`` with its values and draws; each chunk of weights is laid out once for all runs and metrics."""
    settings = [{"threshold": points[run]["threshold"], "ece_bins": params.ece_bins} for run in group.runs]

    def all_runs(metric: Metric, weights: FloatArray) -> FloatArray:
        return np.stack(
            [metric(group.labels, logits, weights, **own) for logits, own in zip(group.logits, settings, strict=True)]
        )

    once = np.ones((1, len(group.labels)))
    for name, metric in METRICS.items():
        group.values[name] = all_runs(metric, once)[:, 0]
        group.draws[name] = np.full((len(group.runs), counts.shape[1]), np.nan)
    for chunk, weights in patient_weights(counts, group.patients):
        for name, metric in METRICS.items():
            if metric.has_interval and np.isfinite(group.values[name]).any():
                group.draws[name][:, chunk] = all_runs(metric, weights)
    return group


def _estimate(family: Family, group: Group, name: str) -> Estimate:
    return _over_runs(family, group, group.values[name], group.draws[name], group.num_patients[METRICS[name].needs])


def _over_runs(family: Family, group: Group, values: FloatArray, draws: FloatArray, patients: int) -> Estimate:
    """Over seeds; or, with several draws of the label subset, over draws, each the mean of its seeds."""
    members = [run for run in group.runs if run in family.draws]
    by_draw: dict[int, list[int]] = {}
    for run in members:
        by_draw.setdefault(family.draws[run], []).append(group.runs.index(run))
    repetitions = list(by_draw.values()) if len(by_draw) > 1 else [[group.runs.index(run)] for run in members]
    return over_seeds(
        np.array([values[index].mean() for index in repetitions]),
        np.stack([draws[index].mean(axis=0) for index in repetitions]),
        patients,
    )


# --- rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """A metric's estimate on a group with what its row says of the images."""

    estimate: Estimate
    num_images: int
    num_patients: int
    note: str = ""


_Cells = Mapping[tuple[str, str, str], _Cell]  # by split, group and metric


def _family_rows(families: Sequence[Family], cells: Mapping[str, _Cells], params: EvaluateParams) -> Iterator[Row]:
    for family in families:
        for (split, group, name), cell in cells[family.name].items():
            metric = METRICS[name]
            scale: Scale = "identity" if group == "target_minus_source" else metric.scale
            exact = metric.exact_at_border and group != "target_minus_source"
            yield _row(family, split, group, name, cell, params, scale, exact, metric.has_interval)
        for _, split, group, cell in _paired(family, families, cells, BASELINES[0]):
            yield _row(family, split, group, f"{COMPARED_METRIC}_minus_{BASELINES[0]}", cell, params, "identity")


def _comparisons(
    finding: str, families: Sequence[Family], cells: Mapping[str, _Cells], params: EvaluateParams
) -> Iterator[Comparison]:
    for family in families:
        if family.method in BASELINES:
            continue
        for baseline in BASELINES:
            for twin, split, group, cell in _paired(family, families, cells, baseline):
                yield Comparison(
                    finding,
                    family,
                    twin,
                    split,
                    group,
                    cell.estimate.value,
                    standard_error(cell.estimate),
                    _within_one(interval(cell.estimate, "identity", params.confidence)),
                    cell.num_patients,
                    min(part.num_runs for part in cell.estimate.seeds),
                    cell.note,
                )


def _paired(
    family: Family, families: Sequence[Family], cells: Mapping[str, _Cells], baseline: str
) -> Iterator[tuple[Family, str, str, _Cell]]:
    """The family's twin by another method, split, group and the difference, wherever both have a value or a note."""
    twin = _twin(family, families, baseline)
    if twin is None:
        return
    for (split, group, name), cell in cells[family.name].items():
        other = cells[twin.name].get((split, group, name))
        if name == COMPARED_METRIC and other is not None:
            note = _joined(cell.note, f"{twin.method}: {other.note}" if other.note not in ("", cell.note) else "")
            both = difference(cell.estimate, other.estimate)
            yield twin, split, group, _Cell(both, cell.num_images, cell.num_patients, note)


def _twin(family: Family, families: Sequence[Family], baseline: str) -> Family | None:
    if family.method == baseline:
        return None
    for other in families:
        if (other.backbone, other.method, other.setting) == (family.backbone, baseline, family.setting):
            return other
    return None


def _cells(
    family: Family, groups: Sequence[Group], target_sites: Sequence[str], points: Mapping[str, Row]
) -> dict[tuple[str, str, str], _Cell]:
    """(split, group, metric) to cell, for the groups of the splits that the family has predictions of."""
    own = {(group.split, group.name): group for group in groups if set(family.draws) <= set(group.runs)}
    cells = {}
    for (split, group_name), group in own.items():
        for name in METRICS:
            note = _joined(_undefined(family, group, name, points), _unlabelled(group.num_unlabelled))
            number = group.num_patients["any"]
            cells[split, group_name, name] = _Cell(_estimate(family, group, name), len(group.labels), number, note)
    for name, metric in METRICS.items():
        at_sites = {
            site: cells["ood_test", f"site={site}", name]
            for site in sorted(target_sites)
            if ("ood_test", f"site={site}", name) in cells
        }
        if at_sites and metric.higher_is_better is not None:
            cells["ood_test", "worst_site", name] = _worst(at_sites, metric.higher_is_better)
    if ("ood_test", "target") in own and ("id_test", "source") in own:
        target, source = own["ood_test", "target"], own["id_test", "source"]
        for name in METRICS:
            cells["ood_test", "target_minus_source", name] = _gap(
                family, target, source, name, cells["ood_test", "target", name], cells["id_test", "source", name]
            )
    return cells


def _worst(at_sites: Mapping[str, _Cell], higher_is_better: bool) -> _Cell:
    defined = {site: cell for site, cell in at_sites.items() if np.isfinite(cell.estimate.value)}
    if not defined:
        first = next(iter(at_sites.values()))
        total = sum(cell.num_images for cell in at_sites.values())
        return _Cell(
            first.estimate, total, sum(cell.num_patients for cell in at_sites.values()), "undefined at all sites"
        )
    index, estimate = extreme([cell.estimate for cell in defined.values()], lowest=higher_is_better)
    site = list(defined)[index]
    without = f"undefined at {', '.join(sorted(set(at_sites) - set(defined)))}" if len(defined) < len(at_sites) else ""
    chosen = defined[site]
    return _Cell(estimate, chosen.num_images, chosen.num_patients, _joined(f"site {site}", without))


def _gap(family: Family, target: Group, source: Group, name: str, on_target: _Cell, on_source: _Cell) -> _Cell:
    """Target less source, run by run: a run's luck of the seed is in both and counts only as far as it differs."""
    runs = [run for run in target.runs if run in family.draws]
    at, of = [target.runs.index(run) for run in runs], [source.runs.index(run) for run in runs]
    values, draws = np.full(len(target.runs), np.nan), np.full_like(target.draws[name], np.nan)
    values[at] = target.values[name][at] - source.values[name][of]
    draws[at] = target.draws[name][at] - source.draws[name][of]
    patients = min(on_target.estimate.patients, on_source.estimate.patients)
    note = _joined(
        f"target: {on_target.note}" if on_target.note else "", f"source: {on_source.note}" if on_source.note else ""
    )
    return _Cell(
        _over_runs(family, target, values, draws, patients),
        on_target.num_images + on_source.num_images,
        on_target.num_patients + on_source.num_patients,
        note,
    )


def _row(
    family: Family,
    split: str,
    group: str,
    name: str,
    cell: _Cell,
    params: EvaluateParams,
    scale: Scale,
    exact: bool = False,
    has_interval: bool = True,
) -> Row:
    row: Row = {
        "run": family.name,
        "split": split,
        "group": group,
        "metric": name,
        "value": cell.estimate.value,
        "num_images": cell.num_images,
        "num_patients": cell.num_patients,
        "interval": "",
        "note": cell.note,
    }
    if has_interval:
        made = interval(cell.estimate, scale, params.confidence, exact)
        if scale == "identity" and (name not in METRICS or METRICS[name].scale == "logit"):
            made = _within_one(made)
        row |= {
            "ci_low": made.low,
            "ci_high": made.high,
            "interval": made.text,
            "note": _joined(cell.note, made.note),
        }
    return row


def _within_one(made: Interval) -> Interval:
    """The interval of a difference of two shares: what lies beyond -1 and 1 cannot be."""
    low, high = (float(np.clip(limit, -1.0, 1.0)) for limit in (made.low, made.high))
    return replace(made, low=low, high=high)


def _single_run_rows(families: Sequence[Family], groups: Sequence[Group]) -> Iterator[Row]:
    names = {family.name for family in families}
    for group in groups:
        for index, run in enumerate(group.runs):
            if run not in names:
                yield {
                    "run": run,
                    "split": group.split,
                    "group": group.name,
                    "metric": SINGLE_RUN_METRIC,
                    "value": group.values[SINGLE_RUN_METRIC][index],
                    "num_images": len(group.labels),
                    "num_patients": group.num_patients["any"],
                    "interval": "",
                    "note": _one_class(group, METRICS[SINGLE_RUN_METRIC].needs),
                }


def _calibration_rows(families: Sequence[Family], groups: Sequence[Group], params: EvaluateParams) -> Iterator[Row]:
    """Reliability per family and group of the test splits; ``num_images`` counts an image once per run pooled."""
    for group in groups:
        if group.split == "id_val" or not len(group.labels):
            continue
        for family in families:
            own = [index for index, run in enumerate(group.runs) if run in family.draws]
            if not own:
                continue
            logits, labels = group.logits[own].ravel(), np.tile(group.labels, len(own))
            bins = equal_mass_bins(logits, np.ones(len(logits)), params.reliability_bins)
            for index in np.unique(bins):
                inside = bins == index
                yield {
                    "run": family.name,
                    "group": group.name,
                    "bin": index,
                    "mean_probability": float(expit(logits[inside]).mean()),
                    "observed_rate": float(labels[inside].mean()),
                    "num_images": int(inside.sum()),
                }


def _undefined(family: Family, group: Group, name: str, points: Mapping[str, Row]) -> str:
    """Why the family's value is null, "" where it is not."""
    runs = [run for run in group.runs if run in family.draws]
    bad = [run for run in runs if not np.isfinite(group.values[name][group.runs.index(run)])]
    if not bad:
        return ""
    if reason := _one_class(group, METRICS[name].needs):
        return reason
    if METRICS[name].needs_threshold and any(not np.isfinite(points[run]["threshold"]) for run in bad):
        return "no threshold: no annotated negatives on id_val"
    return f"no finite estimate for {len(bad)} of {len(runs)} runs: the scores separate the classes or do not vary"


def _one_class(group: Group, needs: Needs) -> str:
    if not len(group.labels):
        return "no annotated images"
    positives = int(group.labels.sum())
    lacking = {"both": (0, len(group.labels)), "positives": (0,), "negatives": (len(group.labels),), "any": ()}[needs]
    return f"one class only (positives: {positives})" if positives in lacking else ""


def _unlabelled(number: int) -> str:
    return f"{number} images without label left out" if number else ""


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
