"""Resizing to a square in pixels, aspect ratio kept, anti-aliased."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Placement:
    """Where the resized image lies in the square, in pixels."""

    resized_rows: int
    resized_columns: int
    pad_top: int
    pad_left: int


def fit_square(
    grey: npt.NDArray[np.uint8], size_px: int, row_to_column_spacing: float = 1.0
) -> tuple[npt.NDArray[np.uint8], Placement]:
    """The whole image, scaled to fit into a square and centred on black.

    Area averaging where it shrinks (it does not alias; linear interpolation does), linear where it grows.

    Args:
        grey: (rows, columns) uint8.
        size_px: edge of the square.
        row_to_column_spacing: row spacing over column spacing, so that anatomy keeps its shape where pixels
            are not square.

    Returns:
        (size_px, size_px) uint8, and where the image lies in it.
    """
    rows, columns = grey.shape
    height, width = rows * row_to_column_spacing, float(columns)
    scale = size_px / max(height, width)
    new_rows = min(size_px, max(1, round(height * scale)))
    new_columns = min(size_px, max(1, round(width * scale)))
    # What shrinks goes first, and by itself: where pixels are not square one side may shrink and the other grow.
    shrunk = cv2.resize(grey, (min(columns, new_columns), min(rows, new_rows)), interpolation=cv2.INTER_AREA)
    resized = cv2.resize(shrunk, (new_columns, new_rows), interpolation=cv2.INTER_LINEAR)
    top, left = (size_px - new_rows) // 2, (size_px - new_columns) // 2
    square = np.zeros((size_px, size_px), dtype=np.uint8)
    square[top : top + new_rows, left : left + new_columns] = resized
    return square, Placement(new_rows, new_columns, top, left)
