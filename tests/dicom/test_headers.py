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
from pipeline.dicom.pixels import modality_image
from pipeline.dicom.refusal import Refusal

POLICY = headers.IngestParams()
KEY = b"k" * 32


def rows_of(data: bytes, policy: headers.IngestParams = POLICY) -> list[dict]:
    return headers.describe(data, policy, site="north", issuer="north", key=KEY).rows


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
    "rgb": (content(dataset(PhotometricInterpretation="RGB")), "pixel_header_mismatch"),
    "three samples": (content(dataset(SamplesPerPixel=3, PlanarConfiguration=0)), "pixel_header_mismatch"),
    "no planar configuration": (
        content(dataset(SamplesPerPixel=3, PhotometricInterpretation="RGB")), "missing_required_tag"),
    "palette without tables": (content(dataset(PhotometricInterpretation="PALETTE COLOR")), "pixel_header_mismatch"),
    "video colour": (content(dataset(PhotometricInterpretation="YBR_PARTIAL_420")), "unsupported_photometric"),
    "hsv": (content(dataset(PhotometricInterpretation="HSV")), "unsupported_photometric"),
    "high bit below stored": (content(dataset(HighBit=5)), "unsupported_pixel_layout"),
    "high bit above allocated": (content(dataset(HighBit=16)), "unsupported_pixel_layout"),
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
    "syntax of letters": (renamed(b"SMITH^JOHN.1.2.3.4.5"), "unsupported_transfer_syntax"),
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
    "garbage for fragments": (content(dataset(syntax=JPEG2000Lossless, PixelData=GARBAGE)), "corrupt_structure"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # pydicom's, of the bad files as they are written
@pytest.mark.parametrize("name", CASES)
def test_refused_with_its_reason_and_without_quoting(name):
    data, reason = CASES[name]
    refusal = refusal_of(data)
    assert refusal.reason == reason
    for secret in (PATIENT, "ZEBRAFELD", NUMBER, "SMITH", "three"):
        assert secret not in refusal.detail


def test_float_pixels():
    made = dataset(PixelData=None, BitsAllocated=32, BitsStored=None, HighBit=None, PixelRepresentation=None)
    made.FloatPixelData = np.zeros(12, dtype="<f4").tobytes()
    (row,) = rows_of(content(made))
    assert (row["bits_stored"], row["rows"], row["columns"]) == (32, 3, 4)
    made.PixelData = bytes(24)
    assert refusal_of(content(made)).reason in {"missing_required_tag", "unsupported_pixel_layout"}


SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
HEAD = {"Modality": "CT", "BodyPartExamined": "HEAD"}
POLICIES = {
    "burned_in_annotation": ({"BurnedInAnnotation": "YES"}, "burned_in_annotation"),
    "secondary_capture": ({"SOPClassUID": SECONDARY}, "burned_in_annotation"),
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    "recognizable_face": (HEAD, "unsafe_identifier"),
    "placeholder_patient_id": ({"PatientID": "Anonymous"}, "unsafe_identifier"),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_quarantine_unless_a_person_decided(policy):
    elements, reason = POLICIES[policy]
    data = content(dataset(**elements))
    refusal = refusal_of(data)
    assert (refusal.outcome, refusal.reason) == ("quarantined", reason)
    assert len(rows_of(data, headers.IngestParams(**{policy: "keep"}))) == 1


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": SECONDARY, "BurnedInAnnotation": "NO"},  # it says that it is free of text
        {"Modality": "CT", "BodyPartExamined": "CHEST"},
        {"Modality": "CR", "BodyPartExamined": "SKULL"},  # a projection shows no face
        {"PatientID": "A0"},
        {"PatientID": "Nonesuch"},
    ],
)
def test_policies_leave_the_rest_alone(elements):
    assert len(rows_of(content(dataset(**elements)))) == 1


@pytest.mark.parametrize("patient", ["0", "000000", "xxx", "UNKNOWN", "n/a", "A\nB", "A" * 65])
def test_numbers_that_tell_no_patient(patient):
    refusal = refusal_of(content(dataset(PatientID=patient)))
    assert (refusal.outcome, refusal.reason) == ("quarantined", "unsafe_identifier")


def test_a_missing_number_is_a_persons_decision():
    refusal = refusal_of(content(dataset(PatientID="")))
    assert (refusal.outcome, refusal.reason) == ("quarantined", "missing_required_tag")
    policy = headers.IngestParams(missing_patient_id="study")
    one, again, other = (
        rows_of(content(dataset(PatientID="", SOPInstanceUID=uid, StudyInstanceUID=study)), policy)[0]["patient_id"]
        for uid, study in (("2.25.1", "2.25.7"), ("2.25.2", "2.25.7"), ("2.25.3", "2.25.8"))
    )
    assert one == again != other


def test_annotations_of_other_images_are_none():
    for name in ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.2"):
        refusal = refusal_of(content(dataset(SOPClassUID=name)))
        assert (refusal.outcome, refusal.reason) == ("rejected", "non_image_object")


def planted(number: bytes, charset: bytes | None) -> bytes:
    """The minimal file with other bytes for PatientID, of the same length, and a character set or none."""
    elements = {} if charset is None else {"SpecificCharacterSet": "X" * len(charset)}
    data = content(dataset(PatientID="Z" * len(number), **elements))
    assert data.count(b"Z" * len(number)) == 1
    return data.replace(b"Z" * len(number), number).replace(b"X" * len(charset or b"-"), charset or b"-")


def patient_of(data: bytes) -> str:
    return rows_of(data)[0]["patient_id"]


def test_one_patient_in_several_character_sets():
    name = "Müller-12"
    latin, utf8 = planted(name.encode("latin-1"), b"ISO_IR 100"), planted(name.encode() + b" ", b"ISO_IR 192")
    escaped = planted(b"\x1b-A" + name.encode("latin-1"), b"ISO 2022 IR 6\\ISO 2022 IR 100 ")
    assert patient_of(latin) == patient_of(utf8) == patient_of(escaped)


@pytest.mark.parametrize(
    ("number", "charset"),
    [(b"M\xfcller", None), (b"M\xfcller", b"ISO_IR 6"), (b"M\xfcller", b"ISO_IR 999"), (b"M\xfcllers", b"ISO_IR 192")],
)
def test_text_without_its_character_set_is_not_guessed(number, charset):
    refusal = refusal_of(planted(number, charset))
    assert (refusal.outcome, refusal.reason) == ("quarantined", "bad_character_set")


def test_unknown_character_set_does_no_harm_to_ascii():
    data = planted(b"MULLER-1", b"ISO_IR 999")
    described = headers.describe(data, POLICY, site="north", issuer="north", key=KEY)
    assert described.notes == {"bad_character_set"}
    assert patient_of(data) == patient_of(planted(b"MULLER-1", None))


def test_repaired_files_are_kept_out_on_request():
    bare = content(dataset())[132:]
    assert headers.describe(bare, POLICY, site="n", issuer="n", key=KEY).notes == {"missing_preamble"}
    refusal = refusal_of(bare, headers.IngestParams(repaired="quarantine"))
    assert (refusal.outcome, refusal.reason) == ("quarantined", "missing_preamble")


@pytest.mark.filterwarnings("ignore")  # pydicom's, of the bad files as they are written
@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"RescaleSlope": "0", "RescaleIntercept": "1"}, "invalid_rescale"),
        ({"SeriesInstanceUID": "../../etc"}, "unsafe_uid"),
        ({"SOPClassUID": "1.2.x"}, "unsafe_uid"),
    ],
)
def test_more_that_headers_tell(elements, reason):
    assert refusal_of(content(dataset(**elements))).reason == reason


def test_facts_of_frames():
    """Enhanced multi-frame: spacing and thickness from the functional groups, frame by frame."""
    made = dataset(NumberOfFrames=2, SharedFunctionalGroupsSequence=[Dataset()])
    made.PixelData = made.PixelData * 2
    groups = []
    for spacing in (0.5, 0.7):
        measures = Dataset()
        measures.PixelSpacing, measures.SliceThickness = [spacing, spacing], 2
        group = Dataset()
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    rows = rows_of(content(made))
    assert [(row["row_spacing_mm"], row["slice_thickness_mm"]) for row in rows] == [(0.5, 2), (0.7, 2)]


def test_pixel_and_imager_spacing_are_two_quantities():
    (row,) = rows_of(content(dataset(ImagerPixelSpacing=[0.2, 0.3])))
    assert (row["row_spacing_mm"], row["imager_row_spacing_mm"], row["imager_column_spacing_mm"]) == (None, 0.2, 0.3)


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
    for keyword in ("StudyDate", "PatientAge", "KVP"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.add_new(keyword, "LO", PATIENT)
    data = content(made)
    for vr in (b"DA", b"AS", b"DS"):
        tag = {b"DA": b"\x08\0\x20\0", b"AS": b"\x10\0\x10\x10", b"DS": b"\x18\0\x60\0"}[vr]
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
    data = content(dataset())
    ids = {
        (site, issuer): headers.describe(data, POLICY, site=site, issuer=issuer, key=KEY).rows[0]["patient_id"]
        for site, issuer in (("a", "x"), ("b", "x"), ("b", "y"))
    }
    assert ids["a", "x"] == ids["b", "x"] != ids["b", "y"]


def test_what_a_data_set_states_elsewhere_fills_gaps_alone():
    gaps = dict.fromkeys(("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate"))
    bare = content(dataset(**gaps, PatientID=""))
    given = {"SOPInstanceUID": "2.25.1", "StudyInstanceUID": "2.25.2", "PatientID": "7", "Modality": "CT"}
    assert refusal_of(bare).reason == "missing_required_tag"
    described = headers.describe(bare, POLICY, site="n", issuer="n", key=KEY, given=given)
    whole = content(dataset(**gaps | {"SOPInstanceUID": "2.25.1", "StudyInstanceUID": "2.25.2", "PatientID": "7"}))
    expected = headers.describe(whole, POLICY, site="n", issuer="n", key=KEY)
    assert described.rows == expected.rows
    assert described.rows[0]["modality"] == "dx"
    # what is not in the file is not counted among its elements
    assert sum(described.treatments.values()) == sum(expected.treatments.values()) - 2
    completed, whole_one = (
        modality_image(*headers.read_header(*a), 0) for a in ((bare, POLICY, given), (whole, POLICY))
    )
    np.testing.assert_array_equal(completed.values, whole_one.values)
