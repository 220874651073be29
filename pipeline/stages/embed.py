"""Features of one frozen, pretrained backbone for all images of all sites and splits; no label is read."""

import numpy as np
import pandas as pd

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.params import check_versions, load_params
from pipeline.splits import SplitParams
from pipeline.stages.features import FEATURES_FILE, features_of
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.diagnosis import Embedded
from pipeline.tables.images import Images, Splits
from pipeline.training.backbone import build
from pipeline.training.checkpoints import load_weights
from pipeline.training.determinism import ComputeParams, make_fabric


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        split="the folder of split",
        images="the folder of all sites' preprocess",
        weights="the backbone's folder of weights",
        out="folder for features.npy and index.parquet",
    )
    args = arguments.parse_args()
    check_versions("torch", "torchvision", path=args.params)
    params = load_params(SplitParams, "split", args.params)
    compute = load_params(ComputeParams, "compute", args.params)
    cli.prune(args.images, params.sites)
    fabric = make_fabric(compute)
    state, card = load_weights(args.weights)
    splits = read_table(Splits, args.split / "splits.parquet")
    stores = {site: Store(args.images / site) for site in sorted(params.sites)}
    shapes = {store.shape[1:] for store in stores.values()}
    if len(shapes) > 1:
        raise PipelineError(f"the sites' arrays differ in shape: {sorted(shapes)}; run `dvc repro`")
    model = build(card["backbone"], 1, seed=0, state=state, image_shape=shapes.pop())
    parts, frames = [], []
    for site, store in stores.items():
        index = read_table(Images, args.images / site / INDEX_FILE)[["image_id", "array_index"]]
        chosen = index.merge(splits[splits["site"] == site], on="image_id").sort_values("array_index")
        if len(chosen):
            features = features_of(model, store, fabric, compute, f"{card['backbone']} {site}")
            parts.append(features[chosen["array_index"].to_numpy(np.int64)])
            frames.append(chosen[["image_id", "patient_id", "site", "split"]])
    if not parts:
        raise PipelineError("no image has a place in a split: nothing to embed")
    args.out.mkdir(parents=True, exist_ok=True)
    np.save(args.out / FEATURES_FILE, np.concatenate(parts), allow_pickle=False)
    together = pd.concat(frames, ignore_index=True)
    write_table(Embedded, together.assign(row=np.arange(len(together))), args.out / "index.parquet")


if __name__ == "__main__":
    cli.run(main)
