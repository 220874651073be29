"""Diagnose the shift to each target site: what its images and scores are compatible with, what can be read off them.

Labels of target_adapt are looked at only where ``diagnose.use_target_labels`` says so; those of ood_test judge
abstention and nothing else.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from threadpoolctl import threadpool_limits

from pipeline import cli
from pipeline.analysis.diagnosis import Cues, by_finding, diagnose, mean_logits
from pipeline.analysis.probes import border_cues, header_cues
from pipeline.analysis.shift import DiagnoseParams
from pipeline.embedded import read_features
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.params import check_versions, load_names, load_params
from pipeline.splits import SplitParams
from pipeline.tables.contract import plain_text, read_table, read_tables, write_table
from pipeline.tables.files import Instances, Manifest
from pipeline.tables.images import Images, Splits
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions

_BATCH = 256


def read_cues(images: Path, ingest: Path, manifests: Path, sites: list[str], used: pd.DataFrame) -> Cues:
    """What the shortcut audit sees of these sites' images that are in ``used`` (image_id)."""
    frames = []
    seen: dict[str, list[npt.NDArray[np.float64]]] = {}
    for site in sites:
        own = plain_text(read_table(Instances, ingest / site / "instances.parquet"))
        sizes = plain_text(read_table(Manifest, manifests / f"{site}.parquet")).set_index("source_id")["size_bytes"]
        index = plain_text(read_table(Images, images / site / INDEX_FILE))[["image_id", "array_index"]]
        frame = index[index["image_id"].isin(used["image_id"])].merge(own, on="image_id")
        frames.append(frame.assign(size_bytes=frame["source_id"].map(sizes)))
        store, rows = Store(images / site), frame["array_index"].to_numpy(np.int64)
        for start in range(0, len(rows), _BATCH):
            for cue, values in border_cues(store.shown(rows[start : start + _BATCH])).items():
                seen.setdefault(cue, []).append(values)
    together = pd.concat(frames, ignore_index=True)
    border = {cue: np.concatenate(parts) for cue, parts in seen.items()}
    return Cues(together[["image_id", "patient_id"]], {**border, **header_cues(together)})


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        embed="the folder of all backbones' embed",
        predict="the folder of predict",
        split="the folder of split",
        labels="the folder of all sites' labels",
        images="the folder of all sites' preprocess",
        ingest="the folder of all sites' ingest",
        manifests="the folder of all sites' manifests",
        out="folder for diagnoses, tests, probes, outlyingness and abstention",
    )
    args = arguments.parse_args()
    check_versions("numpy", "scikit-learn", "scipy", path=args.params)
    params = load_params(DiagnoseParams, "diagnose", args.params)
    sides = load_params(SplitParams, "split", args.params)
    backbones = load_names("backbones", args.params)
    cli.prune(args.embed, backbones)
    for parent in (args.labels, args.images, args.ingest):
        cli.prune(parent, sides.sites)
    splits = plain_text(read_table(Splits, args.split / "splits.parquet"))
    home = plain_text(read_tables(Labels, [args.labels / site / "labels.parquet" for site in sides.source]))
    away = None
    if params.use_target_labels:
        every = plain_text(read_tables(Labels, [args.labels / site / "labels.parquet" for site in sides.target]))
        adapt = splits.loc[splits["split"] == "target_adapt", "image_id"]
        away = by_finding(every[every["image_id"].isin(adapt)])
    logits = mean_logits(plain_text(read_table(Predictions, args.predict / "predictions.parquet")))
    features = {name: read_features(args.embed / name) for name in backbones}
    cues = read_cues(args.images, args.ingest, args.manifests, sides.source, splits)
    with threadpool_limits(1):  # sums of several threads depend on how many there are
        tables = diagnose(features, logits, by_finding(home), away, cues, sides, params)
    for name, (contract, table) in tables.items():
        write_table(contract, table, args.out / f"{name}.parquet")
    diagnoses = tables["diagnoses"][1]
    for (site, hypothesis), rows in diagnoses.groupby(["site", "hypothesis"]):
        counts = rows["verdict"].value_counts().sort_index()
        print(f"{site}, {hypothesis}: {', '.join(f'{verdict} {count}' for verdict, count in counts.items())}")


if __name__ == "__main__":
    cli.run(main)
