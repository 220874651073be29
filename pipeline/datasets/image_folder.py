"""A folder a class: PNG and JPEG files, 8 or 16 bits, grey or colour, sorted into folders by what they show.

Layout: ``root`` holds a folder a class, in it files of any names and depth (``NORMAL/a.png``, ``PNEUMONIA/b/c.jpeg``).
``labels.columns`` says in which of them a finding is present, in which absent; files of folders that it names nowhere
have no label, and are counted.

Patients: file names seldom say, and a patient on two sides of a split spoils every figure. So ``patient`` must be
given: a regular expression for the path below the root with a group named patient, a CSV from path to patient, or the
word ``file``: each file is a patient of its own, a claim that nobody checks.

Labels: a file's is its folder's. Licence and data-use terms are those of the data, and stand in the site's entry
(``common.FolderParams``).
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.datasets.common import FolderParams, Given, LabelRow, Source, read_csv_rows, walk_files
from pipeline.datasets.common import label_target as label_target
from pipeline.datasets.common import terms as terms
from pipeline.datasets.image_files import describe_raster, read_raster
from pipeline.dicom import headers
from pipeline.params import Name, ParamsError, StrictParams, nearest

_SUFFIXES = (".png", ".jpg", ".jpeg")

read_images = read_raster


class Folders(StrictParams):
    """The class folders in which a finding is present, absent or uncertain."""

    present: list[str]
    absent: list[str]
    uncertain: list[str] = Field(default_factory=list)

    def by_value(self) -> dict[Given, list[str]]:
        """The folders by what they mean."""
        return {"present": self.present, "absent": self.absent, "uncertain": self.uncertain}


class Labels(StrictParams):
    """``columns`` maps finding to its folders.

    ``file`` is what DVC watches, as it does the label file of other adapters: the site's manifest
    (data/manifests/NAME.parquet), which changes when a file comes, goes or moves to another class.
    """

    file: str
    columns: dict[Name, Folders]

    @field_validator("columns")
    @classmethod
    def _one_meaning(cls, columns: dict[str, Folders]) -> dict[str, Folders]:
        for finding, folders in columns.items():
            listed = [name for names in folders.by_value().values() for name in names]
            repeated = sorted({name for name in listed if listed.count(name) > 1})
            if repeated:
                raise ValueError(f"{finding}: each folder may stand in one of present, absent, uncertain: {repeated}")
        return columns


class PatientPattern(StrictParams):
    """A regular expression, searched in the path below the root, whose group ``patient`` is the patient's number."""

    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression ({error.msg})") from None
        if "patient" not in groups:
            raise ValueError("must have a group (?P<patient>...)")
        return pattern


class PatientTable(StrictParams):
    """A CSV with a column of paths below the root and one of patients."""

    file: str
    key_column: str
    patient_column: str


class Params(FolderParams):
    """A site's entry under ``sites`` for this adapter."""

    adapter: Literal["image_folder"]
    patient: Literal["file"] | PatientPattern | PatientTable
    labels: Labels


def list_sources(site: Params, base: Path) -> Iterator[Source]:
    """Every file below the root, in a fixed order, with its patient as a fact."""
    table: dict[str, str] = {}
    if isinstance(site.patient, PatientTable):
        columns = (site.patient.key_column, site.patient.patient_column)
        for row in read_csv_rows(base / site.patient.file, columns):
            key, patient = (row[column] for column in columns)
            # Two patients of one file are none.
            table[key] = patient if table.setdefault(key, patient) == patient else ""
    for source in walk_files(base / site.root):
        if isinstance(site.patient, PatientPattern):
            found = re.search(site.patient.pattern, source.relative)
            patient = (found["patient"] or "") if found else ""
        else:
            patient = source.relative if site.patient == "file" else table.get(source.relative, "")
        yield source._replace(facts={"patient": patient})


def describe(
    source: Source, content: bytes, *, site: str, issuer: str, key: bytes, policy: headers.IngestParams
) -> headers.Description:
    """The facts of an image, from its path and its own header; raises ``Refusal``."""
    patient = (issuer, source.facts["patient"])
    study = (site, source.relative)  # nothing says which files are of one study
    return describe_raster(source, content, policy, site=site, key=key, patient=patient, study=study)


def read_labels(site: Params, base: Path) -> Iterator[LabelRow]:
    """A row a file below a folder: what its class means; that of an unknown class is counted.

    Raises:
        ParamsError: a folder that params name is not there.
    """
    classes: dict[str, dict[str, Given | None]] = {}
    for finding, folders in site.labels.columns.items():
        for value, names in folders.by_value().items():
            for name in names:
                classes.setdefault(name, {})[finding] = value
    sources = [source.relative for source in walk_files(base / site.root)]
    there = sorted({name.partition("/")[0] for name in sources if "/" in name})
    for name in sorted(set(classes) - set(there)):
        # Only a name like it: under a wrong root folders are patients.
        close = nearest(name, there) if get_close_matches(name, there, n=1) else ""
        raise ParamsError(f"labels.columns: below {site.root} no file lies in a folder '{name}'{close}")
    for relative in sources:
        labels = classes.get(relative.partition("/")[0], {})
        yield LabelRow(relative, "file", labels, () if labels else ("unknown_value",))


def recognise(folder: Path) -> dict[str, Any] | None:
    """At least two folders, and files of these kinds alone among the first hundred."""
    if sum(path.is_dir() for path in islice(folder.iterdir(), 100)) < 2:
        return None
    files = [source.relative for source in islice(walk_files(folder), 100) if not source.obstacle]
    if not files or not all("/" in name and name.lower().endswith(_SUFFIXES) for name in files):
        return None
    return {"adapter": "image_folder", "root": "."}
