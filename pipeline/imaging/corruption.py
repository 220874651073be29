"""Shifts of acquisition, made on stored images: six kinds at five severities, each hanging on its image alone.

After Hendrycks & Dietterich (2019, ICLR, ImageNet-C), with the kinds that hospitals differ in and from weaker strengths
on, through MONAI's transforms. Lengths are shares of the edge, so that they mean the same at any size. What comes out
is stored as the image was (8 or 16 bits), as it would have come from such a scanner. The noise is the same picture at
all severities, scaled.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.transforms import AdjustContrast, RandGaussianNoise, RandSimulateLowResolution, ScaleIntensityRange
from torch import Tensor

from pipeline.imaging.intensity import Grey

SEVERITIES = 5


@dataclass(frozen=True)
class Corruption:
    """A row of ``CORRUPTIONS``.

    ``strengths[severity]``, in ``unit``; ``strengths[0]`` is no corruption. ``apply`` takes an image (C, H, W) float32
    in [0, 1], a strength and the image's key (``image_key``), and gives the same shape, not yet clipped to [0, 1].
    """

    unit: str
    strengths: tuple[float, float, float, float, float, float]
    apply: Callable[[Tensor, float, int], Tensor]


def image_key(seed: int, image_id: str) -> int:
    """What an image's noise hangs on, 0 to 2^32 - 1: seed and name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{image_id}".encode()).digest()[:4], "big")


def corrupt(image: Grey, kind: str, severity: int, key: int) -> Grey:
    """An image as another acquisition would have stored it.

    Args:
        image: (C, H, W) uint8 or uint16; 0 is black and the type's largest number white.
        kind: in ``CORRUPTIONS``.
        severity: 0 (none) to ``SEVERITIES``.
        key: see ``image_key``.

    Returns:
        The same shape and type.
    """
    if severity == 0:
        return image
    top = np.iinfo(image.dtype).max
    corruption = CORRUPTIONS[kind]
    unit = torch.from_numpy(image.astype(np.float32) / top)
    made: npt.NDArray[np.float32] = np.asarray(corruption.apply(unit, corruption.strengths[severity], key))
    return np.rint(made.clip(0.0, 1.0) * top).astype(image.dtype)


def _noise(image: Tensor, strength: float, key: int) -> Tensor:
    return RandGaussianNoise(prob=1.0, std=strength, sample_std=False).set_random_state(key)(image)


def _blur(image: Tensor, strength: float, key: int) -> Tensor:  # noqa: ARG001 (one signature for all)
    kernel = gaussian_1d(torch.tensor(strength * image.shape[-1]))
    # Not GaussianSmooth: it pads with zeros, which darkens the border.
    return separable_filtering(image[None], [kernel, kernel], mode="replicate")[0]


def _gamma(image: Tensor, strength: float, key: int) -> Tensor:  # noqa: ARG001
    return AdjustContrast(strength)(image)


def _window(image: Tensor, strength: float, key: int) -> Tensor:  # noqa: ARG001
    return ScaleIntensityRange(0.5 - strength / 2, 0.5 + strength / 2, 0.0, 1.0, clip=True)(image)


def _resolution(image: Tensor, strength: float, key: int) -> Tensor:  # noqa: ARG001
    return RandSimulateLowResolution(1.0, "area", "bilinear", zoom_range=(1.0 / strength, 1.0 / strength))(image)


def _marker(image: Tensor, strength: float, key: int) -> Tensor:  # noqa: ARG001
    """A white mark like a 7 in the top right corner; a larger one covers a smaller one."""
    edge = image.shape[-1]
    size, margin = max(round(strength * edge), 2), round(0.03 * edge)
    stroke, right = max(size // 4, 1), edge - margin
    marked = image.clone()
    marked[:, margin : margin + stroke, right - size : right] = 1.0
    marked[:, margin : margin + size, right - stroke : right] = 1.0
    return marked


CORRUPTIONS: dict[str, Corruption] = {
    "noise": Corruption("SD, share of the grey range", (0.0, 0.02, 0.04, 0.08, 0.12, 0.18), _noise),
    "blur": Corruption("SD, share of the edge", (0.0, 0.005, 0.009, 0.013, 0.018, 0.027), _blur),
    "gamma": Corruption("exponent between darkest and brightest", (1.0, 1.1, 1.25, 1.4, 1.7, 2.0), _gamma),
    "window": Corruption("width about the middle, share of the grey range", (1.0, 0.9, 0.75, 0.6, 0.45, 0.3), _window),
    "resolution": Corruption("pixels along the edge for one that is kept", (1.0, 2.0, 3.0, 4.0, 6.0, 8.0), _resolution),
    "marker": Corruption("height and width, share of the edge", (0.0, 0.06, 0.09, 0.12, 0.16, 0.2), _marker),
}
