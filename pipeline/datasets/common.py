"""What all adapters share: the site's entry in params, sources, the reading of a label file."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import model_validator

from pipeline.errors import PipelineError
from pipeline.params import Name, StrictParams, nearest

Value = int | float | str | bool


class SiteParams(StrictParams):
    """An entry under ``sites``: what every adapter needs; each adds its own keys.

    ``root`` is the raw folder, relative to the study's. ``issuer`` names who gave out the patient numbers (the
    site itself unless given): sites that share an issuer share patients, and equal numbers of two issuers do
    not make one patient. ``simulate`` is the demo's and read by the simulation alone.
    """

    adapter: Name
    root: str
    issuer: Name | None = None
    simulate: dict[str, Any] | None = None


class LabelColumns(StrictParams):
    """How a CSV of labels is read: ``columns`` maps finding to column, the lists say which cells mean what.

    A cell is compared as text, "1.0" as "1". An empty cell is "not annotated". Values in no list are counted
    as unknown and taken as not annotated.
    """

    file: str
    columns: dict[Name, str]
    present: tuple[str, ...] = ("1",)
    absent: tuple[str, ...] = ("0",)
    uncertain: tuple[str, ...] = ("-1",)

    @model_validator(mode="before")
    @classmethod
    def _texts(cls, raw: Any) -> Any:
        # YAML gives 1 where a person means the cell "1"; tuples, because strict mode takes no lists for them.
        if isinstance(raw, dict):
            raw = dict(raw)
            for name in ("present", "absent", "uncertain"):
                if isinstance(raw.get(name), list):
                    raw[name] = tuple(_cell_text(str(value)) for value in raw[name])
        return raw

    @model_validator(mode="after")
    def _disjoint(self) -> "LabelColumns":
        listed = [*self.present, *self.absent, *self.uncertain]
        repeated = sorted({value for value in listed if listed.count(value) > 1})
        if repeated:
            raise ValueError(f"each value may stand in one of present, absent, uncertain; repeated: {repeated}")
        return self


@dataclass(frozen=True)
class Source:
    """A raw file: its path below the root (what its pseudonym is made of), where it lies, a table's facts on it."""

    relative: str
    path: Path
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelRow:
    """One row of a label file: what it names (in the file's own terms) and a label a finding (None: null)."""

    target: str
    labels: Mapping[str, int | None]
    issues: tuple[str, ...]


def walk_files(root: Path) -> Iterator[Source]:
    """All regular files below ``root`` in a fixed order; links that leave it or loop are not followed.

    Raises:
        PipelineError: the folder is not there.
    """
    if not root.is_dir():
        raise PipelineError(f"the raw folder {root} is not there; set the site's root in params.yaml")
    for folder, names, files in os.walk(root, followlinks=False):
        names.sort()
        for name in sorted(files):
            path = Path(folder) / name
            # A pipe or a socket would hang the reader.
            if path.is_file() and (not path.is_symlink() or root.resolve() in path.resolve().parents):
                yield Source(path.relative_to(root).as_posix(), path)


def read_csv_rows(path: Path, required: Iterable[str]) -> list[dict[str, str]]:
    """A CSV as dicts of stripped text.

    Raises:
        PipelineError: the file or a column is missing, or it is no text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = [name.strip() for name in (reader.fieldnames or [])]
            for name in required:
                if name not in header:
                    # Not the header itself: in a file without one it is a patient's row.
                    close = nearest(name, header) if get_close_matches(name, header, n=1) else ""
                    raise PipelineError(f"{path}: no column '{name}' among its {len(header)}{close}")
            # A short row gives None, surplus cells a list under the key None.
            return [
                {key.strip(): (cell or "").strip() for key, cell in row.items() if key is not None} for row in reader
            ]
    except FileNotFoundError:
        raise PipelineError(f"the file {path} is not there; set it in the site's entry in params.yaml") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise PipelineError(f"{path}: not a readable CSV in UTF-8 ({type(error).__name__})") from None


def read_cell(cell: str, columns: LabelColumns) -> tuple[int | None, str | None]:
    """A label cell as (label, issue): 1, 0 or None; the issue is None, uncertain_value or unknown_value."""
    text = _cell_text(cell)
    if text in columns.present:
        return 1, None
    if text in columns.absent:
        return 0, None
    if text in columns.uncertain:
        return None, "uncertain_value"
    return None, None if text == "" else "unknown_value"


def _cell_text(cell: str) -> str:
    """A cell as it is compared: pandas writes 1 as "1.0" where a column has gaps."""
    return cell.removesuffix(".0")
