"""Table 1: who and what is in each site and split, and how far each target is from the source."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.tables.contract import make_table
from pipeline.tables.quality import Balance, TableOne

MISSING, CONTRADICTORY = "missing", "contradictory"
_PER_IMAGE = ("modality", "device", "body_part", "view_position", "photometric_interpretation")
Difference = tuple[float | None, str | None]  # or why there is none
_SPACINGS = {"row_spacing_mm": "pixel_spacing_mm", "imager_row_spacing_mm": "imager_pixel_spacing_mm"}


def describe(instances: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Long format, one row an image and variable: what ``table_one`` and ``balance`` count.

    Args:
        instances: ``tables.files.Instances`` of the images that are used, joined with role and split.
        labels: ``tables.labels.Labels``.

    Returns:
        image_id, patient_id, study_id, site, role, split; variable; level (MISSING where nothing is known); of_patients
        (bool: the level is the patient's); quantity (float, NaN for categories).
    """
    base = instances[["image_id", "patient_id", "study_id", "site", "role", "split"]]
    maker, model = instances["manufacturer"].fillna(MISSING), instances["model"].fillna(MISSING)
    # Maker and model as one variable: nested tables would give away each other's hidden cells.
    device = (maker + ", " + model).where(instances["manufacturer"].notna() | instances["model"].notna())
    parts = [base.assign(variable="total", level="", of_patients=True, quantity=np.nan)]
    known = instances.assign(device=device).groupby("patient_id")
    sexes = known["sex"].nunique()
    sex = known["sex"].first().where(sexes == 1).fillna(MISSING).mask(sexes > 1, CONTRADICTORY)
    age = known["age_years"].min()
    patient = instances["patient_id"]
    parts.append(base.assign(variable="sex", level=patient.map(sex), of_patients=True, quantity=np.nan))
    parts.append(_quantity(base, "age_years", patient.map(age), of_patients=True))
    for finding, rows in labels[labels["image_id"].isin(base["image_id"])].groupby("finding"):
        own = base["image_id"].map(rows.set_index("image_id")["label"]).astype("Float64")
        # A patient is positive with one positive image, negative with none and a negative one.
        whole = own.groupby(patient.to_numpy()).max()
        of_patient = _presence(patient.map(whole))
        parts.append(base.assign(variable=f"finding: {finding}", level=of_patient, of_patients=True))
        parts.append(base.assign(variable=f"image finding: {finding}", level=_presence(own), of_patients=False))
    for name in _PER_IMAGE:
        level = (device if name == "device" else instances[name]).fillna(MISSING)
        parts.append(base.assign(variable=name, level=level, of_patients=False, quantity=np.nan))
    parts += [
        _quantity(base, name, instances[column], of_patients=False)
        for column, name in _SPACINGS.items()
        if instances[column].notna().any()
    ]
    return pd.concat(parts, ignore_index=True)


def _presence(label: pd.Series) -> pd.Series:
    return label.map({1.0: "present", 0.0: "absent"}).astype("string").fillna("not annotated")


def _quantity(base: pd.DataFrame, name: str, values: pd.Series, of_patients: bool) -> pd.DataFrame:
    numbers = pd.to_numeric(values).astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    level = np.where(np.isnan(numbers), MISSING, "known")
    return base.assign(variable=name, level=level, of_patients=of_patients, quantity=numbers)


def table_one(described: pd.DataFrame) -> pd.DataFrame:
    """Counts, shares and quartiles per site, split, variable and level, as ``tables.quality.TableOne``.

    Every level of a variable that a study knows has a row everywhere, with 0 where it does not occur. Shares are of
    the patients, or of the images, of that site and split; quartiles are linear (NumPy's default).
    """
    levels = described.drop_duplicates(["variable", "level"])[["variable", "level", "of_patients"]].to_dict("records")
    rows = []
    for (site, split), here in described.groupby(["site", "split"]):
        groups = dict(list(here.groupby(["variable", "level"])))
        num = _counts(groups["total", ""])
        for level in levels:
            group = groups.get((level["variable"], level["level"]), here.head(0))
            counts = _counts(group)
            unit = "num_patients" if level["of_patients"] else "num_images"
            units = group.drop_duplicates("patient_id") if level["of_patients"] else group
            known = units["quantity"].dropna().to_numpy(np.float64)
            quartiles = np.quantile(known, (0.25, 0.5, 0.75)).tolist() if len(known) else [None] * 3
            rows.append(
                {
                    "site": site, "split": split, **level, **counts,
                    "share": counts[unit] / num[unit],
                    **dict(zip(("first_quartile", "median", "third_quartile"), quartiles, strict=True)),
                }
            )  # fmt: skip
    return make_table(TableOne, rows)


def _counts(group: pd.DataFrame) -> dict[str, int]:
    columns = {"num_patients": "patient_id", "num_studies": "study_id", "num_images": "image_id"}
    return {name: int(group[column].nunique()) for name, column in columns.items()}


def balance(described: pd.DataFrame) -> pd.DataFrame:
    """Absolute standardised mean difference between all source patients and each target's, as ``Balance``.

    Of known values alone; patients', or images' where the variable is an image's.
    """
    unknown = described["level"].isin([MISSING, CONTRADICTORY, "not annotated"])
    known = described[~unknown & (described["variable"] != "total")]
    targets = described.loc[described["role"] == "target", "site"].unique()
    rows: list[dict[str, Any]] = []
    for variable in sorted(set(described["variable"]) - {"total"}):
        of_variable = known[known["variable"] == variable]
        if of_variable["of_patients"].any():
            of_variable = of_variable.drop_duplicates(["role", "site", "patient_id"])
        home = of_variable[of_variable["role"] == "source"]
        if of_variable["of_patients"].any():
            home = home.drop_duplicates("patient_id")
        for site in sorted(targets):
            away = of_variable[(of_variable["role"] == "target") & (of_variable["site"] == site)]
            if not len(home) or not len(away):
                difference: Difference = (None, "no known value on one side")
            elif of_variable["quantity"].notna().any():
                difference = smd_of_quantities(home["quantity"].to_numpy(), away["quantity"].to_numpy())
            else:
                difference = smd_of_levels(Counter(home["level"]), Counter(away["level"]))
            fewest = min(home["patient_id"].nunique(), away["patient_id"].nunique())
            row = {"site": site, "variable": variable, "num_patients": fewest}
            rows.append(row | dict(zip(("smd", "note"), difference, strict=True)))
    return make_table(Balance, rows)


def smd_of_quantities(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> Difference:
    """|mean - mean| over the root of the mean variance (Austin, Stat Med 2009); null with a reason if undefined."""
    if min(len(one), len(other)) < 2:
        return None, "undefined: fewer than two values on one side"
    variance = (np.var(one, ddof=1) + np.var(other, ddof=1)) / 2
    if not variance > 0:
        return None, "undefined: no variance on either side"
    return float(abs(np.mean(one) - np.mean(other)) / np.sqrt(variance)), None


def smd_of_levels(one: Mapping[str, int], other: Mapping[str, int]) -> Difference:
    """The multinomial difference of Yang and Dalton (SAS Global Forum 2012, paper 335); null if undefined.

    Args:
        one: level to count.
        other: likewise.
    """
    shares = [{level: count / sum(side.values()) for level, count in side.items() if count} for side in (one, other)]
    levels = sorted(set(shares[0]) | set(shares[1]))
    if not all(shares):
        return None, "no known value on one side"
    if len(levels) == 1:
        return None, "undefined: the same value throughout"
    if not set(shares[0]) & set(shares[1]):  # only then is the covariance below singular
        return None, "undefined: no value occurs on both sides"
    p, q = (np.array([side.get(level, 0.0) for level in levels[1:]]) for side in shares)  # the first follows
    covariance = (np.diag(p) - np.outer(p, p) + np.diag(q) - np.outer(q, q)) / 2
    return float(np.sqrt((p - q) @ np.linalg.solve(covariance, p - q))), None
