"""Gather the source sites' train and id_val images with their labels: all that training may see.

Targets stop here: when a target hospital joins, this output keeps its bytes, and nothing is trained again.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline import cli
from pipeline.imaging.store import INDEX_FILE, open_images, write_images
from pipeline.params import load_params
from pipeline.splits import SplitParams
from pipeline.tables import Images, Labels, Samples, Splits, read_table, read_tables, write_table


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
    wanted = splits[splits["split"].isin(["train", "id_val"])].set_index("image_id")
    samples: list[dict[str, object]] = []
    places: list[tuple[str, int]] = []
    for site in sorted(params.source):
        index = read_table(Images, args.images / site / INDEX_FILE)
        for row in index[index["image_id"].isin(wanted.index)].to_dict("records"):
            side = wanted.loc[row["image_id"]]
            samples.append(
                {
                    "image_id": row["image_id"],
                    "array_index": len(samples),
                    "patient_id": side["patient_id"],
                    "site": site,
                    "split": side["split"],
                }
            )
            places.append((site, int(row["array_index"])))
    stores = {site: open_images(args.images / site) for site in params.source}

    def pixels() -> Iterator[npt.NDArray[np.uint8]]:
        for site, index in tqdm(places, desc="gather", unit="image", mininterval=0.5):
            yield np.asarray(stores[site][index])

    size_px = next(iter(stores.values())).shape[1]
    write_images(pixels(), size_px, args.out)
    write_table(Samples, samples, args.out / "samples.parquet")
    labels = read_tables(Labels, [args.labels / site / "labels.parquet" for site in params.source])
    kept = labels[labels["image_id"].isin({row["image_id"] for row in samples})]
    write_table(Labels, kept, args.out / "labels.parquet")
    print(f"{len(samples)} images to train and select on")


if __name__ == "__main__":
    cli.run(main)
