"""A torchvision backbone with a linear head over our findings, by name from torchvision's own registry."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from pipeline.params import ParamsError, nearest

# In training mode these return several outputs, and their constructors warn.
_AUXILIARY = frozenset({"googlenet", "inception_v3"})


@dataclass(frozen=True)
class InputSpec:
    """What the weights expect: per-channel mean and standard deviation of inputs in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Classifier(nn.Module):
    """Images to one logit a finding: one channel becomes three alike, normalise, trunk, linear head."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, head: nn.Linear, spec: InputSpec) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        # Buffers move with the model and are no part of its state: they stand in model.json.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    @property
    def input_spec(self) -> dict[str, list[float]]:
        """Mean and standard deviation per channel, as a card has them."""
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float in [0, 1] to (B, D), what the head sees (in training mode after dropout)."""
        return self.trunk((images.expand(-1, self.mean.shape[1], -1, -1) - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float in [0, 1] to logits (B, findings)."""
        return self.head(self.features(images))


def architecture(name: str, seed: int) -> nn.Module:
    """A torchvision model with its 1,000-class head and weights drawn from ``seed``.

    Raises:
        ParamsError: torchvision's registry has no such classifier, or it has auxiliary heads.
    """
    known = sorted(set(list_models(module=_classification_models())) - _AUXILIARY)
    if name in _AUXILIARY:
        raise ParamsError(f"backbones.{name}: its auxiliary classifiers are not supported; choose another")
    if name not in known:
        raise ParamsError(f"backbones: torchvision has no classifier '{name}'{nearest(name, known)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_model(name, weights=None)


def input_spec(name: str) -> InputSpec:
    """The normalisation of the architecture's default weights in torchvision."""
    transforms = get_model_weights(name).DEFAULT.transforms()
    return InputSpec(tuple(transforms.mean), tuple(transforms.std))


def build(
    name: str, num_findings: int, *, seed: int, state: Mapping[str, Tensor] | None, channels: int = 1
) -> Classifier:
    """A classifier whose trunk has the given weights, or random ones, and whose head is drawn from ``seed``.

    Args:
        name: in torchvision's registry.
        num_findings: outputs of the head.
        seed: of everything that is random here.
        state: a state dict of the whole torchvision model; None leaves the trunk random.
        channels: of the images; other than one or three (neighbouring slices) they change the first convolution.

    Raises:
        ParamsError: the weights do not fit the architecture (names the keys), or its last layer is not linear.
    """
    trunk = architecture(name, seed)
    if state is not None:
        load_state(trunk, state, name)
    width = _cut_head(trunk, name)
    spec = input_spec(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(width, num_findings)
        if channels not in (1, 3):
            _widen_input(trunk, name, channels, pretrained=state is not None)
            spec = InputSpec(
                *(tuple(values[index % 3] for index in range(channels)) for values in (spec.mean, spec.std))
            )
    return Classifier(trunk, head, spec)


def _widen_input(trunk: nn.Module, name: str, channels: int, *, pretrained: bool) -> None:
    """Replace the first convolution by one of so many channels.

    Pretrained filters are repeated in turn and scaled by 3 / channels, so that the response keeps its size (as in
    timm's ``adapt_input_conv``); others are drawn anew.
    """
    old = next((module for module in trunk.modules() if isinstance(module, nn.Conv2d)), None)
    if old is None or old.in_channels != 3 or old.groups != 1:
        raise ParamsError(f"backbones.{name}: its first layer takes three channels only; set preprocess.neighbours: 3")
    # In place: all else about the layer stays as the architecture has it.
    old.in_channels = channels
    old.weight = nn.Parameter(old.weight.detach().repeat(1, math.ceil(channels / 3), 1, 1)[:, :channels] * 3 / channels)
    if not pretrained:
        old.reset_parameters()


def load_state(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load weights that must fit exactly, but for batch-norm's counters, which files from before 2018 lack.

    Raises:
        ParamsError: keys are missing or surplus, or shapes differ; names the first few.
    """
    own = model.state_dict()
    missing = sorted(key for key in set(own) - set(state) if not key.endswith(".num_batches_tracked"))
    surplus = sorted(set(state) - set(own))
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or surplus or shapes:
        told = "; ".join(
            f"{what}: {', '.join(keys[:5])}{' ...' if len(keys) > 5 else ''} ({len(keys)})"
            for what, keys in (("missing", missing), ("surplus", surplus), ("other shape", shapes))
            if keys
        )
        raise ParamsError(f"backbones.{name}: the weights do not fit the architecture. {told}")
    # Into the model's own mapping: its metadata says which layout this is, and MNASNet refuses one without.
    own.update(state)
    model.load_state_dict(own)


def _cut_head(model: nn.Module, name: str) -> int:
    """Replace the classifier's last linear layer by the identity; returns the number of its inputs."""
    last = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    if not last:
        raise ParamsError(f"backbones.{name}: its last layer is not linear, which a replaceable head needs")
    path, linear = last[0]
    parent = model.get_submodule(path.rpartition(".")[0]) if "." in path else model
    setattr(parent, path.rpartition(".")[2], nn.Identity())
    return linear.in_features


def _classification_models() -> object:
    import torchvision.models as classifiers

    return classifiers
