"""Read one site's raw files: each ends as instances (de-identified facts) or as an exclusion with a reason.

Headers are read and checked, pixels are not decoded. No identifier, path or date of a patient is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import cli
from pipeline.datasets.common import Source
from pipeline.datasets.inventory import identify, locate
from pipeline.datasets.registry import load_adapter, load_site
from pipeline.dicom.deidentify import keyed_hash
from pipeline.dicom.headers import IngestParams
from pipeline.dicom.refusal import Refusal
from pipeline.errors import PipelineError, defect
from pipeline.executor import ordered_map
from pipeline.key import load_key
from pipeline.params import check_versions, load_params
from pipeline.tables import Exclusions, Instances, Manifest, read_table, write_table


@dataclass(frozen=True)
class Task:
    """What a worker needs to read one file."""

    adapter: str
    source_id: str
    source: Source
    site: str
    issuer: str
    key: bytes
    policy: IngestParams


@dataclass(frozen=True)
class Outcome:
    """Rows of ``Instances``, or a refusal."""

    rows: tuple[dict[str, Any], ...] = ()
    refusal: Refusal | None = None


def read_source(task: Task) -> Outcome:
    """Read one file; an unexpected error is told by this file's pseudonym, since its path may name a patient."""
    try:
        content = task.source.path.read_bytes()
    except OSError as error:
        return Outcome(refusal=Refusal("unreadable", type(error).__name__))
    try:
        rows = load_adapter(task.adapter).describe(
            task.source, content, site=task.site, issuer=task.issuer, key=task.key, policy=task.policy
        )
    except Refusal as refusal:
        return Outcome(refusal=refusal)
    except Exception as error:
        raise defect("reading", task.source_id, error) from None
    hashed = keyed_hash(task.key, content)
    return Outcome(tuple({**row, "source_id": task.source_id, "source_hmac": hashed} for row in rows))


def settle_duplicates(
    rows: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Refusal], dict[str, str]]:
    """Each SOP instance once: of byte-identical files the first by pseudonym stays, of differing ones none.

    Returns:
        the rows that stay; the refused sources; and for a copy the source that stands for it.
    """
    sources: dict[str, dict[str, str]] = {}
    for row in rows:
        sources.setdefault(row["image_id"], {})[row["source_id"]] = row["source_hmac"]
    refused: dict[str, Refusal] = {}
    kept: dict[str, str] = {}
    for copies in sources.values():
        ordered = sorted(copies)
        if len(set(copies.values())) > 1:
            conflict = Refusal("duplicate_sop_uid", "other files carry this SOP Instance UID with other content")
            refused.update(dict.fromkeys(ordered, conflict))
        else:
            for source_id in ordered[1:]:
                refused.setdefault(source_id, Refusal("duplicate_sop_uid", "byte-identical copy"))
                kept[source_id] = ordered[0]
    return [row for row in rows if row["source_id"] not in refused], refused, kept


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
    sources = identify(adapter, site, args.site, args.params.parent, key)
    located = locate(read_table(Manifest, args.manifest), sources, args.site)
    tasks = [
        Task(site.adapter, source_id, source, args.site, site.issuer or args.site, key, policy)
        for source_id, source in located.items()
    ]
    outcomes: Iterator[Outcome] = ordered_map(
        read_source, tasks, description=f"ingest {args.site}", workers=args.workers
    )
    rows: list[dict[str, Any]] = []
    refused: dict[str, Refusal] = {}
    for task, outcome in zip(tasks, outcomes, strict=True):
        rows.extend(outcome.rows)
        if outcome.refusal is not None:
            refused[task.source_id] = outcome.refusal
    rows, duplicates, kept = settle_duplicates(rows)
    refused |= duplicates
    if not rows:
        counts = pd.Series([refusal.reason for refusal in refused.values()]).value_counts()
        raise PipelineError(f"site {args.site}: none of {len(tasks)} files can be used: {counts.to_dict()}")
    accounted = len({row["source_id"] for row in rows}) + len(refused)
    if accounted != len(tasks):
        raise RuntimeError(f"{len(tasks)} files in the manifest, but {accounted} instances and exclusions")
    _write(args.out, args.site, rows, refused, kept)
    print(f"{args.site}: {len(tasks)} files, {len(rows)} images, {len(refused)} files excluded")


def _write(out: Path, site: str, rows: list[dict[str, Any]], refused: dict[str, Refusal], kept: dict[str, str]) -> None:
    write_table(Instances, rows, out / "instances.parquet")
    exclusions = [
        {
            "source_id": source_id,
            "stage": "ingest",
            "site": site,
            "reason": refusal.reason,
            "detail": refusal.detail,
            "duplicate_of": kept.get(source_id),
        }
        for source_id, refusal in refused.items()
    ]
    write_table(Exclusions, exclusions, out / "exclusions.parquet")


if __name__ == "__main__":
    cli.run(main)
