"""Prototypes: the nearer of the two class means in the frozen, standardised features; for few labels.

Snell J, Swersky K, Zemel R. Prototypical Networks for Few-shot Learning. NeurIPS 2017, with features that were not
trained for it (as in Chen et al., A Closer Look at Few-shot Classification, ICLR 2019). With squared Euclidean
distances this is a linear head (their section 2.4).
"""

import numpy as np
from pydantic import Field, PositiveInt

from pipeline.errors import PipelineError
from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine
from pipeline.training.loop import Epoch


class Params(StrictParams):
    """``methods.prototypes``: ``shots`` labelled patients a class, each ``draws`` times with other patients."""

    shots: list[PositiveInt] = Field(default=[1, 5, 10])
    draws: int = Field(default=10, ge=1)


def fit(engine: Engine, params: Params) -> Classifier:  # noqa: ARG001 (the runs are made of them)
    """Set the head to half the difference of mean squared distances to the two class means.

    Features are divided by their standard deviation over all training images, for which no label is needed. The mean
    of the distances over dimensions, so that the logits' size does not grow with their number.

    Raises:
        PipelineError: a class has no labelled image.
    """
    model = engine.pretrained()
    features = engine.features.astype(np.float64)
    spread = features[engine.data.pool].std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    for position, finding in enumerate(engine.findings):
        labels = engine.data.labels[engine.data.train, position]
        means = []
        for label in (0, 1):
            own = engine.data.train[labels == label]
            if not len(own):
                raise PipelineError(f"{engine.description}: no labelled image has '{finding}' = {label}")
            means.append((features[own] / scale).mean(axis=0))
        negative, positive = means
        # -|x - p|^2 / 2 + |x - n|^2 / 2 = (p - n) . x - (|p|^2 - |n|^2) / 2, divided by the number of dimensions.
        weight = (positive - negative) / scale / len(scale)
        bias = float(negative @ negative - positive @ positive) / 2 / len(scale)
        engine.set_head(model, position, weight, bias)
        engine.curves.append(Epoch(f"prototypes {finding}", 0, float("nan"), float("nan"), float("nan"), kept=True))
    return model.eval()
