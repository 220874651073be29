"""Weighted metrics of one finding: pure functions, vectorised over resamples.

Each takes ``labels`` (n,) in {0, 1}, ``logits`` (n,) float64 finite, ``weights`` (b, n) float64, non-negative,
and gives (b,) float64: row i is the metric of the images taken ``weights[i]`` times each. An integer weight is
the same as a repeated row. NaN where a row leaves the metric undefined (no positive, no negative, no finite
estimate): never 0, never the last iterate. Probabilities are the logistic function of the logits; ranks are
taken on the logits, which still differ where probabilities have saturated.

``METRICS`` lists them, ``metrics_at`` those at stated prevalences and threshold probabilities too. A new metric is one
function and one row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]

Needs = Literal["both", "positives", "negatives", "any"]
Scale = Literal["logit", "log", "identity"]

MAX_ITERATIONS = 100
CONVERGED = 1e-5  # relative length of a Newton step, the error after which is about its square
IMAGES_PER_BIN = 10  # ECE: fewer bins rather than emptier ones


def auroc(labels: IntArray, logits: FloatArray, weights: FloatArray) -> FloatArray:
    """Probability that a positive image scores above a negative one, ties counting half (Hanley & McNeil 1982)."""
    positives, negatives = _by_score(labels, logits)
    below = _cumulative(weights[:, negatives])
    scores = logits[positives]
    low = np.searchsorted(logits[negatives], scores, side="left")
    high = np.searchsorted(logits[negatives], scores, side="right")
    taken = weights[:, positives]
    wins = 0.5 * np.einsum("bn,bn->b", taken, below[:, low] + below[:, high])
    return _ratio(wins, taken.sum(axis=1) * below[:, -1])


def average_precision(labels: IntArray, logits: FloatArray, weights: FloatArray) -> FloatArray:
    """Step-wise area under precision against recall, sum over distinct scores of (R_k - R_(k-1)) P_k.

    scikit-learn's definition, without interpolation (Davis & Goadrich 2006 say why linear interpolation
    flatters). Undefined without negatives too, where it would be 1 for any model.
    """
    positives, negatives = _by_score(labels, logits)
    taken = weights[:, positives]
    # Counted from the top: all positives and negatives with at least this score, ties included.
    true_positives = _from_above(_cumulative(taken), np.searchsorted(logits[positives], logits[positives], "left"))
    others = _cumulative(weights[:, negatives])
    false_positives = _from_above(others, np.searchsorted(logits[negatives], logits[positives], "left"))
    called = true_positives + false_positives
    precision = np.divide(true_positives, called, out=np.zeros_like(called), where=called > 0)
    total = taken.sum(axis=1)
    return np.where(others[:, -1] > 0, _ratio(np.einsum("bn,bn->b", taken, precision), total), np.nan)


def brier(labels: IntArray, logits: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean squared difference of probability and label (Brier 1950)."""
    return _mean((expit(logits) - labels) ** 2, weights)


def brier_calibration(labels: IntArray, logits: FloatArray, weights: FloatArray) -> FloatArray:
    """What monotone recalibration would take off the Brier score: ``brier`` less ``brier_refinement``, at least 0.

    The miscalibration of the CORP decomposition (Dimitriadis, Gneiting & Jordan 2021, PNAS 118:e2016191118), without
    bins. The recalibration is fitted to the images that it is judged on: few images overfit, and a calibrated model
    is above 0 too. No interval: at the floor of 0, and with images repeated, the bootstrap is not valid.
    """
    return np.maximum(brier(labels, logits, weights) - brier_refinement(labels, logits, weights), 0.0)


def brier_refinement(labels: IntArray, logits: FloatArray, weights: FloatArray) -> FloatArray:
    """Brier score of the best monotone recalibration on these images (isotonic regression of the label on the score).

    In CORP's words uncertainty less discrimination: y(1 - y) for a score that tells nothing, y the mean label, and 0
    for one that separates the classes. With ``brier_calibration`` it sums to ``brier``.
    """
    _, group = np.unique(logits, return_inverse=True)
    return np.array([_refinement_of_row(labels, group, row) for row in weights], dtype=np.float64)


def log_loss(labels: IntArray, logits: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean negative log likelihood in nats, from the logits: finite where a probability has rounded to 0 or 1."""
    return _mean(np.logaddexp(0.0, logits) - labels * logits, weights)


def prevalence(labels: IntArray, logits: FloatArray, weights: FloatArray) -> FloatArray:  # noqa: ARG001 (one signature for all)
    """Share of positive images."""
    return _mean(labels.astype(np.float64), weights)


def sensitivity_at(labels: IntArray, logits: FloatArray, weights: FloatArray, threshold: float) -> FloatArray:
    """Share of the positive images whose probability is at least ``threshold``; NaN if that is NaN."""
    return _mean(_called(logits, threshold)[labels == 1], weights[:, labels == 1])


def specificity_at(labels: IntArray, logits: FloatArray, weights: FloatArray, threshold: float) -> FloatArray:
    """Share of the negative images whose probability is below ``threshold``; NaN if that is NaN."""
    return _mean(1.0 - _called(logits, threshold)[labels == 0], weights[:, labels == 0])


def predictive_value_positive(
    labels: IntArray, logits: FloatArray, weights: FloatArray, threshold: float, prevalence: float
) -> FloatArray:
    """Share of the diseased among those called positive, were ``prevalence`` of all diseased (Bayes' theorem).

    Of sensitivity and specificity here, so that it does not hang on how many diseased this sample happens to hold
    (Mercaldo, Lau & Zhou 2007, Stat Med 26:2170, with the logit scale). NaN where none is called positive, and at a
    prevalence of 0, 1 or NaN.
    """
    diseased = prevalence * sensitivity_at(labels, logits, weights, threshold)
    healthy = (1.0 - prevalence) * (1.0 - specificity_at(labels, logits, weights, threshold))
    return _ratio(diseased, diseased + healthy) if 0 < prevalence < 1 else np.full(len(weights), np.nan)


def predictive_value_negative(
    labels: IntArray, logits: FloatArray, weights: FloatArray, threshold: float, prevalence: float
) -> FloatArray:
    """Share of the healthy among those called negative, were ``prevalence`` of all diseased; as the positive one."""
    healthy = (1.0 - prevalence) * specificity_at(labels, logits, weights, threshold)
    diseased = prevalence * (1.0 - sensitivity_at(labels, logits, weights, threshold))
    return _ratio(healthy, healthy + diseased) if 0 < prevalence < 1 else np.full(len(weights), np.nan)


def net_benefit(labels: IntArray, logits: FloatArray, weights: FloatArray, threshold: float) -> FloatArray:
    """True positives less false ones at the threshold's odds, per image (Vickers & Elkin 2006, Med Decis Mak 26:565).

    TP/n - FP/n * t/(1 - t), t the ``threshold`` on the probability: whoever calls positive at t counts a false positive
    as t/(1 - t) of a true one. To be held against ``net_benefit_all`` and against 0, the benefit of calling none. The
    share of the diseased is this sample's.
    """
    called = _called(logits, threshold)
    # At a threshold above 1 none is called.
    odds = threshold / (1.0 - threshold) if threshold < 1 else 0.0
    return _mean(np.where(labels == 1, called, -odds * called), weights)


def net_benefit_all(labels: IntArray, logits: FloatArray, weights: FloatArray, threshold: float) -> FloatArray:
    """``net_benefit`` of calling every image positive; NaN at a threshold of 1 and above."""
    everyone = np.full_like(logits, np.inf)
    return net_benefit(labels, everyone, weights, threshold if threshold < 1 else float("nan"))


def calibration_slope(labels: IntArray, logits: FloatArray, weights: FloatArray) -> FloatArray:
    """Slope b of logit P(y=1) = a + b * logit, both fitted: 1 is right, below 1 says overconfident.

    The "weak calibration" of Van Calster et al. 2016 (J Clin Epidemiol 74:167), by maximum likelihood. A finite
    estimate exists exactly where the two classes' scores overlap (Albert & Anderson 1984), which with one
    predictor is tested directly; elsewhere, and where Newton's method has not converged, NaN.
    """
    slope = np.full(len(weights), np.nan)
    found = np.flatnonzero(_overlap(labels, logits, weights))
    if len(found):
        # Standardised, so that one tolerance fits all logits.
        spread = float(logits.std())
        x = (logits - logits.mean()) / spread
        # From 0 no probability has saturated; the resamples start from what fits them all together.
        together = _fit_line(labels, x, weights[found].mean(axis=0, keepdims=True), np.zeros((1, 2)))
        start = np.nan_to_num(np.tile(together, (len(found), 1)))
        slope[found] = _fit_line(labels, x, weights[found], start)[:, 1] / spread
    return slope


def calibration_intercept(labels: IntArray, logits: FloatArray, weights: FloatArray) -> FloatArray:
    """Calibration in the large: a of logit P(y=1) = a + logit, the slope held at 1 (Van Calster et al. 2016).

    0 is right, below 0 says that risks are overestimated on average. Maximum likelihood; finite wherever both
    classes have weight.
    """
    mean_label = _mean(labels.astype(np.float64), weights)
    intercept = np.full(len(weights), np.nan)
    found = np.flatnonzero((mean_label > 0) & (mean_label < 1))
    if len(found):
        shares = weights[found] / weights[found].sum(axis=1, keepdims=True)
        together = _fit_shift(labels, logits, shares.mean(axis=0, keepdims=True), np.zeros(1))
        intercept[found] = _fit_shift(labels, logits, shares, np.nan_to_num(np.tile(together, len(found))))
    return intercept


def ece(labels: IntArray, logits: FloatArray, weights: FloatArray, ece_bins: int = 15) -> FloatArray:
    """Expected calibration error, root mean square over bins of equal mass, debiased (Kumar et al. 2019, sec. 4).

    sqrt(max(0, sum_k n_k/n * [(mean p_k - mean y_k)^2 - mean y_k (1 - mean y_k) / (n_k - 1)])): the second term
    is the expected square of the sampling noise, which the plain ECE counts as miscalibration (Roelofs et al.
    2022 recommend equal mass and debiasing). ``ece_bins`` bins, fewer where a bin would hold under
    ``IMAGES_PER_BIN`` images; equal scores stay in one bin; a bin of one image has no variance estimate, and
    its noise is then taken as the largest, 1/4. The debiasing takes images as independent: with several images
    a patient some noise remains. No interval: the square root's floor at 0 defeats the bootstrap.
    """
    return np.array([_ece_of_row(labels, logits, row, ece_bins) for row in weights], dtype=np.float64)


def equal_mass_bins(scores: FloatArray, weights: FloatArray, bins: int) -> IntArray:
    """Bin of each score, (n,) in 0..bins-1: equal scores share the bin in which the middle of their mass lies.

    Args:
        scores: (n,) float64.
        weights: (n,) float64, not all 0.
        bins: how many; some stay empty where many scores are equal.
    """
    _, group = np.unique(scores, return_inverse=True)
    mass = np.bincount(group, weights=weights)
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    return np.minimum((middle * bins).astype(np.int64), bins - 1)[group]


def threshold_at_specificity(labels: IntArray, logits: FloatArray, specificity: float) -> tuple[float, float]:
    """The lowest threshold on the probability with at least the wanted specificity, and the specificity reached.

    An image is called positive at or above it. Put halfway to the next higher probability seen, so that
    rounding on another machine does not flip the image on the edge. NaN, NaN without negatives.
    """
    probabilities = expit(logits)
    negatives = np.sort(probabilities[labels == 0])
    if not len(negatives):
        return float("nan"), float("nan")
    # -1e-9: 0.9 * 10 may come out above 9.
    edge = negatives[max(int(np.ceil(specificity * len(negatives) - 1e-9)), 1) - 1]
    above = probabilities[probabilities > edge]
    threshold = (edge + above.min()) / 2 if len(above) else np.nextafter(edge, 2.0)
    if threshold <= edge:  # neighbouring floating point numbers
        threshold = above.min()
    return float(threshold), float(np.mean(negatives < threshold))


@dataclass(frozen=True)
class Metric:
    """A row of ``METRICS``.

    ``needs`` says which class must be there; ``scale`` is where the interval is symmetric; ``extra`` names
    the function's further arguments; ``higher_is_better`` is None where the best value lies inside;
    ``exact_at_border`` where the value is a share of trials, so that 0 and 1 have a binomial limit; ``undefined``
    says what else than a class that is not there leaves it without a value.
    """

    function: Callable[..., FloatArray]
    needs: Needs
    scale: Scale
    higher_is_better: bool | None
    has_interval: bool = True
    exact_at_border: bool = False
    extra: tuple[str, ...] = ()
    undefined: str = ""

    @property
    def needs_threshold(self) -> bool:
        """Whether the metric is of an operating point."""
        return "threshold" in self.extra

    @property
    def needs_prevalence(self) -> bool:
        """Whether the metric is at a prevalence that is taken from elsewhere."""
        return "prevalence" in self.extra

    def __call__(
        self, labels: IntArray, logits: FloatArray, weights: FloatArray, **settings: float | int
    ) -> FloatArray:
        """The metric per row of ``weights``, (b,); of ``settings`` it takes those it needs."""
        return self.function(labels, logits, weights, **{name: settings[name] for name in self.extra})


_BRIER_PART = Metric(brier_refinement, "any", "identity", higher_is_better=False, has_interval=False)
_PPV = Metric(
    predictive_value_positive, "both", "logit", higher_is_better=True, extra=("threshold", "prevalence"),
    undefined="no image is called positive",
)  # fmt: skip
_NPV = replace(_PPV, function=predictive_value_negative, undefined="every image is called positive")
_BENEFIT = Metric(net_benefit, "any", "identity", higher_is_better=True, extra=("threshold",))
_BENEFIT_ALL = replace(_BENEFIT, function=net_benefit_all, higher_is_better=None, undefined="the threshold is 1")

METRICS: dict[str, Metric] = {
    "auroc": Metric(auroc, "both", "logit", higher_is_better=True, exact_at_border=True),
    "average_precision": Metric(average_precision, "both", "logit", higher_is_better=True),
    "brier": Metric(brier, "any", "logit", higher_is_better=False),
    "brier_calibration": replace(_BRIER_PART, function=brier_calibration),
    "brier_refinement": _BRIER_PART,
    "log_loss": Metric(log_loss, "any", "log", higher_is_better=False),
    "calibration_slope": Metric(
        calibration_slope,
        "both",
        "identity",
        higher_is_better=None,
        undefined="the scores separate the classes or do not vary",
    ),
    "calibration_intercept": Metric(calibration_intercept, "both", "identity", higher_is_better=None),
    "ece": Metric(ece, "any", "identity", higher_is_better=False, has_interval=False, extra=("ece_bins",)),
    "sensitivity": Metric(
        sensitivity_at, "positives", "logit", higher_is_better=True, exact_at_border=True, extra=("threshold",)
    ),
    "specificity": Metric(
        specificity_at, "negatives", "logit", higher_is_better=True, exact_at_border=True, extra=("threshold",)
    ),
    "ppv": _PPV,
    "npv": _NPV,
    "net_benefit": _BENEFIT,
    "net_benefit_all": _BENEFIT_ALL,
    "prevalence": Metric(prevalence, "any", "logit", higher_is_better=None, exact_at_border=True),
}


def metrics_at(prevalences: Sequence[float], thresholds: Sequence[float]) -> dict[str, Metric]:
    """``METRICS``, with predictive values at stated prevalences and net benefit at stated threshold probabilities.

    Their names end in ``_at_5_percent`` and the like.
    """
    stated = {}
    for share in prevalences:
        for name in ("ppv", "npv"):
            own = METRICS[name]
            stated[f"{name}_at_{_percent(share)}"] = replace(
                own, function=partial(own.function, prevalence=share), extra=("threshold",)
            )
    for threshold in thresholds:
        for name in ("net_benefit", "net_benefit_all"):
            own = METRICS[name]
            stated[f"{name}_at_{_percent(threshold)}"] = replace(
                own, function=partial(own.function, threshold=threshold), extra=()
            )
    return METRICS | stated


def _percent(share: float) -> str:
    # No dot: DVC nests names of metrics at dots.
    return f"{100 * share:g}_percent".replace(".", "_")


def _by_score(labels: IntArray, logits: FloatArray) -> tuple[IntArray, IntArray]:
    """Indices of the positives and of the negatives, each by rising score."""
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    return (
        positives[np.argsort(logits[positives], kind="stable")],
        negatives[np.argsort(logits[negatives], kind="stable")],
    )


def _cumulative(weights: FloatArray) -> FloatArray:
    """(b, n + 1): column j is the sum of the first j columns."""
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _from_above(cumulative: FloatArray, first: IntArray) -> FloatArray:
    return cumulative[:, -1:] - cumulative[:, first]


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    return _ratio(weights @ values, weights.sum(axis=1))


def _called(logits: FloatArray, threshold: float) -> FloatArray:
    if np.isnan(threshold):
        return np.full(logits.shape, np.nan)
    return (expit(logits) >= threshold).astype(np.float64)


def _overlap(labels: IntArray, logits: FloatArray, weights: FloatArray) -> NDArray[np.bool_]:
    """(b,): neither class lies wholly at or above the other, so that the logistic fit has a finite maximum."""
    positives, negatives = _by_score(labels, logits)
    if not len(positives) or not len(negatives):
        return np.zeros(len(weights), dtype=bool)
    lowest_positive, highest_positive, any_positive = _extremes(logits[positives], weights[:, positives])
    lowest_negative, highest_negative, any_negative = _extremes(logits[negatives], weights[:, negatives])
    crossing = (highest_negative > lowest_positive) & (highest_positive > lowest_negative)
    return any_positive & any_negative & crossing


def _extremes(scores: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Lowest and highest of the rising ``scores`` with weight, and whether there is any, (b,) each."""
    present = weights > 0
    first, last = present.argmax(axis=1), present.shape[1] - 1 - present[:, ::-1].argmax(axis=1)
    return scores[first], scores[last], np.asarray(present.any(axis=1))


def _logistic(values: FloatArray) -> FloatArray:
    """As scipy's expit, in place and twice as fast; beyond 700 the result is 0 or 1 and exp would overflow."""
    np.clip(values, -700.0, 700.0, out=values)
    np.exp(np.negative(values, out=values), out=values)
    values += 1.0
    return np.divide(1.0, values, out=values)


def _fit_line(labels: IntArray, x: FloatArray, weights: FloatArray, beta: FloatArray) -> FloatArray:
    """(a, b) of a + b x by Newton's method from ``beta`` (b, 2); NaN where it has not converged."""
    result = np.full(beta.shape, np.nan)
    todo = np.arange(len(beta))
    step, gain = np.zeros(beta.shape), np.full(len(beta), np.inf)
    for _ in range(MAX_ITERATIONS):
        trial = beta + step
        gradient, newton = _newton(labels, x, weights, trial)
        # The likelihood is concave: where it falls along the step faster than it rose before, the step went
        # too far beyond the maximum, and half of it is tried.
        too_far = (np.vecdot(gradient, step) < -gain) | ~np.isfinite(newton).all(axis=1)
        beta = np.where(too_far[:, None], beta, trial)
        step = np.where(too_far[:, None], step / 2, newton)
        gain = np.where(too_far, gain / 2, np.vecdot(gradient, newton))
        done = ~too_far & (np.abs(step).max(axis=1) < CONVERGED * (1.0 + np.abs(beta).max(axis=1)))
        result[todo[done]] = (beta + step)[done]
        if done.all():
            break
        if done.any():
            left = ~done
            todo, weights, beta, step, gain = todo[left], weights[left], beta[left], step[left], gain[left]
    return result


def _newton(labels: IntArray, x: FloatArray, weights: FloatArray, beta: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Gradient of the log likelihood of a + b x at ``beta`` (b, 2), and Newton's step from there, (b, 2) each."""
    p = _logistic(beta[:, :1] + beta[:, 1:] * x)
    powers = np.stack([np.ones_like(x), x, x * x], axis=1)
    gradient = (weights * (labels - p)) @ powers[:, :2]
    h0, h1, h2 = ((weights * (p - p * p)) @ powers).T
    g0, g1 = gradient.T
    determinant = h0 * h2 - h1 * h1
    step = np.stack([h2 * g0 - h1 * g1, h0 * g1 - h1 * g0], axis=1)
    # Not positive: all probabilities have saturated, and the caller halves its step.
    return gradient, step / np.where(determinant > 0, determinant, np.nan)[:, None]


def _fit_shift(labels: IntArray, x: FloatArray, shares: FloatArray, a: FloatArray) -> FloatArray:
    """Shift a of a + x from ``a`` (b,), where each row of ``shares`` sums to 1 and holds both classes.

    Newton's method inside a bracket that holds the one root, which is halved where Newton leaves it.
    """
    result = np.full(a.shape, np.nan)
    todo = np.arange(len(a))
    mean_label = shares @ labels.astype(np.float64)
    # All probabilities lie below the mean label at `low`, above it at `high`.
    low, high = logit(mean_label) - x.max() - 1e-6, logit(mean_label) - x.min() + 1e-6
    a = np.clip(a, low, high)
    for _ in range(MAX_ITERATIONS):
        p = _logistic(a[:, None] + x)
        score = mean_label - np.vecdot(shares, p)
        low, high = np.where(score > 0, a, low), np.where(score > 0, high, a)
        newton = a + _ratio(score, np.vecdot(shares, p - p * p))
        inside = (newton >= low) & (newton <= high)
        following = np.where(inside, newton, (low + high) / 2)
        # A step of Newton's leaves an error of about its square, a halving one of its size.
        done = np.abs(following - a) < np.where(inside, CONVERGED, CONVERGED**2) * (1.0 + np.abs(a))
        result[todo[done]] = following[done]
        if done.all():
            break
        if done.any():
            left = ~done
            todo, shares, mean_label = todo[left], shares[left], mean_label[left]
            a, low, high = following[left], low[left], high[left]
        else:
            a = following
    return result


def _refinement_of_row(labels: IntArray, group: IntArray, weights: FloatArray) -> float:
    """Of images whose scores are equal where ``group`` is, and rise with it."""
    mass = np.bincount(group, weights=weights)
    taken = mass > 0
    if not taken.any():
        return float("nan")
    mass, positive = mass[taken], np.bincount(group, weights=weights * labels)[taken]
    fitted = isotonic_regression(positive / mass, weights=mass).x
    # Sum of w (y - f)^2, y 0 or 1.
    return float(np.sum(positive * (1.0 - fitted) ** 2 + (mass - positive) * fitted**2) / mass.sum())


def _ece_of_row(labels: IntArray, logits: FloatArray, weights: FloatArray, ece_bins: int) -> float:
    total = float(weights.sum())
    if total <= 0:
        return float("nan")
    probabilities = expit(logits)
    bins = max(1, min(ece_bins, int(total // IMAGES_PER_BIN)))
    # Binned on the logits: as the probabilities, but without their ties at 0 and 1.
    index = equal_mass_bins(logits, weights, bins)
    mass = np.bincount(index, weights=weights, minlength=bins)
    filled = mass > 0
    mass = mass[filled]
    mean_probability = np.bincount(index, weights=weights * probabilities, minlength=bins)[filled] / mass
    mean_label = np.bincount(index, weights=weights * labels, minlength=bins)[filled] / mass
    noise = np.full_like(mass, 0.25)
    np.divide(mean_label * (1.0 - mean_label), mass - 1.0, out=noise, where=mass > 1)
    noise = np.minimum(noise, 0.25)
    return float(np.sqrt(max(0.0, float(np.sum(mass / total * ((mean_probability - mean_label) ** 2 - noise))))))
