"""What a remedy is given and gives back.

A remedy is a file beside this one, with ``Params`` and one function, whose name says what it needs:

- ``recalibrate(evidence, params)``: logits alone;
- ``adapt(case, params)``: a trained model and unlabelled images of the target, no training;
- ``align(engine, images, indices, params)``: training, with unlabelled images of the target;
- ``fit(engine, sites, params)``: training on several sources, no target.

None is given an image or a label of ``ood_test``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric

from pipeline.params import Name, StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.feed import Images, Indices

Doubles = npt.NDArray[np.float64]
Decision = Literal["applied", "corrected", "refused"]
NAN = float("nan")


class BaseParams(StrictParams):
    """``base``: the trained method that the remedy is applied to, in all its runs with all labels."""

    base: Name


@dataclass(frozen=True)
class Scores:
    """One finding's logits (n,), labels (n,) 0, 1 or NaN where unknown, and patients (n,)."""

    logits: Doubles
    labels: Doubles
    patients: npt.NDArray[np.str_]


@dataclass(frozen=True)
class Evidence:
    """What one model says of one finding: ``source`` is id_val with labels, ``target`` a site's target_adapt.

    The target's labels are NaN, but where a remedy's params have ``labelled_images``.
    """

    site: str
    finding: str
    source: Scores
    target: Scores


@dataclass(frozen=True)
class Outcome:
    """What a remedy did for one finding at one site; columns of ``tables.adaptation.Remedies``."""

    decision: Decision
    note: str
    num_labelled_used: int = 0
    source_prevalence: float = NAN
    estimated_prevalence: float = NAN
    ci_low: float = NAN
    ci_high: float = NAN
    temperature: float = NAN
    slope: float = NAN
    intercept: float = NAN


@dataclass(frozen=True)
class Case:
    """One trained model and one target site.

    Attributes:
        fabric: the device.
        layout: memory format of images.
        batch_size: where nothing is trained.
        model: on the device; the remedy's own to change.
        images: of the target site.
        indices: of target_adapt among them; at least one.
        source_images: as gathered.
        train: indices of the training side among them.
        evidence: one a finding.
    """

    fabric: Fabric
    layout: torch.memory_format
    batch_size: int
    model: Classifier
    images: Images
    indices: Indices
    source_images: Images
    train: Indices
    evidence: Sequence[Evidence]


@dataclass(frozen=True)
class Adapted:
    """The model and the target's images to use in place of the plain ones, and an outcome a finding."""

    model: Classifier
    images: Images
    outcomes: list[Outcome]
