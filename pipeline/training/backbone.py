"""A torchvision backbone with a linear head over our findings, by name from torchvision's own registry."""

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
    """Grey images to one logit a finding: replicate to three channels, normalise, trunk, linear head."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, head: nn.Linear, spec: InputSpec) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        # Buffers move with the model and are no part of its state: they stand in model.json.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def features(self, grey: Tensor) -> Tensor:
        """(B, 1, H, W) float in [0, 1] to (B, D), what the head sees (in training mode after dropout)."""
        return self.trunk((grey.expand(-1, 3, -1, -1) - self.mean) / self.std)

    def forward(self, grey: Tensor) -> Tensor:
        """(B, 1, H, W) float in [0, 1] to logits (B, findings)."""
        return self.head(self.features(grey))


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


def build(name: str, num_findings: int, *, seed: int, state: Mapping[str, Tensor] | None) -> Classifier:
    """A classifier whose trunk has the given weights, or random ones, and whose head is drawn from ``seed``.

    Args:
        name: in torchvision's registry.
        num_findings: outputs of the head.
        seed: of everything that is random here.
        state: a state dict of the whole torchvision model; None leaves the trunk random.

    Raises:
        ParamsError: the weights do not fit the architecture (names the keys), or its last layer is not linear.
    """
    trunk = architecture(name, seed)
    if state is not None:
        load_state(trunk, state, name)
    width = _cut_head(trunk, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(width, num_findings)
    return Classifier(trunk, head, input_spec(name))


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
