"""Is a known site's new month still like what came before? Exit code 1 where it is not; no label is needed.

Give the site and a folder of its new files. They go through the site's own ingest and preprocess, and through the
study's models, in a folder of their own that is deleted at the end: nothing is trained, and neither data nor dvc.lock
changes. Their embeddings and predicted prevalence are compared with those of the site's earlier held-out images
(section ``drift`` in params). Markdown on the screen, for a pull request or a mail; it names no patient.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from ruamel.yaml import YAML

from pipeline import cli
from pipeline.analysis.drift import Check, DriftParams, Sides, drift_checks, predicted
from pipeline.datasets.inventory import identify, take_inventory
from pipeline.datasets.registry import load_site
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.key import KEY_FILE, load_key
from pipeline.params import ParamsError, load_names, load_params, nearest, read_params_file
from pipeline.stages.features import FEATURES_FILE, features_of
from pipeline.tables.contract import plain_text, read_table, write_table
from pipeline.tables.diagnosis import Embedded
from pipeline.tables.files import Exclusions, Instances, Manifest
from pipeline.tables.images import Images
from pipeline.tables.predictions import Predictions
from pipeline.training.backbone import build
from pipeline.training.checkpoints import load_weights
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.feed import AugmentParams, ImageFeed
from pipeline.training.inference import load_together, logits_of, model_folders
from pipeline.withdrawn import WITHDRAWN_FILE

FloatArray = npt.NDArray[np.float64]

# What no model was fitted to; of a target the labels of these are sealed, and not looked at here.
HELD_OUT = ("id_val", "id_test", "target_adapt", "ood_test")


@dataclass(frozen=True)
class Month:
    """A site's new images.

    Attributes:
        images: image_id, patient_id and array_index of the images that the study has not.
        store: their arrays.
        num_files: in the folder.
        excluded: how many files each reason left out.
        num_known: images that the study has already.
    """

    images: pd.DataFrame
    store: Store
    num_files: int
    excluded: Mapping[str, int]
    num_known: int


def read_month(site: str, folder: Path, known: set[str], params_path: Path, work: Path) -> Month:
    """The new files through the site's ingest and preprocess, as they would go if they were in its archive.

    Args:
        site: one of the study's.
        folder: of raw files, in the layout of the site's own.
        known: image_id of the images that the study has.
        params_path: the study's params.yaml.
        work: an empty folder; everything made is below it.

    Raises:
        PipelineError: a stage failed; what it said stands above.
    """
    tree = read_params_file(params_path)
    base = params_path.parent
    own = {**tree["sites"][site], "root": os.fspath(folder.resolve())}
    with (work / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump({**tree, "sites": {site: own}}, file)
    for name in (WITHDRAWN_FILE, os.fspath(KEY_FILE)):
        if (base / name).is_file():
            shutil.copy(base / name, work / name)  # the mode too: a private key stays private
    adapter, entry = load_site(site, work / "params.yaml")
    key = load_key(work / "params.yaml")
    manifest = take_inventory(identify(adapter, entry, site, work, key), key, hash_content=False)
    write_table(Manifest, manifest, work / "manifest.parquet")
    shared = ["--site", site, "--manifest", work / "manifest.parquet", "--params", work / "params.yaml"]
    _stage("ingest", *shared, "--out", work / "ingest")
    _stage("preprocess", *shared, "--ingest", work / "ingest", "--out", work / "images")
    instances = plain_text(read_table(Instances, work / "ingest/instances.parquet"))[["image_id", "patient_id"]]
    index = plain_text(read_table(Images, work / "images" / INDEX_FILE))[["image_id", "array_index"]]
    images = index.merge(instances, on="image_id")
    new = images[~images["image_id"].isin(known)].sort_values("array_index", ignore_index=True)
    excluded: Counter[str] = Counter()
    for stage in ("ingest", "images"):
        excluded.update(read_table(Exclusions, work / stage / "exclusions.parquet")["reason"].tolist())
    return Month(new, Store(work / "images"), len(manifest), dict(sorted(excluded.items())), len(images) - len(new))


def _stage(name: str, *options: object) -> None:
    # A process of its own, as DVC starts it; what it prints is not the summary that this command is asked for.
    command = [sys.executable, "-m", f"pipeline.stages.{name}", *map(str, options)]
    done = subprocess.run(command, check=False, stdout=sys.stderr)
    if done.returncode:
        raise PipelineError(f"{name} failed on the new files; what it said stands above")


def new_embeddings(month: Month, weights: Path, compute: ComputeParams) -> npt.NDArray[np.float32]:
    """(M, D) of the new images in the frozen backbone, as ``embed`` makes them."""
    state, card = load_weights(weights)
    model = build(card["backbone"], 1, seed=0, state=state, image_shape=month.store.shape[1:])
    features = features_of(model, month.store, make_fabric(compute), compute, card["backbone"])
    return features[month.images["array_index"].to_numpy(np.int64)]


def new_logits(month: Month, models: Path, name: str, compute: ComputeParams) -> dict[str, FloatArray]:
    """By finding the mean logit (M,) of the new images over a model's trainings with all labels.

    Raises:
        PipelineError: there is none, or it takes images of another shape.
    """
    fabric, layout = make_fabric(compute), memory_format(compute)
    made: dict[str, list[FloatArray]] = {}
    for folders in model_folders(models, [name]):
        cards = [json.loads((folder / "model.json").read_text(encoding="utf-8")) for folder in folders]
        whole = [f for f, card in zip(folders, cards, strict=True) if card["label_fraction"] == 1 and not card["shots"]]
        if not whole:
            continue
        model, members = load_together(whole)
        shape = tuple(members[0][1]["image_shape"])
        if shape != month.store.shape[1:]:
            raise PipelineError(f"{name} takes images of {shape}, and preprocess gave {month.store.shape[1:]}")
        model = model.to(memory_format=layout).to(fabric.device)
        heads = [head.to(fabric.device) for head, _ in members]
        feed = ImageFeed(month.store, fabric.device, layout, AugmentParams(), 0)
        index = month.images["array_index"].to_numpy(np.int64)
        found, _ = logits_of(model, heads, feed, index, compute.batch_size, np.zeros(len(index), dtype=np.bool_))
        for (_, card), logits in zip(members, found, strict=True):
            for position, finding in enumerate(card["findings"]):
                made.setdefault(str(finding), []).append(logits[:, position].astype(np.float64))
    if not made:
        raise PipelineError(f"{models} holds no training of {name} with all labels; `dvc repro` makes them")
    return {finding: np.mean(values, axis=0) for finding, values in sorted(made.items())}


def earlier_logits(predictions: Path, model: str) -> pd.DataFrame:
    """The mean logit of each image and finding over the same trainings, with site, split, patient and label."""
    backbone, method = model.split("-")
    rows = plain_text(read_table(Predictions, predictions))
    own = rows[
        (rows["backbone"] == backbone)
        & (rows["method"] == method)
        & (rows["adaptation"].fillna("none") == "none")
        & (rows["label_fraction"].fillna(1.0) == 1.0).to_numpy(bool)
        & rows["shots"].isna().to_numpy(bool)
    ]
    keys = ["finding", "image_id", "patient_id", "site", "split"]
    own = own.assign(label=own["label"].astype("Float64").astype(float))
    return own.groupby(keys, as_index=False).agg(logit=("logit", "mean"), label=("label", "first"))


def sides_of(before: npt.NDArray[Any], patients: npt.NDArray[Any], now: npt.NDArray[Any], month: Month) -> Sides:
    """Earlier and new values; who comes again is left out of the earlier ones."""
    new = month.images["patient_id"].to_numpy(object)
    kept = ~np.isin(patients.astype(str), new.astype(str))
    return Sides(before[kept], patients[kept], now, new)


def to_markdown(site: str, month: Month, checks: list[Check], params: DriftParams) -> str:
    """What a mail or a pull request can show."""
    drifted = [check for check in checks if check.drifted]
    patients = month.images["patient_id"].nunique()
    about = f"{site}, {len(month.images)} new images of {patients} patients"
    head = (
        f"**Drift**: {about}; {len(drifted)} of {len(checks)} checks at level {params.alpha:g}."
        if drifted
        else f"**No drift found**: {about}; {len(checks)} checks at level {params.alpha:g}."
    )
    lines = [head, "", "| what | before | now | statistic | p, Holm | |", "|---|---:|---:|---:|---:|---|"]
    for check in checks:
        words = {"images": "images, distance of embeddings", "prevalence": "predicted prevalence"}[check.kind]
        cells = [check.before, check.now, check.statistic, check.p_holm]
        shown = ["" if np.isnan(value) else f"{value:.4f}" for value in cells]
        verdict = "**drifted**" if check.drifted else check.note
        lines.append(f"| {words}: {check.subject} | {' | '.join(shown)} | {verdict} |")
    left_out = ", ".join(f"{number} {reason}" for reason, number in month.excluded.items()) or "none"
    lines += [
        "",
        f"Files: {month.num_files}; left out: {left_out}. Images that the study has: {month.num_known}.",
    ]
    return "\n".join(lines) + "\n"


def check_site(args: Namespace, params: DriftParams) -> tuple[Month, list[Check]]:
    """The new month, and the tests against the site's earlier images.

    Raises:
        PipelineError: nothing is new, or nothing can be tested.
    """
    compute = load_params(ComputeParams, "compute", args.params)
    base = args.params.parent
    backbone, _ = params.model.split("-")
    data = base / "data"
    index = plain_text(read_table(Embedded, data / "embed" / backbone / "index.parquet"))
    checkpoints = base / ".checkpoints"
    checkpoints.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="drift-", dir=checkpoints) as work:
        month = read_month(args.site, args.folder, set(index["image_id"]), args.params, Path(work))
        if not len(month.images):
            raise PipelineError(f"the study has all {month.num_known} images of the folder already: nothing is new")
        there = index[(index["site"] == args.site) & index["split"].isin(HELD_OUT)].sort_values("row")
        features = np.load(data / "embed" / backbone / FEATURES_FILE, mmap_mode="r", allow_pickle=False)
        embedded = sides_of(
            features[there["row"].to_numpy(np.int64)],
            there["patient_id"].to_numpy(object),
            new_embeddings(month, data / "weights" / backbone, compute),
            month,
        )
        logits = new_logits(month, data / "models", params.model, compute)
    scores = {}
    for finding, rows in earlier_logits(data / "predict/predictions.parquet", params.model).groupby("finding"):
        home = rows[rows["split"].isin(["id_val", "id_test"]) & rows["label"].notna()]
        labels = home["label"].to_numpy(np.int64)
        if finding not in logits or len(set(labels.tolist())) < 2:
            continue  # nothing to calibrate with; said below where it leaves nothing
        own = rows[rows["site"] == args.site]
        both = np.concatenate([own["logit"].to_numpy(float), logits[str(finding)]])
        values = predicted(home["logit"].to_numpy(float), labels, both)
        scores[str(finding)] = sides_of(
            values[: len(own)], own["patient_id"].to_numpy(object), values[len(own) :], month
        )
    checks = drift_checks({backbone: embedded}, scores, params)
    if all(check.note for check in checks):
        raise PipelineError(f"nothing can be tested: {checks[0].note}")
    return month, checks


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__, folder="the site's new files, in the layout of its own")
    arguments.add_argument("--site", required=True, help="of the study, whose new files these are")
    arguments.add_argument("--out", type=Path, metavar="PATH", help="file for the Markdown too")
    args = arguments.parse_args()
    params = load_params(DriftParams, "drift", args.params)
    known = load_names("sites", args.params)
    if args.site not in known:
        raise ParamsError(f"--site: unknown site '{args.site}'{nearest(args.site, known)}")
    jobs = [f"{b}-{m}" for b in load_names("backbones", args.params) for m in load_names("methods", args.params)]
    if params.model not in jobs:
        raise ParamsError(f"drift.model: the study trains no '{params.model}'{nearest(params.model, jobs)}")
    if not args.folder.is_dir():
        raise PipelineError("--folder: there is no such folder")
    month, checks = check_site(args, params)
    text = to_markdown(args.site, month, checks, params)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    sys.exit(1 if any(check.drifted for check in checks) else 0)


if __name__ == "__main__":
    cli.run(main)
