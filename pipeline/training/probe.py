"""A linear probe: logistic regression on frozen, standardised features, by scikit-learn."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from pipeline.errors import PipelineError

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """A linear head in the features' own units, and how it was chosen.

    Attributes:
        weight: (D,) float64.
        bias: of the logit.
        inverse_l2: the C of scikit-learn that id_val preferred.
        train_loss: nats per label.
        id_val_loss: nats per label.
    """

    weight: Doubles
    bias: float
    inverse_l2: float
    train_loss: float
    id_val_loss: float


def fit_probe(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.float32], train: Any, id_val: Any,
    inverse_l2: list[float], finding: str,
) -> Probe:  # fmt: skip
    """Logistic regression at each penalty; the one of least id_val loss.

    Args:
        features: (N, D).
        labels: (N,) 0, 1 or NaN; NaN is left out.
        train: indices to fit on.
        id_val: indices to choose the penalty on.
        inverse_l2: values of C to try (scikit-learn's, on standardised features).
        finding: for the error's text.

    Raises:
        PipelineError: only one class is annotated, or no fit converged.
    """
    train, id_val = train[~np.isnan(labels[train])], id_val[~np.isnan(labels[id_val])]
    if len(np.unique(labels[train])) < 2 or len(id_val) == 0:
        raise PipelineError(
            f"linear probe of '{finding}': training needs both classes and id_val an annotated image; there are "
            f"the labels {np.unique(labels[train]).tolist()}, and {len(id_val)} images"
        )
    scaler = StandardScaler().fit(features[train].astype(np.float64))
    inputs = scaler.transform(features.astype(np.float64))
    probes = [
        probe for strength in inverse_l2 if (probe := _fit(inputs, labels, train, id_val, strength, scaler)) is not None
    ]
    if not probes:
        raise PipelineError(f"linear probe of '{finding}': no fit converged; try smaller inverse_l2 ({inverse_l2})")
    return min(probes, key=lambda probe: probe.id_val_loss)


def _fit(inputs: Doubles, labels: Any, train: Any, id_val: Any, strength: float, scaler: Any) -> Probe | None:
    model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(inputs[train], labels[train])
        except ConvergenceWarning:
            return None  # a half-fitted model is no candidate
    losses = [
        float(log_loss(labels[side], model.predict_proba(inputs[side])[:, 1], labels=[0.0, 1.0]))
        for side in (train, id_val)
    ]
    # Standardising is linear, so it folds into the head: w.(x - m)/s + b = (w/s).x + (b - (w/s).m).
    weight = model.coef_[0] / scaler.scale_
    return Probe(weight, float(model.intercept_[0] - weight @ scaler.mean_), strength, *losses)
