"""A target's prevalence from a model's scores, without its labels, should p(x | y) be the source's (label shift).

Black-box shift estimation (Lipton et al. 2018, ICML, "Detecting and Correcting for Label Shift with Black Box
Predictors"), with the calibrated probability s in the place of the hard prediction: under label shift
E_target[s] = q E_source[s | 1] + (1 - q) E_source[s | 0]. It needs s to separate the classes, and nothing else of it;
calibration only makes it efficient.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import t as student_t
from sklearn.linear_model import LogisticRegression

from pipeline.metrics.intervals import bootstrap, patient_counts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]

LEAST_PATIENTS = 4  # a side (and of each class at home), below which nothing is estimated or tested
_GRID = np.linspace(0.0, 1.0, 1001)  # of prevalences that an interval is read off
_CHUNK = 512  # permutations held at once


@dataclass(frozen=True)
class Scores:
    """A model on source images with labels and on target images without.

    Attributes:
        logits: (N,) float64 of the source.
        labels: (N,) 0 or 1.
        patients: (N,) names.
        target_logits: (M,) float64.
        target_patients: (M,) names.
        target_labels: (M,) 0, 1 or NaN; None where they may not be looked at.
        ids: (N,) image_id, by which a backbone's features are found; None where there are none.
        target_ids: (M,), likewise.
    """

    logits: FloatArray
    labels: IntArray
    patients: NDArray[Any]
    target_logits: FloatArray
    target_patients: NDArray[Any]
    target_labels: FloatArray | None = None
    ids: NDArray[Any] | None = None
    target_ids: NDArray[Any] | None = None

    @property
    def refusal(self) -> str:
        """Why nothing can be said; "" where it can."""
        positive, negative = (len(set(self.patients[self.labels == label])) for label in (1, 0))
        counts = {"source patients with a positive image": positive, "with a negative one": negative}
        counts["target patients with predictions"] = len(set(self.target_patients))
        few = [f"{count} {name}" for name, count in counts.items() if count < LEAST_PATIENTS]
        return f"needs {LEAST_PATIENTS} each; there are {', '.join(few)}" if few else ""


@dataclass(frozen=True)
class PrevalenceEstimate:
    """What a confidence set for the target's prevalence is made of.

    Attributes:
        source: the source's prevalence.
        means: mean of s in the target, the source's positives and its negatives.
        covariance: (3, 3) of ``means``, by patients.
        patients: in the smallest of the three groups.
    """

    source: float
    means: FloatArray
    covariance: FloatArray
    patients: int

    @property
    def value(self) -> float:
        """The target's prevalence, cut off at 0 and 1; NaN where s does not rise from negatives to positives."""
        target, positive, negative = self.means
        if positive <= negative:
            return float("nan")
        return float(np.clip((target - negative) / (positive - negative), 0.0, 1.0))

    def confidence_set(self, confidence: float) -> tuple[float, float]:
        """Limits of the prevalences q with which the means are compatible, from 0 to 1.

        By inversion of the test of E_target[s] = q E[s | 1] + (1 - q) E[s | 0] (Fieller 1954): valid, and as wide as
        0 to 1, where s hardly separates the classes. NaN where no q will do: s goes beyond what any mixture gives.
        """
        weights = np.stack([np.ones_like(_GRID), -_GRID, _GRID - 1.0], axis=1)
        error = np.sqrt(np.einsum("qi,ij,qj->q", weights, self.covariance, weights))
        half = student_t.ppf((1 + confidence) / 2, self.patients - 1) * error
        kept = _GRID[np.abs(weights @ self.means) <= half]
        return (float(kept[0]), float(kept[-1])) if len(kept) else (float("nan"), float("nan"))


def calibrated(logits: FloatArray, labels: IntArray, others: FloatArray) -> FloatArray:
    """Log odds for ``others`` by logistic regression of ``labels`` on ``logits`` (Platt 1999), lightly penalised.

    Args:
        logits: (N,) of the source.
        labels: (N,) 0 or 1, both present.
        others: (M,) to be mapped.
    """
    centre, spread = logits.mean(), logits.std() or 1.0
    model = LogisticRegression(C=100.0, solver="newton-cholesky").fit(((logits - centre) / spread)[:, None], labels)
    return np.asarray(model.decision_function(((others - centre) / spread)[:, None]), dtype=np.float64)


def estimate_prevalence(scores: Scores, *, resamples: int, seed: int) -> PrevalenceEstimate:
    """The target's prevalence; a bootstrap of patients over both sides says how sure (see ``metrics.intervals``).

    Args:
        scores: with no ``refusal``.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    s, s_target = _probabilities(scores)
    every = np.ones(len(s_target), dtype=bool)
    sides = (
        (s_target, scores.target_patients, (every,)),
        (s, scores.patients, (scores.labels == 1, scores.labels == 0)),
    )
    draws, means, sizes = [], [], []
    for values, patients, groups in sides:
        # All patients of a side: one with both labels is drawn alike for both.
        names, codes = np.unique(patients, return_inverse=True)
        counts = patient_counts(list(names), resamples, seed)
        for chosen in groups:
            draws.append(bootstrap(_mean_of(np.where(chosen, values, 0.0), chosen), counts, codes))
            means.append(values[chosen].mean())
            sizes.append(len(set(patients[chosen])))
    drawn, fewest = np.stack(draws), min(sizes)
    # LEAST_PATIENTS are all left out of e^-4 = 1.8 % of the resamples.
    defined = np.isfinite(drawn).all(axis=0)
    covariance = np.cov(drawn[:, defined]) * fewest / (fewest - 1)
    return PrevalenceEstimate(float(scores.labels.mean()), np.array(means), covariance, fewest)


def compare_prevalence(scores: Scores, *, permutations: int, seed: int) -> tuple[float, float]:
    """Difference of the mean of s, target less source, and p-value of "the prevalence is the source's".

    By permutation of patients between the sides: under label shift with an unchanged prevalence both are one sample.

    Args:
        scores: with no ``refusal``.
        permutations: how many.
        seed: of the permutations.
    """
    s, s_target = _probabilities(scores)
    return compare_means(s, scores.patients, s_target, scores.target_patients, permutations=permutations, seed=seed)


def compare_means(
    before: FloatArray, patients: NDArray[Any], now: FloatArray, patients_now: NDArray[Any], *, permutations: int,
    seed: int,
) -> tuple[float, float]:  # fmt: skip
    """Difference of means over images, now less before, and its p-value under exchange of patients between the sides.

    Args:
        before: (N,) values of images.
        patients: (N,) names.
        now: (M,).
        patients_now: (M,) names, none of them on the other side.
        permutations: how many.
        seed: of the permutations.
    """
    sums: list[FloatArray] = []
    sizes: list[IntArray] = []
    for values, names in ((now, patients_now), (before, patients)):
        codes = np.unique(names, return_inverse=True)[1]
        sums.append(np.bincount(codes, weights=values).astype(np.float64))
        sizes.append(np.bincount(codes))
    total, size = np.concatenate(sums), np.concatenate(sizes).astype(np.float64)
    first = (np.arange(len(total)) < len(sums[0])).astype(np.float64)
    value = float(_difference(total, size, first[None])[0])
    rng, reached = np.random.default_rng(seed), 0
    for start in range(0, permutations, _CHUNK):
        sides = rng.permuted(np.tile(first, (min(_CHUNK, permutations - start), 1)), axis=1)
        reached += int((np.abs(_difference(total, size, sides)) >= abs(value) - 1e-12).sum())
    return value, (1 + reached) / (1 + permutations)


def matched_rows(labels: IntArray, patients: NDArray[Any], prevalence: float, seed: int) -> NDArray[np.int64]:
    """Rows in rising order whose labels have the wanted prevalence: as many as there are, whole patients by lot.

    Args:
        labels: (N,) 0 or 1.
        patients: (N,) names.
        prevalence: 0 to 1.
        seed: of the lot.
    """
    names, codes = np.unique(patients, return_inverse=True)
    turn = np.random.default_rng(seed).permutation(len(names))[codes]
    by_turn = np.argsort(turn, kind="stable")
    positive, negative = (by_turn[labels[by_turn] == label] for label in (1, 0))
    # n positives and m negatives with n / (n + m) = prevalence, one of them all that there are.
    size = min(
        len(positive) / prevalence if prevalence > 0 else np.inf,
        len(negative) / (1 - prevalence) if prevalence < 1 else np.inf,
    )
    num = round(size * prevalence)
    return np.sort(np.concatenate([positive[:num], negative[: round(size) - num]]))


def _probabilities(scores: Scores) -> tuple[FloatArray, FloatArray]:
    both = np.concatenate([scores.logits, scores.target_logits])
    s = expit(calibrated(scores.logits, scores.labels, both))
    return s[: len(scores.logits)], s[len(scores.logits) :]


def _mean_of(values: FloatArray, chosen: NDArray[np.bool_]) -> Any:
    def mean(weights: FloatArray) -> FloatArray:
        taken = weights @ chosen.astype(np.float64)
        return np.divide(weights @ values, taken, out=np.full(len(weights), np.nan), where=taken > 0)

    return mean


def _difference(sums: FloatArray, sizes: FloatArray, sides: FloatArray) -> FloatArray:
    """(B,) for ``sides`` (B, P): mean on the side marked 1 less the mean on the other."""
    inside, images = sides @ sums, sides @ sizes
    return inside / images - (sums.sum() - inside) / (sizes.sum() - images)
