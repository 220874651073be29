"""Variance of AUROCs and of their differences without resampling: DeLong's, for clustered images Obuchowski's.

A cross-check of the bootstrap (``metrics.intervals``), which it shares no step with: of the patients' part alone,
since it knows of no training.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student_t

from pipeline.metrics.binary import FloatArray, IntArray, Scale
from pipeline.metrics.intervals import limits_around


@dataclass(frozen=True)
class Areas:
    """AUROCs of r score columns on the same images (r,), their covariance (r, r), patients of the rarer class."""

    values: FloatArray
    covariance: FloatArray
    patients: int


def placements(labels: IntArray, scores: FloatArray) -> FloatArray:
    """Per positive the share of negatives that score below, per negative of positives that score above; ties half.

    From midranks in O(n log n) (Sun & Xu 2014, IEEE Signal Process Lett 21:1389).

    Args:
        labels: (n,) in {0, 1}, both present.
        scores: (r, n).

    Returns:
        (r, n) float64; the mean over the positives is the AUROC, and so is that over the negatives.
    """
    positive, negative = labels == 1, labels == 0
    ranks = rankdata(scores, axis=1)
    placed = np.empty(scores.shape)
    placed[:, positive] = (ranks[:, positive] - rankdata(scores[:, positive], axis=1)) / negative.sum()
    placed[:, negative] = 1.0 - (ranks[:, negative] - rankdata(scores[:, negative], axis=1)) / positive.sum()
    return placed


def clustered_delong(labels: IntArray, scores: FloatArray, patients: IntArray) -> Areas:
    """AUROCs with their covariance over patients (Obuchowski 1997, Biometrics 53:567, eq. 3 to 6).

    With one image a patient it is that of DeLong, DeLong & Clarke-Pearson (1988, Biometrics 44:837). NaN where a class
    has fewer than two patients.

    Args:
        labels: (n,) in {0, 1}.
        scores: (r, n).
        patients: (n,) integers, equal for images of one patient.
    """
    positive, negative = labels == 1, labels == 0
    runs, (m, n) = len(scores), (int(positive.sum()), int(negative.sum()))
    diseased, healthy = (len(np.unique(patients[taken])) for taken in (positive, negative))
    if min(m, n) == 0:
        return Areas(np.full(runs, np.nan), np.full((runs, runs), np.nan), 0)
    placed = placements(labels, scores)
    values = placed[:, positive].mean(axis=1)
    if min(diseased, healthy) < 2:
        return Areas(values, np.full((runs, runs), np.nan), min(diseased, healthy))
    codes = np.unique(patients, return_inverse=True)[1]
    everyone = int(codes.max()) + 1
    # (r, patients): what a patient's positives, and negatives, depart from the AUROC together.
    of_positives, of_negatives = (
        np.stack([np.bincount(codes[own], weights=row[own], minlength=everyone) for row in placed - values[:, None]])
        for own in (positive, negative)
    )
    cross = of_positives @ of_negatives.T * (everyone / (everyone - 1) / (m * n))
    covariance = (
        of_positives @ of_positives.T * (diseased / (diseased - 1) / m**2)
        + of_negatives @ of_negatives.T * (healthy / (healthy - 1) / n**2)
        + cross
        + cross.T
    )
    return Areas(values, covariance, min(diseased, healthy))


def delong_interval(
    areas: Areas, weights: FloatArray, scale: Scale, confidence: float = 0.95
) -> tuple[float, float, float]:
    """A weighted sum of AUROCs (a mean, a difference) and its limits, from Student's t on the patients less one.

    The limits are NaN where the variance is, or is 0: all images of the classes are ordered alike.

    Args:
        areas: of r score columns.
        weights: (r,), such as 1/r for the mean, or 1 and -1 for a difference.
        scale: "logit" for an area, "identity" for a difference.
        confidence: such as 0.95.
    """
    value = float(weights @ areas.values)
    variance = float(weights @ areas.covariance @ weights)
    if not variance > 1e-20:
        return value, float("nan"), float("nan")
    half = float(student_t.ppf((1.0 + confidence) / 2, areas.patients - 1)) * np.sqrt(variance)
    return value, *limits_around(value, half, scale)
