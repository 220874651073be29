"""Controls of a study: what must find nothing. An alarm says that something leaks, or that intervals are made wrongly.

**permuted_labels.** On each side, home and elsewhere, labels are dealt out anew among the patients; then a linear probe
is fitted on cached features of the training images and tested, at home and elsewhere, as any probe is. Given the
features, the labels that it is tested on are as good in one order as in another, whatever it was fitted on: the AUROC
is a half on average, the permutations are independent, and a t-test of their mean is near exact. Patients keep their
one label over all splits, so that a patient on two sides of a split is found; and intervals that are honest miss a half
in one case of twenty.

**same_method_twice.** The trainings of one method in two groups, compared as the verdict compares two methods: the
answer must be ``equivalent`` or ``undecided``. From scratch it is asked for every network; of other families, where
there are trainings enough for it (two a group, so that their spread is known).

An alarm is an adjusted p at or below ``alpha``, the words ``helps`` or ``harms``, or a share of misses that is above
``TOLERATED`` beyond the doubt of its own interval. In a sound study each control raises one with a chance of about
``alpha``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, PositiveFloat
from scipy.stats import beta, ttest_1samp
from scipy.stats import t as student_t

from pipeline.analysis.evaluation import Family, name_families
from pipeline.analysis.probes import auroc_of
from pipeline.analysis.verdict import VerdictParams, decide, holm, p_different, p_equivalent
from pipeline.errors import PipelineError
from pipeline.metrics.binary import auroc
from pipeline.metrics.distance import draw_rows
from pipeline.metrics.intervals import difference, interval, over_seeds, patient_counts, standard_error
from pipeline.metrics.resampled import resampled_auroc
from pipeline.params import Fraction, Seed, StrictParams
from pipeline.tables.contract import make_table
from pipeline.tables.controls import Controls
from pipeline.training.probe import fit_probe

Doubles = npt.NDArray[np.float64]
Row = dict[str, Any]

TOLERATED = 0.10  # of intervals that miss: twice what 95 % promise
LEAST_GROUP = 2  # trainings, below which their spread is unknown
_TESTED = ("id_test", "ood_test")
_SIDES = (("train", "id_val", "id_test"), ("ood_test",))
_MAX_ROWS = 4_000  # images of a split that a probe sees, whole patients by lot: a control asks for no more
_NAN = float("nan")
_SCRATCH = "scratch"


class ControlsParams(StrictParams):
    """Section ``controls``.

    ``permutations`` of the labels; ``resamples`` of each interval's bootstrap; ``inverse_l2`` as the linear probe's;
    ``alpha``: the chance of an alarm where there is nothing.
    """

    seed: Seed
    permutations: int = Field(default=20, ge=10, le=1000)
    resamples: int = Field(default=400, ge=100)
    inverse_l2: list[PositiveFloat] = Field(default=[1e-3, 1e-2, 1e-1], min_length=1)
    alpha: Fraction = 0.05


@dataclass(frozen=True)
class Probed:
    """A backbone's features of the images that a probe is fitted or tested on, and their labels.

    Attributes:
        features: (N, D).
        labels: (N,) 0, 1 or NaN.
        patients: (N,) names.
        splits: (N,) train, id_val, id_test or ood_test.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    patients: npt.NDArray[Any]
    splits: npt.NDArray[Any]


def permuted(
    labels: npt.NDArray[np.float32], patients: npt.NDArray[Any], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Each patient's images have the labels of another patient by lot, one after another and from the start again.

    Args:
        labels: (N,) of one side, none missing.
        patients: (N,) names.
        rng: of the lot.
    """
    codes = np.unique(patients, return_inverse=True)[1]
    by_patient = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    giver = rng.permutation(len(sizes))[codes[by_patient]]
    place = np.arange(len(labels)) - starts[codes[by_patient]]
    dealt = np.empty_like(labels)
    dealt[by_patient] = labels[by_patient][starts[giver] + place % sizes[giver]]
    return dealt


def permuted_labels(probed: Probed, params: ControlsParams, seed: int) -> list[Row]:
    """Rows of ``tables.controls.Controls`` for one finding and backbone, without their names and verdict.

    Args:
        probed: all images with features.
        params: the section.
        seed: of the permutations, of which each finding has its own.
    """
    kept = np.flatnonzero(~np.isnan(probed.labels) & np.isin(probed.splits, np.concatenate(_SIDES)))
    parts = []
    for split in np.concatenate(_SIDES):
        rows = kept[probed.splits[kept] == split]
        codes = np.unique(probed.patients[rows], return_inverse=True)[1]
        parts.append(rows[draw_rows(codes, _MAX_ROWS, params.seed)])
    chosen = np.sort(np.concatenate(parts))
    features, labels = probed.features[chosen], probed.labels[chosen]
    patients, splits = probed.patients[chosen], probed.splits[chosen]
    found: dict[str, list[tuple[float, float, float]]] = {split: [] for split in _TESTED}
    refused = ""
    for number in range(params.permutations):
        rng = np.random.default_rng([seed, number])
        dealt = labels.copy()
        for side in _SIDES:
            own = np.isin(splits, side)
            dealt[own] = permuted(labels[own], patients[own], rng)
        train, id_val = (np.flatnonzero(splits == split) for split in ("train", "id_val"))
        try:
            probe = fit_probe(features, dealt, train, id_val, params.inverse_l2, "permuted labels")
        except PipelineError as error:
            refused = str(error)
            continue
        logits = np.asarray((features.astype(np.float64) * probe.weight).sum(axis=1) + probe.bias)
        for split in _TESTED:
            at = splits == split
            one = auroc_of(
                dealt[at].astype(np.int64), logits[at], patients[at], resamples=params.resamples, seed=params.seed
            )
            if np.isfinite(one.value):
                found[split].append((one.value, one.low, one.high))
    return [_of_permutations(found[split], split, patients[splits == split], refused) for split in _TESTED]


def same_method_twice(predictions: pd.DataFrame, params: ControlsParams, bounds: VerdictParams) -> list[Row]:
    """Rows of ``tables.controls.Controls``: two groups of each family's trainings, at home and elsewhere.

    Args:
        predictions: ``tables.predictions.Predictions`` of trained models.
        params: the section.
        bounds: section ``verdict``: margin and alpha.
    """
    families = [family for family in name_families(predictions) if not family.without_chance]
    rows: list[Row] = []
    for finding, own in predictions.groupby("finding", sort=True):
        made = [
            {"finding": finding, **row}
            for family in families
            for row in _twice(family, own[own["run"].isin(list(family.draws))], params, bounds)
        ]
        p_holm = holm([row["p_value"] for row in made])
        p_equivalence_holm = holm([row.pop("p_equivalence") for row in made])
        for row, p, p_equivalence in zip(made, p_holm, p_equivalence_holm, strict=True):
            word = decide(row["value"], p, p_equivalence, bounds.alpha)
            verdict = "undetermined" if word is None else "alarm" if word in ("helps", "harms") else "passed"
            rows.append({**row, "control": "same_method_twice", "p_holm": p, "outcome": word, "verdict": verdict})
    return rows


def controls(
    probes: Mapping[tuple[str, str], Probed], predictions: pd.DataFrame, params: ControlsParams, bounds: VerdictParams
) -> pd.DataFrame:
    """``tables.controls.Controls``.

    Args:
        probes: by finding and backbone.
        predictions: of trained models, without those of remedies and of the baseline without pixels.
        params: the section.
        bounds: section ``verdict``.
    """
    findings = sorted({finding for finding, _ in probes})
    rows = [
        {"control": "permuted_labels", "finding": finding, "run": f"{backbone}-linear_probe", **row}
        for (finding, backbone), probed in probes.items()
        for row in permuted_labels(probed, params, params.seed + 1000 * findings.index(finding))
    ]
    for row, p_holm in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = p_holm
        told = np.isfinite(p_holm)
        alarm = p_holm <= params.alpha or row["misses_low"] > TOLERATED
        row["verdict"] = "undetermined" if not told else "alarm" if alarm else "passed"
    return make_table(Controls, rows + same_method_twice(predictions, params, bounds))


def share_of(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's limits of a share; NaN of none."""
    if not total:
        return _NAN, _NAN
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, total - count)) if count < total else 1.0
    return low, high


def _of_permutations(
    found: Sequence[tuple[float, float, float]], split: str, patients: npt.NDArray[Any], refused: str
) -> Row:
    row: Row = {"split": split, "num_images": len(patients), "num_patients": len(set(patients)), "note": refused}
    row |= {"num_runs": len(found), "value": _NAN, "ci_low": _NAN, "ci_high": _NAN, "p_value": _NAN, "outcome": ""}
    with_limits = [(low, high) for _, low, high in found if np.isfinite(low)]
    missed = sum(not low <= 0.5 <= high for low, high in with_limits)
    low, high = share_of(missed, len(with_limits))
    share = missed / len(with_limits) if with_limits else _NAN
    row |= {"misses": share, "misses_low": low, "misses_high": high}
    values = np.array([value for value, _, _ in found])
    if len(values) < LEAST_GROUP:
        unknown = "no AUROC on permuted labels: one class, or too few patients"
        return row | {"note": "; ".join(part for part in (refused, unknown) if part)}
    half = float(student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    mean = float(values.mean())
    limits = {"value": mean, "ci_low": mean - half, "ci_high": mean + half}
    # Alike to the last bit, as where all that is tested was learnt by heart: no spread, and no doubt either.
    p_value = float(ttest_1samp(values, 0.5).pvalue) if half > 0 else float(mean == 0.5)
    return row | limits | {"p_value": p_value}


def _twice(family: Family, own: pd.DataFrame, params: ControlsParams, bounds: VerdictParams) -> Iterator[Row]:
    """A family's rows, one a split; none where it is not from scratch and has too few trainings."""
    groups = halves(family)
    fewest = min(len(group) for group in groups)
    scratch = family.method == _SCRATCH and family.setting.all_labels
    if fewest < LEAST_GROUP and not scratch:
        return
    for split in _TESTED:
        wide = own[(own["split"] == split) & own["label"].notna()].pivot_table(
            index=["image_id", "patient_id", "label"], columns="run", values="logit", sort=True
        )
        labels = wide.index.get_level_values("label").to_numpy(np.int64)
        names, codes = np.unique(wide.index.get_level_values("patient_id").to_numpy(object), return_inverse=True)
        classes = [len(np.unique(codes[labels == label])) for label in (0, 1)]
        row: Row = {"run": family.name, "split": split, "num_runs": fewest, "num_images": len(wide)}
        row |= {"num_patients": len(names), "note": "", "value": _NAN, "p_value": _NAN, "p_equivalence": _NAN}
        if fewest < LEAST_GROUP:
            needed = f"needs {2 * LEAST_GROUP} trainings, {LEAST_GROUP} a group; there are {len(family.draws)}"
            yield row | {"note": needed}
            continue
        if not min(classes):
            yield row | {"note": "one class only" if len(wide) else "no labels"}
            continue
        counts = patient_counts([str(name) for name in names], params.resamples, params.seed)
        means = []
        for group in groups:
            values, draws = [], []
            for runs in group:  # the runs of a draw share their training images
                logits = [wide[run].to_numpy(np.float64) for run in runs]
                values.append(np.mean([auroc(labels, one, np.ones((1, len(labels))))[0] for one in logits]))
                draws.append(np.mean([resampled_auroc(labels, one, counts, codes) for one in logits], axis=0))
            means.append(over_seeds(np.array(values), np.stack(draws), min(classes)))
        estimate = difference(*means)
        error, limits = standard_error(estimate), interval(estimate, "identity")
        row |= {"value": estimate.value, "ci_low": limits.low, "ci_high": limits.high, "note": error.note}
        if not error.note:
            row["p_value"] = p_different(estimate.value, error)
            row["p_equivalence"] = p_equivalent(estimate.value, error, bounds.margin)
        yield row


def halves(family: Family) -> tuple[list[list[str]], list[list[str]]]:
    """A family's repetitions in two groups, turn by turn: draws with all their runs; of one draw, its runs."""
    draws = sorted(set(family.draws.values()))
    by_draw = [[run for run in sorted(family.draws) if family.draws[run] == draw] for draw in draws]
    repetitions = by_draw if len(draws) > 1 else [[run] for run in by_draw[0]]
    return repetitions[::2], repetitions[1::2]
