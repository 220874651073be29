"""From modality values to display grey in [0, 1]: VOI first, then polarity, then padding (PS3.3 C.11.2, PS3.4 N.2).

All arrays are (rows, columns); modality values float32 (Hounsfield units for CT, else the vendor's own).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True)
class Window:
    """A VOI window in modality units (PS3.3 C.11.2.1.2)."""

    center: float
    width: float
    function: VoiFunction = "LINEAR"


@dataclass(frozen=True)
class VoiLut:
    """A VOI LUT (PS3.3 C.11.2.1.1): ``values`` (n,) float32 in [0, 1] for inputs ``first``, ``first`` + 1, ..."""

    first: int
    values: Floats


@dataclass(frozen=True)
class Range:
    """No VOI given: low and high map to 0 and 1."""

    low: float
    high: float


Voi = Window | VoiLut | Range

# The usual CT windows in Hounsfield units (centre, width).
NAMED_WINDOWS = {
    "soft_tissue": Window(40, 400),
    "lung": Window(-600, 1500),
    "bone": Window(400, 1800),
    "brain": Window(40, 80),
    "mediastinum": Window(50, 350),
}


@dataclass(frozen=True)
class ModalityImage:
    """An image before display: what an adapter hands to preprocessing.

    Attributes:
        values: (rows, columns) float32, modality units.
        voi: what the header says; None where it says nothing.
        inverted: low values are to be shown white (MONOCHROME1, or PresentationLUTShape INVERSE).
        padding: (rows, columns) bool, True where no tissue was imaged; None for nowhere.
    """

    values: Floats
    voi: Voi | None
    inverted: bool
    padding: npt.NDArray[np.bool_] | None = field(default=None)


def apply_window(values: Floats, window: Window) -> Floats:
    """Modality values through a window, to [0, 1].

    LINEAR: PS3.3 C.11.2.1.2.1 (width at least 1; note the halves: the window spans width - 1 units);
    LINEAR_EXACT: C.11.2.1.3.2; SIGMOID: C.11.2.1.3.1.

    Raises:
        ValueError: the width is below what the standard allows.
    """
    least = 1.0 if window.function == "LINEAR" else 0.0
    if window.width < least or (window.width == 0.0):
        raise ValueError(f"window width must be at least 1 (LINEAR) or above 0, got {window.width}")
    center, width = np.float32(window.center), np.float32(window.width)
    if window.function == "SIGMOID":
        # exp of large arguments is infinite and 1 / infinity is 0, which is right.
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(np.float32(-4.0) * (values - center) / width)), dtype=np.float32)
    if window.function == "LINEAR":
        if window.width == 1.0:
            # The two limits of C.11.2.1.2.1 coincide: a step.
            return (values > center - np.float32(0.5)).astype(np.float32)
        center, width = center - np.float32(0.5), width - np.float32(1.0)
    return np.clip((values - center) / width + np.float32(0.5), 0.0, 1.0, dtype=np.float32)


def apply_voi(values: Floats, voi: Voi) -> Floats:
    """Modality values through any VOI, to [0, 1]; same shape."""
    if isinstance(voi, Window):
        return apply_window(values, voi)
    if isinstance(voi, VoiLut):
        # Below the first input the first value, above the last the last (C.11.2.1.1).
        index = np.clip(np.rint(values).astype(np.int64) - voi.first, 0, len(voi.values) - 1)
        return voi.values[index]
    if voi.high <= voi.low:
        return np.zeros_like(values)
    return np.clip((values - np.float32(voi.low)) / np.float32(voi.high - voi.low), 0.0, 1.0, dtype=np.float32)


def display_grey(image: ModalityImage, voi: Voi | None) -> tuple[npt.NDArray[np.uint8], Voi]:
    """The image as a reader sees it, 0 black to 255 white, and the VOI that was used.

    Args:
        image: before display.
        voi: overrides the header's; None takes the header's, and where it has none the range of the values
            outside padding.

    Returns:
        (rows, columns) uint8, rounded to nearest; and the VOI.
    """
    chosen = voi or image.voi or _value_range(image)
    grey = apply_voi(image.values, chosen)
    if image.inverted:
        grey = np.float32(1.0) - grey
    if image.padding is not None:
        grey[image.padding] = 0.0
    return np.rint(grey * np.float32(255.0)).astype(np.uint8), chosen


def _value_range(image: ModalityImage) -> Range:
    values = image.values if image.padding is None else image.values[~image.padding]
    return Range(float(values.min()), float(values.max())) if values.size else Range(0.0, 0.0)
