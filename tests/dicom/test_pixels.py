"""From stored to modality values against pydicom and by hand; VOI, polarity and padding as the header says."""

import logging
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from minimal import content, dataset, spread, table
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from pipeline.dicom import pixels
from pipeline.dicom.layout import read_layout
from pipeline.dicom.refusal import Refusal
from pipeline.dicom.structure import parse_structure
from pipeline.imaging.intensity import Range, VoiLut, Window, apply_voi, display_grey

SIGNED = np.array([[-2000, -1000, 0], [1, 1500, 2047]], dtype=np.int16)
UNSIGNED = np.array([[0, 1, 2048], [3000, 4094, 4095]], dtype=np.uint16)


def read(made, keyword="PixelData"):
    parsed = parse_structure(content(made), 2**30)
    return parsed, read_layout(parsed, keyword, max_pixels=2**28)


def image(made, frame=0):
    return spread(pixels.modality_image(*read(made), frame))


@pytest.mark.parametrize("slope", ["1", "2.5", "-0.5", "0.0001"])
@pytest.mark.parametrize("stored", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
def test_rescale_as_pydicom(stored, slope):
    made = dataset(stored, RescaleSlope=slope, RescaleIntercept="-1024.5", BitsStored=12)
    np.testing.assert_allclose(image(made).values, apply_modality_lut(stored, made), rtol=1e-6)


def test_no_modality_lut_leaves_the_values():
    np.testing.assert_array_equal(image(dataset(SIGNED)).values, SIGNED)


@pytest.mark.parametrize("first", [0, 100])
def test_modality_table_as_pydicom(first):
    made = dataset(UNSIGNED, ModalityLUTSequence=[table(np.linspace(65535, 7, 3000), first, 16)])
    np.testing.assert_array_equal(image(made).values, apply_modality_lut(UNSIGNED.copy(), made))


def test_modality_table_of_12_bits_and_signed_input():
    """Some vendors write bits stored; PS3.3 C.11.1.1.1 has 8 or 16. By hand: below the first the first value."""
    made = dataset(SIGNED, ModalityLUTSequence=[table(np.arange(11, 3011), -1000, 12, signed=True)])
    np.testing.assert_array_equal(image(made).values, [[11, 11, 1011], [1012, 2511, 3010]])


def test_first_input_has_the_sign_of_the_pixels():
    """As US, or of either VR in implicit encoding, -1000 stands there as 64536."""
    made = dataset(SIGNED, ModalityLUTSequence=[table(np.arange(11, 3011), 64536, 16)])
    np.testing.assert_array_equal(image(made).values, [[11, 11, 1011], [1012, 2511, 3010]])
    made = dataset(SIGNED, VOILUTSequence=[table(np.arange(11, 3011), 64536, 16)])
    assert image(made).voi.first == -1000
    made = dataset(UNSIGNED, VOILUTSequence=[table(np.arange(11, 3011), 64536, 16)])
    assert image(made).voi.first == 64536


@pytest.mark.parametrize("change", [{"LUTDescriptor": [10, 0, 16]}, {"LUTDescriptor": None}, {"LUTData": None}])
def test_broken_modality_table_is_refused(change):
    made = dataset(UNSIGNED, ModalityLUTSequence=[table(np.arange(5), 0, 16)])
    for keyword, value in change.items():
        del made.ModalityLUTSequence[0][keyword]
        if value is not None:
            made.ModalityLUTSequence[0].add_new(keyword, "US", value)
    with pytest.raises(Refusal, match="invalid_rescale"):
        image(made)


@pytest.mark.parametrize("slope", ["0", "", "1e300", "1e38"])
def test_senseless_rescale_is_refused(slope):
    with pytest.raises(Refusal, match="invalid_rescale"):
        image(dataset(UNSIGNED, RescaleSlope=slope, RescaleIntercept="0"))


def test_bits_above_bits_stored_are_no_part_of_the_value():
    """PS3.5 8.1.1: an overlay in the four bits above; unsigned they are cleared, signed they get the sign."""
    dirty = UNSIGNED | np.uint16(0xA000)
    np.testing.assert_array_equal(image(dataset(dirty, BitsStored=12)).values, UNSIGNED)
    values = np.array([[-2048, -1, 5]], dtype=np.int16)
    dirty = ((values & 0x0FFF) | 0x5000).astype(np.int16)
    np.testing.assert_array_equal(image(dataset(dirty, BitsStored=12)).values, values)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_byte_orders(syntax):
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    item = table(np.arange(4096) * 2, 0, 16)
    item["LUTData"].value = np.arange(0, 8192, 2, dtype=f"{order}u2").tobytes()
    made = dataset(UNSIGNED, syntax=syntax, ModalityLUTSequence=[item])
    made.PixelData = UNSIGNED.astype(f"{order}u2").tobytes()
    np.testing.assert_array_equal(image(made).values, UNSIGNED * 2.0)


def test_voi_table_against_pydicom():
    ramp = np.rint(4095 * np.linspace(0, 1, 2000) ** 2)
    made = dataset(UNSIGNED, VOILUTSequence=[table(ramp, 1500, 12)], WindowCenter=1, WindowWidth=2)
    got = image(made)
    assert isinstance(got.voi, VoiLut)  # before the window
    np.testing.assert_allclose(apply_voi(got.values, got.voi), apply_voi_lut(UNSIGNED, made) / 4095, atol=1e-6)


def test_voi_table_of_8_bits_longer_than_256():
    """pydicom 3.0.2 wraps the input at 256 here, so the oracle is the table itself."""
    entries = np.repeat(np.arange(256), 16)
    got = image(dataset(UNSIGNED, VOILUTSequence=[table(entries, 0, 8)]))
    np.testing.assert_allclose(apply_voi(got.values, got.voi), entries[UNSIGNED] / 255, atol=1e-6)


def test_voi_table_packed_in_bytes():
    item = table(np.arange(256), 0, 8)
    item["LUTData"].value = bytes(range(256))
    got = image(dataset(np.array([[0, 7, 255]], dtype=np.uint8), VOILUTSequence=[item]))
    np.testing.assert_allclose(apply_voi(got.values, got.voi), [[0, 7 / 255, 1]], atol=1e-6)


def test_voi_table_of_65536_entries():
    got = image(dataset(UNSIGNED, VOILUTSequence=[table(np.arange(65536), 0, 16)]))
    np.testing.assert_allclose(apply_voi(got.values, got.voi), UNSIGNED / 65535, atol=1e-6)


def test_broken_voi_table_counts_as_none():
    item = table(np.arange(256), 0, 8)
    item["LUTData"].value = b"ab"
    assert image(dataset(VOILUTSequence=[item])).voi is None
    assert image(dataset(VOILUTSequence=[item], WindowCenter=5, WindowWidth=9)).voi == Window(5, 9)


@pytest.mark.parametrize(
    ("elements", "voi"),
    [
        ({}, None),
        ({"WindowCenter": "40", "WindowWidth": "400"}, Window(40, 400)),
        ({"WindowCenter": ["40", "-600"], "WindowWidth": ["400", "1500"]}, Window(40, 400)),
        ({"WindowCenter": "40", "WindowWidth": "0"}, None),
        ({"WindowCenter": "40", "WindowWidth": "0.5"}, None),
        ({"WindowCenter": "40", "WindowWidth": "0.5", "VOILUTFunction": "SIGMOID"}, Window(40, 0.5, "SIGMOID")),
        ({"WindowCenter": "40", "WindowWidth": "-3"}, None),
        ({"WindowCenter": "40", "WindowWidth": ""}, None),
        ({"WindowCenter": "40"}, None),
        ({"WindowCenter": "40", "WindowWidth": "9", "VOILUTFunction": "GAMMA"}, None),
    ],
)
def test_header_window(elements, voi):
    assert image(dataset(**elements)).voi == voi


def test_twins_of_either_polarity_look_the_same():
    """MONOCHROME1 with inverted values is the same picture; INVERSE says the same again and counts once."""
    plain = dataset(UNSIGNED, WindowCenter="2047.5", WindowWidth="4096")
    grey, _ = display_grey(image(plain), None)
    for elements in ({}, {"PresentationLUTShape": "INVERSE"}):
        twin = dataset(4095 - UNSIGNED, PhotometricInterpretation="MONOCHROME1", WindowCenter="2048.5",
                       WindowWidth="4096", **elements)  # fmt: skip
        shown, _ = display_grey(image(twin), None)
        assert np.abs(shown.astype(int) - grey).max() <= 1
    shape = dataset(UNSIGNED, PresentationLUTShape="INVERSE")
    assert image(shape).inverted


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_moves_no_range(photometric):
    stored = np.array([[-2000, -2000, 10], [20, 30, -1990]], dtype=np.int16)
    made = dataset(stored, BitsStored=16, PhotometricInterpretation=photometric, RescaleSlope="2", RescaleIntercept="5")
    made.add_new("PixelPaddingValue", "SS", -2000)
    made.add_new("PixelPaddingRangeLimit", "SS", -1990)
    shown, voi = display_grey(image(made), None)
    assert voi == Range(25, 65)
    assert (shown[stored < 0] == 0).all()
    assert shown[1, 0] in (127, 128)
    assert shown[0, 2] == (255 if photometric == "MONOCHROME1" else 0)


def test_padding_in_implicit_syntax():
    made = dataset(np.array([[-2000, 10]], dtype=np.int16), BitsStored=16, syntax=ImplicitVRLittleEndian)
    made.add_new("PixelPaddingValue", "SS", -2000)
    np.testing.assert_array_equal(image(made).padding, [[True, False]])


@pytest.mark.parametrize("number", ["0000", "0003", "0085"])
def test_real_slices_in_hounsfield_units(shared, number):
    import pydicom

    (path,) = (shared / "data/ct_contrast/siemens/dicom").glob(f"ID_{number}_*")
    parsed = pydicom.dcmread(path)
    expected = parsed.pixel_array.astype(np.float64) * float(parsed.RescaleSlope) + float(parsed.RescaleIntercept)
    structure = parse_structure(path.read_bytes(), 2**30)
    fmt = read_layout(structure, "PixelData", max_pixels=2**28)
    np.testing.assert_array_equal(spread(pixels.modality_image(structure, fmt, 0)).values, expected)


@settings(deadline=None, max_examples=50)  # a loaded machine is no failure
@given(
    raw=arrays(np.uint16, (3, 5)),
    stored=st.integers(1, 16),
    above=st.integers(0, 15),
    signed=st.booleans(),
)
def test_stored_bits_anywhere_in_their_container(raw, stored, above, signed):
    """PS3.5 8.1.1, against plain integer arithmetic."""
    above = min(above, 16 - stored)
    high_bit = 15 - above
    made = dataset(raw, BitsStored=stored, HighBit=high_bit, PixelRepresentation=int(signed))
    expected = []
    for value in raw.ravel().tolist():
        number = value // 2 ** (high_bit - stored + 1) % 2**stored
        expected.append(number - 2**stored if signed and number >= 2 ** (stored - 1) else number)
    got = pixels.stored_values(*read(made), 0)
    assert got.dtype == (np.int16 if signed else np.uint16)
    np.testing.assert_array_equal(got.ravel(), expected)


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
def test_native_widths_signs_and_orders(syntax, dtype):
    info = np.iinfo(dtype)
    values = np.random.default_rng(0).integers(info.min, info.max, (2, 5, 3), dtype=dtype, endpoint=True)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    made = dataset(values[0], BitsStored=info.bits, NumberOfFrames=2, **({"syntax": syntax} if syntax else {}))
    made.PixelData = values.astype(order + dtype).tobytes()
    made["PixelData"].VR = "OW" if info.bits > 8 else "OB"
    parsed, fmt = read(made)
    for frame in (0, 1):
        got = pixels.stored_values(parsed, fmt, frame)
        assert got.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(got, values[frame])
    np.testing.assert_array_equal(pixels.modality_array(parsed, fmt), values.astype(np.float32))


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_bytes_of_big_endian_words(frames, vr):
    """Frames of an odd number of bytes; OW reverses pairs, across frames too (PS3.5 annex A.3)."""
    values = np.arange(frames * 15, dtype=np.uint8).reshape(frames, 3, 5)
    raw = values.tobytes() + b"\0" * (values.size % 2)
    if vr == "OW":
        raw = b"".join(raw[at : at + 2][::-1] for at in range(0, len(raw), 2))
    made = dataset(values[0], syntax=ExplicitVRBigEndian, NumberOfFrames=frames, PixelData=raw)
    made["PixelData"].VR = vr
    np.testing.assert_array_equal(pixels.modality_array(*read(made)), values)


COLOUR = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
RGB = np.random.default_rng(1).integers(0, 256, (3, 4, 3), dtype=np.uint8)


def colour(values, **elements):
    return dataset(values[..., 0], **{**COLOUR, "BitsStored": 8, "PixelData": values.tobytes(), **elements})


@pytest.mark.parametrize("planar", [0, 1])
def test_planar_configuration(planar):
    raw = np.moveaxis(RGB, -1, 0) if planar else RGB
    made = colour(RGB, PlanarConfiguration=planar, PixelData=raw.tobytes(), RescaleSlope="7", RescaleIntercept="3")
    got = pixels.modality_array(*read(made))
    assert got.shape == (1, 3, 4, 3)
    np.testing.assert_array_equal(got[0], RGB)  # and rescale belongs to grey


def test_ybr_as_pydicom():
    made = colour(RGB, PhotometricInterpretation="YBR_FULL")
    expected = convert_color_space(RGB, "YBR_FULL", "RGB")
    np.testing.assert_array_equal(pixels.modality_array(*read(made))[0], expected)


def test_ybr_full_422_has_two_samples_a_pixel():
    """Y Y Cb Cr for each pair; by hand: neutral chrominance is grey."""
    raw = bytes([10, 200, 128, 128, 30, 40, 128, 128])
    made = dataset(np.zeros((2, 2), np.uint8), **{**COLOUR, "PhotometricInterpretation": "YBR_FULL_422"}, PixelData=raw)
    np.testing.assert_array_equal(
        pixels.modality_array(*read(made))[0], np.repeat([[[10], [200]], [[30], [40]]], 3, axis=2)
    )


def test_colour_becomes_luma():
    """ITU-R BT.601, by hand; the range is that of the samples, whatever window stands there."""
    values = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    made = colour(values, WindowCenter="5", WindowWidth="9", PresentationLUTShape="INVERSE")
    got = image(made)
    np.testing.assert_allclose(got.values, [[76.245, 149.685], [29.07, 255]], rtol=1e-6)
    assert got.voi == Range(0, 255)
    assert not got.inverted
    assert display_grey(got, None)[0].tolist() == [[76, 150], [29, 255]]


def palette(stored, count, first, bits, packed=False, **elements):
    made = dataset(stored, BitsStored=stored.dtype.itemsize * 8, PhotometricInterpretation="PALETTE COLOR", **elements)
    rng = np.random.default_rng(2)
    signed = np.issubdtype(stored.dtype, np.signedinteger)
    for name in ("Red", "Green", "Blue"):
        descriptor = f"{name}PaletteColorLookupTableDescriptor"
        made.add_new(descriptor, "SS" if signed else "US", [count % 65536, first, bits])
        entries = rng.integers(0, 2**bits, count).astype("u1" if packed else "<u2").tobytes()
        setattr(made, f"{name}PaletteColorLookupTableData", entries + b"\0" * (len(entries) % 2))
    return made


@pytest.mark.parametrize(
    ("dtype", "count", "first", "bits", "packed"),
    [
        ("u1", 256, 0, 16, False),
        ("u1", 256, 0, 8, True),
        ("u1", 200, 20, 16, False),
        ("u2", 65536, 0, 16, False),
        ("i2", 500, -250, 16, False),
    ],
)
def test_palette_as_pydicom(dtype, count, first, bits, packed):
    info = np.iinfo(dtype)
    stored = np.random.default_rng(3).integers(info.min, info.max, (20, 30), dtype=dtype, endpoint=True)
    made = palette(stored, count, first, bits, packed)
    expected = apply_color_lut(stored, made)
    got = pixels.modality_array(*read(made))[0]
    np.testing.assert_array_equal(got, expected)
    assert image(made).voi == Range(0, 2**bits - 1)


def test_segmented_palette_as_pydicom():
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    made = palette(stored, 256, 0, 16)
    for index, name in enumerate(("Red", "Green", "Blue")):
        delattr(made, f"{name}PaletteColorLookupTableData")
        words = [0, 2, 5, 70 * index, 1, 101, 60000, 0, 1, 9, 1, 152, 100 * index]
        setattr(made, f"Segmented{name}PaletteColorLookupTableData", np.array(words, "<u2").tobytes())
    np.testing.assert_array_equal(pixels.modality_array(*read(made))[0], apply_color_lut(stored, made))


@pytest.mark.parametrize(
    "words",
    [[2, 1, 0, 0], [1, 256, 7], [0, 0, 0], [0, 300, 5], [9, 1, 1], [0, 1, 5], []],
    ids=["indirect", "linear first", "empty", "short", "unknown", "too few", "nothing"],
)
def test_malformed_segments(words):
    made = palette(np.zeros((2, 2), np.uint8), 256, 0, 16)
    for name in ("Red", "Green", "Blue"):
        delattr(made, f"{name}PaletteColorLookupTableData")
        setattr(made, f"Segmented{name}PaletteColorLookupTableData", np.array(words, "<u2").tobytes())
    with pytest.raises(Refusal, match="pixel_header_mismatch"):
        pixels.modality_array(*read(made))


def item(**elements):
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def transformation(slope, intercept):
    return item(
        PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")]
    )


def window(center, width):
    return item(FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth=width)])


def frames(**elements):
    values = np.stack([UNSIGNED, UNSIGNED + 1])
    return dataset(UNSIGNED, NumberOfFrames=2, PixelData=values.tobytes(), BitsStored=16, **elements), values


def test_functional_groups_of_each_frame():
    made, values = frames(
        RescaleSlope="9",
        RescaleIntercept="9",
        WindowCenter="9",
        WindowWidth="9",
        SharedFunctionalGroupsSequence=[transformation("5", "5")],
        PerFrameFunctionalGroupsSequence=[transformation("2", "1"), window("40", "400")],
    )
    got = pixels.modality_array(*read(made))
    np.testing.assert_array_equal(got[0], values[0] * 2.0 + 1)
    np.testing.assert_array_equal(got[1], values[1] * 5.0 + 5)  # its own has none: the shared one
    assert image(made, 0).voi == Window(9, 9)
    assert image(made, 1).voi == Window(40, 400)


def test_a_slope_of_0_in_one_frame():
    made, _ = frames(PerFrameFunctionalGroupsSequence=[transformation("2", "1"), transformation("0", "1")])
    parsed, fmt = read(made)
    assert pixels.modality_transform(parsed, fmt, 0) == pixels.Rescale(2.0, 1.0)
    with pytest.raises(Refusal, match="invalid_rescale"):
        pixels.modality_transform(parsed, fmt, 1)


def test_modality_table_in_a_functional_group():
    group = item(PixelValueTransformationSequence=[item(ModalityLUTSequence=[table(np.arange(5) + 70, 0, 16)])])
    made, _ = frames(SharedFunctionalGroupsSequence=[group])
    np.testing.assert_array_equal(pixels.modality_array(*read(made))[1], [[71, 72, 74], [74, 74, 74]])


@pytest.mark.parametrize("vr", ["SS", "US"])
def test_padding_value_has_the_sign_of_the_pixels(vr):
    """Some writers leave -2000 as US 63536."""
    made = dataset(np.array([[-2000, -1990, 10]], dtype=np.int16), BitsStored=16)
    made.add_new("PixelPaddingValue", vr, -2000 if vr == "SS" else 63536)
    np.testing.assert_array_equal(image(made).padding, [[True, False, False]])


def test_float_pixel_data():
    values = np.array([[0.5, -3e30, 7]], dtype="<f4")
    elements = dict.fromkeys(("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    made = dataset(values, **{**elements, "BitsAllocated": 32, "FloatPixelData": values.tobytes()})
    made.FloatPixelPaddingValue = 7.0
    parsed, fmt = read(made, "FloatPixelData")
    np.testing.assert_array_equal(pixels.modality_array(parsed, fmt)[0], values)
    np.testing.assert_array_equal(spread(pixels.modality_image(parsed, fmt, 0)).padding, [[False, False, True]])


@pytest.mark.parametrize("value", [1e39, np.inf, np.nan])
def test_doubles_that_float32_has_not(value):
    values = np.array([[1.0, value]])
    elements = dict.fromkeys(("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    made = dataset(values, **{**elements, "BitsAllocated": 64, "DoubleFloatPixelData": values.tobytes()})
    parsed, fmt = read(made, "DoubleFloatPixelData")
    with pytest.raises(Refusal, match="invalid_rescale"):
        pixels.modality_array(parsed, fmt)


def encapsulated(codestream, like, syntax, **elements):
    made = dataset(like, syntax=syntax, **elements)
    made.PixelData = encapsulate([codestream])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return made


GREY = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGBaseline8Bit, RLELossless])
def test_broken_codestream_is_a_decode_error_and_says_nothing(syntax, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    if syntax == JPEG2000Lossless:
        good = imagecodecs.jpeg2k_encode(GREY, level=0, codecformat="j2k", reversible=True)
        broken = good[:60] + b"\xff\xd9"
    elif syntax == JPEGBaseline8Bit:
        good = imagecodecs.jpeg8_encode(GREY, level=90)
        broken = good.replace(b"\xff\xc4\0", b"\xff\xfe\0")  # without Huffman tables
    else:
        broken = np.array([1, 64, *[0] * 14], "<u4").tobytes() + b"\x81\0"
    with pytest.raises(Refusal, match="decode_error"):
        pixels.modality_array(*read(encapsulated(broken, GREY, syntax)))
    assert not caplog.records
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, ValueError])
def test_errors_of_decoders(error, monkeypatch):
    class Decoder:
        def as_array(self, *_, **__):
            raise error("ZEBRAFELD")

    monkeypatch.setattr(pixels, "get_decoder", lambda _: Decoder())
    made = encapsulated(imagecodecs.jpeg8_encode(GREY), GREY, JPEGBaseline8Bit)
    with pytest.raises(Refusal, match="decode_error") as caught:
        pixels.modality_array(*read(made))
    assert "ZEBRA" not in str(caught.value)


def test_rle_segment_inflates_no_further_than_its_frame():
    """Runs for 512 MB in a frame of 2,000 pixels: the decoder stops where the frame is full."""
    header = np.array([1, 64, *[0] * 14], "<u4").tobytes()
    made = encapsulated(header + b"\x81\7" * 4_000_000, GREY, RLELossless)
    parsed, fmt = read(made)
    peak_bytes()
    before = peak_bytes()
    got = pixels.modality_array(parsed, fmt)
    assert peak_bytes() - before < 100e6
    np.testing.assert_array_equal(got[0], np.full(GREY.shape, 7))


def peak_bytes():
    """Of resident memory since the last call (proc_pid_clear_refs(5))."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) * 1024


def test_loggers_are_as_before():
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    pixels.modality_array(*read(encapsulated(imagecodecs.jpeg8_encode(GREY), GREY, JPEGBaseline8Bit)))
    assert logger.disabled == before


@pytest.mark.parametrize("slope", ["abc", "1\\2"])
def test_slope_of_no_number_or_several(slope):
    made = dataset(UNSIGNED, RescaleSlope="1.5", RescaleIntercept="0")
    data = content(made).replace(b"DS\x04\x001.5 ", b"DS\x04\x00" + slope.ljust(4).encode())
    parsed = parse_structure(data, 2**30)
    fmt = read_layout(parsed, "PixelData", max_pixels=2**28)
    if slope == "abc":
        with pytest.raises(Refusal, match="invalid_rescale"):
            pixels.modality_transform(parsed, fmt, 0)
    else:
        assert pixels.modality_transform(parsed, fmt, 0) == pixels.Rescale(1.0, 0.0)


@pytest.mark.parametrize(
    ("voi", "described"),
    [
        (Window(40, 400), ("window_linear", 40, 400)),
        (Range(-5, 15), ("range", 5, 20)),
        (VoiLut(0, np.zeros(2, np.float32)), ("lut", None, None)),
    ],
    ids=["window", "range", "lut"],
)
def test_description(voi, described):
    assert pixels.describe_voi(voi) == described


def test_a_panic_of_the_rle_decoder_is_a_decode_error():
    """Segments that unpack to more than the frame: pylibjpeg-rle's panic is no Exception, and would end the worker."""
    segment = b"\x81\0" * 400
    header = struct.pack("<16L", 2, 64, 64 + len(segment), *[0] * 13)
    made = dataset(syntax=RLELossless, PixelData=encapsulate([header + segment + segment]))
    made["PixelData"].is_undefined_length = True
    found = parse_structure(content(made), 2**20)
    fmt = read_layout(found, "PixelData", max_pixels=100)
    with pytest.raises(Refusal) as raised:
        pixels.stored_values(found, fmt, 0)
    assert raised.value.reason == "decode_error"
