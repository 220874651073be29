"""Distance of two samples of vectors: maximum mean discrepancy with a permutation test that moves whole patients.

Gretton et al. 2012, JMLR 13:723, "A Kernel Two-Sample Test", with the kernel exp(-|a - b|^2 / (2 bandwidth^2)).
Images of one patient are alike. So pairs within a patient are left out of the statistic, whose expected value is then
0 under the null however many images a patient has, and the permutation exchanges patients, not images.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from pipeline.errors import PipelineError

FloatArray = NDArray[np.float64]
RealArray = NDArray[np.floating[Any]]
Codes = NDArray[np.integer[Any]]

MAX_ROWS = 2_000  # a side; two sides make a kernel matrix of 128 MB
_BANDWIDTH_ROWS = 1_000  # a side, from which the median distance is read
_BLOCK = 512  # rows or permutations held beside the kernel matrix


def median_bandwidth(x: RealArray, y: RealArray) -> float:
    """Median distance of two rows of the pooled sample (Gretton et al. 2012, section 8), in the units of the rows.

    From at most ``_BANDWIDTH_ROWS`` evenly spaced rows a side. Equal rows are left out; 1 where all are equal, when
    the discrepancy is 0 for any bandwidth.

    Args:
        x: (N, D), finite.
        y: (M, D), finite.
    """
    _check(x, y)
    parts = [part[:: max(1, -(-len(part) // _BANDWIDTH_ROWS))] for part in (x, y)]
    distances = pdist(np.concatenate(parts).astype(np.float64))
    distances = distances[distances > 0]
    return float(np.median(distances)) if len(distances) else 1.0


def mmd2(x: RealArray, y: RealArray, bandwidth: float) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, eq. 3), at most 2.

    Below 0 about every other time where both distributions are the same. Memory: one block of ``_BLOCK`` rows.

    Args:
        x: (N, D), finite; rows are independent.
        y: (M, D), finite; rows are independent.
        bandwidth: of the kernel, above 0.

    Returns:
        NaN with fewer than two rows on a side.
    """
    _check(x, y)
    if min(len(x), len(y)) < 2:
        return float("nan")
    # Centred, so that squared lengths cost the distances no digits.
    centre = np.concatenate([x.mean(axis=0, dtype=np.float64)[None], y.mean(axis=0, dtype=np.float64)[None]]).mean(0)
    a, b = x - centre, y - centre
    within = [(_sum_kernel(part, part, bandwidth) - len(part)) / (len(part) * (len(part) - 1)) for part in (a, b)]
    return float(within[0] + within[1] - 2 * _sum_kernel(a, b, bandwidth) / (len(a) * len(b)))


def mmd_test(
    x: RealArray,
    y: RealArray,
    *,
    permutations: int,
    seed: int,
    codes_x: Codes | None = None,
    codes_y: Codes | None = None,
) -> tuple[float, float]:
    """Squared discrepancy and p-value of "both samples come from one distribution", at the median bandwidth.

    Of a side with more than ``MAX_ROWS`` rows, patients are drawn by lot. See ``permutation_test``.

    Args:
        x: (N, D), finite.
        y: (M, D), finite.
        permutations: how many; the p-value is at least 1 / (permutations + 1).
        seed: of the drawn patients and permutations.
        codes_x: (N,) patient of each row; without, each row is one. A code names a patient of its own side.
        codes_y: (M,), likewise.

    Returns:
        NaN, NaN with fewer than two patients on a side.
    """
    _check(x, y)
    own_x = np.arange(len(x)) if codes_x is None else codes_x
    own_y = np.arange(len(y)) if codes_y is None else codes_y
    if own_x.shape != x.shape[:1] or own_y.shape != y.shape[:1]:
        raise ValueError(f"codes must be one a row; they are {own_x.shape}, {own_y.shape} for {len(x)}, {len(y)} rows")
    rows_x, rows_y = draw_rows(own_x, MAX_ROWS, seed), draw_rows(own_y, MAX_ROWS, seed)
    x, y, own_x, own_y = x[rows_x], y[rows_y], own_x[rows_x], own_y[rows_y]
    if min(len(np.unique(own_x)), len(np.unique(own_y))) < 2:
        return float("nan"), float("nan")
    kernel = kernel_matrix(np.concatenate([x, y]), median_bandwidth(x, y))
    return permutation_test(kernel, own_x, own_y, permutations=permutations, seed=seed)


def draw_rows(codes: Codes, limit: int, seed: int) -> NDArray[np.int64]:
    """Rows in rising order, at most ``limit``, of whole patients drawn by lot; all of them where they are no more.

    Args:
        codes: (N,) patient of each row.
        limit: how many rows. A first patient with more keeps so many of them.
        seed: of the lot.
    """
    if len(codes) <= limit:
        return np.arange(len(codes))
    _, patient, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    num = max(1, int((np.cumsum(sizes[order]) <= limit).sum()))
    return np.flatnonzero(np.isin(patient, order[:num]))[:limit]


def kernel_matrix(rows: RealArray, bandwidth: float) -> FloatArray:
    """exp(-|a - b|^2 / (2 bandwidth^2)) of all pairs of ``rows`` (N, D): (N, N)."""
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    kernel = np.empty((len(rows), len(rows)))
    for start in range(0, len(rows), _BLOCK):
        kernel[start : start + _BLOCK] = _kernel(centred[start : start + _BLOCK], centred, bandwidth)
    return kernel


def permutation_test(
    kernel: FloatArray, codes_x: Codes, codes_y: Codes, *, permutations: int, seed: int
) -> tuple[float, float]:
    """Squared discrepancy over pairs of different patients, and its p-value under exchange of patients between sides.

    The p-value (1 + permutations that reach the statistic) / (1 + permutations) is exact where patients are
    exchangeable (Phipson & Smyth 2010), approximate where one side has more images a patient. Each image weighs the
    same; with one image a patient the statistic is ``mmd2``.

    Args:
        kernel: (N + M, N + M) of the rows of x, then of y.
        codes_x: (N,) patient of each row of x.
        codes_y: (M,) patient of each row of y, apart from those of x.
        permutations: how many.
        seed: of the permutations.

    Returns:
        NaN, NaN with fewer than two patients on a side.
    """
    _, patients_x = np.unique(codes_x, return_inverse=True)
    _, patients_y = np.unique(codes_y, return_inverse=True)
    if min(len(np.unique(patients_x)), len(np.unique(patients_y))) < 2:
        return float("nan"), float("nan")
    num_x = int(patients_x.max()) + 1
    patients = np.concatenate([patients_x, patients_y + num_x])
    order = np.argsort(patients, kind="stable")
    starts = np.searchsorted(patients[order], np.arange(int(patients.max()) + 1))
    # (P, P) sums of the kernel over the images of two patients; none within a patient.
    sums = np.add.reduceat(np.add.reduceat(kernel[order], starts, axis=0)[:, order], starts, axis=1)
    np.fill_diagonal(sums, 0.0)
    sizes = np.bincount(patients).astype(np.float64)
    first = (np.arange(len(sizes)) < num_x).astype(np.float64)
    value = float(_statistic(sums, sizes, first[:, None])[0])
    rng, reached = np.random.default_rng(seed), 0
    for start in range(0, permutations, _BLOCK):
        count = min(_BLOCK, permutations - start)
        sides = rng.permuted(np.tile(first, (count, 1)), axis=1).T
        # Equal but for the order of summation counts as reached.
        reached += int((_statistic(sums, sizes, sides) >= value - 1e-12).sum())
    return value, (1 + reached) / (1 + permutations)


def _statistic(sums: FloatArray, sizes: FloatArray, sides: FloatArray) -> FloatArray:
    """(B,) for ``sides`` (P, B), 1 where a patient is on the first side."""
    inside = np.einsum("pb,pb->b", sides, sums @ sides)
    across = sums.sum(axis=0) @ sides - inside
    outside = sums.sum() - 2 * across - inside
    images, squares = sizes @ sides, sizes**2 @ sides
    others = sizes.sum() - images
    pairs, other_pairs = images**2 - squares, others**2 - (np.sum(sizes**2) - squares)
    return inside / pairs + outside / other_pairs - 2 * across / (images * others)


def _kernel(a: FloatArray, b: FloatArray, bandwidth: float) -> FloatArray:
    squared = np.vecdot(a, a)[:, None] + np.vecdot(b, b) - 2 * (a @ b.T)
    return np.asarray(np.exp(np.maximum(squared, 0.0) / (-2 * bandwidth**2)))


def _sum_kernel(a: FloatArray, b: FloatArray, bandwidth: float) -> float:
    return float(sum(_kernel(a[i : i + _BLOCK], b, bandwidth).sum() for i in range(0, len(a), _BLOCK)))


def _check(x: RealArray, y: RealArray) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be (N, D) and (M, D); they are {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise PipelineError("features must be finite; some are infinite or not a number")
