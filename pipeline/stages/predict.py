"""Apply every trained model to what selects and tests: the source's id_val and id_test, the targets' ood_test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.params import check_versions, load_names, load_params
from pipeline.splits import SplitParams
from pipeline.tables.contract import read_table, read_tables, write_table
from pipeline.tables.images import Images, Splits
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Curves, Runs
from pipeline.training.backbone import Classifier
from pipeline.training.checkpoints import MODEL_CARD, load_model
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.feed import AugmentParams, ImageFeed, Indices, in_batches


def rows_of_run(
    card: dict[str, Any],
    site: str,
    part: pd.DataFrame,
    logits: np.ndarray[Any, np.dtype[np.float32]],
    protocol: str,
) -> pd.DataFrame:
    """Rows of ``tables.predictions.Predictions`` without labels for one model and site, logits (images, findings)."""
    frames = []
    for position, finding in enumerate(card["findings"]):
        values = logits[:, position].astype(np.float64)
        frames.append(
            part[["image_id", "patient_id", "study_id", "split"]].assign(
                site=site,
                finding=finding,
                logit=values,
                # the sigmoid, to full relative precision at both ends
                probability=np.exp(-np.logaddexp(0.0, -values)),
                run=card["run"],
                protocol=protocol,
                backbone=card["backbone"],
                method=card["method"],
                seed=card["seed"],
                label_fraction=card["label_fraction"],
                draw=card["draw"],
                shots=card["shots"],
                adaptation="none",
            )
        )
    return pd.concat(frames)


def model_folders(models: Path, names: list[str]) -> list[list[Path]]:
    """The folders of all runs, those with one trunk together; what params no longer name was pruned before."""
    by_trunk: dict[str, list[Path]] = {}
    for card in sorted(path for name in names for path in (models / name).glob(f"*/{MODEL_CARD}")):
        trunk = json.loads(card.read_text(encoding="utf-8"))["trunk_sha256"]
        by_trunk.setdefault(trunk, []).append(card.parent)
    return list(by_trunk.values())


def load_together(folders: list[Path]) -> tuple[Classifier, list[tuple[nn.Module, dict[str, Any]]]]:
    """Models with one trunk: the first of them, and each one's head and card; the other trunks are let go."""
    first, card = load_model(folders[0])
    members = [(first.head, card)]
    for folder in folders[1:]:
        other, card = load_model(folder)
        members.append((other.head, card))
    return first, members


def logits_of(
    trunk: Classifier, heads: list[nn.Module], feed: ImageFeed, indices: Indices, batch_size: int
) -> list[npt.NDArray[np.float32]]:
    """Logits (len(indices), findings) of each head; the images go through their common trunk once."""
    parts: list[list[npt.NDArray[np.float32]]] = [[] for _ in heads]
    with torch.inference_mode():
        for images in feed.plain(in_batches(indices, batch_size)):
            features = trunk.features(images)
            for head, own in zip(heads, parts, strict=True):
                own.append(head(features).float().cpu().numpy())
    return [np.concatenate(own) for own in parts]


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        split="the folder of split",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        models="the folder of all finetune outputs",
        out="folder for predictions, runs and curves",
    )
    args = arguments.parse_args()
    check_versions("torch", "torchvision", path=args.params)
    params = load_params(SplitParams, "split", args.params)
    compute = load_params(ComputeParams, "compute", args.params)
    for parent in (args.images, args.labels):
        cli.prune(parent, params.sites)
    jobs = [
        f"{backbone}-{method}"
        for backbone in load_names("backbones", args.params)
        for method in load_names("methods", args.params)
    ]
    cli.prune(args.models, jobs)
    fabric = make_fabric(compute)
    layout = memory_format(compute)
    splits = read_table(Splits, args.split / "splits.parquet")
    tested = splits[splits["split"].isin(["id_val", "id_test", "ood_test"])]
    parts = {
        site: tested[tested["site"] == site].merge(
            read_table(Images, args.images / site / INDEX_FILE)[["image_id", "array_index"]], on="image_id"
        )
        for site in params.sites
    }
    stores = {site: Store(args.images / site) for site in params.sites}
    protocol = "+".join(params.source)
    groups = model_folders(args.models, jobs)
    frames, cards = [], []
    with tqdm(total=len(groups) * len(tested), desc="predict", unit="image", mininterval=0.5) as bar:
        for folders in groups:
            model, members = load_together(folders)
            model = model.to(memory_format=layout).to(fabric.device)
            heads = [head.to(fabric.device) for head, _ in members]
            cards += [card for _, card in members]
            for site, part in parts.items():
                index = part["array_index"].to_numpy(np.int64)
                if len(index):
                    feed = ImageFeed(stores[site], fabric.device, layout, AugmentParams(), 0)
                    found = logits_of(model, heads, feed, index, compute.batch_size)
                    for (_, card), logits in zip(members, found, strict=True):
                        frames.append(rows_of_run(card, site, part, logits, protocol))
                bar.update(len(index))
    if not frames:
        raise PipelineError(f"nothing to predict: {len(cards)} models, {len(tested)} images that select or test")
    # Labels join last: nothing above has seen one.
    labels = read_tables(Labels, [args.labels / site / "labels.parquet" for site in params.sites])
    predictions = pd.concat(frames).merge(labels.drop(columns="status"), on=["image_id", "finding"], how="left")
    write_table(Predictions, predictions, args.out / "predictions.parquet")
    columns = [name for name in Runs.columns if name != "model_sha256"]
    runs = [{**{name: card[name] for name in columns}, "model_sha256": card["file_sha256"]} for card in cards]
    write_table(Runs, runs, args.out / "runs.parquet")
    curves = read_tables(Curves, [args.models / job / "curves.parquet" for job in jobs])
    write_table(Curves, curves, args.out / "curves.parquet")
    print(f"{len(cards)} models on {len(tested)} images")


if __name__ == "__main__":
    cli.run(main)
