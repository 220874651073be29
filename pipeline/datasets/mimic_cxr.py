"""MIMIC-CXR 2.x (Beth Israel Deaconess Medical Center), DICOM files, with the tables of MIMIC-CXR-JPG 2.x.

Layout: ``root`` is the folder files of MIMIC-CXR (``p10/p10000032/s50414267/<dicom_id>.dcm``: the first two digits of
the subject, subject, study). ``metadata`` is mimic-cxr-2.0.0-metadata.csv.gz (dicom_id, subject_id, study_id,
ViewPosition, ...) and ``labels.file`` mimic-cxr-2.0.0-chexpert.csv.gz, or -negbio (subject_id, study_id, 14 findings),
both of MIMIC-CXR-JPG; gzipped or not. The official split is not used: splits are made by patient, over all sites.

Labels: mined from reports, a study: 1.0 present, 0.0 absent, -1.0 uncertain, blank not mentioned (section ``labels`` of
params.yaml says what becomes of the last two). A study is named by its number, which no UID of the header gives:
the metadata tells its files, and a row of the label file becomes a row a file.

Patients: PatientID is the subject_id. Dates were shifted by the owners, a patient as one. ``view_position`` makes a
site of one view.

Licence: PhysioNet Credentialed Health Data License 1.5.0: no sharing of the data, whole or in part.
Citation: Johnson AEW, Pollard TJ, Berkowitz SJ, et al. MIMIC-CXR, a de-identified publicly available database of chest
radiographs with free-text reports. Scientific Data 2019;6:317. Johnson AEW, Pollard TJ, Greenbaum NR, et al.
MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs. arXiv:1901.07042.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline.datasets.common import (
    LabelColumns,
    LabelRow,
    SiteParams,
    Source,
    Terms,
    label_row,
    read_csv_rows,
    read_rows,
)
from pipeline.datasets.common import label_target as label_target
from pipeline.datasets.image_files import describe_dicom, read_dicom

TERMS = Terms(
    origin="mimic_cxr",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    redistribution=False,
    citation="Johnson et al., Scientific Data 2019;6:317; Johnson et al., arXiv:1901.07042",
)
# CheXpert's fourteen (Irvin et al. 2019, table 1), which both labellers of this set use as well.
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
_METADATA = ("dicom_id", "subject_id", "study_id", "ViewPosition")

describe, read_images = describe_dicom, read_dicom


class Params(SiteParams):
    """A site's entry under ``sites`` for this adapter; ``labels.columns`` maps our findings to the file's."""

    adapter: Literal["mimic_cxr"]
    metadata: str
    view_position: Literal["AP", "PA", "LATERAL", "LL"] | None = None
    labels: LabelColumns


def list_sources(site: Params, base: Path) -> Iterator[Source]:
    """The files that the metadata lists for this view, whether they are there or not."""
    root = base / site.root
    for path in sorted(path for paths in _studies(site, base).values() for path in paths):
        yield Source(path, root / path)


def read_labels(site: Params, base: Path) -> Iterator[LabelRow]:
    """A row a file of this view for each row of a study; a study that the metadata lacks keeps its row."""
    studies = _studies(site, base)
    for row in read_rows(site.labels, base, ("subject_id", "study_id")):
        study = _folder(row)
        for target in studies.get(study, [study]):
            yield label_row(row, site.labels, target, "file")


def terms(site: Params) -> Terms:
    """The collection's, whatever part of it the site is."""
    del site
    return TERMS


def recognise(folder: Path) -> dict[str, Any] | None:
    """The folder of patients beside the tables."""
    tables = {
        kind: [path.name for path in sorted(folder.glob(f"mimic-cxr-2.0.0-{kind}.csv*"))]
        for kind in ("metadata", "chexpert", "negbio")
    }
    labels = [*tables["chexpert"], *tables["negbio"]]
    if not labels or not tables["metadata"] or not (folder / "files").is_dir():
        return None
    columns = {name.lower().replace(" ", "_"): name for name in FINDINGS}
    return {
        "adapter": "mimic_cxr",
        "root": "files",
        "metadata": tables["metadata"][0],
        "labels": {"file": labels[0], "columns": columns},
    }


def _studies(site: Params, base: Path) -> dict[str, list[str]]:
    """The files of this view by their study's folder, paths below the root; an empty list for other views alone."""
    studies: dict[str, list[str]] = {}
    for row in read_csv_rows(base / site.metadata, _METADATA):
        study = _folder(row)
        paths = studies.setdefault(study, [])
        if site.view_position in (None, row["ViewPosition"]):
            paths.append(f"{study}/{row['dicom_id']}.dcm")
    return studies


def _folder(row: dict[str, str]) -> str:
    subject = row["subject_id"]
    return f"p{subject[:2]}/p{subject}/s{row['study_id']}"
