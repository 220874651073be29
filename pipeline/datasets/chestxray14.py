"""ChestX-ray14 (NIH Clinical Center), in its own layout: Data_Entry_2017*.csv and PNG files.

Labels were mined from reports; "No Finding" and every finding that is not listed count as absent, as the authors
do. ``view_position`` makes a site of one view: AP (mostly bedside) and PA differ as two hospitals would. RSNA
Pneumonia and SIIM-ACR re-annotate images of this set and are never an external site to it.

Licence: no restriction on use; the NIH asks for attribution.
Citation: Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: Hospital-scale Chest X-ray Database and
Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases. CVPR 2017.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from pipeline.datasets.common import Given, LabelRow, SiteParams, Source, Terms, read_csv_rows
from pipeline.datasets.common import label_target as label_target
from pipeline.dicom import deidentify, headers
from pipeline.dicom.refusal import Refusal
from pipeline.imaging.intensity import ModalityImage, Range
from pipeline.params import Name, StrictParams

TERMS = Terms(
    origin="chestxray14",
    licence="no restriction on use; attribution to the NIH Clinical Center",
    redistribution=True,
    citation="Wang et al., ChestX-ray8, CVPR 2017",
)
FINDINGS = tuple(
    """
    Atelectasis Cardiomegaly Consolidation Edema Effusion Emphysema Fibrosis Hernia Infiltration Mass Nodule
    Pleural_Thickening Pneumonia Pneumothorax
    """.split()
)
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Labels(StrictParams):
    """The entry table; ``columns`` maps our findings to its labels (``pneumonia: Pneumonia``)."""

    file: str
    columns: dict[Name, str]


class Params(SiteParams):
    """A site's entry under ``sites`` for this adapter; ``root`` is the folder of the PNG files."""

    adapter: Literal["chestxray14"]
    view_position: Literal["AP", "PA"] | None = None
    labels: Labels


def list_sources(site: Params, base: Path) -> Iterator[Source]:
    """The files that the entry table lists for this view, whether they are there or not."""
    for row in _rows(site, base):
        yield Source(row["Image Index"], base / site.root / row["Image Index"], row)


def describe(
    source: Source, content: bytes, *, site: str, issuer: str, key: bytes, policy: headers.IngestParams
) -> headers.Description:
    """The facts of an image, from its row in the table and its own header; raises ``Refusal``."""
    rows, columns = _size(content, policy.max_pixels)
    facts = source.facts
    patient = facts["Patient ID"]
    if not patient:
        raise Refusal("missing_required_tag", "Patient ID")
    # "58" in the 2020 table; "058Y" in the first.
    age = re.fullmatch(r"(\d{1,3})([YMD]?)", facts["Patient Age"])
    row = {
        "image_id": deidentify.pseudonym(key, "image", site, source.relative, "0"),
        "frame": 0,
        "patient_id": deidentify.pseudonym(key, "patient", issuer, patient),
        # The set names no studies; a follow-up number within a patient is one visit.
        "study_id": deidentify.pseudonym(key, "study", issuer, patient, facts.get("Follow-up #", "")),
        "series_id": None,
        "site": site,
        "modality": None,
        "manufacturer": None,
        "model": None,
        "view_position": deidentify.in_vocabulary(facts["View Position"], deidentify.VIEW_POSITIONS),
        "body_part": "chest",
        "sex": deidentify.sex(facts["Patient Gender"]),
        "age_years": deidentify.age_years(f"{age[1].zfill(3)}{age[2] or 'Y'}") if age else None,
        "kvp": None,
        "rows": rows,
        "columns": columns,
        "bits_stored": 8,
        "photometric_interpretation": "MONOCHROME2",
        "samples_per_pixel": 1,
        "transfer_syntax": "png",
        # The table's spacing is the original's, which these resampled files no longer have.
        "row_spacing_mm": None,
        "column_spacing_mm": None,
        "day": None,
    }
    return headers.Description([row], [None])


def read_images(content: bytes, frames: Sequence[int], policy: headers.IngestParams) -> Iterator[ModalityImage]:
    """The grey values as they stand: windowed and inverted by the authors, so 0 to 255 is the whole range."""
    if list(frames) != [0]:
        raise Refusal("pixel_length_mismatch", "a PNG has one frame")
    yield ModalityImage(_decode(content, policy.max_pixels).astype(np.float32), Range(0.0, 255.0), inverted=False)


def read_labels(site: Params, base: Path) -> Iterator[LabelRow]:
    """A row an image of this view: present where its list names the finding, else absent."""
    for row in _rows(site, base):
        named = {name.strip() for name in row["Finding Labels"].split("|")}
        labels: dict[str, Given | None] = {
            finding: None if named == {""} else "present" if name in named else "absent"
            for finding, name in site.labels.columns.items()
        }
        yield LabelRow(row["Image Index"], "file", labels)


def terms(site: Params) -> Terms:
    """The collection's, whatever part of it the site is."""
    del site
    return TERMS


def recognise(folder: Path) -> dict[str, Any] | None:
    """The entry table beside the folder of images."""
    tables = sorted(folder.glob("Data_Entry_2017*.csv"))
    if len(tables) != 1 or not (folder / "images").is_dir():
        return None
    columns = {name.lower(): name for name in FINDINGS}
    return {"adapter": "chestxray14", "root": "images", "labels": {"file": tables[0].name, "columns": columns}}


def _rows(site: Params, base: Path) -> list[dict[str, str]]:
    rows = read_csv_rows(base / site.labels.file, _COLUMNS)
    return sorted(
        (row for row in rows if site.view_position in (None, row["View Position"])),
        key=lambda row: row["Image Index"],
    )


def _size(content: bytes, max_pixels: int) -> tuple[int, int]:
    """Rows and columns from IHDR, which comes first and starts with them; nothing is decoded or allocated."""
    if not content:
        raise Refusal("empty_file")
    if not content.startswith(_PNG_SIGNATURE):
        raise Refusal("non_image_object", "no PNG signature")
    if len(content) < 24:
        raise Refusal("truncated", "the file ends inside the PNG header")
    columns, rows = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if rows < 1 or columns < 1:
        raise Refusal("invalid_dimensions", f"{rows} rows, {columns} columns")
    if rows * columns > max_pixels:
        raise Refusal("decompression_bomb", f"{rows * columns} pixels, allowed {max_pixels}")
    return rows, columns


def _decode(content: bytes, max_pixels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The grey values, (rows, columns) uint8, of a file whose header is sound."""
    size = _size(content, max_pixels)
    try:
        # Some of the set's files have four channels of equal grey.
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        image = None
    if image is None:
        raise Refusal("decode_error", "not a readable PNG")
    if image.shape != size:
        raise Refusal("pixel_header_mismatch", "the decoded shape is not the header's")
    return np.asarray(image, dtype=np.uint8)
