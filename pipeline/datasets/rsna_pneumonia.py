"""RSNA Pneumonia Detection Challenge (2018), stage 2: DICOM files and a CSV with a row a box.

Layout: ``root`` is the folder stage_2_train_images (``<patientId>.dcm``); ``labels.file`` is
stage_2_train_labels.csv (patientId, x, y, width, height, Target) or stage_2_detailed_class_info.csv (patientId, class).
The test images of the challenge have no labels.

Labels: by radiologists, an image; Target 1 is "evidence of pneumonia", an opacity with a box, and the same as class
Lung Opacity. Each image has one of three classes. Both files have a row a box, so equal rows are one.

Patients: patientId (in the header PatientID) stands for one image. The images are ChestX-ray14's, where patients have
several: only the mapping file of the RSNA tells them apart, so a patient may stand on two sides of a split of this set.
It is never an external site to ChestX-ray14 (one origin), nor to SIIM-ACR Pneumothorax.

Headers: all are secondary captures without a word on burnt-in text (``ingest: {secondary_capture: keep}`` lets them
pass), StudyDate is 1901-01-01 for everybody, and PatientAge has no unit, hence no age.

Licence: the RSNA's terms of use: any purpose, with attribution to the RSNA and the NIH.
Citation: Shih G, Wu CC, Halabi SS, et al. Augmenting the National Institutes of Health Chest Radiograph Dataset with
Expert Annotations of Possible Pneumonia. Radiology: Artificial Intelligence 2019;1(1):e180041.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from pipeline.datasets.common import Given, LabelRow, SiteParams, Source, Terms, read_csv_rows, walk_files
from pipeline.datasets.common import label_target as label_target
from pipeline.datasets.image_files import describe_dicom, read_dicom
from pipeline.params import Name, StrictParams

TERMS = Terms(
    origin="chestxray14",
    licence="RSNA terms of use: any purpose, with attribution to the RSNA and the NIH Clinical Center",
    redistribution=True,
    citation="Shih et al., Radiology: Artificial Intelligence 2019;1(1):e180041; Wang et al., ChestX-ray8, CVPR 2017",
)
TARGET = "Target"
CLASSES = ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")
# What a cell means to a finding, by what the finding is: the target, or one of the classes.
_MEANINGS: Mapping[str, Mapping[str, Given | None]] = {
    TARGET: {"1": "present", "0": "absent", "": None},
    **{name: {**dict.fromkeys(CLASSES, "absent"), name: "present", "": None} for name in CLASSES},
}
_LABEL_FILE = "stage_2_train_labels.csv"

describe, read_images = describe_dicom, read_dicom


class Labels(StrictParams):
    """The label file; ``columns`` maps finding to "Target", or each to a class of the class file."""

    file: str
    columns: dict[Name, Literal["Target", "Lung Opacity", "No Lung Opacity / Not Normal", "Normal"]]

    @model_validator(mode="after")
    def _of_one_file(self) -> "Labels":
        if TARGET in self.columns.values() and len(set(self.columns.values())) > 1:
            raise ValueError(
                "Target and the classes stand in two files; an image is of class Lung Opacity where its Target is 1: "
                "name stage_2_detailed_class_info.csv and classes alone"
            )
        return self


class Params(SiteParams):
    """A site's entry under ``sites`` for this adapter; ``root`` is the folder of the DICOM files."""

    adapter: Literal["rsna_pneumonia"]
    labels: Labels


def list_sources(site: Params, base: Path) -> Iterator[Source]:
    """Every file below the root, in a fixed order."""
    yield from walk_files(base / site.root)


def read_labels(site: Params, base: Path) -> Iterator[LabelRow]:
    """A row an image; several only where its boxes' rows contradict each other."""
    labels = site.labels
    column = TARGET if TARGET in labels.columns.values() else "class"
    stated: dict[str, dict[str, None]] = {}
    for row in read_csv_rows(base / labels.file, ("patientId", column)):
        stated.setdefault(row["patientId"], {})[row[column]] = None
    for image, cells in stated.items():
        for cell in cells:
            values = {f: _MEANINGS[name][cell] for f, name in labels.columns.items() if cell in _MEANINGS[name]}
            yield LabelRow(f"{image}.dcm", "file", values, () if values else ("unknown_value",))


def terms(site: Params) -> Terms:
    """The collection's, whatever part of it the site is."""
    del site
    return TERMS


def recognise(folder: Path) -> dict[str, Any] | None:
    """The label file beside the folder of images."""
    if not (folder / _LABEL_FILE).is_file() or not (folder / "stage_2_train_images").is_dir():
        return None
    labels = {"file": _LABEL_FILE, "columns": {"pneumonia": TARGET}}
    return {"adapter": "rsna_pneumonia", "root": "stage_2_train_images", "labels": labels}
