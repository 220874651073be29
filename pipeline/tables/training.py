"""What training reads and writes."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table


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


class Distances(Table):
    """How far a target's images lie from the source's, in the features of one run's trunk; no label is looked at.

    ``mmd2`` is the squared maximum mean discrepancy between the source's held-out images and all of the site's;
    ``p_value`` is of no difference, by permutation of patients; ``home_mmd2`` is the same between the source's own
    id_val and id_test, which differ by chance alone. Runs with one trunk have the same. Null where patients are too
    few (``note``).
    """

    columns: ClassVar = {
        "run": pa.string(),
        "site": pa.string(),
        "mmd2": pa.float64(),
        "p_value": pa.float64(),
        "home_mmd2": pa.float64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "site")
    required: ClassVar = ("num_images", "num_patients")
