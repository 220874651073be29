"""Weights and models on disk: safetensors for the numbers, JSON for what they are."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.training.backbone import Classifier, InputSpec, build, load_state

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
    model = build(card["backbone"], len(card["findings"]), seed=0, state=None, channels=card["channels"])
    load_state(model, state, card["backbone"])
    spec = InputSpec(tuple(card["input"]["mean"]), tuple(card["input"]["std"]))
    model.mean.copy_(torch.tensor(spec.mean).view_as(model.mean))
    model.std.copy_(torch.tensor(spec.std).view_as(model.std))
    return model.eval(), card


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
