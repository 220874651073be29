"""The failure gallery of one run: its most confident mistakes at each site, and where in the image they came from.

Beside them stand as many confident calls that were right, one image a patient. Maps are Grad-CAM's, on the last map of
the convolutions. How much of them lies in the padding, along the border and in the corners is measured on up to
``max_images`` test images a site, in whole patients. It runs on the CPU, so that a GPU changes no byte of it.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import Field
from tqdm import tqdm

from pipeline import cli
from pipeline.analysis.evaluation import EvaluateParams
from pipeline.analysis.gallery import (
    SHARES,
    Masks,
    Placement,
    call_counts,
    called,
    cases,
    drawn,
    mean_shares,
    most_confident,
    region_masks,
    shares,
)
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, Store, replacing
from pipeline.params import Name, ParamsError, Seed, StrictParams, check_versions, load_params, nearest
from pipeline.splits import SplitParams
from pipeline.tables.contract import plain_text, read_table, write_table
from pipeline.tables.evaluation import Thresholds
from pipeline.tables.gallery import REGIONS, CallCounts, Gallery, MapMeans, MapShares
from pipeline.tables.images import Images
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Runs
from pipeline.training.backbone import Classifier
from pipeline.training.checkpoints import load_model
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.feed import AugmentParams, ImageFeed, in_batches
from pipeline.training.gradcam import NO_MAP, MapMaker, has_map

MAPS_FILE = "maps.npy"
NO_THRESHOLD = "no threshold: no annotated negatives on id_val"

Row = dict[str, Any]
Shown = npt.NDArray[np.uint8]


class GalleryParams(StrictParams):
    """An entry of section ``gallery``: one training (all labels), by its backbone, method and seed.

    ``findings``: of the study's; none named means all. ``per_site``: images of each kind.
    """

    backbone: Name
    method: Name
    seed: Seed
    findings: list[str] = Field(default_factory=list)
    per_site: Annotated[int, Field(ge=1, le=6)] = 4
    max_images: Annotated[int, Field(ge=1)] = 300
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000


def find_run(runs: pd.DataFrame, params: GalleryParams, where: str) -> tuple[str, str]:
    """Name and model's SHA-256 of the training that had all labels.

    Raises:
        ParamsError: there is none; names the nearest that there is.
    """
    full = runs[(runs["label_fraction"] == 1.0) & runs["shots"].isna()]
    for column, wanted in (("backbone", params.backbone), ("method", params.method), ("seed", params.seed)):
        known = sorted(set(map(str, full[column])))
        full = full[full[column] == wanted]
        if full.empty:
            raise ParamsError(
                f"{where}.{column}: no training with all labels has '{wanted}'{nearest(str(wanted), known)}"
            )
    if len(full) > 1:
        raise ParamsError(f"{where}: {len(full)} trainings with all labels are called so; expected one")
    return str(full["run"].iloc[0]), str(full["model_sha256"].iloc[0])


def check_findings(wanted: list[str], known: list[str], where: str) -> list[str]:
    """The findings to show.

    Raises:
        ParamsError: the model has no such finding.
    """
    for finding in wanted:
        if finding not in known:
            raise ParamsError(f"{where}.findings: the model has no '{finding}'{nearest(finding, known)}")
    return sorted(set(wanted) or set(known))


def measure(
    maker: MapMaker, calls: pd.DataFrame, images: Path, findings: list[str], compute: ComputeParams, bar: Any
) -> Iterator[tuple[int, npt.NDArray[np.float32], Row]]:
    """For each row of ``calls`` (by its index), its map (H, W) with its size and the columns of ``shares``, by site.

    Args:
        maker: of the run's model.
        calls: the rows to measure, from ``called``.
        images: the folder of all sites' images.
        findings: the model's, in their order.
        compute: batch size and layout.
        bar: told of each image that is done.
    """
    for site, here in calls.groupby("site", sort=True):
        store = Store(images / str(site))
        index = plain_text(read_table(Images, images / str(site) / INDEX_FILE)).set_index("image_id")
        feed = ImageFeed(store, torch.device("cpu"), memory_format(compute), AugmentParams(), 0)
        masks: dict[Placement | None, Masks | None] = {}
        for (finding, present), part in here.groupby(["finding", here["kind"].str.endswith("_positive")], sort=True):
            rows = index.loc[part["image_id"]]
            batches = list(in_batches(np.arange(len(part)), compute.batch_size))
            arrays = rows["array_index"].to_numpy(np.int64)
            for batch, pixels in zip(batches, feed.plain(arrays[batch] for batch in batches), strict=True):
                made = maker.maps(pixels, findings.index(str(finding)), present=bool(present))
                for number, values in zip(batch, made.values, strict=True):
                    place = Placement.of(store.format.size_px, rows.iloc[number].to_dict())
                    if place not in masks:
                        masks[place] = region_masks(place) if place else None
                    size = dict(zip(("map_rows", "map_columns"), made.coarse.shape[1:], strict=True))
                    yield int(part.index[number]), values, shares(values, masks[place]) | size
                bar.update(len(batch))


def to_grey(values: npt.NDArray[np.float32]) -> Shown:
    """A map (H, W) as uint8, its own maximum 255; a map of zeros stays one."""
    top = values.max()
    return np.rint(255.0 * values / top if top > 0 else values).astype(np.uint8)


def measure_all(
    model: Classifier, calls: pd.DataFrame, pictured: pd.Index, args: Namespace, card: Row, compute: ComputeParams
) -> tuple[pd.DataFrame, dict[int, Shown]]:
    """What ``measure`` gives of each row of ``calls``, and the maps of those that are ``pictured``, by row.

    Without a map for the architecture all shares are null, and a note says so.
    """
    blank = {**dict.fromkeys((*SHARES, "map_rows", "map_columns")), "note": NO_MAP}
    found: dict[int, Row] = {}
    pictures: dict[int, Shown] = {}
    if has_map(model):
        fabric = make_fabric(compute.model_copy(update={"accelerator": "cpu"}))
        maker = MapMaker(model.to(memory_format=memory_format(compute)).to(fabric.device))
        with tqdm(total=len(calls), desc=f"gallery {args.name}", unit="image", mininterval=0.5) as bar:
            for row, values, own in measure(maker, calls, args.images, card["findings"], compute, bar):
                found[row] = own
                if row in pictured:
                    pictures[row] = to_grey(values)
    rows = [found.get(row, blank) for row in calls.index]
    return pd.DataFrame(rows, index=calls.index, columns=list(blank)), pictures


def summaries(
    calls: pd.DataFrame, shares_of: pd.DataFrame, findings: Mapping[str, str], sides: SplitParams, resamples: int
) -> tuple[list[Row], list[Row]]:
    """Rows of ``CallCounts`` and of ``MapMeans``, for every finding and site, whether there are calls or not.

    Args:
        calls: from ``called``, with who is drawn.
        shares_of: from ``measure_all``.
        findings: and why there are no calls of it, or "".
        sides: the sites.
        resamples: of the bootstrap.
    """
    counts: list[Row] = []
    means: list[Row] = []
    splits = {**dict.fromkeys(sides.source, "id_test"), **dict.fromkeys(sides.target, "ood_test")}
    for finding, site in product(findings, splits):
        here = {"finding": finding, "site": site, "split": splits[site]}
        part = calls[(calls["finding"] == finding) & (calls["site"] == site)]
        note = findings[finding] or ("" if len(part) else "no annotated test image")
        for kind, (images, patients) in call_counts(part).items():
            counts.append({**here, "kind": kind, "num_images": images, "num_patients": patients, "note": note})
        some = part[part["drawn"]].join(shares_of)
        means += [{**here, **row, "note": note or row["note"]} for row in mean_shares(some, resamples)]
    return counts, means


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        images="the folder of all sites' preprocess",
        models="the folder of all finetune outputs",
        predict="the folder of predict",
        thresholds="evaluate's table of thresholds",
        out="folder for the gallery's tables and maps.npy",
    )
    arguments.add_argument("--name", required=True, help="the entry under gallery in params.yaml")
    args = arguments.parse_args()
    check_versions("monai", "numpy", "scipy", "torch", "torchvision", path=args.params)
    params = load_params(GalleryParams, f"gallery.{args.name}", args.params)
    compute = load_params(ComputeParams, "compute", args.params)
    judged = load_params(EvaluateParams, "evaluate", args.params)
    sides = load_params(SplitParams, "split", args.params)
    where = f"gallery.{args.name}"
    run, model_sha256 = find_run(read_table(Runs, args.predict / "runs.parquet"), params, where)
    model, card = load_model(args.models / f"{params.backbone}-{params.method}" / run)
    if card["file_sha256"] != model_sha256:
        raise PipelineError(f"{where}: the model of {run} is not the one that predicted; run `dvc repro`")
    findings = check_findings(params.findings, card["findings"], where)
    predictions = read_table(Predictions, args.predict / "predictions.parquet")
    own = plain_text(predictions[(predictions["run"] == run) & predictions["finding"].isin(findings)])
    points = read_table(Thresholds, args.thresholds)
    thresholds = points[points["run"] == run].set_index("finding")["threshold"].reindex(findings)
    calls = called(cases(own, judged.unit, judged.aggregate), thresholds.to_dict()).reset_index(drop=True)
    calls["drawn"] = drawn(calls, params.max_images)
    shown = most_confident(calls, params.per_site).sort_values(["finding", "site", "kind", "rank"])
    wanted = calls[calls["drawn"] | calls.index.isin(shown.index)]
    found, pictures = measure_all(model, wanted, shown.index, args, card, compute)

    stack = [pictures[row] for row in shown.index if row in pictures]
    size = card["image_shape"][-1]
    with replacing(args.out / MAPS_FILE) as file:
        np.save(file, np.stack(stack) if stack else np.zeros((0, size, size), np.uint8), allow_pickle=False)
    base = {"gallery": args.name, "run": run}
    array_index = range(len(stack)) if stack else None  # all have a map, or none
    rows = shown.drop(columns=["patient_id", "drawn"]).assign(array_index=array_index, **base)
    of_maps = found[[*REGIONS, "map_rows", "map_columns", "note"]]
    write_table(Gallery, rows.join(of_maps), args.out / "gallery.parquet")
    every = wanted[["finding", "site", "split", "kind", "image_id", "drawn"]].assign(**base)
    write_table(MapShares, every.join(found[[*SHARES, "note"]]), args.out / "shares.parquet")
    reasons = {name: "" if np.isfinite(thresholds[name]) else NO_THRESHOLD for name in findings}
    counts, means = summaries(calls, found, reasons, sides, params.resamples)
    write_table(CallCounts, [base | row for row in counts], args.out / "counts.parquet")
    write_table(MapMeans, [base | row for row in means], args.out / "means.parquet")
    print(f"{len(shown)} images of {run}, {len(stack)} with a map")


if __name__ == "__main__":
    cli.run(main)
