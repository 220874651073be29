"""Why was this file refused? One JSON line per file under the given paths, with the verdict of the stages.

Each line holds the path as it was given, `outcome` (accepted, rejected, quarantined; "defect" is an error of ours to
be reported), `reason` and `detail`, `notes` (what was repaired), and where the pixels can be decoded the `shape`
(frames, rows, columns[, 3]), `minimum`, `maximum` and `sha256` of the modality array (little-endian float32, C order),
and facts of the header that name nobody. What needs other files (duplicates, the geometry of a series) is judged by
`ingest` alone.
The lines are for the person at the keyboard: the paths in them may name a patient.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import cli
from pipeline.datasets.common import Source, walk_files
from pipeline.datasets.inventory import TooLargeError, read_regular
from pipeline.dicom import headers, pixels
from pipeline.dicom.headers import IngestParams
from pipeline.dicom.refusal import Refusal
from pipeline.errors import PipelineError, where_it_arose
from pipeline.executor import ordered_map
from pipeline.params import load_params, read_params_file


@dataclass(frozen=True)
class Task:
    """A file to look at; ``shown`` is its path as it is to be printed."""

    shown: str
    source: Source
    policy: IngestParams
    array: Path | None = None


def verdict(task: Task) -> dict[str, Any]:
    """What the stages make of one file, and what its pixels are."""
    found: dict[str, Any] = {
        "path": task.shown, "outcome": "accepted", "reason": None, "detail": None, "notes": [],
        "shape": None, "minimum": None, "maximum": None, "sha256": None, "facts": None,
    }  # fmt: skip
    try:
        _look(task, found)
    except Refusal as refusal:
        found |= {"outcome": refusal.outcome, "reason": refusal.reason, "detail": refusal.detail or None}
    except Exception as error:
        detail = f"{type(error).__name__} at {where_it_arose(error)}; please report it"
        found |= {"outcome": "defect", "reason": "defect", "detail": detail}
    return found


def _look(task: Task, found: dict[str, Any]) -> None:
    try:
        content = read_regular(task.source, task.policy.max_bytes)
    except TooLargeError as error:
        raise Refusal("decompression_bomb", f"{error.size_bytes} bytes, allowed {task.policy.max_bytes}") from None
    except OSError as error:
        raise Refusal("unreadable", task.source.obstacle or type(error).__name__) from None
    parsed, fmt = headers.read_header(content, task.policy)
    found["facts"] = headers.public_facts(parsed, fmt)
    kept_out = None
    try:
        headers.check_policy(parsed, fmt, task.policy)
    except Refusal as refusal:
        if refusal.outcome != "quarantined":
            raise
        kept_out = refusal
    # A quarantined file can be read: what it shows helps the person who decides.
    array = pixels.modality_array(parsed, fmt)
    found["notes"] = sorted(parsed.notes | fmt.notes if kept_out else headers.file_notes(parsed, fmt))
    found["shape"] = list(array.shape)
    found["minimum"], found["maximum"] = (_number(value) for value in (array.min(), array.max()))
    found["sha256"] = hashlib.sha256(np.ascontiguousarray(array, dtype="<f4").data).hexdigest()
    if task.array is not None:
        with task.array.open("wb") as file:
            np.save(file, array.astype("<f4", copy=False), allow_pickle=False)
    if kept_out is not None:
        raise kept_out


def _number(value: np.float32) -> float | None:
    """As JSON has it: no NaN, no infinity."""
    return float(value) if np.isfinite(value) else None


def find(paths: list[Path], policy: IngestParams, array: Path | None) -> Iterator[Task]:
    """The files under the given paths; a path itself may be a file of any kind."""
    for path in paths:
        if path.is_dir():
            for source in walk_files(path):
                yield Task(os.path.join(path, source.relative), source, policy, array)  # noqa: PTH118 - as given
        elif path.exists() or path.is_symlink():
            yield Task(str(path), Source(path.name, path), policy, array)
        else:
            raise PipelineError("one of the paths is not there")


def died(task: Task) -> dict[str, Any]:
    """The verdict on a file whose decoder took its process down."""
    return {
        "path": task.shown, "outcome": "rejected", "reason": "decode_error", "detail": "the decoder crashed",
        "notes": [], "shape": None, "minimum": None, "maximum": None, "sha256": None, "facts": None,
    }  # fmt: skip


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files and folders")
    arguments.add_argument("--array", type=Path, metavar="OUT.npy", help="write the modality array of the one file")
    arguments.add_argument("--workers", type=int, help="processes; changes no line")
    args = arguments.parse_args()
    policy = _policy(args)
    tasks = list(find(args.paths, policy, args.array))
    if args.array is not None and len(tasks) != 1:
        raise PipelineError(f"--array is for one file; the paths hold {len(tasks)}")
    results = ordered_map(
        verdict,
        tasks,
        description="inspect",
        workers=args.workers,
        isolate=True,
        on_death=died,
        name_of=lambda t: t.shown,
    )
    for found in results:
        # In ASCII: a name that is not UTF-8 stands as the lone surrogates that Python's file functions take back.
        print(json.dumps(found, allow_nan=False), flush=True)


def _policy(args: argparse.Namespace) -> IngestParams:
    """The study's policy; outside of a study, where no params.yaml is and none was asked for, the defaults."""
    if args.params == Path("params.yaml") and not args.params.exists():
        return IngestParams()
    if "ingest" not in read_params_file(args.params):
        return IngestParams()
    return load_params(IngestParams, "ingest", args.params)


if __name__ == "__main__":
    cli.run(main)
