"""The contracts of all tables, one class each, and the only code that reads and writes Parquet.

A table is checked on both ways: columns, types, closed vocabularies, nulls in the key, duplicate keys. Rows
are sorted by key before writing, so that equal content gives equal bytes whatever order it was made in.
Written with the same pyarrow, Parquet holds no clock and no path.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError

# Why a file or an image is not used. The first block is ingest's and preprocess's closed list; the second
# belongs to the joint stages, which see labels and other sites.
FILE_REASONS = frozenset(
    """
    bad_character_set burned_in_annotation corrupt_structure decode_error decompression_bomb
    duplicate_sop_uid empty_file inconsistent_geometry invalid_dimensions invalid_rescale invalid_spacing
    localizer missing_file_meta missing_preamble missing_required_tag no_pixel_data non_image_object
    not_dicom pixel_header_mismatch pixel_length_mismatch truncated unreadable unsafe_identifier unsafe_uid
    unsupported_photometric unsupported_pixel_layout unsupported_transfer_syntax
    """.split()
)
# What was repaired, without guessing, in a file that is used; see pipeline/dicom/structure.py and pixels.py.
NOTES = frozenset(
    """
    bad_character_set broken_sequence implicit_file_meta missing_file_meta missing_preamble trailing_padding
    unordered_elements wrong_vr_encoding
    """.split()
)
OUTCOMES = frozenset({"rejected", "quarantined", "unused", "defect"})
# The actions of PS3.15 Table E.1-1, and where an element stands that is not in it.
ACTIONS = frozenset("D Z X K C U Z/D X/Z X/D X/Z/D X/Z/U* not_listed private".split())
IMAGE_REASONS = frozenset(
    {
        "missing_label",
        "conflicting_label",
        "uncertain_label",
        "patient_in_source",
        "patient_withdrawn",
        "near_duplicate",
    }
)
REASONS = FILE_REASONS | IMAGE_REASONS | {"defect"}  # an error of ours, never the file's; to be reported

# Rows of a label file; the last three are images and findings whose label a policy set (stages/labels.py).
LABEL_ISSUES = frozenset(
    """
    duplicate_row conflicting_rows conflicting_readers unknown_value unknown_image uncertain_value invalid_date
    set_by_uncertain_policy set_by_missing_policy set_by_conflict_policy
    """.split()
)
LABEL_STATUSES = ("given", "conflicting", "uncertain", "missing")

# Why a person should look at an image; in this order, since a blank image has no polarity and no kin.
OUTLIER_KINDS = ("blank", "inverted", "cropped", "unusual")

SOURCE_SPLITS = ("train", "id_val", "id_test")
TARGET_SPLITS = ("target_adapt", "ood_test")

# What a method does, against training from scratch (analysis/verdict.py).
VERDICTS = ("helps", "harms", "equivalent", "undecided")
# Label budgets: all training patients, a share of them, or some of each class.
BUDGETS = ("all", "share", "shots")


class TableError(PipelineError, ValueError):
    """A table does not keep its contract; the text names table, column and constraint, and no cell's value."""


class Table:
    """A contract: column names with types in order, the key, and closed vocabularies."""

    columns: ClassVar[Mapping[str, pa.DataType]]
    key: ClassVar[tuple[str, ...]]
    vocabulary: ClassVar[Mapping[str, frozenset[str]]] = {}
    required: ClassVar[tuple[str, ...]] = ()  # not null, beside the key


class Manifest(Table):
    """The files of one site as ``inventory`` found them; the archive itself is no dependency of DVC.

    ``source_id`` is the keyed pseudonym of the path below the site's root. ``modified_ns`` (nanoseconds since
    1970) is null where content is hashed instead; ``source_hmac`` is the keyed hash of the bytes, null where
    it was not asked for. ``size_bytes`` is -1 for what is no readable regular file.
    """

    columns: ClassVar = {
        "source_id": pa.string(),
        "size_bytes": pa.int64(),
        "modified_ns": pa.int64(),
        "source_hmac": pa.string(),
    }
    key: ClassVar = ("source_id",)
    required: ClassVar = ("size_bytes",)


class Instances(Table):
    """One row an image (a frame of a SOP instance, or a PNG or JPEG): all that is known of it downstream of ingest.

    ``rows`` and ``columns`` in pixels, spacings in millimetres between centres (Pixel Spacing in the patient,
    Imager Pixel Spacing at the detector: two quantities), ``age_years`` with 90 for all ages above 89, ``day`` in
    days shifted by a keyed offset per patient. ``slice_index`` is the order in the series along the normal,
    ``slice_position_mm`` the distance from its first slice, ``slice_spacing_mm`` the series' median step; null
    where the file gives no position. ``lossy``: the pixels were compressed with loss at some time. ``orientation``: the
    directions in the patient (two of LRPAHF) in which columns and rows increase; null where the file does not say.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "source_id": pa.string(),
        "frame": pa.int32(),
        "patient_id": pa.string(),
        "study_id": pa.string(),
        "series_id": pa.string(),
        "site": pa.string(),
        "modality": pa.string(),
        "manufacturer": pa.string(),
        "model": pa.string(),
        "view_position": pa.string(),
        "body_part": pa.string(),
        "sex": pa.string(),
        "age_years": pa.int16(),
        "kvp": pa.float32(),
        "rows": pa.int32(),
        "columns": pa.int32(),
        "bits_stored": pa.int16(),
        "samples_per_pixel": pa.int16(),
        "photometric_interpretation": pa.string(),
        "transfer_syntax": pa.string(),
        "sop_class_uid": pa.string(),
        "laterality": pa.string(),
        "lossy": pa.bool_(),
        "orientation": pa.string(),
        "row_spacing_mm": pa.float32(),
        "column_spacing_mm": pa.float32(),
        "imager_row_spacing_mm": pa.float32(),
        "imager_column_spacing_mm": pa.float32(),
        "slice_thickness_mm": pa.float32(),
        "slice_index": pa.int32(),
        "slice_position_mm": pa.float32(),
        "slice_spacing_mm": pa.float32(),
        "day": pa.int32(),
        "source_hmac": pa.string(),
    }
    key: ClassVar = ("image_id",)
    required: ClassVar = (
        "source_id",
        "frame",
        "patient_id",
        "study_id",
        "site",
        "rows",
        "columns",
        "source_hmac",
    )
    vocabulary: ClassVar = {"sex": frozenset({"F", "M", "O"}), "laterality": frozenset({"L", "R", "B", "U"})}


class Exclusions(Table):
    """Files that go no further: at which stage and why; ``detail`` quotes no header value.

    ``outcome``: rejected (cannot be used as it is), quarantined (readable, but a person or a policy must decide),
    unused (a good file without a use in this study), defect (an error of ours over it). ``duplicate_of`` is the
    source that was kept in the place of a byte-identical copy.
    """

    columns: ClassVar = {
        "source_id": pa.string(),
        "stage": pa.string(),
        "site": pa.string(),
        "outcome": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "duplicate_of": pa.string(),
    }
    key: ClassVar = ("source_id", "stage", "site")
    required: ClassVar = ("outcome", "reason")
    vocabulary: ClassVar = {"outcome": OUTCOMES, "reason": REASONS}


class Notes(Table):
    """What was repaired in files that are used, counted in files; ``commands.inspect`` tells it of one."""

    columns: ClassVar = {"site": pa.string(), "note": pa.string(), "num_files": pa.int64()}
    key: ClassVar = ("site", "note")
    required: ClassVar = ("num_files",)
    vocabulary: ClassVar = {"note": NOTES}


class Deidentification(Table):
    """What of the accepted files' headers went on, counted by the action that PS3.15 Table E.1-1 asks for.

    ``treatment``: removed (does not exist downstream), replaced (a pseudonym, a shifted day, a capped age, a term
    of a vocabulary), kept (a number or a code of the standard).
    """

    columns: ClassVar = {
        "site": pa.string(),
        "action": pa.string(),
        "treatment": pa.string(),
        "num_elements": pa.int64(),
        "num_files": pa.int64(),
    }
    key: ClassVar = ("site", "action", "treatment")
    required: ClassVar = ("num_elements", "num_files")
    vocabulary: ClassVar = {"action": ACTIONS, "treatment": frozenset({"removed", "replaced", "kept"})}


class Labels(Table):
    """One row an image and finding: 1 present, 0 absent, null not annotated.

    ``status``: what the rows say, whatever a policy then made of it: given, conflicting, uncertain (nothing else),
    missing (no row, or one that leaves it open).
    """

    columns: ClassVar = {"image_id": pa.string(), "finding": pa.string(), "label": pa.int8(), "status": pa.string()}
    key: ClassVar = ("image_id", "finding")
    vocabulary: ClassVar = {"status": frozenset(LABEL_STATUSES)}


class Readings(Table):
    """What each reader said of an image, where the label file names readers or dates; ``reading`` counts from 0.

    ``reader`` is a keyed pseudonym, ``day`` the date shifted as ``Instances``' is.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "finding": pa.string(),
        "reading": pa.int32(),
        "reader": pa.string(),
        "day": pa.int32(),
        "value": pa.string(),
    }
    key: ClassVar = ("image_id", "finding", "reading")
    required: ClassVar = ("value",)
    vocabulary: ClassVar = {"value": frozenset({"present", "absent", "uncertain"})}


class Terms(Table):
    """What a site's data is and may be used for; see ``datasets.common.Terms``."""

    columns: ClassVar = {
        "site": pa.string(),
        "origin": pa.string(),
        "licence": pa.string(),
        "redistribution": pa.bool_(),
        "citation": pa.string(),
    }
    key: ClassVar = ("site",)
    required: ClassVar = ("origin", "licence", "redistribution", "citation")


class LabelIssues(Table):
    """What was wrong in a site's label files, counted in their rows, and what policies set, in labels."""

    columns: ClassVar = {"site": pa.string(), "issue": pa.string(), "count": pa.int64()}
    key: ClassVar = ("site", "issue")
    required: ClassVar = ("count",)
    vocabulary: ClassVar = {"issue": LABEL_ISSUES}


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


class TableOne(Table):
    """Table 1: per site and split the level of a variable, with what it is counted in.

    ``of_patients``: the level is the patient's, and ``share`` one of the patients; else of the images. Quartiles are
    of quantities (variable ``..._years``, ``..._mm``), null for categories. The variable "total" has the level "".
    """

    columns: ClassVar = {
        "site": pa.string(),
        "split": pa.string(),
        "variable": pa.string(),
        "level": pa.string(),
        "of_patients": pa.bool_(),
        "num_patients": pa.int64(),
        "num_studies": pa.int64(),
        "num_images": pa.int64(),
        "share": pa.float64(),
        "first_quartile": pa.float64(),
        "median": pa.float64(),
        "third_quartile": pa.float64(),
    }
    key: ClassVar = ("site", "split", "variable", "level")
    required: ClassVar = ("of_patients", "num_patients", "num_studies", "num_images", "share")


class Balance(Table):
    """Absolute standardised mean difference of a target site from the source; null with a ``note`` if undefined.

    ``num_patients``: with a known value, on the side that has fewer.
    """

    columns: ClassVar = {
        "site": pa.string(),
        "variable": pa.string(),
        "smd": pa.float64(),
        "note": pa.string(),
        "num_patients": pa.int64(),
    }
    key: ClassVar = ("site", "variable")
    required: ClassVar = ("num_patients",)


class GreyHistograms(Table):
    """Share of pixels per bin of stored grey (``grey`` in [0, 1] is its middle), padding left out; mean over images."""

    columns: ClassVar = {"site": pa.string(), "bin": pa.int16(), "grey": pa.float64(), "share": pa.float64()}
    key: ClassVar = ("site", "bin")
    required: ClassVar = ("grey", "share")


class Outliers(Table):
    """Images that a person should look at; nothing is excluded for standing here.

    ``score`` is, by kind: blank, grey between the 5th and 95th percentile in [0, 1] (below the threshold); inverted,
    correlation with the median image (below); cropped, share of the kin's content that is not covered (above);
    unusual, distance from the kin in robust standard deviations (above).
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "site": pa.string(),
        "kind": pa.string(),
        "score": pa.float64(),
        "threshold": pa.float64(),
    }
    key: ClassVar = ("image_id",)
    required: ClassVar = ("site", "kind", "score", "threshold")
    vocabulary: ClassVar = {"kind": frozenset(OUTLIER_KINDS)}


class QualityScores(Table):
    """The scores of every image that is used, by kind of outlier as in ``Outliers``; null where it was not judged.

    With a row an image it also tells `withdraw` whose pixels the sheets and histograms beside it were made from.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "site": pa.string(),
        **{kind: pa.float64() for kind in OUTLIER_KINDS},
    }
    key: ClassVar = ("image_id",)
    required: ClassVar = ("site",)


class OutlierCounts(Table):
    """How many of a site's images could be judged and how many stand out; the rest had too few kin to tell."""

    columns: ClassVar = {
        "site": pa.string(),
        "kind": pa.string(),
        "num_images": pa.int64(),
        "num_judged": pa.int64(),
        "num_outliers": pa.int64(),
    }
    key: ClassVar = ("site", "kind")
    required: ClassVar = ("num_images", "num_judged", "num_outliers")
    vocabulary: ClassVar = {"kind": frozenset(OUTLIER_KINDS)}


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


class Samples(Table):
    """The source sites' train and id_val images, gathered: row ``array_index`` of images.npy beside it."""

    columns: ClassVar = {
        "image_id": pa.string(),
        "array_index": pa.int64(),
        "patient_id": pa.string(),
        "site": pa.string(),
        "split": pa.string(),
    }
    key: ClassVar = ("image_id",)
    required: ClassVar = ("array_index", "patient_id", "site", "split")
    vocabulary: ClassVar = {"split": frozenset({"train", "id_val"})}


class Curves(Table):
    """What training saw, an epoch a row (null where a part has no loss); losses in nats per annotated label."""

    columns: ClassVar = {
        "run": pa.string(),
        "epoch": pa.int32(),
        "phase": pa.string(),
        "train_loss": pa.float64(),
        "id_val_loss": pa.float64(),
        "learning_rate": pa.float64(),
        "kept": pa.bool_(),
    }
    key: ClassVar = ("run", "phase", "epoch")


class Runs(Table):
    """The trained models: one row a run, with where the weights came from and what it was trained on.

    ``shots``: labelled patients per class, null where the run is not a few-shot one. ``trials``: how many learning
    rates or penalties were tried. ``train_tflop``: floating point operations of the training, in units of 10^12,
    counted and not timed.
    """

    columns: ClassVar = {
        "run": pa.string(),
        "backbone": pa.string(),
        "method": pa.string(),
        "seed": pa.int64(),
        "label_fraction": pa.float64(),
        "shots": pa.int64(),
        "draw": pa.int64(),
        "initialisation": pa.string(),
        "weights_name": pa.string(),
        "weights_sha256": pa.string(),
        "num_train_images": pa.int64(),
        "num_train_patients": pa.int64(),
        "num_parameters": pa.int64(),
        "trials": pa.int64(),
        "train_tflop": pa.float64(),
        "model_sha256": pa.string(),
    }
    key: ClassVar = ("run",)


class Predictions(Table):
    """One row an image, finding and run: the logit and its probability, with what evaluation groups by.

    ``shots``: labelled patients per class, null where the run is not a few-shot one.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "finding": pa.string(),
        "run": pa.string(),
        "protocol": pa.string(),
        "backbone": pa.string(),
        "method": pa.string(),
        "seed": pa.int64(),
        "label_fraction": pa.float64(),
        "shots": pa.int64(),
        "draw": pa.int64(),
        "adaptation": pa.string(),
        "patient_id": pa.string(),
        "study_id": pa.string(),
        "site": pa.string(),
        "split": pa.string(),
        "label": pa.int8(),
        "logit": pa.float64(),
        "probability": pa.float64(),
    }
    key: ClassVar = ("run", "finding", "image_id")
    required: ClassVar = ("backbone", "method", "patient_id", "site", "split", "logit", "probability")
    vocabulary: ClassVar = {"split": frozenset({"id_val", "id_test", "ood_test"})}


class Metrics(Table):
    """One row a run (or a backbone and method over its seeds), finding, split, group and metric.

    ``group`` is ``site=NAME``, ``source``, ``target``, ``worst_site`` or ``target_minus_source``. ``value``
    is null where it is undefined and ``note`` says why; ``interval`` names how ci_low and ci_high were made.
    """

    columns: ClassVar = {
        "run": pa.string(),
        "finding": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "metric": pa.string(),
        "value": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "interval": pa.string(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "finding", "split", "group", "metric")
    required: ClassVar = ("num_images", "num_patients")


class Calibration(Table):
    """Reliability per bin of equal numbers of images, all seeds of a backbone and method pooled."""

    columns: ClassVar = {
        "run": pa.string(),
        "finding": pa.string(),
        "group": pa.string(),
        "bin": pa.int16(),
        "mean_probability": pa.float64(),
        "observed_rate": pa.float64(),
        "num_images": pa.int64(),
    }
    key: ClassVar = ("run", "finding", "group", "bin")


class Thresholds(Table):
    """Operating points, fixed on the source's id_val and carried over unchanged."""

    columns: ClassVar = {
        "run": pa.string(),
        "finding": pa.string(),
        "threshold": pa.float64(),
        "wanted_specificity": pa.float64(),
        "reached_specificity": pa.float64(),
        "num_images": pa.int64(),
    }
    key: ClassVar = ("run", "finding")


class Verdicts(Table):
    """What a method does against training from scratch, per place; see ``analysis/verdict.py``.

    ``run`` is a backbone and method over its seeds or draws, ``against`` the method subtracted, with the same
    backbone and label budget. ``difference`` is of AUROC; its interval is not adjusted. ``p_value`` is of no
    difference, ``p_equivalence`` of one of ``margin`` or more; ``_holm`` adjusts over the finding's comparisons with
    the same ``against``. ``verdict`` is at the level ``alpha``, null where it is undefined (``note``).
    ``num_patients`` are those tested; ``num_runs`` the trainings (or draws) of the side that has fewer.
    """

    columns: ClassVar = {
        "run": pa.string(),
        "finding": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "against": pa.string(),
        "verdict": pa.string(),
        "difference": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "p_value": pa.float64(),
        "p_holm": pa.float64(),
        "p_equivalence": pa.float64(),
        "p_equivalence_holm": pa.float64(),
        "margin": pa.float64(),
        "alpha": pa.float64(),
        "num_patients": pa.int64(),
        "num_runs": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "finding", "split", "group", "against")
    required: ClassVar = ("margin", "alpha", "num_patients", "num_runs")
    vocabulary: ClassVar = {"verdict": frozenset(VERDICTS)}


class Efficiency(Table):
    """AUROC of a backbone and method by its label budget and by its training cost.

    ``curve`` is the name of ``run`` with all labels, which its budgets share. ``labelled_patients`` and
    ``train_tflop`` are means over the runs.
    """

    columns: ClassVar = {
        "run": pa.string(),
        "finding": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "curve": pa.string(),
        "backbone": pa.string(),
        "method": pa.string(),
        "budget": pa.string(),
        "label_fraction": pa.float64(),
        "shots": pa.int64(),
        "labelled_patients": pa.float64(),
        "train_tflop": pa.float64(),
        "value": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "finding", "split", "group")
    required: ClassVar = ("curve", "backbone", "method", "budget")
    vocabulary: ClassVar = {"budget": frozenset(BUDGETS)}


class LabelSavings(Table):
    """How many labelled patients a curve of ``Efficiency`` needs for what ``against`` reaches with all labels.

    ``value`` is that AUROC, ``all_patients`` the number behind it, ``labelled_patients`` the number read off the
    curve, ``saving`` the share that was not needed. ``bound``: reached (between two points), at_least (the smallest
    budget is enough already, so that the saving is this or more), not_reached; null where it is undefined (``note``).
    """

    columns: ClassVar = {
        "curve": pa.string(),
        "finding": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "budget": pa.string(),
        "against": pa.string(),
        "value": pa.float64(),
        "all_patients": pa.float64(),
        "labelled_patients": pa.float64(),
        "saving": pa.float64(),
        "bound": pa.string(),
        "note": pa.string(),
    }
    key: ClassVar = ("curve", "finding", "split", "group", "budget", "against")
    vocabulary: ClassVar = {
        "budget": frozenset(BUDGETS) - {"all"},
        "bound": frozenset({"reached", "at_least", "not_reached"}),
    }


class Overfitting(Table):
    """Losses of a backbone and method at the epoch that was kept, per phase of training; means over its runs.

    ``gap`` is ``id_val_loss`` less ``train_loss``, in nats per annotated label. Training losses are as they were while
    it was trained (augmented, with dropout, the weights still moving). Null where a run has no such loss.
    """

    columns: ClassVar = {
        "run": pa.string(),
        "phase": pa.string(),
        "train_loss": pa.float64(),
        "id_val_loss": pa.float64(),
        "gap": pa.float64(),
        "num_runs": pa.int64(),
    }
    key: ClassVar = ("run", "phase")
    required: ClassVar = ("num_runs",)


def make_table(table: type[Table], rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Rows as a frame that keeps ``table``'s contract, sorted by key; columns that rows lack are null.

    Raises:
        TableError: a column too many, a value of the wrong type or outside its vocabulary, a null or a
            duplicate in the key.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    surplus = sorted(set(map(str, frame.columns)) - set(table.columns))
    if surplus:
        raise TableError(f"{table.__name__}: unknown columns {surplus}; expected {list(table.columns)}")
    return _check(table, _to_arrow(table, frame.reindex(columns=list(table.columns)))).to_pandas(
        types_mapper=_DTYPES.get
    )


def write_table(table: type[Table], rows: Iterable[Mapping[str, Any]] | pd.DataFrame | pa.Table, path: Path) -> None:
    """Check, sort by key and write as Parquet; see ``make_table`` for the errors."""
    data = _check(table, rows) if isinstance(rows, pa.Table) else _to_arrow(table, make_table(table, rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    # One chunk a column: how the rows came in batches does not reach the bytes.
    pq.write_table(data.combine_chunks(), path, compression="zstd")


class RowWriter:
    """Rows of one table, given one by one and held as Arrow columns: a tenth of the memory of dicts."""

    _BATCH = 512

    def __init__(self, table: type[Table]) -> None:
        self._table = table
        self._rows: list[Mapping[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take rows; columns that they lack are null."""
        self._rows.extend(rows)
        if len(self._rows) >= self._BATCH:
            self._flush()

    def finish(self) -> pa.Table:
        """All rows, in the order given; unchecked but for their types: ``write_table`` checks.

        Raises:
            TableError: a column too many, or a value of the wrong type.
        """
        self._flush()
        return pa.Table.from_batches(self._batches, schema=_schema(self._table))

    def _flush(self) -> None:
        surplus = sorted({name for row in self._rows for name in row} - set(self._table.columns))
        if surplus:
            raise TableError(f"{self._table.__name__}: unknown columns {surplus}; expected {list(self._table.columns)}")
        try:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=_schema(self._table)))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            raise TableError(f"{self._table.__name__}: not all values are of their columns' types") from None
        self._rows = []


def read_table(table: type[Table], path: Path) -> pd.DataFrame:
    """Read and check; nullable dtypes (Int64, boolean, string), so that null never turns into 0 or NaN text.

    Raises:
        TableError: the file is not there, or does not keep the contract.
    """
    if not path.is_file():
        raise TableError(f"{table.__name__}: {path} is not there; `dvc repro` makes it")
    try:
        raw = pq.read_table(path)
    except pa.ArrowInvalid:
        raise TableError(f"{table.__name__}: {path} is no Parquet file; `dvc repro` makes it") from None
    if raw.schema.names != list(table.columns):
        raise TableError(f"{table.__name__}: {path} has columns {raw.schema.names}, expected {list(table.columns)}")
    try:
        data = raw.cast(_schema(table))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # its text quotes cells
        raise TableError(f"{table.__name__}: {path} has columns of other types than expected") from None
    return _check(table, data).to_pandas(types_mapper=_DTYPES.get)


def read_tables(table: type[Table], paths: Iterable[Path]) -> pd.DataFrame:
    """Several files of one contract as one frame, the key checked over all of them."""
    frames = [read_table(table, path) for path in paths]
    return make_table(table, pd.concat(frames, ignore_index=True) if frames else [])


def plain_text(frame: pd.DataFrame) -> pd.DataFrame:
    """With texts as Python objects: in pandas 3.1 ``isin`` of 400,000 Arrow strings takes 10 s, of objects 0.1 s."""
    return frame.astype(dict.fromkeys(frame.select_dtypes("string").columns, object))


# pandas' own nullable types, but for floats: there null and NaN are one thing, and NumPy's are what the
# numeric code wants.
_DTYPES = {
    pa.string(): pd.StringDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


def _schema(table: type[Table]) -> pa.Schema:
    return pa.schema(list(table.columns.items()))


def _to_arrow(table: type[Table], frame: pd.DataFrame) -> pa.Table:
    columns = []
    for name, dtype in table.columns.items():
        try:
            columns.append(pa.Array.from_pandas(frame[name], type=dtype))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            raise TableError(f"{table.__name__}.{name}: not all values are {dtype}") from None
    return pa.Table.from_arrays(
        [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns],
        schema=_schema(table),
    )


def _check(table: type[Table], data: pa.Table) -> pa.Table:
    for name in (*table.key, *table.required):
        if data.column(name).null_count:
            raise TableError(f"{table.__name__}.{name}: {data.column(name).null_count} of {len(data)} rows are null")
    for name, allowed in table.vocabulary.items():
        seen = {value for value in data.column(name).unique().to_pylist() if value is not None}
        if seen - allowed:
            raise TableError(f"{table.__name__}.{name}: {len(seen - allowed)} values outside {sorted(allowed)}")
    data = data.sort_by([(name, "ascending") for name in table.key])
    keys = data.select(list(table.key)).to_pandas()
    if keys.duplicated().any():
        raise TableError(f"{table.__name__}: {int(keys.duplicated().sum())} rows repeat a key {table.key}")
    return data
