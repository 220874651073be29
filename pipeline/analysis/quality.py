"""What the stored images look like, and which are unlike their kin: for a person to look at, never to exclude.

Kin are a site's images of one modality, body part and view as their headers claim. All statistics are of the image
as it lies in the square, without the padding around it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from pipeline.params import StrictParams
from pipeline.tables.contract import make_table
from pipeline.tables.quality import OUTLIER_KINDS, GreyHistograms, OutlierCounts, Outliers, QualityScores

Floats = npt.NDArray[np.float64]

BINS = 64
KIN = ("modality", "body_part", "view_position")
_THUMBNAIL_PX = 16  # bodies and body parts differ at this size, lines and findings do not show
_MARGIN_PX = 32
_COMPONENTS = 8
_FLAT = 0.03  # of the grey range: a line whose middle 80 % span less holds no content
_MAD_TO_SD = 1.4826


class QualityParams(StrictParams):
    """Section ``quality``: how far an image may be from its kin before a person should look at it.

    ``tiles`` images a site on its contact sheet. Blank: 90 % of the pixels within ``blank_spread`` of the grey range.
    Inverted: correlation with the median image below ``inverted_correlation``. Cropped: content covers less than the
    kin's median by ``cropped_share`` of it, and by more than ``unusual_distance`` robust standard deviations.
    Unusual: more than ``unusual_distance`` of them from the kin. Groups below ``min_kin`` images are no measure.
    """

    tiles: int = Field(default=48, ge=8, le=200)
    blank_spread: float = Field(default=0.05, gt=0.0, lt=1.0)
    inverted_correlation: float = Field(default=-0.25, gt=-1.0, lt=0.0)
    cropped_share: float = Field(default=0.35, gt=0.0, lt=1.0)
    unusual_distance: float = Field(default=3.5, gt=0.0)
    min_kin: int = Field(default=30, ge=2 * _COMPONENTS)


@dataclass(frozen=True)
class Summaries:
    """A few numbers an image, in the order given.

    Attributes:
        thumbnails: (N, 256) grey in [0, 1], 16 x 16 pixels row by row.
        spread: (N,) distance of the 5th and 95th percentile of grey, in [0, 1].
        covered: (N,) share of the square within the first and last row and column with content.
        histogram: (64,) share of pixels per bin of grey, the mean over images.
    """

    thumbnails: npt.NDArray[np.float32]
    spread: Floats
    covered: Floats
    histogram: Floats


def summarise(batches: Iterable[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]) -> Summaries:
    """Reduce images batch by batch; a kilobyte an image stays in memory.

    Args:
        batches: images (B, H, W) uint8 or uint16, and where each lies in its square (B, 4): top, left, rows, columns.
    """
    rows = [_summarise(image, box) for images, boxes in batches for image, box in zip(images, boxes, strict=True)]
    thumbnails, spread, covered, histograms = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Summaries(
        np.asarray(thumbnails, np.float32).reshape(len(rows), _THUMBNAIL_PX**2),
        np.asarray(spread, np.float64),
        np.asarray(covered, np.float64),
        np.mean(histograms, axis=0, dtype=np.float64) if rows else np.full(BINS, np.nan),
    )


def _summarise(image: npt.NDArray[Any], box: npt.NDArray[np.int64]) -> tuple[Any, float, float, Any]:
    top, left, rows, columns = (int(value) for value in box)
    inside = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    white = np.iinfo(image.dtype).max
    counts = cv2.calcHist([inside], [0], None, [256], [0, white + 1]).ravel()
    below = counts.cumsum() / inside.size
    spread = float(np.searchsorted(below, 0.95) - np.searchsorted(below, 0.05)) / 255
    small = cv2.resize(inside, (_MARGIN_PX, _MARGIN_PX), interpolation=cv2.INTER_AREA) / np.float32(white)
    covered = _extent(small) * _extent(small.T) * inside.size / image.size
    thumbnail = cv2.resize(small, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    histogram = counts.reshape(BINS, -1).sum(axis=1) / inside.size
    return thumbnail.ravel(), spread, covered, histogram.astype(np.float32)


def _extent(grey: npt.NDArray[Any]) -> float:
    """Share of lines from the first to the last with content; a marker in a margin is none."""
    ordered = np.sort(grey, axis=1)
    tenth = round(grey.shape[1] / 10)
    content = np.flatnonzero(ordered[:, -1 - tenth] - ordered[:, tenth] > _FLAT)
    return float(content[-1] - content[0] + 1) / len(grey) if len(content) else 0.0


def together(parts: Iterable[Summaries]) -> Summaries:
    """Several sites' summaries, one after the other; their histogram is that of no site, hence NaN."""
    parts = list(parts)
    thumbnails, spread, covered = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("thumbnails", "spread", "covered")
    )
    return Summaries(thumbnails, spread, covered, np.full(BINS, np.nan))


def grey_histograms(summaries: dict[str, Summaries]) -> pd.DataFrame:
    """As ``tables.quality.GreyHistograms``; a site without images has no rows."""
    rows = [
        {"site": site, "bin": number, "grey": (number + 0.5) / BINS, "share": float(share)}
        for site, of_site in summaries.items()
        if len(of_site.spread)
        for number, share in enumerate(of_site.histogram)
    ]
    return make_table(GreyHistograms, rows)


@dataclass(frozen=True)
class _Kin:
    """What is usual in a group of images, by medians, which a few outliers do not move.

    The axes are of spherical principal components (Locantore et al., TEST 1999): each image weighs the same,
    however far out. The distance is the one to their plane, to the power 2/3 about normal (ROBPCA: Hubert et al.,
    Technometrics 2005).
    """

    centre: Floats
    axes: Floats
    distance: tuple[float, float]  # median and robust standard deviation
    covered: tuple[float, float]

    @classmethod
    def of(cls, units: Floats, covered: Floats) -> "_Kin":
        centre = np.median(units, axis=0)
        directions = _unit_length(units - centre)
        axes = np.linalg.eigh(directions.T @ directions)[1][:, -_COMPONENTS:]
        return cls(centre, axes, _robust(_off_plane(units, centre, axes)), _robust(covered))


def find_outliers(
    facts: pd.DataFrame, summaries: Summaries, params: QualityParams
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Images that a person should look at, each under the first kind that applies.

    An image is compared with its kin, or with its whole site where its kin are fewer than ``min_kin``; where the
    site is smaller too, it is judged for blankness alone. Polarity is also compared with the sources' images of the
    same body part: a whole site may be inverted.

    Args:
        facts: image_id, site, role, modality, body_part, view_position; a row an image.
        summaries: in the order of ``facts``.
        params: the section.

    Returns:
        ``tables.quality.Outliers``, ``tables.quality.OutlierCounts`` and ``tables.quality.QualityScores``.
    """
    scores = {kind: np.full(len(facts), np.nan) for kind in OUTLIER_KINDS}
    limits = {
        "blank": np.full(len(facts), params.blank_spread),
        "inverted": np.full(len(facts), params.inverted_correlation),
        "cropped": np.full(len(facts), params.cropped_share),
        "unusual": np.full(len(facts), params.unusual_distance),
    }
    scores["blank"] = summaries.spread
    sound = summaries.spread >= params.blank_spread
    flat = summaries.thumbnails - summaries.thumbnails.mean(axis=1, keepdims=True, dtype=np.float64)
    units = _unit_length(flat)
    site, body_part = facts["site"].to_numpy(), facts["body_part"].fillna("").to_numpy()
    source = (facts["role"] == "source").to_numpy()
    claimed = facts[list(KIN)].fillna("").agg("|".join, axis=1).to_numpy() if len(facts) else np.array([], str)

    def compare(judged: npt.NDArray[np.bool_], kin: npt.NDArray[np.bool_]) -> None:
        usual = _Kin.of(units[kin], summaries.covered[kin])
        scores["inverted"][judged] = units[judged] @ _unit_length(usual.centre[None])[0]
        median, deviation = usual.covered
        scores["cropped"][judged] = 1 - summaries.covered[judged] / median if median > 0 else np.nan
        if median > 0:
            limits["cropped"][judged] = max(params.cropped_share, params.unusual_distance * deviation / median)
        middle, scale = usual.distance
        off = _off_plane(units[judged], usual.centre, usual.axes)
        scores["unusual"][judged] = (off - middle) / scale if scale > 0 else np.nan

    for name in np.unique(site):
        here = sound & (site == name)
        if here.sum() < params.min_kin:
            continue
        few = here.copy()
        for group in np.unique(claimed[here]):
            kin = here & (claimed == group)
            if kin.sum() >= params.min_kin:
                compare(kin, kin)
                few &= ~kin
        if few.any():
            compare(few, here)
    for part in np.unique(body_part[sound & ~source]):
        home = sound & source & (body_part == part)
        if home.sum() >= params.min_kin:
            away = sound & ~source & (body_part == part)
            reference = _unit_length(np.median(units[home], axis=0)[None])[0]
            scores["inverted"][away] = np.fmin(scores["inverted"][away], units[away] @ reference)

    # The order in which threads add shows in the last digits, and is no part of a result.
    scores = {kind: np.round(values, 6) for kind, values in scores.items()}
    found = {
        kind: scores[kind] < limits[kind] if kind in ("blank", "inverted") else scores[kind] > limits[kind]
        for kind in OUTLIER_KINDS
    }
    rows, counts, settled = [], [], np.zeros(len(facts), bool)
    for kind in OUTLIER_KINDS:
        first = found[kind] & ~settled
        settled |= first
        for at in np.flatnonzero(first):
            score, limit = float(scores[kind][at]), float(limits[kind][at])
            row = {"site": site[at], "kind": kind, "score": score, "threshold": limit}
            rows.append({"image_id": facts["image_id"].iloc[at], **row})
        for name in np.unique(site):
            here = site == name
            judged, out = int((here & np.isfinite(scores[kind])).sum()), int((here & first).sum())
            row = {"num_images": int(here.sum()), "num_judged": judged, "num_outliers": out}
            counts.append({"site": name, "kind": kind, **row})
    table = pd.DataFrame({"image_id": facts["image_id"], "site": facts["site"], **scores})
    return make_table(Outliers, rows), make_table(OutlierCounts, counts), make_table(QualityScores, table)


def _unit_length(rows: npt.NDArray[Any]) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, lengths, out=np.zeros(rows.shape), where=lengths > 0))


def _off_plane(units: Floats, centre: Floats, axes: Floats) -> Floats:
    away = units - centre
    return np.asarray(np.linalg.norm(away - away @ axes @ axes.T, axis=1) ** (2 / 3))


def _robust(values: Floats) -> tuple[float, float]:
    """Median, and median absolute deviation as a standard deviation."""
    median = float(np.median(values))
    return median, _MAD_TO_SD * float(np.median(np.abs(values - median)))


def choose_tiles(splits: pd.DataFrame, num: int) -> list[str]:
    """A site's images for its contact sheet, evenly over its splits, one a patient; known by their pseudonyms alone.

    Args:
        splits: image_id, patient_id, split of one site.
        num: how many, at most.

    Returns:
        image_ids, split by split in turn, each split's in the order of its pseudonyms, which are keyed hashes.
    """
    ordered = splits.sort_values("image_id").drop_duplicates("patient_id")
    turn = ordered.groupby("split").cumcount()
    ordered = ordered.assign(turn=turn).sort_values(["turn", "split"]).head(num)
    return [str(name) for name in ordered.sort_values(["split", "image_id"])["image_id"]]


def contact_sheet(images: npt.NDArray[Any], columns: int = 8, tile_px: int = 128) -> npt.NDArray[np.uint8]:
    """Images (N, H, W) uint8 or uint16 side by side, left to right and down, with black lines between: (rows, columns).

    Nothing is written on them.
    """
    pitch = tile_px + 2
    sheet = np.zeros((max(1, -(-len(images) // columns)) * pitch, columns * pitch), np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * pitch, number % columns * pitch
        grey = (image // (np.iinfo(image.dtype).max // 255)).astype(np.uint8)
        method = cv2.INTER_AREA if image.shape[0] > tile_px else cv2.INTER_LINEAR
        sheet[top : top + tile_px, left : left + tile_px] = cv2.resize(grey, (tile_px, tile_px), interpolation=method)
    return sheet
