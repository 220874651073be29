"""What a raw folder holds, from a sample of it: a proposal for the site's entry in params.

Which column of which CSV names the files is found by matching its cells with what the sample holds, not by names of
columns. Nothing of a cell goes into the proposal but words that mean present or absent.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.datasets.common import cell_text, read_csv_rows, walk_files
from pipeline.datasets.inventory import TooLargeError, read_regular
from pipeline.datasets.registry import adapter_names, load_adapter
from pipeline.dicom import headers
from pipeline.dicom.attributes import MalformedError, text
from pipeline.dicom.deidentify import MODALITIES, in_vocabulary
from pipeline.dicom.refusal import Refusal
from pipeline.errors import PipelineError

FILL_IN = "FILL_IN"
_MAX_LISTED, _MAX_FILES, _MAX_TABLES, _MAX_ROWS = 20_000, 200, 20, 200_000
_MAX_BYTES = 2**26
_MIN_MATCHED = 0.5  # of the sample: less is chance (small numbers as patients' and in every other column)
_WORDS = {
    "present": frozenset("1 yes y true t positive pos present".split()),
    "absent": frozenset("0 no n false f negative neg absent".split()),
    "uncertain": frozenset("-1 uncertain unclear maybe equivocal u".split()),
}
# From the most particular level to the least: of two that match alike the first is taken.
_UIDS = {
    "sop_instance_uid": "SOPInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
    "study_instance_uid": "StudyInstanceUID",
    "patient_id": "PatientID",
}


@dataclass(frozen=True)
class Sample:
    """Some files of a folder: paths and numbers of the DICOM images by ``key`` of a label table, and modalities."""

    num_files: int
    num_dicom: int
    names: Mapping[str, frozenset[str]]
    modalities: frozenset[str]


@dataclass(frozen=True)
class Survey:
    """What is known of a folder.

    Attributes:
        entry: for ``sites``, paths relative to the folder; ``FILL_IN`` stands where nothing was found.
        modalities: of the sample.
        told: what was looked at and found, in counts.
        other_columns: of the label table, with few values: they may be findings too.
    """

    entry: dict[str, Any]
    modalities: frozenset[str] = frozenset()
    told: str = ""
    other_columns: tuple[str, ...] = ()


def survey(folder: Path) -> Survey:
    """Look at a folder.

    Raises:
        PipelineError: it is not there, or in no layout that an adapter knows.
    """
    if not folder.is_dir():
        raise PipelineError(f"--from: {folder} is not a folder that can be read")
    # An adapter of one collection knows better than one that takes any folder.
    for name in sorted(adapter_names(), key=lambda name: (name.endswith("_folder"), name)):
        entry = load_adapter(name).recognise(folder)
        if entry is not None:
            return _survey_dicom(folder, entry) if name == "dicom_folder" else Survey(entry, told=f"layout {name}")
    raise PipelineError(f"--from: {folder} is in no known layout ({', '.join(adapter_names())})")


def _survey_dicom(folder: Path, entry: dict[str, Any]) -> Survey:
    sample = take_sample(folder)
    tables = [path for place in (folder, folder.parent) for path in sorted(place.glob("*.csv*"))][:_MAX_TABLES]
    joins = [join for path in tables if (join := match_table(path, sample)) is not None]
    told = f"{sample.num_dicom} of {sample.num_files} files looked at are DICOM images; "
    told += f"{len(joins)} of {len(tables)} CSV files name them"
    if not joins:
        labels = {"file": f"{FILL_IN}.csv", "key": "file", "key_column": FILL_IN, "columns": {"finding": FILL_IN}}
        return Survey({**entry, "labels": labels}, sample.modalities, told)
    best = max(joins, key=lambda join: (bool(join.columns), join.share))
    told += f", the one taken {best.share:.0%} of them; columns of findings: {len(best.columns)}"
    return Survey({**entry, "labels": best.labels(folder)}, sample.modalities, told, tuple(best.others))


def take_sample(folder: Path) -> Sample:
    """Some of the files, evenly over what is listed first."""
    sources = [source for source in islice(walk_files(folder), _MAX_LISTED) if not source.obstacle]
    chosen = sources[:: max(1, -(-len(sources) // _MAX_FILES))]
    policy = headers.IngestParams(max_bytes=_MAX_BYTES)
    names: defaultdict[str, set[str]] = defaultdict(set)
    modalities = set()
    for source in chosen:
        try:
            part = headers.read_header(read_regular(source, _MAX_BYTES), policy)[0].main
        except (Refusal, OSError, TooLargeError):
            continue
        names["file"].add(source.relative)
        modalities.add(in_vocabulary(_text(part, "Modality"), MODALITIES) or "")
        for key, keyword in _UIDS.items():
            names[key].add(_text(part, keyword))
    known = {key: frozenset(values - {""}) for key, values in names.items()}
    return Sample(len(chosen), len(names["file"]), known, frozenset(modalities - {""}))


def _text(part: Any, keyword: str) -> str:
    try:
        return text(part, keyword)
    except MalformedError:
        return ""


@dataclass(frozen=True)
class Join:
    """A CSV that names the files of a sample.

    ``columns`` are those of findings with the words in them; ``others`` those with few values that are no such words.
    """

    path: Path
    key: str
    key_column: str
    prefix: str
    share: float
    columns: Mapping[str, frozenset[str]]
    others: list[str]

    def labels(self, folder: Path) -> dict[str, Any]:
        """The entry ``labels``, ``file`` relative to the folder."""
        cells = frozenset[str]().union(*self.columns.values())
        meanings = {name: sorted(cell for cell in cells if cell.lower() in words) for name, words in _WORDS.items()}
        return {
            "file": os.path.relpath(self.path, folder),
            "key": self.key,
            "key_column": self.key_column,
            **({"prefix": self.prefix} if self.prefix else {}),
            "columns": _findings(list(self.columns)) or {"finding": FILL_IN},
            **{name: listed for name, listed in meanings.items() if listed},
        }


def match_table(path: Path, sample: Sample) -> Join | None:
    """How a CSV names the files of the sample; None where it does not, cannot be read or has no header."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for key in _UIDS:
        for value in sample.names.get(key, ()):
            kinds[value].append(key)
    by_base: defaultdict[str, list[str]] = defaultdict(list)
    for relative in sample.names.get("file", ()):
        by_base[relative.rpartition("/")[2]].append(relative)
    matched: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)  # by column, key and prefix
    cells: defaultdict[str, set[str]] = defaultdict(set)
    try:
        for row in islice(read_csv_rows(path, ()), _MAX_ROWS):
            for column, cell in row.items():
                if column in kinds or column in by_base:
                    return None  # the first row is a patient's
                for key in kinds.get(cell, ()):
                    matched[column, key, ""].add(cell)
                for relative in by_base.get(cell.rpartition("/")[2], ()):
                    if cell.endswith(relative):
                        matched[column, "file", cell.removesuffix(relative)].add(relative)
                if len(cells[column]) <= 5:
                    cells[column].add(cell_text(cell))
    except PipelineError:
        return None
    order = ["file", *_UIDS]
    shares = {place: len(found) / len(sample.names[place[1]]) for place, found in matched.items()}
    best = max(shares, key=lambda place: (shares[place], -order.index(place[1]), place), default=None)
    if best is None or shares[best] < _MIN_MATCHED:
        return None
    few = {
        column: frozenset(found - {""})
        for column, found in cells.items()
        if column and column != best[0] and 2 <= len(found - {""}) <= 4
    }
    words = frozenset[str]().union(*_WORDS.values())
    findings = {column: found for column, found in few.items() if {cell.lower() for cell in found} <= words}
    return Join(path, best[1], best[0], best[2], shares[best], findings, sorted(set(few) - set(findings)))


def _findings(columns: list[str]) -> dict[str, str]:
    """Columns by a name that params take."""
    named: dict[str, str] = {}
    for column in columns:
        name = base = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_0123456789") or "finding"
        number = 2
        while name in named:
            name, number = f"{base}_{number}", number + 1
        named[name] = column
    return named
