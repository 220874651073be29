"""Temperature scaling on a few labelled images of the target: a few-label remedy, not an unsupervised one.

Guo C, Pleiss G, Sun Y, Weinberger KQ. On Calibration of Modern Neural Networks. ICML 2017. It changes no order of
images, hence no AUROC, and no prevalence either.
"""

import numpy as np
from pydantic import Field
from scipy.optimize import brentq
from scipy.special import expit

from pipeline.adaptation.interface import BaseParams, Evidence, Outcome, Scores
from pipeline.params import Seed
from pipeline.splits import uniform


class Params(BaseParams):
    """``remedies.temperature``: ``labelled_images`` of target_adapt, at least; of whole patients, drawn by ``seed``."""

    labelled_images: int = Field(ge=1)
    seed: Seed = 1


def recalibrate(evidence: Evidence, params: Params) -> Outcome:
    """Divide the logits by the temperature of least log loss on the drawn images."""
    drawn = few_labels(evidence.target, params.labelled_images, params.seed)
    logits, labels = evidence.target.logits[drawn], evidence.target.labels[drawn]
    used = len(labels)
    slope = best_slope(logits, labels)
    if np.isnan(slope):
        return Outcome(
            "refused", f"few-label: no temperature has the least log loss on {used} labelled images", used
        )  # fmt: skip
    note = f"few-label: {used} labelled images of the target, of whole patients"
    return Outcome("applied", note, used, temperature=1.0 / slope, slope=slope, intercept=0.0)


def few_labels(scores: Scores, least: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(n,) the annotated images of the first patients, in an order of chance, that have ``least`` together."""
    known = ~np.isnan(scores.labels)
    order = sorted(set(scores.patients[known].tolist()), key=lambda patient: (uniform(seed, patient), patient))
    chosen = np.zeros(len(known), np.bool_)
    for patient in order:
        if chosen.sum() >= least:
            break
        chosen |= known & (scores.patients == patient)
    return chosen


def best_slope(
    logits: np.ndarray[tuple[int], np.dtype[np.float64]], labels: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float:
    """1 / T of least log loss, which is convex in it.

    Args:
        logits: (n,).
        labels: (n,) 0 or 1.

    Returns:
        NaN where no positive finite slope is best: without images, where the labels agree with all signs of the
        logits, or where they do so less often than by chance.
    """

    def gradient(slope: float) -> float:
        return float(logits @ (expit(slope * logits) - labels))

    scale = float(np.abs(logits).max(initial=0.0))
    # Beyond, even the smallest of 16 digits has saturated.
    highest = 1e6 / scale if scale > 0 else 0.0
    if not gradient(0.0) < 0.0 < gradient(highest):
        return float("nan")
    return float(brentq(gradient, 0.0, highest, xtol=1e-14, rtol=1e-12))
