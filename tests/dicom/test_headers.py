"""Every refusal has a minimal file that earns it; no mutated file raises anything else or quotes a header."""

import random
import re
import warnings

import numpy as np
import pytest
from minimal import NUMBER, PATIENT, content, dataset
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG4HP41, BasicTextSRStorage, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from pipeline.dicom import headers
from pipeline.dicom.refusal import Refusal

POLICY = headers.IngestParams()
KEY = b"k" * 32


def rows_of(data: bytes, policy: headers.IngestParams = POLICY) -> list[dict]:
    parsed = headers.parse(data)
    headers.check_image(parsed, policy)
    return headers.instance_rows(parsed, site="north", issuer="north", key=KEY)


def refusal_of(data: bytes, policy: headers.IngestParams = POLICY) -> Refusal:
    with pytest.raises(Refusal) as raised:
        rows_of(data, policy)
    return raised.value


def report() -> bytes:
    made = Dataset()
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "PatientID"):
        setattr(made, keyword, dataset()[keyword].value)
    made.file_meta = dataset().file_meta
    made.SOPClassUID = BasicTextSRStorage
    made.Modality = "SR"
    return content(made)


def wrong_vr(keyword: str, vr: str, value: object) -> bytes:
    made = dataset()
    made[keyword] = DataElement(made[keyword].tag, vr, value)
    return content(made)


def two_rows() -> bytes:
    """Rows with two values, which pydicom hands over as a list."""
    made = dataset()
    made["Rows"].value = [3, 3]
    return content(made)


def renamed(syntax: bytes) -> bytes:
    """With another transfer syntax of the same length: pydicom writes only those it knows."""
    data, name = content(dataset()), b"1.2.840.10008.1.2.1\0"
    assert data.count(name) == 1
    assert len(syntax) == len(name)
    return data.replace(name, syntax)


EMPTY_FRAMES = encapsulate([b"\0\0"])
GARBAGE = EMPTY_FRAMES[:8] + b"\1\2\3\4" * 9
CASES = {
    "empty": (b"", "empty_file"),
    "text": (f"Export of {PATIENT}\n".encode() * 20, "not_dicom"),
    "zeros": (bytes(4096), "not_dicom"),
    "pdf": (b"%PDF-1.7 " + bytes(300), "not_dicom"),
    "report": (report(), "non_image_object"),
    "no pixel data": (content(dataset(PixelData=None)), "no_pixel_data"),
    "half the pixels": (content(dataset())[:-12], "truncated"),
    "one byte short": (content(dataset())[:-1], "truncated"),
    "rgb": (content(dataset(PhotometricInterpretation="RGB")), "unsupported_photometric"),
    "three samples": (content(dataset(SamplesPerPixel=3)), "unsupported_photometric"),
    "palette": (content(dataset(PhotometricInterpretation="PALETTE COLOR")), "unsupported_photometric"),
    "high bit": (content(dataset(HighBit=15)), "unsupported_pixel_layout"),
    "stored above allocated": (content(dataset(BitsStored=17)), "unsupported_pixel_layout"),
    "no bits": (content(dataset(BitsStored=0, HighBit=0)), "unsupported_pixel_layout"),
    "one bit": (content(dataset(BitsAllocated=1, BitsStored=1)), "unsupported_pixel_layout"),
    "sign of 2": (content(dataset(PixelRepresentation=2)), "unsupported_pixel_layout"),
    "zero rows": (content(dataset(Rows=0)), "invalid_dimensions"),
    "zero columns": (content(dataset(Columns=0)), "invalid_dimensions"),
    "zero frames": (content(dataset(NumberOfFrames=0)), "invalid_dimensions"),
    "negative frames": (content(dataset(NumberOfFrames=-1)), "invalid_dimensions"),
    "bomb": (content(dataset(Rows=65535, Columns=65535)), "decompression_bomb"),
    "bomb in frames": (content(dataset(NumberOfFrames=2**30)), "decompression_bomb"),
    "too many rows": (content(dataset(Rows=4)), "truncated"),
    "too few rows": (content(dataset(Rows=2)), "pixel_length_mismatch"),
    "zero spacing": (content(dataset(PixelSpacing=[0, 1])), "invalid_spacing"),
    "negative spacing": (content(dataset(ImagerPixelSpacing=[-1, 1])), "invalid_spacing"),
    "one spacing": (content(dataset(PixelSpacing="0.5")), "invalid_spacing"),
    "spacing nan": (content(dataset(PixelSpacing=[float("nan"), 1])), "invalid_spacing"),
    "spacing beyond float32": (content(dataset(PixelSpacing=["1e-300", "1"])), "invalid_spacing"),
    "no syntax": (renamed(b"1.2.840.10008.1.2.99"), "unsupported_transfer_syntax"),
    "private syntax": (renamed(b"1.3.46.670589.33.1.4"), "unsupported_transfer_syntax"),
    "video": (content(dataset(syntax=MPEG4HP41, PixelData=EMPTY_FRAMES)), "unsupported_transfer_syntax"),
    "uid of letters": (content(dataset(SOPInstanceUID="../../SMITH")), "unsafe_uid"),
    "long uid": (content(dataset(StudyInstanceUID="1." + "2" * 63)), "unsafe_uid"),
    "no patient number": (content(dataset(PatientID=None)), "missing_required_tag"),
    "blank patient number": (content(dataset(PatientID="   ")), "missing_required_tag"),
    "empty patient number": (content(dataset(PatientID="")), "missing_required_tag"),
    "no bits stored": (content(dataset(BitsStored=None)), "missing_required_tag"),
    "localizer": (content(dataset(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])), "localizer"),
    "burned in": (content(dataset(BurnedInAnnotation="YES")), "burned_in_annotation"),
    "two rows": (two_rows(), "corrupt_structure"),
    "rows as text": (wrong_vr("Rows", "LO", "three"), "corrupt_structure"),
    "fewer fragments than frames": (
        content(dataset(syntax=RLELossless, PixelData=EMPTY_FRAMES, NumberOfFrames=5)), "truncated"),
    "garbage for fragments": (content(dataset(syntax=JPEG2000Lossless, PixelData=GARBAGE)), "truncated"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # pydicom's, of the bad files as they are written
@pytest.mark.parametrize("name", CASES)
def test_refused_with_its_reason_and_without_quoting(name):
    data, reason = CASES[name]
    refusal = refusal_of(data)
    assert refusal.reason == reason
    for secret in (PATIENT, "ZEBRAFELD", NUMBER, "SMITH", "three"):
        assert secret not in refusal.detail


def test_float_pixels_are_refused():
    made = dataset(PixelData=None)
    made.FloatPixelData = np.zeros(12, dtype="<f4").tobytes()
    assert refusal_of(content(made)).reason == "unsupported_pixel_layout"


def test_deflated_garbage_is_refused():
    """zlib.error is no ValueError."""
    made = dataset()
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    deflated = content(made)
    assert len(rows_of(deflated)) == 1
    assert refusal_of(deflated[:-30] + bytes(30)).reason in {"corrupt_structure", "truncated"}


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, RLELossless])
def test_cut_anywhere_is_no_image(syntax):
    """Inside an element: truncated. Between two elements nothing shows it, but no image is made of it."""
    made = dataset()
    if syntax == RLELossless:
        made.compress(RLELossless, generate_instance_uid=False)
    elif syntax is not None:
        made = dataset(syntax=syntax)
    data = content(made)
    seen = {}
    for size in range(1, len(data) - 1):
        if syntax == RLELossless and size >= len(data) - 8:
            break  # only the sequence delimiter is missing
        seen.setdefault(refusal_of(data[:size]).reason, []).append(size)
    assert set(seen) <= {"truncated", "not_dicom", "corrupt_structure", "non_image_object", "no_pixel_data"}
    assert max(seen["not_dicom"]) == 131
    assert max(seen["corrupt_structure"]) < 400  # inside the file meta
    assert len(seen["truncated"]) > 0.9 * (len(data) - 400)
    boundaries = len(list(made.iterall()))
    assert len(seen["non_image_object"]) + len(seen["no_pixel_data"]) <= boundaries + 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [{}, {"transfer_syntax": "rle"}, {"modality": "rescale"}], ids=str)
def test_mutations_give_rows_or_a_refusal(make, settings, seed, recwarn):
    data = make(**settings).content
    header = data.index(b"\xe0\x7f\x10\x00") + 40
    rng = random.Random(f"{settings}{seed}")
    secrets = (make(**settings).patient.family, make(**settings).patient.patient_id)
    for _ in range(20):
        mutated = bytearray(data)
        for _ in range(rng.choice([1, 2, 8, 40])):
            mutated[rng.randrange(132, header)] = rng.randrange(256)
        if rng.random() < 0.2:
            del mutated[rng.randrange(132, header) :]
        try:
            text = repr(rows_of(bytes(mutated)))
        except Refusal as refusal:
            text = refusal.detail
        assert not any(secret in text for secret in secrets)
    # pydicom's warnings quote the value they complain of.
    assert [str(entry.message) for entry in recwarn] == []


def test_warnings_quote_nothing():
    """A name in a field for a date or a number is told nobody."""
    made = dataset()
    for keyword in ("StudyDate", "PatientAge", "KVP", "SeriesInstanceUID"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.add_new(keyword, "LO", PATIENT)
    data = content(made)
    for vr in (b"DA", b"AS", b"DS", b"UI"):
        tag = {b"DA": b"\x08\0\x20\0", b"AS": b"\x10\0\x10\x10", b"DS": b"\x18\0\x60\0", b"UI": b"\x20\0\x0e\0"}[vr]
        assert data.count(tag + b"LO") == 1
        data = data.replace(tag + b"LO", tag + vr)
    (row,) = rows_of(data)  # pytest makes a warning an error
    assert (row["day"], row["age_years"], row["kvp"]) == (None, None, None)
    assert PATIENT not in repr(row)


def test_rows_hold_only_what_may_go_on():
    (row,) = rows_of(content(dataset(PatientAge="093Y", Manufacturer="Zebrafeld Works", PixelSpacing=[0.5, 0.25])))
    text = repr(row)
    for secret in (NUMBER, "ZEBRAFELD", "Zebrafeld", "1234567891", "22334455667", "20190517", "19401103"):
        assert secret not in text
    assert (row["age_years"], row["manufacturer"], row["modality"]) == (90, "other", "dx")
    assert (row["row_spacing_mm"], row["column_spacing_mm"]) == (0.5, 0.25)  # PS3.3 10.7.1.3: between rows first
    for name in ("image_id", "patient_id", "study_id", "series_id"):
        assert re.fullmatch("[0-9a-f]{32}", row[name])


def test_policy_keeps_what_a_person_decided_to_keep():
    data = content(dataset(ImageType=["DERIVED", "LOCALIZER"], BurnedInAnnotation="YES"))
    assert len(rows_of(data, headers.IngestParams(burned_in_annotation="keep", localizer="keep"))) == 1


def test_a_frame_is_an_image():
    made = dataset(NumberOfFrames=2)
    made.PixelData = made.PixelData * 2
    rows = rows_of(content(made))
    assert [row["frame"] for row in rows] == [0, 1]
    assert rows[0]["image_id"] != rows[1]["image_id"]


def test_patients_are_told_apart_by_issuer():
    parsed = headers.parse(content(dataset()))
    ids = {
        (site, issuer): headers.instance_rows(parsed, site=site, issuer=issuer, key=KEY)[0]["patient_id"]
        for site, issuer in (("a", "x"), ("b", "x"), ("b", "y"))
    }
    assert ids["a", "x"] == ids["b", "x"] != ids["b", "y"]
