"""From stored to modality values against pydicom and by hand; VOI, polarity and padding as the header says."""

import numpy as np
import pytest
from minimal import content, dataset, table
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from pipeline.dicom import headers, pixels
from pipeline.dicom.refusal import Refusal
from pipeline.imaging.intensity import Range, VoiLut, Window, apply_voi, display_grey

SIGNED = np.array([[-2000, -1000, 0], [1, 1500, 2047]], dtype=np.int16)
UNSIGNED = np.array([[0, 1, 2048], [3000, 4094, 4095]], dtype=np.uint16)


def image(made):
    return pixels.modality_image(headers.parse(content(made)), 0)


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


def test_wrong_shape_and_undecodable_are_refused():
    made = dataset(syntax="1.2.840.10008.1.2.4.90", PixelData=b"\xfe\xff\0\xe0\0\0\0\0\xfe\xff\0\xe0\4\0\0\0abcd")
    made["PixelData"].is_undefined_length = True
    with pytest.raises(Refusal, match="decode_error"):
        pixels.stored_values(headers.parse(content(made)), 0)
    with pytest.raises(Refusal, match="decode_error"):
        pixels.stored_values(dataset(), 1)  # one frame only


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
    np.testing.assert_array_equal(pixels.modality_image(headers.parse(path.read_bytes()), 0).values, expected)
