"""Labels, what their files were worth, and the terms under which they came."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

# Rows of a label file; the last three are images and findings whose label a policy set (stages/labels.py).
LABEL_ISSUES = frozenset(
    """
    duplicate_row conflicting_rows conflicting_readers unknown_value unknown_image uncertain_value invalid_date
    set_by_uncertain_policy set_by_missing_policy set_by_conflict_policy
    """.split()
)
LABEL_STATUSES = ("given", "conflicting", "uncertain", "missing")


class Labels(Table):
    """One row an image and finding: 1 present, 0 absent, null not annotated.

    ``status``: what the rows say, whatever a policy then made of it: given, conflicting, uncertain (nothing else),
    missing (no row, or one that leaves it open).
    """

    columns: ClassVar = {"image_id": pa.string(), "finding": pa.string(), "label": pa.int8(), "status": pa.string()}
    key: ClassVar = ("image_id", "finding")
    vocabulary: ClassVar = {"status": frozenset(LABEL_STATUSES)}


class Readings(Table):
    """What each reader said of an image, where the label file names readers or dates; ``reading`` counts from 0.

    ``reader`` is a keyed pseudonym, ``day`` the date shifted as ``Instances``' is.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "finding": pa.string(),
        "reading": pa.int32(),
        "reader": pa.string(),
        "day": pa.int32(),
        "value": pa.string(),
    }
    key: ClassVar = ("image_id", "finding", "reading")
    required: ClassVar = ("value",)
    vocabulary: ClassVar = {"value": frozenset({"present", "absent", "uncertain"})}


class Terms(Table):
    """What a site's data is and may be used for; see ``datasets.common.Terms``."""

    columns: ClassVar = {
        "site": pa.string(),
        "origin": pa.string(),
        "licence": pa.string(),
        "redistribution": pa.bool_(),
        "citation": pa.string(),
    }
    key: ClassVar = ("site",)
    required: ClassVar = ("origin", "licence", "redistribution", "citation")


class LabelIssues(Table):
    """What was wrong in a site's label files, counted in their rows, and what policies set, in labels."""

    columns: ClassVar = {"site": pa.string(), "issue": pa.string(), "count": pa.int64()}
    key: ClassVar = ("site", "issue")
    required: ClassVar = ("count",)
    vocabulary: ClassVar = {"issue": LABEL_ISSUES}
