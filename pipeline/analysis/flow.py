"""The patient flow: from files to the images that are used, every loss with its reason; and who is where."""

from collections.abc import Sequence

import pandas as pd

from pipeline.errors import PipelineError
from pipeline.tables.contract import make_table
from pipeline.tables.images import Composition, Flow


def patient_flow(
    num_files: dict[str, int], instances: pd.DataFrame, exclusions: pd.DataFrame, splits: pd.DataFrame
) -> pd.DataFrame:
    """The funnel per site, checked to add up: files found = files used + files excluded.

    Args:
        num_files: files in each site's manifest.
        instances: all sites', as ``tables.files.Instances``.
        exclusions: all stages' and sites', as ``tables.files.Exclusions``.
        splits: as ``tables.images.Splits``.

    Raises:
        PipelineError: a file is neither used nor excluded, or both: a defect.
    """
    rows: list[dict[str, object]] = []
    used = instances[instances["image_id"].isin(splits["image_id"])]
    for site, found in num_files.items():
        left = instances[instances["site"] == site]
        rows.append(_row(site, 0, "inventory", "remaining", "", found, None, None))
        for step, stage in enumerate(("ingest", "preprocess", "split"), start=1):
            gone = exclusions[(exclusions["site"] == site) & (exclusions["stage"] == stage)]
            for (outcome, reason), group in gone.groupby(["outcome", "reason"]):
                images = left[left["source_id"].isin(group["source_id"])]
                known = stage != "ingest"  # a file that ingest refused has no image and no patient yet
                rows.append(
                    _row(
                        site, step, stage, str(outcome), str(reason), group["source_id"].nunique(),
                        len(images) if known else None, images["patient_id"].nunique() if known else None,
                    )
                )  # fmt: skip
            left = left[~left["source_id"].isin(gone["source_id"])]
            if stage == "split":  # of a file with several frames some may have no label
                left = left[left["image_id"].isin(splits["image_id"])]
            counts = (left["source_id"].nunique(), len(left), left["patient_id"].nunique())
            rows.append(_row(site, step, stage, "remaining", "", *counts))
        here = set(used.loc[used["site"] == site, "source_id"])
        excluded = set(exclusions.loc[exclusions["site"] == site, "source_id"])
        if here & excluded or len(here) + len(excluded) != found:
            raise PipelineError(
                f"defect: site {site} has {found} files, but {len(here)} are used and {len(excluded)} excluded"
            )
    return make_table(Flow, rows)


def composition(splits: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Patients, images and labels per site, split and finding, as ``tables.images.Composition``."""
    joined = splits.merge(labels, on="image_id")
    rows = [
        {
            "site": site,
            "split": split,
            "finding": finding,
            "num_images": len(group),
            "num_patients": group["patient_id"].nunique(),
            "num_positive": int((group["label"] == 1).sum()),
            "num_negative": int((group["label"] == 0).sum()),
            "num_unknown": int(group["label"].isna().sum()),
        }
        for (site, split, finding), group in joined.groupby(["site", "split", "finding"])
    ]
    return make_table(Composition, rows)


def require_both_classes(counts: pd.DataFrame, sources: Sequence[str]) -> None:
    """Training needs both classes of every finding, in train and in id_val.

    Raises:
        PipelineError: names finding, split and what is there.
    """
    for split in ("train", "id_val"):
        of_split = counts[(counts["split"] == split) & counts["site"].isin(sources)]
        if of_split.empty:
            raise PipelineError(f"no labelled image of the source sites {list(sources)} is in {split}")
        for finding, group in of_split.groupby("finding"):
            positive, negative = int(group["num_positive"].sum()), int(group["num_negative"].sum())
            if positive == 0 or negative == 0:
                raise PipelineError(
                    f"finding '{finding}': the source sites {list(sources)} have {positive} positive and "
                    f"{negative} negative images in {split}; both classes are needed. Check the sites' label "
                    "columns and values, or add a source site"
                )


def _row(
    site: str, step: int, stage: str, kind: str, reason: str,
    files: int, images: int | None, patients: int | None,
) -> dict[str, object]:  # fmt: skip
    return {
        "site": site, "step": step, "stage": stage, "kind": kind, "reason": reason,
        "num_files": files, "num_images": images, "num_patients": patients,
    }  # fmt: skip
