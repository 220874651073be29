"""The target's prevalence by maximum likelihood from unlabelled logits, under label shift.

Saerens M, Latinne P, Decaestecker C. Adjusting the outputs of a classifier to new a priori probabilities. Neural
Computation 2002; 14: 21, on probabilities that were calibrated on the source before (Alexandari A, Kundaje A,
Shrikumar A. Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation. ICML 2020).
With two classes their bias-corrected temperature scaling is Platt's.

It assumes that images of a class look alike in both hospitals. Where they do not, the estimate is wrong, and nothing
in unlabelled logits says so.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit

Doubles = npt.NDArray[np.float64]
NAN = float("nan")

_LARGEST_LOGIT = 30.0  # beyond, exp - 1 of the negative is -1, and a likelihood 0
_NEWTON_STEPS, _CONVERGED = 100, 1e-9
_RIDGE = 1e-12  # for images that are all alike


@dataclass(frozen=True)
class Estimate:
    """Calibration on the source, and both prevalences.

    Attributes:
        slope: of the calibrated logit in the plain one.
        intercept: likewise.
        source: prevalence of the source's validation.
        target: prevalence of the target, NaN where ``reason`` says why.
        interval: 95 % of ``target``, by resampling patients.
        change: 95 % of ``target`` - ``source``.
        reason: why there is no estimate; empty where there is one.
    """

    slope: float = NAN
    intercept: float = NAN
    source: float = NAN
    target: float = NAN
    interval: tuple[float, float] = (NAN, NAN)
    change: tuple[float, float] = (NAN, NAN)
    reason: str = ""


def estimate(
    logits: Doubles, labels: Doubles, patients: npt.NDArray[Any],
    target_logits: Doubles, target_patients: npt.NDArray[Any], resamples: int, seed: int,
) -> Estimate:  # fmt: skip
    """The target's prevalence with an interval that counts the source's images as a sample too.

    Args:
        logits: (n,) of the source.
        labels: (n,) 0, 1 or NaN, which is left out.
        patients: (n,) names.
        target_logits: (m,).
        target_patients: (m,) names.
        resamples: of patients, on both sides.
        seed: of the resamples.
    """
    known = ~np.isnan(labels)
    logits, labels, patients = logits[known], labels[known], patients[known]
    positives = int(labels.sum())
    if not 0 < positives < len(labels):
        return Estimate(reason=f"the source's validation has {positives} positive of {len(labels)} annotated images")
    slope, intercept, prevalence = platt(logits, labels, np.ones(len(labels)))
    if not slope > 0:
        return Estimate(source=prevalence, reason="on the source's validation the logits do not rise with the label")
    target = maximum_likelihood(slope * target_logits + intercept, prevalence)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        weights = _resampled(patients, rng)
        a, b, home = platt(logits, labels, weights)
        drawn = _resampled(target_patients, rng)
        draws.append((maximum_likelihood(a * target_logits + b, home, drawn), home))
    away, home_draws = np.array(draws).T
    low, high = np.quantile(away, [0.025, 0.975])
    less, more = np.quantile(away - home_draws, [0.025, 0.975])
    return Estimate(slope, intercept, prevalence, target, (float(low), float(high)), (float(less), float(more)))


def platt(logits: Doubles, labels: Doubles, weights: Doubles) -> tuple[float, float, float]:
    """Slope and intercept of the calibrated logit, and its mean probability (the prevalence).

    By maximum likelihood of Platt's smoothed labels, for which it is finite even where the classes do not overlap
    (Platt J. Probabilistic Outputs for Support Vector Machines. 1999).

    Args:
        logits: (n,).
        labels: (n,) 0 or 1.
        weights: (n,) how often each counts.
    """
    positives = float(weights @ labels)
    negatives = float(weights.sum()) - positives
    smooth = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    prevalence = float(weights @ smooth / weights.sum())
    spread = logits.std()
    if spread == 0.0:
        return 0.0, float(logit(prevalence)), prevalence
    design = np.stack([logits / spread, np.ones(len(logits))])
    share = weights / weights.sum()

    def loss(at: Doubles) -> float:
        line = at @ design
        return float(share @ (np.logaddexp(0.0, line) - smooth * line))

    # Newton's method, a step halved where the convex loss would rise: a general optimiser takes 20 times as long.
    found = np.array([0.0, logit(prevalence)])
    for _ in range(_NEWTON_STEPS):
        p = expit(found @ design)
        curvature = (design * (share * p * (1 - p))) @ design.T + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, design @ (share * (p - smooth)))
        before = loss(found)
        while loss(found - step) > before and np.abs(step).max() > _CONVERGED:
            step /= 2
        found = found - step
        if np.abs(step).max() <= _CONVERGED:
            break
    return float(found[0] / spread), float(found[1]), prevalence


def maximum_likelihood(logits: Doubles, source: float, weights: Doubles | None = None) -> float:
    """The prevalence at which unlabelled images are most likely: where Saerens' EM iteration converges.

    The likelihood of sum log(p r1 + (1 - p) r0) is concave in p, with r1 / r0 the likelihood ratio that a calibrated
    logit is, after the source's prior is taken off; the root of its derivative is found instead of iterating.

    Args:
        logits: (n,) calibrated on the source.
        source: its prevalence, in (0, 1).
        weights: (n,) how often each image counts; once if None.

    Returns:
        In [0, 1]; 0 or 1 where the likelihood is highest there; NaN where all images are equally likely under both
        classes, or there are none.
    """
    odds = np.expm1(np.clip(logits - logit(source), -_LARGEST_LOGIT, _LARGEST_LOGIT))
    counts = np.ones(len(odds)) if weights is None else weights

    def slope(prevalence: float) -> float:
        return float(counts @ (odds / (1.0 + prevalence * odds)))

    if not np.any(odds * counts):
        return NAN
    if slope(0.0) <= 0.0:
        return 0.0
    if slope(1.0) >= 0.0:
        return 1.0
    return float(brentq(slope, 0.0, 1.0, xtol=1e-12))


def _resampled(patients: npt.NDArray[Any], rng: np.random.Generator) -> Doubles:
    """(n,) how often each image is in a sample of as many patients, drawn with replacement."""
    names, code = np.unique(patients, return_inverse=True)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[code].astype(np.float64)
