"""Pixels of a DICOM instance: stored values, modality values, and what the header says of their display.

Real World Value Mapping (PS3.3 C.7.6.16.2.11) is not used: the modality values are what VOI and display build upon.
Bytes go to pydicom's decoders codestream by codestream; nothing of its lazy parsing is called.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.pixels import convert_color_space, get_decoder
from pydicom.pixels.utils import expand_ybr422

from pipeline.dicom.attributes import MalformedError, has, number, numbers, tag_of, text
from pipeline.dicom.layout import (
    DECODING_PLUGINS,
    PixelFormat,
    codestream_header,
    frame_codestream,
    is_byte_swapped,
    sequence_items,
)
from pipeline.dicom.refusal import Refusal
from pipeline.dicom.structure import Parsed, Part
from pipeline.imaging.intensity import ModalityImage, Range, Voi, VoiFunction, VoiLut, Window

Floats = npt.NDArray[np.float32]
Values = npt.NDArray[Any]  # integers, or floats of float pixel data

_FUNCTIONS: dict[str, VoiFunction] = {"LINEAR": "LINEAR", "LINEAR_EXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}
_SEGMENTED_LIMIT = 65536  # entries of a lookup table, PS3.3 C.7.6.3.1.5
_ITEM = b"\xfe\xff\x00\xe0"
_PADDING = {
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}

# gdcm writes what it meets in a codestream to standard error; what matters comes back as an exception. Where it is
# not installed, ``layout`` refuses what it would decode.
with suppress(ImportError):
    import gdcm

    gdcm.Trace.DebugOff()
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()


@dataclass(frozen=True)
class Rescale:
    """Modality value = stored value x ``slope`` + ``intercept`` (PS3.3 C.11.1.1.2)."""

    slope: float
    intercept: float


@dataclass(frozen=True, eq=False)
class Table:
    """A lookup table (PS3.3 C.11.1.1.1): ``entries`` (n,) int64 for inputs ``first``, ``first`` + 1, ..."""

    first: int
    entries: npt.NDArray[np.int64]
    bits: int

    def __call__(self, stored: Values) -> npt.NDArray[np.int64]:
        """Inputs below the first take the first entry, above the last the last; same shape."""
        return self.entries[np.clip(stored.astype(np.int64) - self.first, 0, len(self.entries) - 1)]


ModalityTransform = Rescale | Table | None


def stored_values(parsed: Parsed, fmt: PixelFormat, frame: int) -> Values:
    """The stored pixel values of one frame, colour as RGB.

    PS3.5 8.1.1: bits outside BitsStored are no part of the value, and decoders differ in clearing them. Where a
    codestream has less precision than BitsStored, the sign is in the codestream's highest bit.

    Returns:
        (rows, columns), or (rows, columns, 3) for colour and palette; integers of the width of BitsAllocated and
        the sign of PixelRepresentation (palette: uint16), or float32 or float64 for float pixel data.

    Raises:
        Refusal: decode_error; pixel_header_mismatch for a malformed palette.
    """
    samples, bits, photometric = _samples(parsed, fmt, frame)
    if fmt.keyword != "PixelData":
        return samples
    values = _masked(samples, bits, _high_bit(fmt, bits), fmt.signed)
    if fmt.photometric == "PALETTE COLOR":
        return np.stack([table(values) for table in _palette(parsed, fmt)], axis=-1).astype(np.uint16)
    if fmt.samples == 3 and photometric in ("YBR_FULL", "YBR_FULL_422"):
        return np.asarray(convert_color_space(values.astype(np.uint8), "YBR_FULL", "RGB"))
    return values


def _samples(parsed: Parsed, fmt: PixelFormat, frame: int) -> tuple[Values, int, str]:
    """One frame in containers of BitsAllocated, unmasked; how many bits of them count; colour space."""
    if fmt.codestreams:
        samples, bits, photometric = _decoded(parsed, fmt, frame)
    else:
        samples, bits, photometric = _native(parsed, fmt, frame), fmt.bits_stored, fmt.photometric
    if fmt.keyword == "PixelData":
        samples = samples.astype(f"u{fmt.bits_allocated // 8}", copy=False)
    return samples, bits, photometric


def _high_bit(fmt: PixelFormat, bits: int) -> int:
    return fmt.high_bit if bits == fmt.bits_stored else bits - 1


def modality_transform(parsed: Parsed, fmt: PixelFormat, frame: int) -> ModalityTransform:
    """What makes modality values of the stored values of one frame; None where they are the same, as in colour.

    The frame's own functional group (Pixel Value Transformation, PS3.3 C.7.6.16.2.9) comes before the shared one and
    that before the data set itself; in each a Modality LUT comes before slope and intercept (PS3.3 C.11.1).

    Raises:
        Refusal: invalid_rescale: a slope of 0, no finite number, a malformed table; corrupt_structure.
    """
    if fmt.is_colour:
        return None
    part = _functional_group(parsed, frame, "PixelValueTransformationSequence") or parsed.main
    if has(part, "ModalityLUTSequence"):
        try:
            tables = sequence_items(part, "ModalityLUTSequence")
        except Refusal:
            raise Refusal("invalid_rescale", "Modality LUT Sequence is broken") from None
        if tables:
            table = _lookup_table(tables[0], "LUTDescriptor", "LUTData", fmt.signed)
            if table is None or fmt.keyword != "PixelData":
                raise Refusal("invalid_rescale", "Modality LUT Sequence is malformed")
            return table
    if not (has(part, "RescaleSlope") and has(part, "RescaleIntercept")):
        return None
    slope, intercept = _number(part, "RescaleSlope"), _number(part, "RescaleIntercept")
    if slope is None or intercept is None or slope == 0.0:
        raise Refusal("invalid_rescale", "slope and intercept must be finite, the slope not 0")
    return Rescale(slope, intercept)


def modality_values(parsed: Parsed, fmt: PixelFormat, frame: int) -> Floats:
    """One frame behind the modality LUT (PS3.3 C.11.1); colour as RGB.

    Returns:
        (rows, columns) or (rows, columns, 3) float32, modality units (Hounsfield units for CT). Whole numbers beyond
        2**24 are rounded to what float32 has.

    Raises:
        Refusal: see ``stored_values`` and ``modality_transform``; invalid_rescale for values that float32 has not.
    """
    return _transformed(stored_values(parsed, fmt, frame), modality_transform(parsed, fmt, frame))


def modality_array(parsed: Parsed, fmt: PixelFormat) -> Floats:
    """All frames, see ``modality_values``.

    Returns:
        (frames, rows, columns) or (frames, rows, columns, 3) float32.
    """
    shape = (fmt.frames, fmt.rows, fmt.columns)
    array = np.empty((*shape, 3) if fmt.is_colour else shape, dtype=np.float32)
    for frame in range(fmt.frames):
        array[frame] = modality_values(parsed, fmt, frame)
    return array


def modality_image(parsed: Parsed, fmt: PixelFormat, frame: int) -> ModalityImage:
    """One frame before display: modality values, VOI, polarity and padding as the header says.

    Colour becomes luma (ITU-R BT.601), shown over the whole range of its samples: windows belong to grey.

    Raises:
        Refusal: see ``modality_values``; corrupt_structure where the polarity cannot be read.
    """
    if fmt.is_colour:
        bits = _palette(parsed, fmt)[0].bits if fmt.samples == 1 else fmt.bits_stored
        return ModalityImage(_luma(modality_values(parsed, fmt, frame)), Range(0.0, 2.0**bits - 1.0), False)
    try:
        shape = text(parsed.main, "PresentationLUTShape")
    except MalformedError:
        raise Refusal("corrupt_structure", "PresentationLUTShape is no text") from None
    inverted = (
        fmt.photometric == "MONOCHROME1"  # PS3.3 C.7.6.3.1.2: the minimum is white
        or shape == "INVERSE"  # PS3.3 C.11.6: the same, so only once
    )
    voi, transform, padding = header_voi(parsed, frame), modality_transform(parsed, fmt, frame), _padding(parsed, fmt)
    samples, bits, _ = _samples(parsed, fmt, frame)
    if fmt.keyword != "PixelData":
        return ModalityImage(_transformed(samples, transform), voi, inverted, _within(samples, padding))
    high_bit = _high_bit(fmt, bits)
    if samples.dtype.itemsize > 2:
        stored = _masked(samples, bits, high_bit, fmt.signed)
        return ModalityImage(_transformed(stored, transform), voi, inverted, _within(stored, padding))
    # A value for whatever 8 or 16 bits can be, by the same functions; the pixels are its index.
    stored, values = _code_values(samples.dtype.itemsize, bits, high_bit, fmt.signed, transform)
    if not np.isfinite(values).all() and not np.isfinite(values[samples]).all():
        raise Refusal("invalid_rescale", "values beyond the range of float32")
    return ModalityImage(values, voi, inverted, _within(stored, padding), samples)


@lru_cache(maxsize=4)
def _code_values(
    width: int, bits: int, high_bit: int, signed: bool, transform: ModalityTransform
) -> tuple[Values, Floats]:
    """Stored and modality value of every container of ``width`` bytes; kept, since a series' files share them."""
    stored = _masked(np.arange(2 ** (8 * width), dtype=f"u{width}"), bits, high_bit, signed)
    values = _applied(stored, transform)
    stored.flags.writeable = values.flags.writeable = False
    return stored, values


def header_voi(parsed: Parsed, frame: int) -> Voi | None:
    """The header's first VOI: a LUT before a window, as PS3.3 C.11.2 leaves to the application; None without.

    The frame's own functional group (Frame VOI LUT, PS3.3 C.7.6.16.2.10) comes before the shared one and that before
    the data set itself. A window of a width that the standard forbids, or a table that breaks off, counts as none.

    Raises:
        Refusal: corrupt_structure, for functional groups that cannot be read.
    """
    part = _functional_group(parsed, frame, "FrameVOILUTSequence") or parsed.main
    tables = part.items.get(tag_of("VOILUTSequence"), [])
    if tables:
        signed = _number(parsed.main, "PixelRepresentation") == 1.0
        table = _lookup_table(tables[0], "LUTDescriptor", "LUTData", signed)
        if table is not None:
            return VoiLut(table.first, table.entries.astype(np.float32) / np.float32(2**table.bits - 1))
    center, width = _number(part, "WindowCenter"), _number(part, "WindowWidth")
    try:
        function = _FUNCTIONS.get(text(part, "VOILUTFunction") or "LINEAR")
    except MalformedError:
        return None
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


def _native(parsed: Parsed, fmt: PixelFormat, frame: int) -> Values:
    """One frame as it stands in the file: (rows, columns[, 3]), unsigned or float."""
    element = parsed.main.elements[tag_of(fmt.keyword)]
    data, size = parsed.main.data, fmt.bits_allocated // 8
    start = frame * fmt.frame_bytes
    stop = start + fmt.frame_bytes
    if is_byte_swapped(parsed, fmt):
        first, last = element.start + start // 2 * 2, element.start + (stop + 1) // 2 * 2
        words = np.frombuffer(data[first:last], dtype=">u2").astype("<u2").tobytes()
        raw = words[start % 2 : start % 2 + fmt.frame_bytes]
    else:
        raw = data[element.start + start : element.start + stop]
    if fmt.photometric == "YBR_FULL_422":
        raw = expand_ybr422(raw, fmt.bits_allocated)
    kind = "u" if fmt.keyword == "PixelData" else "f"
    values: Values = np.frombuffer(raw, dtype=f"{'<' if parsed.main.little else '>'}{kind}{size}")
    values = values.astype(f"{kind}{size}", copy=False)
    if fmt.samples == 1:
        return values.reshape(fmt.rows, fmt.columns)
    if fmt.planar == 1:
        return np.moveaxis(values.reshape(fmt.samples, fmt.rows, fmt.columns), 0, -1)
    return values.reshape(fmt.rows, fmt.columns, fmt.samples)


def _decoded(parsed: Parsed, fmt: PixelFormat, frame: int) -> tuple[Values, int, str]:
    """One frame out of its codestream: (rows, columns[, 3]) unsigned, how many bits of it count, colour space.

    Decoders are told that the values are unsigned: they differ in what they do about a sign.
    """
    syntax = fmt.transfer_syntax
    codestream = frame_codestream(parsed, fmt, frame)
    bits, precision, allocated = fmt.bits_stored, fmt.bits_allocated, fmt.bits_allocated
    if syntax != uid.RLELossless:
        header = codestream_header(syntax, codestream)
        if header is None:
            raise Refusal("corrupt_structure", "a frame without the header of a codestream")
        precision = header.precision
        bits = min(bits, precision)
        allocated = 8 if precision <= 8 else 16 if precision <= 16 else 32
        if syntax == uid.JPEGExtended12Bit and precision == 12:
            # gdcm reads the process from the codestream and decodes it right, but pydicom keeps it from doing so
            # under this name; tests/dicom/test_oracles.py compares with another decoder.
            syntax = uid.JPEGLossless
    try:
        with _silence():
            values, properties = get_decoder(syntax).as_array(
                _encapsulated(codestream),
                index=0,
                raw=True,
                decoding_plugin=DECODING_PLUGINS[syntax],
                rows=fmt.rows,
                columns=fmt.columns,
                number_of_frames=1,
                samples_per_pixel=fmt.samples,
                photometric_interpretation="MONOCHROME2" if fmt.samples == 1 else fmt.photometric,
                bits_allocated=allocated,
                bits_stored=precision,
                pixel_representation=0,
                planar_configuration=0,
            )
    # What pydicom makes of the decoders' own exceptions; values of the wrong number; allocation.
    except (RuntimeError, ValueError, MemoryError) as error:
        raise Refusal("decode_error", type(error).__name__) from None
    except BaseException as error:
        # pylibjpeg-rle is written in Rust: what panics there is no Exception, and its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise Refusal("decode_error", "the decoder panicked") from None
    if values.shape != ((fmt.rows, fmt.columns) if fmt.samples == 1 else (fmt.rows, fmt.columns, fmt.samples)):
        raise Refusal("pixel_header_mismatch", "the decoded shape is not the header's")
    return values, bits, str(properties["photometric_interpretation"])


def _encapsulated(codestream: memoryview) -> bytes:
    """As encapsulated pixel data of one fragment, with an empty offset table (PS3.5 A.4)."""
    padding = b"\0" * (len(codestream) % 2)
    length = (len(codestream) + len(padding)).to_bytes(4, "little")
    return b"".join([_ITEM, bytes(4), _ITEM, length, codestream, padding])


@contextmanager
def _silence() -> Iterator[None]:
    """No warnings or log records of pydicom: their texts quote the header and the decoders' messages."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    decoders = logging.getLogger("pydicom.pixels.decoders.base")
    decoders_before = decoders.disabled
    logger.disabled = decoders.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled, decoders.disabled = before, decoders_before


def _masked(values: Values, bits: int, high_bit: int, signed: bool) -> Values:
    """Unsigned containers to the values in their bits up to ``high_bit``; same width."""
    width = values.dtype.itemsize * 8
    # To the top, which drops what is above, then down in the signedness wanted, which drops what is below.
    top = np.left_shift(values, values.dtype.type(width - 1 - high_bit))
    if signed:
        top = top.view(f"i{values.dtype.itemsize}")
    return np.right_shift(top, top.dtype.type(width - bits))


def _transformed(stored: Values, transform: ModalityTransform) -> Floats:
    values = _applied(stored, transform)
    if not np.isfinite(values).all():
        raise Refusal("invalid_rescale", "values beyond the range of float32")
    return values


def _applied(stored: Values, transform: ModalityTransform) -> Floats:
    """Modality values, infinite where float32 has not the range."""
    if isinstance(transform, Table):
        return transform(stored).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if transform is not None:
            stored = stored * np.float64(transform.slope) + transform.intercept
        return stored.astype(np.float32)


def _luma(colour: Floats) -> Floats:
    """(rows, columns, 3) red, green, blue to (rows, columns) by ITU-R BT.601."""
    red, green, blue = np.moveaxis(colour, -1, 0)
    return np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue


def _functional_group(parsed: Parsed, frame: int, keyword: str) -> Part | None:
    """The first item of a macro in the frame's functional groups or else the shared ones (PS3.3 C.7.6.16)."""
    own = sequence_items(parsed.main, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    shared = sequence_items(parsed.main, "SharedFunctionalGroupsSequence")[:1]
    for group in (*own, *shared):
        macro = sequence_items(group, keyword)
        if macro:
            return macro[0]
    return None


def _palette(parsed: Parsed, fmt: PixelFormat) -> list[Table]:
    """Red, green and blue table of PALETTE COLOR.

    Raises:
        Refusal: pixel_header_mismatch.
    """
    prefix = "" if has(parsed.main, "RedPaletteColorLookupTableData") else "Segmented"
    tables = [
        _lookup_table(
            parsed.main,
            f"{colour}PaletteColorLookupTableDescriptor",
            f"{prefix}{colour}PaletteColorLookupTableData",
            fmt.signed,
        )
        for colour in ("Red", "Green", "Blue")
    ]
    known = [table for table in tables if table is not None]
    if len(known) < 3 or len({table.bits for table in known}) > 1:
        raise Refusal("pixel_header_mismatch", "malformed palette")
    return known


def _lookup_table(part: Part, descriptor: str, data: str, signed: bool) -> Table | None:
    """A lookup table of the header (PS3.3 C.11.1.1.1, C.11.2.1.1, C.7.6.3.1.5 and .6); None if malformed.

    Not pydicom's: it wraps inputs of 8-bit tables longer than 256, and takes no packed ones.
    """
    try:
        # Where the standard leaves the VR to the input's sign, as US: the first number is never negative.
        count, first, bits = (int(entry) for entry in numbers(part, descriptor))
    except (MalformedError, ValueError):
        return None
    raw = part.raw(tag_of(data))
    if raw is None or not 8 <= bits <= 16:
        return None
    count = count % 65536 or 65536  # 0 stands for 2**16; a count of more than 32767 may come as SS
    if first > 32767 and signed:
        first -= 65536  # the descriptor's second value has the sign of the input
    segmented = data.startswith("Segmented")
    packed = bits == 8 and (segmented or len(raw) < 2 * count)
    order = "<" if part.little else ">"
    if packed and not part.little and part.elements[tag_of(data)].vr in ("OW", "US"):
        raw = np.frombuffer(raw[: len(raw) // 2 * 2], dtype=">u2").astype("<u2").tobytes()
    width = 1 if packed else 2
    words = np.frombuffer(raw[: len(raw) // width * width], dtype="u1" if packed else f"{order}u2").astype(np.int64)
    entries = _expand_segments(words, count) if segmented else words
    if entries is None or len(entries) < count:
        return None
    return Table(first, entries[:count], bits)


def _expand_segments(words: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64] | None:
    """Discrete and linear segments (PS3.3 C.7.9.2) to ``count`` entries; None if malformed, or with indirect ones."""
    pieces: list[npt.NDArray[np.int64]] = []
    position = length = 0
    last: int | None = None
    while length < count:
        if len(words) - position < 3:
            return None
        kind, size = int(words[position]), int(words[position + 1])
        position += 2
        if kind == 0:
            piece = words[position : position + size]
            position += size
        elif kind == 1 and last is not None:
            piece = np.rint(np.linspace(last, int(words[position]), size + 1)[1:]).astype(np.int64)
            position += 1
        else:
            return None
        if len(piece) != size or not size:
            return None
        pieces.append(piece)
        length += size
        last = int(piece[-1])
    return np.concatenate(pieces) if length <= _SEGMENTED_LIMIT else None


def _number(part: Part, keyword: str) -> float | None:
    """The first of one or several numbers, None where there is none."""
    try:
        return number(part, keyword)
    except MalformedError:
        return None


def _padding(parsed: Parsed, fmt: PixelFormat) -> tuple[float, float] | None:
    """The least and the greatest stored value that is padding (PS3.3 C.7.5.1.1.2), None where the header names none.

    Some writers give signed values as US; the sign is the pixels' own.
    """
    try:
        value, limit = (numbers(parsed.main, keyword, signed=fmt.signed)[:1] for keyword in _PADDING[fmt.keyword])
    except MalformedError:
        return None
    if not value:
        return None
    low, high = sorted((value[0], (limit or value)[0]))
    return low, high


def _within(stored: Values, bounds: tuple[float, float] | None) -> npt.NDArray[np.bool_] | None:
    return None if bounds is None else (stored >= bounds[0]) & (stored <= bounds[1])
