"""Typed reading against pydicom's conversion where that is sound, and by hand where a value is malformed."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minimal import content, dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.dicom import attributes as a
from pipeline.dicom.structure import Element, Part, parse_structure

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def part(syntax: str = ExplicitVRLittleEndian, **elements: object) -> Part:
    return parse_structure(content(dataset(syntax=syntax, **elements)), 2**20).main


def raw(keyword: str, vr: str | None, value: bytes, little: bool = True) -> Part:
    return Part(value, {a.tag_of(keyword): Element(vr, 0, len(value))}, little)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SYNTAXES), st.integers(1, 65535), st.floats(1e-3, 1e3), st.lists(st.floats(-1e3, 1e3), max_size=3)
)
def test_round_trip(syntax, rows, slope, center):
    slope, center = float(f"{slope:.8g}"), [float(f"{value:.8g}") for value in center]
    made = part(syntax, Rows=rows, RescaleSlope=f"{slope:.8g}", WindowCenter=[f"{value:.8g}" for value in center])
    assert a.integer(made, "Rows") == rows
    assert a.number(made, "RescaleSlope") == slope
    assert a.numbers(made, "WindowCenter") == center
    assert a.text(made, "Modality") == "DX"


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize(
    ("vr", "code", "value"),
    [("US", "H", 65000), ("SS", "h", -5), ("UL", "L", 2**32 - 1), ("SL", "l", -(2**31)), ("FL", "f", 0.5),
     ("FD", "d", 0.1),
     ("UV", "Q", 2**60), ("SV", "q", -(2**60))],
)  # fmt: skip
def test_binary_values_in_both_orders(vr, code, value, little):
    made = raw("PixelPaddingValue", vr, struct.pack(("<" if little else ">") + code, value), little)
    assert a.numbers(made, "PixelPaddingValue") == [value]


def test_sign_where_the_standard_leaves_it_to_the_pixels():
    data = struct.pack("<H", 63536)
    for vr in ("US", None):
        made = raw("PixelPaddingValue", vr, data)
        assert a.numbers(made, "PixelPaddingValue", signed=True) == [-2000]
        assert a.numbers(made, "PixelPaddingValue", signed=False) == [63536]


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [("Rows", "LO", b"three "), ("Rows", "US", b"\1"), ("RescaleSlope", "DS", b"many"), ("RescaleSlope", "DS", b"1_0 "),
     ("RescaleSlope", "DS", b"1\\\\"), ("Rows", "OB", b"\1\0"), ("Modality", "US", b"\1\0")],
)  # fmt: skip
def test_malformed(keyword, vr, value):
    made = raw(keyword, vr, value)
    read = a.text if keyword == "Modality" else a.numbers
    with pytest.raises(a.MalformedError) as raised:
        read(made, keyword)
    assert str(raised.value) == keyword


@pytest.mark.parametrize("value", [b"1\\2", b"1.5 ", b"nan ", b"inf "])
def test_no_whole_number(value):
    with pytest.raises(a.MalformedError):
        a.integer(raw("NumberOfFrames", "IS", value), "NumberOfFrames")


@pytest.mark.parametrize(("value", "empty"), [(b"", True), (b"  ", True), (b"\0\0", True), (b"x ", False)])
def test_empty_text(value, empty):
    assert a.is_empty(raw("PatientID", "LO", value), "PatientID") is empty


def test_zero_is_a_value():
    assert not a.is_empty(raw("PixelRepresentation", "US", b"\0\0"), "PixelRepresentation")
    assert a.is_empty(raw("PixelRepresentation", "US", b"\0\0"), "Rows")


def test_not_finite_is_no_number():
    assert a.number(raw("KVP", "DS", b"nan "), "KVP") is None


def test_unknown_vr_takes_the_dictionarys():
    assert a.integer(raw("Rows", "UN", b"\3\0"), "Rows") == 3
    assert a.texts(raw("ImageType", None, b"A\\B "), "ImageType") == ["A", "B"]
