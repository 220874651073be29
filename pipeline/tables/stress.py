"""What corrupted images do to the models."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

KINDS = ("noise", "blur", "gamma", "window", "resolution", "marker")


class StressCurves(Table):
    """AUROC on the source's id_test under a shift of acquisition, a backbone and method over its seeds.

    ``run`` is named as in ``Metrics``. ``strength`` is in ``unit`` (``imaging/corruption.py``). ``severity`` 0 is the
    same images as they are, alike for all kinds; ``difference`` is from there, run by run on the same patients, and
    null at 0. Null where it is undefined (``note``).
    """

    columns: ClassVar = {
        "run": pa.string(),
        "finding": pa.string(),
        "kind": pa.string(),
        "severity": pa.int16(),
        "strength": pa.float64(),
        "unit": pa.string(),
        "value": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "difference": pa.float64(),
        "difference_low": pa.float64(),
        "difference_high": pa.float64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "finding", "kind", "severity")
    required: ClassVar = ("strength", "unit", "num_images", "num_patients")
    vocabulary: ClassVar = {"kind": frozenset(KINDS)}
