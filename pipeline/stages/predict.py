"""Apply every trained model to the source's id_val and id_test and to all images of the targets.

Of the targets' ``target_adapt`` no label is joined: those images may be seen, their labels may not. Beside the
predictions stands how far each target lies from the source in each run's features (``Distances``).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import nn
from tqdm import tqdm

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.metrics.distance import MAX_ROWS, draw_rows, mmd_test
from pipeline.params import check_versions, load_names, load_params
from pipeline.splits import SplitParams
from pipeline.tables.contract import read_table, read_tables, write_table
from pipeline.tables.images import TARGET_SPLITS, Images, Splits
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Curves, Distances, Runs
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.feed import AugmentParams, ImageFeed
from pipeline.training.inference import load_together, logits_of, model_folders

PERMUTATIONS = 199


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


def domain_distances(
    features: Mapping[str, npt.NDArray[np.float32]], parts: Mapping[str, pd.DataFrame], params: SplitParams
) -> list[dict[str, Any]]:
    """Rows of ``tables.training.Distances`` without the run, one a target site.

    Args:
        features: per site (n, D), of the images of ``parts``.
        parts: per site the patient_id and split of n images.
        params: which sites are source and which target.
    """
    home = pd.concat([parts[site] for site in params.source])
    at_home = np.concatenate([features[site] for site in params.source])
    patients, selecting = home["patient_id"].to_numpy(str), (home["split"] == "id_val").to_numpy(bool)
    options: dict[str, Any] = {"permutations": PERMUTATIONS, "seed": 1}
    noise, _ = mmd_test(
        at_home[selecting], at_home[~selecting], codes_x=_codes(patients[selecting]),
        codes_y=_codes(patients[~selecting]), **options,
    )  # fmt: skip
    rows = []
    for site in params.target:
        own = parts[site]["patient_id"].to_numpy(str)
        value, p = mmd_test(at_home, features[site], codes_x=_codes(patients), codes_y=_codes(own), **options)
        note = "" if np.isfinite(value) else "fewer than two patients at home or there"
        rows.append(
            {"site": site, "mmd2": value, "p_value": p, "home_mmd2": noise, "num_images": len(own),
             "num_patients": len(set(own)), "note": note}
        )  # fmt: skip
    return rows


def _codes(patients: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    return np.unique(patients, return_inverse=True)[1]


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        split="the folder of split",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        models="the folder of all finetune outputs",
        out="folder for predictions, runs, distances and curves",
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
    tested = splits[splits["split"].isin(["id_val", "id_test", *TARGET_SPLITS])]
    parts = {
        site: tested[tested["site"] == site].merge(
            read_table(Images, args.images / site / INDEX_FILE)[["image_id", "array_index"]], on="image_id"
        )
        for site in params.sites
    }
    # Of each site so many images, in whole patients, that distances can be taken of.
    kept = {site: np.zeros(len(part), dtype=bool) for site, part in parts.items()}
    for site, part in parts.items():
        kept[site][draw_rows(_codes(part["patient_id"].to_numpy(str)), MAX_ROWS, 1)] = True
    stores = {site: Store(args.images / site) for site in params.sites}
    protocol = "+".join(params.source)
    groups = model_folders(args.models, jobs)
    judged = int((tested["split"] != "target_adapt").sum())
    if not groups or not judged:
        number = sum(len(folders) for folders in groups)
        raise PipelineError(f"nothing to predict: {number} models, {judged} images that select or test")
    frames, cards, distances = [], [], []
    with tqdm(total=len(groups) * len(tested), desc="predict", unit="image", mininterval=0.5) as bar:
        for folders in groups:
            model, members = load_together(folders)
            model = model.to(memory_format=layout).to(fabric.device)
            heads = [head.to(fabric.device) for head, _ in members]
            cards += [card for _, card in members]
            features: dict[str, npt.NDArray[np.float32]] = {}
            width = next(layer.in_features for layer in model.head.modules() if isinstance(layer, nn.Linear))
            for site, part in parts.items():
                index = part["array_index"].to_numpy(np.int64)
                features[site] = np.empty((0, width), dtype=np.float32)
                if len(index):
                    feed = ImageFeed(stores[site], fabric.device, layout, AugmentParams(), 0)
                    found, features[site] = logits_of(model, heads, feed, index, compute.batch_size, kept[site])
                    for (_, card), logits in zip(members, found, strict=True):
                        frames.append(rows_of_run(card, site, part, logits, protocol))
                bar.update(len(index))
            rows = domain_distances(features, {site: part[kept[site]] for site, part in parts.items()}, params)
            distances += [{"run": card["run"], **row} for _, card in members for row in rows]
    # Labels join last: nothing above has seen one.
    labels = read_tables(Labels, [args.labels / site / "labels.parquet" for site in params.sites])
    predictions = pd.concat(frames).merge(labels.drop(columns="status"), on=["image_id", "finding"], how="left")
    predictions.loc[predictions["split"] == "target_adapt", "label"] = None
    write_table(Predictions, predictions, args.out / "predictions.parquet")
    columns = [name for name in Runs.columns if name != "model_sha256"]
    runs = [{**{name: card[name] for name in columns}, "model_sha256": card["file_sha256"]} for card in cards]
    write_table(Runs, runs, args.out / "runs.parquet")
    write_table(Distances, distances, args.out / "distances.parquet")
    curves = read_tables(Curves, [args.models / job / "curves.parquet" for job in jobs])
    write_table(Curves, curves, args.out / "curves.parquet")
    print(f"{len(cards)} models on {len(tested)} images")


if __name__ == "__main__":
    cli.run(main)
