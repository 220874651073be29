"""How the pixels of a file lie in its bytes, checked as far as it can be without decoding one.

Image Pixel module: PS3.3 C.7.6.3; native and encapsulated encoding: PS3.5 section 8 and annex A.4. A codec believes
its codestream rather than the DICOM header, so the header of each frame's codestream is read here and compared first.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from pydicom import uid
from pydicom.pixels import get_decoder

from pipeline.dicom.attributes import MalformedError, has, integer, items, tag_of, text
from pipeline.dicom.refusal import Refusal
from pipeline.dicom.structure import Parsed, Part

Fragment = tuple[int, int]

_NATIVE = frozenset(
    {
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    }
)
# Who decodes what. Not Pillow (it converts on its own account), and not pylibjpeg-libjpeg (wrong pixels without an
# error where the differences of lossless JPEG wrap).
DECODING_PLUGINS = {
    uid.JPEGBaseline8Bit: "gdcm",
    uid.JPEGExtended12Bit: "gdcm",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "gdcm",
    uid.JPEGLSNearLossless: "gdcm",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pylibjpeg",
}
JPEG = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1})
JPEG_LS = frozenset({uid.JPEGLSLossless, uid.JPEGLSNearLossless})
JPEG_2000 = frozenset({uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K})

_SAMPLES = {
    "MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1,
    "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3, "YBR_RCT": 3,
}  # fmt: skip
_FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
_PALETTE = [
    (f"{colour}PaletteColorLookupTableDescriptor", f"{prefix}{colour}PaletteColorLookupTableData")
    for prefix in ("", "Segmented")
    for colour in ("Red", "Green", "Blue")
]
# The processes (by the second byte of the SOF marker, ITU-T T.81 table B.1, T.87) of each transfer syntax.
_PROCESSES = {
    uid.JPEGBaseline8Bit: {0xC0, 0xC1},  # extended sequential of 8 bits is decoded as baseline
    uid.JPEGExtended12Bit: {0xC0, 0xC1},
    uid.JPEGLossless: {0xC3},
    uid.JPEGLosslessSV1: {0xC3},
    uid.JPEGLSLossless: {0xF7},
    uid.JPEGLSNearLossless: {0xF7},
}
_SOF = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_NO_SEGMENT = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})  # restarts, start and end of image


@dataclass(frozen=True)
class PixelFormat:
    """What the header says of the pixels, checked.

    Attributes:
        keyword: PixelData, FloatPixelData or DoubleFloatPixelData.
        rows: pixels.
        columns: pixels.
        frames: at least 1.
        samples: 1 or 3.
        bits_allocated: 8, 16 or 32; 32 or 64 for floats.
        bits_stored: as ``bits_allocated`` for floats.
        high_bit: as ``bits_allocated`` - 1 for floats.
        signed: two's complement; False for floats.
        photometric: Photometric Interpretation.
        planar: Planar Configuration of native colour, else 0.
        transfer_syntax: of the file.
        codestreams: of each frame, (start, length) of its fragments; () where the pixel data is native.
        notes: what was passed over (``tables.files.NOTES``).
    """

    keyword: str
    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: int
    transfer_syntax: uid.UID
    codestreams: tuple[tuple[Fragment, ...], ...] = field(default=(), repr=False)
    notes: frozenset[str] = frozenset()

    @property
    def is_colour(self) -> bool:
        """Whether a pixel comes out as red, green and blue."""
        return self.samples == 3 or self.photometric == "PALETTE COLOR"

    @property
    def frame_bytes(self) -> int:
        """The length of a native frame in bytes; native YBR_FULL_422 has two samples a pixel (PS3.3 C.7.6.3.1.2)."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.bits_allocated // 8


class CodestreamHeader(NamedTuple):
    """What a codestream says of itself.

    Attributes:
        rows: pixels.
        columns: pixels.
        components: samples a pixel.
        precision: bits a sample, the largest of the components.
        process: second byte of the SOF marker; of JPEG 2000 that of SIZ.
        uniform: all components have the same precision and sign.
        length: bytes of the header, up to the first scan (JPEG 2000: up to the segment COD).
        transformed: the codec itself turns YCbCr to RGB (JPEG 2000: multiple component transformation).
    """

    rows: int
    columns: int
    components: int
    precision: int
    process: int
    uniform: bool
    length: int
    transformed: bool = False


def read_layout(parsed: Parsed, keyword: str, *, max_pixels: int) -> PixelFormat:
    """What the header says of the pixels, compared with itself and with the bytes that are there.

    Args:
        parsed: a file whose required attributes are there.
        keyword: of its pixel data.
        max_pixels: rows x columns x frames x samples allowed.

    Raises:
        Refusal: unsupported_transfer_syntax, corrupt_structure, invalid_dimensions, unsupported_photometric,
            pixel_header_mismatch, unsupported_pixel_layout, missing_required_tag (Planar Configuration),
            decompression_bomb, truncated, pixel_length_mismatch; the first that applies.
    """
    _check_transfer_syntax(parsed.transfer_syntax)
    try:
        fmt = _read_attributes(parsed, keyword)
    except MalformedError as error:
        raise Refusal("corrupt_structure", f"{error} is not what its VR allows") from None
    _check_attributes(fmt)
    if fmt.photometric == "PALETTE COLOR":
        _check_palette(parsed.main)
    if len(sequence_items(parsed.main, "PerFrameFunctionalGroupsSequence")) not in (0, fmt.frames):
        raise Refusal("corrupt_structure", "functional groups for another number of frames")
    if fmt.rows * fmt.columns * fmt.frames * fmt.samples > max_pixels:
        raise Refusal("decompression_bomb", f"more than {max_pixels} samples")
    if parsed.transfer_syntax in _NATIVE:
        return replace(fmt, notes=_check_native(parsed, fmt))
    if keyword != "PixelData":
        raise Refusal("unsupported_transfer_syntax", "float pixel data in a compressed transfer syntax")
    fmt = replace(fmt, codestreams=_group_fragments(parsed, fmt))
    for frame in range(fmt.frames):
        _check_codestream(fmt, frame_codestream(parsed, fmt, frame))
    return fmt


def frame_codestream(parsed: Parsed, fmt: PixelFormat, frame: int) -> memoryview:
    """The codestream of one frame of encapsulated pixel data; copied only where it lies in several fragments."""
    data = memoryview(parsed.main.data)
    fragments = [data[start : start + length] for start, length in fmt.codestreams[frame]]
    return fragments[0] if len(fragments) == 1 else memoryview(b"".join(fragments))


def codestream_header(transfer_syntax: uid.UID, codestream: memoryview) -> CodestreamHeader | None:
    """The header of a JPEG, JPEG-LS or JPEG 2000 codestream, None where there is none.

    ITU-T T.81 B.2.2 (SOF), T.87 C.2.2, T.800 A.5.1 (SIZ) and A.6.1 (COD).
    """
    try:
        if transfer_syntax in JPEG_2000:
            return _siz_header(codestream)
        return _sof_header(codestream)
    except (struct.error, IndexError):  # the codestream ends inside its header
        return None


def sequence_items(part: Part, keyword: str) -> Sequence[Part]:
    """The items of a sequence that decides on the meaning of pixels; () where there is none.

    Raises:
        Refusal: corrupt_structure: it is there and could not be walked, so that its items are not known.
    """
    found = items(part, keyword)
    tag = tag_of(keyword)
    if tag in part.elements and tag not in part.items and part.elements[tag].length:
        raise Refusal("corrupt_structure", f"{keyword} is broken")
    return found


def _sof_header(codestream: memoryview) -> CodestreamHeader | None:
    """All segments up to the first scan must be whole and follow each other without a gap.

    Where its libjpeg but warns of something before the first scan, gdcm 3.2.6 ends the process
    (gdcmJPEGBITSCodec.hxx:782): of bytes between segments, of a JFIF of another major version than 1, of an Adobe
    marker with an unknown colour transform.
    """
    if bytes(codestream[:2]) != b"\xff\xd8":
        return None
    found = None
    position = 2
    while True:
        if codestream[position] != 0xFF:
            return None
        while codestream[position] == 0xFF:  # any number of fill bytes before a marker
            position += 1
        marker = codestream[position]
        length = struct.unpack_from(">H", codestream, position + 1)[0]
        segment = bytes(codestream[position + 3 : position + 1 + length])
        if marker in _NO_SEGMENT or len(segment) != length - 2:
            return None
        if marker == 0xDA:
            return None if found is None else found._replace(length=position)
        if marker in _SOF:
            precision, rows, columns, components = struct.unpack_from(">BHHB", segment)
            if found is not None or len(segment) != 6 + 3 * components:
                return None
            found = CodestreamHeader(rows, columns, components, precision, marker, True, 0)
        if marker == 0xE0 and len(segment) >= 14 and segment.startswith(b"JFIF\0") and segment[5] != 1:
            return None
        if marker == 0xEE and len(segment) >= 12 and segment.startswith(b"Adobe") and segment[11] > 1:
            return None
        position += 1 + length


def _siz_header(codestream: memoryview) -> CodestreamHeader | None:
    if bytes(codestream[:4]) != b"\xff\x4f\xff\x51":
        return None
    x, y, x_offset, y_offset, *_, components = struct.unpack_from(">8LH", codestream, 8)
    depths = codestream[42 : 42 + 3 * components : 3]
    if len(depths) != components or not components:
        return None
    precision = max((depth & 0x7F) + 1 for depth in depths)
    position = 4 + struct.unpack_from(">H", codestream, 4)[0]
    while bytes(codestream[position : position + 2]) != b"\xff\x52":  # COD, which the main header must have
        if codestream[position] != 0xFF or codestream[position + 1] in (0x90, 0xD9):  # a tile, or the end
            return None
        position += 2 + struct.unpack_from(">H", codestream, position + 2)[0]
    uniform, transformed = len(set(depths)) == 1, bool(codestream[position + 8])
    return CodestreamHeader(y - y_offset, x - x_offset, components, precision, 0x51, uniform, position, transformed)


def _check_transfer_syntax(syntax: uid.UID) -> None:
    if syntax in _NATIVE:
        return
    plugin = DECODING_PLUGINS.get(syntax)
    if plugin is None:
        raise Refusal("unsupported_transfer_syntax", "no still image's transfer syntax that is known here")
    if plugin not in get_decoder(syntax).available_plugins:
        raise Refusal("unsupported_transfer_syntax", f"its decoder is not installed ({plugin})")


def _read_attributes(parsed: Parsed, keyword: str) -> PixelFormat:
    part = parsed.main
    frames = integer(part, "NumberOfFrames")
    samples = _required(part, "SamplesPerPixel")
    allocated = _required(part, "BitsAllocated")
    if keyword == "PixelData":
        stored, high_bit = _required(part, "BitsStored"), _required(part, "HighBit")
        representation = _required(part, "PixelRepresentation")
        if representation not in (0, 1):
            raise Refusal("unsupported_pixel_layout", "PixelRepresentation is neither 0 nor 1")
    else:
        stored, high_bit, representation = allocated, allocated - 1, 0
    planar = 0
    # Codecs settle the order of samples themselves, and a single sample has none.
    if samples != 1 and parsed.transfer_syntax in _NATIVE:
        if is_empty_number(part, "PlanarConfiguration"):
            raise Refusal("missing_required_tag", "PlanarConfiguration")
        planar = _required(part, "PlanarConfiguration")
    return PixelFormat(
        keyword=keyword,
        rows=_required(part, "Rows"),
        columns=_required(part, "Columns"),
        frames=1 if frames is None else frames,
        samples=samples,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high_bit,
        signed=representation == 1,
        photometric=text(part, "PhotometricInterpretation"),
        planar=planar,
        transfer_syntax=parsed.transfer_syntax,
    )


def _required(part: Part, keyword: str) -> int:
    value = integer(part, keyword)
    if value is None:
        raise MalformedError(keyword)
    return value


def is_empty_number(part: Part, keyword: str) -> bool:
    """Whether a binary number is missing or of no length; its zero bytes are a value."""
    return not part.raw(tag_of(keyword))


def _check_attributes(fmt: PixelFormat) -> None:
    if fmt.rows < 1 or fmt.columns < 1 or fmt.frames < 1:
        raise Refusal("invalid_dimensions", "Rows, Columns and NumberOfFrames must be at least 1")
    if fmt.photometric not in _SAMPLES:
        raise Refusal("unsupported_photometric", "PhotometricInterpretation is none of " + ", ".join(_SAMPLES))
    if fmt.samples != _SAMPLES[fmt.photometric]:
        raise Refusal("pixel_header_mismatch", "SamplesPerPixel does not fit PhotometricInterpretation")
    if fmt.keyword != "PixelData":
        if fmt.bits_allocated != _FLOAT_BITS[fmt.keyword] or fmt.is_colour:
            raise Refusal("unsupported_pixel_layout", "float pixels must be grey, of 32 or 64 bits as their keyword")
        return
    if fmt.bits_allocated not in (8, 16, 32):
        raise Refusal("unsupported_pixel_layout", "BitsAllocated must be 8, 16 or 32")
    if not 1 <= fmt.bits_stored <= fmt.bits_allocated:
        raise Refusal("unsupported_pixel_layout", "BitsStored must be from 1 to BitsAllocated")
    if not fmt.bits_stored - 1 <= fmt.high_bit < fmt.bits_allocated:
        raise Refusal("unsupported_pixel_layout", "HighBit must be from BitsStored - 1 to BitsAllocated - 1")
    native = fmt.transfer_syntax in _NATIVE
    if fmt.high_bit != fmt.bits_stored - 1 and not native and fmt.transfer_syntax != uid.RLELossless:
        raise Refusal("unsupported_pixel_layout", "a codec has no place for bits below the stored ones")
    if fmt.samples == 3:
        _check_colour(fmt, native)


def _check_colour(fmt: PixelFormat, native: bool) -> None:
    if fmt.signed:
        raise Refusal("unsupported_pixel_layout", "signed colour")
    if fmt.planar not in (0, 1):
        raise Refusal("unsupported_pixel_layout", "PlanarConfiguration is neither 0 nor 1")
    if fmt.photometric in ("YBR_ICT", "YBR_RCT") and fmt.transfer_syntax not in JPEG_2000:
        raise Refusal("unsupported_photometric", "YBR_ICT and YBR_RCT exist in JPEG 2000 alone")
    if fmt.photometric in ("YBR_FULL", "YBR_FULL_422") and (fmt.bits_allocated, fmt.bits_stored) != (8, 8):
        raise Refusal("unsupported_pixel_layout", "YBR of other than 8 bits")
    if fmt.photometric == "YBR_FULL_422":
        if fmt.transfer_syntax == uid.RLELossless:
            raise Refusal("unsupported_pixel_layout", "YBR_FULL_422 does not exist in RLE")
        if native and (fmt.planar or fmt.columns % 2):
            raise Refusal("unsupported_pixel_layout", "native YBR_FULL_422 is by pixel, with an even number of columns")


def _check_palette(part: Part) -> None:
    """PS3.3 C.7.6.3.1.5 and .6; what is in the tables is checked when they are applied."""
    for tables in (_PALETTE[:3], _PALETTE[3:]):
        if all(has(part, descriptor) and has(part, data) for descriptor, data in tables):
            return
    raise Refusal("pixel_header_mismatch", "PALETTE COLOR without its tables")


def _check_native(parsed: Parsed, fmt: PixelFormat) -> frozenset[str]:
    """Compare the length of native pixel data with what the header says; notes."""
    if parsed.fragments is not None:
        raise Refusal("corrupt_structure", "fragments of pixel data in a transfer syntax without a codec")
    element = parsed.main.elements[tag_of(fmt.keyword)]
    expected = fmt.frame_bytes * fmt.frames
    if element.length < expected + (expected % 2 if is_byte_swapped(parsed, fmt) else 0):
        raise Refusal("truncated", "less pixel data than Rows, Columns and NumberOfFrames say")
    excess = element.length - expected - expected % 2
    if excess <= 0:
        return frozenset()
    start = element.start + expected
    if excess >= fmt.frame_bytes or parsed.main.data[start : element.start + element.length].strip(b"\0"):
        raise Refusal("pixel_length_mismatch", "more pixel data than Rows, Columns and NumberOfFrames say")
    return frozenset({"trailing_padding"})


def is_byte_swapped(parsed: Parsed, fmt: PixelFormat) -> bool:
    """Whether pairs of 8-bit pixels stand in reverse order, as words of big endian do (PS3.5 8.1.1, annex A.3)."""
    words = parsed.main.elements[tag_of(fmt.keyword)].vr == "OW"
    return not parsed.main.little and fmt.bits_allocated == 8 and words


def _group_fragments(parsed: Parsed, fmt: PixelFormat) -> tuple[tuple[Fragment, ...], ...]:
    """The fragments of each frame (PS3.5 A.4): by number, by an offset table, by the codestreams' starts."""
    if parsed.fragments is None:
        raise Refusal("corrupt_structure", "native pixel data in a transfer syntax with a codec")
    if not parsed.fragments:
        raise Refusal("corrupt_structure", "encapsulated pixel data without the item of the offset table")
    table, *fragments = parsed.fragments
    frames = fmt.frames
    if len(fragments) < frames:
        raise Refusal("truncated", "fewer fragments than frames")
    if fmt.transfer_syntax == uid.RLELossless:  # PS3.5 A.4.2: a fragment is a frame
        if len(fragments) > frames:
            raise Refusal("pixel_length_mismatch", "more RLE fragments than frames")
        return tuple((fragment,) for fragment in fragments)
    data = parsed.main.data
    magic = b"\xff\x4f\xff\x51" if fmt.transfer_syntax in JPEG_2000 else b"\xff\xd8\xff"
    starts = [index for index, (start, _) in enumerate(fragments) if data.startswith(magic, start)]
    if len(starts) > frames:
        raise Refusal("pixel_length_mismatch", "more codestreams than frames")
    if len(fragments) == frames:
        return tuple((fragment,) for fragment in fragments)
    if frames == 1:
        return (tuple(fragments),)
    offsets = _frame_offsets(parsed, table)
    if offsets:
        places = {start - fragments[0][0]: index for index, (start, _) in enumerate(fragments)}
        indices = [places.get(offset, -1) for offset in offsets]
        if len(offsets) != frames or any(a >= b for a, b in pairwise(indices)):
            raise Refusal("corrupt_structure", "the offset table does not name a first fragment for each frame")
        starts = indices
    if len(starts) != frames or starts[0] != 0:
        raise Refusal("corrupt_structure", "which fragments make a frame cannot be told")
    ends = [*starts[1:], len(fragments)]
    return tuple(tuple(fragments[start:end]) for start, end in zip(starts, ends, strict=True))


def _frame_offsets(parsed: Parsed, table: Fragment) -> Sequence[int]:
    """Of each frame's first item, from the first fragment's item; from either offset table, () without both."""
    for raw, code in ((parsed.main.raw(tag_of("ExtendedOffsetTable")), "Q"), (_slice(parsed, table), "L")):
        if raw:
            size = struct.calcsize("<" + code)
            if len(raw) % size:
                raise Refusal("corrupt_structure", "the offset table breaks off")
            return struct.unpack(f"<{len(raw) // size}{code}", raw)
    return ()


def _slice(parsed: Parsed, fragment: Fragment) -> bytes:
    start, length = fragment
    return parsed.main.data[start : start + length]


def _check_codestream(fmt: PixelFormat, codestream: memoryview) -> None:
    """Compare a codestream's own header with the file's: a decoder allocates what the former says."""
    if fmt.transfer_syntax == uid.RLELossless:
        # PS3.5 G.5: the number of segments comes first, one for each byte of a pixel.
        if bytes(codestream[:4]) != struct.pack("<L", fmt.samples * fmt.bits_allocated // 8):
            raise Refusal("pixel_header_mismatch", "the RLE header has another number of segments")
        return
    header = codestream_header(fmt.transfer_syntax, codestream)
    if header is None:
        raise Refusal("corrupt_structure", "a frame without the header of a codestream")
    if header.process not in _PROCESSES.get(fmt.transfer_syntax, {0x51}):
        raise Refusal("pixel_header_mismatch", "the codestream's process is not the transfer syntax's")
    if (header.rows, header.columns) != (fmt.rows, fmt.columns):
        raise Refusal("pixel_header_mismatch", "the codestream has other Rows or Columns")
    if header.components != fmt.samples:
        raise Refusal("pixel_header_mismatch", "the codestream has another number of samples a pixel")
    if header.precision > fmt.bits_allocated:
        raise Refusal("pixel_header_mismatch", "the codestream has more bits than BitsAllocated")
    # End of image, in JPEG 2000 end of codestream; entropy-coded data cannot hold it. Decoders fill in what is missing.
    tail = max(header.length, len(codestream) - 4096)  # where it is, nearly always
    if b"\xff\xd9" not in bytes(codestream[tail:]) and b"\xff\xd9" not in bytes(codestream[header.length :]):
        raise Refusal("truncated", "a codestream without its end")
    if not header.uniform:
        raise Refusal("unsupported_pixel_layout", "components of differing precision")
    # Otherwise YCbCr would be converted twice, or not at all (PS3.5 A.4.4, PS3.3 C.7.6.3.1.2).
    by_codec = fmt.photometric in ("YBR_ICT", "YBR_RCT")
    if fmt.transfer_syntax in JPEG_2000 and fmt.photometric.startswith("YBR") and header.transformed != by_codec:
        raise Refusal("pixel_header_mismatch", "the codestream's component transformation is another")
    if fmt.transfer_syntax in JPEG_LS and header.precision in (6, 7):
        raise Refusal("unsupported_pixel_layout", "JPEG-LS of 6 or 7 bits, which gdcm decodes wrongly")
