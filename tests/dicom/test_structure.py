"""The walk against pydicom on random nested data sets, and on hostile bytes made by hand: bounded, never recursing."""

import io
import struct
import time
import zlib
from pathlib import Path

import data_store
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minimal import content, dataset
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pipeline.dicom import structure
from pipeline.dicom.refusal import Refusal
from pipeline.dicom.structure import Part, parse_structure

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
BUNDLED = [
    *(path for path in (Path(pydicom.__file__).parent / "data/test_files").rglob("*") if path.is_file()),
    *(Path(data_store.__file__).parent / "data").glob("*.dcm"),
]


def parsed(data: bytes) -> structure.Parsed:
    return parse_structure(data, 2**24)


def attempt(data: bytes) -> structure.Parsed | Refusal:
    try:
        return parsed(data)
    except Refusal as refused:
        return refused


def refusal(data: bytes) -> Refusal:
    with pytest.raises(Refusal) as raised:
        parsed(data)
    return raised.value


def nested(depth: int, undefined: bool) -> bytes:
    """Sequences in sequences, as explicit little endian bytes, made without recursion."""
    if undefined:
        unknown = 0xFFFFFFFF
        opening = struct.pack("<HH2sHLHHL", 0x0040, 0xA730, b"SQ", 0, unknown, 0xFFFE, 0xE000, unknown)
        closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        return opening * depth + closing * depth
    inner = b""
    for _ in range(depth):
        item = struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner
        inner = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, len(item)) + item
    return inner


def with_extra(extra: bytes, before: bool = False, **elements: object) -> bytes:
    """The minimal file with raw bytes before the pixel data, or behind everything."""
    data = content(dataset(**elements))
    place = data.index(struct.pack("<HH", 0x7FE0, 0x10) + b"OW") if before else len(data)
    return data[:place] + extra + data[place:]


@st.composite
def data_sets(draw: st.DrawFn, depth: int = 3) -> Dataset:
    made = Dataset()
    made.StudyDate = draw(st.sampled_from(["", "20200101"]))
    made.PatientName = draw(st.text("ABC^ ", max_size=20))
    made.ImageComments = draw(st.text("abc", max_size=40))
    if draw(st.booleans()):
        block = made.private_block(0x0029, "MAKER", create=True)
        block.add_new(0x10, "UN", draw(st.binary(max_size=31)))
        block.add_new(0x11, "OB", draw(st.binary(max_size=30)))
    if depth:
        for keyword in draw(st.lists(st.sampled_from(["ContentSequence", "ReferencedStudySequence"]), unique=True)):
            items = draw(st.lists(data_sets(depth=depth - 1), max_size=3))
            setattr(made, keyword, Sequence(items))
            made[keyword].is_undefined_length = draw(st.booleans())
            for item in items:
                item.is_undefined_length_sequence_item = draw(st.booleans())
    return made


def compare(part: Part, expected: Dataset) -> None:
    assert list(part.elements) == [int(element.tag) for element in expected]
    for element in expected:
        if element.VR == "SQ":
            items = part.items.get(int(element.tag), [])
            assert len(items) == len(element.value)
            for inner, item in zip(items, element.value, strict=True):
                compare(inner, item)
        else:
            value = element.value
            raw = part.raw(int(element.tag))
            assert raw is not None
            if isinstance(value, bytes):
                assert raw[: len(value)] == value
            else:
                assert raw.decode().rstrip(" \0") == str(value or "").rstrip()


@settings(max_examples=60, deadline=None)
@given(data_sets(), st.sampled_from(SYNTAXES))
def test_finds_what_pydicom_wrote(made: Dataset, syntax: UID):
    made.SOPClassUID, made.SOPInstanceUID = "1.2.3", "1.2.4"
    made.file_meta = dataset().file_meta
    made.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    found = parsed(buffer.getvalue())
    expected = pydicom.dcmread(io.BytesIO(buffer.getvalue()))
    compare(found.main, expected)
    assert found.transfer_syntax == syntax
    assert found.notes == set()
    assert len(found.tags) == len(list(expected.iterall())) + len(list(expected.file_meta))


@pytest.mark.filterwarnings("ignore")  # pydicom's, of odd files
@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.name)
def test_bundled_files_hold_what_pydicom_finds(path: Path):
    found = attempt(path.read_bytes())
    if isinstance(found, Refusal):
        assert found.reason in {"not_dicom", "truncated", "corrupt_structure"}
    else:
        assert set(found.main.elements) == {int(element.tag) for element in pydicom.dcmread(path, force=True)}


def test_few_bundled_files_are_refused():
    refused = set()
    for path in BUNDLED:
        try:
            parsed(path.read_bytes())
        except Refusal:
            refused.add(path.name)
    assert {name for name in refused if name.endswith(".dcm")} == {
        "MR_truncated.dcm", "rtplan_truncated.dcm",  # cut, as their names say
        "emri_small_jpeg_2k_lossless_too_short.dcm",
        "meta_missing_tsyntax.dcm",  # no data set of group 0008 behind the file meta
        "no_meta.dcm",  # starts with a blank
    }  # fmt: skip


@pytest.mark.parametrize("undefined", [True, False])
def test_nesting_is_bounded(undefined: bool):
    start = time.monotonic()
    assert parsed(with_extra(nested(structure.MAX_DEPTH, undefined), before=True)).main.elements
    for depth in (structure.MAX_DEPTH + 1, 2000 if not undefined else 100_000):
        refused = refusal(with_extra(nested(depth, undefined), before=True))
        assert refused.reason == "corrupt_structure"
        assert "nested" in refused.detail
    assert time.monotonic() - start < 10


def test_number_of_elements_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(structure, "MAX_ELEMENTS", 500)
    extra = b"".join(struct.pack("<HH2sH", 0x0051, number, b"LO", 0) for number in range(600))
    assert refusal(with_extra(extra, before=True)).reason == "corrupt_structure"


def test_claims_beyond_the_file_are_truncated():
    huge = struct.pack("<HH2sHL", 0x0051, 0x1000, b"OB", 0, 0xFFFFFFF0)
    assert refusal(with_extra(huge, before=True)).reason == "truncated"


def test_deflate_bomb_is_not_inflated():
    plain = content(dataset())
    meta_end = plain.index(b"\x08\0\x16\0UI")
    meta = plain[:meta_end].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = bomb.compress(plain[meta_end:] + bytes(2**26)) + bomb.flush()
    assert len(data) < 2**18
    refused = refusal(_relength(meta) + data)
    assert refused.reason == "decompression_bomb"


def _relength(meta: bytes) -> bytes:
    """The transfer syntax's own length after its value grew by two."""
    place = meta.index(b"\x02\0\x10\0UI") + 6
    return meta[:place] + struct.pack("<H", 22) + meta[place + 2 :]


def test_broken_sequence_of_stated_length_is_passed_over():
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 500) + b"abcdefgh"
    extra = struct.pack("<HH2sHL", 0x0051, 0x1010, b"SQ", 0, len(item)) + item
    found = parsed(with_extra(extra, before=True))
    assert found.notes == {"broken_sequence"}
    assert 0x00511010 in found.main.elements
    assert 0x00511010 not in found.main.items
    assert 0x7FE00010 in found.main.elements


def test_element_twice_is_ambiguous():
    again = struct.pack("<HH2sH", 0x0010, 0x0020, b"LO", 4) + b"OTHR"
    assert refusal(with_extra(again, before=True)).reason == "corrupt_structure"


@pytest.mark.parametrize("size", [1, 7, 8, 512])
def test_trailing_zeros_are_padding(size: int):
    assert parsed(with_extra(bytes(size))).notes == {"trailing_padding"}


@pytest.mark.parametrize("extra", [b"x", b"abcdefg", bytes(20) + b"x"])
def test_trailing_garbage_is_none(extra: bytes):
    assert refusal(with_extra(extra)).reason in {"truncated", "corrupt_structure"}


def test_missing_preamble_and_file_meta():
    whole = content(dataset())
    start = whole.index(b"\x08\0\x16\0UI")
    assert parsed(whole[132:]).notes == {"missing_preamble"}
    assert parsed(whole[128:]).notes == {"missing_preamble"}
    bare = parsed(whole[start:])
    assert bare.notes == {"missing_preamble", "missing_file_meta"}
    assert bare.transfer_syntax == ExplicitVRLittleEndian
    assert bare.main.elements.keys() == parsed(whole).main.elements.keys()
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
        data = content(dataset(syntax=syntax))
        first = b"\0\x08\0\x16" if syntax == ExplicitVRBigEndian else b"\x08\0\x16\0"
        assert parsed(data[data.index(first, 132) :]).transfer_syntax == syntax


def test_codec_is_not_guessed():
    """Encapsulated pixel data without a transfer syntax."""
    made = dataset()
    made.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    data = content(made)
    assert parsed(data).fragments is not None
    assert refusal(data[data.index(b"\x08\0\x16\0UI") :]).reason == "missing_file_meta"


def test_vr_encoding_other_than_stated():
    data = content(dataset(syntax=ImplicitVRLittleEndian))
    name = b"1.2.840.10008.1.2\0"
    assert data.count(name) == 1
    place = data.index(name)
    lied = data[: place - 2] + struct.pack("<H", 20) + b"1.2.840.10008.1.2.1\0" + data[place + len(name) :]
    found = parsed(lied)
    assert found.notes == {"wrong_vr_encoding"}
    assert found.main.raw(0x00100020) == parsed(data).main.raw(0x00100020)


@pytest.mark.parametrize(
    "data",
    [b"\x08\0\x16\0UI\x04\x001.2\0", b"\x08\0", b"\x02\0\x10\0UI", b"DICM", b"DICMabc", bytes(200), b"\x08\0" * 100,
     bytes(128) + b"DICM", bytes(128) + b"DICM\x02\0"],
)  # fmt: skip
def test_fragments_of_files(data: bytes):
    found = attempt(data)
    if isinstance(found, Refusal):
        assert found.reason in {"not_dicom", "truncated", "corrupt_structure"}
    else:
        assert 0x00080016 in found.main.elements


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_end_in_a_structure_or_a_refusal(data: bytes, prefixed: bool):
    found = attempt((bytes(128) + b"DICM" if prefixed else b"") + data)
    if isinstance(found, Refusal):
        reasons = "empty_file not_dicom truncated corrupt_structure missing_file_meta decompression_bomb"
        assert found.reason in reasons.split()
    else:
        for element in found.main.elements.values():
            assert 0 <= element.start <= len(found.main.data)
