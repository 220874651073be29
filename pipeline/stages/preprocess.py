"""Decode one site's images once and write the arrays a network trains on: VOI, polarity, padding, geometry."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from pipeline import cli
from pipeline.datasets.common import Source
from pipeline.datasets.inventory import identify, read_regular
from pipeline.datasets.registry import load_adapter, load_site
from pipeline.dicom.headers import IngestParams
from pipeline.dicom.pixels import describe_voi
from pipeline.dicom.refusal import Refusal
from pipeline.errors import PipelineError, where_it_arose
from pipeline.executor import ordered_map
from pipeline.imaging.geometry import fit_square
from pipeline.imaging.intensity import NAMED_WINDOWS, ModalityImage, Voi, Window, display_grey
from pipeline.imaging.store import INDEX_FILE, write_images
from pipeline.key import load_key
from pipeline.params import StrictParams, check_versions, load_params
from pipeline.tables import Exclusions, Images, Instances, read_table, write_table


class WindowParams(StrictParams):
    """A window in modality units (Hounsfield units for CT), PS3.3 C.11.2.1.2."""

    center: float
    width: float = Field(ge=1.0)


class PreprocessParams(StrictParams):
    """Section ``preprocess``.

    ``voi``: "header" takes each file's own VOI LUT or window (the range of its values where it has none), a
    name or a centre and width the same for all.
    """

    size_px: int = Field(ge=16, le=2048)
    voi: Literal["header", "soft_tissue", "lung", "bone", "brain", "mediastinum"] | WindowParams

    def chosen_voi(self) -> Voi | None:
        """The VOI that overrides the header's; None for the header's."""
        if isinstance(self.voi, WindowParams):
            return Window(self.voi.center, self.voi.width)
        return None if self.voi == "header" else NAMED_WINDOWS[self.voi]


@dataclass(frozen=True)
class Frame:
    """An image to make: its frame in the file, and the shape of its pixels."""

    image_id: str
    frame: int
    row_to_column_spacing: float


@dataclass(frozen=True)
class Task:
    """What a worker needs for all images of one file."""

    adapter: str
    source_id: str
    source: Source
    policy: IngestParams
    frames: tuple[Frame, ...]
    size_px: int
    voi: Voi | None


@dataclass(frozen=True)
class Made:
    """One image: its row for ``tables.Images`` without the index, and its pixels; or the refusal of its file."""

    row: dict[str, Any]
    pixels: npt.NDArray[np.uint8] | None
    refusal: tuple[str, str, str] | None = None  # outcome, reason, detail


def make_images(task: Task) -> list[Made]:
    """All images of one file; a file is used whole or not at all.

    An unexpected error is a refusal with outcome "defect" and the line where it arose: it costs this file alone.
    """
    try:
        content = read_regular(task.source, task.policy.max_bytes)
        numbers = [frame.frame for frame in task.frames]
        images = load_adapter(task.adapter).read_images(content, numbers, task.policy)
        return [_make(task, image, frame) for frame, image in zip(task.frames, images, strict=True)]
    except OSError as error:
        refusal = ("rejected", "unreadable", type(error).__name__)
    except Refusal as refused:
        refusal = (refused.outcome, refused.reason, refused.detail)
    except Exception as error:
        refusal = ("defect", "defect", f"{type(error).__name__} at {where_it_arose(error)}")
    return [Made({}, None, refusal)]


def decoder_died(task: Task) -> list[Made]:
    """A file whose decoder took its process down, twice."""
    del task
    return [Made({}, None, ("rejected", "decode_error", "the decoder crashed"))]


def _make(task: Task, image: ModalityImage, frame: Frame) -> Made:
    grey, voi = display_grey(image, task.voi)
    square, placement = fit_square(grey, task.size_px, frame.row_to_column_spacing)
    name, center, width = describe_voi(voi)
    row = {
        "image_id": frame.image_id,
        "voi": name,
        "window_center": center,
        "window_width": width,
        "inverted": image.inverted,
        **vars(placement),
        "pixels_sha256": hashlib.sha256(square.tobytes()).hexdigest(),
    }
    return Made(row, square)


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(__doc__, ingest="the site's folder of ingest", out="folder for arrays and index")
    arguments.add_argument("--site", required=True)
    arguments.add_argument("--workers", type=int, help="processes; changes no result")
    args = arguments.parse_args()
    check_versions("numpy", "opencv-python-headless", "pydicom", path=args.params)
    params = load_params(PreprocessParams, "preprocess", args.params)
    key = load_key(args.params)
    adapter, site = load_site(args.site, args.params)
    sources = identify(adapter, site, args.site, args.params.parent, key)
    instances = read_table(Instances, args.ingest / "instances.parquet")
    policy = load_params(IngestParams, "ingest", args.params)
    tasks = _tasks(instances, sources, site.adapter, policy, params)
    results = ordered_map(
        make_images, tasks, description=f"preprocess {args.site}", name_of=attrgetter("source_id"), isolate=True,
        on_death=decoder_died, workers=args.workers,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []

    def pixels() -> Iterator[npt.NDArray[np.uint8]]:
        for task, made in zip(tasks, results, strict=True):
            for image in made:
                if image.refusal is not None:
                    outcome, reason, detail = image.refusal
                    row = {"source_id": task.source_id, "outcome": outcome, "reason": reason, "detail": detail}
                    refused.append(row)
                    if outcome == "defect":
                        print(f"DEFECT over source {task.source_id}: {detail}; please report it", file=sys.stderr)
                elif image.pixels is not None:
                    rows.append({**image.row, "array_index": len(rows)})
                    yield image.pixels

    write_images(pixels(), params.size_px, args.out)
    if not rows:
        raise PipelineError(f"site {args.site}: none of {len(tasks)} files could be decoded")
    write_table(Images, rows, args.out / INDEX_FILE)
    exclusions = [{**row, "stage": "preprocess", "site": args.site} for row in refused]
    write_table(Exclusions, exclusions, args.out / "exclusions.parquet")
    print(f"{args.site}: {len(rows)} images of {params.size_px} px, {len(refused)} files excluded")


def _tasks(
    instances: pd.DataFrame, sources: Mapping[str, Source], adapter: str, policy: IngestParams, params: PreprocessParams
) -> list[Task]:
    ordered = instances.sort_values(["source_id", "frame"])
    columns = ["row_spacing_mm", "column_spacing_mm", "imager_row_spacing_mm", "imager_column_spacing_mm"]
    rows = ordered[["source_id", "image_id", "frame", *columns]].to_dict("records")
    tasks = []
    for source_id, group in groupby(rows, key=lambda row: row["source_id"]):
        if source_id not in sources:
            raise PipelineError("the raw folder has changed since ingest; run `dvc repro` from ingest on")
        frames = tuple(
            Frame(row["image_id"], int(row["frame"]), _aspect(*(row[column] for column in columns))) for row in group
        )
        tasks.append(Task(adapter, source_id, sources[source_id], policy, frames, params.size_px, params.chosen_voi()))
    return tasks


def _aspect(row_mm: float, column_mm: float, imager_row_mm: float, imager_column_mm: float) -> float:
    """Row over column spacing: in the patient, else at the detector, else square pixels."""
    for row, column in ((row_mm, column_mm), (imager_row_mm, imager_column_mm)):
        if np.isfinite(row) and np.isfinite(column):
            return float(row / column)
    return 1.0


if __name__ == "__main__":
    cli.run(main)
