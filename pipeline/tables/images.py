"""Arrays, sides, duplicates, and the funnel that leads to them."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table
from pipeline.tables.files import OUTCOMES

SOURCE_SPLITS = ("train", "id_val", "id_test")
TARGET_SPLITS = ("target_adapt", "ood_test")


class Images(Table):
    """The images of a store (see imaging/store.py) in the order of ``array_index``, and how each came there.

    ``voi`` names what mapped the modality values to grey (PS3.3 C.11.2), with centre and width in modality
    units where it was one window; of several, joined by "+", the params say which. ``inverted``: low values were white.
    The array was transposed, then its rows or columns were put in reverse order, then it was resized to
    ``resized_rows`` x ``resized_columns`` pixels and padded (top, left; cut where negative) to the square.
    ``spacing_mm`` is the square's, null where the file gave none. ``pixels_sha256`` is of the image's own planes.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "array_index": pa.int64(),
        "voi": pa.string(),
        "window_center": pa.float64(),
        "window_width": pa.float64(),
        "inverted": pa.bool_(),
        "transposed": pa.bool_(),
        "flipped_rows": pa.bool_(),
        "flipped_columns": pa.bool_(),
        "resized_rows": pa.int32(),
        "resized_columns": pa.int32(),
        "pad_top": pa.int32(),
        "pad_left": pa.int32(),
        "spacing_mm": pa.float32(),
        "pixels_sha256": pa.string(),
    }
    key: ClassVar = ("image_id",)
    required: ClassVar = ("array_index", "voi", "inverted", "pixels_sha256")


class Splits(Table):
    """Which side an image is on: role (source, target) and split."""

    columns: ClassVar = {
        "image_id": pa.string(),
        "patient_id": pa.string(),
        "study_id": pa.string(),
        "site": pa.string(),
        "role": pa.string(),
        "split": pa.string(),
    }
    key: ClassVar = ("image_id",)
    required: ClassVar = ("patient_id", "site", "role", "split")
    vocabulary: ClassVar = {
        "role": frozenset({"source", "target"}),
        "split": frozenset(SOURCE_SPLITS + TARGET_SPLITS),
    }


class Ledger(Table):
    """The side of each patient ever seen, as given at first sight; ``site`` and ``stratum`` are those of that day.

    ``stratum`` is the rarest finding for which the patient had a positive image, else "(negative)" or
    "(unlabelled)"; at a target site, where no label is looked at, "(any)".
    """

    columns: ClassVar = {"patient_id": pa.string(), "site": pa.string(), "stratum": pa.string(), "side": pa.string()}
    key: ClassVar = ("patient_id",)
    required: ClassVar = ("site", "stratum", "side")
    vocabulary: ClassVar = {"side": frozenset({"train", "val", "test"})}


class Duplicates(Table):
    """Pairs of images that show one picture, the first by name before the second (``duplicate_of``'s columns).

    Of n images with equal pixels the first is paired with each other: n - 1 rows. ``hamming`` counts the bits in
    which the perceptual hashes differ, ``correlation`` is Pearson's, of the aligned pixels.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "duplicate_of": pa.string(),
        "patient_id": pa.string(),
        "duplicate_patient_id": pa.string(),
        "site": pa.string(),
        "duplicate_site": pa.string(),
        "same_patient": pa.bool_(),
        "hamming": pa.int16(),
        "correlation": pa.float64(),
    }
    key: ClassVar = ("image_id", "duplicate_of")
    required: ClassVar = (
        "patient_id",
        "duplicate_patient_id",
        "site",
        "duplicate_site",
        "same_patient",
        "hamming",
        "correlation",
    )


class Flow(Table):
    """The funnel, per site and step in order; each step's loss stands beside it with its reason.

    ``kind`` is "remaining" (what is left after the step, reason null becomes ""), or the outcome of what went.
    """

    columns: ClassVar = {
        "site": pa.string(),
        "step": pa.int16(),
        "stage": pa.string(),
        "kind": pa.string(),
        "reason": pa.string(),
        "num_files": pa.int64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
    }
    key: ClassVar = ("site", "step", "kind", "reason")
    required: ClassVar = ("stage",)
    vocabulary: ClassVar = {"kind": OUTCOMES | {"remaining"}}


class Composition(Table):
    """Patients, images and labels per site and split."""

    columns: ClassVar = {
        "site": pa.string(),
        "split": pa.string(),
        "finding": pa.string(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "num_positive": pa.int64(),
        "num_negative": pa.int64(),
        "num_unknown": pa.int64(),
    }
    key: ClassVar = ("site", "split", "finding")


class Leakage(Table):
    """Checks between splits: how many patients, images or files stand on two sides (all must be 0 to pass)."""

    columns: ClassVar = {
        "check": pa.string(),
        "description": pa.string(),
        "count": pa.int64(),
        "must_be_zero": pa.bool_(),
    }
    key: ClassVar = ("check",)
    required: ClassVar = ("count", "must_be_zero", "description")
