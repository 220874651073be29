"""What `dvc plots` draws: small flat tables, written as JSON (a list of rows), which DVC reads and compares.

Rows tell hospitals, never images or patients. Of too few patients (``report.min_cell``) the values are null and
``note`` says so.
"""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

_TEST_SPLITS = frozenset({"id_test", "ood_test"})
_PLACE: dict[str, pa.DataType] = {
    "finding": pa.string(),
    "run": pa.string(),
    "split": pa.string(),
    "site": pa.string(),
}


class RocPoints(Table):
    """The ROC curve of a backbone and method at a hospital, the mean over its runs; ``point`` counts along it."""

    columns: ClassVar = {
        **_PLACE,
        "point": pa.int32(),
        "false_positive_rate": pa.float64(),
        "true_positive_rate": pa.float64(),
        "note": pa.string(),
    }
    key: ClassVar = ("finding", "run", "split", "site", "point")
    vocabulary: ClassVar = {"split": _TEST_SPLITS}


class Reliability(Table):
    """Mean probability and share of positives per bin of equal numbers of cases, all runs pooled."""

    columns: ClassVar = {
        **_PLACE,
        "bin": pa.int32(),
        "mean_probability": pa.float64(),
        "observed_rate": pa.float64(),
        "note": pa.string(),
    }
    key: ClassVar = ("finding", "run", "split", "site", "bin")
    vocabulary: ClassVar = {"split": _TEST_SPLITS}


class Confusion(Table):
    """Cases by what they are and what they are called at the operating point, the mean over the runs.

    ``share`` is of the cases with the same ``actual``.
    """

    columns: ClassVar = {
        **_PLACE,
        "actual": pa.string(),
        "predicted": pa.string(),
        "count": pa.float64(),
        "share": pa.float64(),
        "note": pa.string(),
    }
    key: ClassVar = ("finding", "run", "split", "site", "actual", "predicted")
    vocabulary: ClassVar = {
        "split": _TEST_SPLITS,
        "actual": frozenset({"absent", "present"}),
        "predicted": frozenset({"absent", "present"}),
    }


class SiteAuroc(Table):
    """AUROC of a backbone and method at a hospital, with its interval, as ``Metrics`` has them."""

    columns: ClassVar = {
        **_PLACE,
        "auroc": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "note": pa.string(),
    }
    key: ClassVar = ("finding", "run", "split", "site")
    vocabulary: ClassVar = {"split": _TEST_SPLITS}


class LearningCurves(Table):
    """Losses by epoch of each seed's training with all labels, in nats per annotated label; as ``Curves`` has them."""

    columns: ClassVar = {
        "run": pa.string(),
        "phase": pa.string(),
        "seed": pa.int64(),
        "curve": pa.string(),
        "epoch": pa.int32(),
        "loss": pa.float64(),
    }
    key: ClassVar = ("run", "phase", "seed", "curve", "epoch")
    vocabulary: ClassVar = {"curve": frozenset({"train", "id_val"})}
