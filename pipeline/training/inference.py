"""Trained models on images: those with one trunk go through it together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.training.backbone import Classifier
from pipeline.training.checkpoints import MODEL_CARD, load_model
from pipeline.training.feed import ImageFeed, Indices, in_batches


def model_folders(models: Path, names: list[str]) -> list[list[Path]]:
    """The folders of all runs, those with one trunk together; what params no longer name was pruned before."""
    by_trunk: dict[str, list[Path]] = {}
    for card in sorted(path for name in names for path in (models / name).glob(f"*/{MODEL_CARD}")):
        trunk = json.loads(card.read_text(encoding="utf-8"))["trunk_sha256"]
        by_trunk.setdefault(trunk, []).append(card.parent)
    return list(by_trunk.values())


def load_together(folders: list[Path]) -> tuple[Classifier, list[tuple[nn.Module, dict[str, Any]]]]:
    """Models with one trunk: the first of them, and each one's head and card; the other trunks are let go."""
    first, card = load_model(folders[0])
    members = [(first.head, card)]
    for folder in folders[1:]:
        other, card = load_model(folder)
        members.append((other.head, card))
    return first, members


def logits_of(
    trunk: Classifier, heads: list[nn.Module], feed: ImageFeed, indices: Indices, batch_size: int,
    kept: npt.NDArray[np.bool_],
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:  # fmt: skip
    """Logits (n, findings) of each head, and features (m, D) of the m images that are ``kept`` (n,).

    The images go through their common trunk once.
    """
    parts: list[list[npt.NDArray[np.float32]]] = [[] for _ in heads]
    seen, done = [], 0
    with torch.inference_mode():
        for images in feed.plain(in_batches(indices, batch_size)):
            features = trunk.features(images)
            wanted = torch.from_numpy(kept[done : done + len(images)])
            seen.append(features[wanted.to(features.device)].float().cpu().numpy())
            done += len(images)
            for head, own in zip(heads, parts, strict=True):
                own.append(head(features).float().cpu().numpy())
    return [np.concatenate(own) for own in parts], np.concatenate(seen)
