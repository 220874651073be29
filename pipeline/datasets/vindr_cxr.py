"""VinDr-CXR 1.0.0 (Hospital 108 and Hanoi Medical University Hospital): DICOM files and a CSV with a row a reader.

Layout: ``root`` is the folder train or test (``<image_id>.dicom``); ``labels.file`` is
annotations/image_labels_train.csv (image_id, rad_id, 28 labels as 0 or 1, "No finding" among them), or
image_labels_test.csv (the same without rad_id; "Other diseases" is there "Other disease").

Labels: by radiologists, an image. In train three of seventeen read each image, each a row with the reader's rad_id:
what becomes of their disagreement is a policy (section ``labels`` of params.yaml). In test five agreed on one row.

Patients: the owners took PatientID and all UIDs out of the headers and say of no two images that they are of one
patient. So each image is taken for a patient and a study of its own; were there patients with several, they could stand
on two sides of a split, and intervals would be too narrow.

Headers: what is left is sex, age, pixels and how to show them; the SOP class stands in the file meta alone. All images
are PA, as the owners say.

Licence: PhysioNet Credentialed Health Data License 1.5.0: no sharing of the data, whole or in part.
Citation: Nguyen HQ, Lam K, Le LT, et al. VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations.
Scientific Data 2022;9:429.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pipeline.datasets.common import LabelColumns, LabelRow, SiteParams, Source, Terms, label_row, read_rows, walk_files
from pipeline.datasets.common import label_target as label_target
from pipeline.datasets.image_files import read_dicom
from pipeline.dicom import headers
from pipeline.dicom.attributes import MalformedError, text
from pipeline.dicom.refusal import Refusal
from pipeline.dicom.structure import parse_structure
from pipeline.imaging.intensity import ModalityImage

TERMS = Terms(
    origin="vindr_cxr",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    redistribution=False,
    citation="Nguyen et al., Scientific Data 2022;9:429",
)
FINDINGS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture",
    "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding",
)  # fmt: skip
_NAME = re.compile(r"([0-9a-f]{32})\.dicom")


class Params(SiteParams):
    """A site's entry under ``sites`` for this adapter; ``labels.columns`` maps our findings to the file's."""

    adapter: Literal["vindr_cxr"]
    labels: LabelColumns


def list_sources(site: Params, base: Path) -> Iterator[Source]:
    """Every file below the root, in a fixed order."""
    yield from walk_files(base / site.root)


def describe(
    source: Source, content: bytes, *, site: str, issuer: str, key: bytes, policy: headers.IngestParams
) -> headers.Description:
    """The facts of an image, from its name and what is left of its header; raises ``Refusal``."""
    name = _NAME.fullmatch(source.relative)
    if name is None:
        raise Refusal("missing_required_tag", "the file's name is no image_id with .dicom, and the header has no UID")
    given = _given(content, policy, name[1])
    described = headers.describe(content, policy, site=site, issuer=issuer, key=key, given=given)
    for row in described.rows:
        row.update(view_position="pa", body_part="chest")
    return described


def read_images(content: bytes, frames: Sequence[int], policy: headers.IngestParams) -> Iterator[ModalityImage]:
    """Some frames before display, the header read once; raises ``Refusal``."""
    # The name is not at hand here, and pixels hang on none.
    yield from read_dicom(content, frames, policy, _given(content, policy, "0"))


def read_labels(site: Params, base: Path) -> Iterator[LabelRow]:
    """A row a reader and image; a row an image where no reader is named."""
    for row in read_rows(site.labels, base, ("image_id",)):
        read = label_row(row, site.labels, f"{row['image_id']}.dicom", "file")
        yield replace(read, reader=row.get("rad_id") or None)


def terms(site: Params) -> Terms:
    """The collection's, whatever part of it the site is."""
    del site
    return TERMS


def recognise(folder: Path) -> dict[str, Any] | None:
    """The folder train beside the annotations."""
    file = "annotations/image_labels_train.csv"
    if not (folder / file).is_file() or not (folder / "train").is_dir():
        return None
    columns = {re.sub(r"[ /]", "_", name.lower()): name for name in FINDINGS}
    return {"adapter": "vindr_cxr", "root": "train", "labels": {"file": file, "columns": columns}}


def _given(content: bytes, policy: headers.IngestParams, image_id: str) -> Mapping[str, str]:
    """What the header lacks: UIDs made of the image's name (PS3.5 B.2), its patient, the class of the file meta."""
    try:
        sop_class = text(parse_structure(content, policy.max_bytes).meta, "MediaStorageSOPClassUID")
    except MalformedError:
        sop_class = ""
    uid = f"2.25.{int(image_id, 16)}"
    return {"SOPClassUID": sop_class, "SOPInstanceUID": uid, "StudyInstanceUID": uid, "PatientID": image_id}
