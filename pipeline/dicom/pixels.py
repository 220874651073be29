"""Pixels of a DICOM instance: stored values, modality values, and what the header says of their display."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRBigEndian

from pipeline.dicom.headers import element_value
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
    except Exception as error:  # decoders meet broken bytes with many kinds
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
        Refusal: see ``stored_values``; invalid_rescale for a slope of 0, a value that is no number, a bad table.
    """
    stored = stored_values(dataset, frame)
    values = _modality_values(dataset, stored)
    inverted = (
        dataset.PhotometricInterpretation == "MONOCHROME1"  # PS3.3 C.7.6.3.1.2: the minimum is white
        or element_value(dataset, "PresentationLUTShape") == "INVERSE"  # PS3.3 C.11.6: the same, so only once
    )
    return ModalityImage(values, header_voi(dataset), inverted, _padding(dataset, stored))


def header_voi(dataset: Dataset) -> Voi | None:
    """The header's first VOI: a LUT before a window, as PS3.3 C.11.2 leaves to the application; None without.

    A window of a width that the standard forbids, or a table that breaks off, counts as none.
    """
    if element_value(dataset, "VOILUTSequence"):
        table = _lookup_table(dataset, "VOILUTSequence")
        if table is not None:
            first, entries, bits = table
            return VoiLut(first, entries / np.float32(2**bits - 1))
    center, width = (_first(element_value(dataset, keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    function = _FUNCTIONS.get(str(element_value(dataset, "VOILUTFunction") or "LINEAR"))
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


def _modality_values(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Stored values behind the modality LUT (PS3.3 C.11.1): the table, else slope and intercept, else as they are."""
    if element_value(dataset, "ModalityLUTSequence"):
        table = _lookup_table(dataset, "ModalityLUTSequence")
        if table is None:
            raise Refusal("invalid_rescale", "Modality LUT Sequence is malformed")
        first, entries, _ = table
        return entries[np.clip(stored.astype(np.int64) - first, 0, len(entries) - 1)]
    if "RescaleSlope" not in dataset or "RescaleIntercept" not in dataset:
        return stored.astype(np.float32)
    slope, intercept = (_first(element_value(dataset, k)) for k in ("RescaleSlope", "RescaleIntercept"))
    if slope is None or intercept is None or slope == 0.0:
        raise Refusal("invalid_rescale", "slope and intercept must be finite, the slope not 0")
    with np.errstate(over="ignore"):
        values = (stored * np.float64(slope) + intercept).astype(np.float32)
    if not np.isfinite(values).all():
        raise Refusal("invalid_rescale", "values beyond the range of float32")
    return values


def _lookup_table(dataset: Dataset, keyword: str) -> tuple[int, npt.NDArray[np.float32], int] | None:
    """The first item of a modality or VOI LUT sequence: first input, entries, bits an entry; None if malformed.

    Not pydicom's: it wraps inputs of 8-bit tables longer than 256, and takes no packed ones (PS3.3 C.11.1.1.1).
    """
    item = dataset[keyword].value[0]
    try:
        count, first, bits = (int(entry) for entry in element_value(item, "LUTDescriptor"))
    except (TypeError, ValueError):
        return None
    count = count or 65536  # 0 stands for 2**16
    if first > 32767 and element_value(dataset, "PixelRepresentation") == 1:
        first -= 65536  # the descriptor's second value has the sign of the input
    data = element_value(item, "LUTData")
    if isinstance(data, bytes):
        packed = bits == 8 and len(data) < 2 * count
        big = element_value(dataset.file_meta, "TransferSyntaxUID") == ExplicitVRBigEndian
        width, dtype = (1, "u1") if packed else (2, ">u2" if big else "<u2")
        data = np.frombuffer(data[: len(data) // width * width], dtype=dtype)
    try:
        entries = np.asarray(data, dtype=np.float32)
    except (TypeError, ValueError):
        return None
    if entries.ndim != 1 or len(entries) < count or not 8 <= bits <= 16:
        return None
    return first, entries[:count], bits


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
    value = _first(element_value(dataset, "PixelPaddingValue"))
    if value is None:
        return None
    limit = _first(element_value(dataset, "PixelPaddingRangeLimit"))
    low, high = sorted((value, value if limit is None else limit))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() else None
