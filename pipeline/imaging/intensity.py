"""From modality values to display grey: VOI, polarity, padding, whole numbers, in this order (PS3.3 C.11.2, PS3.4 N.2).

Modality values are float32 (Hounsfield units for CT, else the vendor's own). Geometry comes after: resampling before
the window would smear metal and padding over tissue.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Grey = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
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
    """Low and high map to 0 and 1: what statistics give, where no VOI does."""

    low: float
    high: float


@dataclass(frozen=True)
class Percentiles:
    """The range between two percentiles of an image's own values, for modalities without absolute units (MR)."""

    low: float
    high: float


@dataclass(frozen=True)
class ZScore:
    """The image's own mean plus and minus so many of its standard deviations."""

    limit: float


Voi = Window | VoiLut | Range
VoiRule = Voi | Percentiles | ZScore

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
        values: (rows, columns) float32, modality units; or (n,), the value of each pixel code in ``index``.
        voi: what the header says; None where it says nothing.
        inverted: low values are to be shown white (MONOCHROME1, or PresentationLUTShape INVERSE).
        padding: as ``values``, bool, True where no tissue was imaged; None for nowhere.
        index: (rows, columns) uint8 or uint16 below n; None where ``values`` are the pixels themselves. Whatever is
            done to values is then done once a code and looked up, with the same result.
    """

    values: Floats
    voi: Voi | None
    inverted: bool
    padding: npt.NDArray[np.bool_] | None = None
    index: Grey | None = None


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


def display_grey(image: ModalityImage, rule: VoiRule | None, bits: Literal[8, 16] = 8) -> tuple[Grey, Voi]:
    """The image as a reader sees it, 0 black to 255 (or 65535) white, and the VOI that was used.

    Args:
        image: before display.
        rule: overrides the header's VOI; None takes the header's, and where it has none the range of the values
            outside padding.
        bits: of the result.

    Returns:
        (rows, columns) uint8 or uint16, rounded to nearest; and the VOI.
    """
    voi = resolve(image, rule)
    shown = apply_voi(image.values, voi)
    if image.inverted:
        shown = np.float32(1.0) - shown
    if image.padding is not None:
        shown[image.padding] = 0.0
    kind = np.uint8 if bits == 8 else np.uint16
    grey: Grey = np.rint(shown * np.float32(2**bits - 1)).astype(kind)
    return grey if image.index is None else look_up(grey, image.index), voi


def look_up(table: Grey, index: Grey) -> Grey:
    """``table[index]``; OpenCV takes half the time of NumPy where the table covers all that the index can be."""
    if len(table) < np.iinfo(index.dtype).max + 1 or not index.flags.c_contiguous:
        return table[index]
    found: Grey = cv2.LUT(index, table)
    return found


def resolve(image: ModalityImage, rule: VoiRule | None) -> Voi:
    """What a rule comes to for one image; statistics are those of its pixels outside padding, 0 to 0 without any."""
    if isinstance(rule, Window | VoiLut | Range):
        return rule
    if rule is None and image.voi is not None:
        return image.voi
    values, counts = _outside_padding(image)
    if not len(values):
        return Range(0.0, 0.0)
    if rule is None:
        return Range(float(values.min()), float(values.max()))
    if isinstance(rule, Percentiles):
        # Of the definitions the one that weights have: each percentile is a value that occurs.
        low, high = np.percentile(values, [rule.low, rule.high], weights=counts, method="inverted_cdf")
        return Range(float(low), float(high))
    mean = float(np.average(values, weights=counts))
    deviation = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
    return Range(mean - rule.limit * deviation, mean + rule.limit * deviation)


def _outside_padding(image: ModalityImage) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64] | None]:
    """The values that occur outside padding, and how often each; None where each pixel stands for itself."""
    inside = np.ones(image.values.shape, np.bool_) if image.padding is None else ~image.padding
    if image.index is None:
        return image.values[inside].astype(np.float64), None
    counts = np.bincount(image.index.ravel(), minlength=len(image.values))
    inside &= counts > 0
    return image.values[inside].astype(np.float64), counts[inside]
