"""From a file's bytes to checked, de-identified facts about its images; or a refusal with a reason."""

import re
import struct
import warnings
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.encaps import parse_fragments
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from pipeline.dicom import deidentify
from pipeline.dicom.refusal import Refusal
from pipeline.params import StrictParams

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # PS3.5 9.1; leading zeros occur in the field and identify as well
_REQUIRED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "PatientID", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation",
)  # fmt: skip
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class IngestParams(StrictParams):
    """Section ``ingest``: what is policy rather than fact.

    ``max_pixels`` bounds rows x columns x frames of one file. Burnt-in annotation and localizers are left out
    unless a person decides otherwise.
    """

    burned_in_annotation: Literal["exclude", "keep"] = "exclude"
    localizer: Literal["exclude", "keep"] = "exclude"
    max_pixels: int = 2**28


def parse(content: bytes) -> Dataset:
    """A Part 10 file as a dataset.

    Raises:
        Refusal: empty_file, not_dicom, corrupt_structure, truncated.
    """
    if not content:
        raise Refusal("empty_file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values
            dataset = pydicom.dcmread(BytesIO(content))
            # Before the first touch of an element, which converts it and forgets its place in the file.
            if _is_cut(dataset, len(content)):
                raise EOFError
            for keyword in (*_REQUIRED, "NumberOfFrames"):
                dataset.get(keyword)
    except InvalidDicomError:
        raise Refusal("not_dicom", "no DICM prefix at byte 128") from None
    except (EOFError, struct.error):  # the second in the length of an element
        raise Refusal("truncated", "the file ends inside an element") from None
    except Exception as error:  # broken bytes surface as anything: zlib.error, LookupError, NotImplementedError ...
        raise Refusal("corrupt_structure", type(error).__name__) from None
    return dataset


def element_value(dataset: Dataset, keyword: str) -> Any:
    """An element's value; None where there is none, or where its bytes are not what its VR says.

    pydicom converts on first touch, and its warnings quote the value, which may be a patient's.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dataset.get(keyword)
    except Exception:  # as in ``parse``
        return None


def check_image(dataset: Dataset, params: IngestParams) -> None:
    """Everything that can be known without decoding a pixel.

    Raises:
        Refusal: with the first reason that applies, in an order from "no image at all" to policy.
    """
    present = [keyword for keyword in _PIXEL_KEYWORDS if keyword in dataset]
    if not present:
        if "Rows" in dataset or "BitsAllocated" in dataset:
            raise Refusal("no_pixel_data", "an image's header without pixel data")
        raise Refusal("non_image_object")
    # A patient number of blanks would make one patient of all who have it.
    values = {keyword: element_value(dataset, keyword) for keyword in _REQUIRED}
    missing = [keyword for keyword, value in values.items() if value is None or not str(value).strip("\0 ")]
    if missing:
        raise Refusal("missing_required_tag", " ".join(missing))
    for keyword in ("SOPInstanceUID", "StudyInstanceUID"):
        uid = str(element_value(dataset, keyword))
        if len(uid) > 64 or not _UID.fullmatch(uid):
            raise Refusal("unsafe_uid", keyword)
    if present != ["PixelData"]:
        raise Refusal("unsupported_pixel_layout", "float pixel data")
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2") or dataset.SamplesPerPixel != 1:
        raise Refusal("unsupported_photometric")
    _check_layout(dataset, params)
    _check_pixel_data(dataset)
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        _spacing(dataset, keyword)
    image_type = element_value(dataset, "ImageType") or []
    if params.localizer == "exclude" and "LOCALIZER" in image_type:
        raise Refusal("localizer")
    if params.burned_in_annotation == "exclude" and element_value(dataset, "BurnedInAnnotation") == "YES":
        raise Refusal("burned_in_annotation")


def instance_rows(dataset: Dataset, *, site: str, issuer: str, key: bytes) -> list[dict[str, Any]]:
    """The facts that go on, a row a frame; columns of ``tables.Instances`` but for the source's.

    Args:
        dataset: one that ``check_image`` passed.
        site: the site's name.
        issuer: who gave out the patient numbers; sites that share an issuer share patients.
        key: the study's.
    """

    def text(keyword: str) -> str:
        return str(element_value(dataset, keyword) or "")

    patient_id = deidentify.pseudonym(key, "patient", issuer, text("PatientID").strip())
    spacing = _spacing(dataset, "PixelSpacing") or _spacing(dataset, "ImagerPixelSpacing")
    row = {
        "patient_id": patient_id,
        "study_id": deidentify.pseudonym(key, "study", text("StudyInstanceUID")),
        "series_id": (
            deidentify.pseudonym(key, "series", text("SeriesInstanceUID")) if text("SeriesInstanceUID") else None
        ),
        "site": site,
        "modality": deidentify.in_vocabulary(text("Modality"), deidentify.MODALITIES),
        "manufacturer": deidentify.in_vocabulary(text("Manufacturer"), deidentify.MANUFACTURERS),
        "model": deidentify.in_vocabulary(text("ManufacturerModelName"), deidentify.MODELS),
        "view_position": deidentify.in_vocabulary(text("ViewPosition"), deidentify.VIEW_POSITIONS),
        "body_part": deidentify.in_vocabulary(text("BodyPartExamined"), deidentify.BODY_PARTS),
        "sex": deidentify.sex(text("PatientSex")),
        "age_years": deidentify.age_years(text("PatientAge"), text("PatientBirthDate"), text("StudyDate")),
        "kvp": _number(dataset, "KVP"),
        "rows": int(dataset.Rows),
        "columns": int(dataset.Columns),
        "bits_stored": int(dataset.BitsStored),
        "photometric_interpretation": str(dataset.PhotometricInterpretation),
        "transfer_syntax": str(dataset.file_meta.TransferSyntaxUID),
        "row_spacing_mm": spacing[0] if spacing else None,
        "column_spacing_mm": spacing[1] if spacing else None,
        "day": deidentify.shifted_day(key, patient_id, text("StudyDate")),
    }
    uid = text("SOPInstanceUID")
    return [
        {**row, "frame": frame, "image_id": deidentify.pseudonym(key, "image", uid, str(frame))}
        for frame in range(_frames(dataset))
    ]


def _check_layout(dataset: Dataset, params: IngestParams) -> None:
    allocated, stored, high = (_integer(dataset, k) for k in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or high != stored - 1:
        raise Refusal("unsupported_pixel_layout", f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}")
    if _integer(dataset, "PixelRepresentation") not in (0, 1):
        raise Refusal("unsupported_pixel_layout", "PixelRepresentation is neither 0 nor 1")
    rows, columns, frames = _integer(dataset, "Rows"), _integer(dataset, "Columns"), _frames(dataset)
    if rows < 1 or columns < 1 or frames < 1:
        raise Refusal("invalid_dimensions", f"{rows} rows, {columns} columns, {frames} frames")
    if rows * columns * frames > params.max_pixels:
        raise Refusal("decompression_bomb", f"{rows} x {columns} x {frames} pixels, allowed {params.max_pixels}")


def _check_pixel_data(dataset: Dataset) -> None:
    name = str(element_value(dataset.file_meta, "TransferSyntaxUID"))
    if not _UID.fullmatch(name):
        raise Refusal("unsupported_transfer_syntax")
    syntax = UID(name)
    try:
        supported = get_decoder(syntax).is_available if syntax.is_encapsulated else True
    except (NotImplementedError, ValueError):  # not a transfer syntax, or one without a decoder
        supported = False
    if not supported:
        raise Refusal("unsupported_transfer_syntax")
    if not isinstance(element_value(dataset, "PixelData"), bytes):
        raise Refusal("corrupt_structure", "PixelData holds no bytes")
    length = len(dataset.PixelData)
    if syntax.is_encapsulated:
        _check_fragments(dataset)
        return
    expected = int(dataset.Rows) * int(dataset.Columns) * _frames(dataset) * int(dataset.BitsAllocated) // 8
    if length < expected:
        raise Refusal("truncated", f"pixel data of {length} bytes, expected {expected}")
    if length > expected + expected % 2:
        raise Refusal("pixel_length_mismatch", f"pixel data of {length} bytes, expected {expected}")


def _check_fragments(dataset: Dataset) -> None:
    """Encapsulated pixel data (PS3.5 A.4): the items can be walked, and there is at least one a frame."""
    try:
        buffer = BytesIO(dataset.PixelData)
        items, _ = parse_fragments(buffer)
    except (ValueError, EOFError, OSError) as error:
        raise Refusal("truncated", f"encapsulated pixel data: {type(error).__name__}") from None
    if items - 1 < _frames(dataset):  # the first item is the offset table
        raise Refusal("truncated", f"{max(items - 1, 0)} fragments for {_frames(dataset)} frames")


def _is_cut(dataset: Dataset, size_bytes: int) -> bool:
    """Whether a file without pixel data ends elsewhere than its last element; those with are checked by length.

    Where the file ends in an element's header pydicom drops that element, in its value it shortens it, silently.
    """
    if any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
        return False
    if not len(dataset):
        return True
    last = dataset.get_item(max(dataset.keys()))
    if (
        not isinstance(last, RawDataElement)
        or last.length == 0xFFFFFFFF
        or element_value(dataset.file_meta, "TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    ):
        return False  # positions say nothing here
    return bool(last.value_tell + last.length != size_bytes)


def _frames(dataset: Dataset) -> int:
    return 1 if element_value(dataset, "NumberOfFrames") in (None, "") else _integer(dataset, "NumberOfFrames")


def _integer(dataset: Dataset, keyword: str) -> int:
    try:
        return int(element_value(dataset, keyword))
    except (TypeError, ValueError):
        raise Refusal("corrupt_structure", f"{keyword} is no whole number") from None


def _spacing(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    """(row, column) spacing in millimetres (PS3.3 10.7.1.3), None where the header has none."""
    if keyword not in dataset or dataset.get_item(keyword).value in (None, "", b""):
        return None
    try:
        row, column = (float(number) for number in element_value(dataset, keyword))
    except (TypeError, ValueError):
        raise Refusal("invalid_spacing", keyword) from None
    # From a nanometre to a kilometre: what is outside is no number of millimetres, and float32 would lose it.
    if not all(1e-6 <= spacing <= 1e6 for spacing in (row, column)):
        raise Refusal("invalid_spacing", keyword)
    return row, column


def _number(dataset: Dataset, keyword: str) -> float | None:
    try:
        number = float(element_value(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
