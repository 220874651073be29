"""Orientation and size: arrays turned to the standard display, then resampled to a square, anti-aliased.

Directions are those of PS3.3 C.7.6.1.1.1: towards the patient's left or right (L, R), back or front (P, A), head or
feet (H, F).
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from pipeline.imaging.intensity import Grey

_AXIS = {"L": "x", "R": "x", "P": "y", "A": "y", "H": "z", "F": "z"}
# Seen from the feet, from the front, and from the patient's left.
_STANDARD = {frozenset("xy"): "LP", frozenset("xz"): "LF", frozenset("yz"): "PF"}


@dataclass(frozen=True)
class Turn:
    """What brings an array to the standard display: first the transposition, then the flips."""

    transposed: bool = False
    flipped_rows: bool = False
    flipped_columns: bool = False

    def __call__(self, grey: Grey) -> Grey:
        """(rows, columns) turned; a view."""
        turned = grey.T if self.transposed else grey
        return turned[:: -1 if self.flipped_rows else 1, :: -1 if self.flipped_columns else 1]


def turn_to_standard(orientation: str | None) -> Turn:
    """How an image comes to the standard display: axial LP, coronal LF, sagittal PF.

    So the patient's left is at the right of axial and frontal images, whichever way they were stored, and it stays
    the patient's left.

    Args:
        orientation: two letters, the directions in which columns and rows increase; None: not known, nothing is done.
    """
    if orientation is None:
        return Turn()
    first, second = orientation[0], orientation[1]
    standard = _STANDARD[frozenset((_AXIS[first], _AXIS[second]))]
    transposed = _AXIS[first] != _AXIS[standard[0]]
    if transposed:
        first, second = second, first
    return Turn(transposed, second != standard[1], first != standard[0])


@dataclass(frozen=True)
class Sampling:
    """How an image comes into the square.

    Attributes:
        size_px: edge of the square.
        spacing_mm: of its pixels; None: as the fit demands.
        fit: without ``spacing_mm``: "pad" shows the whole image, "crop" fills the square from the image's middle.
    """

    size_px: int
    spacing_mm: float | None = None
    fit: Literal["pad", "crop"] = "pad"


@dataclass(frozen=True)
class Placement:
    """Where the resized image lies in the square, in pixels; a negative pad is what was cut off."""

    resized_rows: int
    resized_columns: int
    pad_top: int
    pad_left: int


def place(
    rows: int, columns: int, sampling: Sampling, row_spacing: float = 1.0, column_spacing: float = 1.0
) -> Placement:
    """The size that an image is resized to, and its place: centred.

    Args:
        rows: of the image.
        columns: of the image.
        sampling: the square.
        row_spacing: between the centres of rows; in millimetres where ``sampling`` asks for them, else in any unit,
            so that anatomy keeps its shape where pixels are not square.
        column_spacing: as ``row_spacing``.
    """
    height, width = rows * row_spacing, columns * column_spacing
    if sampling.spacing_mm is not None:
        scale = 1.0 / sampling.spacing_mm
    else:
        scale = sampling.size_px / (max(height, width) if sampling.fit == "pad" else min(height, width))
    new_rows, new_columns = (max(1, round(length * scale)) for length in (height, width))
    return Placement(new_rows, new_columns, (sampling.size_px - new_rows) // 2, (sampling.size_px - new_columns) // 2)


def resample(grey: Grey, size_px: int, placement: Placement) -> Grey:
    """The image in its place on black.

    Area averaging where it shrinks (it does not alias; linear interpolation does), linear where it grows.

    Args:
        grey: (rows, columns) uint8 or uint16.
        size_px: edge of the square.
        placement: from ``place``.

    Returns:
        (size_px, size_px), same type.
    """
    rows, columns = grey.shape
    new_rows, new_columns = placement.resized_rows, placement.resized_columns
    resized = grey
    # What shrinks goes first, and by itself: where pixels are not square one side may shrink and the other grow.
    if new_rows < rows or new_columns < columns:
        shrunk = (min(columns, new_columns), min(rows, new_rows))
        resized = cv2.resize(resized, shrunk, interpolation=cv2.INTER_AREA)
    if new_rows > rows or new_columns > columns:
        resized = cv2.resize(resized, (new_columns, new_rows), interpolation=cv2.INTER_LINEAR)
    square: Grey = np.zeros((size_px, size_px), dtype=grey.dtype)
    square[_inside(placement.pad_top, new_rows, size_px), _inside(placement.pad_left, new_columns, size_px)] = resized[
        _inside(-placement.pad_top, size_px, new_rows), _inside(-placement.pad_left, size_px, new_columns)
    ]
    return square


def _inside(start: int, length: int, limit: int) -> slice:
    """The part of ``start`` .. ``start + length`` that lies in 0 .. ``limit``."""
    return slice(max(0, start), min(limit, start + length))
