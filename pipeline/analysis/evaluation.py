"""Predictions to metrics with intervals, reliability bins and operating points; pure, tables in and tables out.

**Who is compared.** A *family* is a backbone with a method: all its runs with the same label budget (a fraction,
or shots), adaptation and protocol, over training seeds and draws of the label subset. Its rows carry the mean over runs
and an interval that counts both patients and runs (``pipeline.metrics.intervals``). With several draws the
runs of a draw are averaged first and the draws are the repetitions: runs of one draw share their training
images, so that counting each as one would promise too much. Single runs get their AUROC as a bare value.

**Where.** ``source`` and ``site=NAME`` on id_test (``source`` on id_val too); ``target``, ``site=NAME``,
``worst_site`` and ``target_minus_source`` (ood_test less id_test, run by run) on ood_test. On both test splits also
what ``domains`` and ``subgroups`` name, all hospitals of the side together: ``manufacturer=ge``,
``worst_manufacturer``, ``sex=F+age_band=40-59``; subgroups with ``SUBGROUP_METRICS`` alone.

**Against whom.** A family is paired with its *twins*: the same backbone and setting trained from random weights
(``BASELINES``: by as much training, and until convergence), the baseline without pixels, and, where it is adapted, the
same without adaptation. An adapted run named after a plain one (``RUN-adapt_NAME``) is taken less that run, so that its
luck of the seed does not count. ``pipeline.analysis.verdict`` judges the differences from scratch and from plain.

**Checked.** ``auroc_delong`` on the pooled groups is the mean AUROC over the runs with the interval of the clustered
DeLong method (``metrics.delong``): the patients' part alone. Its note has the same from the bootstrap.

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
from pipeline.analysis.subgroups import MISSING, of_images
from pipeline.errors import PipelineError
from pipeline.metrics.binary import (
    METRICS,
    FloatArray,
    IntArray,
    Metric,
    Needs,
    Scale,
    auroc,
    equal_mass_bins,
    metrics_at,
    threshold_at_specificity,
)
from pipeline.metrics.delong import clustered_delong, delong_interval
from pipeline.metrics.intervals import (
    WITHOUT_CHANCE,
    CountArray,
    Estimate,
    Interval,
    StandardError,
    difference,
    extreme,
    interval,
    limits_of_extreme,
    over_seeds,
    patient_counts,
    patient_weights,
    standard_error,
)
from pipeline.metrics.resampled import resampled_auroc
from pipeline.params import Fraction, Seed, StrictParams
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Calibration, Metrics, SeedSpread, Thresholds

Row = dict[str, Any]

SINGLE_RUN_METRIC = "auroc"
COMPARED_METRIC = "auroc"

# Methods that start from random weights: what the others are compared with. Metrics has the difference from the first.
BASELINES = ("scratch", "scratch_converged")
PLAIN = "plain"
NO_PIXELS = "no_pixels"  # the backbone of the baseline that sees no image, one run without chance (stages/baseline.py)
POOLED = (("id_test", "source"), ("ood_test", "target"))
# In the class that limits a metric, for a subgroup to be called the worst: of small ones chance makes one the worst.
LEAST_PATIENTS = 10
SUBGROUP_METRICS = ("auroc", "sensitivity", "specificity", "calibration_intercept")


class PredictionsError(PipelineError, ValueError):
    """Predictions contradict themselves or the sites; the text says which constraint and how often."""


class EvaluateParams(StrictParams):
    """How predictions are evaluated.

    ``unit``: what counts as one case; of a study's images the predictions are brought together as ``aggregate`` says.
    ``prevalences``: for predictive values, beside that of id_val. ``threshold_probabilities``: for the net benefit,
    beside the operating point. ``domains``, ``subgroups``: recorded columns, several joined by "+" (``subgroups``).
    """

    seed: Seed
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    confidence: Fraction = 0.95
    specificity: Fraction = 0.9
    ece_bins: Annotated[int, Field(ge=1, le=1000)] = 15
    reliability_bins: Annotated[int, Field(ge=1, le=1000)] = 10
    unit: Literal["image", "study"] = "image"
    aggregate: Aggregation = "mean"
    prevalences: list[Fraction] = Field(default_factory=list)
    threshold_probabilities: list[Fraction] = Field(default_factory=list)
    domains: list[str] = Field(default_factory=list)
    subgroups: list[str] = Field(default_factory=list)


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

    @property
    def without_chance(self) -> bool:
        """Whether another run of the same training would be the same model."""
        return self.backbone == NO_PIXELS


@dataclass(frozen=True)
class Comparison:
    """A family's AUROC less its twin's, at one place: what a verdict is made of.

    ``twin`` is the same from scratch or, of an adapted family, the same without adaptation.

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
    """Four tables, each keeping its contract in ``pipeline.tables``, and what verdicts are made of.

    ``comparisons`` are with scratch, ``remedies`` of adapted families with the same unadapted.
    """

    metrics: pd.DataFrame
    spread: pd.DataFrame
    calibration: pd.DataFrame
    thresholds: pd.DataFrame
    comparisons: tuple[Comparison, ...]
    remedies: tuple[Comparison, ...]


@dataclass(frozen=True)
class Block:
    """One finding on one split: the same n images for each of r runs.

    labels (n,) float64, NaN where not annotated; patients (n,) rows of the resample counts; sites (n,); logits
    (r, n) float64; groups (n,) by the name of a domain or subgroup.
    """

    split: str
    runs: tuple[str, ...]
    labels: FloatArray
    patients: IntArray
    sites: NDArray[np.object_]
    logits: FloatArray
    groups: Mapping[str, NDArray[np.object_]]


@dataclass(frozen=True)
class Group:
    """The annotated images of a block that belong to a group, and each run's metrics on them.

    ``of`` is the domain or subgroup whose level it is, "" for hospitals. values[metric] is (r,) float64, draws[metric]
    (r, resamples).
    """

    split: str
    name: str
    of: str
    metrics: Mapping[str, Metric]
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
    groups_of: pd.DataFrame | None = None,
) -> Evaluation:
    """All metrics of all runs and families.

    Args:
        predictions: as ``tables.predictions.Predictions``; a null label is not annotated. Rows of target_adapt are no
            test and left out.
        params: resamples, seed, bins, wanted specificity, domains and subgroups.
        source_sites: the hospitals trained on.
        target_sites: the others.
        groups_of: as ``subgroups.group_names`` makes it, of all domains and subgroups of ``params``.

    Raises:
        PredictionsError: the predictions contradict themselves or the sites; says which constraint and how often.
    """
    predictions = predictions[(predictions["split"] != "target_adapt").to_numpy(bool)]
    _check(predictions, source_sites, target_sites)
    families = name_families(predictions)
    patient_codes, patients = pd.factorize(predictions["patient_id"], sort=True)
    counts = patient_counts([str(patient) for patient in patients], params.resamples, params.seed)
    plain = predictions.assign(
        patient=patient_codes, label=predictions["label"].to_numpy(dtype=np.float64, na_value=np.nan)
    )
    metrics: list[Row] = []
    spread: list[Row] = []
    calibration: list[Row] = []
    thresholds: list[Row] = []
    comparisons: list[Comparison] = []
    remedies: list[Comparison] = []
    for finding, rows in plain.groupby("finding", sort=True):
        blocks = {str(split): _block(str(split), part, groups_of) for split, part in rows.groupby("split", sort=True)}
        # Before any other split's labels are read.
        points = _operating_points(blocks.get("id_val"), sorted(set(rows["run"])), params)
        prevalence = _prevalence(blocks.get("id_val"))
        groups = [
            _scored(group, points, prevalence, counts, params)
            for block in blocks.values()
            for group in _groups(block, source_sites, target_sites, params)
        ]
        for family in families:
            _check_complete(family, blocks.values())
        cells = {family.name: _cells(family, groups, points, prevalence, params.confidence) for family in families}
        made = [
            *_family_rows(families, cells, params),
            *_delong_rows(families, groups, cells, params.confidence),
            *_single_run_rows(families, groups),
        ]
        compared = list(_comparisons(str(finding), families, cells, params))
        comparisons += [pair for pair in compared if pair.twin.method in BASELINES]
        remedies += [pair for pair in compared if pair.twin.method not in BASELINES]
        metrics += [{"finding": finding, **row} for row in made]
        spread += [{"finding": finding, **row} for row in _spread_rows(families, cells)]
        calibration += [{"finding": finding, **row} for row in _calibration_rows(families, groups, params)]
        thresholds += [{"finding": finding, "run": run, **point} for run, point in points.items()]
    return Evaluation(
        make_table(Metrics, metrics),
        make_table(SeedSpread, spread),
        make_table(Calibration, calibration),
        make_table(Thresholds, thresholds),
        tuple(comparisons),
        tuple(remedies),
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


def _block(split: str, rows: pd.DataFrame, groups_of: pd.DataFrame | None) -> Block:
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
        {} if groups_of is None else of_images(groups_of, images),
    )


def _check_complete(family: Family, blocks: Iterable[Block]) -> None:
    for block in blocks:
        missing = sorted(set(family.draws) - set(block.runs))
        if missing and len(missing) < len(family.draws):
            raise PredictionsError(
                f"predictions: {family.name} lacks {missing} on {block.split}, but has its other runs"
            )


def _groups(
    block: Block, source_sites: Sequence[str], target_sites: Sequence[str], params: EvaluateParams
) -> Iterator[Group]:
    metrics = metrics_at(params.prevalences, params.threshold_probabilities)
    sites = target_sites if block.split == "ood_test" else source_sites

    def group(name: str, of: str, inside: NDArray[np.bool_], metrics: Mapping[str, Metric]) -> Group:
        annotated = inside & np.isfinite(block.labels)
        return Group(
            block.split,
            name,
            of,
            metrics,
            block.runs,
            block.labels[annotated].astype(np.int8),
            block.patients[annotated],
            block.logits[:, annotated],
            int(inside.sum() - annotated.sum()),
        )

    everywhere = np.isin(block.sites, sorted(sites))
    yield group("target" if block.split == "ood_test" else "source", "", everywhere, metrics)
    if block.split == "id_val":
        return
    for site in sorted(sites):
        yield group(f"site={site}", "", block.sites == site, metrics)
    few = {name: METRICS[name] for name in SUBGROUP_METRICS}
    for of in (*params.domains, *params.subgroups):
        levels = block.groups[of]
        for level in sorted(set(levels)):
            yield group(level, of, levels == level, metrics if of in params.domains else few)


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


def _prevalence(block: Block | None) -> float:
    """Share of positive images on id_val; NaN where it is unknown or leaves no odds."""
    known = block.labels[np.isfinite(block.labels)] if block is not None else np.empty(0)
    return float(known.mean()) if 0 < known.sum() < len(known) else float("nan")


def _scored(
    group: Group, points: Mapping[str, Row], prevalence: float, counts: CountArray, params: EvaluateParams
) -> Group:
    """``group`` with its values and draws; each chunk of weights is laid out once for all runs and metrics."""
    settings = [
        {"threshold": points[run]["threshold"], "prevalence": prevalence, "ece_bins": params.ece_bins}
        for run in group.runs
    ]

    def all_runs(metric: Metric, weights: FloatArray) -> FloatArray:
        return np.stack(
            [metric(group.labels, logits, weights, **own) for logits, own in zip(group.logits, settings, strict=True)]
        )

    once = np.ones((1, len(group.labels)))
    for name, metric in group.metrics.items():
        group.values[name] = all_runs(metric, once)[:, 0]
        group.draws[name] = np.full((len(group.runs), counts.shape[1]), np.nan)
    drawn = [
        (name, metric)
        for name, metric in group.metrics.items()
        if metric.has_interval and np.isfinite(group.values[name]).any()
    ]
    for chunk, weights in patient_weights(counts, group.patients):
        for name, metric in drawn:
            if metric.function is not auroc:
                group.draws[name][:, chunk] = all_runs(metric, weights)
    for name, metric in drawn:
        if metric.function is auroc:
            for draws, logits in zip(group.draws[name], group.logits, strict=True):
                draws[:] = resampled_auroc(group.labels, logits, counts, group.patients)
    return group


PerRun = Mapping[str, tuple[float, FloatArray]]  # a metric of each run and on the resamples


def _per_run(family: Family, group: Group, name: str) -> PerRun:
    return {
        run: (group.values[name][index], group.draws[name][index])
        for index, run in enumerate(group.runs)
        if run in family.draws
    }


def _repetitions(family: Family, runs: Iterable[str]) -> list[list[str]]:
    """The runs of which each is one, or each draw, where there are several, with all its seeds."""
    by_draw: dict[int, list[str]] = {}
    for run in runs:
        by_draw.setdefault(family.draws[run], []).append(run)
    return list(by_draw.values()) if len(by_draw) > 1 else [[run] for own in by_draw.values() for run in own]


def _over_runs(family: Family, per_run: PerRun, patients: int) -> Estimate:
    """Over seeds; or, with several draws of the label subset, over draws, each the mean of its seeds."""
    repetitions = _repetitions(family, per_run)
    made = over_seeds(
        np.array([np.mean([per_run[run][0] for run in runs]) for runs in repetitions]),
        np.stack([np.mean([per_run[run][1] for run in runs], axis=0) for runs in repetitions]),
        patients,
    )
    return replace(made, seeds=(WITHOUT_CHANCE,)) if family.without_chance else made


# --- rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """A metric's estimate on a group with what its row says of the images.

    ``per_run`` is what the estimate was made of, empty for the worst of several groups; that has its ``limits``.
    ``difference``: of the metric, between families or places.
    """

    estimate: Estimate
    metric: Metric
    num_images: int
    num_patients: int
    note: str = ""
    of: str = ""
    per_run: PerRun = field(default_factory=dict)
    limits: Interval | None = None
    difference: bool = False


_Cells = Mapping[tuple[str, str, str], _Cell]  # by split, group and metric


def _family_rows(families: Sequence[Family], cells: Mapping[str, _Cells], params: EvaluateParams) -> Iterator[Row]:
    for family in families:
        for (split, group, name), cell in cells[family.name].items():
            yield _row(family, split, group, name, cell, params)
        for against, twin in _twins(family, families):
            if against != BASELINES[1]:
                for split, group, cell in _paired(family, twin, cells, against):
                    yield _row(family, split, group, f"{COMPARED_METRIC}_minus_{against}", cell, params)


def _spread_rows(families: Sequence[Family], cells: Mapping[str, _Cells]) -> Iterator[Row]:
    for family in families:
        for (split, group, name), cell in cells[family.name].items():
            (part,) = cell.estimate.seeds
            defined = part.num_runs > 1 and np.isfinite(cell.estimate.value)
            yield {
                "run": family.name,
                "split": split,
                "group": group,
                "metric": name,
                "num_runs": part.num_runs,
                "variance": part.spread * part.num_runs if defined else None,
            }


def _comparisons(
    finding: str, families: Sequence[Family], cells: Mapping[str, _Cells], params: EvaluateParams
) -> Iterator[Comparison]:
    for family in families:
        if family.method in BASELINES:
            continue
        for against, twin in _twins(family, families):
            if against == NO_PIXELS:
                continue
            for split, group, cell in _paired(family, twin, cells, against):
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


def _twins(family: Family, families: Sequence[Family]) -> Iterator[tuple[str, Family]]:
    """The families that it is compared with: baseline, ``NO_PIXELS`` or PLAIN, and the family."""
    plain = family.setting._replace(adaptation="")
    for other in families:
        if other == family:
            continue
        if other.without_chance:
            if not family.without_chance and other.setting.protocol == family.setting.protocol:
                yield NO_PIXELS, other
        elif other.backbone == family.backbone:
            if other.method in BASELINES and other.setting == family.setting:
                yield other.method, other
            if other.method == family.method and family.setting.adaptation and other.setting == plain:
                yield PLAIN, other


def _paired(
    family: Family, twin: Family, cells: Mapping[str, _Cells], against: str
) -> Iterator[tuple[str, str, _Cell]]:
    """Split, group and the difference from a twin, at all places where both have a value or a note."""
    # An adapted run is its plain run's own child.
    parents = {run: run.removesuffix(f"-adapt_{family.setting.adaptation}") for run in family.draws}
    for (split, group, name), cell in cells[family.name].items():
        other = cells[twin.name].get((split, group, name))
        if name != COMPARED_METRIC or other is None or cell.of:
            continue
        label = twin.method if against in BASELINES else against
        note = _joined(cell.note, f"{label}: {other.note}" if other.note not in ("", cell.note) else "")
        both = difference(cell.estimate, other.estimate)
        if against == PLAIN and cell.per_run and set(parents.values()) <= set(other.per_run):
            run_by_run = _less(cell.per_run, {run: other.per_run[parent] for run, parent in parents.items()})
            both = _over_runs(family, run_by_run, both.patients)
        yield split, group, replace(cell, estimate=both, note=note, limits=None, difference=True)


def _less(one: PerRun, other: PerRun) -> PerRun:
    return {run: (value - other[run][0], draws - other[run][1]) for run, (value, draws) in one.items()}


def _cells(
    family: Family,
    groups: Sequence[Group],
    points: Mapping[str, Row],
    prevalence: float,
    confidence: float,
) -> dict[tuple[str, str, str], _Cell]:
    """(split, group, metric) to cell, for the groups of the splits that the family has predictions of."""
    own = {(group.split, group.name): group for group in groups if set(family.draws) <= set(group.runs)}
    cells = {}
    for (split, group_name), group in own.items():
        for name, metric in group.metrics.items():
            note = _joined(_undefined(family, group, name, points, prevalence), _unlabelled(group.num_unlabelled))
            per_run = _per_run(family, group, name)
            estimate = _over_runs(family, per_run, group.num_patients[metric.needs])
            cells[split, group_name, name] = _Cell(
                estimate, metric, len(group.labels), group.num_patients["any"], note, group.of, per_run
            )
    for (split, of), members in _ranked(own.values()).items():
        for name, metric in members[0].metrics.items():
            if metric.higher_is_better is not None:
                at = {group.name: cells[split, group.name, name] for group in members}
                cells[split, f"worst_{of}", name] = _worst(at, metric, metric.higher_is_better, confidence)
    if ("ood_test", "target") in own and ("id_test", "source") in own:
        for name in own["ood_test", "target"].metrics:
            cells["ood_test", "target_minus_source", name] = _gap(
                family, cells["ood_test", "target", name], cells["id_test", "source", name]
            )
    return cells


def _ranked(groups: Iterable[Group]) -> dict[tuple[str, str], list[Group]]:
    """Split and what the groups are levels of, to those of which the worst is told: the targets' sites; subgroups."""
    ranked: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if group.of and MISSING not in group.name:
            ranked.setdefault((group.split, group.of), []).append(group)
        elif group.split == "ood_test" and group.name.startswith("site="):
            ranked.setdefault((group.split, "site"), []).append(group)
    return ranked


def _worst(at: Mapping[str, _Cell], metric: Metric, higher_is_better: bool, confidence: float) -> _Cell:
    first = next(iter(at.values()))
    few = [group for group, cell in at.items() if cell.of and cell.estimate.patients < LEAST_PATIENTS]
    defined = {group: cell for group, cell in at.items() if np.isfinite(cell.estimate.value) and group not in few}
    if not defined:
        total, patients = (sum(cell.num_images for cell in at.values()), sum(cell.num_patients for cell in at.values()))
        note = f"under {LEAST_PATIENTS} patients of a class in every group" if few else "undefined at all sites"
        nothing = replace(first.estimate, value=float("nan"))
        return replace(first, estimate=nothing, num_images=total, num_patients=patients, note=note, per_run={})
    estimates = [cell.estimate for cell in defined.values()]
    index, estimate = extreme(estimates, lowest=higher_is_better)
    limits = (
        limits_of_extreme(estimates, higher_is_better, metric.scale, confidence, metric.exact_at_border)
        if metric.has_interval
        else None
    )
    left_out = ", ".join(group.removeprefix("site=") for group in sorted(set(at) - set(defined) - set(few)))
    too_few = f"under {LEAST_PATIENTS} patients of a class: {', '.join(sorted(few))}" if few else ""
    chosen = list(defined)[index]
    note = _joined(chosen.replace("site=", "site "), f"undefined at {left_out}" if left_out else "", too_few)
    return replace(defined[chosen], estimate=estimate, note=note, per_run={}, limits=limits)


def _gap(family: Family, on_target: _Cell, on_source: _Cell) -> _Cell:
    """Target less source, run by run: a run's luck of the seed is in both and counts only as far as it differs."""
    per_run = _less(on_target.per_run, on_source.per_run)
    patients = min(on_target.estimate.patients, on_source.estimate.patients)
    note = _joined(
        f"target: {on_target.note}" if on_target.note else "", f"source: {on_source.note}" if on_source.note else ""
    )
    return _Cell(
        _over_runs(family, per_run, patients),
        on_target.metric,
        on_target.num_images + on_source.num_images,
        on_target.num_patients + on_source.num_patients,
        note,
        per_run=per_run,
        difference=True,
    )


def _row(family: Family, split: str, group: str, name: str, cell: _Cell, params: EvaluateParams) -> Row:
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
    metric = cell.metric
    if metric.has_interval:
        scale: Scale = "identity" if cell.difference else metric.scale
        exact = metric.exact_at_border and not cell.difference
        made = cell.limits or interval(cell.estimate, scale, params.confidence, exact)
        if cell.difference and metric.scale == "logit":
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


def _delong_rows(
    families: Sequence[Family], groups: Sequence[Group], cells: Mapping[str, _Cells], confidence: float
) -> Iterator[Row]:
    for group in groups:
        if (group.split, group.name) not in POOLED or not len(group.labels):
            continue
        areas = clustered_delong(group.labels, group.logits, group.patients)
        for family in families:
            cell = cells[family.name].get((group.split, group.name, "auroc"))
            if cell is None:
                continue
            repetitions = _repetitions(family, cell.per_run)
            share = {run: 1 / (len(repetitions) * len(runs)) for runs in repetitions for run in runs}
            weights = np.array([share.get(run, 0.0) for run in group.runs])
            value, low, high = delong_interval(areas, weights, METRICS["auroc"].scale, confidence)
            made = interval(replace(cell.estimate, seeds=(WITHOUT_CHANCE,)), METRICS["auroc"].scale, confidence)
            beside = (
                f"bootstrap of patients only: {made.low:.4f} to {made.high:.4f}" if np.isfinite(made.low) else made.note
            )
            yield {
                "run": family.name,
                "split": group.split,
                "group": group.name,
                "metric": "auroc_delong",
                "value": value,
                "ci_low": low,
                "ci_high": high,
                "num_images": cell.num_images,
                "num_patients": cell.num_patients,
                "interval": f"{confidence * 100:g} %, logit scale, t; clustered DeLong, patients only"
                if low < high
                else "",
                "note": _joined(cell.note, beside),
            }


def _single_run_rows(families: Sequence[Family], groups: Sequence[Group]) -> Iterator[Row]:
    names = {family.name for family in families}
    for group in groups:
        for index, run in enumerate(group.runs):
            if run not in names and not group.of:
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
        if group.split == "id_val" or group.of or not len(group.labels):
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


def _undefined(family: Family, group: Group, name: str, points: Mapping[str, Row], prevalence: float) -> str:
    """Why the family's value is null, "" where it is not."""
    runs = [run for run in group.runs if run in family.draws]
    bad = [run for run in runs if not np.isfinite(group.values[name][group.runs.index(run)])]
    if not bad:
        return ""
    metric = group.metrics[name]
    if reason := _one_class(group, metric.needs):
        return reason
    if metric.needs_threshold and any(not np.isfinite(points[run]["threshold"]) for run in bad):
        return "no threshold: no annotated negatives on id_val"
    if metric.needs_prevalence and not np.isfinite(prevalence):
        return "no prevalence: id_val has not both classes"
    return f"no finite estimate for {len(bad)} of {len(runs)} runs: {metric.undefined}"


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
