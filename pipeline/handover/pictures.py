"""A bundle's test pictures, of nobody: what the model must give for them tells whether it is still the same one."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

NUMBER = 4
_COARSE_PX = 8


def round_alike() -> None:
    """No TF32: a GPU's convolutions would round inputs to 10 bits, and no longer agree with a CPU's."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def draw_pictures(shape: tuple[int, int, int], bits: int) -> npt.NDArray[Any]:
    """(NUMBER, C, H, W) uint8 or uint16: coarse noise under fine noise, from a fixed generator."""
    channels, rows, columns = shape
    draw = np.random.default_rng(1)
    coarse = draw.random((NUMBER, channels, _COARSE_PX, _COARSE_PX))
    coarse = coarse.repeat(-(-rows // _COARSE_PX), axis=2).repeat(-(-columns // _COARSE_PX), axis=3)
    mixed = 0.8 * coarse[:, :, :rows, :columns] + 0.2 * draw.random((NUMBER, channels, rows, columns))
    return np.rint(mixed * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


class Pictures:
    """A store of arrays (N, C, H, W) in memory."""

    def __init__(self, pixels: npt.NDArray[Any]) -> None:
        self._pixels = pixels

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, channels, rows, columns)."""
        count, channels, rows, columns = self._pixels.shape
        return count, channels, rows, columns

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """A copy of some."""
        return self._pixels[indices]
