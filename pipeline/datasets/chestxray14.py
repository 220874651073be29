"""ChestX-ray14 (NIH Clinical Center): PNG files and a table.

Layout: ``root`` is the one folder of the PNG files; ``labels.file`` is Data_Entry_2017.csv or Data_Entry_2017_v2020.csv
(Image Index, Finding Labels, Follow-up #, Patient ID, Patient Age, Patient Gender, View Position, ...).

Labels: mined from reports, an image; "No Finding" and every finding that is not listed count as absent, as the authors
do. ``view_position`` makes a site of one view: AP (mostly bedside) and PA differ as two hospitals would.

Patients: the table's. RSNA Pneumonia and SIIM-ACR re-annotate images of this set and are never an external site to it.

Licence: no restriction on use; the NIH asks for attribution.
Citation: Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: Hospital-scale Chest X-ray Database and
Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases. CVPR 2017.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline.datasets.common import Given, LabelRow, SiteParams, Source, Terms, read_csv_rows
from pipeline.datasets.common import label_target as label_target
from pipeline.datasets.image_files import describe_raster, read_raster
from pipeline.dicom import deidentify, headers
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

read_images = read_raster


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
    stated = source.facts
    patient = stated["Patient ID"]
    # "58" in the 2020 table; "058Y" in the first.
    age = re.fullmatch(r"(\d{1,3})([YMD]?)", stated["Patient Age"])
    # The table's spacing is the original's, which these resampled files no longer have.
    facts = {
        "view_position": deidentify.in_vocabulary(stated["View Position"], deidentify.VIEW_POSITIONS),
        "body_part": "chest",
        "sex": deidentify.sex(stated["Patient Gender"]),
        "age_years": deidentify.age_years(f"{age[1].zfill(3)}{age[2] or 'Y'}") if age else None,
    }
    # The set names no studies; a follow-up number within a patient is one visit.
    visit = (issuer, patient, stated.get("Follow-up #", ""))
    return describe_raster(source, content, policy, site=site, key=key, patient=(issuer, patient), study=visit, **facts)


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
