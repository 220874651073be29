"""Weights and models on disk: safetensors for the numbers, JSON for what they are; and where a killed run goes on."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.training.backbone import Classifier, build, load_state

CHECKPOINT_SECONDS = 30.0  # what a killed run loses, at most, besides the steps between two looks at the clock

WEIGHTS_FILE, WEIGHTS_CARD = "weights.safetensors", "weights.json"
MODEL_FILE, MODEL_CARD = "model.safetensors", "model.json"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_weights(state: Mapping[str, Tensor], card: Mapping[str, Any], folder: Path) -> None:
    """A backbone's state dict and its card (where it comes from)."""
    _save(state, card, folder, WEIGHTS_FILE, WEIGHTS_CARD)


def load_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A backbone's state dict and card, as ``fetch_weights`` left them.

    Raises:
        PipelineError: they are not there, or the weights are not those of the card.
    """
    return _load(folder, WEIGHTS_FILE, WEIGHTS_CARD, "run `python -m pipeline.commands.fetch_weights`")


def save_model(model: Classifier, card: Mapping[str, Any], folder: Path) -> None:
    """A trained classifier and its card, which holds all that ``load_model`` needs."""
    _save(model.state_dict(), card, folder, MODEL_FILE, MODEL_CARD)


def load_model(folder: Path) -> tuple[Classifier, dict[str, Any]]:
    """A trained classifier in evaluation mode, and its card.

    Raises:
        PipelineError: it is not there, or the weights are not those of the card.
    """
    state, card = _load(folder, MODEL_FILE, MODEL_CARD, "run `dvc repro`")
    model = build(
        card["backbone"],
        len(card["findings"]),
        seed=0,
        state=None,
        image_shape=tuple(card["image_shape"]),
        hidden=card["hidden"],
        pooled=card["pooled"],
        empty=True,
    )
    load_state(model, state, card["backbone"])
    model.mean = torch.tensor(card["input"]["mean"]).view(1, -1, 1, 1)
    model.std = torch.tensor(card["input"]["std"]).view(1, -1, 1, 1)
    return model.eval(), card


def trunk_digest(model: Classifier) -> str:
    """SHA-256 over names and values of a trunk: models with one trunk differ in their heads alone."""
    total = hashlib.sha256(f"{model.pooled}".encode())
    for name, value in sorted(model.trunk.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().numpy())
    return total.hexdigest()


class Checkpoint:
    """A file that holds how far a phase of training is; replaced as a whole, so that it is never half."""

    def __init__(self, path: Path, seconds: float | None = None) -> None:
        self.path = path
        self._seconds = CHECKPOINT_SECONDS if seconds is None else seconds
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether the last one is so old that another is worth its time. It decides what a kill costs, no result."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace what is there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".part")
        torch.save(dict(state), partial)
        partial.replace(self.path)
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """What was saved last, on the CPU; None where nothing was.

        Raises:
            PipelineError: it cannot be read.
        """
        if not self.path.is_file():
            return None
        try:
            return dict(torch.load(self.path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise PipelineError(f"{self.path} is damaged ({type(error).__name__}); delete it and run again") from None


def _save(state: Mapping[str, Tensor], card: Mapping[str, Any], folder: Path, weights: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # No metadata: safetensors writes several keys of it in random order.
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / weights)
    full = {**card, "file_sha256": file_sha256(folder / weights)}
    (folder / text).write_text(json.dumps(full, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _load(folder: Path, weights: str, text: str, advice: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not (folder / weights).is_file() or not (folder / text).is_file():
        raise PipelineError(f"{folder}: {weights} or {text} is not there; {advice}")
    card = json.loads((folder / text).read_text(encoding="utf-8"))
    if file_sha256(folder / weights) != card["file_sha256"]:
        raise PipelineError(f"{folder}: {weights} is not the file that {text} describes; {advice}")
    return load_file(folder / weights), card
