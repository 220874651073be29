"""A folder of DICOM with a CSV of labels: the usual export of a hospital, or of a challenge.

Layout: any tree of files below ``root``, with any names; the CSV has one column that names what a row is about
(``key_column``), as the file's path below root (``prefix`` is cut off), its SOP, Series or Study Instance UID or its
PatientID (``key``), and one column a finding. Several CSVs lie in one folder (``common.LabelTables``).

Licence and data-use terms are those of the data, and stand in the site's entry (``common.FolderParams``).
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pipeline.datasets.common import CsvLabels, FolderParams, LabelRow, Source, read_label_tables, walk_files
from pipeline.datasets.common import label_target as label_target
from pipeline.datasets.common import terms as terms
from pipeline.dicom import headers, pixels
from pipeline.imaging.intensity import ModalityImage


class Params(FolderParams):
    """A site's entry under ``sites`` for this adapter."""

    adapter: Literal["dicom_folder"]
    labels: CsvLabels


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
    """The rows of the CSV, or of several."""
    yield from read_label_tables(site.labels, base)


def recognise(folder: Path) -> dict[str, Any] | None:
    """A tree in which a file of the first hundred has the DICOM prefix (PS3.10 7.1)."""
    for source in islice(walk_files(folder), 100):
        if not source.obstacle:
            with source.path.open("rb") as file:
                if file.read(132)[128:] == b"DICM":
                    return {"adapter": "dicom_folder", "root": "."}
    return None
