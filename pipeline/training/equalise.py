"""As many labelled patients in every row of a site x site matrix, so that rows differ in the hospital alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.splits import uniform
from pipeline.training.budget import label_order, strata_of
from pipeline.training.feed import Floats, Indices


@dataclass(frozen=True)
class Sides:
    """Who may train and who may select in one row, for one finding: indices of annotated images."""

    train: Indices
    val: Indices


@dataclass(frozen=True)
class Budget:
    """What every row of a protocol has: patients of each class that train (None: all), patients that select."""

    per_class: int | None
    val: int | None


def shortage(labels: Floats, patients: npt.NDArray[np.str_], sides: Sides, least: int) -> str:
    """Why a row cannot be trained, "" where it can.

    Args:
        labels: (N,) 0 or 1 on the images of ``sides``.
        patients: (N,).
        sides: of the row.
        least: patients of each class.
    """
    known = _classes(labels, patients, sides.train)
    for label, words in (("1", "with"), ("0", "without")):
        own = sum(value == label for value in known.values())
        if own < least:
            return f"too few labelled patients: {own} {words} the finding, {least} are needed"
    return "" if len(sides.val) else "no labelled patient to select on"


def budget(labels: Floats, patients: npt.NDArray[np.str_], rows: Mapping[str, Sides], *, equalised: bool) -> Budget:
    """The most that every one of these rows can give.

    Args:
        labels: (N,) 0 or 1 on the images of ``rows``.
        patients: (N,).
        rows: those that can be trained.
        equalised: otherwise every row takes all it has.
    """
    if not equalised or not rows:
        return Budget(None, None)
    classes = [list(_classes(labels, patients, sides.train).values()) for sides in rows.values()]
    return Budget(
        min(known.count(label) for known in classes for label in "01"),
        min(len(set(patients[sides.val].tolist())) for sides in rows.values()),
    )


def draw(labels: Floats, patients: npt.NDArray[np.str_], sides: Sides, given: Budget, seed: int) -> Sides:
    """The images of a row's drawn patients. Who is early in the order of a seed is there in larger budgets too."""
    if given.per_class is None or given.val is None:
        return sides
    known = _classes(labels, patients, sides.train)
    order = sorted(known, key=lambda patient: (uniform(seed, "matrix", str(seed), patient), patient))
    train = [p for label in "01" for p in [one for one in order if known[one] == label][: given.per_class]]
    val = label_order(seed, _classes(labels, patients, sides.val))[: given.val]
    return Sides(
        sides.train[np.isin(patients[sides.train], train)],
        sides.val[np.isin(patients[sides.val], val)],
    )


def _classes(labels: Floats, patients: npt.NDArray[np.str_], images: Indices) -> dict[str, str]:
    """ "1" for a patient with the finding in some image, else "0"."""
    return strata_of(labels[images][:, None], patients[images])
