"""Assign every image to a split by patient, over all sites, and check that nothing leaks between them."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipeline import cli
from pipeline.analysis.flow import composition, patient_flow, require_both_classes
from pipeline.analysis.leakage import leakage
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE
from pipeline.params import load_names, load_params
from pipeline.splits import SplitParams, assign, check_sites
from pipeline.tables import (
    Composition,
    Exclusions,
    Flow,
    Images,
    Instances,
    Labels,
    Leakage,
    Splits,
    make_table,
    read_table,
    read_tables,
    write_table,
)


def usable(splits: pd.DataFrame, labels: pd.DataFrame) -> pd.Series:
    """Which rows of ``splits`` can serve: with a label for some finding, or where no label is looked at."""
    annotated = set(labels.loc[labels["label"].notna(), "image_id"])
    return splits["image_id"].isin(annotated) | (splits["split"] == "target_adapt")


def without_label(images: pd.DataFrame, labels: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Images that have no label for any finding, by reason: conflicting, else uncertain, else missing."""
    lost = {}
    for status in ("conflicting", "uncertain", "missing"):
        # Whatever is left is missing, a finding without a row included.
        told = images["image_id"].isin(labels.loc[labels["status"] == status, "image_id"]) | (status == "missing")
        lost[f"{status}_label"], images = images[told], images[~told]
    return lost


def read_instances(paths: Iterable[Path]) -> pd.DataFrame:
    """All sites' instances.

    Raises:
        PipelineError: a SOP instance stands at two sites, which makes neither a test of the other.
    """
    together = pd.concat([read_table(Instances, path) for path in paths], ignore_index=True)
    twice = together[together["image_id"].duplicated(keep=False)]
    if len(twice):
        raise PipelineError(
            f"{twice['image_id'].nunique()} images stand at more than one site "
            f"({', '.join(sorted(set(twice['site'])))}): the same SOP Instance UID in two archives. "
            "Remove them from one, run `python -m pipeline.commands.inventory`, then `dvc repro`"
        )
    return make_table(Instances, together)


def excluded_files(made: pd.DataFrame, splits: pd.DataFrame, lost: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Files of which no image is used, as rows of ``tables.Exclusions`` with the first reason that applies.

    Args:
        made: image_id, source_id, site of all images there are.
        splits: the images that are used.
        lost: reason to the images (source_id, site) that it concerns.
    """
    used = set(made.loc[made["image_id"].isin(splits["image_id"]), "source_id"])
    rows = pd.concat(
        [
            frame[["source_id", "site"]].assign(stage="split", outcome="unused", reason=reason)
            for reason, frame in lost.items()
        ]
    )
    return make_table(Exclusions, rows[~rows["source_id"].isin(used)].drop_duplicates("source_id"))


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        ingest="the folder of all sites' ingest",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        out="folder for the splits and their tables",
    )
    args = arguments.parse_args()
    params = load_params(SplitParams, "split", args.params)
    check_sites(params, load_names("sites", args.params))
    for parent in (args.ingest, args.images, args.labels):
        cli.prune(parent, params.sites)
    folders = {name: getattr(args, name) for name in ("ingest", "images", "labels")}
    instances = read_instances([folders["ingest"] / site / "instances.parquet" for site in params.sites])
    earlier = read_tables(
        Exclusions,
        [folders[stage] / site / "exclusions.parquet" for site in params.sites for stage in ("ingest", "images")],
    )
    images = pd.concat([read_table(Images, folders["images"] / site / INDEX_FILE) for site in params.sites])
    labels = read_tables(Labels, [folders["labels"] / site / "labels.parquet" for site in params.sites])

    made = instances[instances["image_id"].isin(images["image_id"])]
    splits, crossing = assign(made, params)
    keep = usable(splits, labels)
    unlabelled = made[made["image_id"].isin(splits.loc[~keep, "image_id"])]
    splits = splits[keep].reset_index(drop=True)
    excluded = excluded_files(made, splits, {"patient_in_source": crossing, **without_label(unlabelled, labels)})
    exclusions = pd.concat([earlier, excluded], ignore_index=True)
    num_files = {
        site: instances.loc[instances["site"] == site, "source_id"].nunique()
        + int(((earlier["site"] == site) & (earlier["stage"] == "ingest")).sum())
        for site in params.sites
    }
    counts = composition(splits, labels)
    require_both_classes(counts, params.source)
    leaks = leakage(splits, instances, images)
    for check in leaks[leaks["must_be_zero"] & (leaks["count"] > 0)].to_dict("records"):
        # Splits are by patient, so what is left are copies of one picture under two patients: told here and in
        # the report, and for a person to settle.
        print(f"LEAKAGE: {check['count']} {check['description']}")

    write_table(Splits, splits, args.out / "splits.parquet")
    write_table(Exclusions, exclusions, args.out / "exclusions.parquet")
    write_table(Flow, patient_flow(num_files, instances, exclusions, splits), args.out / "flow.parquet")
    write_table(Composition, counts, args.out / "composition.parquet")
    write_table(Leakage, leaks, args.out / "leakage.parquet")
    print(splits.groupby(["site", "split"])["image_id"].count().to_string())


if __name__ == "__main__":
    cli.run(main)
