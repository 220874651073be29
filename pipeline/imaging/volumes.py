"""Slices as parts of a volume: neighbours by position become channels (2.5D)."""

import numpy as np
import pandas as pd

from pipeline.dicom.geometry import STEP_TOLERANCE_MM, STEP_TOLERANCE_RELATIVE
from pipeline.imaging.store import Indices


def stack(
    images: pd.DataFrame, planes: Indices, instances: pd.DataFrame, neighbours: int
) -> tuple[pd.DataFrame, Indices, list[str]]:
    """The planes of each slice and of those around it, by position in its series; at the ends the last is repeated.

    A series is left out whole where a slice is missing, where the files give no positions, or where its steps are not
    all its spacing (gaps; several echoes or times at one place): what is next would not be a neighbour.

    Args:
        images: as ``tables.images.Images``, in the order of array_index.
        planes: (images,) the number of each one's plane.
        instances: as ``tables.files.Instances``; of series also slice_index, slice_position_mm and slice_spacing_mm.
        neighbours: odd, the slice itself in the middle.

    Returns:
        the images that are left, numbered anew; (images, neighbours) plane numbers, along growing position; and the
        sources that were left out.
    """
    columns = ["image_id", "source_id", "series_id", "slice_index", "slice_position_mm", "slice_spacing_mm"]
    known = instances[columns].merge(
        images[["image_id"]].assign(plane=planes, position=np.arange(len(images))), on="image_id", how="left"
    )
    known = known.sort_values(["series_id", "slice_index"], ignore_index=True)
    steps = known.groupby("series_id")["slice_position_mm"].diff()
    off = (steps - known["slice_spacing_mm"]).abs() > STEP_TOLERANCE_MM + STEP_TOLERANCE_RELATIVE * steps.abs()
    uneven = set(known.loc[off | (steps <= 0), "series_id"].dropna())
    by_series = known.groupby("series_id")
    whole = known["series_id"].notna() & (by_series["plane"].transform("count") == by_series["plane"].transform("size"))
    whole &= by_series["slice_index"].transform("count") == by_series["plane"].transform("size")
    whole &= ~known["series_id"].isin(uneven)
    unstacked = known.loc[~whole & known["plane"].notna(), "source_id"]
    # A file is used whole or not at all.
    whole &= ~known["source_id"].isin(unstacked)
    slices = known[whole]
    _, start, size = np.unique(slices["series_id"].to_numpy(str), return_index=True, return_counts=True)
    start, size = np.repeat(start, size), np.repeat(size, size)
    within = np.arange(len(slices)) - start
    offsets = np.arange(neighbours) - neighbours // 2
    around = start[:, None] + np.clip(within[:, None] + offsets, 0, size[:, None] - 1)
    channels = slices["plane"].to_numpy(np.int64)[around]
    order = np.argsort(slices["position"].to_numpy(np.int64))
    kept = images.iloc[np.sort(slices["position"].to_numpy(np.int64))].reset_index(drop=True)
    kept["array_index"] = np.arange(len(kept))
    return kept, channels[order], sorted(set(unstacked))
