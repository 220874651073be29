"""CheXpert 1.0 (Stanford Hospital), full size or small: JPEG files and train.csv or valid.csv.

Layout: ``root`` is the folder CheXpert-v1.0 or CheXpert-v1.0-small; ``labels.file`` its train.csv or valid.csv (Path,
Sex, Age, Frontal/Lateral, AP/PA, 14 findings), where Path begins with that folder's name:
``CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg``.

Labels: 1.0 present, 0.0 absent, -1.0 uncertain, blank not mentioned (section ``labels`` of params.yaml says what
becomes of the last two). train.csv was mined from reports, valid.csv is the majority of three radiologists. A study's
labels stand with each of its images.

Patients and studies: from the path. ``view`` makes a site of one view: frontal, lateral, or of the frontal AP or PA.

Images: quantised to 8 bits and equalised by the authors, so 0 to 255 is the whole range.

Licence: Stanford University Dataset Research Use Agreement: personal, non-commercial research; no redistribution.
Citation: Irvin J, Rajpurkar P, Ko M, et al. CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and
Expert Comparison. AAAI 2019;33:590-597.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline.datasets.common import LabelColumns, LabelRow, SiteParams, Source, Terms, label_row, read_rows
from pipeline.datasets.common import label_target as label_target
from pipeline.datasets.image_files import describe_raster, read_raster
from pipeline.dicom import deidentify, headers

TERMS = Terms(
    origin="chexpert",
    licence="Stanford University Dataset Research Use Agreement",
    redistribution=False,
    citation="Irvin et al., AAAI 2019;33:590-597",
)
FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
_FRONTAL, _DIRECTION = "Frontal/Lateral", "AP/PA"
_COLUMNS = ("Path", "Sex", "Age", _FRONTAL, _DIRECTION)
_PLACE = re.compile(r"(?:train|valid)/(patient\d+)/(study\d+)/view\d+_(?:frontal|lateral)\.jpg")
_SEX = {"Male": "M", "Female": "F"}

read_images = read_raster


class Params(SiteParams):
    """A site's entry under ``sites`` for this adapter; ``labels.columns`` maps our findings to the file's."""

    adapter: Literal["chexpert"]
    view: Literal["frontal", "lateral", "AP", "PA"] | None = None
    labels: LabelColumns


def list_sources(site: Params, base: Path) -> Iterator[Source]:
    """The files that the table lists for this view, whether they are there or not."""
    for path, row in sorted(_rows(site, base), key=lambda pair: pair[0]):
        yield Source(path, base / site.root / path, {name: row[name] for name in _COLUMNS[1:]})


def describe(
    source: Source, content: bytes, *, site: str, issuer: str, key: bytes, policy: headers.IngestParams
) -> headers.Description:
    """The facts of an image, from its path, its row in the table and its own header; raises ``Refusal``."""
    place = _PLACE.fullmatch(source.relative)
    patient, study = place.groups() if place else ("", "")
    visit = (issuer, patient, study)
    view = source.facts[_DIRECTION] or ("lateral" if source.facts[_FRONTAL] == "Lateral" else "")
    facts = {
        "view_position": deidentify.in_vocabulary(view, deidentify.VIEW_POSITIONS),
        "body_part": "chest",
        "sex": _SEX.get(source.facts["Sex"]),
        "age_years": deidentify.age_years(f"{source.facts['Age'].removesuffix('.0')}Y"),
    }
    return describe_raster(source, content, policy, site=site, key=key, patient=(issuer, patient), study=visit, **facts)


def read_labels(site: Params, base: Path) -> Iterator[LabelRow]:
    """A row an image of this view."""
    for path, row in _rows(site, base):
        yield label_row(row, site.labels, path, "file")


def terms(site: Params) -> Terms:
    """The collection's, whatever part of it the site is."""
    del site
    return TERMS


def recognise(folder: Path) -> dict[str, Any] | None:
    """A folder train beside its table, whose header begins as this set's does."""
    table = folder / "train.csv"
    if not (folder / "train").is_dir() or not table.is_file():
        return None
    with table.open("rb") as file:
        if not file.read(200).startswith(",".join(_COLUMNS).encode()):
            return None
    columns = {name.lower().replace(" ", "_"): name for name in FINDINGS}
    return {"adapter": "chexpert", "root": ".", "labels": {"file": "train.csv", "columns": columns}}


def _rows(site: Params, base: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """This view's rows, with the path below the root."""
    for row in read_rows(site.labels, base, _COLUMNS):
        if site.view in (None, row[_FRONTAL].lower(), row[_DIRECTION]):
            yield row["Path"].partition("/")[2], row
