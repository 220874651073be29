"""What read_layout takes and refuses, without a pixel decoded; how fragments become frames."""

import struct

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minimal import content, dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.dicom import layout
from pipeline.dicom.layout import read_layout
from pipeline.dicom.refusal import Refusal
from pipeline.dicom.structure import parse_structure

GREY = np.add.outer(np.arange(20), np.arange(30)).astype(np.uint8)
COLOUR = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
J2K = imagecodecs.jpeg2k_encode(GREY, level=0, codecformat="j2k", reversible=True)
JPEG = imagecodecs.jpeg8_encode(GREY, level=90)
LOSSLESS = imagecodecs.ljpeg_encode(GREY.astype(np.uint16), bitspersample=16)
JPEGLS = imagecodecs.jpegls_encode(GREY)


def read(made, max_pixels=2**28, keyword="PixelData"):
    return read_layout(parse_structure(content(made), 2**30), keyword, max_pixels=max_pixels)


def reason(made, **options):
    with pytest.raises(Refusal) as caught:
        read(made, **options)
    return caught.value.reason


def encapsulated(fragments, syntax=JPEG2000Lossless, table=b"", like=GREY, **elements):
    """Pixel data of these fragments, whatever they are."""
    made = dataset(like, syntax=syntax, **elements)
    parts = [b"\xfe\xff\x00\xe0" + struct.pack("<L", len(part)) + part for part in (table, *map(even, fragments))]
    made.PixelData = b"".join(parts)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return made


def even(fragment):
    return fragment + b"\0" * (len(fragment) % 2)


def test_plain():
    fmt = read(dataset())
    assert (fmt.rows, fmt.columns, fmt.frames, fmt.samples) == (3, 4, 1, 1)
    assert (fmt.bits_allocated, fmt.bits_stored, fmt.high_bit, fmt.signed) == (16, 12, 11, False)
    assert (fmt.photometric, fmt.planar, fmt.codestreams, fmt.notes) == ("MONOCHROME2", 0, (), frozenset())
    assert fmt.frame_bytes == 24
    assert not fmt.is_colour


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_native_syntaxes(syntax):
    assert read(dataset(syntax=syntax)).transfer_syntax == syntax


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"Rows": 0}, "invalid_dimensions"),
        ({"Columns": 0}, "invalid_dimensions"),
        ({"NumberOfFrames": 0}, "invalid_dimensions"),
        ({"NumberOfFrames": -1}, "invalid_dimensions"),
        ({"Rows": [3, 3]}, "corrupt_structure"),
        ({"PhotometricInterpretation": "CMYK"}, "unsupported_photometric"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_422", "SamplesPerPixel": 3, "PlanarConfiguration": 0},
         "unsupported_photometric"),
        ({"PhotometricInterpretation": "YBR_RCT", "SamplesPerPixel": 3, "PlanarConfiguration": 0},
         "unsupported_photometric"),
        ({"PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}, "pixel_header_mismatch"),
        ({"SamplesPerPixel": 3, "PlanarConfiguration": 0}, "pixel_header_mismatch"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "pixel_header_mismatch"),
        ({"BitsAllocated": 1, "BitsStored": 1}, "unsupported_pixel_layout"),
        ({"BitsAllocated": 12}, "unsupported_pixel_layout"),
        ({"BitsAllocated": 64}, "unsupported_pixel_layout"),
        ({"BitsStored": 17}, "unsupported_pixel_layout"),
        ({"BitsStored": 0, "HighBit": 0}, "unsupported_pixel_layout"),
        ({"HighBit": 16}, "unsupported_pixel_layout"),
        ({"HighBit": 10}, "unsupported_pixel_layout"),
        ({"PixelRepresentation": 2}, "unsupported_pixel_layout"),
        ({**COLOUR, "PlanarConfiguration": 2}, "unsupported_pixel_layout"),
        ({**COLOUR, "PlanarConfiguration": None}, "missing_required_tag"),
        ({**COLOUR, "PixelRepresentation": 1}, "unsupported_pixel_layout"),
        ({**COLOUR, "PhotometricInterpretation": "YBR_FULL"}, "unsupported_pixel_layout"),  # of 16 bits
        ({**COLOUR, "BitsAllocated": 8, "BitsStored": 8, "PhotometricInterpretation": "YBR_FULL_422", "Columns": 3},
         "unsupported_pixel_layout"),
        ({"Rows": 65535, "Columns": 65535}, "decompression_bomb"),
        ({"NumberOfFrames": 2147483647}, "decompression_bomb"),
        ({"Rows": 4}, "truncated"),
        ({"NumberOfFrames": 2}, "truncated"),
        ({"Rows": 2}, "pixel_length_mismatch"),
        ({"PixelData": np.ones(24, dtype="u2").tobytes()}, "pixel_length_mismatch"),
        ({"PixelData": bytes(48)}, "pixel_length_mismatch"),  # a whole frame, though all zero
        ({"PixelData": bytes(24) + b"\0\1"}, "pixel_length_mismatch"),
        ({"PixelData": bytes(22)}, "truncated"),
    ],
    ids=str,
)  # fmt: skip
def test_refused(elements, expected):
    assert reason(dataset(**elements)) == expected


def test_number_of_frames_that_is_no_number():
    """badVR.dcm of pydicom has one that pydicom itself would not write."""
    data = content(dataset(NumberOfFrames=1)).replace(b"\x28\x00\x08\x00IS\x02\x001 ", b"\x28\x00\x08\x00IS\x02\x001A")
    with pytest.raises(Refusal, match="corrupt_structure: NumberOfFrames"):
        read_layout(parse_structure(data, 2**30), "PixelData", max_pixels=2**28)


@pytest.mark.parametrize("frames", [None, "", 1])
def test_number_of_frames_may_be_missing(frames):
    assert read(dataset(NumberOfFrames=frames)).frames == 1


@pytest.mark.parametrize(("max_pixels", "taken"), [(12, True), (11, False)])
def test_budget(max_pixels, taken):
    if taken:
        read(dataset(), max_pixels=max_pixels)
    else:
        assert reason(dataset(), max_pixels=max_pixels) == "decompression_bomb"


@pytest.mark.parametrize("high_bit", [11, 12, 15])
def test_stored_bits_may_lie_high_in_native_data(high_bit):
    assert read(dataset(HighBit=high_bit)).high_bit == high_bit
    if high_bit != 11:
        made = encapsulated([LOSSLESS], JPEGLosslessSV1, like=GREY.astype("u2"), HighBit=high_bit)
        assert reason(made) == "unsupported_pixel_layout"


def test_trailing_zeros_are_noted():
    assert read(dataset(PixelData=bytes(24 + 22))).notes == {"trailing_padding"}


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ImplicitVRLittleEndian])
def test_odd_number_of_bytes(syntax):
    assert read(dataset(np.zeros((3, 3), dtype=np.uint8), syntax=syntax)).notes == frozenset()


@pytest.mark.parametrize(
    "syntax",
    [
        "1.2.840.10008.1.2.4.100",  # MPEG2
        "1.2.840.10008.1.2.4.107",  # HEVC
        "1.2.840.10008.1.2.4.94",  # JPIP
        "1.2.840.10008.1.2.4.92",  # JPEG 2000 part 2
        "1.2.840.10008.1.2.1.98",
    ],
)
def test_unknown_transfer_syntax(syntax):
    assert reason(encapsulated([J2K], syntax)) == "unsupported_transfer_syntax"


@pytest.mark.parametrize("syntax", sorted(layout.DECODING_PLUGINS))
def test_without_its_decoder_nothing_is_taken(syntax, monkeypatch):
    """Fail closed, though pydicom has other plugins for most of them."""

    class Decoder:
        available_plugins = ("pydicom", "pillow", "pyjpegls")

    monkeypatch.setattr(layout, "get_decoder", lambda _: Decoder())
    assert reason(encapsulated([J2K], syntax)) == "unsupported_transfer_syntax"


def test_decoders_are_installed():
    for syntax, plugin in layout.DECODING_PLUGINS.items():
        assert plugin in layout.get_decoder(syntax).available_plugins


CODESTREAMS = {JPEG2000Lossless: J2K, JPEGBaseline8Bit: JPEG, JPEGLSLossless: JPEGLS}


@pytest.mark.parametrize("syntax", CODESTREAMS)
@pytest.mark.parametrize("change", [{"Rows": 21}, {"Columns": 29}, {**COLOUR}], ids=str)
def test_codestream_of_another_shape(syntax, change):
    assert reason(encapsulated([CODESTREAMS[syntax]], syntax, **change)) == "pixel_header_mismatch"


@pytest.mark.parametrize("syntax", CODESTREAMS)
def test_codestream_that_claims_too_much(syntax):
    """In the second frame; a decoder would allocate what it says."""
    good = CODESTREAMS[syntax]
    if syntax == JPEG2000Lossless:
        bad = good[:8] + struct.pack(">2L", 65535, 65535) + good[16:]
    else:
        at = good.index(b"\xff\xf7" if syntax == JPEGLSLossless else b"\xff\xc0")
        bad = good[: at + 5] + b"\xff\xff\xff\xff" + good[at + 9 :]
    assert len(bad) == len(good)
    assert reason(encapsulated([good, bad], syntax, NumberOfFrames=2)) == "pixel_header_mismatch"
    assert read(encapsulated([good, good], syntax, NumberOfFrames=2)).frames == 2


def test_more_precision_than_allocated():
    made = encapsulated([LOSSLESS], JPEGLosslessSV1)
    assert reason(made) == "pixel_header_mismatch"


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
def test_another_process_than_the_transfer_syntax(syntax):
    assert reason(encapsulated([JPEG], syntax)) == "pixel_header_mismatch"


@pytest.mark.parametrize("syntax", CODESTREAMS)
def test_codestream_without_its_end(syntax):
    good = CODESTREAMS[syntax]
    assert reason(encapsulated([good[: good.rindex(b"\xff\xd9")]], syntax)) == "truncated"
    assert reason(encapsulated([good[:20]], syntax)) == "corrupt_structure"
    assert reason(encapsulated([b"\0" * 40], syntax)) == "corrupt_structure"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"JFIF\0\x01", b"JFIF\0\x02"),  # a major version that does not exist
        (b"\xff\xdb", b"\0\0\xff\xdb"),  # bytes between segments
        (b"\xff\xdb", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x02\xff\xdb"),  # an unknown colour transform
        (b"\xff\xc4", b"\xff\xc0\0\x0b\x08\0\x14\0\x1e\x01\x01\x11\0\xff\xc4"),  # a second SOF
    ],
)
def test_headers_at_which_gdcm_would_end_the_process(old, new):
    """Beyond this check they reach std::terminate in gdcm 3.2.6."""
    assert old in JPEG
    assert reason(encapsulated([JPEG.replace(old, new, 1)], JPEGBaseline8Bit)) == "corrupt_structure"


def test_rle_segments_are_counted():
    segment = b"\x81\0" * 5
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + segment
    made = encapsulated([frame], RLELossless, like=np.zeros((10, 64), np.uint8))
    assert read(made).frames == 1
    made = encapsulated([frame], RLELossless, like=np.zeros((10, 64), np.uint16))
    assert reason(made) == "pixel_header_mismatch"


def test_encapsulation_against_transfer_syntax():
    data = content(encapsulated([J2K])).replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.1\0\0\0")
    with pytest.raises(Refusal, match="corrupt_structure: fragments"):
        read_layout(parse_structure(data, 2**30), "PixelData", max_pixels=2**28)
    data = content(dataset()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    with pytest.raises(Refusal, match="corrupt_structure: native"):
        read_layout(parse_structure(data, 2**30), "PixelData", max_pixels=2**28)


def pieces(codestream, number):
    step = -(-len(codestream) // number) // 2 * 2 + 2
    return [codestream[at : at + step] for at in range(0, len(codestream), step)]


def lengths(fmt):
    return [len(frame) for frame in fmt.codestreams]


def test_one_frame_of_many_fragments():
    fragments = pieces(J2K, 5)
    made = encapsulated(fragments)
    fmt = read(made)
    assert lengths(fmt) == [len(fragments)]
    parsed = parse_structure(content(made), 2**30)
    assert bytes(layout.frame_codestream(parsed, fmt, 0)) == even(J2K)


@pytest.mark.parametrize("syntax", CODESTREAMS)
@settings(deadline=None, max_examples=50)  # a loaded machine is no failure
@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_frames_of_many_fragments_by_start_or_by_table(syntax, counts):
    codestream = even(CODESTREAMS[syntax])
    frames = [pieces(codestream, count) for count in counts]
    flat = [fragment for frame in frames for fragment in frame]
    sizes = [sum(8 + len(fragment) for fragment in frame) for frame in frames]
    offsets = [sum(sizes[:index]) for index in range(len(sizes))]
    for table in (b"", struct.pack(f"<{len(offsets)}L", *offsets)):
        made = encapsulated(flat, syntax, table, NumberOfFrames=len(counts))
        fmt = read(made)
        assert lengths(fmt) == [len(frame) for frame in frames]
        parsed = parse_structure(content(made), 2**30)
        for frame in range(len(counts)):
            assert bytes(layout.frame_codestream(parsed, fmt, frame)) == codestream


def test_extended_offset_table():
    made = dataset(GREY, syntax=JPEG2000Lossless, NumberOfFrames=3)
    made.PixelData, made.ExtendedOffsetTable, made.ExtendedOffsetTableLengths = encapsulate_extended([J2K] * 3)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    assert lengths(read(made)) == [1, 1, 1]


@pytest.mark.parametrize(
    "table", [struct.pack("<2L", 0, 4), struct.pack("<2L", 8, 8), struct.pack("<L", 0), b"\0\0\0\0\0\0", b"\xff" * 8]
)
def test_offset_table_that_fits_nothing(table):
    first, second = pieces(J2K, 2), pieces(J2K, 3)
    assert reason(encapsulated([*first, *second], table=table, NumberOfFrames=2)) == "corrupt_structure"


@pytest.mark.parametrize(
    ("fragments", "frames", "expected"),
    [
        ([], 1, "truncated"),
        ([J2K], 2, "truncated"),
        ([J2K, J2K], 1, "pixel_length_mismatch"),  # one stated, and each fragment starts a new one
        ([J2K, J2K, J2K], 2, "pixel_length_mismatch"),
        ([*pieces(J2K, 3), b"\1\2"], 2, "corrupt_structure"),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, list) else str(value),
)
def test_fragments_that_are_not_the_frames(fragments, frames, expected):
    assert reason(encapsulated(fragments, NumberOfFrames=frames)) == expected


def test_rle_frames_are_fragments():
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\0" * 5
    made = encapsulated([frame, frame], RLELossless, like=np.zeros((10, 64), np.uint8))
    assert reason(made) == "pixel_length_mismatch"


@pytest.mark.parametrize(("keyword", "bits"), [("FloatPixelData", 32), ("DoubleFloatPixelData", 64)])
def test_float(keyword, bits):
    elements = dict.fromkeys(("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    values = np.zeros((3, 4), dtype=f"f{bits // 8}").tobytes()
    made = dataset(**elements, BitsAllocated=bits, **{keyword: values})
    fmt = read(made, keyword=keyword)
    assert (fmt.bits_allocated, fmt.bits_stored, fmt.high_bit, fmt.signed) == (bits, bits, bits - 1, False)
    made.BitsAllocated = 96 - bits
    assert reason(made, keyword=keyword) == "unsupported_pixel_layout"


def test_functional_groups_are_one_a_frame():
    group = type(dataset())()
    made = dataset(PerFrameFunctionalGroupsSequence=[group, group])
    assert reason(made) == "corrupt_structure"


def test_refusals_quote_nothing():
    """A value of the header could be anything."""
    with pytest.raises(Refusal) as caught:
        read(dataset(PhotometricInterpretation="ZEBRAFELD"))
    assert "ZEBRA" not in str(caught.value)


def test_twelve_bit_extended_is_taken():
    codestream = imagecodecs.jpeg8_encode(GREY.astype(np.uint16), bitspersample=12)
    made = dataset(GREY.astype(np.uint16), syntax=JPEGExtended12Bit)
    made.PixelData = encapsulate([codestream])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    assert read(made).bits_stored == 12


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_RCT", "YBR_ICT"])
def test_component_transformation_is_what_the_header_says(transformed, photometric):
    """RGB says nothing of what the codec does inside; anything else would be converted twice, or not at all."""
    colour = np.stack([GREY, GREY, GREY], axis=-1)
    codestream = imagecodecs.jpeg2k_encode(colour, level=0, codecformat="j2k", reversible=True, mct=transformed)
    made = encapsulated([codestream], **{**COLOUR, "PhotometricInterpretation": photometric})
    if photometric == "RGB" or transformed == (photometric != "YBR_FULL"):
        assert read(made).is_colour
    else:
        assert reason(made) == "pixel_header_mismatch"
