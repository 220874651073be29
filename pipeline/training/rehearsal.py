"""Which patients of earlier hospitals are trained on again when a new one joins (section ``continual``)."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt, model_validator

from pipeline.params import StrictParams
from pipeline.splits import uniform
from pipeline.training.budget import label_order, strata_of

Strategy = Literal["naive", "replay", "joint"]


class ReplayParams(StrictParams):
    """``continual.replay``: how many patients of each earlier hospital, and of each side of it, are kept.

    Either ``patients_per_class`` (as many as there are, at most so many of each class of each finding), or a
    ``fraction`` of its labelled patients (at least one).
    """

    patients_per_class: PositiveInt | None = None
    fraction: float | None = Field(default=None, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _one_of_them(self) -> "ReplayParams":
        if (self.patients_per_class is None) == (self.fraction is None):
            raise ValueError("give either patients_per_class or fraction")
        return self


def kept_patients(
    labels: npt.NDArray[np.float32], patients: npt.NDArray[np.str_], params: ReplayParams, draw: int
) -> list[str]:
    """Who of one hospital's side stays in the buffer; a larger buffer keeps who is in a smaller one.

    Args:
        labels: (N, findings) 0, 1 or NaN, of the side's images.
        patients: (N,).
        params: how many.
        draw: another number, other patients.
    """
    strata = strata_of(labels, patients)
    if params.fraction is not None:
        return sorted(label_order(draw, strata)[: max(1, round(params.fraction * len(strata)))])
    by_chance = sorted(strata, key=lambda patient: (uniform(draw, "replay", str(draw), patient), patient))
    kept: set[str] = set()
    for position in range(labels.shape[1]):
        for label in "10":
            kept |= set([p for p in by_chance if strata[p][position] == label][: params.patients_per_class])
    return sorted(kept)
