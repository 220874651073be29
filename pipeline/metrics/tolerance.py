"""By how much a mean over training seeds may change by chance, learnt from the variance between seeds.

With three seeds a variance is known on two degrees of freedom, and a bound that holds for some hundred metrics at once
would be tens of standard errors wide. So each variance is moderated by those of the same metric elsewhere (Smyth 2004,
Stat Appl Genet Mol Biol 3:3, "Linear models and empirical Bayes methods", section 6): true variances are taken to
scatter as a scaled inverse chi-squared about s0^2 on d0 degrees of freedom, both estimated from those at hand, and

    s~^2 = (d0 s0^2 + d s^2) / (d0 + d)

stands on d0 + d degrees of freedom. Half of the estimated d0 is taken: it is itself known from few models, and where
true variances have longer tails than supposed, all of it gave up to 7.5 % false alarms at a level of 5 %.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import t as student_t

FloatArray = NDArray[np.float64]

_LEAST_VARIANCES = 3  # from which their scatter is estimated
_MOST_FREEDOM = 1e6


def moderated(variances: FloatArray, freedom: FloatArray, most_freedom: float) -> tuple[FloatArray, FloatArray]:
    """Variances (n,) and their degrees of freedom (n,), each moderated by all of them.

    Args:
        variances: of the same metric of several models at several places, above 0.
        freedom: of each, 1 or more.
        most_freedom: that all of them together have; places share their trainings, so that n variances of one model are
            not n times as much. No variance is taken to be better known than that.

    Returns:
        As given, where there are fewer than three.
    """
    if len(variances) < _LEAST_VARIANCES:
        return variances, freedom
    # log s^2 has the mean log sigma^2 + digamma(d/2) - log(d/2) and the variance trigamma(d/2).
    expected = np.log(variances) - digamma(freedom / 2) + np.log(freedom / 2)
    scatter = float(np.var(expected, ddof=1) - polygamma(1, freedom / 2).mean())
    own = _inverse_trigamma(scatter) * 2 if scatter > 0 else np.inf
    prior = float(min(own / 2, max(most_freedom - freedom.min(), 0.0)))
    if prior <= 0:
        return variances, freedom
    centre = float(np.exp(expected.mean() + digamma(own / 2) - np.log(own / 2))) if np.isfinite(own) else None
    if centre is None:  # no scatter beyond chance: one variance for all
        centre = float(np.average(variances, weights=freedom))
    together = prior + freedom
    return (prior * centre + freedom * variances) / together, together


def tolerance(
    variance: FloatArray, freedom: FloatArray, before: Sequence[int], now: Sequence[int], alpha: float
) -> FloatArray:
    """(n,) what the difference of two means of trainings exceeds, either way, with probability ``alpha`` by chance.

    Args:
        variance: between trainings, (n,).
        freedom: of each, (n,).
        before: how many trainings the first mean is of, (n,).
        now: the second, (n,).
        alpha: of each; for all together divided by their number (Bonferroni).
    """
    error = np.sqrt(variance * (1.0 / np.asarray(before) + 1.0 / np.asarray(now)))
    return np.asarray(student_t.isf(alpha / 2, freedom) * error, dtype=np.float64)


def _inverse_trigamma(value: float) -> float:
    """The x above 0 with trigamma(x) = ``value``."""
    if polygamma(1, _MOST_FREEDOM) >= value:
        return _MOST_FREEDOM
    return float(brentq(lambda x: polygamma(1, x) - value, 1e-6, _MOST_FREEDOM))
