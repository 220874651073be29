"""Describe the images that are used: contact sheets, grey histograms, outliers to look at, and Table 1."""

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline import cli
from pipeline.analysis import quality, table_one
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.params import check_versions, load_params
from pipeline.splits import SplitParams
from pipeline.tables.contract import read_table, read_tables, write_table
from pipeline.tables.files import Instances
from pipeline.tables.images import Images, Splits
from pipeline.tables.labels import Labels
from pipeline.tables.quality import Balance, GreyHistograms, OutlierCounts, Outliers, QualityScores, TableOne

_BATCH = 256


def batches(store: Store, index: pd.DataFrame) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Images and where each lies in its square (top, left, rows, columns), in the order of ``index``."""
    rows = index["array_index"].to_numpy(np.int64)
    size = store.format.size_px
    first = index[["pad_top", "pad_left"]].to_numpy(np.int64)
    beyond = first + index[["resized_rows", "resized_columns"]].to_numpy(np.int64)
    # What was cut off is negative padding.
    first = np.maximum(first, 0)
    boxes = np.hstack([first, np.minimum(beyond, size) - first])
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        yield store.shown(rows[part]), boxes[part]


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        ingest="the folder of all sites' ingest",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        split="the folder of split",
        out="folder for tables and sheets/",
    )
    args = arguments.parse_args()
    check_versions("numpy", "opencv-python-headless", path=args.params)
    params = load_params(quality.QualityParams, "quality", args.params)
    sites = load_params(SplitParams, "split", args.params).sites
    splits = read_table(Splits, args.split / "splits.parquet")
    instances = read_tables(Instances, [args.ingest / site / "instances.parquet" for site in sites])
    used = instances.merge(splits[["image_id", "role", "split"]], on="image_id")
    labels = read_tables(Labels, [args.labels / site / "labels.parquet" for site in sites])

    (args.out / "sheets").mkdir(parents=True, exist_ok=True)
    facts, summaries = [], {}
    for site in sites:
        folder = args.images / site
        index = read_table(Images, folder / INDEX_FILE).merge(used, on="image_id").sort_values("array_index")
        facts.append(index)
        store = Store(folder)
        summaries[site] = quality.summarise(batches(store, index))
        tiles = quality.choose_tiles(index, params.tiles)
        rows = index.set_index("image_id").loc[tiles, "array_index"].to_numpy(np.int64)
        sheet = quality.contact_sheet(store.shown(rows))
        (args.out / "sheets" / f"{site}.png").write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
    outliers, counts, scores = quality.find_outliers(
        pd.concat(facts, ignore_index=True), quality.together(summaries.values()), params
    )
    described = table_one.describe(used, labels)
    write_table(GreyHistograms, quality.grey_histograms(summaries), args.out / "histograms.parquet")
    write_table(Outliers, outliers, args.out / "outliers.parquet")
    write_table(QualityScores, scores, args.out / "scores.parquet")
    write_table(OutlierCounts, counts, args.out / "outlier_counts.parquet")
    write_table(TableOne, table_one.table_one(described), args.out / "table_one.parquet")
    write_table(Balance, table_one.balance(described), args.out / "balance.parquet")
    for kind, group in outliers.groupby("kind"):
        print(f"to look at: {len(group)} {kind} images")


if __name__ == "__main__":
    cli.run(main)
