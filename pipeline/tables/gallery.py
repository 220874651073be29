"""What the failure gallery shows, and where the maps beside it lie."""

from typing import Any, ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

# What the run called an image at its threshold, against its label: mistakes, then what is right.
CALLS = ("false_positive", "true_positive", "false_negative", "true_negative")
MISTAKES = ("false_positive", "false_negative")
# Parts of an image whose share of a map is measured (analysis/gallery.py).
REGIONS = ("padding", "border", "corners")
# Whose mean share: of each kind of call, of all mistakes, of all that is right, and of these the one less the other.
GROUPS = (*CALLS, "mistakes", "correct", "mistakes_minus_correct")
TEST_SPLITS = ("id_test", "ood_test")

_CASE: dict[str, pa.DataType] = {
    "run": pa.string(),
    "finding": pa.string(),
    "site": pa.string(),
    "split": pa.string(),
    "kind": pa.string(),
}
_SHARES: dict[str, pa.DataType] = {name: pa.float64() for name in REGIONS}
_VOCABULARY: dict[str, Any] = {"split": frozenset(TEST_SPLITS), "kind": frozenset(CALLS)}


class Gallery(Table):
    """The most confident calls of one run, per site and kind, one image a patient; ``rank`` 1 is the most confident.

    ``logit`` and ``probability`` are those that were held against ``threshold`` (of a study, where studies are judged).
    ``array_index`` is the row of the maps.npy beside it, null where there is no map (``note``); ``map_rows`` and
    ``map_columns`` are the size the map had before it was enlarged to the image's. ``padding``, ``border`` and
    ``corners``: as in ``MapShares``.
    """

    columns: ClassVar = {
        "gallery": pa.string(),
        **_CASE,
        "rank": pa.int16(),
        "image_id": pa.string(),
        "label": pa.int8(),
        "logit": pa.float64(),
        "probability": pa.float64(),
        "threshold": pa.float64(),
        "array_index": pa.int64(),
        "map_rows": pa.int16(),
        "map_columns": pa.int16(),
        **_SHARES,
        "note": pa.string(),
    }
    key: ClassVar = ("gallery", "finding", "site", "kind", "rank")
    required: ClassVar = ("run", "split", "image_id", "label", "logit", "probability", "threshold")
    vocabulary: ClassVar = _VOCABULARY


class MapShares(Table):
    """The share of each image's map that lies in each region, and, as ``..._area``, of the image's area.

    Null where there is no such region (an image without padding), no map, or a map that is zero everywhere (``note``).
    ``drawn``: whether the image's patient was drawn for the means; others are in the gallery alone.
    """

    columns: ClassVar = {
        "gallery": pa.string(),
        **_CASE,
        "image_id": pa.string(),
        "drawn": pa.bool_(),
        **_SHARES,
        **{f"{name}_area": pa.float64() for name in REGIONS},
        "note": pa.string(),
    }
    key: ClassVar = ("gallery", "finding", "image_id")
    required: ClassVar = ("run", "site", "split", "kind", "drawn")
    vocabulary: ClassVar = _VOCABULARY


class MapMeans(Table):
    """The mean share of a region in the maps of a site's calls of some kind, with 95 % limits by patients.

    ``area``: the mean share of the area, which is what a map that prefers no place would have; null for the difference.
    ``num_images`` and ``num_patients`` are those with such a share; of the difference, those of the side that has
    fewer patients. Null where it is undefined (``note``).
    """

    columns: ClassVar = {
        "gallery": pa.string(),
        "run": pa.string(),
        "finding": pa.string(),
        "site": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "region": pa.string(),
        "value": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "area": pa.float64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("gallery", "finding", "site", "group", "region")
    required: ClassVar = ("run", "split", "num_images", "num_patients")
    vocabulary: ClassVar = {
        "split": frozenset(TEST_SPLITS),
        "group": frozenset(GROUPS),
        "region": frozenset(REGIONS),
    }


class CallCounts(Table):
    """How many of a site's annotated test images, and of its patients, the run called so at its threshold."""

    columns: ClassVar = {
        "gallery": pa.string(),
        **_CASE,
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("gallery", "finding", "site", "kind")
    required: ClassVar = ("run", "split", "num_images", "num_patients")
    vocabulary: ClassVar = _VOCABULARY
