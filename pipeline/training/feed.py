"""What training sees, from the store or from cached features to the device; no batch or device count changes it.

The next batches are read by a thread, into pinned memory where there is a GPU, while the device works on this one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from monai.networks.layers import AffineTransform
from pydantic import Field
from torch import Tensor

from pipeline.imaging.intensity import Grey
from pipeline.params import StrictParams

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

READ_AHEAD = 2  # batches; one is read while one waits


class AugmentParams(StrictParams):
    """Largest deviations, drawn uniformly: degrees, fractions of the edge, of the size, of the contrast.

    No flips: they would exchange left and right, which is a finding in itself (situs, side markers).
    """

    rotation_degrees: float = Field(default=10.0, ge=0.0, le=180.0)
    translation: float = Field(default=0.05, ge=0.0, lt=0.5)
    scale: float = Field(default=0.1, ge=0.0, lt=0.5)
    contrast: float = Field(default=0.1, ge=0.0, lt=1.0)


class Images(Protocol):
    """A store, or something alike in memory."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, channels, rows, columns)."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Indices) -> Grey:
        """(B, C, H, W)."""
        ...


@dataclass(frozen=True)
class Dataset:
    """What training may see.

    Attributes:
        images: N images (C, H, W), memory-mapped.
        labels: (N, findings) float32, NaN where not annotated.
        patients: (N,) pseudonyms.
        train: indices of the images to train on, of which the run has labels.
        pool: indices of all images of the training side, labelled or not.
        id_val: indices of the images to select on.
        image_ids: (N,) pseudonyms, for errors.
    """

    images: Images
    labels: Floats
    patients: npt.NDArray[np.str_]
    train: Indices
    pool: Indices
    id_val: Indices
    image_ids: npt.NDArray[np.str_]


class Feed(Protocol):
    """Inputs of a model, batch by batch, in order."""

    def training(self, batches: Iterable[Indices], epoch: int) -> Iterator[Tensor]:
        """As they are trained on."""
        ...

    def plain(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """As they are judged."""
        ...


@dataclass(frozen=True)
class ImageFeed:
    """Images (B, C, H, W) float32 in [0, 1] on the device, augmented there by draws for each image and epoch."""

    images: Images
    device: torch.device
    layout: torch.memory_format
    augmentation: AugmentParams
    seed: int

    def training(self, batches: Iterable[Indices], epoch: int) -> Iterator[Tensor]:
        """Augmented."""
        theta, contrast = draw_affine(len(self.images), self.seed, epoch, self.augmentation)
        for batch, pixels in read_ahead(self._read, batches):
            yield augment(
                to_unit(pixels, self.device, self.layout),
                torch.from_numpy(theta[batch]).to(self.device, non_blocking=True),
                torch.from_numpy(contrast[batch]).to(self.device, non_blocking=True),
            )

    def plain(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """As they are."""
        for _, pixels in read_ahead(self._read, batches):
            yield to_unit(pixels, self.device, self.layout)

    def _read(self, batch: Indices) -> Tensor:
        pixels = torch.from_numpy(self.images.read(batch))
        return pixels.pin_memory() if self.device.type == "cuda" else pixels


@dataclass(frozen=True)
class FeatureFeed:
    """Rows of cached features (B, D) float32 on the device."""

    features: Tensor  # (N, D), on the device

    def training(self, batches: Iterable[Indices], epoch: int) -> Iterator[Tensor]:  # noqa: ARG002 (the same each epoch)
        """As they are: nothing can be augmented any more."""
        return self.plain(batches)

    def plain(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """As they are."""
        for batch in batches:
            yield self.features[torch.from_numpy(batch).to(self.features.device)]


def read_ahead(read: Callable[[Indices], Tensor], batches: Iterable[Indices]) -> Iterator[tuple[Indices, Tensor]]:
    """Batches and what ``read`` gives of each, in order; a thread is ``READ_AHEAD`` batches ahead."""
    waiting: deque[tuple[Indices, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            waiting.append((batch, thread.submit(read, batch)))
            if len(waiting) > READ_AHEAD:
                done, pixels = waiting.popleft()
                yield done, pixels.result()
        while waiting:
            done, pixels = waiting.popleft()
            yield done, pixels.result()


def to_unit(images: Tensor, device: torch.device, memory_format: torch.memory_format) -> Tensor:
    """(B, C, H, W) uint8 or uint16 to float32 in [0, 1] on the device; the integers travel, floats are made there."""
    batch = images.to(device, non_blocking=True)
    return (batch.float() / float(torch.iinfo(images.dtype).max)).contiguous(memory_format=memory_format)


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
