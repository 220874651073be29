"""AdaBN: batch-norm's statistics re-estimated on the target's unlabelled images, with a guard against label shift.

Li Y, Wang N, Shi J, Liu J, Hou X. Revisiting Batch Normalization For Practical Domain Adaptation. ICLR 2017 workshop.
The statistics are those of a mixture of classes. Where the mixture changes, they change with it, and what
made a positive stand out is subtracted. Hence the guard: the target's prevalence is estimated first (``prior.py``).
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import logit
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.adaptation.interface import Adapted, Case, Decision, Evidence, Outcome
from pipeline.adaptation.prior import PriorParams, estimate
from pipeline.errors import PipelineError
from pipeline.metrics.prevalence import Estimate
from pipeline.training.backbone import Classifier
from pipeline.training.feed import AugmentParams, ImageFeed, Indices, in_batches


class Params(PriorParams):
    """``remedies.adabn``: what to do where the prevalence changes by more than ``margin``, with 95 % confidence.

    ``guard``: ``refuse`` keeps the plain model; ``correct`` takes the statistics from target images that are resampled
    by pseudo-labels to the source's prevalence; ``off`` does not look. Below ``min_images`` it is refused: a guard
    that sees too little detects nothing.
    """

    guard: Literal["refuse", "correct", "off"] = "refuse"
    margin: float = Field(default=0.1, ge=0.0, lt=1.0)
    min_images: int = Field(default=20, ge=2)


def adapt(case: Case, params: Params) -> Adapted:
    """The model with the target's statistics, or the plain one where that is refused."""
    found = [estimate(evidence, params.resamples, params.seed) for evidence in case.evidence]
    decision, note, chosen = _decide(case, found, params)
    if decision != "refused":
        order = np.random.default_rng(params.seed).permutation(chosen)
        feed = ImageFeed(case.images, case.fabric.device, case.layout, AugmentParams(), 0)
        estimate_statistics(case.model, feed, order, case.batch_size)
    outcomes = [
        Outcome(decision, note, 0, each.source, each.target, each.interval[0], each.interval[1]) for each in found
    ]
    return Adapted(case.model, case.images, outcomes)


def estimate_statistics(model: Classifier, feed: ImageFeed, indices: Indices, batch_size: int) -> None:
    """Set the running statistics of all batch-norm layers to their mean over near-equal batches of these images.

    Layers one after the other see what those before make of the batch's own statistics, as in training. At least two
    images; batches of less than three are not made, of which one image could be left over.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    model.eval()
    kept = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # of torch: the plain mean over batches
        layer.train()
    with torch.no_grad():
        for images in feed.plain(in_batches(indices, max(3, batch_size))):
            model.features(images)
    for layer, momentum in zip(layers, kept, strict=True):
        layer.momentum = momentum
    model.eval()


def has_shifted(found: Estimate, margin: float) -> bool:
    """Whether the 95 % interval of the change of prevalence lies wholly outside of ± ``margin``."""
    return bool(found.change[0] > margin or found.change[1] < -margin)


def resample(evidence: Evidence, found: Estimate, indices: Indices) -> Indices:
    """As many of the target's images, by pseudo-label in the proportions of the source; empty where a class has none.

    Args:
        evidence: the logits of ``indices``.
        found: from the same.
        indices: (n,).
    """
    if not 0.0 < found.target < 1.0:
        return indices[:0]
    calibrated = found.slope * evidence.target.logits + found.intercept
    positive = calibrated + logit(found.target) - logit(found.source) > 0
    if positive.all() or not positive.any():
        return indices[:0]
    count = min(max(round(found.source * len(indices)), 1), len(indices) - 1)
    return np.concatenate(
        [np.resize(indices[positive], count), np.resize(indices[~positive], len(indices) - count)]
    )  # fmt: skip


def _decide(case: Case, found: list[Estimate], params: Params) -> tuple[Decision, str, Indices]:
    if not any(isinstance(module, _BatchNorm) for module in case.model.modules()):
        return "refused", "the backbone has no batch-norm", case.indices
    if len(case.indices) < params.min_images:
        return "refused", f"{len(case.indices)} images in target_adapt; min_images is {params.min_images}", case.indices
    if params.guard == "off":
        return "applied", "the guard is off", case.indices
    reasons = [each.reason for each in found if each.reason]
    if reasons:
        return "refused", f"label shift cannot be ruled out: {reasons[0]}", case.indices
    shifted = [has_shifted(each, params.margin) for each in found]
    if not any(shifted):
        return "applied", f"no change of prevalence beyond {params.margin:g} was detected", case.indices
    if params.guard == "refuse":
        note = f"the prevalence seems to change by more than {params.margin:g} (label shift, or another that looks so)"
        return "refused", note, case.indices
    if len(found) > 1:
        raise PipelineError(
            "remedies.adabn.guard: 'correct' resamples by one finding's pseudo-labels; there are "
            f"{len(found)} findings. Use 'refuse'"
        )
    chosen = resample(case.evidence[0], found[0], case.indices)
    if not len(chosen):
        return "refused", "label shift, and pseudo-labels of one class only: nothing to resample", case.indices
    return "corrected", "label shift: statistics of images resampled by pseudo-labels to the source's mix", chosen
