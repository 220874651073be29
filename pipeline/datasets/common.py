"""What all adapters share: the site's entry in params, terms of use, sources, the reading of a label file."""

import csv
import errno
import gzip
import os
import stat
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.dicom.deidentify import pseudonym
from pipeline.errors import PipelineError
from pipeline.params import Name, StrictParams, nearest

Level = Literal["file", "image", "series", "study", "patient"]
Given = Literal["present", "absent", "uncertain"]


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


class FolderParams(SiteParams):
    """A site of one's own data, whose terms only its owner knows; see ``Terms``.

    ``redistribution`` is false unless somebody says otherwise: a hospital's data stays where it is.
    """

    origin: str = ""
    licence: str = ""
    redistribution: bool = False
    citation: str = ""


@dataclass(frozen=True)
class Terms:
    """What a site's data is and may be used for.

    Attributes:
        origin: the collection that the images come from ("chestxray14"); sites of one origin may hold the same
            images. "" is a hospital's own, which overlaps with nothing.
        licence: its name.
        redistribution: whether outputs that hold rows or pixels may be pushed to a remote.
        citation: what its owners ask to be cited.
    """

    origin: str
    licence: str
    redistribution: bool
    citation: str


def terms(site: FolderParams) -> Terms:
    """The terms that a site's entry in params states."""
    return Terms(site.origin, site.licence, site.redistribution, site.citation)


class LabelColumns(StrictParams):
    """How a CSV of labels is read: ``columns`` maps finding to column, the lists say which cells mean what.

    A cell is compared as text, "1.0" as "1". An empty cell leaves the finding open. Values in no list are counted
    as unknown and taken as if the row were not there. ``reader_column`` and ``date_column`` say who gave the labels
    of a row and when, where the file has it.
    """

    file: str
    columns: dict[Name, str]
    present: tuple[str, ...] = ("1",)
    absent: tuple[str, ...] = ("0",)
    uncertain: tuple[str, ...] = ("-1",)
    reader_column: str | None = None
    date_column: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _texts(cls, raw: Any) -> Any:
        # YAML gives 1 where a person means the cell "1"; tuples, because strict mode takes no lists for them.
        if isinstance(raw, dict):
            raw = dict(raw)
            for name in ("present", "absent", "uncertain"):
                if isinstance(raw.get(name), list):
                    raw[name] = tuple(cell_text(str(value)) for value in raw[name])
        return raw

    @model_validator(mode="after")
    def _disjoint(self) -> "LabelColumns":
        listed = [*self.present, *self.absent, *self.uncertain]
        repeated = sorted({value for value in listed if listed.count(value) > 1})
        if repeated:
            raise ValueError(f"each value may stand in one of present, absent, uncertain; repeated: {repeated}")
        return self

    @cached_property
    def meanings(self) -> dict[str, Given]:
        """Cell to what it means."""
        listed = {"present": self.present, "absent": self.absent, "uncertain": self.uncertain}
        return {value: cast("Given", name) for name, values in listed.items() for value in values}


class LabelTable(LabelColumns):
    """A CSV whose column ``key_column`` names what a row is about, by ``key``.

    ``prefix`` is cut off the paths in it where they do not start at ``root``.
    """

    key: Literal["file", "sop_instance_uid", "series_instance_uid", "study_instance_uid", "patient_id"]
    key_column: str
    prefix: str = ""


class LabelTables(StrictParams):
    """Several such CSVs: ``file`` is the folder that they lie in, all of which DVC depends on; theirs are below it.

    A folder, because a template of DVC's can name one path and no list of them.
    """

    file: str
    tables: list[LabelTable] = Field(min_length=1)

    @model_validator(mode="after")
    def _inside(self) -> "LabelTables":
        for table in self.tables:
            if Path(table.file).is_absolute() or ".." in Path(table.file).parts:
                raise ValueError(f"tables[].file must be below the folder {self.file}; got {table.file}")
        return self

    @property
    def columns(self) -> dict[str, str]:
        """The findings of all tables."""
        return {finding: column for table in self.tables for finding, column in table.columns.items()}


def _one_or_several(raw: Any) -> str:
    several = "tables" in raw if isinstance(raw, dict) else isinstance(raw, LabelTables)
    return "tag-several" if several else "tag-one"


CsvLabels = Annotated[
    Annotated[LabelTable, Tag("tag-one")] | Annotated[LabelTables, Tag("tag-several")],
    Discriminator(_one_or_several),
]
_LEVELS: Mapping[str, Level] = {
    "file": "file",
    "sop_instance_uid": "image",
    "series_instance_uid": "series",
    "study_instance_uid": "study",
    "patient_id": "patient",
}
_KINDS = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}
# Shared by all sources that no table says anything of: a dictionary each would be most of their memory.
_NO_FACTS: dict[str, str] = {}


class Source(NamedTuple):
    """A raw file, or what stands in the archive without being a file that can be read.

    Attributes:
        relative: its path below the root, parts joined by "/": what its pseudonym is made of. A name that is not
            UTF-8 has its bytes as surrogates (PEP 383).
        place: where it lies; where ``below`` is given, the folder that this starts from, which many then share.
        facts: what a table says of it.
        obstacle: why it cannot be read, a constant text without a name; "" for what can be tried.
        below: its path below ``place``; for a link that of the file it leads to, so that ``path`` ends in no link.
            None where a table and not ``walk_files`` listed it.
    """

    relative: str
    place: Path
    facts: Mapping[str, str] = _NO_FACTS
    obstacle: str = ""
    below: str | None = None

    @property
    def path(self) -> Path:
        """Where the file lies; made anew at each call, since a ``Path`` takes more memory than all the rest."""
        return self.place if self.below is None else self.place / self.below

    @property
    def listed_path(self) -> Path:
        """Where it stands in the archive, if that is a link."""
        return self.place if self.below is None else self.place / self.relative


@dataclass(frozen=True)
class LabelRow:
    """One row of a label file, as the file has it: policies come later.

    Attributes:
        target: what it is about, in the file's own terms: a path below the root, a UID, a patient number.
        level: what the target names; "image" is a SOP instance with all its frames.
        labels: finding to value; None where the row leaves it open. A finding without a column, or with a value that
            has no meaning, is not in it.
        issues: of ``tables.labels.LABEL_ISSUES``: "unknown_value"; the join counts the others.
        reader: who gave it, in the file's own terms; None where the file does not say.
        date: when, ``YYYYMMDD`` or ISO 8601; None where the file does not say.
    """

    target: str
    level: Level
    labels: Mapping[str, Given | None]
    issues: tuple[str, ...] = ()
    reader: str | None = None
    date: str | None = None


def label_target(site: SiteParams, site_name: str, key: bytes, row: LabelRow) -> tuple[str, str]:
    """The column of ``Instances`` that a row is about, and the pseudonym to look for there.

    The pseudonyms are ``dicom.headers``'s; an adapter that makes its own of study or image overrides it. An image's
    is its first frame's: the join takes in the others of its file.
    """
    match row.level:
        case "file":
            return "source_id", pseudonym(key, "source", site_name, row.target)
        case "image":
            return "image_id", pseudonym(key, "image", row.target, "0")
        case "series":
            return "series_id", pseudonym(key, "series", row.target)
        case "study":
            return "study_id", pseudonym(key, "study", row.target)
        case "patient":
            return "patient_id", pseudonym(key, "patient", site.issuer or site_name, row.target)


def walk_files(root: Path) -> Iterator[Source]:
    """Everything below ``root`` but the folders that can be listed, in a fixed order.

    Regular files and the links to them that stay below the root can be read. What else there is comes with its
    obstacle: links that leave the root, lead to folders (whose files are listed where they are), to nothing or in
    circles; pipes, sockets and devices, which are not opened; folders that cannot be listed.

    Raises:
        PipelineError: the root is not there or cannot be listed.
    """
    try:
        # Folders are opened from the root's descriptor, so that what is too deep does not hang on where the root lies.
        base = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        wrong = "is not there" if missing else f"cannot be opened ({type(error).__name__})"
        raise PipelineError(f"the raw folder {root} {wrong}; set the site's root in params.yaml") from None
    try:
        yield from _walk(root, base)
    finally:
        os.close(base)


def _walk(root: Path, base: int) -> Iterator[Source]:
    real_root = os.path.realpath(root)
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            entries = _list_folder(folder or ".", base)
        except OSError as error:
            if not folder:
                raise PipelineError(f"the raw folder {root} cannot be listed ({type(error).__name__})") from None
            # Longer than the system takes: what is in it could not be opened by its path.
            too_long = error.errno == errno.ENAMETOOLONG
            obstacle = "folder with too long a path" if too_long else "folder that cannot be listed"
            yield Source(folder, root, obstacle=obstacle, below=folder)
            continue
        folders = []
        for name, kind in sorted(entries):
            relative = f"{folder}/{name}" if folder else name
            if kind == "folder":
                folders.append(relative)
            elif kind == "link":
                yield _follow(root, relative, real_root)
            else:
                yield Source(relative, root, obstacle=kind, below=relative)
        waiting.extend(reversed(folders))


def _list_folder(folder: str, base: int) -> list[tuple[str, str]]:
    """The entries of a folder as (name, kind): "folder", "link", "" for a regular file, else an obstacle.

    Raises:
        OSError: it cannot be opened or read, or is a link by now.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
    try:
        with os.scandir(descriptor) as entries:
            return [(entry.name, _kind(entry)) for entry in entries]
    finally:
        os.close(descriptor)


def _kind(entry: "os.DirEntry[str]") -> str:
    try:
        # The first three are known from the listing on most file systems, without a call for each file.
        if entry.is_symlink():
            return "link"
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        if entry.is_file(follow_symlinks=False):
            return ""
        return _obstacle_of(entry.stat(follow_symlinks=False).st_mode)
    except OSError:
        return "entry that cannot be examined"


def _obstacle_of(mode: int) -> str:
    """Why what has this mode cannot be read as a file; "" for a regular file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "special file")


def _follow(root: Path, relative: str, real_root: str) -> Source:
    """A link: the file below the root that it leads to, or why it is not followed."""
    path = os.fspath(root / relative)
    inside = os.path.relpath(os.path.realpath(path), real_root)
    if inside == os.pardir or inside.startswith(os.pardir + os.sep):
        return Source(relative, root, obstacle="link out of the root", below=relative)
    try:
        obstacle = _obstacle_of(os.stat(path).st_mode)  # noqa: PTH116 - the text that realpath was asked about
    except (FileNotFoundError, NotADirectoryError):
        obstacle = "dangling link"
    except OSError as error:
        obstacle = "link loop" if error.errno == errno.ELOOP else "link that cannot be followed"
    else:
        if not obstacle:
            return Source(relative, root, below=inside)
        obstacle = f"link to a {obstacle}"
    return Source(relative, root, obstacle=obstacle, below=relative)


def read_csv_rows(path: Path, required: Collection[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV (or CSV.gz) as stripped text by column, one by one; cells that a short row lacks are "".

    UTF-8, with or without a byte order mark. The separator is that of comma, semicolon and tab under which the header
    has all of ``required``, or the most columns.

    Raises:
        PipelineError: the file or a column is missing, a column stands there twice, or it is no such text.
    """
    opened: Any = gzip.open if path.suffix == ".gz" else Path.open
    try:
        with opened(path, "rt", newline="", encoding="utf-8-sig") as file:
            headers = {}
            for mark in (",", ";", "\t"):
                file.seek(0)
                headers[mark] = [name.strip() for name in next(csv.reader(file, delimiter=mark), [])]
            separator = max(headers, key=lambda mark: (set(required) <= set(headers[mark]), len(headers[mark])))
            header = headers[separator]
            if not set(required) <= set(header) or not any(header):
                raise PipelineError(f"{path}: {_lacking(header, required)}")
            file.seek(0)
            reader = csv.reader(file, delimiter=separator)
            next(reader)
            twice = [number for number, name in enumerate(header, start=1) if name and header.count(name) > 1]
            if twice:
                raise PipelineError(f"{path}: columns {twice} have the same name; give each its own")
            for row in reader:
                if row:
                    yield dict(zip_longest(header, map(str.strip, row[: len(header)]), fillvalue=""))
    except FileNotFoundError:
        raise PipelineError(f"the file {path} is not there; set it in the site's entry in params.yaml") from None
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile, IsADirectoryError) as error:
        raise PipelineError(
            f"{path}: not a readable CSV in UTF-8 ({type(error).__name__}); save it anew as CSV with that encoding"
        ) from None


def _lacking(header: list[str], required: Collection[str]) -> str:
    """What is wrong with a header; quotes no name of it, since in a file without one it is a patient's row."""
    if not any(header):
        return "no header: the file or its first line is empty"
    name = next(name for name in required if name not in header)
    close = nearest(name, header) if get_close_matches(name, header, n=1) else ""
    return f"no column '{name}' among its {len(header)}{close}"


def read_label_tables(labels: LabelTable | LabelTables, base: Path) -> Iterator[LabelRow]:
    """The rows of a site's CSVs; ``base`` is the study's folder."""
    if isinstance(labels, LabelTables):
        for table in labels.tables:
            yield from _read_label_table(table, base / labels.file / table.file)
    else:
        yield from _read_label_table(labels, base / labels.file)


def _read_label_table(table: LabelTable, path: Path) -> Iterator[LabelRow]:
    for row in read_csv_rows(path, [table.key_column, *label_columns(table)]):
        yield label_row(row, table, row[table.key_column].removeprefix(table.prefix), _LEVELS[table.key])


def read_rows(columns: LabelColumns, base: Path, names: Collection[str]) -> Iterator[dict[str, str]]:
    """The rows of a label file for ``label_row``; the columns ``names`` say what they are about."""
    return read_csv_rows(base / columns.file, [*names, *label_columns(columns)])


def label_columns(columns: LabelColumns) -> list[str]:
    """What ``label_row`` reads of a row."""
    return [*columns.columns.values(), *filter(None, (columns.reader_column, columns.date_column))]


def label_row(row: Mapping[str, str], columns: LabelColumns, target: str, level: Level) -> LabelRow:
    """A row of a CSV that is about ``target``."""
    labels: dict[str, Given | None] = {}
    unknown = False
    for finding, column in columns.columns.items():
        text = cell_text(row[column])
        if text in columns.meanings:
            labels[finding] = columns.meanings[text]
        elif text == "":
            labels[finding] = None
        else:
            unknown = True
    return LabelRow(
        target,
        level,
        labels,
        ("unknown_value",) if unknown else (),
        row[columns.reader_column] or None if columns.reader_column else None,
        row[columns.date_column] or None if columns.date_column else None,
    )


def cell_text(cell: str) -> str:
    """A cell as it is compared: pandas writes 1 as "1.0" where a column has gaps."""
    return cell.removesuffix(".0")
