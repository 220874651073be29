"""What evaluation says."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

# What a method does, against training from scratch (analysis/verdict.py).
VERDICTS = ("helps", "harms", "equivalent", "undecided")
# Label budgets: all training patients, a share of them, or some of each class.
BUDGETS = ("all", "share", "shots")

_DOTS_AND_SLASHES = re.compile(r"[./]")


def flat_name(row: Mapping[str, Any]) -> str:
    """``run/finding/split/group/metric`` of a row of ``Metrics`` or ``SeedSpread``.

    DVC nests at dots and the gate splits at slashes: levels of a domain that hold one (``transfer_syntax=1.2.840...``)
    have a "_" there.
    """
    return "/".join((row["run"], row["finding"], row["split"], _DOTS_AND_SLASHES.sub("_", row["group"]), row["metric"]))


class Metrics(Table):
    """One row a run (or a backbone and method over its seeds), finding, split, group and metric.

    ``group`` is ``site=NAME``, ``source``, ``target``, ``worst_site`` or ``target_minus_source``; of a domain or
    subgroup ``COLUMN=LEVEL`` (several joined by "+", what was not recorded ``(missing)``) and ``worst_COLUMN``.
    ``metric`` is one of ``metrics.binary.METRICS``, one at a stated prevalence or threshold (``ppv_at_5_percent``), or
    ``auroc_minus_scratch``, ``auroc_minus_no_pixels``, ``auroc_minus_plain``. ``value`` is null where it is undefined
    and ``note`` says why; ``interval`` names how ci_low and ci_high were made.
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


class SeedSpread(Table):
    """How far the trainings of a backbone and method lie apart, for each of its rows in ``Metrics``.

    ``variance``: between ``num_runs`` repetitions on the same images (seeds; draws of the labels, where there are
    several), of which the row has the mean; null with one, or where the metric is undefined. Of the worst of several
    groups it is that of the group which is the worst.
    """

    columns: ClassVar = {
        "run": pa.string(),
        "finding": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "metric": pa.string(),
        "num_runs": pa.int64(),
        "variance": pa.float64(),
    }
    key: ClassVar = ("run", "finding", "split", "group", "metric")
    required: ClassVar = ("num_runs",)


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
    backbone and label budget; of an adapted ``run`` its own method, unadapted. ``difference`` is of AUROC; its interval
    is not adjusted. ``p_value`` is of no difference, ``p_equivalence`` of one of ``margin`` or more; ``_holm`` adjusts
    over the finding's comparisons with the same ``against``. ``verdict`` is at the level ``alpha``, null where it is
    undefined (``note``). ``num_patients`` are those tested; ``num_runs`` the trainings (or draws) of the side that has
    fewer.
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
