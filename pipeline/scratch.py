"""What was made of each raw file, kept outside DVC's outputs: an interrupted run resumes, unchanged files stay unread.

One SQLite file per site and context, ``FOLDER/NAME-CONTEXT.sqlite``, where the context is a hash over all that decides
an outcome beside the file itself. It is a cache and nothing else: what cannot be read is thrown away and made again.
"""

import hashlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import PipelineError
from pipeline.work import locked

_APPLICATION_ID = 0x4D545032  # "MTP2": another layout of the table is another number
_BATCH = 256  # below SQLite's oldest limit of 999 variables in a statement
_COMMIT_SECONDS = 1.0
# Not ensure_ascii: its escapes would join two lone surrogates to one character.
_JSON = json.JSONEncoder(allow_nan=False, ensure_ascii=False, check_circular=False, separators=(",", ":"))
# SQLite's message may itself quote damaged text.
_FAULTS = (sqlite3.Error, UnicodeDecodeError)
# The machine's; all others are damage. Not SQLITE_READONLY: without the right to write, opening fails before.
_MACHINE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
    }
)


def encode(outcome: Any) -> bytes:
    """A value as JSON that ``decode`` gives back exactly, floats to the bit.

    Args:
        outcome: of dict (keys str), list, str, int, float, bool and None. Not checked, which would cost as much
            again: a tuple would come back as a list.

    Raises:
        TypeError: a type that JSON has not.
        ValueError: a float that is not finite, or a str with surrogates.
    """
    return _JSON.encode(outcome).encode("utf-8")


def decode(content: bytes) -> Any:
    """The value that ``encode`` was given."""
    return json.loads(content)


class Scratch:
    """Outcomes by file and stamp; a context manager that one process at a time may hold.

    ``put`` commits once 256 outcomes are pending or a second has passed since the last commit, so that a killed run
    loses no more than that. Of a file only the outcome of the latest stamp is kept.
    """

    def __init__(self, folder: Path, name: str, context: Any) -> None:
        """Open it, and delete those of other contexts under this name.

        Args:
            folder: made where it is not there, for its owner only.
            name: of the site.
            context: all that decides an outcome beside file and stamp; plain JSON types, hashed.

        Raises:
            PipelineError: another process holds it, or it cannot be written.
        """
        if not name.isidentifier():
            raise ValueError("the name must be an identifier: it becomes part of a file's name")
        text = json.dumps(context, allow_nan=False, sort_keys=True)
        digest = hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]
        self._path = folder / f"{name}-{digest}.sqlite"
        self._pending: dict[str, tuple[str, bytes]] = {}
        self._noticed = False
        self._lock = locked(folder, name)
        try:
            for path in folder.glob(f"{name}-*.sqlite*"):
                if not path.name.startswith(self._path.name):
                    path.unlink()
            self._connection = self._open()
        except BaseException:
            self._lock.release()
            raise
        self._committed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is pending, and let go of the file; harmless a second time."""
        if not self._lock.is_locked:
            return
        try:
            self.commit()
        finally:
            self._connection.close()
            self._lock.release()

    def put(self, source_id: str, stamp: str, outcome: Any) -> None:
        """Keep an outcome in place of the file's earlier one.

        Args:
            source_id: pseudonym of the file.
            stamp: changes when the file does (of size and time, say); free of identifiers.
            outcome: what ``encode`` takes.
        """
        self._pending[source_id] = (stamp, encode(outcome))
        if len(self._pending) >= _BATCH or time.monotonic() - self._committed >= _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write what is pending to the disk."""
        rows = [
            (source_id, stamp, _digest(source_id, stamp, value), value)
            for source_id, (stamp, value) in self._pending.items()
        ]
        if rows:
            try:
                self._insert(rows)
            except _FAULTS as error:
                self._discard(error)
                self._insert(rows)
        self._pending.clear()
        self._committed = time.monotonic()

    def get(self, source_id: str, stamp: str) -> Any:
        """The outcome of a file under this stamp; None where none is kept."""
        stamped = self._pending.get(source_id) or self._select([source_id]).get(source_id)
        return decode(stamped[1]) if stamped is not None and stamped[0] == stamp else None

    def stamps(self) -> dict[str, str]:
        """Of each file that something is kept of, the stamp."""
        self.commit()
        try:
            return dict(self._connection.execute("SELECT source_id, stamp FROM outcome"))
        except _FAULTS as error:
            self._discard(error)
            return {}

    def get_many(self, keys: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], Any]]:
        """Of (source_id, stamp) pairs those that are kept, with their outcomes, in the order of ``keys``.

        Holds 256 of them at a time. Whoever puts meanwhile may or may not see it.
        """
        remaining = iter(keys)
        while batch := list(islice(remaining, _BATCH)):
            self.commit()
            found = self._select([source_id for source_id, _ in batch])
            for source_id, stamp in batch:
                if source_id in found and found[source_id][0] == stamp:
                    yield (source_id, stamp), decode(found[source_id][1])

    def forget(self, source_ids: Iterable[str]) -> None:
        """Delete the outcomes of files (of a patient who withdrew), and their bytes on the disk."""
        self.commit()
        try:
            _erase(self._connection, source_ids)
        except _FAULTS as error:
            self._discard(error)  # which forgets them too

    def prune(self, keep: Iterable[str]) -> None:
        """Delete the outcomes of all other files: those that are no longer there."""
        self.commit()
        try:
            with self._connection as connection:
                connection.execute("CREATE TEMP TABLE keep (source_id TEXT PRIMARY KEY) WITHOUT ROWID")
                connection.executemany("INSERT OR IGNORE INTO keep VALUES (?)", ((source_id,) for source_id in keep))
                connection.execute("DELETE FROM outcome WHERE source_id NOT IN (SELECT source_id FROM keep)")
                connection.execute("DROP TABLE keep")
        except _FAULTS as error:
            self._discard(error)

    def _insert(self, rows: list[tuple[str, str, bytes, bytes]]) -> None:
        with self._connection as connection:
            connection.executemany("INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?)", rows)

    def _select(self, source_ids: list[str]) -> dict[str, tuple[str, bytes]]:
        marks = ",".join("?" * len(source_ids))
        query = f"SELECT source_id, stamp, digest, value FROM outcome WHERE source_id IN ({marks})"  # noqa: S608 - marks
        try:
            rows = self._connection.execute(query, source_ids).fetchall()
        except _FAULTS as error:
            self._discard(error)
            return {}
        whole = {row[0]: (row[1], row[3]) for row in rows if _is_whole(*row)}
        if len(whole) < len(rows):
            self._notice("some outcomes are damaged; their files are read again")
        return whole

    def _open(self) -> sqlite3.Connection:
        # A hot journal without its file would be applied to the new one; after a kill both are there.
        if not self._path.exists():
            _journal(self._path).unlink(missing_ok=True)
        try:
            return _connect(self._path)
        except _FAULTS as error:
            return self._open_anew(error)

    def _discard(self, error: sqlite3.Error | UnicodeDecodeError) -> None:
        self._check_damage(error)
        self._connection.close()
        self._connection = self._open_anew(error)

    def _open_anew(self, error: sqlite3.Error | UnicodeDecodeError) -> sqlite3.Connection:
        self._check_damage(error)
        self._notice("damaged or another program's; thrown away, all files are read again")
        _journal(self._path).unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        return _connect(self._path)

    def _check_damage(self, error: sqlite3.Error | UnicodeDecodeError) -> None:
        # What Python itself raises (over text that is not UTF-8) carries no code.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in _MACHINE:
            raise PipelineError(f"{self._path}: SQLite says: {error}; is the disk full?") from None

    def _notice(self, text: str) -> None:
        if not self._noticed:
            print(f"{self._path.name}: {text}", file=sys.stderr)
        self._noticed = True


def forget(folder: Path, source_ids: Iterable[str]) -> None:
    """Delete the outcomes of files from all scratch files of a folder, of any name and context, bytes and all.

    One that is damaged is deleted whole.

    Raises:
        PipelineError: another process holds one of them.
    """
    gone = list(source_ids)
    for path in sorted(folder.glob("*-*.sqlite")):
        lock = locked(folder, path.name.rpartition("-")[0])
        try:
            connection = _connect(path)
            try:
                _erase(connection, gone)
            finally:
                connection.close()
        except _FAULTS:
            _journal(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        finally:
            lock.release()


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite's own would be readable by others
    connection = sqlite3.connect(path)
    try:
        # A rollback journal, not WAL: one file, none left beside it, and sound on network drives. What is freed is
        # overwritten with zeros. VACUUM works in memory instead of a public temporary folder.
        for setting in (
            "locking_mode = EXCLUSIVE",
            "journal_mode = DELETE",
            "synchronous = NORMAL",
            "secure_delete = ON",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {setting}")
        (found,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and found != _APPLICATION_ID:
            raise sqlite3.DatabaseError("another program's file")
        with connection:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS outcome (source_id TEXT PRIMARY KEY NOT NULL, stamp TEXT NOT NULL, "
                "digest BLOB NOT NULL, value BLOB NOT NULL) WITHOUT ROWID"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _erase(connection: sqlite3.Connection, source_ids: Iterable[str]) -> None:
    with connection:
        connection.executemany("DELETE FROM outcome WHERE source_id = ?", ((source_id,) for source_id in source_ids))
    connection.execute("VACUUM")


def _digest(source_id: str, stamp: str, value: bytes) -> bytes:
    # Over the key as well: a right value under a wrong key would be wrong data.
    return hashlib.blake2b(f"{source_id}\0{stamp}\0".encode() + value, digest_size=16).digest()


def _is_whole(source_id: Any, stamp: Any, digest: Any, value: Any) -> bool:
    typed = isinstance(source_id, str) and isinstance(stamp, str) and isinstance(value, bytes)
    return typed and bool(digest == _digest(source_id, stamp, value))


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")
