"""What a person should look at before training, and Table 1."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

# Why a person should look at an image; in this order, since a blank image has no polarity and no kin.
OUTLIER_KINDS = ("blank", "inverted", "cropped", "unusual")


class TableOne(Table):
    """Table 1: per site and split the level of a variable, with what it is counted in.

    ``of_patients``: the level is the patient's, and ``share`` one of the patients; else of the images. Quartiles are
    of quantities (variable ``..._years``, ``..._mm``), null for categories. The variable "total" has the level "".
    """

    columns: ClassVar = {
        "site": pa.string(),
        "split": pa.string(),
        "variable": pa.string(),
        "level": pa.string(),
        "of_patients": pa.bool_(),
        "num_patients": pa.int64(),
        "num_studies": pa.int64(),
        "num_images": pa.int64(),
        "share": pa.float64(),
        "first_quartile": pa.float64(),
        "median": pa.float64(),
        "third_quartile": pa.float64(),
    }
    key: ClassVar = ("site", "split", "variable", "level")
    required: ClassVar = ("of_patients", "num_patients", "num_studies", "num_images", "share")


class Balance(Table):
    """Absolute standardised mean difference of a target site from the source; null with a ``note`` if undefined.

    ``num_patients``: with a known value, on the side that has fewer.
    """

    columns: ClassVar = {
        "site": pa.string(),
        "variable": pa.string(),
        "smd": pa.float64(),
        "note": pa.string(),
        "num_patients": pa.int64(),
    }
    key: ClassVar = ("site", "variable")
    required: ClassVar = ("num_patients",)


class GreyHistograms(Table):
    """Share of pixels per bin of stored grey (``grey`` in [0, 1] is its middle), padding left out; mean over images."""

    columns: ClassVar = {"site": pa.string(), "bin": pa.int16(), "grey": pa.float64(), "share": pa.float64()}
    key: ClassVar = ("site", "bin")
    required: ClassVar = ("grey", "share")


class Outliers(Table):
    """Images that a person should look at; nothing is excluded for standing here.

    ``score`` is, by kind: blank, grey between the 5th and 95th percentile in [0, 1] (below the threshold); inverted,
    correlation with the median image (below); cropped, share of the kin's content that is not covered (above);
    unusual, distance from the kin in robust standard deviations (above).
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "site": pa.string(),
        "kind": pa.string(),
        "score": pa.float64(),
        "threshold": pa.float64(),
    }
    key: ClassVar = ("image_id",)
    required: ClassVar = ("site", "kind", "score", "threshold")
    vocabulary: ClassVar = {"kind": frozenset(OUTLIER_KINDS)}


class QualityScores(Table):
    """The scores of every image that is used, by kind of outlier as in ``Outliers``; null where it was not judged.

    With a row an image it also tells `withdraw` whose pixels the sheets and histograms beside it were made from.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "site": pa.string(),
        **{kind: pa.float64() for kind in OUTLIER_KINDS},
    }
    key: ClassVar = ("image_id",)
    required: ClassVar = ("site",)


class OutlierCounts(Table):
    """How many of a site's images could be judged and how many stand out; the rest had too few kin to tell."""

    columns: ClassVar = {
        "site": pa.string(),
        "kind": pa.string(),
        "num_images": pa.int64(),
        "num_judged": pa.int64(),
        "num_outliers": pa.int64(),
    }
    key: ClassVar = ("site", "kind")
    required: ClassVar = ("num_images", "num_judged", "num_outliers")
    vocabulary: ClassVar = {"kind": frozenset(OUTLIER_KINDS)}
