"""Folders of partial work under .checkpoints/: one process at a time, and known by the code that made what is there."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import PipelineError

_CODE_SUFFIXES = frozenset({".py", ".txt", ".csv"})


def code_fingerprint(packages: Sequence[Path]) -> str:
    """SHA-256 in hexadecimal digits over names and bytes of code and vocabulary files (.py, .txt, .csv).

    Args:
        packages: folders, of which all such files at any depth count, and files.

    Raises:
        FileNotFoundError: one is not there.
    """
    total = hashlib.sha256()
    for package in packages:
        inside = package.rglob("*") if package.is_dir() else [package]
        files = {path.relative_to(package.parent).as_posix(): path for path in inside if path.suffix in _CODE_SUFFIXES}
        if not files:
            raise FileNotFoundError(2, "no code files", str(package))
        for name, path in sorted(files.items()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{name}\n{digest}\n".encode())
    return total.hexdigest()


def locked(folder: Path, name: str) -> FileLock:
    """A lock on a site's part of a folder of checkpoints, held already; a context manager.

    Raises:
        PipelineError: another process holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock", timeout=0, mode=0o600, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise PipelineError(
            f"another process is at work on {name} in {folder} (a run that still goes on?); wait for it, or stop it"
        ) from None
    return lock
