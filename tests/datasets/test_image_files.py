"""PNG and JPEG: what a header says without decoding, what is refused, and that pixels are as they are stored."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from datasets.miniature import encode, grey
from hypothesis import given, settings
from hypothesis import strategies as st
from minimal import spread
from PIL import Image

from pipeline.datasets import image_files
from pipeline.datasets.common import Source
from pipeline.dicom.headers import IngestParams
from pipeline.dicom.refusal import Refusal
from pipeline.imaging.intensity import Range, display_grey

GREY, DEEP = grey(0), grey(0, 16)
COLOUR = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def pillow(image: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    """Written by another library than the one that reads."""
    made, buffer = Image.fromarray(image), io.BytesIO()
    (made.convert(mode) if mode else made).save(buffer, kind, **options)
    return buffer.getvalue()


PNG, JPEG = pillow(DEEP, "PNG"), pillow(COLOUR, "JPEG")


def header(content: bytes, max_pixels: int = 10**6) -> tuple[object, ...]:
    return tuple(image_files.read_raster_header(content, max_pixels))


def reason(content: bytes, max_pixels: int = 10**6) -> str:
    with pytest.raises(Refusal) as raised:
        header(content, max_pixels)
    return raised.value.reason


def read(content: bytes):
    (image,) = image_files.read_raster(content, [0], IngestParams())
    return spread(image)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (pillow(GREY, "PNG"), ("png", 20, 30, 8, 1)),
        (pillow(DEEP, "PNG"), ("png", 20, 30, 16, 1)),
        (pillow(GREY > 99, "PNG"), ("png", 20, 30, 8, 1)),
        (pillow(COLOUR, "PNG"), ("png", 20, 30, 8, 3)),
        (pillow(COLOUR, "PNG", "P"), ("png", 20, 30, 8, 3)),
        (pillow(COLOUR, "PNG", "RGBA"), ("png", 20, 30, 8, 3)),
        (pillow(GREY, "PNG", "LA"), ("png", 20, 30, 8, 1)),
        (pillow(GREY, "JPEG"), ("jpeg", 20, 30, 8, 1)),
        (pillow(COLOUR, "JPEG"), ("jpeg", 20, 30, 8, 3)),
        (pillow(COLOUR, "JPEG", progressive=True, comment=b"\xff\xd9" * 9), ("jpeg", 20, 30, 8, 3)),
        (pillow(COLOUR, "JPEG") + b"\0" * 100, ("jpeg", 20, 30, 8, 3)),
    ],
)
def test_headers_and_that_the_pixels_keep_to_them(content, expected, monkeypatch):
    image = read(content)
    assert image.values.shape == (20, 30)
    assert image.voi == Range(0, 65535 if expected[3] == 16 else 255)
    monkeypatch.setattr(image_files.cv2, "imdecode", None)  # ingest decodes nothing
    assert header(content) == expected
    row = image_files.describe_raster(
        Source("a", None), content, IngestParams(), site="s", key=b"k", patient=("s", "1"), study=("s", "1")
    ).rows[0]
    assert (row["bits_stored"], row["samples_per_pixel"], row["transfer_syntax"]) == (*expected[3:], expected[0])


def test_lossless_values_are_kept():
    np.testing.assert_array_equal(read(pillow(GREY, "PNG")).values, GREY)
    np.testing.assert_array_equal(read(pillow(DEEP, "PNG")).values, DEEP)
    np.testing.assert_array_equal(read(pillow(GREY > 99, "PNG")).values, (GREY > 99) * 255)
    grey_of_deep, voi = display_grey(read(pillow(DEEP, "PNG")), None)
    np.testing.assert_array_equal(grey_of_deep, np.rint(DEEP / 65535 * 255))
    assert voi == Range(0, 65535)


def test_colours_become_luma():
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(read(pillow(COLOUR, "PNG")).values - luma).max() < 1.1  # libpng cuts fractions off
    smooth = cv2.GaussianBlur(COLOUR, (0, 0), 6)
    luma = smooth @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read(pillow(smooth, "JPEG", quality=100, subsampling=0)).values - luma).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_orientation_turns_nothing(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = read(pillow(GREY, kind, exif=exif)).values
    np.testing.assert_array_equal(values, read(pillow(GREY, kind)).values)


def test_cmyk_is_refused():
    assert reason(pillow(COLOUR, "JPEG", "CMYK")) == "unsupported_photometric"


def png_header(columns: int, rows: int, bits: int = 8, colour: int = 0) -> bytes:
    data = b"IHDR" + struct.pack(">IIBBBBB", columns, rows, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + data + struct.pack(">I", zlib.crc32(data))


def jpeg_header(marker: int = 0xC0, bits: int = 8, rows: int = 5, columns: int = 5, samples: int = 1) -> bytes:
    frame = struct.pack(">BHHB", bits, rows, columns, samples) + b"\1\x11\0" * samples
    return b"\xff\xd8\xff" + bytes([marker]) + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty_file"),
        (b"BM" + bytes(100), "non_image_object"),
        (b"\xff\xd8", "non_image_object"),
        (png_header(5, 5)[:32], "truncated"),
        (png_header(5, 5, colour=5), "corrupt_structure"),
        (png_header(5, 5, bits=7), "corrupt_structure"),
        (png_header(5, 5).replace(b"IHDR", b"IDAT"), "corrupt_structure"),
        (png_header(0, 5), "invalid_dimensions"),
        (png_header(1000, 1001), "decompression_bomb"),
        (png_header(1000, 334, colour=2), "decompression_bomb"),
        (jpeg_header(rows=0), "invalid_dimensions"),
        (jpeg_header(rows=65535, columns=65535), "decompression_bomb"),
        (jpeg_header(marker=0xC3), "unsupported_pixel_layout"),  # lossless
        (jpeg_header(marker=0xC9), "unsupported_pixel_layout"),  # arithmetic coding
        (jpeg_header(marker=0xC1, bits=12), "unsupported_pixel_layout"),
        (jpeg_header(samples=2), "unsupported_pixel_layout"),
        (jpeg_header(samples=4), "unsupported_photometric"),
        (jpeg_header()[:-2], "truncated"),
        (jpeg_header()[:-2] + jpeg_header()[2:], "corrupt_structure"),
        (b"\xff\xd8\xff\xe0\0\1\xff\xd9", "corrupt_structure"),
        (b"\xff\xd8\xff\xe0\xff\xff\xff\xd9", "truncated"),
        (b"\xff\xd8\xff\xc0\0\3\x08\xff\xd9", "corrupt_structure"),
        (b"\xff\xd8\xff\xda\0\2\xff\xd9", "corrupt_structure"),
        (b"\xff\xd8\xff\xe0\0\2\xff\xd9", "no_pixel_data"),
    ],
)
def test_refusals_that_need_no_decoding(content, expected, monkeypatch):
    monkeypatch.setattr(image_files.cv2, "imdecode", None)
    assert reason(content) == expected


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_a_jpeg_that_ends_early_is_truncated_wherever(at):
    """The decoder would fill up what is missing."""
    assert reason(JPEG[: 3 + at % (len(JPEG) - 3)]) == "truncated"


@settings(deadline=None)
@given(st.data())
def test_damage_is_refused_or_read_and_nothing_else(data):
    content = bytearray(data.draw(st.sampled_from([PNG, JPEG])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        (image,) = image_files.read_raster(bytes(content), [0], IngestParams(max_pixels=10**6))
    except Refusal:
        return
    assert spread(image).values.shape == header(bytes(content))[1:3]


def test_a_second_frame_and_a_missing_patient_are_refused():
    with pytest.raises(Refusal, match="pixel_length_mismatch"):
        list(image_files.read_raster(pillow(GREY, "PNG"), [1], IngestParams()))
    with pytest.raises(Refusal, match="missing_required_tag"):
        image_files.describe_raster(
            Source("a", None), encode(".png", GREY), IngestParams(), site="s", key=b"k", patient=("s", ""), study=("s",)
        )
