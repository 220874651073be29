"""A folder of DICOM with a CSV of labels: the usual export of a hospital, or of a challenge.

Layout: any tree of files below ``root``, with any names; the CSV has one column that names what a row is about
(``key_column``), as the file's path below ``labels.relative_to`` (or root), its SOP Instance UID, its Study
Instance UID, its PatientID or its AccessionNumber (``key``), and one column a finding.

Licence and data-use terms are those of the data; nothing here sends it anywhere.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pipeline.datasets.common import (
    LabelColumns,
    LabelRow,
    SiteParams,
    Source,
    read_cell,
    read_csv_rows,
    walk_files,
)
from pipeline.dicom import deidentify, headers, pixels
from pipeline.imaging.intensity import ModalityImage


class Labels(LabelColumns):
    """The label file; ``prefix`` is cut off the paths in it where they do not start at ``root``."""

    key: Literal["file", "sop_instance_uid", "study_instance_uid", "patient_id"]
    key_column: str
    prefix: str = ""


class Params(SiteParams):
    """A site's entry under ``sites`` for this adapter."""

    adapter: Literal["dicom_folder"]
    labels: Labels


def list_sources(site: Params, base: Path) -> Iterator[Source]:
    """Every file below the root, in a fixed order; ``base`` is the study's folder."""
    yield from walk_files(base / site.root)


def describe(
    source: Source, content: bytes, *, site: str, issuer: str, key: bytes, policy: headers.IngestParams
) -> headers.Description:
    """The facts of a file's images; raises ``Refusal`` where it is not taken."""
    del source
    return headers.describe(content, policy, site=site, issuer=issuer, key=key)


def read_images(content: bytes, frames: Sequence[int], policy: headers.IngestParams) -> Iterator[ModalityImage]:
    """Some frames before display, the header read once; raises ``Refusal``."""
    parsed, fmt = headers.read_header(content, policy)
    for frame in frames:
        yield pixels.modality_image(parsed, fmt, frame)


def read_labels(site: Params, base: Path) -> Iterator[LabelRow]:
    """The rows of the CSV."""
    labels = site.labels
    for row in read_csv_rows(base / labels.file, [labels.key_column, *labels.columns.values()]):
        cells = {finding: read_cell(row[column], labels) for finding, column in labels.columns.items()}
        yield LabelRow(
            row[labels.key_column].removeprefix(labels.prefix),
            {finding: label for finding, (label, _) in cells.items()},
            tuple(sorted({issue for _, issue in cells.values() if issue})),
        )


def label_target(site: Params, site_name: str, key: bytes, target: str) -> tuple[str, str]:
    """The column of ``Instances`` that a label row is about, and the pseudonym to look for there."""
    issuer = site.issuer or site_name
    match site.labels.key:
        case "file":
            return "source_id", deidentify.pseudonym(key, "source", site_name, target)
        case "sop_instance_uid":
            return "image_id", deidentify.pseudonym(key, "image", target, "0")
        case "study_instance_uid":
            return "study_id", deidentify.pseudonym(key, "study", target)
        case "patient_id":
            return "patient_id", deidentify.pseudonym(key, "patient", issuer, target)
