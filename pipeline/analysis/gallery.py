"""Which calls of a model to look at, and how much of their maps lies where no finding is looked for.

**Calls.** An image (or a study, where studies are judged) is called positive where its probability is at least the
threshold that was fixed on the source; against its label that makes one of four kinds. The most confident are those
farthest from the threshold, on the call's side.

**Regions**, of an image as it lies in its square (``Placement``):

- padding: what the image does not cover; undefined where it covers all;
- border: a frame of 1/16 of the image's shorter edge, along its inside;
- corners: four squares of 1/5 of the shorter edge, where side markers stand. They overlap with the border.

**Share** of a region in a map M of at least 0, at the image's size: sum of M over the region / sum of M over all. A map
that prefers no place has the region's share of the area. A large share of a region without anatomy is a hint that a
shortcut is used, no proof: maps are coarse, and a small one smears over its neighbourhood.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.analysis.aggregate import Aggregation, to_studies
from pipeline.metrics.intervals import Estimate, SeedPart, bootstrap, interval, patient_counts
from pipeline.splits import uniform
from pipeline.tables.gallery import CALLS, MISTAKES, REGIONS, TEST_SPLITS

Floats = npt.NDArray[np.float64]
Masks = Mapping[str, npt.NDArray[np.bool_]]
Row = dict[str, Any]

BORDER, CORNER = 1 / 16, 1 / 5  # of the image's shorter edge
ZERO_MAP = "the map is zero everywhere: nothing spoke for the call"
NOT_RECORDED = "where the image lies in its square is not recorded"
SHARES = tuple(f"{name}{end}" for name in REGIONS for end in ("", "_area"))
_DRAW = 1  # the seed of who is measured and of the resamples; which image is shown hangs on no draw


def cases(predictions: pd.DataFrame, unit: str, aggregate: Aggregation) -> pd.DataFrame:
    """What was judged of one run, test splits alone: annotated cases with the image that stands for each.

    Of a study that is the image that speaks most for the study's call, whichever that is.

    Args:
        predictions: of one run, as ``tables.predictions.Predictions``.
        unit: "image" or "study", as in ``evaluate``.
        aggregate: how a study's images are brought together.

    Returns:
        finding, site, split, patient_id, label, logit and probability of the case, and image_id, which of a study is
        ``for_image_id`` if it is called positive, else ``against_image_id``.
    """
    rows = predictions[predictions["split"].isin(TEST_SPLITS)]
    columns = ["finding", "site", "split", "patient_id", "label", "logit", "probability"]
    if unit == "image":
        found = rows.assign(for_image_id=rows["image_id"], against_image_id=rows["image_id"])
    else:
        ordered = rows.sort_values(["logit", "image_id"])
        ends = ordered.groupby(["finding", "study_id"])["image_id"].agg(["first", "last"])
        found = to_studies(rows, aggregate).merge(ends.reset_index(), on=["finding", "study_id"])
        found = found.rename(columns={"last": "for_image_id", "first": "against_image_id"})
    found = found.dropna(subset=["label"])[[*columns, "for_image_id", "against_image_id"]]
    return found.sort_values(["finding", "site", "for_image_id"], ignore_index=True)


def called(found: pd.DataFrame, thresholds: Mapping[str, float]) -> pd.DataFrame:
    """``cases`` with threshold, kind and the image_id that stands for each; findings without a threshold are left out.

    Args:
        found: from ``cases``.
        thresholds: by finding, on the probability; NaN where there is none.
    """
    threshold = found["finding"].map(dict(thresholds)).astype(np.float64)
    known = found.assign(threshold=threshold)[threshold.notna().to_numpy()]
    positive = (known["probability"] >= known["threshold"]).to_numpy(dtype=bool)
    right = positive == (known["label"] == 1).to_numpy(dtype=bool)
    kinds = np.select([positive & ~right, positive, ~right], CALLS[:3], CALLS[3])
    image = known["for_image_id"].where(positive, known["against_image_id"])
    return known.assign(kind=kinds, image_id=image).drop(columns=["for_image_id", "against_image_id"])


def most_confident(calls: pd.DataFrame, per_site: int) -> pd.DataFrame:
    """The rows of ``called`` to show, with their rank: per finding, site and kind, the best of each patient."""
    sign = np.where(calls["kind"].str.endswith("_positive"), -1.0, 1.0)
    ordered = calls.assign(order=sign * calls["logit"].to_numpy(np.float64)).sort_values(["order", "image_id"])
    own = ["finding", "site", "kind"]
    best = ordered.drop_duplicates([*own, "patient_id"])
    best = best.assign(rank=best.groupby(own).cumcount() + 1)
    return best[best["rank"] <= per_site].drop(columns="order")


def drawn(calls: pd.DataFrame, max_images: int) -> npt.NDArray[np.bool_]:
    """Which rows of ``called`` are measured: per finding and site whole patients, in an order drawn once, in turn.

    At least one patient a site, and no more images than ``max_images`` beside that; who is drawn early stays when
    others join.
    """
    chosen = np.zeros(len(calls), dtype=bool)
    order = calls["patient_id"].map(lambda name: uniform(_DRAW, "gallery", name)).to_numpy(np.float64)
    places = np.arange(len(calls))
    for _, part in calls.assign(place=places, order=order).groupby(["finding", "site"]):
        sizes = part.groupby("order").size().sort_index()
        last = sizes.index[max(int((sizes.cumsum() <= max_images).sum()), 1) - 1]
        chosen[part.loc[part["order"] <= last, "place"].to_numpy()] = True
    return chosen


@dataclass(frozen=True)
class Placement:
    """Where an image lies in its square of ``size_px``: its rows and columns, [start, end)."""

    size_px: int
    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def of(cls, size_px: int, row: Mapping[str, Any]) -> "Placement | None":
        """From a row of ``tables.images.Images``, what was cut off left out; None where it is not recorded."""
        places = [row[name] for name in ("pad_top", "resized_rows", "pad_left", "resized_columns")]
        if any(pd.isna(place) for place in places):
            return None
        top, rows, left, columns = map(int, places)
        return cls(size_px, max(0, top), min(size_px, top + rows), max(0, left), min(size_px, left + columns))


def region_masks(place: Placement) -> Masks:
    """The regions (H, W) of an image; what is padding is nothing else."""
    size = place.size_px
    shorter = min(place.bottom - place.top, place.right - place.left)
    rows, columns = np.arange(size)[:, None], np.arange(size)[None, :]
    inside = (rows >= place.top) & (rows < place.bottom) & (columns >= place.left) & (columns < place.right)
    # Of each pixel, how many lie between it and the image's edge.
    from_rows = np.minimum(rows - place.top, place.bottom - 1 - rows)
    from_columns = np.minimum(columns - place.left, place.right - 1 - columns)
    strip, square = max(1, round(BORDER * shorter)), max(1, round(CORNER * shorter))
    return {
        "padding": ~inside,
        "border": inside & (np.minimum(from_rows, from_columns) < strip),
        "corners": inside & (from_rows < square) & (from_columns < square),
    }


def shares(values: npt.NDArray[np.floating[Any]], masks: Masks | None) -> Row:
    """Columns of ``tables.gallery.MapShares`` of one map (H, W) of at least 0; ``masks`` None: not known."""
    if masks is None:
        return {**dict.fromkeys(SHARES), "note": NOT_RECORDED}
    exact = values.astype(np.float64)
    total = exact.sum()
    row: Row = {"note": "" if total > 0 else ZERO_MAP}
    for name, mask in masks.items():
        there = bool(mask.any())
        row[name] = float(exact[mask].sum() / total) if there and total > 0 else None
        row[f"{name}_area"] = float(mask.mean()) if there else None
    return row


def mean_shares(measured: pd.DataFrame, resamples: int, confidence: float = 0.95) -> Iterator[Row]:
    """Rows of ``tables.gallery.MapMeans`` of one finding and site, without what names them.

    Args:
        measured: the drawn rows: kind, patient_id and the columns of ``shares``.
        resamples: of the bootstrap of patients.
        confidence: of the limits.
    """
    kinds = measured["kind"].to_numpy(dtype=str)
    wrong = np.isin(kinds, MISTAKES)
    groups = {**{kind: kinds == kind for kind in CALLS}, "mistakes": wrong, "correct": ~wrong}
    for region in REGIONS:
        values = measured[region].to_numpy(np.float64, na_value=np.nan)
        areas = measured[f"{region}_area"].to_numpy(np.float64, na_value=np.nan)
        known = np.isfinite(values)
        names, codes = np.unique(measured["patient_id"].to_numpy(dtype=str)[known], return_inverse=True)
        counts = patient_counts([str(name) for name in names], resamples, _DRAW)
        made: dict[str, tuple[Estimate, int]] = {}
        for group, chosen in groups.items():
            own = chosen & known
            estimate = _estimate(values[known], chosen[known], counts, codes)
            made[group] = estimate, int(own.sum())
            note = "" if own.any() else _why_none(measured[chosen], region)
            area = float(areas[own].mean()) if own.any() else None
            yield _row(group, region, estimate, "logit", int(own.sum()), area, note, confidence)
        (one, images), (other, others) = made["mistakes"], made["correct"]
        fewer = images if one.patients <= other.patients else others
        patients = min(one.patients, other.patients)
        difference = Estimate(one.value - other.value, one.draws - other.draws, one.seeds, patients)
        note = "" if images and others else "needs mistakes and correct calls"
        yield _row("mistakes_minus_correct", region, difference, "identity", fewer, None, note, confidence)


def _estimate(values: Floats, chosen: npt.NDArray[np.bool_], counts: Any, codes: Any) -> Estimate:
    """The mean over images, each patient's as often as the patient is drawn; of one run, whose spread is unknown."""

    def mean(weights: Floats) -> Floats:
        own = weights[:, chosen]
        total = own.sum(axis=1)
        found = np.full(len(own), np.nan)
        return np.divide(own @ values[chosen], total, out=found, where=total > 0)

    value = float(values[chosen].mean()) if chosen.any() else float("nan")
    return Estimate(value, bootstrap(mean, counts, codes), (SeedPart(0.0, 0.0, 1),), len(np.unique(codes[chosen])))


def _row(
    group: str, region: str, estimate: Estimate, scale: Any, images: int, area: float | None, note: str,
    confidence: float,
) -> Row:  # fmt: skip
    made = interval(estimate, scale, confidence)
    return {
        "group": group, "region": region, "value": estimate.value, "ci_low": made.low, "ci_high": made.high,
        "area": area, "num_images": images, "num_patients": estimate.patients, "note": note or made.note,
    }  # fmt: skip


def _why_none(measured: pd.DataFrame, region: str) -> str:
    if measured.empty:
        return "no such call"
    lacks = measured["note"].isin(["", ZERO_MAP]) & measured[f"{region}_area"].isna()
    reasons = measured["note"].where(~lacks, f"no image has {region}")
    return "; ".join(sorted(set(reasons) - {""}))


def call_counts(calls: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Per kind the numbers of images and patients of one finding and site; all kinds, whether there are any or not."""
    return {
        kind: (len(part), int(part["patient_id"].nunique()))
        for kind in CALLS
        for part in (calls[calls["kind"] == kind],)
    }
