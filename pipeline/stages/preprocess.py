"""Decode one site's images once and write the arrays a network trains on: VOI, polarity, padding, geometry.

Shards of the last run are kept in .checkpoints/: of a site where one file changed, one file is decoded.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import cli
from pipeline.datasets.common import Source
from pipeline.datasets.inventory import identify, read_regular
from pipeline.datasets.registry import load_adapter, load_site
from pipeline.dicom.deidentify import keyed_hash
from pipeline.dicom.headers import IngestParams
from pipeline.dicom.refusal import Quarantine, Refusal
from pipeline.errors import PipelineError, where_it_arose
from pipeline.executor import ordered_map
from pipeline.imaging.intensity import Grey
from pipeline.imaging.recipe import Frame, PreprocessParams, make_image
from pipeline.imaging.reuse import Entry, KeptShard, LastRun, keep, publish
from pipeline.imaging.store import INDEX_FILE, PlaneFormat, Shard, num_shards, shard_name, write_index, write_planes
from pipeline.imaging.volumes import stack
from pipeline.key import load_key
from pipeline.params import check_versions, load_params
from pipeline.tables.contract import RowWriter, read_table, write_table
from pipeline.tables.files import Exclusions, Instances, Manifest
from pipeline.tables.images import Images
from pipeline.work import code_fingerprint, locked

CHECKPOINTS = Path(".checkpoints") / "preprocess"
_MADE_BY = ("dicom", "datasets", "imaging")  # packages beside this module that decide a plane's bytes
_PACKAGES = ("numpy", "opencv-python-headless", "pydicom", "pylibjpeg-openjpeg", "pylibjpeg-rle", "python-gdcm")
# These may go better the next time, with more memory for one.
_NOT_KEPT = frozenset({"unreadable", "defect"})
_NOT_KEPT_DETAILS = frozenset({"MemoryError", "the decoder crashed"})
_MAX_MADE_BYTES = 2**30  # of one file's planes, which are in memory together


@dataclass(frozen=True)
class Task:
    """What a worker needs for all images of one file.

    ``stamp`` says what file and frames these are; ``expected`` is the keyed hash that the file must have, and the key,
    where the manifest holds hashes (else the time of its last change was compared).
    """

    adapter: str
    source_id: str
    source: Source
    policy: IngestParams
    frames: tuple[Frame, ...]
    params: PreprocessParams
    stamp: str
    expected: tuple[str, bytes] | None = None


@dataclass(frozen=True)
class Made:
    """What became of a file: rows for ``Images`` without the index and planes in order, or its refusal."""

    rows: list[dict[str, Any]]
    planes: list[Grey]
    refusal: tuple[str, str, str] | None = None  # outcome, reason, detail


def make_images(task: Task) -> Made:
    """All images of one file; a file is used whole or not at all.

    An unexpected error is a refusal with outcome "defect" and the line where it arose: it costs this file alone.
    """
    rows: list[dict[str, Any]] = []
    planes: list[Grey] = []
    try:
        if task.params.spacing_mm is not None and not all(frame.known_mm for frame in task.frames):
            raise Quarantine("invalid_spacing", "no pixel spacing, which preprocess.spacing_mm needs")
        size = len(task.frames) * len(task.params.rules) * task.params.size_px**2 * task.params.bits // 8
        if size > _MAX_MADE_BYTES:
            raise Quarantine("decompression_bomb", f"its images make {size} bytes, allowed {_MAX_MADE_BYTES}")
        content = read_regular(task.source, task.policy.max_bytes)
        if task.expected is not None and keyed_hash(task.expected[1], content) != task.expected[0]:
            raise _changed(1)
        numbers = [frame.frame for frame in task.frames]
        images = load_adapter(task.adapter).read_images(content, numbers, task.policy)
        for frame, image in zip(task.frames, images, strict=True):
            row, made = make_image(image, frame, task.params, task.policy.max_pixels)
            rows.append(row)
            planes.extend(made)
    except PipelineError:
        raise
    except MemoryError:
        raise PipelineError(f"out of memory over {task.source_id}; give the machine more, or --workers 1") from None
    except OSError as error:
        return Made([], [], ("rejected", "unreadable", type(error).__name__))
    except Refusal as refused:
        return Made([], [], (refused.outcome, refused.reason, refused.detail))
    except Exception as error:
        return Made([], [], ("defect", "defect", f"{type(error).__name__} at {where_it_arose(error)}"))
    return Made(rows, planes)


def decoder_died(task: Task) -> Made:
    """A file whose decoder took its process down, twice."""
    del task
    return Made([], [], ("rejected", "decode_error", "the decoder crashed"))


@dataclass
class Written:
    """What has become of a site so far."""

    rows: RowWriter = field(default_factory=lambda: RowWriter(Images))
    first_planes: list[int] = field(default_factory=list)  # of each image, its number in the store
    refused: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    planes: int = 0

    def add(self, kept: KeptShard, planes_per_image: int) -> None:
        """Take a shard that is whole."""
        for source_id, entry in kept.entries.items():
            if entry.refusal is not None:
                outcome, reason, detail = entry.refusal
                self.refused[source_id] = (outcome, reason, detail)
            for position, row in enumerate(entry.rows):
                self.rows.add([{**row, "array_index": len(self.first_planes)}])
                self.first_planes.append(self.planes + entry.first + position * planes_per_image)
        self.shards.append(kept.shard)
        self.planes += kept.shard.planes


def make_shards(
    folder: Path, tasks: Sequence[Task], form: PlaneFormat, planes_per_image: int, site: str, workers: int | None
) -> Written:
    """All shards of a site, in ``folder``: as they are where nothing in them changed, else of old and new planes.

    A file's pseudonym says which shard it is in, so that files that come and go leave the others' shards alone.
    """
    count = num_shards(sum(len(task.frames) for task in tasks) * planes_per_image, form)
    last = LastRun(folder, form, f"check {site}")
    missing = [task for task in tasks if not last.has(task.source_id, task.stamp)]
    fresh = ordered_map(
        make_images, missing, description=f"preprocess {site}", name_of=attrgetter("source_id"), isolate=True,
        on_death=decoder_died, workers=workers,
    )  # fmt: skip
    written = Written()
    with closing(fresh):
        for number, group in groupby(tasks, key=lambda task: int(task.source_id[:4], 16) * count >> 16):
            written.add(
                _make_shard(folder / shard_name(number, count), list(group), last, fresh, form), planes_per_image
            )
        for _ in fresh:  # it ends after its last result: workers close, the bar stands at its end
            raise RuntimeError("more results than files")
    return written


def _make_shard(path: Path, tasks: list[Task], last: LastRun, fresh: Iterator[Made], form: PlaneFormat) -> KeptShard:
    kept = last.shard_of(path.name, {task.source_id: task.stamp for task in tasks})
    if kept is not None:
        return kept
    entries: dict[str, Entry] = {}

    def planes() -> Iterator[Grey]:
        first = 0
        for task in tasks:
            if last.has(task.source_id, task.stamp):
                entry, pixels = last.get(task.source_id)
                entries[task.source_id] = entry._replace(first=first)
                yield from pixels
            else:
                made = next(fresh)
                refusal = list(made.refusal) if made.refusal else None
                stamp = "" if _may_go_better(made) else task.stamp
                entries[task.source_id] = Entry(stamp, first, len(made.planes), made.rows, refusal)
                yield from made.planes
            first += entries[task.source_id].planes

    made = KeptShard(write_planes(planes(), form, path), entries)
    keep(path.parent, made)
    return made


def _may_go_better(made: Made) -> bool:
    return made.refusal is not None and (made.refusal[1] in _NOT_KEPT or made.refusal[2] in _NOT_KEPT_DETAILS)


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        ingest="the site's folder of ingest",
        manifest="the site's manifest",
        out="folder for arrays and index",
    )
    arguments.add_argument("--site", required=True)
    arguments.add_argument("--workers", type=int, help="processes; changes no result")
    args = arguments.parse_args()
    check_versions("numpy", "opencv-python-headless", "pydicom", path=args.params)
    params = load_params(PreprocessParams, "preprocess", args.params)
    key = load_key(args.params)
    adapter, site = load_site(args.site, args.params)
    base = args.params.parent
    sources = identify(adapter, site, args.site, base, key)
    instances = read_table(Instances, args.ingest / "instances.parquet")
    policy = load_params(IngestParams, "ingest", args.params)
    tasks = make_tasks(instances, sources, site.adapter, policy, params)
    tasks = unchanged(tasks, read_table(Manifest, args.manifest), key)
    form = PlaneFormat(params.size_px, params.bits)
    package = Path(__file__).parents[1]
    context = [
        code_fingerprint([Path(__file__), *(package / name for name in _MADE_BY)]),
        params.model_dump(),
        policy.model_dump(),
        [sys.version, *map(version, _PACKAGES)],
    ]
    digest = hashlib.sha256(json.dumps([args.site, site.adapter, context], sort_keys=True).encode()).hexdigest()
    checkpoints = base / CHECKPOINTS
    with locked(checkpoints, args.site):
        folder = _only(checkpoints, args.site, digest[:32])
        written = make_shards(folder, tasks, form, len(params.rules), args.site, args.workers)
        images = written.rows.finish().to_pandas()
        first_planes = np.array(written.first_planes, np.int64)
        if params.neighbours > 1:
            images, channels, unstacked = stack(images, first_planes, instances, params.neighbours)
            written.refused |= dict.fromkeys(unstacked, ("quarantined", "inconsistent_geometry", "not a whole series"))
        else:
            channels = first_planes[:, None] + np.arange(len(params.rules))
        if not len(images):
            counts = Counter(reason for _, reason, _ in written.refused.values())
            raise PipelineError(
                f"site {args.site}: none of {len(tasks)} files can be used: {dict(sorted(counts.items()))}"
            )
        publish(folder, written.shards, args.out)
    write_index([shard for shard in written.shards if shard.planes], channels, form, args.out)
    write_table(Images, images, args.out / INDEX_FILE)
    _write_exclusions(written.refused, args.site, args.out)
    print(f"{args.site}: {len(images)} images of {params.size_px} px, {len(written.refused)} files excluded")


def _write_exclusions(refused: Mapping[str, tuple[str, str, str]], site: str, out: Path) -> None:
    rows = [
        {
            "source_id": source_id, "stage": "preprocess", "site": site,
            "outcome": outcome, "reason": reason, "detail": detail,
        }
        for source_id, (outcome, reason, detail) in refused.items()
    ]  # fmt: skip
    write_table(Exclusions, rows, out / "exclusions.parquet")
    for row in rows:
        if row["outcome"] == "defect":
            print(f"DEFECT over source {row['source_id']}: {row['detail']}; please report it", file=sys.stderr)


def unchanged(tasks: Sequence[Task], manifest: pd.DataFrame, key: bytes) -> list[Task]:
    """The tasks, their files as the manifest has them: by size and time here, by hash when they are read.

    Raises:
        PipelineError: files changed since ingest read them.
    """
    columns = ["source_id", "size_bytes", "modified_ns", "source_hmac"]
    listed = {row[0]: row[1:] for row in manifest[columns].astype(object).itertuples(index=False, name=None)}
    checked, changed = [], 0
    for task in tasks:
        size, modified, hashed = listed.get(task.source_id, (None, None, None))
        if hashed is not None and not pd.isna(hashed):
            checked.append(replace(task, expected=(hashed, key)))
            continue
        try:
            status = task.source.path.stat()
            changed += (status.st_size, status.st_mtime_ns) != (size, modified)
        except OSError:  # told of the file itself
            pass
        checked.append(task)
    if changed:
        raise _changed(changed)
    return checked


def _changed(count: int) -> PipelineError:
    return PipelineError(
        f"{count} files are not what ingest read: they changed since. Run `python -m pipeline.commands.inventory`, "
        "then `dvc repro`"
    )


def make_tasks(
    instances: pd.DataFrame, sources: Mapping[str, Source], adapter: str, policy: IngestParams, params: PreprocessParams
) -> list[Task]:
    """A task a file, in the order of their pseudonyms.

    Raises:
        PipelineError: a file is no longer there.
    """
    ordered = instances.sort_values(["source_id", "frame"])
    # Near 45 degrees rounding decides between two directions: one series is turned one way or not at all.
    ways = ordered.groupby("series_id")["orientation"].transform("nunique")
    ordered["orientation"] = ordered["orientation"].where(~(ways > 1).fillna(False))
    spacings = ["row_spacing_mm", "column_spacing_mm", "imager_row_spacing_mm", "imager_column_spacing_mm"]
    columns = ["source_id", "source_hmac", "image_id", "frame", "modality", "orientation", *spacings]
    rows = ordered[columns].astype({"orientation": object, "modality": object}).to_dict("records")
    tasks = []
    for source_id, group in groupby(rows, key=lambda row: row["source_id"]):
        if source_id not in sources:
            raise PipelineError("the raw folder has changed since ingest; run `dvc repro` from ingest on")
        of_file = list(group)
        frames = tuple(_frame(row, [row[name] for name in spacings], params) for row in of_file)
        told = json.dumps([of_file[0]["source_hmac"], [list(vars(frame).values()) for frame in frames]])
        stamp = hashlib.sha256(told.encode()).hexdigest()[:32]
        tasks.append(Task(adapter, source_id, sources[source_id], policy, frames, params, stamp))
    return tasks


def _frame(row: Mapping[str, Any], spacings: Sequence[float], params: PreprocessParams) -> Frame:
    """Spacing in the patient, else at the detector (as millimetres where that is asked for), else square pixels."""
    patient, detector = (tuple(map(float, pair)) for pair in (spacings[:2], spacings[2:]))
    in_patient, at_detector = (bool(np.isfinite(pair).all()) for pair in (patient, detector))
    row_spacing, column_spacing = patient if in_patient else detector if at_detector else (1.0, 1.0)
    # Mammograms are hung by breast, not by side.
    turned = params.orientation == "standard" and row["modality"] != "mg" and not pd.isna(row["orientation"])
    return Frame(
        row["image_id"], int(row["frame"]), row_spacing, column_spacing,
        in_patient or (at_detector and params.detector_spacing), row["orientation"] if turned else None,
    )  # fmt: skip


def _only(checkpoints: Path, site: str, digest: str) -> Path:
    """The folder of this site and context; those of other contexts are deleted."""
    folder = checkpoints / f"{site}-{digest}"
    for other in checkpoints.glob(f"{site}-*"):
        if other != folder and other.is_dir():
            for path in other.iterdir():
                path.unlink()
            other.rmdir()
    folder.mkdir(mode=0o700, exist_ok=True)
    for left in folder.glob("*.part"):
        left.unlink()
    return folder


if __name__ == "__main__":
    cli.run(main)
