"""How wide an interval will be, and how many patients make it as narrow as wanted, before any image is read.

As the evaluation will make it: symmetric on the logit scale, with Student's t on the patients of the rarer class less
one (``metrics.intervals``). All images of a patient have the patient's label. The patients' part alone: what other
trainings would change comes on top.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, owens_t
from scipy.stats import t as student_t

from pipeline.metrics.intervals import limits_around

MOST_PATIENTS = 10_000_000


@dataclass(frozen=True)
class Cohort:
    """What is expected of the patients.

    ``prevalence`` in (0, 1) is of patients, ``images`` (at least 1) how many each has, ``correlation`` in [0, 1] that
    of two images' scores of one patient, given the label.
    """

    prevalence: float
    images: float
    correlation: float

    @property
    def design_effect(self) -> float:
        """By how much the patients' images tell less than as many images of different patients (Kish 1965)."""
        return 1.0 + (self.images - 1.0) * self.correlation

    def effective_images(self, patients: float) -> float:
        """As many images of different patients would tell as much."""
        return patients * self.images / self.design_effect


def auroc_width(patients: int, auroc: float, cohort: Cohort, confidence: float = 0.95) -> float:
    """Width of the interval of an AUROC, NaN under two patients of a class.

    The variance is Hanley and McNeil's (1982, Radiology 143:29, eq. 2), with the chance that two images of one class
    both lie on the right side of one of the other taken for normal scores of equal spread. The paper's own closed form,
    for exponential scores, gives intervals that are a third too wide where the diseased are few (see the tests).
    """
    diseased = round(patients * cohort.prevalence)
    m, n = cohort.effective_images(diseased), cohort.effective_images(patients - diseased)
    if min(diseased, patients - diseased) < 2:
        return float("nan")
    # Two standard normals, correlated at 1/2, both below h (Owen 1956); alike for either class.
    both = auroc - 2 * owens_t(ndtri(auroc), np.sqrt(1 / 3))
    variance = (auroc * (1 - auroc) + (m + n - 2) * (both - auroc**2)) / (m * n)
    return _width(auroc, variance, min(diseased, patients - diseased), confidence)


def sensitivity_width(patients: int, sensitivity: float, cohort: Cohort, confidence: float = 0.95) -> float:
    """Width of the interval of a sensitivity, NaN under two diseased patients."""
    diseased = round(patients * cohort.prevalence)
    if diseased < 2:
        return float("nan")
    # Over m - 1, as the bootstrap's variance is scaled.
    variance = sensitivity * (1 - sensitivity) / cohort.effective_images(diseased - 1)
    return _width(sensitivity, variance, diseased, confidence)


def patients_needed(width_of: Callable[[int], float], wanted: float) -> int | None:
    """The fewest patients whose interval is at most ``wanted`` wide; None where ``MOST_PATIENTS`` are not enough.

    Args:
        width_of: the width by the number of patients, falling, NaN where there are too few.
        wanted: in (0, 1).
    """

    def enough(patients: int) -> bool:
        return width_of(patients) <= wanted

    if not enough(MOST_PATIENTS):
        return None
    low, high = 0, MOST_PATIENTS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _width(value: float, variance: float, patients: int, confidence: float) -> float:
    half = float(student_t.ppf((1.0 + confidence) / 2, patients - 1)) * float(np.sqrt(variance))
    low, high = limits_around(value, half, "logit")
    return high - low
