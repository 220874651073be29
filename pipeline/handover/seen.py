"""What a model was trained on, in the words of the header, and in what a new image is unlike it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from pipeline.imaging.intensity import Window
from pipeline.imaging.recipe import PreprocessParams
from pipeline.params import StrictParams
from pipeline.tables.contract import plain_text

NOT_RECORDED = "(not recorded)"
CHECKED = {"modality": "other_modality", "view_position": "other_view", "body_part": "other_body_part"}
RASTER = frozenset({"png", "jpeg"})  # instead of a transfer syntax, see datasets/image_files.py
NO_WINDOW = "range"  # see dicom.pixels.describe_voi
_ABSOLUTE = frozenset({"ct"})  # modalities whose units are the same everywhere, so that windows compare


class Seen(StrictParams):
    """The training images.

    Attributes:
        kind: of their files, "dicom" or "raster" (PNG and JPEG).
        levels: of each column of ``CHECKED`` the terms that stand among them; NOT_RECORDED where a file has none.
        accepted: more terms, that the person who hands over answers for.
        windowless: some were shown over the range of their values, without a window.
        windows: of modalities in absolute units the least and greatest centre and width of a header's window.
    """

    kind: Literal["dicom", "raster"]
    levels: dict[str, list[str]]
    accepted: dict[str, list[str]]
    windowless: bool
    windows: dict[str, list[float]]


def describe_seen(instances: pd.DataFrame, images: pd.DataFrame, accept: Mapping[str, Sequence[str]]) -> Seen:
    """From rows of ``tables.files.Instances`` and ``tables.images.Images`` of the same training images.

    Args:
        instances: of the images.
        images: of the images.
        accept: per column more terms, see ``Seen.accepted``.

    Raises:
        ValueError: DICOM and PNG or JPEG files together.
    """
    rows = plain_text(instances).merge(plain_text(images), on="image_id", validate="one_to_one")
    raster = rows["transfer_syntax"].isin(RASTER)
    if raster.any() and not raster.all():
        raise ValueError("trained on DICOM and on PNG or JPEG files together")
    levels = {column: sorted(set(map(_level, rows[column]))) for column in CHECKED}
    absolute = rows[rows["modality"].isin(_ABSOLUTE) & rows["window_center"].notna()]
    windows: dict[str, list[float]] = {
        str(modality): [
            float(of[name].agg(how)) for name in ("window_center", "window_width") for how in ("min", "max")
        ]
        for modality, of in absolute.groupby("modality", sort=True)
    }
    return Seen(
        kind="raster" if raster.any() else "dicom",
        levels=levels,
        accepted={column: sorted(accept.get(column, ())) for column in CHECKED},
        windowless=bool(rows["voi"].str.contains(NO_WINDOW, regex=False).any()),
        windows=windows,
    )


def header_misfits(row: Mapping[str, Any], seen: Seen) -> dict[str, str]:
    """In what an image's header is unlike those of the training images: misfit to words that name nobody.

    Headers of PNG and JPEG files record none of it: of those nothing can be checked.

    Args:
        row: of it the columns of ``CHECKED``, of ``tables.files.Instances``.
        seen: the training images.
    """
    if seen.kind == "raster":
        return {}
    levels = {column: _level(row[column]) for column in CHECKED}
    return {
        misfit: f"{column} {levels[column]}; trained on {', '.join(seen.levels[column])}"
        for column, misfit in CHECKED.items()
        if levels[column] not in seen.levels[column] and levels[column] not in seen.accepted[column]
    }


def window_misfit(row: Mapping[str, Any], seen: Seen, preprocess: PreprocessParams) -> str:
    """Why an image's grey values are not made as those of the training images were; "" where they are.

    Args:
        row: its modality, and voi, window_center and window_width of ``tables.images.Images``.
        seen: the training images.
        preprocess: the params of the arrays.
    """
    if seen.kind == "raster":
        return ""
    if NO_WINDOW in str(row["voi"]).split("+") and not seen.windowless:
        fixed = any(isinstance(rule, Window) for rule in preprocess.rules)
        return "values that were windowed already or are colours" if fixed else "no window in the header"
    bounds = seen.windows.get(_level(row["modality"]))
    if bounds is None or preprocess.voi != "header" or pd.isna(row["window_center"]):
        return ""
    low, high, narrow, wide = bounds
    if low <= row["window_center"] <= high and narrow <= row["window_width"] <= wide:
        return ""
    # The file's own numbers stay out of it: any field of a header can hold a number that names somebody.
    return f"its window is not among those trained on, centres {low:g} to {high:g}, widths {narrow:g} to {wide:g}"


def _level(value: Any) -> str:
    return NOT_RECORDED if pd.isna(value) else str(value)
