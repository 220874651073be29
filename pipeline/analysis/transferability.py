"""How well a frozen backbone's features suit a binary finding, scored without training.

Each score takes the features (or the source classes' probabilities) of N images and their labels, and is higher
where the backbone should transfer better. A score ranks backbones on the *same* images and labels and says nothing
else: between findings, or groups of images, the prevalence and N move it (Ibrahim et al. 2022). How well it
ranks is an empirical question, which ``rank_correlation`` answers for the backbones at hand.

What all share: a null (NaN) label leaves its image out, unread; with fewer than two classes the score is NaN, never
0. Sums run in float64 over blocks of rows in their order, so the same input gives the same score, and the order of
the images changes no more than its rounding.

**Memory.** Features stay as they come (100,000 x 2048 float32, 0.8 GB, a memory map if one likes); beside them stand
one block of ``BLOCK_BYTES`` in float64 and a few (M, M) matrices, M the smaller of N and D: 33 MB each at M = 2048.
H-score and LogME need no more of X, (N, D), than the eigenvalues s of X'X and the labels' coordinates along X's left
singular vectors u, and both follow from X'X (or XX', where N is smaller) and X'y.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import spearmanr, weightedtau

from pipeline.errors import PipelineError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
RealArray = NDArray[np.floating[Any]]

BLOCK_BYTES = 32_000_000  # rows held in float64 at once
LEAST_RANKED = 3  # two backbones are in the right order by chance every other time

# LogME: the share of the labels that is taken to lie outside the features' span at the least. Where the labels are
# an exact linear function of fewer features than images, the evidence has no maximum: noise of 0 explains them.
LEAST_RESIDUAL = 1e-10
GRID_STEP = 0.5  # of log t; a term of the evidence goes from one limit to the other over about 4
GRID_MARGIN = 28.0  # e^28 = 1e12 beyond the eigenvalues the evidence has reached its limits


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of a score with what fine-tuning gave, over backbones.

    Attributes:
        weighted_tau: Kendall's tau with hyperbolic weights, in which mistakes among the best count most (Vigna 2015,
            WWW), -1 to 1; NaN where it has no value.
        spearman: Spearman's rank correlation, -1 to 1; NaN likewise.
        num: pairs that have both values.
        reason: why both are NaN; None where they are not.
    """

    weighted_tau: float
    spearman: float
    num: int
    reason: str | None


def h_score(features: RealArray, labels: RealArray, *, shrunk: bool = True) -> float:
    """H-score: the share of the label's variance that a linear function of the features explains, 0 to 1.

    tr(cov(f)^-1 cov(E[f|y])) (Bao et al. 2019, ICIP, "An Information-Theoretic Approach to Transferability in Task
    Transfer Learning"). With two classes cov(E[f|y]) has rank one, and the trace is p(1-p) d' cov(f)^-1 d, with d
    the difference of the class means; that is R^2 of the linear regression of the label on the features.

    Shrunk, the default (Ibrahim et al. 2022, ECML PKDD, "Newer is not always better"): cov(f) becomes Ledoit and
    Wolf's (1-a) cov(f) + a m I, with m the mean variance of a feature, and cov(E[f|y]) is scaled by 1-a. Plain is
    undefined where N - 1 <= D: cov(f) is singular, and its pseudo-inverse gives 1 for any labels; not far above,
    it is mostly noise (D/N on average for labels drawn by lot). Shrinkage is towards equal variances: the shrunk
    score knows the features' units (rotations leave it as it is, other linear maps do not), and it is near 0 for
    features that really are uncorrelated and alike in variance, where a is near 1.

    Args:
        features: (N, D), finite.
        labels: (N,) 0, 1 or NaN; NaN is left out.
        shrunk: whether the covariance is shrunk.

    Returns:
        NaN with one class, and unshrunk where N - 1 <= D, N without the nulls. 0 for features that never vary.
    """
    rows, known = _annotated(features, labels)
    if len(np.unique(known)) < 2 or (not shrunk and len(rows) - 1 <= features.shape[1]):
        return float("nan")
    target = known - known.mean()
    spectrum = _spectrum(features, rows, target[:, None] / np.linalg.norm(target), centred=True)
    shrinkage = _ledoit_wolf(spectrum, features.shape[1]) if shrunk else 0.0
    variances = (1.0 - shrinkage) * spectrum.eigenvalues / len(rows)
    floor = shrinkage * spectrum.lengths.mean() / features.shape[1]
    return float(np.sum(variances / (variances + floor) * spectrum.squares[:, 0]))


def log_me(features: RealArray, labels: RealArray) -> float:
    """LogME: the largest log evidence of a Bayesian linear regression of the labels on the features, in nats an image.

    You et al. 2021, ICML, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning". For each class,
    its one-hot label y (N,) is taken as F w + noise, w ~ N(0, I/alpha), noise ~ N(0, I/beta); the evidence
    p(y | F, alpha, beta) integrates w out and is maximised over alpha and beta; the score is the mean over classes of
    its logarithm divided by N. Features are taken as they are, uncentred and without an intercept, as there. The
    score does not depend on a rotation of the features or on one factor for all.

    The maximum is the fixed point t = f(t) of t = alpha/beta of their journal version (You et al. 2022, JMLR 23,
    "Ranking and Tuning Pre-trained Models"). f(t) > t says exactly that the evidence, best beta inserted, rises with
    t. So each local maximum is bracketed on a grid of log t and bisected, and the largest is taken, or a limit where
    that is larger: features that do not help (t to infinity), no noise (t to 0). Iterating f, as they do, gives the
    same where it settles on the only maximum; where there are two it stops at the one that it meets first.

    Args:
        features: (N, D), finite.
        labels: (N,) 0, 1 or NaN; NaN is left out.

    Returns:
        NaN with one class. Labels that are an exact linear function of the features have the finite score of a share
        of ``LEAST_RESIDUAL`` left unexplained, about 10 to 13.
    """
    rows, known = _annotated(features, labels)
    if len(np.unique(known)) < 2:
        return float("nan")
    one_hot = np.stack([1.0 - known, known], axis=1)
    spectrum = _spectrum(features, rows, one_hot, centred=False)
    evidences = [
        _largest_evidence(spectrum.eigenvalues, spectrum.squares[:, label], float(one_hot[:, label].sum()), len(rows))
        for label in (0, 1)
    ]
    return float(np.mean(evidences))


def leep(source_probabilities: RealArray, labels: RealArray) -> float:
    """LEEP: mean log likelihood of the labels under the expected empirical predictor, in nats an image, at most 0.

    Nguyen et al. 2020, ICML, "LEEP: A New Measure to Evaluate Transferability of Learned Representations". From the
    source classes' probabilities theta the joint distribution P(y, z) = mean of theta_z over images, where of label
    y; the predictor is sum_z P(y | z) theta_z. It sees the source head alone, not the features behind it.

    Args:
        source_probabilities: (N, K), at least 0, rows summing to 1.
        labels: (N,) 0, 1 or NaN; NaN is left out.

    Returns:
        NaN with one class.

    Raises:
        ValueError: rows are no probabilities.
    """
    rows, known = _annotated(source_probabilities, labels)
    if len(np.unique(known)) < 2:
        return float("nan")
    joint = np.zeros((2, source_probabilities.shape[1]))
    for part, block in _blocks(source_probabilities, rows):
        if block.min() < 0 or np.abs(block.sum(axis=1) - 1.0).max() > 1e-4:
            raise ValueError("source_probabilities must be at least 0 and sum to 1 in each row; some do not")
        joint += np.stack([1.0 - known[part], known[part]]) @ block
    marginal = joint.sum(axis=0)
    # A source class that no image has any probability of is never asked for.
    conditional = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    total = 0.0
    for part, block in _blocks(source_probabilities, rows):
        predicted = block @ conditional.T
        total += float(np.log(np.where(known[part] == 1, predicted[:, 1], predicted[:, 0])).sum())
    return min(0.0, total / len(rows))  # above 0 by rounding only


def source_probabilities(features: RealArray, weight: RealArray, bias: RealArray) -> FloatArray:
    """Probabilities of the source's classes from the penultimate features, (N, K) float64.

    Softmax of features @ weight' + bias, from which each row's largest logit is taken before the exponential.
    Written block by block; the result itself has N x K x 8 bytes, 0.8 GB for 100,000 images and 1000 classes.

    Args:
        features: (N, D), what the pretrained head's last linear layer takes, finite.
        weight: (K, D) of that layer.
        bias: (K,) of that layer.
    """
    if features.ndim != 2 or weight.ndim != 2 or weight.shape[1] != features.shape[1] or bias.shape != weight.shape[:1]:
        raise ValueError(
            "source_probabilities: features, weight, bias must be (N, D), (K, D), (K,); "
            f"they are {features.shape}, {weight.shape}, {bias.shape}"
        )
    matrix, offset = weight.astype(np.float64).T, bias.astype(np.float64)
    result = np.empty((len(features), len(offset)))
    for part, block in _blocks(features, np.arange(len(features)), width=max(matrix.shape)):
        result[part] = softmax(block @ matrix + offset, axis=1)
    return result


def rank_correlation(scores: RealArray, quality: RealArray) -> RankCorrelation:
    """Whether a score ranks backbones as fine-tuning does: Kendall's weighted tau and Spearman's correlation.

    Args:
        scores: (B,), one a backbone (or method), higher said to be better; NaN is left out.
        quality: (B,), such as the AUROC after fine-tuning, higher is better; NaN is left out.

    Returns:
        NaN with the reason where fewer than three pairs are left, or one side is all equal.
    """
    if scores.shape != quality.shape or scores.ndim != 1:
        raise ValueError(f"scores and quality must be (B,) both; they are {scores.shape} and {quality.shape}")
    both = ~(np.isnan(scores) | np.isnan(quality))
    num = int(both.sum())
    x, y = scores[both].astype(np.float64), quality[both].astype(np.float64)
    reason = None
    if num < LEAST_RANKED:
        reason = f"{num} of {len(scores)} have both values, and a ranking needs {LEAST_RANKED}"
    elif (x == x[0]).all():
        reason = "the scores are all equal"
    elif (y == y[0]).all():
        reason = "the qualities are all equal"
    if reason is not None:
        return RankCorrelation(float("nan"), float("nan"), num, reason)
    return RankCorrelation(float(weightedtau(x, y).statistic), float(spearmanr(x, y).statistic), num, None)


@dataclass(frozen=True)
class _Spectrum:
    """What H-score and LogME need of the features X (N, D), centred or not, and of T targets.

    Attributes:
        eigenvalues: (R,) of X'X that are not 0, R its rank.
        squares: (R, T) squared coordinates (u'y)^2 of the targets along the left singular vectors.
        lengths: (N,) squared length of each row of X.
    """

    eigenvalues: FloatArray
    squares: FloatArray
    lengths: FloatArray


def _ledoit_wolf(spectrum: _Spectrum, width: int) -> float:
    """Weight of the identity in Ledoit and Wolf's covariance of the features (2004, J Multivar Anal 88:365), 0 to 1.

    As scikit-learn's ``ledoit_wolf_shrinkage``, which would hold two copies of the features in float64.

    Args:
        spectrum: of the centred features.
        width: D.
    """
    num = len(spectrum.lengths)
    frobenius = float(np.sum((spectrum.eigenvalues / num) ** 2))  # of the covariance, squared
    distance = frobenius - float(spectrum.lengths.mean()) ** 2 / width  # from the multiple of the identity, squared
    if distance <= 1e-14 * frobenius:  # it is one, as always with one feature: nothing to shrink
        return 0.0
    noise = (float(np.mean(spectrum.lengths**2)) - frobenius) / num
    return min(max(noise, 0.0) / distance, 1.0)


def _annotated(array: RealArray, labels: RealArray) -> tuple[IntArray, FloatArray]:
    """Rows with a label, and those labels."""
    if array.ndim != 2 or not array.shape[1] or labels.shape != array.shape[:1]:
        raise ValueError(f"must be (N, D) with D > 0 and labels (N,); they are {array.shape} and {labels.shape}")
    rows = np.flatnonzero(~np.isnan(labels))
    known = labels[rows].astype(np.float64)
    if not np.isin(known, (0.0, 1.0)).all():
        raise ValueError(f"labels must be 0, 1 or NaN; there are {np.unique(known).tolist()[:10]}")
    return rows, known


def _blocks(array: RealArray, rows: IntArray, width: int = 0) -> Iterator[tuple[slice, FloatArray]]:
    """Runs of ``rows`` and what stands there in float64; ``width`` where more columns than the array's will follow."""
    step = max(1, BLOCK_BYTES // (8 * max(array.shape[1], width)))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        block = array[rows[part]].astype(np.float64)
        if not np.isfinite(block).all():
            raise PipelineError("features and probabilities must be finite; some are infinite or not a number")
        yield part, block


def _spectrum(features: RealArray, rows: IntArray, targets: FloatArray, *, centred: bool) -> _Spectrum:
    """Of ``features[rows]``; ``targets`` is (N, T), N the number of rows.

    Squared singular values have half the digits: what lies below about 1e-11 of the largest is taken as 0.
    """
    num, width = len(rows), features.shape[1]
    mean = np.zeros(width)
    if centred:
        for _, block in _blocks(features, rows):
            mean += block.sum(axis=0) / num
    if num < width:
        inputs = np.concatenate([block for _, block in _blocks(features, rows)]) - mean
        lengths = np.vecdot(inputs, inputs)
        values, vectors = np.linalg.eigh(inputs @ inputs.T)
        coordinates = vectors.T @ targets
    else:
        lengths, gram, cross = np.empty(num), np.zeros((width, width)), np.zeros((width, targets.shape[1]))
        for part, block in _blocks(features, rows):
            block -= mean
            lengths[part] = np.vecdot(block, block)
            gram += block.T @ block
            cross += block.T @ targets[part]
        values, vectors = np.linalg.eigh(gram)
        coordinates = vectors.T @ cross
    kept = values > values[-1] * max(num, width) * np.finfo(np.float64).eps
    values, coordinates = values[kept], coordinates[kept]
    if num >= width:  # v'X'y = sqrt(s) u'y
        coordinates /= np.sqrt(values)[:, None]
    return _Spectrum(values, coordinates**2, lengths)


def _largest_evidence(eigenvalues: FloatArray, squares: FloatArray, length: float, num: int) -> float:
    """Largest log evidence of one class over alpha and beta, divided by ``num``.

    With t = alpha/beta and r = t / (t + s), the share of a direction's signal that is left as residual, the terms
    of You et al. are gamma = sum(1 - r), |Fm - y|^2 = sum(u^2 r^2) + rest and t |m|^2 = sum(u^2 r (1 - r)), and
    f(t) = gamma / |m|^2 * |Fm - y|^2 / (N - gamma).

    Args:
        eigenvalues: (R,) s, of F'F.
        squares: (R,) u^2, of the label's coordinates.
        length: squared length of the label.
        num: of images.
    """
    rest = max(length - float(squares.sum()), LEAST_RESIDUAL * length)  # outside the span
    if not len(eigenvalues):  # the features are all 0, and leave the label as it is
        return 0.5 * float(np.log(num / rest) - np.log(2.0 * np.pi) - 1.0)
    scaled = eigenvalues / eigenvalues.max()  # t counts in units of the largest

    def shares(log_t: FloatArray) -> tuple[FloatArray, FloatArray]:
        ratio = np.exp(log_t)[:, None] / scaled
        return ratio / (1.0 + ratio), 1.0 / (1.0 + ratio)  # each to full precision

    def rises(log_t: FloatArray) -> NDArray[np.bool_]:
        left, taken = shares(log_t)
        gamma, weights = taken.sum(axis=1), (left * taken) @ squares
        residual, others = left**2 @ squares + rest, num - len(scaled) + left.sum(axis=1)
        return np.asarray(gamma * residual > others * weights)  # f(t) > t, without its divisions

    def evidence(log_t: FloatArray) -> FloatArray:
        left, _ = shares(log_t)
        beta = num / (left @ squares + rest)  # the best for this t
        return 0.5 * (np.log(beta) - np.log(2.0 * np.pi) - 1.0 + np.log(left).sum(axis=1) / num)

    grid = np.arange(np.log(scaled.min()) - GRID_MARGIN, GRID_MARGIN, GRID_STEP)
    rising = rises(grid)
    peaks = np.flatnonzero(rising[:-1] & ~rising[1:])
    low, high = grid[peaks], grid[peaks + 1]
    for _ in range(50):
        middle = (low + high) / 2
        rising = rises(middle)
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    return float(evidence(np.concatenate([grid[[0, -1]], (low + high) / 2])).max())
