"""Section ``split``: which sites train and which test, how large each side is; and draws that hang on names alone."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.params import Fraction, Name, ParamsError, Seed, StrictParams, nearest

Side = str  # of the ledger: "train", "val", "test"
SIDES: tuple[Side, ...] = ("train", "val", "test")


class SplitParams(StrictParams):
    """Section ``split``: which sites train (source) and which only test (target).

    Of the source's patients ``id_val_fraction`` select and set thresholds, ``id_test_fraction`` test; of each
    target's ``target_adapt_fraction`` may be seen without labels, the rest (ood_test) tests.

    ``leave_out`` names one of the source sites: it becomes a target, and the same patients stay on the same sides
    whichever is left out (leave-one-site-out).

    Images of two patients are near-duplicates where their perceptual hashes differ in at most
    ``duplicate_hamming`` of 63 bits and their aligned pixels correlate above ``duplicate_correlation``. Measured on
    chest radiographs, 8 bits are what a shift of 1 % of the edge, JPEG at quality 30 or another window moves; the
    most alike of 500,000 pairs of two patients correlate at 0.946.
    """

    seed: Seed
    source: list[Name] = Field(min_length=1)
    target: list[Name] = Field(min_length=1)
    leave_out: Name | None = None
    id_val_fraction: Fraction = 0.2
    id_test_fraction: Fraction = 0.2
    target_adapt_fraction: Fraction = 0.3
    duplicate_hamming: Annotated[int, Field(ge=0, le=20)] = 8
    duplicate_correlation: Annotated[float, Field(ge=0.9, lt=1.0)] = 0.99

    @model_validator(mode="before")
    @classmethod
    def _move_left_out(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("leave_out") is None:
            return raw
        site, source, target = raw["leave_out"], raw.get("source"), raw.get("target", [])
        if not isinstance(source, list) or not isinstance(target, list):
            return raw
        if site not in source:
            raise ValueError(f"leave_out: '{site}' must be one of split.source, which are all taken alike: {source}")
        if len(source) < 2:
            raise ValueError(f"leave_out: '{site}' is the only source site; nothing is left to train on")
        return {**raw, "source": [name for name in source if name != site], "target": [*target, site]}

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

    @property
    def pool(self) -> list[str]:
        """The sites whose patients are assigned as a source's: the source and the one left out."""
        return [*self.source, *([self.leave_out] if self.leave_out else [])]

    def shares(self, site: str) -> tuple[float, float, float]:
        """What part of a site's new patients goes to each of ``SIDES``."""
        val, test = self.id_val_fraction, self.id_test_fraction
        if site in self.pool:
            return 1.0 - val - test, val, test
        adapt = self.target_adapt_fraction
        return adapt * (1.0 - val - test) / (1.0 - test), adapt * val / (1.0 - test), 1.0 - adapt

    def split_of(self, site: str, side: Side) -> str:
        """The split of a site's images of a patient on that side."""
        if site in self.target:
            return "ood_test" if side == "test" else "target_adapt"
        return "train" if side == "train" else f"id_{side}"


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
