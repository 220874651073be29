"""Gather the source sites' train and id_val images with their labels: all that training may see.

Targets stop here: when a target hospital joins, this output keeps its bytes, and nothing is trained again.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.imaging.intensity import Grey
from pipeline.imaging.store import INDEX_FILE, Indices, Store, write_store
from pipeline.params import load_params
from pipeline.splits import SplitParams
from pipeline.tables.contract import read_table, read_tables, write_table
from pipeline.tables.images import Images, Splits
from pipeline.tables.labels import Labels
from pipeline.tables.training import Samples

_BATCH = 256  # planes read at a time


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        split="the folder of split",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        out="folder for images, samples and labels",
    )
    args = arguments.parse_args()
    params = load_params(SplitParams, "split", args.params)
    for parent in (args.images, args.labels):
        cli.prune(parent, params.sites)
    splits = read_table(Splits, args.split / "splits.parquet")
    wanted = splits.loc[splits["split"].isin(["train", "id_val"]), ["image_id", "patient_id", "site", "split"]]
    stores = {site: Store(args.images / site) for site in sorted(params.source)}
    formats = {(store.format, store.shape[1]) for store in stores.values()}
    if len(formats) > 1:
        raise PipelineError(f"the source sites' arrays differ in format: {sorted(map(str, formats))}; run `dvc repro`")
    samples, planes, channels = [], [], []
    count = 0
    for site, store in stores.items():
        index = read_table(Images, args.images / site / INDEX_FILE)[["image_id", "array_index"]]
        chosen = index.merge(wanted, on="image_id").sort_values("array_index")
        # The planes of the chosen images, each once, and their numbers here: neighbours are channels of each other.
        numbers, places = np.unique(store.channels[chosen["array_index"].to_numpy(np.int64)], return_inverse=True)
        samples.append(chosen)
        planes.append((store, numbers))
        channels.append(places.reshape(len(chosen), store.shape[1]) + count)
        count += len(numbers)
    together = pd.concat(samples, ignore_index=True)
    together["array_index"] = np.arange(len(together))
    form = next(iter(stores.values())).format
    with tqdm(total=count, desc="gather", unit="plane", mininterval=0.5) as bar:
        write_store(_read(planes, bar), np.concatenate(channels), form, args.out)
    write_table(Samples, together, args.out / "samples.parquet")
    labels = read_tables(Labels, [args.labels / site / "labels.parquet" for site in params.source])
    write_table(Labels, labels[labels["image_id"].isin(together["image_id"])], args.out / "labels.parquet")
    print(f"{len(together)} images to train and select on")


def _read(planes: list[tuple[Store, Indices]], bar: Any) -> Iterator[Grey]:
    for store, numbers in planes:
        for start in range(0, len(numbers), _BATCH):
            batch = store.read_planes(numbers[start : start + _BATCH])
            yield from batch
            bar.update(len(batch))


if __name__ == "__main__":
    cli.run(main)
