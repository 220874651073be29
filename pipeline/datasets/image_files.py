"""Image files as adapters describe and decode them: DICOM (through ``pipeline.dicom``), and PNG and JPEG.

All adapters import this one module, so that all sites' stages depend on the same files but for the adapter's own.

Of PNG and JPEG headers are read without decoding. Their grey values are shown as they are, 0 black to 255 (or 65535)
white: nothing says how a reader would window them. An orientation that EXIF states is not applied: data sets store
pixels upright, and where a camera or a tool wrote one, rows and columns would silently change places. Transparency is
ignored, of an animation the first picture is read.
Source: PNG, ISO/IEC 15948, 11.2.2 (IHDR); JPEG, ITU-T T.81, B.1.1 (markers), B.2.2 (frame header).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from pipeline.datasets.common import Source
from pipeline.dicom import deidentify, headers, pixels
from pipeline.dicom.headers import Description, IngestParams
from pipeline.dicom.refusal import Refusal
from pipeline.imaging.intensity import ModalityImage, Range

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # samples by colour type, without alpha; 3 is a palette of colours
_JPEG_START, _JPEG_END, _JPEG_SCAN = b"\xff\xd8\xff", 0xD9, 0xDA
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15: the others define tables
_JPEG_DECODED = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive: Huffman coded
# The next marker behind compressed data, where FF 00 is a value and FF D0 to D7 restarts (T.81 B.1.1.5).
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def describe_dicom(
    source: Source, content: bytes, *, site: str, issuer: str, key: bytes, policy: IngestParams
) -> Description:
    """The facts of a DICOM file's images; raises ``Refusal`` where it is not taken."""
    del source
    return headers.describe(content, policy, site=site, issuer=issuer, key=key)


def read_dicom(
    content: bytes, frames: Sequence[int], policy: IngestParams, given: Mapping[str, str] | None = None
) -> Iterator[ModalityImage]:
    """Some frames of a DICOM file before display, the header read once; raises ``Refusal``.

    Args:
        content: the file.
        frames: by number, from 0.
        policy: of it the limits.
        given: see ``headers.describe``.
    """
    parsed, fmt = headers.read_header(content, policy, given)
    for frame in frames:
        yield pixels.modality_image(parsed, fmt, frame)


class Header(NamedTuple):
    """What a file says of its pixels; ``samples`` 1 for grey and 3 for colour."""

    format: str
    rows: int
    columns: int
    bits: int
    samples: int


def read_raster_header(content: bytes, max_pixels: int) -> Header:
    """A file's header; nothing is decoded or allocated.

    Raises:
        Refusal: empty_file; non_image_object (neither PNG nor JPEG); truncated; corrupt_structure;
            invalid_dimensions; decompression_bomb; unsupported_photometric (CMYK); unsupported_pixel_layout.
    """
    if not content:
        raise Refusal("empty_file")
    if content.startswith(_PNG_SIGNATURE):
        header = _png_header(content)
    elif content.startswith(_JPEG_START):
        header = _jpeg_header(content)
    else:
        raise Refusal("non_image_object", "neither a PNG nor a JPEG file")
    if header.rows < 1 or header.columns < 1:
        raise Refusal("invalid_dimensions", f"{header.rows} rows, {header.columns} columns")
    pixels = header.rows * header.columns * header.samples
    if pixels > max_pixels:
        raise Refusal("decompression_bomb", f"{pixels} samples, allowed {max_pixels}")
    return header


def _png_header(content: bytes) -> Header:
    if len(content) < 33:
        raise Refusal("truncated", "the file ends inside the PNG header")
    if content[8:16] != b"\0\0\0\x0dIHDR" or content[25] not in _PNG_COLOURS or content[24] not in (1, 2, 4, 8, 16):
        raise Refusal("corrupt_structure", "no PNG header behind the signature")
    columns, rows = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    return Header("png", rows, columns, 16 if content[24] == 16 else 8, _PNG_COLOURS[content[25]])


def _jpeg_header(content: bytes) -> Header:
    """Walks the markers to the last one, so that a file that ends early is known before a decoder fills it up."""
    header: Header | None = None
    position = 2
    while True:
        found = _JPEG_MARKER.search(content, position)
        if found is None:
            raise Refusal("truncated", "the file ends without the JPEG end marker")
        marker, start = content[found.end() - 1], found.end()
        if marker == _JPEG_END:
            break
        length = int.from_bytes(content[start : start + 2], "big")
        if start + 2 > len(content) or start + length > len(content):
            raise Refusal("truncated", "the file ends inside a JPEG segment")
        if length < 2:
            raise Refusal("corrupt_structure", "a JPEG segment shorter than its own length")
        if marker == _JPEG_SCAN and header is None:
            raise Refusal("corrupt_structure", "a JPEG scan before its frame header")
        if marker in _JPEG_FRAMES:
            if header is not None:
                raise Refusal("corrupt_structure", "two JPEG frame headers")
            header = _jpeg_frame(marker, content[start + 2 : start + length])
        position = start + length
    if header is None:
        raise Refusal("no_pixel_data", "a JPEG file without a frame")
    return header


def _jpeg_frame(marker: int, frame: bytes) -> Header:
    if len(frame) < 6:
        raise Refusal("corrupt_structure", "a JPEG frame header that is too short")
    bits, samples = frame[0], frame[5]
    if marker not in _JPEG_DECODED or bits != 8:
        raise Refusal("unsupported_pixel_layout", f"JPEG process SOF{marker - 0xC0} with {bits} bits")
    if samples == 4:
        raise Refusal("unsupported_photometric", "CMYK, which has no defined grey")
    if samples not in (1, 3):
        raise Refusal("unsupported_pixel_layout", f"a JPEG file of {samples} components")
    return Header("jpeg", int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"), bits, samples)


def describe_raster(
    source: Source,
    content: bytes,
    policy: IngestParams,
    *,
    site: str,
    key: bytes,
    patient: tuple[str, str],
    study: tuple[str, ...],
    **facts: Any,
) -> Description:
    """A PNG's or JPEG's one row, as ``headers.describe`` makes them: its header's facts, and what a table says of it.

    Args:
        source: of it the path, which the image's pseudonym is made of.
        content: the file.
        policy: of it ``max_pixels``, in samples.
        site: the site's name.
        key: the study's.
        patient: issuer and number; a file without a number is refused.
        study: what names it among all.
        facts: more columns of ``tables.files.Instances``, de-identified.

    Raises:
        Refusal: see ``read_raster_header``; missing_required_tag.
    """
    header = read_raster_header(content, policy.max_pixels)
    if not patient[1]:
        raise Refusal("missing_required_tag", "neither path nor table names the patient")
    row = {
        "image_id": deidentify.pseudonym(key, "image", site, source.relative, "0"),
        "frame": 0,
        "patient_id": deidentify.pseudonym(key, "patient", *patient),
        "study_id": deidentify.pseudonym(key, "study", *study),
        "series_id": None,
        "site": site,
        "modality": None,
        "manufacturer": None,
        "model": None,
        "view_position": None,
        "body_part": None,
        "sex": None,
        "age_years": None,
        "kvp": None,
        "rows": header.rows,
        "columns": header.columns,
        "bits_stored": header.bits,
        "photometric_interpretation": "MONOCHROME2" if header.samples == 1 else "RGB",
        "samples_per_pixel": header.samples,
        "transfer_syntax": header.format,
        "lossy": True if header.format == "jpeg" else None,
        # What such a file says of a spacing is a printer's.
        "row_spacing_mm": None,
        "column_spacing_mm": None,
        "day": None,
    }
    return Description([{**row, **facts}], [None])


def read_raster(content: bytes, frames: Sequence[int], policy: IngestParams) -> Iterator[ModalityImage]:
    """The grey values, (rows, columns), over the whole range of their bits; colours as luma (ITU-R BT.601).

    Raises:
        Refusal: see ``read_raster_header``; decode_error; pixel_header_mismatch; pixel_length_mismatch.
    """
    if list(frames) != [0]:
        raise Refusal("pixel_length_mismatch", "a PNG or JPEG file has one frame")
    header = read_raster_header(content, policy.max_pixels)
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise Refusal("decode_error", f"not a readable {header.format.upper()}")
    if image.shape != (header.rows, header.columns) or image.dtype != (np.uint16 if header.bits == 16 else np.uint8):
        raise Refusal("pixel_header_mismatch", "the decoded shape or depth is not the header's")
    values = np.arange(2**header.bits, dtype=np.float32)
    yield ModalityImage(values, Range(0.0, float(values[-1])), inverted=False, index=image)
