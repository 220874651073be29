"""Assign every image to a split by patient, over all sites, and check that nothing leaks between them.

Who was seen before keeps the side that the ledger (splits.csv) gives; who is new is written into it. Commit it.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from pipeline import cli
from pipeline.analysis.duplicates import Image, find_duplicates
from pipeline.analysis.flow import composition, patient_flow, require_both_classes
from pipeline.analysis.leakage import leakage, overlapping_origins
from pipeline.assignment import assign
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.key import PrivacyParams
from pipeline.ledger import read_ledger, write_ledger
from pipeline.params import (
    ParamsError,
    check_versions,
    load_names,
    load_params,
    read_params_file,
    section_of,
)
from pipeline.splits import SplitParams, check_sites
from pipeline.tables.contract import make_table, plain_text, read_table, read_tables, write_table
from pipeline.tables.files import Exclusions, Instances
from pipeline.tables.images import Composition, Duplicates, Flow, Images, Leakage, Splits
from pipeline.tables.labels import Labels, Terms


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
    """Files of which no image is used, as rows of ``tables.files.Exclusions`` with the first reason that applies.

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


def pixels_of(index: pd.DataFrame, folder: Path) -> Callable[[int], Image]:
    """A function from a row's position in ``index`` to its image (H, W) without padding.

    Args:
        index: site and the columns of ``tables.images.Images``.
        folder: of all sites' preprocess.
    """
    stores = {site: Store(folder / site) for site in index["site"].unique()}
    columns = ["site", "array_index", "pad_top", "pad_left", "resized_rows", "resized_columns"]
    places = list(index[columns].itertuples(index=False, name=None))

    def read(position: int) -> Image:
        site, array_index, top, left, rows, columns = places[position]
        image = stores[site].read([array_index])[0]
        # Of neighbouring slices the slice itself; what was cut off is negative padding.
        return image[len(image) // 2, max(top, 0) : top + rows, max(left, 0) : left + columns]

    return read


def duplicate_pairs(made: pd.DataFrame, images: pd.DataFrame, folder: Path, params: SplitParams) -> pd.DataFrame:
    """Rows of ``tables.images.Duplicates`` over all sites' images.

    Args:
        made: image_id, patient_id, site of the images there are.
        images: as ``tables.images.Images``.
        folder: of all sites' preprocess.
        params: the section.
    """
    index = made[["image_id", "patient_id", "site"]].merge(images, on="image_id").sort_values("image_id")
    pairs = find_duplicates(
        index["pixels_sha256"].tolist(),
        pixels_of(index, folder),
        params.duplicate_hamming,
        params.duplicate_correlation,
    )
    sides = [index.iloc[pairs[name]].reset_index(drop=True) for name in ("first", "second")]
    rows = pairs[["hamming", "correlation"]].assign(
        image_id=sides[0]["image_id"],
        duplicate_of=sides[1]["image_id"],
        patient_id=sides[0]["patient_id"],
        duplicate_patient_id=sides[1]["patient_id"],
        site=sides[0]["site"],
        duplicate_site=sides[1]["site"],
        same_patient=sides[0]["patient_id"] == sides[1]["patient_id"],
    )
    return make_table(Duplicates, rows)


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        ingest="the folder of all sites' ingest",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        ledger="the study's ledger of patients; made where it is not there",
        out="folder for the splits and their tables",
    )
    args = arguments.parse_args()
    params = load_params(SplitParams, "split", args.params)
    key = load_params(PrivacyParams, "privacy", args.params).key_fingerprint
    if key is None:
        raise ParamsError("privacy.key_fingerprint: required, but missing; `make repro` says what to write")
    check_versions("numpy", "opencv-python-headless", path=args.params)
    check_sites(params, load_names("sites", args.params))
    ledger = read_ledger(args.ledger, key)
    for parent in (args.ingest, args.images, args.labels):
        cli.prune(parent, params.sites)
    folders = {name: getattr(args, name) for name in ("ingest", "images", "labels")}
    instances = plain_text(read_instances([folders["ingest"] / site / "instances.parquet" for site in params.sites]))
    earlier = read_tables(
        Exclusions,
        [folders[stage] / site / "exclusions.parquet" for site in params.sites for stage in ("ingest", "images")],
    )
    images = plain_text(read_tables(Images, [folders["images"] / site / INDEX_FILE for site in params.sites]))
    labels = plain_text(read_tables(Labels, [folders["labels"] / site / "labels.parquet" for site in params.sites]))

    terms = read_tables(Terms, [folders["labels"] / site / "terms.parquet" for site in params.sites])
    entries = section_of(read_params_file(args.params), "sites", args.params)
    issuers = {site: entries[site].get("issuer") or site for site in params.sites}
    overlaps = overlapping_origins(terms, issuers, params)

    made = instances[instances["image_id"].isin(images["image_id"])]
    duplicates = plain_text(duplicate_pairs(made, images, folders["images"], params))
    assigned = assign(made, labels, duplicates, ledger, params)
    splits = plain_text(assigned.splits)
    keep = usable(splits, labels)
    unlabelled = made[made["image_id"].isin(splits.loc[~keep, "image_id"])]
    splits = splits[keep].reset_index(drop=True)
    lost = assigned.left_out | without_label(unlabelled, labels)
    excluded = excluded_files(made, splits, lost)
    exclusions = pd.concat([earlier, excluded], ignore_index=True)
    num_files = {
        site: instances.loc[instances["site"] == site, "source_id"].nunique()
        + int(((earlier["site"] == site) & (earlier["stage"] == "ingest")).sum())
        for site in params.sites
    }
    counts = composition(splits, labels)
    require_both_classes(counts, params.source)
    leaks = leakage(splits, instances, images, duplicates, overlaps, params)
    for check in leaks[leaks["must_be_zero"] & (leaks["count"] > 0)].to_dict("records"):
        # Splits are by patient and by picture, so what is left are images without contrast, which are all alike:
        # told here and in the report, and for a person to settle.
        print(f"LEAKAGE: {check['count']} {check['description']}")

    write_table(Splits, splits, args.out / "splits.parquet")
    write_table(Exclusions, exclusions, args.out / "exclusions.parquet")
    write_table(Flow, patient_flow(num_files, instances, exclusions, splits), args.out / "flow.parquet")
    write_table(Composition, counts, args.out / "composition.parquet")
    write_table(Leakage, leaks, args.out / "leakage.parquet")
    write_table(Duplicates, duplicates, args.out / "duplicates.parquet")
    write_ledger(args.ledger, key, assigned.ledger)  # last: a run that was refused gives nobody a side
    new = len(assigned.ledger) - len(ledger)
    print(f"{args.ledger.name}: {len(ledger)} patients known, {new} new" + ("; commit it" if new else ""))
    told = [f"{len(rows)} {reason}" for reason, rows in lost.items() if len(rows)]
    print(f"images left out: {', '.join(told) or 'none'}")
    print(splits.groupby(["site", "split"])["image_id"].count().to_string())


if __name__ == "__main__":
    cli.run(main)
