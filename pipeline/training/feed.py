"""Images from the store to the device, and their augmentation, which no batch or device count changes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.networks.layers import AffineTransform
from pydantic import Field
from torch import Tensor

from pipeline.imaging.intensity import Grey
from pipeline.imaging.store import Store
from pipeline.params import StrictParams

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class AugmentParams(StrictParams):
    """Largest deviations, drawn uniformly: degrees, fractions of the edge, of the size, of the contrast.

    No flips: they would exchange left and right, which is a finding in itself (situs, side markers).
    """

    rotation_degrees: float = Field(default=10.0, ge=0.0, le=180.0)
    translation: float = Field(default=0.05, ge=0.0, lt=0.5)
    scale: float = Field(default=0.1, ge=0.0, lt=0.5)
    contrast: float = Field(default=0.1, ge=0.0, lt=1.0)


@dataclass(frozen=True)
class Dataset:
    """What training may see.

    Attributes:
        images: N images (C, H, W), memory-mapped.
        labels: (N, findings) float32, NaN where not annotated.
        patients: (N,) pseudonyms.
        train: indices of the images to train on.
        id_val: indices of the images to select on.
    """

    images: Store
    labels: Floats
    patients: npt.NDArray[np.str_]
    train: Indices
    id_val: Indices


def to_unit(images: Grey, device: torch.device, memory_format: torch.memory_format) -> Tensor:
    """(B, C, H, W) uint8 or uint16 to float32 in [0, 1] on the device; the integers travel, floats are made there."""
    batch = torch.from_numpy(images).to(device, non_blocking=True)
    return (batch.float() / float(np.iinfo(images.dtype).max)).contiguous(memory_format=memory_format)


def in_batches(indices: Indices, batch_size: int) -> Iterator[Indices]:
    """Near-equal batches: a last batch of one image would have no variance for batch-norm."""
    yield from np.array_split(indices, max(1, -(-len(indices) // batch_size)))


def epoch_order(train: Indices, seed: int, epoch: int) -> Indices:
    """The training images in the order of one epoch."""
    return np.random.default_rng([seed, epoch, 0]).permutation(train)


def draw_affine(count: int, seed: int, epoch: int, params: AugmentParams) -> tuple[Floats, Floats]:
    """One epoch's augmentation of all images of the store, by array index, whichever of them are used.

    Args:
        count: images in the store.
        seed: of the run.
        epoch: from 0.
        params: largest deviations.

    Returns:
        (count, 2, 3) maps from output to input coordinates in [-1, 1] (x, y), and (count,) contrast factors.
    """
    draws = np.random.default_rng([seed, epoch, 1]).uniform(-1.0, 1.0, (count, 5))
    angle = np.deg2rad(draws[:, 0] * params.rotation_degrees)
    zoom = 1.0 + draws[:, 1] * params.scale
    cosine, sine = np.cos(angle) * zoom, np.sin(angle) * zoom
    # translation in fractions of the edge; the coordinates' edge is 2 long
    shift = draws[:, 2:4] * 2.0 * params.translation
    theta = np.stack(
        [np.stack([cosine, -sine, shift[:, 0]], axis=1), np.stack([sine, cosine, shift[:, 1]], axis=1)], axis=1
    )
    return theta.astype(np.float32), (1.0 + draws[:, 4] * params.contrast).astype(np.float32)


def augment(images: Tensor, theta: Tensor, contrast: Tensor) -> Tensor:
    """Apply drawn parameters: bilinear, black outside.

    Args:
        images: (B, C, H, W) float in [0, 1].
        theta: (B, 2, 3), see ``draw_affine``.
        contrast: (B,) factors about the image's own mean.

    Returns:
        (B, C, H, W) float in [0, 1].
    """
    warp = AffineTransform(normalized=True, padding_mode="zeros", align_corners=False, reverse_indexing=False)
    moved = warp(images, theta)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    return ((moved - mean) * contrast.view(-1, 1, 1, 1) + mean).clamp(0.0, 1.0)
