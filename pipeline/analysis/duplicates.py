"""Near-duplicates: a perceptual hash nominates pairs of images, the correlation of their aligned pixels confirms.

All chest radiographs look alike: of 500,000 pairs of two patients' radiographs, 228 have hashes within 8 bits, and
none correlates above 0.95 once aligned. So the hash alone says nothing.
"""

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

Image = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]

_EDGE = 32
# Before any alignment, at 32 x 32: a shift by 0.8 % of the edge leaves at least this (300 radiographs and 100 CT
# slices). It spares nine in ten of the nominated pairs the full comparison.
_COARSE = 0.93
_MIN_OVERLAP = 0.8  # of the area: two corners of different pictures may well agree
_ROWS, _COLUMNS = 64, 16384  # one block of distances lies in the processor's cache


def perceptual_hash(thumbnail: Floats) -> np.uint64:
    """63 bits: which of the 8 x 8 lowest DCT coefficients, but the mean, are above their median.

    Neither brightness nor contrast changes it (pHash: Zauner 2010, "Implementation and benchmarking of perceptual
    image hash functions", 3.2.1, with area averaging for its mean filter).

    Args:
        thumbnail: (32, 32).
    """
    coefficients = cv2.dct(thumbnail)[:8, :8].ravel()[1:]
    bits = np.append(coefficients > np.median(coefficients), False)
    return np.uint64(np.packbits(bits).view(np.uint64)[0])


def aligned_correlation(first: Image, second: Image) -> float | None:
    """Pearson's correlation of two images' pixels where they overlap, as they lie or after a translation.

    The translation is found by phase correlation, to fractions of a pixel. Images of two sizes are compared over the
    rows and columns that both have.

    Args:
        first: (H, W).
        second: (H, W).

    Returns:
        The higher of the two; None where it is undefined (a constant image).
    """
    rows, columns = (min(first.shape[axis], second.shape[axis]) for axis in (0, 1))
    a, b = (np.ascontiguousarray(image[:rows, :columns], np.float32) for image in (first, second))
    as_they_lie = _correlation(a, b)
    if as_they_lie is None or min(rows, columns) < 2:
        return as_they_lie
    # Without a window the edges, which do not move, outweigh a smooth picture. OpenCV multiplies it into the arrays
    # that it is given, hence arrays of their own.
    window = cv2.createHanningWindow((columns, rows), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(a - a.mean(), b - b.mean(), window)
    down, right = int(np.ceil(abs(y))), int(np.ceil(abs(x)))
    inside = (slice(down, rows - down), slice(right, columns - right))  # cuts off what came in over an edge
    if a[inside].size < _MIN_OVERLAP * max(first.size, second.size):
        return as_they_lie
    moved = cv2.warpAffine(b, np.array([[1, 0, -x], [0, 1, -y]]), (columns, rows), flags=cv2.INTER_LINEAR)
    aligned = _correlation(a[inside], moved[inside])
    return as_they_lie if aligned is None else max(as_they_lie, aligned)


def find_duplicates(
    digests: Sequence[str], read: Callable[[int], Image], max_hamming: int, min_correlation: float
) -> pd.DataFrame:
    """All pairs of images that show one picture.

    Images without contrast are left out: they are alike, but show nothing. Memory: 2 KiB an image. Time grows with
    the square of the number: the hashes of 100,000 images are compared in about 15 s.

    Args:
        digests: SHA-256 of each image's pixels.
        read: the pixels (H, W) of the image at a position, without padding.
        max_hamming: bits in which two hashes may differ.
        min_correlation: that the aligned pixels must exceed.

    Returns:
        first, second (positions, first < second), hamming, correlation; of n equal images n - 1 rows, each with
        the first of them.
    """
    codes, _ = pd.factorize(np.asarray(digests, object))
    first_of = np.full(codes.max(initial=-1) + 1, -1, np.int64)
    positions = np.arange(len(codes))
    first_of[codes[::-1]] = positions[::-1]  # the last to be written is the first there is
    hashes, thumbnails, kept = _describe(first_of, read)
    rows = [
        (kept[i], kept[j], distance, correlation)
        for i, j, distance in _nominate(hashes, thumbnails, max_hamming)
        if (correlation := aligned_correlation(read(kept[i]), read(kept[j]))) is not None
        and correlation > min_correlation
    ]
    copies = positions[(first_of[codes] != positions) & np.isin(first_of[codes], kept)]
    rows += [(int(first_of[codes[position]]), int(position), 0, 1.0) for position in copies]
    return pd.DataFrame(rows, columns=["first", "second", "hamming", "correlation"]).sort_values(
        ["first", "second"], ignore_index=True
    )


def connected(first: Sequence[str] | pd.Series, second: Sequence[str] | pd.Series) -> dict[str, int]:
    """The number of the group of each name, where a pair puts its two names into one group."""
    codes, names = pd.factorize(np.concatenate([np.asarray(first, object), np.asarray(second, object)]))
    half = len(codes) // 2
    edges = coo_array((np.ones(half, np.int8), (codes[:half], codes[half:])), shape=(len(names), len(names)))
    _, groups = connected_components(edges, directed=False)
    return {str(name): int(group) for name, group in zip(names, groups, strict=True)}


def _describe(
    positions: npt.NDArray[np.int64], read: Callable[[int], Image]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float16], list[int]]:
    """Hash and standardised thumbnail of each image that has contrast, and its position."""
    hashes: list[np.uint64] = []
    thumbnails = np.empty((len(positions), _EDGE * _EDGE), np.float16)
    kept: list[int] = []
    for position in tqdm(positions.tolist(), desc="hashes", unit="image", mininterval=0.5):
        image = read(position)
        small = cv2.resize(image.astype(np.float32), (_EDGE, _EDGE), interpolation=cv2.INTER_AREA)
        if image.min() == image.max() or small.std() == 0:
            continue
        centred = (small - small.mean()).ravel()
        thumbnails[len(kept)] = centred / centred.std()
        hashes.append(perceptual_hash(np.asarray(small, np.float32)))
        kept.append(position)
    return np.array(hashes, np.uint64), thumbnails[: len(kept)], kept


def _nominate(
    hashes: npt.NDArray[np.uint64], thumbnails: npt.NDArray[np.float16], max_hamming: int
) -> Iterator[tuple[int, int, int]]:
    """Pairs i < j within the distance whose thumbnails are alike, with the distance."""
    different = np.empty((_ROWS, _COLUMNS), np.uint64)
    bits = np.empty((_ROWS, _COLUMNS), np.uint8)
    for top in tqdm(range(0, len(hashes), _ROWS), desc="near-duplicates", unit="block", mininterval=0.5):
        rows = hashes[top : top + _ROWS, None]
        for left in range(top, len(hashes), _COLUMNS):
            columns = hashes[left : left + _COLUMNS]
            block = np.s_[: len(rows), : len(columns)]
            np.bitwise_xor(rows, columns, out=different[block])
            np.bitwise_count(different[block], out=bits[block])
            near = np.flatnonzero(bits[block] <= max_hamming)  # on one axis: np.nonzero on two is slow
            i, j = near // len(columns), near % len(columns)
            distances, i, j = bits[i, j], i + top, j + left
            for chunk in np.array_split(np.flatnonzero(i < j), max(1, len(i) // 4096)):
                a, b = (thumbnails[index[chunk]].astype(np.float32) for index in (i, j))
                alike = chunk[np.einsum("ij,ij->i", a, b) > _COARSE * _EDGE * _EDGE]
                yield from zip(i[alike].tolist(), j[alike].tolist(), distances[alike].tolist(), strict=True)


def _correlation(first: Floats, second: Floats) -> float | None:
    a, b = (image.astype(np.float64) - image.mean(dtype=np.float64) for image in (first, second))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else None
