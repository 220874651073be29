"""What the controls of a study say: what must find nothing, and whether it did."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

CONTROLS = ("permuted_labels", "same_method_twice")
CONTROL_VERDICTS = ("passed", "alarm", "undetermined")


class Controls(Table):
    """One control of a study, see ``analysis/controls.py``; ``split`` id_test is home, ood_test elsewhere.

    permuted_labels: ``value`` is the mean AUROC of probes that were fitted and tested on permuted labels, with 95 %
    limits, and ``p_value`` of its being a half; ``misses`` the share of them whose own interval misses a half, with
    Clopper and Pearson's limits. same_method_twice: ``value`` is the difference in AUROC of two groups of trainings of
    one method, with 95 % limits, ``p_value`` of no difference, and ``outcome`` the verdict's word. ``p_holm`` is
    adjusted over the control's rows (of same_method_twice, over those of a finding). ``run`` is named as in
    ``Metrics``; ``num_runs`` are permutations, or the trainings (draws, where there are several) of the smaller group.
    Null where undefined (``note``).
    """

    columns: ClassVar = {
        "control": pa.string(),
        "finding": pa.string(),
        "run": pa.string(),
        "split": pa.string(),
        "verdict": pa.string(),
        "value": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "p_value": pa.float64(),
        "p_holm": pa.float64(),
        "misses": pa.float64(),
        "misses_low": pa.float64(),
        "misses_high": pa.float64(),
        "outcome": pa.string(),
        "num_runs": pa.int64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("control", "finding", "run", "split")
    required: ClassVar = ("verdict", "num_runs", "num_images", "num_patients")
    vocabulary: ClassVar = {"control": frozenset(CONTROLS), "verdict": frozenset(CONTROL_VERDICTS)}
