"""Membership inference: how well an attacker who sees a model's outputs tells training patients from others at home.

Every run sees the gathered training images and id_test's, unaugmented and preprocessed alike. Counts and areas are
written and no patient's score: a list of exposed patients would be the leak itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline import cli
from pipeline.analysis.membership import Images, MembershipParams, Trained, audit
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.metrics.binary import FloatArray
from pipeline.params import check_versions, load_names, load_params
from pipeline.splits import SplitParams
from pipeline.stages.finetune import FinetuneParams, Run, load_dataset, restrict
from pipeline.tables.contract import read_table, read_tables, write_table
from pipeline.tables.images import Images as ImagesTable
from pipeline.tables.images import Splits
from pipeline.tables.labels import Labels
from pipeline.tables.membership import MembershipAttacks, MembershipExposures
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.feed import AugmentParams, Dataset, ImageFeed, Indices
from pipeline.training.inference import load_together, logits_of, model_folders


def trained_run(card: Mapping[str, Any], data: Dataset, params: FinetuneParams) -> Trained:
    """A model's card and the gathered images to what it was trained on.

    Raises:
        PipelineError: the card counts other images.
    """
    run = Run(*(card[name] for name in ("backbone", "method", "seed", "label_fraction", "draw", "shots")))
    seen = restrict(data, run, params)
    if len(seen.train) != card["num_train_images"]:
        raise PipelineError(
            f"{run.name} was trained on {card['num_train_images']} images; here it would be {len(seen.train)}. "
            "Models and gathered images are not of one run; `dvc repro` makes them so"
        )
    return Trained(
        name=str(card["run"]),
        family=f"{run.backbone}-{run.method}",
        kind="fraction" if run.shots is None else "shots",
        budget=run.label_fraction if run.shots is None else float(run.shots),
        all_labels=run.shots is None and run.label_fraction == 1.0,
        labels=seen.labels.astype(np.float64),
        train=seen.train,
    )


def predict_all(
    groups: list[list[Path]], places: list[tuple[Store, Indices]], compute: ComputeParams
) -> tuple[list[dict[str, Any]], dict[str, FloatArray]]:
    """All models' cards, and by run the logits (n, findings) of the images of all places, in their order.

    Args:
        groups: folders of models, those with one trunk together; one trunk is held at a time.
        places: stores, and which of their images.
        compute: device and batch size.
    """
    fabric, layout = make_fabric(compute), memory_format(compute)
    cards, logits = [], {}
    total = len(groups) * sum(len(index) for _, index in places)
    with tqdm(total=total, desc="membership", unit="image", mininterval=0.5) as bar:
        for folders in groups:
            model, members = load_together(folders)
            model = model.to(memory_format=layout).to(fabric.device)
            heads = [head.to(fabric.device) for head, _ in members]
            found = []
            for store, index in places:
                feed = ImageFeed(store, fabric.device, layout, AugmentParams(), 0)
                no_features = np.zeros(len(index), dtype=np.bool_)
                found.append(logits_of(model, heads, feed, index, compute.batch_size, no_features)[0])
                bar.update(len(index))
            for (_, card), own in zip(members, zip(*found, strict=True), strict=True):
                cards.append(card)
                logits[str(card["run"])] = np.concatenate(own).astype(np.float64)
    return cards, logits


def labels_of(labels: pd.DataFrame, images: pd.Series, findings: list[str]) -> FloatArray:
    """(n, findings) 0, 1 or NaN of these images, of rows of ``tables.labels.Labels``."""
    columns: list[NDArray[np.float64]] = []
    for finding in findings:
        given = labels[labels["finding"] == finding].set_index("image_id")["label"].reindex(images)
        columns.append(given.astype("Float64").to_numpy(np.float64, na_value=np.nan))
    return np.stack(columns, axis=1)


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        gather="the folder of gather",
        split="the folder of split",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        models="the folder of all finetune outputs",
        out="folder for attacks and exposures",
    )
    args = arguments.parse_args()
    check_versions("monai", "numpy", "scikit-learn", "scipy", "torch", "torchvision", path=args.params)
    params = load_params(MembershipParams, "membership", args.params)
    sides = load_params(SplitParams, "split", args.params)
    compute = load_params(ComputeParams, "compute", args.params)
    finetune = load_params(FinetuneParams, "finetune", args.params)
    jobs = [
        f"{backbone}-{method}"
        for backbone in load_names("backbones", args.params)
        for method in load_names("methods", args.params)
    ]
    groups = model_folders(args.models, jobs)
    data, findings = load_dataset(args.gather)
    splits = read_table(Splits, args.split / "splits.parquet")
    tested = splits[splits["split"] == "id_test"]
    if not groups or not len(tested):
        number = sum(len(folders) for folders in groups)
        raise PipelineError(
            f"nothing to audit: {number} models, {len(tested)} images of id_test. Raise split.id_test_fraction"
        )
    gathered = Store(args.gather)
    everything = np.concatenate([data.train, data.id_val])
    places, others = [(gathered, everything)], []
    for site in sorted(sides.source):
        store = Store(args.images / site)
        if (store.format, store.shape[1]) != (gathered.format, gathered.shape[1]):
            raise PipelineError(f"the arrays of {site} differ in format from the gathered ones; run `dvc repro`")
        index = read_table(ImagesTable, args.images / site / INDEX_FILE)[["image_id", "array_index"]]
        part = tested[tested["site"] == site].merge(index, on="image_id")
        if len(part):
            places.append((store, part["array_index"].to_numpy(np.int64)))
            others.append(part)
    never = pd.concat(others, ignore_index=True)
    cards, logits = predict_all(groups, places, compute)
    # By place in the gathered arrays; what is on no side stays unseen.
    home = {run: np.full((len(gathered), len(findings)), np.nan) for run in logits}
    for run, values in logits.items():
        home[run][everything] = values[: len(everything)]
    given = read_tables(Labels, [args.labels / site / "labels.parquet" for site in sides.source])
    images = Images(
        patients=data.patients,
        train_side=data.pool,
        id_val=data.id_val,
        logits=home,
        other_patients=never["patient_id"].to_numpy(str),
        other_labels=labels_of(given, never["image_id"], findings),
        other_logits={run: values[len(everything) :] for run, values in logits.items()},
    )
    runs = sorted((trained_run(card, data, finetune) for card in cards), key=lambda run: run.name)
    attacks, exposures = audit(runs, images, params)
    write_table(MembershipAttacks, attacks, args.out / "attacks.parquet")
    write_table(MembershipExposures, exposures, args.out / "exposures.parquet")
    print(f"{len(cards)} models, {len(set(never['patient_id']))} patients that none of them saw")


if __name__ == "__main__":
    cli.run(main)
