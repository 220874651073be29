"""The manifest: what lies in a raw archive, without a name of it. DVC depends on it instead of the archive."""

import errno
import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from pipeline.datasets.common import Source
from pipeline.datasets.registry import Adapter
from pipeline.dicom.deidentify import pseudonym
from pipeline.errors import PipelineError
from pipeline.tables.contract import make_table
from pipeline.tables.files import Manifest
from pipeline.withdrawn import read_withdrawn

# More than an element of DICOM can hold; without a bound a sparse file of a terabyte would be hashed for an hour.
MAX_HASHED_BYTES = 2**32
_PIECE = 2**20
_CHUNK = 64  # of sources: a thing to do for each costs more than looking at a file


class NotRegularError(OSError):
    """A folder, link, pipe, socket or device stands where a file was to be read."""


class TooLargeError(ValueError):
    """A file is larger than its reader allows.

    Attributes:
        size_bytes: what it is said to hold, or what was read until it was too much.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


class _Examined(NamedTuple):
    """A row of the manifest but for the pseudonym."""

    size_bytes: int
    modified_ns: int | None
    source_hmac: str | None


_UNREADABLE = _Examined(-1, None, None)


def identify(
    adapter: Adapter, site: Any, site_name: str, base: Path, key: bytes, *, with_withdrawn: bool = False
) -> dict[str, Source]:
    """The site's sources by pseudonym: the only way back from one to a path, made anew where it is needed.

    Files of patients who withdrew (``pipeline.withdrawn``, in the study's folder ``base``) are left out, unless
    ``with_withdrawn`` asks for them, as the person does who is to remove them.

    Raises:
        PipelineError: the raw folder is not there, or holds no file.
    """
    withdrawn = frozenset() if with_withdrawn else read_withdrawn(base).sources
    listed = (
        (pseudonym(key, "source", site_name, source.relative), source) for source in adapter.list_sources(site, base)
    )
    sources = {source_id: source for source_id, source in listed if source_id not in withdrawn}
    if not sources:
        raise PipelineError(f"site {site_name}: no file below {site.root}")
    return sources


def take_inventory(sources: Mapping[str, Source], key: bytes, *, hash_content: bool) -> pd.DataFrame:
    """The manifest of some sources.

    Args:
        sources: by pseudonym.
        key: the study's.
        hash_content: read every file of at most ``MAX_HASHED_BYTES`` and record its keyed hash, which is the same
            on every machine; else size and time of change, which costs no reading.
    """

    def examine(some: list[Source]) -> list[_Examined]:
        return [_examine(source, key, hash_content=hash_content) for source in some]

    every = list(sources.values())
    chunks = (every[start : start + _CHUNK] for start in range(0, len(every), _CHUNK))
    rows: list[_Examined] = []
    bar = tqdm(total=len(every), desc="inventory", unit="file", mininterval=0.5)
    # Threads: what takes the time, the file system and the hash, runs outside the interpreter's lock.
    with bar, ThreadPoolExecutor() as pool:
        try:
            for found in pool.map(examine, chunks):
                rows.extend(found)
                bar.update(len(found))
        finally:  # an interrupt need not wait until the whole archive was read
            pool.shutdown(cancel_futures=True)
    # object: else pandas makes floats of times among nulls.
    frame = pd.DataFrame(rows, columns=_Examined._fields, dtype=object)
    frame.insert(0, "source_id", list(sources))
    return make_table(Manifest, frame)


def locate(manifest: pd.DataFrame, sources: Mapping[str, Source], site_name: str) -> dict[str, Source]:
    """The manifest's sources as they lie on disk now.

    Raises:
        PipelineError: the archive has files that the manifest lacks, or the other way round.
    """
    listed = set(manifest["source_id"])
    if listed != set(sources):
        raise PipelineError(
            f"site {site_name}: {len(set(sources) - listed)} files are not in the manifest, "
            f"{len(listed - set(sources))} of the manifest are gone; run `python -m pipeline.commands.inventory`, "
            "then `dvc repro`"
        )
    return {source_id: sources[source_id] for source_id in sorted(listed)}


def read_regular(source: Source, max_bytes: int) -> bytes:
    """The content of a source that is a regular file; returns at once whatever else stands there by now.

    A last part of the path that is a link is followed for what a table or a person named, not for what
    ``walk_files`` listed: that has its links resolved, so that a link there was put in a file's place since.

    Args:
        source: what to read.
        max_bytes: no more is read, whatever the file says of its size.

    Raises:
        NotRegularError: something else than a file.
        TooLargeError: more than ``max_bytes``.
        OSError: not there, or not readable.
    """
    with _open_regular(source) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise TooLargeError(size)
        pieces = [file.read(size + 1)]
        total = len(pieces[0])
        # It grew, was read in part, or says 0 as files of /proc do.
        while total != size and pieces[-1] and total <= max_bytes:
            pieces.append(file.read(min(_PIECE, max_bytes + 1 - total)))
            total += len(pieces[-1])
        if total > max_bytes:
            raise TooLargeError(total)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _status(source: Source) -> os.stat_result:
    path = source.path
    if source.obstacle:
        raise NotRegularError(errno.EINVAL, source.obstacle)
    if "\0" in os.fspath(path):  # a table's; Python raises ValueError for it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    status = path.stat(follow_symlinks=source.below is None)
    _check_regular(status)
    return status


def _open_regular(source: Source) -> FileIO:
    # Looked at before it is opened: opening wakes up a pipe's writer, and a device may act on it.
    _status(source)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    descriptor = os.open(source.path, flags if source.below is None else flags | os.O_NOFOLLOW)
    file = os.fdopen(descriptor, "rb", buffering=0)  # read in large pieces anyhow: a buffer would copy them
    try:
        _check_regular(os.fstat(file.fileno()))  # it may have been replaced in between
    except NotRegularError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(errno.EINVAL, "not a regular file")


def _examine(source: Source, key: bytes, *, hash_content: bool) -> _Examined:
    """What the manifest says of a source; size -1 for what is not there or cannot be read: ingest says so of it."""
    try:
        status = _status(source)
        if not hash_content or status.st_size > MAX_HASHED_BYTES:
            # Asked for, so that a right that is given later changes the manifest and ingest runs again.
            readable = os.access(source.path, os.R_OK)
            return _Examined(status.st_size, status.st_mtime_ns, None) if readable else _UNREADABLE
        with _open_regular(source) as file:
            return _Examined(os.fstat(file.fileno()).st_size, None, _keyed_hash(key, file))
    except OSError:
        return _UNREADABLE


def _keyed_hash(key: bytes, file: FileIO) -> str:
    """``deidentify.keyed_hash`` of a file's content, in pieces."""
    digest = hmac.new(key, b"content", hashlib.sha256)
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()[:32]
