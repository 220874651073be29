"""How well a model's outputs tell whom it was trained on."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

# Each explained in analysis/membership.py; all but ENTROPY know the label, CALIBRATED has models without the patient.
LOSS, ENTROPY, MODIFIED_ENTROPY, CALIBRATED = "loss", "entropy", "modified_entropy", "calibrated"
ATTACKS = (LOSS, ENTROPY, MODIFIED_ENTROPY, CALIBRATED)


class MembershipAttacks(Table):
    """AUROC of an attack on one run, or on all runs of a backbone and method with all labels (their mean).

    Members are the patients that the run was trained on, the others those of id_test. ``control`` is the same attack on
    patients of the training side whom the run was not trained on, in the members' place (of a family: of its runs with
    fewer labels): its true AUROC is 0.5, or members differ from others by more than the training. ``num_references``:
    runs that leave patients out, for ``calibrated``. Null where it is undefined (``note``).
    """

    columns: ClassVar = {
        "run": pa.string(),
        "attack": pa.string(),
        "auroc": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "interval": pa.string(),
        "control": pa.float64(),
        "control_low": pa.float64(),
        "control_high": pa.float64(),
        "num_runs": pa.int64(),
        "num_members": pa.int64(),
        "num_others": pa.int64(),
        "num_controls": pa.int64(),
        "num_references": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "attack")
    required: ClassVar = ("num_runs", "num_members", "num_others", "num_controls", "num_references")
    vocabulary: ClassVar = {"attack": frozenset(ATTACKS)}


class MembershipExposures(Table):
    """The members of one run whom an attack finds while it errs on few others; see ``analysis.membership.exposure``.

    ``false_positive_rate``: the level, what share of patients never seen may be called members. ``exposed_share``: of
    the members, less what chance explains; ``exposed_at_least``: a one-sided limit of 95 %, in patients. The interval
    is of ``true_positive_rate``. Null where it is undefined (``note``).
    """

    columns: ClassVar = {
        "run": pa.string(),
        "attack": pa.string(),
        "false_positive_rate": pa.float64(),
        "true_positive_rate": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "exposed_share": pa.float64(),
        "exposed_at_least": pa.int64(),
        "num_members": pa.int64(),
        "num_others": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "attack", "false_positive_rate")
    required: ClassVar = ("num_members", "num_others")
    vocabulary: ClassVar = {"attack": frozenset(ATTACKS)}
