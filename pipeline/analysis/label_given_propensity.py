"""Whether a label means of an image what it means at home, where the images of two hospitals differ too.

**What is held fixed.** Covariate shift alone says that the label hangs on the image and not on the hospital. It then
hangs on the hospital no more among images of one score and one *propensity*, the chance that such an image comes from
the target: the propensity is a balancing score (Rosenbaum & Rubin 1983, Biometrika 70:41, theorems 2 and 3), and so is
the pair with anything else that the image decides, such as a model's score. The score alone is none: what it hears
beside the label may have moved. The propensity is a logistic regression on a backbone's features, out of fold by
patient; no label goes into it, nor into the choice of its penalty.

**What is tested.** The label by logistic regression on score, its square, the propensity and its product with the
score; then whether the hospital, and the hospital with the score, add anything (a score test). Beside the propensity
the test holds if either that regression or the propensity is right (Robins, Mark & Newey 1992, Biometrics 48:479), and
no image is weighted by the inverse of a small propensity. Each patient's images make one contribution (Liang & Zeger
1986, Biometrika 73:13), and the mean of these is compared with 0 by Hotelling's T squared, with as many degrees of
freedom as the smaller side has patients.

**Where it cannot be told.** An image that could come from one hospital alone says nothing. The effective number of
patients is Kish's, of overlap weights (Li, Morgan & Zaslavsky 2018, J Am Stat Assoc 113:390); with few in a label of a
side nothing is tested. What the features do not show of the hospital is not held fixed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import f as fisher_f
from scipy.stats import t as student_t
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline.metrics.binary import calibration_slope

FloatArray = NDArray[np.float64]
RealArray = NDArray[np.floating[Any]]

FOLDS = 5  # and patients that each side needs at least
LEAST_EFFECTIVE = 10.0  # patients, of each label on each side
_INVERSE_L2 = (1e-3, 1e-2, 1e-1, 1.0)  # of the propensity, chosen by what it predicts out of fold
_CALIBRATION_L2 = 100.0
_NEWTON_STEPS, _CONVERGED, _RIDGE = 50, 1e-9, 1e-8


@dataclass(frozen=True)
class Remainder:
    """What the hospital adds to score and propensity.

    Attributes:
        both: F statistic and p-value of "the hospital adds nothing".
        slope: the same of "it adds no more than a constant to the log odds".
        level: constant that it adds at the mean score, should it add nothing else, and 95 % limits.
        change: of the slope on the logit, beside a constant, and 95 % limits.
        effective: patients, of the label and side that has fewest.
        note: why all are NaN; "" where they are not.
    """

    both: tuple[float, float]
    slope: tuple[float, float]
    level: tuple[float, float, float]
    change: tuple[float, float, float]
    effective: float
    note: str = ""

    @classmethod
    def none(cls, note: str, effective: float = float("nan")) -> "Remainder":
        """Undefined for the reason in ``note``."""
        nan = float("nan")
        return cls((nan, nan), (nan, nan), (nan, nan, nan), (nan, nan, nan), effective, note)


@dataclass(frozen=True)
class _Tested:
    """Added columns tested: F, p, and one Newton step from "they add nothing" with limits of each."""

    statistic: float
    p_value: float
    steps: FloatArray
    halves: FloatArray


def propensity(features: RealArray, away: NDArray[Any], patients: NDArray[Any], seed: int) -> FloatArray:
    """Log odds, out of fold by patient, that an image is the target's, both sides weighing the same.

    Args:
        features: (N, D), finite.
        away: (N,) 1 of the target, 0 of the source.
        patients: (N,) names.
        seed: of the folds.

    Returns:
        (N,), all NaN with fewer than ``FOLDS`` patients on a side.
    """
    if min(len(set(patients[away == side])) for side in (0, 1)) < FOLDS:
        return np.full(len(away), np.nan)
    folds = _folds(away, patients, seed)
    odds = np.empty((len(_INVERSE_L2), len(away)))
    for fold in range(FOLDS):
        train, held_out = folds != fold, folds == fold
        scaler = StandardScaler().fit(features[train].astype(np.float64))
        x, other = (scaler.transform(features[rows].astype(np.float64)) for rows in (train, held_out))
        for number, strength in enumerate(_INVERSE_L2):
            model = LogisticRegression(C=strength, class_weight="balanced", max_iter=5000, tol=1e-6)
            odds[number, held_out] = model.fit(x, away[train]).decision_function(other)
    share = away.mean()
    weights = np.where(away == 1, 0.5 / share, 0.5 / (1 - share))
    losses = [float(weights @ (np.logaddexp(0.0, one) - away * one)) for one in odds]
    return np.asarray(odds[int(np.argmin(losses))])


def remainder(
    logits: FloatArray, labels: FloatArray, odds: FloatArray, away: NDArray[Any], patients: NDArray[Any]
) -> Remainder:
    """What the hospital says of the label beside score and propensity.

    Args:
        logits: (N,) of both sides.
        labels: (N,) 0, 1 or NaN, which is left out.
        odds: (N,) as ``propensity``.
        away: (N,) 1 of the target, 0 of the source.
        patients: (N,) names; one seen on both sides is one.
    """
    known = ~np.isnan(labels)
    if np.isnan(odds).any():
        return Remainder.none(f"the propensity needs {FOLDS} patients on each side")
    s, y, e, d = (part[known].astype(np.float64) for part in (logits, labels, odds, away))
    codes = np.unique(patients[known], return_inverse=True)[1]
    groups = [(d == side) & (y == label) for side in (0, 1) for label in (0, 1)]
    raw = min(len(np.unique(codes[group])) for group in groups)
    needed = f"{LEAST_EFFECTIVE:.0f} patients of each label on each side"
    if raw < LEAST_EFFECTIVE:
        return Remainder.none(f"needs {needed}; the smallest group has {raw}", float(raw))
    spread = float(s.std())
    sides = ((s[d == side], y[d == side]) for side in (0, 1))
    if not spread or any(np.isnan(_slope(*side)) for side in sides):
        return Remainder.none(
            "the logits separate the labels on one side, or are all alike: the line has no finite slope"
        )
    s = (s - s.mean()) / spread
    chance = _calibrated(np.stack([e, s, s * s], axis=1), d)
    weights = np.where(d == 1, 1 - chance, chance)
    effective = min(_kish(weights[group], codes[group]) for group in groups)
    if effective < LEAST_EFFECTIVE:
        note = "the features tell the hospitals apart: too few images could be of either"
        return Remainder.none(f"{note} (worth {effective:.1f} of {raw} patients; needs {needed})", effective)
    fewest = min(len(np.unique(codes[d == side])) for side in (0, 1))
    known_columns = np.stack([np.ones_like(s), s, s * s, chance, chance * s], axis=1)
    added = np.stack([d, d * s], axis=1)
    both = _score_test(y, known_columns, added, codes, fewest)
    level = _score_test(y, known_columns, added[:, :1], codes, fewest)
    slope = _score_test(y, np.concatenate([known_columns, d[:, None]], axis=1), added[:, 1:], codes, fewest)
    return Remainder(
        (both.statistic, both.p_value),
        (slope.statistic, slope.p_value),
        _limits(level, 1.0),
        _limits(slope, spread),
        effective,
    )


def _folds(away: NDArray[Any], patients: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """(N,) the fold of each image: whole patients by lot, each side's spread over all folds."""
    names, codes = np.unique(patients, return_inverse=True)
    seen_away = np.zeros(len(names), dtype=bool)
    seen_away[codes[away == 1]] = True
    order = np.lexsort((np.random.default_rng(seed).permutation(len(names)), seen_away))
    fold = np.empty(len(names), dtype=np.int64)
    fold[order] = np.arange(len(names)) % FOLDS
    return fold[codes]


def _score_test(y: FloatArray, x: FloatArray, added: FloatArray, codes: NDArray[Any], fewest: int) -> _Tested:
    """Whether ``added`` (N, q) tells ``y`` beside ``x`` (N, k): Rao's test with each patient as one observation."""
    p = expit(x @ _fitted(x, y))
    weights = p * (1 - p)
    root = np.sqrt(weights)[:, None]
    # What x does not tell of the added columns, in the metric of the logistic likelihood.
    rest = added - x @ np.linalg.lstsq(x * root, added * root, rcond=None)[0]
    own = np.zeros((int(codes.max()) + 1, added.shape[1]))
    np.add.at(own, codes, rest * (y - p)[:, None])
    num, q = own.shape
    covariance = num * np.atleast_2d(np.cov(own, rowvar=False))
    total = own.sum(axis=0)
    squared = float(total @ np.linalg.solve(covariance, total))
    statistic = squared * (fewest - q) / (q * (fewest - 1))
    information = (rest * weights[:, None]).T @ rest
    bread = np.linalg.inv(information)
    error = np.sqrt(np.diag(bread @ covariance @ bread))
    half = float(student_t.ppf(0.975, fewest - 1)) * error
    return _Tested(statistic, float(fisher_f.sf(statistic, q, fewest - q)), bread @ total, half)


def _fitted(x: FloatArray, y: FloatArray) -> FloatArray:
    """Coefficients (k,) of a logistic regression, by Newton's method with a step that is halved where it is long."""
    found = np.zeros(x.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = expit(x @ found)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + _RIDGE * len(y) * np.eye(len(found))
        step = np.linalg.solve(curvature, x.T @ (y - p) - _RIDGE * len(y) * found)
        found = found + step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < _CONVERGED:
            break
    return found


def _calibrated(columns: FloatArray, away: FloatArray) -> FloatArray:
    """Chance (N,) of the target from propensity and score, at the shares that the labelled images have."""
    scaled = StandardScaler().fit_transform(columns)
    model = LogisticRegression(C=_CALIBRATION_L2, solver="newton-cholesky", max_iter=200).fit(scaled, away)
    return np.asarray(model.predict_proba(scaled)[:, 1], dtype=np.float64)


def _kish(weights: FloatArray, codes: NDArray[Any]) -> float:
    """Effective number of patients (Kish 1965): as many of equal weight have a mean as sure as these."""
    own = np.bincount(codes, weights=weights)
    squares = float(own @ own)
    return float(own.sum()) ** 2 / squares if squares else 0.0


def _slope(s: FloatArray, y: FloatArray) -> float:
    return float(calibration_slope(y.astype(np.int64), s, np.ones((1, len(s))))[0])


def _limits(tested: _Tested, spread: float) -> tuple[float, float, float]:
    value, half = float(tested.steps[0]) / spread, float(tested.halves[0]) / spread
    return value, value - half, value + half
