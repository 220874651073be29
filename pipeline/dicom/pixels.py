"""Pixels of a DICOM instance: stored values, modality values, and what the header says of their display."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.pixels import apply_voi as pydicom_apply_voi

from pipeline.dicom.refusal import Refusal
from pipeline.imaging.intensity import ModalityImage, Range, Voi, VoiFunction, VoiLut, Window

_FUNCTIONS: dict[str, VoiFunction] = {"LINEAR": "LINEAR", "LINEAR_EXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}


def stored_values(dataset: Dataset, frame: int) -> npt.NDArray[Any]:
    """The stored pixel values of one frame, bits above BitsStored removed.

    PS3.5 8.1.1: bits above the high bit are no part of the value, and decoders differ in clearing them.

    Returns:
        (rows, columns), the integer type that pydicom gives.

    Raises:
        Refusal: decode_error, or pixel_header_mismatch where the decoded shape is not the header's.
    """
    try:
        with warnings.catch_warnings():
            # pydicom warns of trailing padding and the like; what matters is checked below.
            warnings.simplefilter("ignore")
            values = pixel_array(dataset, index=frame)
    except (
        ValueError,
        RuntimeError,
        NotImplementedError,
        AttributeError,
        KeyError,
        TypeError,
        IndexError,
    ) as error:
        raise Refusal("decode_error", type(error).__name__) from None
    if values.shape != (int(dataset.Rows), int(dataset.Columns)):
        raise Refusal("pixel_header_mismatch", "decoded shape differs from Rows and Columns")
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if stored < allocated:
        shift = values.dtype.itemsize * 8 - stored
        # Left, then right in the type's own signedness: masks unsigned values and extends the sign of signed.
        values = (values << shift) >> shift
    return values


def modality_image(dataset: Dataset, frame: int) -> ModalityImage:
    """One frame before display: modality LUT applied, VOI, polarity and padding read from the header.

    Raises:
        Refusal: see ``stored_values``; invalid_rescale for a slope of 0 or a value that is no number.
    """
    stored = stored_values(dataset, frame)
    if "ModalityLUTSequence" not in dataset and "RescaleSlope" in dataset:
        slope, intercept = float(dataset.RescaleSlope), float(dataset.get("RescaleIntercept", 0.0))
        if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0.0:
            raise Refusal("invalid_rescale", "slope and intercept must be finite, the slope not 0")
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)  # PS3.3 C.11.1
    inverted = (
        dataset.PhotometricInterpretation == "MONOCHROME1"  # PS3.3 C.7.6.3.1.2: the minimum is white
        or dataset.get("PresentationLUTShape") == "INVERSE"  # PS3.3 C.11.6: says the same, so only once
    )
    return ModalityImage(values, header_voi(dataset), inverted, _padding(dataset, stored))


def header_voi(dataset: Dataset) -> Voi | None:
    """The header's first VOI: a LUT before a window, as PS3.3 C.11.2 leaves to the application; None without.

    A window of a width that the standard forbids counts as none.
    """
    if dataset.get("VOILUTSequence"):
        first_lut = dataset.VOILUTSequence[0]
        count, first, bits = (int(entry) for entry in first_lut.LUTDescriptor)
        count = count or 65536  # PS3.3 C.11.2.1.1: 0 stands for 2**16
        signed = int(dataset.get("PixelRepresentation", 0)) == 1
        if signed and first > 32767:
            first -= 65536  # the descriptor's second value has the sign of the input
        inputs = np.arange(first, first + count, dtype=np.int32)
        values = np.asarray(pydicom_apply_voi(inputs, dataset), dtype=np.float32)
        return VoiLut(first, values / np.float32(2**bits - 1))
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        center, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
        function = _FUNCTIONS.get(str(dataset.get("VOILUTFunction") or "LINEAR"))
        if center is None or width is None or function is None:
            return None
        if width >= 1.0 or (width > 0.0 and function != "LINEAR"):
            return Window(center, width, function)
    return None


def describe_voi(voi: Voi) -> tuple[str, float | None, float | None]:
    """A VOI as its name, centre and width (modality units; None where it is no window)."""
    if isinstance(voi, Window):
        return f"window_{voi.function.lower()}", voi.center, voi.width
    if isinstance(voi, Range):
        return "range", (voi.low + voi.high) / 2, voi.high - voi.low
    return "lut", None, None


def _first(value: Any) -> float | None:
    """The first of one or several decimal strings, None where there is none."""
    if value is None or value == "":
        return None
    try:
        number = float(value[0] if not isinstance(value, (str, int, float)) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _padding(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Where stored values lie in the padding range (PS3.3 C.7.5.1.1.2), None where the header names none."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit", value)
    low, high = sorted((int(value), int(limit)))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() else None
