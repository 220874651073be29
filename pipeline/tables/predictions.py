"""What evaluation reads."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table


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
    vocabulary: ClassVar = {"split": frozenset({"id_val", "id_test", "target_adapt", "ood_test"})}
