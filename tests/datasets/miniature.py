"""A miniature of a public data set, run through inventory, ingest and labels; what came of each file."""

import gzip
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from minimal import spread
from stages.study import Study

from pipeline.datasets.inventory import identify
from pipeline.datasets.registry import adapter_names, load_adapter, load_site
from pipeline.dicom.headers import IngestParams
from pipeline.key import PUBLIC_KEY
from pipeline.tables.contract import read_table
from pipeline.tables.files import Exclusions, Instances
from pipeline.tables.labels import LabelIssues, Labels, Readings


@dataclass
class Outcome:
    """By path below the root: labels by finding, row of ``Instances``, reason of refusal; and issues, readers."""

    labels: dict[str, dict[str, int | None]]
    instances: dict[str, dict[str, Any]]
    refused: dict[str, str]
    issues: dict[str, int]
    readers: int


def write(study: Study, files: dict[str, bytes | str]) -> None:
    """Files by path below the study's folder; text is gzipped where the name says so."""
    for name, content in files.items():
        path = study.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def run(
    study: Study, entry: dict[str, Any], findings: list[str], ingest: dict[str, str] | None = None, **policies: str
) -> Outcome:
    """A site's stages up to its labels; every image that is used has been decoded as well."""
    study.params |= {"sites": {"mini": entry}, "labels": {"findings": findings, **policies}, "ingest": ingest or {}}
    study.inventory()
    ingested = study.ingest("mini")
    labelled = study.labels("mini")
    adapter, site = load_site("mini", study.folder / "params.yaml")
    sources = identify(adapter, site, "mini", study.folder, PUBLIC_KEY)
    names = {source_id: source.relative for source_id, source in sources.items()}
    instances = read_table(Instances, ingested / "instances.parquet")
    name_of = dict(zip(instances["image_id"], instances["source_id"].map(names), strict=True))
    given, exclusions = (
        read_table(Labels, labelled / "labels.parquet"),
        read_table(Exclusions, ingested / "exclusions.parquet"),
    )
    issues, readings = (
        read_table(LabelIssues, labelled / "issues.parquet"),
        read_table(Readings, labelled / "readings.parquet"),
    )
    written = study.told + "".join(frame.to_csv() for frame in (instances, given, exclusions, issues, readings))
    assert not [part for name in names.values() for part in identifying(name) if part in written]
    labels: dict[str, dict[str, int | None]] = {}
    for row in given.to_dict("records"):
        label = None if pd.isna(row["label"]) else int(row["label"])
        labels.setdefault(name_of[row["image_id"]], {})[row["finding"]] = label
    refused = dict(zip(exclusions["source_id"].map(names), exclusions["reason"], strict=True))
    for row in instances.to_dict("records"):
        (image,) = adapter.read_images(sources[row["source_id"]].path.read_bytes(), [0], IngestParams())
        assert spread(image).values.shape == (row["rows"], row["columns"])
    rows = [
        {name: None if pd.isna(value) else value for name, value in row.items()} for row in instances.to_dict("records")
    ]
    return Outcome(
        labels,
        {names[row["source_id"]]: row for row in rows},
        refused,
        dict(zip(issues["issue"], issues["count"], strict=True)),
        readings["reader"].nunique(),
    )


def recognised_by(folder: Path) -> list[str]:
    """The adapters that take a folder for theirs, but for the one of any folder of DICOM."""
    return [
        name for name in adapter_names() if name != "dicom_folder" and load_adapter(name).recognise(folder) is not None
    ]


def identifying(name: str) -> list[str]:
    """Parts of a path that stand for a patient, study or image."""
    return [part for part in re.split(r"[/.]", name) if len(part) > 5 and re.search(r"\d", part)]


def grey(seed: int, bits: int = 8) -> np.ndarray:
    """An image of noise, (rows, columns) = (20, 30)."""
    return np.random.default_rng(seed).integers(0, 2**bits, (20, 30), dtype=np.uint8 if bits == 8 else np.uint16)


def encode(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()
