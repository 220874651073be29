"""The loss: masked binary cross-entropy, with weights of classes and of findings."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.params import ParamsError, StrictParams
from pipeline.training.feed import Dataset, Floats, Indices

AUXILIARY_WEIGHT = 0.4  # of Inception's auxiliary loss: as in torchvision's training of it (0.3 in Szegedy 2015)


class LossParams(StrictParams):
    """How labels weigh.

    ``class_weights: balanced`` weighs the labels of a finding so that both classes count alike (probabilities are
    then those of a population with as many positives as negatives); ``finding_weights`` weighs findings, 1 if unnamed.
    """

    class_weights: Literal["none", "balanced"] = "none"
    finding_weights: dict[str, PositiveFloat] = Field(default={})


def masked_loss(
    logits: Tensor, labels: Tensor, positive_weights: Tensor | None = None, finding_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy summed over annotated labels, and how many they are; NaN labels count for nothing.

    Args:
        logits: (B, findings).
        labels: (B, findings) 0, 1 or NaN.
        positive_weights: (2, findings), of negatives and of positives.
        finding_weights: (findings,).
    """
    known = ~torch.isnan(labels)
    certain = torch.nan_to_num(labels)
    losses = binary_cross_entropy_with_logits(logits, certain, reduction="none") * known
    if positive_weights is not None:
        losses = losses * torch.where(certain == 1, positive_weights[1], positive_weights[0])
    if finding_weights is not None:
        losses = losses * finding_weights
    return losses.sum(), known.sum()


def balanced_weights(labels: Floats, train: Indices) -> Floats:
    """(2, findings): n / (2 n_class) of negatives and of positives, as scikit-learn's "balanced"."""
    positives = np.nansum(labels[train] == 1, axis=0)
    negatives = np.nansum(labels[train] == 0, axis=0)
    both = (positives + negatives).astype(np.float64)
    return np.stack([both / np.maximum(2 * negatives, 1), both / np.maximum(2 * positives, 1)]).astype(np.float32)


def loss_weights(
    data: Dataset, params: LossParams, findings: Sequence[str], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Of classes (2, findings), and of findings (findings,); None where all weigh alike.

    Raises:
        ParamsError: a weight is of an unknown finding.
    """
    unknown = sorted(set(params.finding_weights) - set(findings))
    if unknown:
        raise ParamsError(f"finetune.finding_weights: unknown findings {unknown}; known are {list(findings)}")
    classes = None
    if params.class_weights == "balanced":
        classes = torch.from_numpy(balanced_weights(data.labels, data.train)).to(device)
    each = None
    if params.finding_weights:
        each = torch.tensor([params.finding_weights.get(finding, 1.0) for finding in findings], device=device)
    return classes, each
