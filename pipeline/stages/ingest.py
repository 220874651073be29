"""Read one site's raw files: each ends as instances (de-identified facts) or as an exclusion with a reason.

Headers are read and checked, pixels are not decoded. No identifier, path or date of a patient is written. What was read
is kept in .checkpoints/, without identifiers: an interrupted run goes on where it stopped, and a file that has not
changed is not read again. With PIPELINE_SCHEDULER=tcp://... the files are read by the workers of a Dask cluster.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import cli
from pipeline.datasets.common import Source
from pipeline.datasets.inventory import TooLargeError, identify, locate, read_regular
from pipeline.datasets.registry import load_adapter, load_site
from pipeline.dicom.deidentify import keyed_hash
from pipeline.dicom.geometry import Plane, Slice, series_geometry
from pipeline.dicom.headers import IngestParams
from pipeline.dicom.refusal import Quarantine, Refusal
from pipeline.errors import PipelineError, where_it_arose
from pipeline.executor import ordered_map
from pipeline.key import fingerprint, load_key
from pipeline.params import check_versions, load_params
from pipeline.scratch import Scratch
from pipeline.tables.contract import RowWriter, read_table, write_table
from pipeline.tables.files import Deidentification, Exclusions, Instances, Manifest, Notes
from pipeline.withdrawn import read_withdrawn
from pipeline.work import code_fingerprint

CHECKPOINTS = Path(".checkpoints") / "ingest"
_READS_WITH = ("dicom", "datasets")  # packages beside this module that decide what is made of a file


class Task(NamedTuple):
    """A file to read; ``stamp`` is what the manifest knows of it."""

    source_id: str
    source: Source
    stamp: str


@dataclass(frozen=True)
class Reader:
    """What all of a site's files are read with."""

    adapter: str
    site: str
    issuer: str
    key: bytes
    policy: IngestParams


def read_source(reader: Reader, task: Task) -> dict[str, Any]:
    """Read one file.

    Returns:
        What JSON holds: ``size`` and ``hmac`` of the file, and either ``rows``, ``planes``, ``notes`` and
        ``treatments`` (see ``headers.Description``) or ``refusal`` (outcome, reason, detail). An unexpected error
        is a ``refusal`` with outcome and reason "defect" and the line where it arose: it costs this file alone, and
        is told as what it is.
    """
    try:
        content = read_regular(task.source, reader.policy.max_bytes)
    except TooLargeError as error:
        detail = f"{error.size_bytes} bytes, allowed {reader.policy.max_bytes}"
        return _refused(Refusal("decompression_bomb", detail), error.size_bytes)
    except OSError as error:
        return _refused(Refusal("unreadable", task.source.obstacle or type(error).__name__), -1)
    try:
        described = load_adapter(reader.adapter).describe(
            task.source, content, site=reader.site, issuer=reader.issuer, key=reader.key, policy=reader.policy
        )
    except Refusal as refusal:
        return _refused(refusal, len(content), keyed_hash(reader.key, content))
    except MemoryError:
        raise PipelineError(f"out of memory over {task.source_id}; give the machine more, or --workers 1") from None
    except Exception as error:
        detail = f"{type(error).__name__} at {where_it_arose(error)}"
        return {"size": len(content), "hmac": None, "refusal": ["defect", "defect", detail]}
    planes = described.planes
    return {
        "size": len(content),
        "hmac": keyed_hash(reader.key, content),
        "rows": described.rows,
        "planes": [plane and [list(plane.position), list(plane.orientation), plane.stack] for plane in planes],
        "notes": sorted(described.notes),
        "treatments": [[*pair, count] for pair, count in sorted(described.treatments.items())],
    }


def _refused(refusal: Refusal, size_bytes: int, hmac: str | None = None) -> dict[str, Any]:
    return {"size": size_bytes, "hmac": hmac, "refusal": [refusal.outcome, refusal.reason, refusal.detail]}


def settle_duplicates(
    copies: Mapping[str, Mapping[str, str]], policy: IngestParams
) -> tuple[dict[str, Refusal], dict[str, str]]:
    """Each SOP instance once: of byte-identical files the first by pseudonym stays, of differing ones none.

    Args:
        copies: image to its sources, and their keyed hashes.
        policy: may let one of the differing ones stay.

    Returns:
        The sources that do not stay, and for a copy the source that stands for it.
    """
    refused: dict[str, Refusal] = {}
    kept: dict[str, str] = {}
    for hashes in copies.values():
        ordered = sorted(hashes)
        if len(set(hashes.values())) > 1 and policy.conflicting_duplicates == "first":
            other = Refusal("duplicate_sop_uid", "another file with this SOP Instance UID was kept, by policy")
            refused.update(dict.fromkeys(ordered[1:], other))
        elif len(set(hashes.values())) > 1:
            conflict = Quarantine("duplicate_sop_uid", "other files carry this SOP Instance UID with other content")
            refused.update(dict.fromkeys(ordered, conflict))
        else:
            for source_id in ordered[1:]:
                refused.setdefault(source_id, Refusal("duplicate_sop_uid", "byte-identical copy"))
                kept[source_id] = ordered[0]
    return refused, {copy: first for copy, first in kept.items() if first not in refused}


Place = tuple[int, float, float | None]  # of a slice in its series: index, position in mm, the series' spacing in mm
Profile = tuple[tuple[str, str, int], ...]  # action, treatment, number of elements


@dataclass
class Found:
    """What a site's files come to, before they are compared with each other."""

    instances: RowWriter = field(default_factory=lambda: RowWriter(Instances))
    refused: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # source to outcome, reason, detail
    slices: dict[str, dict[str, list[Slice]]] = field(default_factory=dict)  # series to source to slices
    notes: dict[str, list[str]] = field(default_factory=dict)
    treatments: dict[str, Profile] = field(default_factory=dict)


def read_all(
    reader: Reader, tasks: Sequence[Task], scratch: Scratch, *, workers: int | None
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """The outcome of each file in order: from the scratch where it has it, else read now and kept there.

    Raises:
        PipelineError: at the end, if a file is not what the manifest says, which is all that DVC sees of it.
    """
    stamps = scratch.stamps()
    missing = [task for task in tasks if stamps.get(task.source_id) != task.stamp]
    fresh = ordered_map(
        partial(read_source, reader), missing, description=f"ingest {reader.site}", workers=workers,
        name_of=attrgetter("source_id"), on_death=reader_died,
    )  # fmt: skip
    changed = 0
    for task in tasks:
        kept = scratch.get(task.source_id, task.stamp) if stamps.get(task.source_id) == task.stamp else None
        if kept is not None:
            yield task, kept
            continue
        # What the scratch had and has lost (a damaged page) is read here, without a worker.
        outcome = read_source(reader, task) if stamps.get(task.source_id) == task.stamp else next(fresh)
        if _differs(task, outcome):
            changed += 1
        elif outcome["size"] >= 0 and outcome.get("refusal", [""])[0] != "defect":
            # What could not be read, or met an error of ours, may go better the next time.
            scratch.put(task.source_id, task.stamp, outcome)
        yield task, outcome
    for _ in fresh:  # it ends after its last result: workers close, the bar stands at its end
        raise RuntimeError("more results than files")
    if changed:
        raise PipelineError(
            f"{changed} files are not what the manifest says: they changed after it was written. Run "
            "`python -m pipeline.commands.inventory`, then `dvc repro`"
        )


def reader_died(task: Task) -> dict[str, Any]:
    """A file over which a process died, twice; nothing is decoded here, so that is a defect."""
    del task
    return {"size": -1, "hmac": None, "refusal": ["defect", "defect", "the reading process died"]}


def collect(outcomes: Iterable[tuple[Task, dict[str, Any]]], withdrawn: frozenset[str]) -> Found:
    """Bring all files' outcomes together, those of withdrawn patients left out."""
    found = Found()
    profiles: dict[Profile, Profile] = {}  # files of one scanner have one profile: it is kept once
    for (source_id, _, _), outcome in outcomes:
        if "refusal" in outcome:
            outcome_name, reason, detail = outcome["refusal"]
            found.refused[source_id] = (outcome_name, reason, detail)
            continue
        rows = [{**row, "source_id": source_id, "source_hmac": outcome["hmac"]} for row in outcome["rows"]]
        if rows[0]["patient_id"] in withdrawn:
            found.refused[source_id] = ("unused", "patient_withdrawn", "")
            continue
        found.instances.add(rows)
        for row, plane in zip(rows, outcome["planes"], strict=True):
            if plane is not None and row["series_id"] is not None:
                found.slices.setdefault(row["series_id"], {}).setdefault(source_id, []).append(_slice(row, plane))
        if outcome["notes"]:
            found.notes[source_id] = outcome["notes"]
        profile = tuple((action, treatment, count) for action, treatment, count in outcome["treatments"])
        found.treatments[source_id] = profiles.setdefault(profile, profile)
    return found


def repeated_images(instances: pa.Table) -> dict[str, dict[str, str]]:
    """The images that several files hold, with those files and their keyed hashes."""
    counts = instances.group_by("image_id").aggregate([("image_id", "count")])
    repeated = counts.filter(pc.greater(counts["image_id_count"], 1))["image_id"]
    rows = instances.select(["image_id", "source_id", "source_hmac"]).filter(pc.is_in(instances["image_id"], repeated))
    copies: dict[str, dict[str, str]] = {}
    for row in rows.to_pylist():
        copies.setdefault(row["image_id"], {})[row["source_id"]] = row["source_hmac"]
    return copies


def settle(found: Found, instances: pa.Table, policy: IngestParams) -> tuple[dict[str, Place], dict[str, str]]:
    """Compare files with each other: duplicates first, then each series' geometry; adds to ``found.refused``.

    Returns:
        Image to (index, position, spacing) in its series; and copies to the sources that stand for them.
    """
    duplicates, kept = settle_duplicates(repeated_images(instances), policy)
    found.refused |= {source: (r.outcome, r.reason, r.detail) for source, r in duplicates.items()}
    places: dict[str, Place] = {}
    for by_source in found.slices.values():
        sources = [source_id for source_id in sorted(by_source) if source_id not in found.refused]
        slices = [one for source_id in sources for one in by_source[source_id]]
        if not slices:
            continue
        geometry = series_geometry(slices)
        if geometry.flaws and policy.inconsistent_geometry == "quarantine":
            flaw = ("quarantined", "inconsistent_geometry", "in the series: " + ", ".join(geometry.flaws))
            found.refused |= dict.fromkeys(sources, flaw)
        for index, (image_id, position) in enumerate(zip(geometry.order, geometry.positions_mm, strict=True)):
            places[image_id] = (index, position, geometry.spacing_mm)
    return places, kept


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(__doc__, manifest="the site's manifest", out="folder for instances and exclusions")
    arguments.add_argument("--site", required=True)
    arguments.add_argument("--workers", type=int, help="processes; changes no result")
    args = arguments.parse_args()
    check_versions("pydicom", path=args.params)
    policy = load_params(IngestParams, "ingest", args.params)
    key = load_key(args.params)
    adapter, site = load_site(args.site, args.params)
    base = args.params.parent
    withdrawn = read_withdrawn(base)
    sources = identify(adapter, site, args.site, base, key)
    manifest = read_table(Manifest, args.manifest)
    located = locate(manifest, sources, args.site)
    stamps = dict(zip(manifest["source_id"], _stamps(manifest), strict=True))
    tasks = [Task(source_id, source, _stamp(stamps[source_id], source, key)) for source_id, source in located.items()]
    reader = Reader(site.adapter, args.site, site.issuer or args.site, key, policy)
    context = {
        "code": code_fingerprint([Path(__file__), *(Path(__file__).parents[1] / name for name in _READS_WITH)]),
        "policy": policy.model_dump(),
        "site": [args.site, site.adapter, site.issuer],
        "key": fingerprint(key),
        "versions": [sys.version, version("pydicom")],
    }
    with Scratch(base / CHECKPOINTS, args.site, context) as scratch:
        found = collect(read_all(reader, tasks, scratch, workers=args.workers), withdrawn.patients)
        scratch.prune(task.source_id for task in tasks)
    instances = found.instances.finish()
    places, kept = settle(found, instances, policy)
    _write(found, instances, places, kept, args.site, args.out, num_files=len(tasks))
    for source_id, (outcome, _, detail) in found.refused.items():
        if outcome == "defect":
            print(
                f"DEFECT over source {source_id}: {detail}; please report it. "
                f"`python -m pipeline.commands.inventory --find {source_id}` names the file",
                file=sys.stderr,
            )


def _write(
    found: Found, instances: pa.Table, places: Mapping[str, Place], kept: Mapping[str, str], site: str, out: Path,
    num_files: int,
) -> None:  # fmt: skip
    refused = found.refused
    used = pc.invert(pc.is_in(instances["source_id"], value_set=pa.array(sorted(refused), pa.string())))
    instances = instances.filter(used)
    num_used = pc.count_distinct(instances["source_id"]).as_py()
    if num_used + len(refused) != num_files:
        raise RuntimeError(f"{num_files} files in the manifest, but {num_used} used and {len(refused)} excluded")
    if not num_used:
        counts = Counter(reason for _, reason, _ in refused.values())
        raise PipelineError(f"site {site}: none of {num_files} files can be used: {dict(sorted(counts.items()))}")
    images = instances["image_id"].to_pylist()
    for position, name in enumerate(("slice_index", "slice_position_mm", "slice_spacing_mm")):
        values = [places[image][position] if image in places else None for image in images]
        column = pa.array(values, Instances.columns[name])
        instances = instances.set_column(instances.schema.get_field_index(name), name, column)
    write_table(Instances, instances, out / "instances.parquet")
    exclusions = RowWriter(Exclusions)
    exclusions.add(
        {
            "source_id": source_id, "stage": "ingest", "site": site, "outcome": outcome, "reason": reason,
            "detail": detail, "duplicate_of": kept.get(source_id),
        }
        for source_id, (outcome, reason, detail) in refused.items()
    )  # fmt: skip
    write_table(Exclusions, exclusions.finish(), out / "exclusions.parquet")
    write_table(Notes, _note_rows(found, site), out / "notes.parquet")
    write_table(Deidentification, _treatment_rows(found, site), out / "deidentification.parquet")
    outcomes = Counter(outcome for outcome, _, _ in refused.values())
    told = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())) or "none left out"
    print(f"{site}: {num_files} files, {len(images)} images of {num_used} files; {told}")


def _note_rows(found: Found, site: str) -> list[dict[str, Any]]:
    used = (notes for source_id, notes in found.notes.items() if source_id not in found.refused)
    counts = Counter(note for notes in used for note in notes)
    return [{"site": site, "note": note, "num_files": count} for note, count in counts.items()]


def _treatment_rows(found: Found, site: str) -> list[dict[str, Any]]:
    elements: Counter[tuple[str, str]] = Counter()
    files: Counter[tuple[str, str]] = Counter()
    used = (profile for source_id, profile in found.treatments.items() if source_id not in found.refused)
    for profile, number in Counter(used).items():
        for action, treatment, count in profile:
            elements[action, treatment] += count * number
            files[action, treatment] += number
    return [
        {"site": site, "action": kind[0], "treatment": kind[1], "num_elements": count, "num_files": files[kind]}
        for kind, count in elements.items()
    ]


def _slice(row: Mapping[str, Any], plane: Sequence[Any]) -> Slice:
    position, orientation, stack = plane
    return Slice(
        row["image_id"], Plane(tuple(position), tuple(orientation), stack), row["rows"], row["columns"],
        row["row_spacing_mm"], row["column_spacing_mm"],
    )  # fmt: skip


def _stamps(manifest: pd.DataFrame) -> list[str]:
    """What the manifest knows of each file: another stamp, another file."""
    columns = ["size_bytes", "modified_ns", "source_hmac"]
    return ["|".join("" if value is pd.NA else str(value) for value in row) for row in manifest[columns].values]


def _stamp(listed: str, source: Source, key: bytes) -> str:
    """The manifest's stamp, and what a table says of the file where the adapter reads one."""
    facts = json.dumps(dict(source.facts), sort_keys=True).encode() if source.facts else b""
    return listed + ("|" + keyed_hash(key, facts) if facts else "")


def _differs(task: Task, outcome: Mapping[str, Any]) -> bool:
    """Whether the file that was read is another one than the manifest lists."""
    size, _, hashed = task.stamp.split("|")[:3]
    if outcome["size"] < 0:  # it could not be read, and the manifest need not have noticed
        return False
    return outcome["size"] != int(size) or bool(hashed and outcome["hmac"] and outcome["hmac"] != hashed)


if __name__ == "__main__":
    cli.run(main)
