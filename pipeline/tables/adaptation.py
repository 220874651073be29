"""What remedies estimated, and where they were refused."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table


class Remedies(Table):
    """One row a run, site and finding: what a remedy did there.

    ``decision``: ``applied``; ``corrected`` (applied to images resampled against label shift); ``refused`` (the plain
    predictions stand, ``note`` says why). ``selection``: how the epoch and learning rate of a training remedy were
    chosen. ``slope`` and ``intercept`` are what the plain logits were multiplied by and what was added. Interval: 95 %.
    """

    columns: ClassVar = {
        "run": pa.string(),
        "site": pa.string(),
        "finding": pa.string(),
        "remedy": pa.string(),
        "decision": pa.string(),
        "selection": pa.string(),
        "num_adapt_images": pa.int64(),
        "num_labelled_used": pa.int64(),
        "source_prevalence": pa.float64(),
        "estimated_prevalence": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "temperature": pa.float64(),
        "slope": pa.float64(),
        "intercept": pa.float64(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "site", "finding")
    required: ClassVar = ("remedy", "decision", "num_adapt_images", "num_labelled_used", "note")
    vocabulary: ClassVar = {
        "decision": frozenset({"applied", "corrected", "refused"}),
        "selection": frozenset({"source validation"}),
    }
