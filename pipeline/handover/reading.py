"""New files as a study's own ``ingest`` and ``preprocess`` make them into arrays, in a folder that is gone after.

Nothing here needs torch: the worker processes import what this module does, and torch alone takes them seconds.
"""

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.datasets import image_folder
from pipeline.datasets.common import Source, walk_files
from pipeline.datasets.inventory import read_regular
from pipeline.dicom.deidentify import keyed_hash, pseudonym
from pipeline.errors import PipelineError
from pipeline.executor import ordered_map
from pipeline.handover.seen import Seen, header_misfits, window_misfit
from pipeline.imaging.intensity import Grey
from pipeline.imaging.recipe import PreprocessParams
from pipeline.imaging.store import INDEX_FILE, PlaneFormat, shard_name, write_index, write_planes
from pipeline.imaging.volumes import stack
from pipeline.params import parse
from pipeline.stages.ingest import Reader, collect, read_source, reader_died, settle
from pipeline.stages.ingest import Task as Reading
from pipeline.stages.preprocess import Made, Task, decoder_died, make_images, make_tasks
from pipeline.tables.contract import make_table, plain_text, read_table, write_table
from pipeline.tables.files import Instances
from pipeline.tables.images import Images

ADAPTERS = {"dicom": "dicom_folder", "raster": "image_folder"}
Unlike = Literal["refuse", "tell"]


@dataclass
class Funnel:
    """What becomes of the files: those refused, as stage, outcome, reason and detail by source; and misfits told."""

    sources: Mapping[str, Source]
    refused: dict[str, tuple[str, str, str, str]] = field(default_factory=dict)
    unlike: dict[str, set[str]] = field(default_factory=dict)

    def refuse(self, stage: str, refused: Mapping[str, tuple[str, str, str]]) -> None:
        """Take what a stage left out."""
        self.refused |= {source_id: (stage, *why) for source_id, why in refused.items()}

    def misfit(self, source_id: str, reasons: Mapping[str, str], unlike: Unlike) -> None:
        """A file that is unlike the training images: refused by the first reason, or told with all."""
        if unlike == "tell":
            self.unlike.setdefault(source_id, set()).update(reasons)
        elif reasons:
            reason, detail = next(iter(reasons.items()))
            self.refused[source_id] = ("apply", "rejected", reason, detail)

    def rows(self) -> list[dict[str, str]]:
        """Rows of ``tables.handover.Refused``."""
        columns = ("stage", "outcome", "reason", "detail")
        return [{"source_id": name, **dict(zip(columns, why, strict=True))} for name, why in self.refused.items()]


def find_files(folder: Path, kind: str, key: bytes, site: str, patient: str | None) -> dict[str, Source]:
    """Every file below a folder by its pseudonym, the links and pipes too.

    Args:
        folder: that a person named.
        kind: "dicom" or "raster".
        key: of the pseudonyms.
        site: the name that stands for where the files come from.
        patient: of PNG and JPEG files, a pattern with a group "patient"; None takes every file for a patient.

    Raises:
        PipelineError: there is none.
    """
    if kind == "raster":
        whose: Any = (
            "file" if patient is None else parse(image_folder.PatientPattern, {"pattern": patient}, "--patient")
        )
        labels = image_folder.Labels(file="", columns={})
        entry = image_folder.Params(adapter="image_folder", root=".", patient=whose, labels=labels)
        listed = image_folder.list_sources(entry, folder)
    else:
        listed = walk_files(folder)
    found = {pseudonym(key, "source", site, source.relative): source for source in listed}
    if not found:
        raise PipelineError("--input: no file lies there")
    return dict(sorted(found.items()))


def read(funnel: Funnel, reader: Reader, withdrawn: frozenset[str], folder: Path, workers: int | None) -> pd.DataFrame:
    """``Instances`` of the files that ``ingest`` would take, by its own functions."""
    tasks = [Reading(source_id, source, "") for source_id, source in funnel.sources.items()]
    outcomes = ordered_map(
        partial(read_source, reader), tasks, description="read", workers=workers, name_of=attrgetter("source_id"),
        on_death=reader_died,
    )  # fmt: skip
    found = collect(zip(tasks, outcomes, strict=True), withdrawn)
    instances = found.instances.finish()
    places, _ = settle(found, instances, reader.policy)
    funnel.refuse("ingest", found.refused)
    used = pa.array([source_id not in found.refused for source_id in instances["source_id"].to_pylist()], pa.bool_())
    instances = instances.filter(used)
    images = instances["image_id"].to_pylist()
    for position, name in enumerate(("slice_index", "slice_position_mm", "slice_spacing_mm")):
        values = [places[image][position] if image in places else None for image in images]
        column = pa.array(values, Instances.columns[name])
        instances = instances.set_column(instances.schema.get_field_index(name), name, column)
    # Through the file, as in the study: spacings are single precision from there on.
    write_table(Instances, instances, folder / "instances.parquet")
    return read_table(Instances, folder / "instances.parquet")


def check_headers(funnel: Funnel, instances: pd.DataFrame, seen: Seen, unlike: Unlike) -> pd.DataFrame:
    """The instances of files whose headers are like the training images', or all where misfits are told."""
    for row in plain_text(instances).to_dict("records"):
        funnel.misfit(row["source_id"], header_misfits(row, seen), unlike)
    return instances[~instances["source_id"].isin(list(funnel.refused))]


def decode(task: Task) -> Made:
    """``preprocess``'s images of one file; one that changed since it was read is refused."""
    try:
        return make_images(task)
    except PipelineError:
        if task.expected is not None and not _is_same(task):
            return Made([], [], ("rejected", "unreadable", "it changed while it was read"))
        raise


def _is_same(task: Task) -> bool:
    assert task.expected is not None  # noqa: S101 - asked before
    return keyed_hash(task.expected[1], read_regular(task.source, task.policy.max_bytes)) == task.expected[0]


def make_arrays(
    funnel: Funnel, instances: pd.DataFrame, reader: Reader, params: PreprocessParams, seen: Seen, unlike: Unlike,
    folder: Path, workers: int | None,
) -> pd.DataFrame:  # fmt: skip
    """The arrays of all images as a store in ``folder``, made as ``preprocess`` makes them.

    Returns:
        ``Images`` of those that are left, joined to ``Instances``; empty where none is.
    """
    form = PlaneFormat(params.size_px, params.bits)
    hashes = dict(zip(instances["source_id"], instances["source_hmac"], strict=True))
    tasks = [
        replace(task, expected=(hashes[task.source_id], reader.key))
        for task in make_tasks(instances, funnel.sources, reader.adapter, reader.policy, params)
    ]
    modality = dict(zip(instances["image_id"], plain_text(instances)["modality"], strict=True))
    rows: list[dict[str, Any]] = []

    def planes() -> Iterator[Grey]:
        made = ordered_map(
            decode, tasks, description="decode", name_of=attrgetter("source_id"), isolate=True, on_death=decoder_died,
            workers=workers,
        )  # fmt: skip
        for task, one in zip(tasks, made, strict=True):
            if one.refusal is not None:
                funnel.refuse("preprocess", {task.source_id: one.refusal})
                continue
            for row in one.rows:
                window = window_misfit({**row, "modality": modality[row["image_id"]]}, seen, params)
                funnel.misfit(task.source_id, {"other_window": window} if window else {}, unlike)
            if task.source_id not in funnel.refused:
                rows.extend(one.rows)
                yield from one.planes

    shard = write_planes(planes(), form, folder / shard_name(0, 1))
    images = make_table(Images, [{**row, "array_index": index} for index, row in enumerate(rows)])
    images = images.sort_values("array_index", ignore_index=True)
    first = np.arange(len(images), dtype=np.int64) * len(params.rules)
    if params.neighbours > 1:
        images, channels, unstacked = stack(images, first, instances, params.neighbours)
        why = ("quarantined", "inconsistent_geometry", "not a whole series")
        funnel.refuse("preprocess", dict.fromkeys(unstacked, why))
    else:
        channels = first[:, None] + np.arange(len(params.rules))
    write_index([shard] if shard.planes else [], channels, form, folder)
    write_table(Images, images, folder / INDEX_FILE)
    return images.merge(instances, on="image_id", validate="one_to_one")


def write_lookup(path: Path, sources: Mapping[str, Source]) -> None:
    """Pseudonym to file, for its owner alone: a new file that nobody else can read.

    Raises:
        PipelineError: it is there already.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise PipelineError("--lookup: the file is there already; delete it or name another") from None
    # surrogateescape: a name that is not UTF-8 keeps its bytes.
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source_id", "path"])
        writer.writerows((source_id, os.fspath(source.listed_path)) for source_id, source in sources.items())
