"""Histogram matching: the target's grey levels, by one monotone map a site, to the source's distribution of grey.

Gonzalez RC, Woods RE. Digital Image Processing, section 3.3 (histogram specification). One map for a site, from all of
its unlabelled images together: matching each image by itself would take away that one is brighter than another, which
can be the finding. Grey 0 is left as it is and not counted: it is padding and collimation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.adaptation.interface import Adapted, BaseParams, Case, Outcome
from pipeline.imaging.intensity import Grey
from pipeline.training.feed import Images, Indices, in_batches


class Params(BaseParams):
    """``remedies.histogram_matching``: nothing but ``base``."""


@dataclass(frozen=True)
class Mapped:
    """Images (N, C, H, W) whose grey levels go through ``table`` (levels,)."""

    images: Images
    table: Grey

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As that of the images."""
        return self.images.shape

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Indices) -> Grey:
        """(B, C, H, W)."""
        return self.table[self.images.read(indices)]


def adapt(case: Case, params: Params) -> Adapted:  # noqa: ARG001 (one signature)
    """The plain model on the target's images with the source's grey levels."""
    reference = grey_levels(case.source_images, case.train, case.batch_size)
    table = match(grey_levels(case.images, case.indices, case.batch_size), reference)
    moved = np.abs(table.astype(np.float64) - np.arange(len(table))).mean() / (len(table) - 1)
    note = f"one grey map for the site moves a level by {100 * moved:.1f} % of the range on average"
    return Adapted(case.model, Mapped(case.images, table), [Outcome("applied", note)] * len(case.evidence))


def grey_levels(images: Images, indices: Indices, batch_size: int) -> npt.NDArray[np.int64]:
    """(256,) or (65536,): how many pixels have each grey level."""
    levels = np.iinfo(images.read(indices[:1]).dtype).max + 1
    counts = np.zeros(levels, np.int64)
    for batch in in_batches(indices, batch_size):
        counts += np.bincount(images.read(batch).ravel(), minlength=levels)
    return counts


def match(counts: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]) -> Grey:
    """The monotone map of grey levels that gives ``counts`` the distribution of ``reference``.

    From the middle of each level's mass to the level of that rank, between levels linearly; 0 stays 0.

    Args:
        counts: (levels,) pixels of each grey level.
        reference: (levels,) likewise.

    Returns:
        (levels,) uint8 or uint16; the identity where one side has no pixel above 0.
    """
    found = np.flatnonzero(reference[1:]) + 1
    if not len(found) or not counts[1:].any():
        return _grey(np.arange(len(counts)))
    own, wanted = _middle_ranks(counts[1:]), _middle_ranks(reference[1:])[found - 1]
    return _grey(np.concatenate([[0.0], np.rint(np.interp(own, wanted, found))]))


def _grey(table: npt.NDArray[Any]) -> Grey:
    return table.astype(np.uint8) if len(table) == 256 else table.astype(np.uint16)


def _middle_ranks(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return (np.cumsum(counts) - counts / 2) / counts.sum()
