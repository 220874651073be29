"""Decode one site's images once and write the arrays a network trains on: VOI, polarity, padding, geometry."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline import cli
from pipeline.datasets.inventory import identify
from pipeline.datasets.registry import load_adapter, load_site
from pipeline.dicom.pixels import describe_voi
from pipeline.dicom.refusal import Refusal
from pipeline.errors import PipelineError, defect
from pipeline.executor import ordered_map
from pipeline.imaging.geometry import fit_square
from pipeline.imaging.intensity import NAMED_WINDOWS, Voi, Window, display_grey
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
    path: Any
    frames: tuple[Frame, ...]
    size_px: int
    voi: Voi | None


@dataclass(frozen=True)
class Made:
    """One image: its row for ``tables.Images`` without the index, and its pixels; or the refusal of its file."""

    row: dict[str, Any]
    pixels: npt.NDArray[np.uint8] | None
    refusal: Refusal | None = None


def make_images(task: Task) -> list[Made]:
    """All images of one file; a file is used whole or not at all."""
    try:
        content = task.path.read_bytes()
        return [_make(task, content, frame) for frame in task.frames]
    except OSError as error:
        refusal = Refusal("unreadable", type(error).__name__)
    except Refusal as refused:
        refusal = refused
    except Exception as error:
        raise defect("preprocessing", task.source_id, error) from None
    return [Made({}, None, refusal)]


def _make(task: Task, content: bytes, frame: Frame) -> Made:
    image = load_adapter(task.adapter).read_image(content, frame.frame)
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
    tasks = _tasks(instances, sources, site.adapter, params)
    results = ordered_map(make_images, tasks, description=f"preprocess {args.site}", workers=args.workers)
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []

    def pixels() -> Iterator[npt.NDArray[np.uint8]]:
        for task, made in zip(tasks, results, strict=True):
            for image in made:
                if image.refusal is not None:
                    reason, detail = image.refusal.reason, image.refusal.detail
                    refused.append({"source_id": task.source_id, "reason": reason, "detail": detail})
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


def _tasks(instances: Any, sources: Any, adapter: str, params: PreprocessParams) -> list[Task]:
    ordered = instances.sort_values(["source_id", "frame"])
    rows = ordered[["source_id", "image_id", "frame", "row_spacing_mm", "column_spacing_mm"]].to_dict("records")
    tasks = []
    for source_id, group in groupby(rows, key=lambda row: row["source_id"]):
        if source_id not in sources:
            raise PipelineError("the raw folder has changed since ingest; run `dvc repro` from ingest on")
        frames = tuple(
            Frame(row["image_id"], int(row["frame"]), _ratio(row["row_spacing_mm"], row["column_spacing_mm"]))
            for row in group
        )
        tasks.append(Task(adapter, source_id, sources[source_id].path, frames, params.size_px, params.chosen_voi()))
    return tasks


def _ratio(row_spacing_mm: float, column_spacing_mm: float) -> float:
    known = np.isfinite(row_spacing_mm) and np.isfinite(column_spacing_mm)
    return float(row_spacing_mm / column_spacing_mm) if known else 1.0


if __name__ == "__main__":
    cli.run(main)
