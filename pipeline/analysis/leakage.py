"""The leakage check: what stands on two sides of a split, counted."""

import pandas as pd

from pipeline.tables import Leakage, make_table


def leakage(splits: pd.DataFrame, instances: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Counts as ``tables.Leakage``.

    Args:
        splits: as ``tables.Splits``.
        instances: image_id, source_hmac, study_id.
        images: image_id, sha256 of the preprocessed pixels.
    """
    known = splits.merge(instances[["image_id", "source_hmac", "study_id"]], on="image_id").merge(
        images[["image_id", "pixels_sha256"]], on="image_id"
    )
    same_pixels = known.groupby("pixels_sha256")
    splits_of_pixels, copies = same_pixels["split"].transform("nunique"), same_pixels["image_id"].transform("size")
    within = (splits_of_pixels == 1) & (copies > 1)
    checks = [
        (
            "patients_in_two_splits",
            "patients with images in more than one split",
            _shared(known, "patient_id"),
            True,
        ),
        (
            "studies_in_two_splits",
            "studies with images in more than one split",
            _shared(known, "study_id"),
            True,
        ),
        (
            "files_in_two_splits",
            "byte-identical files in more than one split",
            _shared(known, "source_hmac"),
            True,
        ),
        (
            "pixels_in_two_splits",
            "different images with identical pixels in more than one split",
            _shared(known, "pixels_sha256"),
            True,
        ),
        (
            "pixels_repeated_within_split",
            "groups of images with identical pixels inside one split (they count more than once)",
            int(known.loc[within, "pixels_sha256"].nunique()),
            False,
        ),
        (
            "patients_at_two_sites",
            "patients with images at more than one site, kept on one side",
            _shared(known, "patient_id", "site"),
            False,
        ),
    ]
    names = ("check", "description", "count", "must_be_zero")
    return make_table(Leakage, [dict(zip(names, check, strict=True)) for check in checks])


def _shared(known: pd.DataFrame, column: str, over: str = "split") -> int:
    """How many values of ``column`` occur with more than one value of ``over``."""
    return int((known.groupby(column)[over].nunique() >= 2).sum())
