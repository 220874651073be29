"""Every hospital as the one that trains, and every hospital as the one that tests."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

METHODS = ("linear_probe", "full_finetune")
PROTOCOLS = ("single_source", "leave_one_out")
_WHICH = {
    "backbone": pa.string(),
    "method": pa.string(),
    "protocol": pa.string(),
    "finding": pa.string(),
    "row": pa.string(),
}
_WORDS = {"method": frozenset(METHODS), "protocol": frozenset(PROTOCOLS)}


class MatrixRows(Table):
    """The trainings: one row of the matrix and one draw of patients.

    ``row``: single_source, the hospital that trains; leave_one_out, the one that does not. ``num_patients_per_class``:
    how many labelled patients of each class were drawn, the same for all rows of a method's protocol and finding; null
    where all were taken. ``num_val_patients`` choose the penalty or epoch, as many for all rows too. ``choice``: the
    penalty (scikit-learn's C) or epoch that they chose. ``note``: why nothing was trained.
    """

    columns: ClassVar = {
        **_WHICH,
        "seed": pa.int64(),
        "num_patients_per_class": pa.int64(),
        "num_train_patients": pa.int64(),
        "num_train_images": pa.int64(),
        "num_val_patients": pa.int64(),
        "choice": pa.float64(),
        "note": pa.string(),
    }
    key: ClassVar = (*_WHICH, "seed")
    required: ClassVar = ("num_train_patients", "num_train_images", "num_val_patients", "note")
    vocabulary: ClassVar = _WORDS


class MatrixPredictions(Table):
    """The logits of every test image by every training; no label stands beside them."""

    columns: ClassVar = {
        **_WHICH,
        "seed": pa.int64(),
        "image_id": pa.string(),
        "patient_id": pa.string(),
        "site": pa.string(),
        "split": pa.string(),
        "logit": pa.float64(),
    }
    key: ClassVar = (*_WHICH, "seed", "image_id")
    required: ClassVar = ("patient_id", "site", "split", "logit")
    vocabulary: ClassVar = {**_WORDS, "split": frozenset({"id_test", "ood_test"})}


class MatrixScores(Table):
    """AUROC of a row's models on a hospital's test patients, over the draws; the interval counts patients and draws.

    leave_one_out has one cell a row: the hospital left out. ``in_distribution``: the hospital is among those that
    trained. ``difference``: the AUROC of the models that trained on the tested hospital alone, less this one's, on the
    same patients; null on the diagonal. Null where it is undefined (``note``).
    """

    columns: ClassVar = {
        **_WHICH,
        "site": pa.string(),
        "in_distribution": pa.bool_(),
        "value": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "difference": pa.float64(),
        "difference_low": pa.float64(),
        "difference_high": pa.float64(),
        "num_patients_per_class": pa.int64(),
        "num_runs": pa.int64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = (*_WHICH, "site")
    required: ClassVar = ("in_distribution", "num_runs", "num_images", "num_patients", "note")
    vocabulary: ClassVar = _WORDS
