"""Patient-grouped, site-aware assignment to splits, which does not change when patients or sites are added."""

import hashlib
from collections.abc import Sequence

import pandas as pd
from pydantic import Field, model_validator

from pipeline.params import Fraction, Name, ParamsError, Seed, StrictParams, nearest
from pipeline.tables import Splits, make_table


class SplitParams(StrictParams):
    """Section ``split``: which sites train (source) and which only test (target).

    Of the source's patients ``id_val_fraction`` select and set thresholds, ``id_test_fraction`` test; of each
    target's ``target_adapt_fraction`` may be seen without labels, the rest (ood_test) tests.
    """

    seed: Seed
    source: list[Name] = Field(min_length=1)
    target: list[Name] = Field(min_length=1)
    id_val_fraction: Fraction = 0.2
    id_test_fraction: Fraction = 0.2
    target_adapt_fraction: Fraction = 0.3

    @model_validator(mode="after")
    def _consistent(self) -> "SplitParams":
        both = sorted(set(self.source) & set(self.target))
        if both:
            raise ValueError(f"a site is source or target, not both: {both}")
        for name, sites in (("source", self.source), ("target", self.target)):
            if len(set(sites)) < len(sites):
                raise ValueError(f"{name}: a site is named twice")
        if self.id_val_fraction + self.id_test_fraction >= 1.0:
            raise ValueError("id_val_fraction + id_test_fraction must be below 1, or nothing is left to train on")
        return self

    @property
    def sites(self) -> list[str]:
        """Source sites, then target sites."""
        return [*self.source, *self.target]


def check_sites(params: SplitParams, known: Sequence[str]) -> None:
    """Every site of ``split`` is under ``sites``, and the other way round.

    Raises:
        ParamsError: names the site that is not.
    """
    for name, sites in (("source", params.source), ("target", params.target)):
        for site in sites:
            if site not in known:
                raise ParamsError(f"split.{name}: unknown site '{site}'{nearest(site, list(known))}")
    unused = sorted(set(known) - set(params.sites))
    if unused:
        raise ParamsError(f"split: sites {unused} stand under `sites`, but neither in split.source nor split.target")


def uniform(seed: int, *names: str) -> float:
    """A number in [0, 1) that hangs on seed and names alone: the same whoever else is in the study."""
    digest = hashlib.sha256("|".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign(instances: pd.DataFrame, params: SplitParams) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each image's side, decided per patient.

    A patient seen at a source and at a target site stays on the source's side, whatever joins later, so that
    no trained model changes; the target's images of that patient are left out.

    Args:
        instances: image_id, source_id, patient_id, study_id, site.
        params: the section.

    Returns:
        Rows of ``tables.Splits``; and the images left out: image_id, source_id, site.
    """
    is_source = instances["site"].isin(params.source)
    source_patients = set(instances.loc[is_source, "patient_id"])
    crossing = ~is_source & instances["patient_id"].isin(source_patients)
    kept = instances.loc[~crossing, ["image_id", "patient_id", "study_id", "site"]].copy()
    kept["role"] = is_source[~crossing].map({True: "source", False: "target"})
    draws = {patient: uniform(params.seed, "split", patient) for patient in kept["patient_id"].unique()}
    kept["split"] = [
        _split_of(role, draws[patient], params) for role, patient in zip(kept["role"], kept["patient_id"], strict=True)
    ]
    return make_table(Splits, kept), instances.loc[crossing, ["image_id", "source_id", "site"]]


def label_order(seed: int, draw: int, patients: Sequence[str]) -> list[str]:
    """Patients in the order in which a growing label budget annotates them; nested by construction."""
    return sorted(set(patients), key=lambda patient: (uniform(seed, "labels", str(draw), patient), patient))


def _split_of(role: str, draw: float, params: SplitParams) -> str:
    if role == "target":
        return "target_adapt" if draw < params.target_adapt_fraction else "ood_test"
    if draw < params.id_test_fraction:
        return "id_test"
    return "id_val" if draw < params.id_test_fraction + params.id_val_fraction else "train"
