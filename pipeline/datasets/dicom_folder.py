"""A folder of DICOM with a CSV of labels: the usual export of a hospital, or of a challenge.

Layout: any tree of files below ``root``, with any names; the CSV has one column that names what a row is about
(``key_column``), as the file's path below root (``prefix`` is cut off), its SOP, Series or Study Instance UID or its
PatientID (``key``), and one column a finding.

Licence and data-use terms are those of the data, and stand in the site's entry (``common.FolderParams``).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pipeline.datasets.common import (
    FolderParams,
    LabelColumns,
    LabelRow,
    Level,
    Source,
    read_cell,
    read_csv_rows,
    walk_files,
)
from pipeline.datasets.common import label_target as label_target
from pipeline.datasets.common import terms as terms
from pipeline.dicom import headers, pixels
from pipeline.imaging.intensity import ModalityImage

LEVELS: Mapping[str, Level] = {
    "file": "file",
    "sop_instance_uid": "image",
    "series_instance_uid": "series",
    "study_instance_uid": "study",
    "patient_id": "patient",
}


class Labels(LabelColumns):
    """The label file; ``prefix`` is cut off the paths in it where they do not start at ``root``."""

    key: Literal["file", "sop_instance_uid", "series_instance_uid", "study_instance_uid", "patient_id"]
    key_column: str
    prefix: str = ""


class Params(FolderParams):
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
            LEVELS[labels.key],
            {finding: value for finding, (value, _) in cells.items()},
            tuple(sorted({issue for _, issue in cells.values() if issue})),
        )


def recognise(folder: Path) -> dict[str, Any] | None:
    """A tree in which a file of the first hundred has the DICOM prefix (PS3.10 7.1)."""
    for source in islice(walk_files(folder), 100):
        if not source.obstacle:
            with source.path.open("rb") as file:
                if file.read(132)[128:] == b"DICM":
                    return {"adapter": "dicom_folder", "root": "."}
    return None
