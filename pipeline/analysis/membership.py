"""Membership inference: what a model's outputs give away about whom it was trained on; scores of patients, and counts.

The attacker has a patient's images with their labels and sees the model's probabilities. Members are the patients that
a run was trained on; the others are id_test's, whom it never saw (id_val chose the epoch or the penalty, and lies
between). A patient's score is the mean over annotated images and findings of

======================  ===============================================================================================
``loss``                log of the probability given to the label (Yeom et al. 2018, IEEE CSF, "Privacy Risk in Machine
                        Learning", adversary 2)
``entropy``             less the entropy of the prediction: needs no label (Salem et al. 2019, NDSS, "ML-Leaks")
``modified_entropy``    less the modified entropy (Song & Mittal 2021, USENIX Security, "Systematic Evaluation of
                        Privacy Risks", eq. 8). Of two classes it falls with the loss's score, so that all it adds is
                        their threshold for each class: here mean and standard deviation of each class on id_val
``calibrated``          the logit of the probability given to the label, less its mean under reference models that were
                        not trained on the patient: the offline attack of Carlini et al. (2022, IEEE S&P, "Membership
                        Inference Attacks From First Principles") with one variance for all, as they advise for few
                        references; Watson et al. 2022 (ICLR) call it difficulty calibration
======================  ===============================================================================================

Reference models are the study's own: runs of the same backbone and method with a smaller label budget, or with another
draw of the same, which leave some training patients out (``references_of``). An attacker who trains their own can have
more of them, and may find more.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy.special import expit
from scipy.stats import beta

from pipeline.metrics.binary import FloatArray, IntArray, auroc
from pipeline.metrics.intervals import CountArray, Estimate, interval, over_seeds, patient_counts
from pipeline.metrics.resampled import resampled_auroc
from pipeline.params import Fraction, Seed, StrictParams
from pipeline.splits import uniform
from pipeline.tables.membership import ATTACKS, CALIBRATED, ENTROPY, LOSS, MODIFIED_ENTROPY

CONFIDENCE = 0.95

Row = dict[str, Any]
Pair = tuple[pd.Series, pd.Series]  # scores of members and of others, by name


class MembershipParams(StrictParams):
    """Section ``membership``. ``seed`` draws resamples, and whose references a patient never seen is compared with.

    ``false_positive_rates``: levels at which exposed patients are counted, each the share of patients never seen whom
    the attacker may call members.
    """

    seed: Seed
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    false_positive_rates: list[Fraction] = Field(default=[0.01, 0.1], min_length=1)

    @field_validator("false_positive_rates")
    @classmethod
    def _once(cls, given: list[float]) -> list[float]:
        if len(set(given)) < len(given):
            raise ValueError("each may stand there once")
        return sorted(given)


@dataclass(frozen=True)
class Outputs:
    """What a model says of n images, with the labels that it was, or would have been, trained on.

    Attributes:
        logits: (n, findings) float64.
        labels: (n, findings) 0, 1 or NaN.
        patients: (n,) names.
    """

    logits: FloatArray
    labels: FloatArray
    patients: NDArray[np.str_]

    @property
    def agreement(self) -> FloatArray:
        """(n, findings) logit of the probability given to the label, NaN where there is none."""
        return np.where(np.isnan(self.labels), np.nan, np.where(self.labels == 1, self.logits, -self.logits))


@dataclass(frozen=True)
class ClassScale:
    """Mean and standard deviation (2, findings) of each class's modified entropy; NaN where a class has one image."""

    mean: FloatArray
    spread: FloatArray


@dataclass(frozen=True)
class Trained:
    """A run under attack.

    Attributes:
        name: of the run.
        family: of its backbone and method, as evaluation names it with all labels.
        kind: what its label budget counts; runs of one family and kind can calibrate each other.
        budget: a share of the labels, or patients a class.
        all_labels: whether every training patient was annotated.
        labels: (N, findings) of the gathered images, 0, 1 or NaN, as it was trained on them.
        train: (n,) indices of the gathered images that it was trained on.
    """

    name: str
    family: str
    kind: Literal["fraction", "shots"]
    budget: float
    all_labels: bool
    labels: FloatArray
    train: NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """The images that attacks are judged on, with every run's logits by its name, (N or M, findings) float64.

    Attributes:
        patients: (N,) names, of the gathered images.
        train_side: (n,) indices of the gathered images that a run may be trained on.
        id_val: (v,) indices of the gathered images that select.
        logits: of the gathered images.
        other_patients: (M,) names, of id_test.
        other_labels: (M, findings) 0, 1 or NaN.
        other_logits: of id_test's images.
    """

    patients: NDArray[np.str_]
    train_side: NDArray[np.int64]
    id_val: NDArray[np.int64]
    logits: Mapping[str, FloatArray]
    other_patients: NDArray[np.str_]
    other_labels: FloatArray
    other_logits: Mapping[str, FloatArray]


@dataclass(frozen=True)
class Exposure:
    """Of members whom an attack finds at one level; NaN and None where undefined (``note``)."""

    true_positive_rate: float
    low: float
    high: float
    exposed_share: float
    exposed_at_least: int | None
    note: str = ""


def modified_entropy(agreement: FloatArray) -> FloatArray:
    """-2 (1 - p) log p of the probability p given to the label (Song & Mittal 2021, eq. 8, of two classes)."""
    return 2.0 * expit(-agreement) * _softplus(-agreement)


def _softplus(values: FloatArray) -> FloatArray:
    """log(1 + exp(x)), NaN where it is NaN (numpy would warn)."""
    known = ~np.isnan(values)
    return np.where(known, np.logaddexp(0.0, np.where(known, values, 0.0)), np.nan)


def class_scale(outputs: Outputs) -> ClassScale:
    """Of id_val's images."""
    values = modified_entropy(outputs.agreement)
    found = np.full((2, 2, values.shape[1]), np.nan)
    for label in (0, 1):
        for finding, column in enumerate(values.T):
            own = column[outputs.labels[:, finding] == label]
            if len(own) > 1 and own.std() > 0:
                found[:, label, finding] = own.mean(), own.std(ddof=1)
    return ClassScale(found[0], found[1])


def scores_of(outputs: Outputs, scale: ClassScale) -> dict[str, pd.Series]:
    """By attack without references, the score of each patient who has an annotated image, by name; higher is a member.

    Without a patient where ``scale`` lacks a class that the images have.
    """
    agreement = outputs.agreement
    size = np.abs(agreement)
    modified = modified_entropy(agreement)
    for label in (0, 1):
        own = outputs.labels == label
        # A class that id_val lacks makes NaN of its images, and below of the attack.
        modified = np.where(own, (modified - scale.mean[label]) / scale.spread[label], modified)
    scores = {
        LOSS: -_softplus(-agreement),
        ENTROPY: -(_softplus(-size) + size * expit(-size)),
        MODIFIED_ENTROPY: -modified,
    }
    lacking = bool((np.isnan(modified) & ~np.isnan(agreement)).any())
    return {
        name: of_patients(values, outputs.patients)[: 0 if name == MODIFIED_ENTROPY and lacking else None]
        for name, values in scores.items()
    }


def of_patients(values: FloatArray, patients: NDArray[np.str_]) -> pd.Series:
    """Each patient's mean over the (n, findings) that are not NaN, by name; who has none is left out."""
    names, codes = np.unique(patients, return_inverse=True)
    known = ~np.isnan(values)
    sums = np.bincount(codes, weights=np.where(known, values, 0.0).sum(axis=1), minlength=len(names))
    sizes = np.bincount(codes, weights=known.sum(axis=1), minlength=len(names))
    return pd.Series(sums[sizes > 0] / sizes[sizes > 0], index=names[sizes > 0], dtype=np.float64)


def references_of(budgets: Mapping[str, float], trained: Mapping[str, Collection[str]], run: str) -> list[str]:
    """Runs to calibrate an attack on ``run`` with: all of the largest budget, at most its own, that leave a member out.

    Args:
        budgets: of runs of the same backbone and method, a share of the labels or patients a class.
        trained: the patients that each was trained on.
        run: one of them.

    Returns:
        Their names in order; none where every other run was trained on all members.
    """
    members = set(trained[run])
    for budget in sorted({value for value in budgets.values() if value <= budgets[run]}, reverse=True):
        found = sorted(name for name, value in budgets.items() if value == budget and name != run)
        if any(members - set(trained[name]) for name in found):
            return found
    return []


def calibrated(
    own: pd.DataFrame, others: pd.DataFrame, run: str, trained: Mapping[str, Collection[str]], seed: int
) -> Pair:
    """Scores of members and of others: their agreement under ``run`` less its mean under references without them.

    A member is left out by some of the references alone. So each of the others gets, by lot, the references of some
    member: both means are of as many and the same models, and differ by the training alone. With all references for the
    others, the members' scores would vary more, and a few stand out by that.

    Args:
        own: the members' mean agreement under each run, by name of the patient (rows) and run (columns).
        others: the same of patients that no run was trained on.
        run: under attack.
        trained: per reference the patients that it was trained on.
        seed: of the lot, which hangs on a patient's name.

    Returns:
        Without the members who have no reference; empty where none has.
    """
    names = list(trained)
    without = np.array([[patient not in trained[name] for name in names] for patient in own.index], dtype=bool)
    known = without.reshape(len(own), len(names)).any(axis=1)
    own, without = own[known], without[known]
    if not len(own):
        return own[run], others[run].head(0)
    drawn = without[[int(uniform(seed, "references", str(patient)) * len(without)) for patient in others.index]]

    def less(frame: pd.DataFrame, used: NDArray[np.bool_]) -> pd.Series:
        values = frame[names].to_numpy(np.float64)
        return frame[run] - (values * used).sum(axis=1) / used.sum(axis=1)

    return less(own, without), less(others, drawn)


def separation(pairs: Sequence[Pair], counts: CountArray, rows: Mapping[str, int]) -> Estimate:
    """AUROC of members against others, mean over runs, for ``metrics.intervals.interval``.

    Args:
        pairs: of each run the scores of members and of others, by name; neither is empty.
        counts: (num_patients, resamples) as ``intervals.patient_counts``.
        rows: of each patient the row in ``counts``.
    """
    values, draws = [], []
    for members, others in pairs:
        truth: IntArray = np.repeat([1, 0], [len(members), len(others)])
        scores = np.concatenate([members.to_numpy(np.float64), others.to_numpy(np.float64)])
        codes = np.array([rows[str(name)] for name in [*members.index, *others.index]], dtype=np.int64)
        values.append(auroc(truth, scores, np.ones((1, len(truth))))[0])
        draws.append(resampled_auroc(truth, scores, counts, codes))
    fewest = min(min(len(members), len(others)) for members, others in pairs)
    return over_seeds(np.array(values), np.stack(draws), fewest)


def exposure(members: FloatArray, others: FloatArray, rate: float) -> Exposure:
    """Whom an attacker finds who calls those members that score above all but a share ``rate`` of patients never seen.

    The threshold is the j-th largest of the n others, j = floor(rate (n + 1)): another patient never seen exceeds it
    with probability j / (n + 1), at most ``rate``. A share t of the members exceeds it; j / (n + 1) of those who look
    like patients never seen would, so that the share that does not look like them, *exposed*, is at least
    (t - j / (n + 1)) / (1 - j / (n + 1)).

    The limits hold for any distribution: a threshold whose own rate is below (above) ``rate`` with confidence, by the
    beta distribution of order statistics, and there Clopper and Pearson's limit on the members, half of the doubt for
    each. With few patients never seen no threshold is that sure, and the lower limit is 0. ``exposed_at_least`` is the
    lower limit, one-sided at ``CONFIDENCE``, of the exposed share, times the members, rounded down.

    Args:
        members: (m,) scores.
        others: (n,) scores.
        rate: 0 to 1.
    """
    m, n = len(members), len(others)
    if not m or not n:
        none = float("nan")
        return Exposure(none, none, none, none, None, "no patients on a side")
    descending = np.sort(others)[::-1]
    doubt = 1.0 - CONFIDENCE
    low, high = _lowest(members, descending, rate, doubt / 2), _highest(members, descending, rate, doubt / 2)
    sure = max(0.0, (_lowest(members, descending, rate, doubt) - rate) / (1.0 - rate))
    at_least = int(np.floor(sure * m + 1e-9))
    # 1e-9: 0.1 * 10 may come out below 1.
    place = int(np.floor(rate * (n + 1) + 1e-9))
    if place < 1:
        needed = int(np.ceil(1.0 / rate - 1e-9)) - 1
        note = f"{n} patients never seen; a threshold at this rate needs {needed}"
        return Exposure(float("nan"), low, high, float("nan"), at_least, note)
    found = float(np.mean(members > descending[place - 1]))
    chance = place / (n + 1)
    return Exposure(found, low, high, max(0.0, (found - chance) / (1.0 - chance)), at_least)


def _lowest(members: FloatArray, descending: FloatArray, rate: float, doubt: float) -> float:
    """Lower limit of the share of members beyond the others' quantile; 0 where no threshold is surely beyond it."""
    n, places = len(descending), np.arange(1, len(descending) + 1)
    # The j-th largest of n is exceeded by a further one with a probability that is Beta(j, n + 1 - j).
    sure = places[beta.cdf(rate, places, n + 1 - places) >= 1.0 - doubt / 2]
    if not len(sure):
        return 0.0
    above = int((members > descending[sure[-1] - 1]).sum())
    return float(beta.ppf(doubt / 2, above, len(members) - above + 1)) if above else 0.0


def _highest(members: FloatArray, descending: FloatArray, rate: float, doubt: float) -> float:
    """Upper limit; 1 where no threshold is surely short of the quantile."""
    n, places = len(descending), np.arange(1, len(descending) + 1)
    sure = places[beta.sf(rate, places, n + 1 - places) >= 1.0 - doubt / 2]
    if not len(sure):
        return 1.0
    above = int((members >= descending[sure[0] - 1]).sum())
    return float(beta.ppf(1.0 - doubt / 2, above + 1, len(members) - above)) if above < len(members) else 1.0


def audit(runs: Sequence[Trained], images: Images, params: MembershipParams) -> tuple[list[Row], list[Row]]:
    """Rows of ``tables.membership.MembershipAttacks`` (runs, then families) and ``MembershipExposures`` (runs).

    Args:
        runs: all of them, of any family.
        images: with the logits of all runs.
        params: the section.
    """
    names = sorted({*images.patients.tolist(), *images.other_patients.tolist()})
    counts, rows = patient_counts(names, params.resamples, params.seed), {name: i for i, name in enumerate(names)}
    trained = {run.name: frozenset(_annotated(run, images)) for run in runs}
    attacks, exposures = [], []
    whole: dict[tuple[str, str], list[Pair]] = {}
    left_out: dict[tuple[str, str], list[Pair]] = {}
    for run in runs:
        budgets = {other.name: other.budget for other in runs if (other.family, other.kind) == (run.family, run.kind)}
        references = references_of(budgets, trained, run.name)
        members, controls, notes = attack(run, images, {name: trained[name] for name in references}, params.seed)
        for name in ATTACKS:
            pair, control = members[name], controls[name]
            number = len(references) if name == CALIBRATED else 0
            row = {"run": run.name, "attack": name, "num_references": number}
            attacks.append(row | _judged([pair], [control], notes[name], counts, rows))
            base = {"run": run.name, "attack": name}
            exposures += [base | _exposed(pair, rate, notes[name]) for rate in params.false_positive_rates]
            key = (run.family, name)
            if run.all_labels:
                whole.setdefault(key, []).append(pair)
            left_out.setdefault(key, []).append(control)
    of_one = {(row["run"], row["attack"]): row for row in attacks}
    for (family, name), pairs in whole.items():
        mine = [of_one[run.name, name] for run in runs if run.family == family and run.all_labels]
        # Where a run has no value none of its family has.
        note = str(mine[0]["note"]) if mine[0].get("auroc") is None else ""
        row = {"run": family, "attack": name, "num_references": mine[0]["num_references"]}
        attacks.append(row | _judged(pairs, left_out[family, name], note, counts, rows))
    return attacks, exposures


def attack(
    run: Trained, images: Images, references: Mapping[str, Collection[str]], seed: int
) -> tuple[dict[str, Pair], dict[str, Pair], dict[str, str]]:
    """By attack: scores of members and others, of left-out patients and others, and why there are none ("").

    Args:
        run: under attack.
        images: with logits.
        references: by name the patients that each reference run was trained on.
        seed: see ``calibrated``.
    """
    mine = set(images.patients[run.train].tolist())
    away = images.train_side[[name not in mine for name in images.patients[images.train_side].tolist()]]

    def seen(where: NDArray[np.int64], name: str) -> Outputs:
        return Outputs(images.logits[name][where], run.labels[where], images.patients[where])

    def unseen(name: str) -> Outputs:
        return Outputs(images.other_logits[name], images.other_labels, images.other_patients)

    scale = class_scale(seen(images.id_val, run.name))
    members, controls, others = (
        scores_of(outputs, scale) for outputs in (seen(run.train, run.name), seen(away, run.name), unseen(run.name))
    )
    pairs = {name: (members[name], others[name]) for name in others}
    against = {name: (controls[name], others[name]) for name in others}
    used = [run.name, *references]
    below = pd.DataFrame({name: of_patients(unseen(name).agreement, images.other_patients) for name in used})
    for where, found in ((run.train, pairs), (away, against)):
        own = {name: of_patients(seen(where, name).agreement, images.patients[where]) for name in used}
        found[CALIBRATED] = calibrated(pd.DataFrame(own), below, run.name, references, seed)
    notes = dict.fromkeys(ATTACKS, "")
    if not len(others[MODIFIED_ENTROPY]):
        notes[MODIFIED_ENTROPY] = "id_val lacks a class, or varies in none"
    if not references:
        notes[CALIBRATED] = "no run of this network and method left a training patient out"
    return pairs, against, notes


def _annotated(run: Trained, images: Images) -> list[str]:
    known = ~np.isnan(run.labels[run.train]).all(axis=1)
    return list(images.patients[run.train][known].tolist())


def _judged(
    pairs: Sequence[Pair], controls: Sequence[Pair], note: str, counts: CountArray, rows: Mapping[str, int]
) -> Row:
    """The columns of a row that are not its name."""
    sizes = [(len(members), len(others)) for members, others in pairs]
    controls = [pair for pair in controls if len(pair[0]) and len(pair[1])]
    row: Row = {
        "num_runs": len(pairs),
        "num_members": max(members for members, _ in sizes),
        "num_others": max(others for _, others in sizes),
        "num_controls": max((len(own) for own, _ in controls), default=0),
    }
    notes = [note]
    if not note and not all(map(all, sizes)):
        notes = ["no annotated patient on a side"]
    elif not note:
        estimate = separation(pairs, counts, rows)
        made = interval(estimate, "logit", CONFIDENCE, exact=True)
        row |= {"auroc": estimate.value, "ci_low": made.low, "ci_high": made.high, "interval": made.text}
        notes = [made.note]
    if controls:
        estimate = separation(controls, counts, rows)
        made = interval(estimate, "logit", CONFIDENCE, exact=True)
        row |= {"control": estimate.value, "control_low": made.low, "control_high": made.high}
        notes.append(f"control: {made.note}" if made.note else "")
    return row | {"note": "; ".join(text for text in notes if text)}


def _exposed(pair: Pair, rate: float, note: str) -> Row:
    members, others = (side.to_numpy(np.float64) for side in pair)
    found = exposure(members, others, rate)
    return {
        "false_positive_rate": rate,
        "true_positive_rate": found.true_positive_rate,
        "ci_low": found.low,
        "ci_high": found.high,
        "exposed_share": found.exposed_share,
        "exposed_at_least": found.exposed_at_least,
        "num_members": len(members),
        "num_others": len(others),
        "note": note or found.note,
    }
