"""What a handed-over model says of new images, and what became of the files that it was not asked about."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table
from pipeline.tables.files import FILE_REASONS, OUTCOMES

# Why a readable file is no input of this model: it is unlike what the model was trained on (handover/seen.py).
MISFITS = ("other_modality", "other_view", "other_body_part", "other_window")
# Why the model makes no call (handover/rule.py); in this order.
ABSTENTIONS = ("no_threshold", "out_of_distribution", "near_threshold")
CALLS = ("positive", "negative")
APPLIED_STAGES = ("ingest", "preprocess", "apply")


class Applied(Table):
    """One row an image and finding: what ``apply`` says.

    ``probability`` is the image's, ``unit_probability`` that of the case which is called: the same, or where the study
    was evaluated by study the study's. ``threshold`` was fixed on the source's id_val. ``call`` is null where the model
    abstains (``abstained_because``). ``distance`` is how far the image lies from the training images, in standard
    deviations; a case with an image beyond ``distance_limit`` is ``out_of_distribution``. ``unlike``: misfits (joined
    by "+") that were asked to be told instead of refused; null for none.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "finding": pa.string(),
        "source_id": pa.string(),
        "frame": pa.int32(),
        "patient_id": pa.string(),
        "study_id": pa.string(),
        "probability": pa.float64(),
        "unit_probability": pa.float64(),
        "threshold": pa.float64(),
        "call": pa.string(),
        "abstained": pa.bool_(),
        "abstained_because": pa.string(),
        "distance": pa.float64(),
        "distance_limit": pa.float64(),
        "out_of_distribution": pa.bool_(),
        "unlike": pa.string(),
    }
    key: ClassVar = ("image_id", "finding")
    required: ClassVar = (
        "source_id",
        "frame",
        "patient_id",
        "study_id",
        "probability",
        "unit_probability",
        "abstained",
        "distance",
        "distance_limit",
        "out_of_distribution",
    )
    vocabulary: ClassVar = {"call": frozenset(CALLS), "abstained_because": frozenset(ABSTENTIONS)}


class Refused(Table):
    """Files without a row in ``Applied``: where and why; ``detail`` quotes no identifier."""

    columns: ClassVar = {
        "source_id": pa.string(),
        "stage": pa.string(),
        "outcome": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
    }
    key: ClassVar = ("source_id",)
    required: ClassVar = ("stage", "outcome", "reason", "detail")
    vocabulary: ClassVar = {
        "stage": frozenset(APPLIED_STAGES),
        "outcome": OUTCOMES,
        "reason": FILE_REASONS | {"patient_withdrawn", "defect", *MISFITS},
    }


class Operation(Table):
    """What the rule of a handed-over model (abstention, threshold) did to a site's cases, one row a finding and split.

    A case is an image, or a study where the study was evaluated so. Shares are of the cases; sensitivity and
    specificity of the cases that were called, with limits by a bootstrap of patients; null where undefined.
    """

    columns: ClassVar = {
        "site": pa.string(),
        "split": pa.string(),
        "finding": pa.string(),
        "num_patients": pa.int64(),
        "num_cases": pa.int64(),
        "out_of_distribution": pa.float64(),
        "abstained": pa.float64(),
        "sensitivity": pa.float64(),
        "sensitivity_low": pa.float64(),
        "sensitivity_high": pa.float64(),
        "specificity": pa.float64(),
        "specificity_low": pa.float64(),
        "specificity_high": pa.float64(),
        "num_positive_patients": pa.int64(),
        "num_negative_patients": pa.int64(),
    }
    key: ClassVar = ("site", "split", "finding")
    required: ClassVar = ("num_patients", "num_cases", "num_positive_patients", "num_negative_patients")
