"""From a file's structure to checked, de-identified facts about its images; or a refusal with a reason."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from pydantic import Field
from pydicom.datadict import dictionary_VR

from pipeline.dicom import deidentify
from pipeline.dicom.attributes import (
    MalformedError,
    decoded_text,
    has,
    is_empty,
    items,
    number,
    numbers,
    tag_of,
    text,
    texts,
)
from pipeline.dicom.confidentiality import count_treatments
from pipeline.dicom.geometry import Plane, letters_of, patient_orientation, plane_of
from pipeline.dicom.layout import PixelFormat, read_layout
from pipeline.dicom.pixels import modality_transform
from pipeline.dicom.refusal import Quarantine, Refusal
from pipeline.dicom.structure import Element, Parsed, Part, parse_structure
from pipeline.params import StrictParams

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # PS3.5 9.1; leading zeros occur in the field and identify as well
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_ALWAYS_REQUIRED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Rows", "Columns", "BitsAllocated", "SamplesPerPixel",
    "PhotometricInterpretation",
)  # fmt: skip
_INTEGER_REQUIRED = ("BitsStored", "HighBit", "PixelRepresentation")

# PS3.4 B.5: pixels that are no picture of a patient but annotate or plan on others.
_SEGMENTATION, _RT_DOSE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.2"
_SECONDARY_CAPTURE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.7(\.[1-4])?")
# What de-identification tools and test suites write into Patient ID for everybody.
_PLACEHOLDERS = frozenset("anon anonymous anonymized anonymised unknown none null n/a na test patient".split())
_HEAD = frozenset({"head", "brain", "skull", "face", "orbit", "sinus", "headneck", "maxilla", "jaw"})

T = TypeVar("T")
Policy = Literal["quarantine", "keep"]


class IngestParams(StrictParams):
    """Section ``ingest``: what is policy rather than fact. ``quarantine`` leaves out until a person decides.

    Attributes:
        burned_in_annotation: images that say that text is burnt into their pixels.
        secondary_capture: screen and film captures that do not say that they are free of burnt-in text.
        localizer: scouts and topograms (Image Type LOCALIZER).
        recognizable_face: CT and MR of the head, and whatever says that a face can be recognised in it.
        missing_patient_id: files without a patient number (the standard allows an empty one). "study" takes every
            study for a patient of its own: a patient with two studies may then stand on two sides of a split.
        placeholder_patient_id: one number for everybody would make one patient of all, and no split by patient.
        conflicting_duplicates: files with one SOP Instance UID and different content. "first" keeps one, the first by
            pseudonym, which is as good as any: look at them first.
        inconsistent_geometry: series with gaps, tilt, mixed shapes or two slices in one place.
        repaired: files that were read although something was missing or odd, without guessing.
        max_pixels: rows x columns x frames x samples of one file.
        max_frames: of one file; each is a row of the tables.
        max_bytes: size of one file, as it is and inflated.
    """

    burned_in_annotation: Policy = "quarantine"
    secondary_capture: Policy = "quarantine"
    localizer: Policy = "quarantine"
    recognizable_face: Policy = "quarantine"
    missing_patient_id: Literal["quarantine", "study"] = "quarantine"
    placeholder_patient_id: Policy = "quarantine"
    conflicting_duplicates: Literal["quarantine", "first"] = "quarantine"
    inconsistent_geometry: Policy = "quarantine"
    repaired: Literal["accept", "quarantine"] = "accept"
    max_pixels: int = Field(default=2**28, ge=1)
    max_frames: int = Field(default=100_000, ge=1)
    max_bytes: int = Field(default=2**30, ge=1)


@dataclass(frozen=True)
class Description:
    """What one accepted file contributes.

    Attributes:
        rows: a row a frame, see ``instance_rows``.
        planes: where each frame lies in the patient; None where the file does not say.
        notes: what was repaired.
        treatments: (action of PS3.15 Table E.1-1, treatment) to how many elements.
    """

    rows: list[dict[str, Any]]
    planes: list[Plane | None]
    notes: frozenset[str] = frozenset()
    treatments: Mapping[tuple[str, str], int] = field(default_factory=dict)


def read_header(
    content: bytes, params: IngestParams, given: Mapping[str, str] | None = None
) -> tuple[Parsed, PixelFormat]:
    """A file's structure and what it says of its pixels; policy is not asked.

    Args:
        content: the file.
        params: of it the limits.
        given: see ``describe``.

    Raises:
        Refusal: the file cannot be read.
    """
    parsed = _completed(parse_structure(content, params.max_bytes), given or {})
    return parsed, pixel_format(parsed, params)


def describe(
    content: bytes, params: IngestParams, *, site: str, issuer: str, key: bytes, given: Mapping[str, str] | None = None
) -> Description:
    """Everything that goes on from a file.

    Args:
        content: the file.
        params: what is policy.
        site: the site's name.
        issuer: who gave out the patient numbers; sites that share an issuer share patients.
        key: the study's.
        given: keyword to value, of text attributes that a data set states elsewhere than in its headers; used
            where the header has none.

    Raises:
        Refusal: the file is not taken; a ``Quarantine`` where only a policy keeps it out.
    """
    stated = parse_structure(content, params.max_bytes)
    parsed = _completed(stated, given or {})
    fmt = pixel_format(parsed, params)
    check_policy(parsed, fmt, params)
    rows = instance_rows(parsed, fmt, site=site, issuer=issuer, key=key)
    planes = [_plane(parsed.main, frame, params, key) for frame in range(fmt.frames)]
    patient = patient_orientation(parsed.main)
    for row, plane in zip(rows, planes, strict=True):
        row["orientation"] = patient if plane is None else letters_of(plane.orientation)
    return Description(
        rows,
        planes,
        file_notes(parsed, fmt),
        count_treatments(stated.tags, [*stated.meta.elements, *stated.main.elements]),
    )


def _completed(parsed: Parsed, given: Mapping[str, str]) -> Parsed:
    """The same with values where the data set has none: they are written behind its bytes."""
    part = parsed.main
    wanted = {keyword: value.encode() for keyword, value in given.items() if is_empty(part, keyword)}
    if not wanted:
        return parsed
    elements, end = dict(part.elements), len(part.data)
    for keyword, value in wanted.items():
        elements[tag_of(keyword)] = Element(dictionary_VR(keyword), end, len(value))
        end += len(value)
    return replace(parsed, main=replace(part, data=b"".join([part.data, *wanted.values()]), elements=elements))


def _plane(part: Part, frame: int, params: IngestParams, key: bytes) -> Plane | None:
    """Where a frame lies; a malformed place counts as none where geometry is not to keep a file out."""
    try:
        plane = plane_of(part, frame)
    except Quarantine:
        if params.inconsistent_geometry == "quarantine":
            raise
        return None
    if plane is None or not plane.stack:
        return plane
    # A stack is only ever compared: a number of a header that is used for something else goes no further.
    return plane._replace(stack=deidentify.pseudonym(key, "stack", plane.stack))


def file_notes(parsed: Parsed, fmt: PixelFormat) -> frozenset[str]:
    """What was repaired in a file that can be read."""
    passed_over = {"bad_character_set"} if patient_number(parsed.main)[1] else set()
    return parsed.notes | fmt.notes | passed_over


def pixel_format(parsed: Parsed, params: IngestParams) -> PixelFormat:
    """What the header says of the pixels, checked as far as it can be without decoding one.

    Raises:
        Refusal: with the first reason that applies.
    """
    part = parsed.main
    present = [keyword for keyword in _PIXEL_KEYWORDS if has(part, keyword)]
    if not present:
        if has(part, "Rows") or has(part, "BitsAllocated"):
            raise Refusal("no_pixel_data", "an image's header without pixel data")
        raise Refusal("non_image_object", "no pixels, and no header of an image")
    if _lenient(text, part, "SOPClassUID", "") in (_SEGMENTATION, _RT_DOSE):
        raise Refusal("non_image_object", "a segmentation or a dose: it annotates other images")
    required = [*_ALWAYS_REQUIRED, *(_INTEGER_REQUIRED if present == ["PixelData"] else ())]
    missing = [keyword for keyword in required if is_empty(part, keyword)]
    if missing:
        raise Refusal("missing_required_tag", " ".join(missing))
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        try:
            uid = text(part, keyword)
        except MalformedError:
            raise Refusal("corrupt_structure", f"{keyword} is no text") from None
        if (uid or keyword != "SeriesInstanceUID") and (len(uid) > 64 or not _UID.fullmatch(uid)):
            raise Refusal("unsafe_uid", keyword)
    if len(present) > 1:
        raise Refusal("unsupported_pixel_layout", "pixel data of two kinds")
    fmt = read_layout(parsed, present[0], max_pixels=params.max_pixels)
    if fmt.frames > params.max_frames:
        raise Refusal("decompression_bomb", f"{fmt.frames} frames, allowed {params.max_frames}")
    return fmt


def check_policy(parsed: Parsed, fmt: PixelFormat, params: IngestParams) -> None:
    """What a policy keeps out although it can be read.

    Raises:
        Refusal: bad_character_set or invalid_spacing or invalid_rescale.
        Quarantine: burned_in_annotation, localizer, unsafe_identifier, missing_preamble, missing_file_meta,
            bad_character_set.
    """
    part = parsed.main
    patient, _ = patient_number(part)
    for frame in {0, fmt.frames - 1}:
        modality_transform(parsed, fmt, frame)
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing(part, keyword)
    if params.repaired == "quarantine":
        for reason in ("missing_preamble", "missing_file_meta"):
            if reason in parsed.notes:
                raise Quarantine(reason, "repaired, and ingest.repaired asks for a person's decision")
        if parsed.notes:
            raise Quarantine("corrupt_structure", "repaired: " + " ".join(sorted(parsed.notes)))
    if not patient and params.missing_patient_id == "quarantine":
        raise Quarantine("missing_required_tag", "PatientID")
    if not patient.isprintable() or len(patient) > 64:
        raise Quarantine("unsafe_identifier", "PatientID has control characters or is longer than PS3.5 allows")
    if patient and params.placeholder_patient_id == "quarantine" and _is_placeholder(patient):
        raise Quarantine("unsafe_identifier", "PatientID is a placeholder, which would make one patient of all")
    if params.localizer == "quarantine" and "LOCALIZER" in _lenient(texts, part, "ImageType", list[str]()):
        raise Quarantine("localizer")
    burned_in = _lenient(text, part, "BurnedInAnnotation", "")
    if params.burned_in_annotation == "quarantine" and burned_in == "YES":
        raise Quarantine("burned_in_annotation", "BurnedInAnnotation is YES")
    capture = _SECONDARY_CAPTURE.fullmatch(_lenient(text, part, "SOPClassUID", ""))
    if params.secondary_capture == "quarantine" and capture and burned_in != "NO":
        raise Quarantine("burned_in_annotation", "a secondary capture that does not deny burnt-in text")
    if params.recognizable_face == "quarantine" and _shows_face(part):
        raise Quarantine("unsafe_identifier", "a face may be recognised: CT or MR of the head, or stated so")


def patient_number(part: Part) -> tuple[str, bool]:
    """PatientID in its character set, and whether that set had to be passed over.

    Raises:
        Quarantine: bad_character_set: it is not ASCII and its character set does not decode it.
    """
    try:
        return decoded_text(part, "PatientID")
    except MalformedError:
        raise Quarantine("bad_character_set", "PatientID cannot be decoded by the stated character set") from None


def spacing(part: Part, keyword: str) -> tuple[float, float] | None:
    """(row, column) spacing in millimetres (PS3.3 10.7.1.3), None where the header has none.

    Raises:
        Refusal: invalid_spacing.
    """
    try:
        values = numbers(part, keyword)
    except MalformedError:
        raise Refusal("invalid_spacing", keyword) from None
    if not values:
        return None
    # From a nanometre to a kilometre: what is outside is no number of millimetres, and float32 would lose it.
    if len(values) != 2 or not all(1e-6 <= value <= 1e6 for value in values):
        raise Refusal("invalid_spacing", keyword)
    return values[0], values[1]


def instance_rows(parsed: Parsed, fmt: PixelFormat, *, site: str, issuer: str, key: bytes) -> list[dict[str, Any]]:
    """The facts that go on, a row a frame; columns of ``tables.files.Instances`` but for the source's and the series'.

    Args:
        parsed: a file that ``pixel_format`` and ``check_policy`` passed.
        fmt: its pixels.
        site: the site's name.
        issuer: who gave out the patient numbers; sites that share an issuer share patients.
        key: the study's.
    """
    part = parsed.main
    study, patient = text(part, "StudyInstanceUID"), patient_number(part)[0]
    whose = ("patient", issuer, patient) if patient else ("patient of a study", study)
    patient_id = deidentify.pseudonym(key, *whose)
    series = _lenient(text, part, "SeriesInstanceUID", "")
    imager = spacing(part, "ImagerPixelSpacing")
    row = {
        "patient_id": patient_id,
        "study_id": deidentify.pseudonym(key, "study", study),
        "series_id": deidentify.pseudonym(key, "series", series) if series else None,
        "site": site,
        "kvp": _kilovolts(part),
        "imager_row_spacing_mm": imager[0] if imager else None,
        "imager_column_spacing_mm": imager[1] if imager else None,
        "day": deidentify.shifted_day(key, patient_id, _lenient(text, part, "StudyDate", "")),
        **public_facts(parsed, fmt),
    }
    uid = text(part, "SOPInstanceUID")
    rows = []
    for frame in range(fmt.frames):
        measures = _pixel_measures(part, frame)
        pixel_spacing = spacing(measures, "PixelSpacing")
        rows.append(
            {
                **row,
                "frame": frame,
                "image_id": deidentify.pseudonym(key, "image", uid, str(frame)),
                "row_spacing_mm": pixel_spacing[0] if pixel_spacing else None,
                "column_spacing_mm": pixel_spacing[1] if pixel_spacing else None,
                "slice_thickness_mm": _length_mm(measures, "SliceThickness"),
            }
        )
    return rows


def public_facts(parsed: Parsed, fmt: PixelFormat) -> dict[str, Any]:
    """Facts of a file that name nobody: terms of closed vocabularies, and what its pixels are like."""
    part = parsed.main

    def term(keyword: str, vocabulary: frozenset[str]) -> str | None:
        return deidentify.in_vocabulary(_lenient(text, part, keyword, ""), vocabulary)

    return {
        "modality": term("Modality", deidentify.MODALITIES),
        "manufacturer": term("Manufacturer", deidentify.MANUFACTURERS),
        "model": term("ManufacturerModelName", deidentify.MODELS),
        "view_position": term("ViewPosition", deidentify.VIEW_POSITIONS),
        "body_part": term("BodyPartExamined", deidentify.BODY_PARTS),
        "sex": deidentify.sex(_lenient(text, part, "PatientSex", "")),
        "age_years": deidentify.age_years(
            _lenient(text, part, "PatientAge", ""),
            _lenient(text, part, "PatientBirthDate", ""),
            _lenient(text, part, "StudyDate", ""),
        ),
        "laterality": deidentify.laterality(
            _lenient(text, part, "ImageLaterality", "") or _lenient(text, part, "Laterality", "")
        ),
        "rows": fmt.rows,
        "columns": fmt.columns,
        "bits_stored": fmt.bits_stored,
        "samples_per_pixel": fmt.samples,
        "photometric_interpretation": fmt.photometric,
        "transfer_syntax": str(fmt.transfer_syntax),
        "sop_class_uid": deidentify.registered_uid(text(part, "SOPClassUID")),
        "lossy": {"01": True, "00": False}.get(_lenient(text, part, "LossyImageCompression", "")),
    }


def _pixel_measures(part: Part, frame: int) -> Part:
    """Where Pixel Spacing and Slice Thickness stand: in the frame's functional groups (PS3.3 C.7.6.16), or on top."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        found = items(part, groups)
        if index < len(found):
            measures = items(found[index], "PixelMeasuresSequence")
            if measures:
                return measures[0]
    return part


def _kilovolts(part: Part) -> float | None:
    """KVP where it can be one: X-ray tubes have up to some hundred; a number of somebody stands in any field."""
    value = _lenient(number, part, "KVP", None)
    return value if value is not None and 0 < value <= 1000 else None


def _length_mm(part: Part, keyword: str) -> float | None:
    value = _lenient(number, part, keyword, None)
    return value if value is not None and 1e-6 <= value <= 1e6 else None


def _is_placeholder(patient: str) -> bool:
    """A word that stands for nobody, or one repeated digit."""
    cleaned = re.sub(r"[^a-z0-9/]", "", patient.lower())
    return cleaned in _PLACEHOLDERS or (len(set(cleaned)) <= 1 and set(cleaned) <= set("0x"))


def _shows_face(part: Part) -> bool:
    if _lenient(text, part, "RecognizableVisualFeatures", "") == "YES":
        return True
    body_part = re.sub(r"[^a-z]", "", _lenient(text, part, "BodyPartExamined", "").lower())
    return _lenient(text, part, "Modality", "") in ("CT", "MR") and body_part in _HEAD


def _lenient(read: Callable[[Part, str], T], part: Part, keyword: str, default: T) -> T:
    """What nothing hangs on: a malformed value counts as none."""
    try:
        return read(part, keyword)
    except MalformedError:
        return default
