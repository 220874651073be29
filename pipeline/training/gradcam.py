"""Grad-CAM: where the last map of the convolutions spoke for a call (Selvaraju 2017, ICCV, doi 10.1109/ICCV.2017.74).

The map is the weighted sum of the channels of the last map A of the convolutions, rectified:

    L = ReLU( sum_k w_k A_k ),   w_k = mean over rows and columns of d y / d A_k

y is the logit where the run called the finding present, and minus the logit where it called it absent: as a network
with one output for each of the two would have it. MONAI computes it (``monai.visualize.GradCAM``). It shows where, not
why, at the coarse size of A; and it can look sensible for a model that is not (Adebayo 2018, arXiv 1810.03292).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from monai.visualize import GradCAM
from monai.visualize.visualizer import default_upsampler
from torch import Tensor, nn
from torchvision.models import (
    VGG,
    AlexNet,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    Inception3,
    MNASNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
)

from pipeline.training.backbone import Classifier

Floats = npt.NDArray[np.float32]

NO_MAP = "no map for this architecture"


def _spelled_out(trunk: DenseNet) -> nn.Sequential:
    """DenseNet's forward pass as modules: it rectifies its last map as a function, in place, where no hook is heard."""
    parts = {
        "features": trunk.features,
        "rectified": nn.ReLU(),
        "pooled": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "classifier": trunk.classifier,
    }
    return nn.Sequential(OrderedDict(parts))


# What gives the last map that has rows and columns, after its activation: before the pooling, of VGG and AlexNet the
# last of several.
_LAST_MAP: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    AlexNet: lambda trunk: trunk.features[-2],
    ConvNeXt: lambda trunk: trunk.features[-1],
    DenseNet: lambda trunk: trunk.rectified,  # as _spelled_out has it
    EfficientNet: lambda trunk: trunk.features[-1],
    Inception3: lambda trunk: trunk.Mixed_7c,
    MNASNet: lambda trunk: trunk.layers[-1],
    MobileNetV2: lambda trunk: trunk.features[-1],
    MobileNetV3: lambda trunk: trunk.features[-1],
    RegNet: lambda trunk: trunk.trunk_output[-1],
    ResNet: lambda trunk: trunk.layer4[-1],
    ShuffleNetV2: lambda trunk: trunk.conv5,
    VGG: lambda trunk: trunk.features[-2],
}


def has_map(model: Classifier) -> bool:
    """Whether Grad-CAM is defined: vision transformers have tokens in the place of a last map of convolutions."""
    return type(model.trunk) in _LAST_MAP


class _Calls(nn.Module):
    """Logits for each finding, then against each."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return torch.cat([logits, -logits], dim=1)


class Maps(NamedTuple):
    """Maps of at least 0, float32: (B, H, W) at the images' size, and (B, h, w) as the network has them."""

    values: Floats
    coarse: Floats


class MapMaker:
    """Grad-CAM of one trained model, which it takes over: the model gets hooks and cannot be trained any more."""

    def __init__(self, model: Classifier) -> None:
        """Find the last map.

        Raises:
            ValueError: there is none (``has_map``).
        """
        if not has_map(model):
            raise ValueError(f"{type(model.trunk).__name__}: {NO_MAP}")
        self._findings = model.last.out_features
        find = _LAST_MAP[type(model.trunk)]
        if isinstance(model.trunk, DenseNet):
            model.trunk = _spelled_out(model.trunk)
        last = find(model.trunk)
        calls = _Calls(model.eval())
        # No gradient goes further back than the map's own layer, which saves its time and memory.
        calls.requires_grad_(requires_grad=False)
        last.register_forward_pre_hook(lambda _, given: (given[0].detach().requires_grad_(requires_grad=True),))
        name = next(name for name, module in calls.named_modules() if module is last)
        self._cam = GradCAM(calls, target_layers=name)

    def maps(self, images: Tensor, finding: int, *, present: bool) -> Maps:
        """What spoke for the call that a finding is present, or absent.

        Args:
            images: (B, C, H, W) float in [0, 1].
            finding: position of the finding among the model's.
            present: the call.
        """
        coarse = self._cam.compute_map(images, class_idx=finding + (0 if present else self._findings))
        fine = default_upsampler(images.shape[2:])(coarse.detach())  # bilinear
        return Maps(fine[:, 0].numpy(), coarse[:, 0].detach().numpy())
