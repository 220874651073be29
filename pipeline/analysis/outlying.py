"""How far an image lies from what a model was trained on, and what a model is worth that abstains on the farthest.

Mahalanobis distance in a backbone's embeddings, of mean and covariance of the source's training images, the covariance
shrunk (Ledoit & Wolf 2004), no label used. Energy (Liu et al. 2020, NeurIPS, "Energy-based Out-of-distribution
Detection"): a sigmoid on one logit z is a softmax on (-z/2, z/2), and the score is -log(exp(-z/2) + exp(z/2)). It falls
with |z| and with nothing else: of a single finding energy is the model's confidence.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.covariance import LedoitWolf

from pipeline.analysis.probes import auroc_of
from pipeline.metrics.binary import sensitivity_at

Floats = npt.NDArray[np.float64]
Reals = npt.NDArray[np.floating[Any]]

COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_BLOCK = 4_096  # rows held in float64
_MOST_ROWS = 20_000  # of 2,048 features, 330 MB a copy


def mahalanobis(train: Reals, features: Reals) -> Floats:
    """Distance (N,) of ``features`` (N, D) from ``train`` (M, D), M > 1, in standard deviations.

    From at most ``_MOST_ROWS`` evenly spaced rows of ``train``.
    """
    model = LedoitWolf().fit(train[:: max(1, -(-len(train) // _MOST_ROWS))].astype(np.float64))
    parts = [model.mahalanobis(features[i : i + _BLOCK].astype(np.float64)) for i in range(0, len(features), _BLOCK)]
    return np.sqrt(np.maximum(np.concatenate(parts), 0.0)) if parts else np.empty(0)


def energy(logits: Floats) -> Floats:
    """Free energy (N,) of the two logits -z/2 and z/2, at most -log 2; higher is less confident."""
    return -np.logaddexp(-logits / 2, logits / 2)


def abstention(
    outlyingness: Floats, logits: Floats, labels: Floats, patients: npt.NDArray[Any], threshold: float,
    *, resamples: int, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of ``tables.diagnosis.Abstention``: a model on the nearest images, at each of ``COVERAGES``.

    Which images stay is decided on all, annotated or not; the annotated ones of these judge.

    Args:
        outlyingness: (N,) higher is farther.
        logits: (N,) float64.
        labels: (N,) 0, 1 or NaN.
        patients: (N,) names.
        threshold: on the probability; NaN where there is none.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    order = np.argsort(outlyingness, kind="stable")
    rows = []
    for coverage in COVERAGES:
        near = order[: int(np.ceil(coverage * len(order) - 1e-9))]
        judged = near[~np.isnan(labels[near])]
        known = labels[judged].astype(np.int64)
        found = auroc_of(known, logits[judged], patients[judged], resamples=resamples, seed=seed)
        sensitivity = sensitivity_at(known, logits[judged], np.ones((1, len(judged))), threshold)[0]
        rows.append({**found.row(), "coverage": coverage, "sensitivity": float(sensitivity)})
    return rows
