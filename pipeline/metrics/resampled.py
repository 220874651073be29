"""AUROC on all resamples of patients at once: sorted once, without a loop over resamples, in whole numbers."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipeline.metrics.binary import FloatArray, IntArray
from pipeline.metrics.intervals import CountArray

CHUNK_ELEMENTS = 4_000_000  # rows x resamples of the largest array of a chunk: 16 MB
BLOCK = 32  # rows added up by one product with a triangle; numpy's cumsum over rows takes ten times as long
MOST_BETWEEN = 4096  # negatives in a row: their sum then fits 16 bits wherever no patient is taken over 15 times


def resampled_auroc(labels: IntArray, logits: FloatArray, counts: CountArray, codes: IntArray) -> FloatArray:
    """AUROC of the images, each taken as often as its patient, for every resample, (resamples,) float64.

    To the last bit ``bootstrap`` of ``binary.auroc``: all sums are of whole numbers that their types hold exactly. What
    counts of the scores is how many negatives lie below each positive. So negatives are brought together between the
    places of positives, and both are counted per patient: two sparse matrices, with which each chunk of resamples is
    multiplied. NaN where a resample lacks a class.

    Args:
        labels: (n,) in {0, 1}.
        logits: (n,) finite.
        counts: (num_patients, resamples) as ``patient_counts`` gives.
        codes: (n,) the row in ``counts`` of each image's patient.
    """
    resamples = counts.shape[1]
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    if not len(positives) or not len(negatives):
        return np.full(resamples, np.nan)
    used, patients = np.unique(codes, return_inverse=True)
    negatives = negatives[np.argsort(logits[negatives], kind="stable")]
    # Ties count half: each positive stands once below its equals and once above them, and all is doubled.
    places = [np.searchsorted(logits[negatives], logits[positives], side) for side in ("left", "right")]
    every = np.arange(len(negatives))
    cuts, rows = np.unique(np.concatenate([*places, every[::MOST_BETWEEN], [len(every)]]), return_inverse=True)
    height = -(-len(cuts) // BLOCK) * BLOCK
    between = _counted(np.searchsorted(cuts, every, side="right"), patients[negatives], (height, len(used)))
    twice = _counted(rows[: 2 * len(positives)], np.tile(patients[positives], 2), (height, len(used)))
    areas = np.full(resamples, np.nan)
    size = max(16, CHUNK_ELEMENTS // max(height, len(used)))
    for start in range(0, resamples, size):
        chunk = slice(start, start + size)
        taken = counts[used, chunk]
        won_by = _sums(twice, taken)
        exact = np.float32 if len(labels) * int(taken.max()) < 2**24 else np.float64
        triangle = np.tril(np.ones((BLOCK, BLOCK), exact))
        below = triangle @ _sums(between, taken).astype(exact).reshape(-1, BLOCK, taken.shape[1])
        below[1:] += np.cumsum(below[:-1, -1], axis=0)[:, None]
        below = below.reshape(height, -1)
        won = np.einsum("kb,kb->b", won_by, below, dtype=np.float64)
        pairs = won_by.sum(axis=0, dtype=np.float64) * below[-1]
        np.divide(won, pairs, out=areas[chunk], where=pairs > 0)
    return areas


def _counted(rows: IntArray, patients: IntArray, shape: tuple[int, int]) -> csr_array:
    """How many images stand in a row and belong to a patient."""
    return csr_array((np.ones(len(rows), np.uint32), (rows, patients)), shape=shape)


def _sums(counted: csr_array, taken: CountArray) -> NDArray[np.unsignedinteger]:
    """(rows, b) how many images stand in a row, each taken as often as its patient."""
    # 16 bits take half the time of 32.
    most = int(counted.sum(axis=1).max()) * int(taken.max())
    dtype = np.uint16 if most < 2**16 else np.uint32
    return counted.astype(dtype) @ taken.astype(dtype)
