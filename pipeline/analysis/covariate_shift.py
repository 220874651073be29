"""Whether two sites' vectors (embeddings, scores) have one distribution, as they are or at one prevalence."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.label_shift import PrevalenceEstimate, matched_rows
from pipeline.metrics.distance import MAX_ROWS, draw_rows, kernel_matrix, median_bandwidth, permutation_test

FloatArray = NDArray[np.float64]
RealArray = NDArray[np.floating[Any]]

_PREVALENCES = 5  # of a confidence set, at which matched samples are compared


@dataclass(frozen=True)
class TwoSamples:
    """A source's and a target's vectors as their kernel matrix (see ``metrics.distance``).

    Attributes:
        kernel: (n + m, n + m), source first.
        rows: (n,) which of the source's rows these are: at most ``MAX_ROWS``, whole patients by lot.
        patients: (n,) names.
        target_patients: (m,) names.
        seed: of all lots.
    """

    kernel: FloatArray
    rows: NDArray[np.int64]
    patients: NDArray[Any]
    target_patients: NDArray[Any]
    seed: int

    @classmethod
    def of(
        cls, source: RealArray, target: RealArray, patients: NDArray[Any], target_patients: NDArray[Any], seed: int
    ) -> "TwoSamples":
        """Of vectors (N, D) and (M, D), and the names (N,) and (M,) of their patients, at the median bandwidth."""
        rows, others = (draw_rows(_codes(names), MAX_ROWS, seed) for names in (patients, target_patients))
        x, y = source[rows], target[others]
        kernel = kernel_matrix(np.concatenate([x, y]), median_bandwidth(x, y))
        return cls(kernel, rows, patients[rows], target_patients[others], seed)

    def test(self, permutations: int) -> tuple[float, float]:
        """Squared maximum mean discrepancy and p-value of "one distribution"; NaN with one patient on a side."""
        return self._test(np.arange(len(self.rows)), permutations)

    def matched_test(
        self, labels: FloatArray, estimate: PrevalenceEstimate, gamma: float, permutations: int
    ) -> tuple[float, float]:
        """The same of "p(x | y) is the source's": with source rows drawn so that they have the target's prevalence.

        The prevalence is unknown: the p-value is the largest at ``_PREVALENCES`` places of its confidence set, plus
        ``gamma``, the chance that the set misses (Berger & Boos 1994). Where no prevalence fits the mean score,
        the hypothesis is refuted at ``gamma``, without a statistic. A place at which too few patients are left to
        tell cannot reject.

        Args:
            labels: (n,) 0, 1 or NaN of ``rows``.
            estimate: of the target's prevalence.
            gamma: above 0, far below the level of the test.
            permutations: at each place.

        Returns:
            The statistic at the place of the largest p-value, and that p-value.
        """
        low, high = estimate.confidence_set(1 - gamma)
        if np.isnan(low):
            return float("nan"), gamma
        known = np.flatnonzero(~np.isnan(labels))
        found = []
        for prevalence in np.linspace(low, high, _PREVALENCES) if high > low else [low]:
            chosen = matched_rows(labels[known].astype(np.int64), self.patients[known], float(prevalence), self.seed)
            statistic, p = self._test(known[chosen], permutations)
            found.append((p, statistic) if np.isfinite(p) else (1.0, float("nan")))
        p, statistic = max(found, key=lambda pair: pair[0])
        return statistic, min(1.0, p + gamma)

    def _test(self, rows: NDArray[np.int64], permutations: int) -> tuple[float, float]:
        kept = np.concatenate([rows, np.arange(len(self.rows), len(self.kernel))])
        codes = _codes(self.patients[rows]), _codes(self.target_patients)
        return permutation_test(self.kernel[np.ix_(kept, kept)], *codes, permutations=permutations, seed=self.seed)


def _codes(names: NDArray[Any]) -> NDArray[np.int64]:
    return np.unique(names, return_inverse=True)[1]
