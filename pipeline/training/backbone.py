"""A torchvision backbone with a linear head over our findings, by name from torchvision's own registry."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import Inception3, VisionTransformer, get_model, get_model_weights, list_models
from torchvision.models.vision_transformer import interpolate_embeddings

from pipeline.params import ParamsError, nearest

# Its branches change what a model gives in training mode, in a way of its own; Inception's is the one we know.
_REFUSED = frozenset({"googlenet"})
INCEPTION_PX = 299  # below, the auxiliary branch's 5 x 5 convolution has nothing left to see


@dataclass(frozen=True)
class InputSpec:
    """What the weights expect: per-channel mean and standard deviation of inputs in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Classifier(nn.Module):
    """Images to one logit a finding: one channel becomes three alike, normalise, trunk, head."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, head: nn.Module, spec: InputSpec, *, pooled: bool = False) -> None:
        super().__init__()
        self.pooled = pooled
        self.trunk = trunk
        self.head = head
        # Buffers move with the model and are no part of its state: they stand in model.json.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    @property
    def input_spec(self) -> dict[str, list[float]]:
        """Mean and standard deviation per channel, as a card has them."""
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    @property
    def last(self) -> nn.Linear:
        """The linear layer that gives the logits."""
        layers = [module for module in self.head.modules() if isinstance(module, nn.Linear)]
        return layers[-1]

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float in [0, 1] to (B, D), what the head sees (in training mode after dropout)."""
        return self._trunk(images)[0]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W) float in [0, 1] to logits (B, findings).

        In training mode a backbone with an auxiliary head (Inception v3) gives its logits as well, alike in shape.
        """
        features, auxiliary = self._trunk(images)
        logits = self.head(features)
        return logits if auxiliary is None else (logits, auxiliary)

    def _trunk(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        seen = self.trunk((images.expand(-1, self.mean.shape[1], -1, -1) - self.mean) / self.std)
        return (seen[0], seen[1]) if isinstance(seen, tuple) else (seen, None)


def architecture(name: str, seed: int, size_px: int | None = None, *, empty: bool = False) -> nn.Module:
    """A torchvision model with its 1,000-class head and weights drawn from ``seed``.

    Args:
        name: in torchvision's registry.
        seed: of the weights.
        size_px: edge of the square images; None takes the architecture's own. Vision transformers alone depend on it.
        empty: without any weights, for ``load_state``: drawing VGG16's takes seconds.

    Raises:
        ParamsError: torchvision's registry has no such classifier, or it cannot take images of that size.
    """
    known = sorted(set(list_models(module=_classification_models())) - _REFUSED)
    if name in _REFUSED:
        raise ParamsError(f"backbones.{name}: its auxiliary classifiers are not supported; choose another")
    if name not in known:
        raise ParamsError(f"backbones: torchvision has no classifier '{name}'{nearest(name, known)}")
    options: dict[str, Any] = {}
    if name == "inception_v3":
        # As torchvision builds it for its weights: inputs normalised as ImageNet's are scaled to [-1, 1] inside.
        options = {"transform_input": True, "init_weights": True}
    elif name.startswith("vit_") and size_px is not None:
        patch_px = int(name.rsplit("_", 1)[1])
        if size_px % patch_px:
            raise ParamsError(
                f"backbones.{name}: images must be a multiple of {patch_px} px wide; preprocess.size_px is {size_px}"
            )
        options = {"image_size": size_px}
    # RegNet works its widths out with tensors, which need values.
    empty = empty and not name.startswith("regnet")
    with torch.random.fork_rng(devices=[]), torch.device("meta") if empty else nullcontext():
        torch.manual_seed(seed)
        return get_model(name, weights=None, **options)


def input_spec(name: str) -> InputSpec:
    """The normalisation of the architecture's default weights in torchvision."""
    transforms = get_model_weights(name).DEFAULT.transforms()
    return InputSpec(tuple(transforms.mean), tuple(transforms.std))


def build(
    name: str,
    num_findings: int,
    *,
    seed: int,
    state: Mapping[str, Tensor] | None,
    image_shape: tuple[int, int, int] = (1, 224, 224),
    hidden: int | None = None,
    pooled: bool = False,
    empty: bool = False,
) -> Classifier:
    """A classifier whose trunk has the given weights, or random ones, and whose head is drawn from ``seed``.

    Args:
        name: in torchvision's registry.
        num_findings: outputs of the head.
        seed: of everything that is random here.
        state: a state dict of the whole torchvision model; None leaves the trunk random.
        image_shape: (C, H, W); other than one or three channels (neighbouring slices) change the first convolution,
            another size than the weights' a vision transformer's table of positions (interpolated).
        hidden: units of a layer with ReLU in the head, before its linear layer; None for a linear head.
        pooled: features are the last map of the convolutions, averaged, where the architecture has more layers
            after it (VGG, AlexNet, MobileNet V3); elsewhere it changes nothing.
        empty: with ``state`` None, without any weights in the trunk, for ``load_state``.

    Raises:
        ParamsError: the weights do not fit the architecture (names the keys), its last layer is not linear, or it
            cannot take such images.
    """
    channels, rows, columns = image_shape
    if name.startswith("vit_") and rows != columns:
        raise ParamsError(f"backbones.{name}: it takes square images only; they are {rows} x {columns} px")
    if name == "inception_v3" and min(rows, columns) < INCEPTION_PX:
        raise ParamsError(
            f"backbones.{name}: its auxiliary head needs images of {INCEPTION_PX} px; they are {rows} x {columns}. "
            f"Set preprocess.size_px: {INCEPTION_PX}"
        )
    trunk = architecture(name, seed, rows, empty=empty or state is not None)
    if state is not None:
        load_state(trunk, resize_positions(state, trunk), name)
    width = _pool(trunk) if pooled and has_hidden_layers(trunk) else _cut_head(trunk, name)
    spec = input_spec(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head: nn.Module = nn.Linear(hidden or width, num_findings)
        if hidden:
            head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), head)
        if isinstance(trunk, Inception3) and trunk.AuxLogits is not None:
            trunk.AuxLogits.fc = nn.Linear(trunk.AuxLogits.fc.in_features, num_findings)
        if channels not in (1, 3):
            _widen_input(trunk, name, channels, pretrained=state is not None)
            spec = InputSpec(
                *(tuple(values[index % 3] for index in range(channels)) for values in (spec.mean, spec.std))
            )
    return Classifier(trunk, head, spec, pooled=pooled)


def resize_positions(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """A vision transformer's state for ``model``'s image size, its table of positions interpolated (bicubic)."""
    if not isinstance(model, VisionTransformer) or "encoder.pos_embedding" not in state:
        return state
    return interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(state))


def has_hidden_layers(model: nn.Module) -> bool:
    """Whether there are layers between the pooled map of the convolutions and the last linear layer."""
    classifier = getattr(model, "classifier", None)
    return isinstance(classifier, nn.Sequential) and sum(isinstance(layer, nn.Linear) for layer in classifier) > 1


def blocks(trunk: nn.Module) -> list[list[str]]:
    """A trunk's parameters by name, in blocks from the input to the output.

    Modules in the order of their registration, which in torchvision is that of the forward pass. Plain sequences are
    opened, and so is a module that holds more than half of all parameters: what is left are residual, dense or
    transformer blocks, and single layers where there are none.
    """
    total = sum(parameter.numel() for parameter in trunk.parameters())

    def opened(module: nn.Module, prefix: str) -> Iterator[list[str]]:
        own = [prefix + name for name, _ in module.named_parameters(recurse=False)]
        if own:
            yield own
        for name, child in module.named_children():
            size = sum(parameter.numel() for parameter in child.parameters())
            if list(child.children()) and (type(child) is nn.Sequential or size * 2 > total):
                yield from opened(child, f"{prefix}{name}.")
            elif size:
                yield [f"{prefix}{name}.{inner}" for inner, _ in child.named_parameters()]

    return list(opened(trunk, ""))


def _widen_input(trunk: nn.Module, name: str, channels: int, *, pretrained: bool) -> None:
    """Replace the first convolution by one of so many channels.

    Pretrained filters are repeated in turn and scaled by 3 / channels, so that the response keeps its size (as in
    timm's ``adapt_input_conv``); others are drawn anew.
    """
    old = next((module for module in trunk.modules() if isinstance(module, nn.Conv2d)), None)
    if old is None or old.in_channels != 3 or old.groups != 1 or isinstance(trunk, Inception3):
        raise ParamsError(f"backbones.{name}: it takes three channels only; set preprocess.neighbours: 3")
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
    empty = any(value.is_meta for value in own.values())
    own.update({key: value.clone() for key, value in state.items()} if empty else state)
    for key, value in own.items():
        if value.is_meta:  # a counter that the file lacks
            own[key] = torch.zeros(value.shape, dtype=value.dtype)
    model.load_state_dict(own, assign=empty)


def _cut_head(model: nn.Module, name: str) -> int:
    """Replace the classifier's last linear layer by the identity; returns the number of its inputs."""
    last = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    if not last:
        raise ParamsError(f"backbones.{name}: its last layer is not linear, which a replaceable head needs")
    path, linear = last[0]
    parent = model.get_submodule(path.rpartition(".")[0]) if "." in path else model
    setattr(parent, path.rpartition(".")[2], nn.Identity())
    return linear.in_features


def _pool(model: Any) -> int:
    """Take off all that follows the convolutions, whose last map is averaged; returns its channels."""
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Identity()
    return [module for module in model.features.modules() if isinstance(module, nn.Conv2d)][-1].out_channels


def _classification_models() -> object:
    import torchvision.models as classifiers

    return classifiers
