"""Groups of images by what ingest recorded of them: scanner, view, sex, age, and their intersections."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.tables.contract import plain_text
from pipeline.tables.files import Instances

MISSING, SEVERAL = "(missing)", "(several)"
AGE_BAND_YEARS, LAST_BAND = 20, 80  # the last is open: ingest caps ages at 90

# Names of one thing each, an order, or in the metrics already; and the age, which is taken in bands.
_NO_LEVELS = {
    "image_id", "source_id", "patient_id", "study_id", "series_id", "source_hmac", "site", "frame", "day",
    "slice_index", "slice_position_mm", "age_years",
}  # fmt: skip
COLUMNS = sorted({"age_band", *Instances.columns} - _NO_LEVELS)


def check_names(domains: Sequence[str], subgroups: Sequence[str]) -> list[str]:
    """All names: columns, or several joined by "+", whose intersections are meant.

    Raises:
        ParamsError: a column is unknown, or a name stands twice.
    """
    names = [*domains, *subgroups]
    for name in names:
        if unknown := sorted(set(name.split("+")) - set(COLUMNS)):
            raise ParamsError(f"evaluate.domains, evaluate.subgroups: no column {unknown}; known: {', '.join(COLUMNS)}")
    if len(set(names)) < len(names):
        raise ParamsError(f"evaluate.domains, evaluate.subgroups: a name stands twice in {names}")
    return names


def columns_of(names: Sequence[str]) -> list[str]:
    """The columns of ``tables.files.Instances`` that ``group_names`` reads for these names."""
    wanted = {"age_years" if part == "age_band" else part for name in names for part in name.split("+")}
    return ["image_id", "study_id", *sorted(wanted)]


def group_names(instances: pd.DataFrame, names: Sequence[str], unit: str = "image") -> pd.DataFrame:
    """The group of each image under each name, such as ``sex=F+age_band=40-59``.

    Args:
        instances: ``columns_of(names)`` of ``tables.files.Instances``.
        names: as ``check_names`` lets through.
        unit: "image"; or "study", whose level is that of its images, SEVERAL where they differ.

    Returns:
        Index image_id (or study_id), a text column a name; MISSING where nothing was recorded.

    Raises:
        PipelineError: an image stands there twice.
    """
    instances = plain_text(instances)
    if instances["image_id"].duplicated().any():
        raise PipelineError(f"instances: {int(instances['image_id'].duplicated().sum())} images stand there twice")
    parts = sorted({part for name in names for part in name.split("+")})
    levels = pd.DataFrame({part: _levels(instances, part) for part in parts}, dtype=object)
    levels.index = pd.Index(instances["study_id" if unit == "study" else "image_id"], dtype=object)
    if unit == "study":
        by_study = levels.groupby(level=0)
        levels = by_study.min().where(by_study.min() == by_study.max(), SEVERAL)
    joined = {name: _joined([part + "=" + levels[part] for part in name.split("+")]) for name in names}
    return pd.DataFrame(joined, index=levels.index, dtype=object)


def _levels(instances: pd.DataFrame, name: str) -> pd.Series:
    if name == "age_band":
        return instances["age_years"].map(_band, na_action="ignore").astype(object).fillna(MISSING)
    column = instances[name]
    text = column.map(str if column.dtype in (object, "boolean") else "{:g}".format, na_action="ignore")
    return text.astype(object).fillna(MISSING)


def _band(age_years: float) -> str:
    first = int(age_years) // AGE_BAND_YEARS * AGE_BAND_YEARS
    return f"{LAST_BAND}+" if first >= LAST_BAND else f"{first}-{first + AGE_BAND_YEARS - 1}"


def _joined(parts: Sequence[pd.Series]) -> pd.Series:
    together = parts[0]
    for part in parts[1:]:
        together = together + "+" + part
    return together


def of_images(groups: pd.DataFrame, images: Sequence[str]) -> dict[str, np.ndarray]:
    """Per name the group of each of ``images``, (n,) text.

    Raises:
        PipelineError: an image is not among the instances.
    """
    found = groups.reindex(pd.Index(images, dtype=object))
    if lost := int(found.isna().any(axis=1).sum()):
        raise PipelineError(f"{lost} of {len(found)} images with predictions are not among the instances")
    return {name: found[name].to_numpy(object) for name in groups.columns}
