"""The frame of every stage and command: help from the docstring, paths as arguments, errors in words."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.errors import PipelineError


def parser(doc: str | None, **paths: str) -> argparse.ArgumentParser:
    """A parser with the docstring as its help, one required path option per keyword, and ``--params``.

    Args:
        doc: the module's docstring.
        paths: option name to help text; ``in_`` stands for ``--in``.
    """
    lines = (doc or "").strip()
    made = argparse.ArgumentParser(description=lines, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in paths.items():
        option = "--" + name.rstrip("_").replace("_", "-")
        made.add_argument(option, dest=name, type=Path, required=True, metavar="PATH", help=text)
    made.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="PATH", help="default: params.yaml")
    return made


def run(main: Callable[[], None]) -> None:
    """Call ``main``; an expected error ends in its text and exit code 2, a defect in its traceback.

    Full disks and missing rights are the machine's, not ours, and are told in one line as well.
    """
    try:
        main()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (FileNotFoundError, PermissionError, OSError) as error:
        if error.errno is None:
            raise
        # str(error) would quote a raw file's name, which can be a patient's.
        print(
            f"error: {os.strerror(error.errno)} (in {main.__module__}, {type(error).__name__})",
            file=sys.stderr,
        )
        sys.exit(2)


def prune(parent: Path, keep: Iterable[str]) -> None:
    """Delete what a removed site, backbone or method left in a folder that a joint stage depends on."""
    names = set(keep)
    if parent.is_dir():
        for entry in parent.iterdir():
            if entry.name not in names:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
