"""Confidence intervals: a bootstrap over patients, joined with the spread between training seeds.

Two sources of chance, and both count: other patients, and another run of the same training. A bootstrap over
patients alone treats the three seeds at hand as the method itself; in a null simulation with a seed SD of
0.033 in AUROC it called a quarter of the equal methods different (tests/metrics/test_intervals.py).

**Patients.** Each patient is taken Poisson(1) times, with all their images (Hanley & MacGibbon 2006, Comput
Methods Programs Biomed 83:57; all metrics are ratios, so the random total does not matter). The counts hang on
the seed and the patient's pseudonym alone. So the same patient is drawn alike for every method, every group and
every split: differences are paired by themselves, patients seen at two hospitals too, and the rows of one
group stay as they are when a method, a hospital or other patients join.

**Seeds.** With k seeds on the same images the value is the mean of their metrics, and its variance

    V = V_patients + max(0, S^2 - I) / k

V_patients is the bootstrap's variance of the *mean* over seeds; S^2 the variance between the seeds' values; I
the variance, over resamples, of a seed's departure from that mean (patient by seed), which S^2 holds as well as
V_patients and which would else count twice. Quantile: Student's t with Welch and Satterthwaite's degrees of
freedom, the seeds' part S^2/k with k - 1. For the patients' part the degrees of freedom are those of the class
that limits the metric (patients with a positive image for the sensitivity; the rarer class for the AUROC) less
one: with 6 diseased among 200 patients the standard error itself is known as badly as 6 patients allow, and
199 would claim otherwise. By the same token the bootstrap's variance, biased by (m - 1)/m, is scaled back.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from scipy.stats import t as student_t

from pipeline.metrics.binary import FloatArray, IntArray, Scale

CountArray = NDArray[np.uint8]

# Weights (resamples x images) held at once: 2 MB, and a few times that inside a metric. At least so many
# resamples, though, or sorting many images anew for each chunk would take longer than the rest.
CHUNK_ELEMENTS = 250_000
LEAST_CHUNK = 32

# The interval is given up where more than this share of the resamples leaves the metric undefined. With three
# patients of a class a share of e^-3 = 5.0 % has none, with two 13.5 %: the limit lies between, lest chance
# decide which groups of three get an interval.
MAX_UNDEFINED = 0.07

NO_VARIATION = "no variation between resamples"


def patient_counts(patients: Sequence[str], resamples: int, seed: int) -> CountArray:
    """How often each patient is taken in each resample, (num_patients, resamples) uint8, Poisson(1).

    Row i depends on ``seed`` and ``patients[i]`` alone (a counter-based generator under their hash).
    """
    counts = np.empty((len(patients), resamples), dtype=np.uint8)
    for row, patient in enumerate(patients):
        key = int.from_bytes(hashlib.sha256(f"{seed}/{patient}".encode()).digest()[:16], "little")
        # A uint8 holds it: P(Poisson(1) > 255) is below 1e-500.
        counts[row] = np.random.Generator(np.random.Philox(key=key)).poisson(1.0, resamples)
    return counts


def patient_weights(counts: CountArray, codes: IntArray) -> Iterator[tuple[slice, FloatArray]]:
    """The resamples in chunks of bounded memory: which ones, and their weights per image, (b, n) float64.

    Args:
        counts: (num_patients, resamples) as ``patient_counts`` gives.
        codes: (n,) the row in ``counts`` of each image's patient.
    """
    size = max(LEAST_CHUNK, CHUNK_ELEMENTS // max(len(codes), 1))
    for start in range(0, counts.shape[1], size):
        chunk = slice(start, min(start + size, counts.shape[1]))
        yield chunk, counts[codes, chunk].T.astype(np.float64, order="C")


def bootstrap(function: Callable[[FloatArray], FloatArray], counts: CountArray, codes: IntArray) -> FloatArray:
    """``function`` of the weights (b, n), on every resample, (resamples,) float64."""
    draws = np.empty(counts.shape[1])
    for chunk, weights in patient_weights(counts, codes):
        draws[chunk] = function(weights)
    return draws


@dataclass(frozen=True)
class SeedPart:
    """What the seeds of one method add: S^2/k, the part I/k of it that the patients hold too, and k.

    ``num_runs`` is 1 where the spread is unknown, and 0 where there is none (``WITHOUT_CHANCE``).
    """

    spread: float
    interaction: float
    num_runs: int


WITHOUT_CHANCE = SeedPart(0.0, 0.0, 0)


@dataclass(frozen=True)
class Estimate:
    """A metric's mean over seeds, or a difference of such: its value, and what its interval is made of.

    ``draws`` (resamples,) are the value on the resamples. ``seeds`` has one part per method involved. ``patients`` is
    m, the number of patients in the class that limits the metric.
    """

    value: float
    draws: FloatArray
    seeds: tuple[SeedPart, ...]
    patients: int


@dataclass(frozen=True)
class VariancePart:
    """A part of an estimate's variance, with the degrees of freedom that it is known on."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class StandardError:
    """Standard error of an estimate and its degrees of freedom (NaN: none), and why there are none.

    ``patients`` and ``seeds`` are what it is made of, taken apart: I stands with the seeds, and S^2 - I is not cut off
    at 0. No ``seeds`` where there is nothing to tell their spread from, or no spread.
    """

    value: float
    freedom: float
    note: str = ""
    patients: VariancePart | None = None
    seeds: VariancePart | None = None


@dataclass(frozen=True)
class Interval:
    """Limits (NaN: none), how they were made, and why there are none."""

    low: float
    high: float
    text: str = ""
    note: str = ""


def over_seeds(values: FloatArray, draws: FloatArray, patients: int) -> Estimate:
    """The mean over the runs of one method on the same images.

    Args:
        values: (k,) the metric of each run.
        draws: (k, resamples) the same on the resamples, alike for all runs.
        patients: m, see ``Estimate``.
    """
    k = len(values)
    mean = draws.mean(axis=0)
    if k == 1:
        return Estimate(float(values[0]), mean, (SeedPart(0.0, 0.0, 1),), patients)
    defined = np.isfinite(mean)
    interaction = float(np.var(draws[:, defined] - mean[defined], axis=1).sum()) / (k - 1) if defined.any() else 0.0
    part = SeedPart(float(np.var(values, ddof=1)) / k, interaction / k, k)
    return Estimate(float(values.mean()), mean, (part,), patients)


def difference(one: Estimate, other: Estimate) -> Estimate:
    """One method less another on the same resamples: patients paired, seeds independent (both parts count)."""
    return Estimate(
        one.value - other.value, one.draws - other.draws, one.seeds + other.seeds, min(one.patients, other.patients)
    )


def extreme(estimates: Sequence[Estimate], lowest: bool) -> tuple[int, Estimate]:
    """Which of several groups is lowest (or highest), and the estimate of that extreme.

    On each resample the extreme is taken anew, so that the doubt about *which* group it is counts. The extreme
    of noisy values lies beyond that of the true ones, the more the smaller the groups; this is not corrected.
    """
    index = int((np.argmin if lowest else np.argmax)([estimate.value for estimate in estimates]))
    stacked = np.stack([estimate.draws for estimate in estimates])
    chosen = estimates[index]
    # The patients' variance of a minimum no longer holds the seeds' interaction as such: nothing is subtracted.
    seeds = tuple(SeedPart(part.spread, 0.0, part.num_runs) for part in chosen.seeds)
    return index, Estimate(chosen.value, stacked.min(axis=0) if lowest else stacked.max(axis=0), seeds, chosen.patients)


def standard_error(estimate: Estimate) -> StandardError:
    """The standard error over patients and seeds, with Welch and Satterthwaite's degrees of freedom.

    What intervals (``interval``) and tests (``pipeline.analysis.verdict``) are both made of.
    """
    m = estimate.patients
    if not np.isfinite(estimate.value):
        return StandardError(float("nan"), float("nan"), "no value")
    if m < 2:
        return StandardError(float("nan"), float("nan"), "a single patient")
    defined = estimate.draws[np.isfinite(estimate.draws)]
    undefined = 1.0 - len(defined) / len(estimate.draws)
    if undefined > MAX_UNDEFINED:
        return StandardError(float("nan"), float("nan"), f"undefined in {undefined:.0%} of the resamples")
    patients = float(np.var(defined, ddof=1)) * m / (m - 1)
    variance, freedom = _welch_satterthwaite(patients, m - 1, estimate.seeds)
    # Not == 0: equal resamples differ by rounding.
    if variance <= 1e-20:
        return StandardError(float("nan"), float("nan"), NO_VARIATION)
    several = [part for part in estimate.seeds if part.spread > 0]
    shared = max(0.0, patients - sum(part.interaction for part in several))
    seeds = VariancePart(sum(part.spread for part in several), sum(part.num_runs - 1 for part in several))
    return StandardError(float(np.sqrt(variance)), freedom, "", VariancePart(shared, m - 1), seeds if several else None)


def interval(estimate: Estimate, scale: Scale, confidence: float = 0.95, exact: bool = False) -> Interval:
    """Limits from the standard error and Student's t, symmetric on ``scale``.

    Proportions and areas on the logit scale (Pepe 2003, sec. 5.2): inside (0, 1) by construction, and near the
    border better covered than symmetric limits; a loss on the log scale; slopes, intercepts and differences as
    they are. Not percentiles: these cannot take in the seeds' variance. The standard error is carried over by
    the delta method, so a resample with an AUROC of exactly 1 does no harm.

    Args:
        estimate: value, draws and seeds.
        scale: where the limits are symmetric.
        confidence: such as 0.95.
        exact: at a value of exactly 0 or 1, where the logit ends, give Clopper and Pearson's limit on m
            trials: one patient of the class is one trial, for the AUROC one pair of a diseased and a healthy
            patient, no patient in two pairs (such pairs are independent and all were ordered alike). Valid,
            and wide. Without ``exact`` there is no interval at the border.
    """
    share = f"{confidence * 100:g} %"
    if not np.isfinite(estimate.value):
        return _none("")
    found = standard_error(estimate)
    constant = found.note == NO_VARIATION
    if found.note and not constant:
        return _none(f"no interval: {found.note}")
    if exact and scale == "logit" and estimate.value in (0.0, 1.0):
        m = estimate.patients
        tail = ((1.0 - confidence) / 2) ** (1 / m)
        low, high = (tail, 1.0) if estimate.value == 1.0 else (0.0, 1.0 - tail)
        return Interval(low, high, f"{share}, exact binomial on {m} patients (value at the border)")
    if constant or (scale != "identity" and _slope(estimate.value, scale) <= 0):
        return _none(f"no interval: {NO_VARIATION}")
    half = float(student_t.ppf((1.0 + confidence) / 2, found.freedom)) * found.value
    low, high = limits_around(estimate.value, half, scale)
    return Interval(low, high, f"{share}, {scale} scale, t; bootstrap of patients{_seeds_text(estimate.seeds)}")


def limits_of_extreme(
    estimates: Sequence[Estimate], lowest: bool, scale: Scale, confidence: float = 0.95, exact: bool = False
) -> Interval:
    """Limits of the lowest (or highest) of several true values, from intervals that hold for all of them together.

    If each true value lies inside its interval, the lowest of them lies between the lowest lower limit and the lowest
    upper limit. That does not ask which group is the worst, nor rest on a bootstrap of a minimum, which is centred on
    the lowest of noisy values and covers too little (tests/metrics/test_intervals.py).

    Args:
        estimates: of the groups, all with a value, with the same resamples.
        lowest: of which end.
        scale: as in ``interval``.
        confidence: that all intervals hold together.
        exact: as in ``interval``.
    """
    each = confidence_of_each(estimates, confidence)
    made = [interval(estimate, scale, each, exact) for estimate in estimates]
    if lacking := sum(not np.isfinite(one.low) for one in made):
        return _none(f"no interval: there is none for {lacking} of the {len(made)}")
    end = min if lowest else max
    index = int((np.argmin if lowest else np.argmax)([estimate.value for estimate in estimates]))
    together = f"{confidence * 100:g} % for the worst of {len(made)}: each at " if len(made) > 1 else ""
    return Interval(end(one.low for one in made), end(one.high for one in made), together + made[index].text)


def confidence_of_each(estimates: Sequence[Estimate], confidence: float) -> float:
    """The confidence that several intervals must have each, so that all of them hold together with ``confidence``.

    The quantile, over resamples, of the largest of the estimates' deviations, each measured by its own rank among the
    resamples (Beran 1988, J Am Stat Assoc 83:679: balanced; max-t without a normal distribution). What estimates share,
    patients above all, is so taken into account. Spreads of seeds are taken as if independent between the estimates,
    which asks too much rather than too little. Rounded up to a tenth of a per cent.
    """
    if len(estimates) == 1:
        return confidence
    draws = np.stack([estimate.draws for estimate in estimates])
    deviations = np.abs(draws - np.nanmean(draws, axis=1, keepdims=True))
    ranks = rankdata(deviations, axis=1, nan_policy="omit") / np.isfinite(draws).sum(axis=1, keepdims=True)
    largest = np.nanquantile(np.fmax.reduce(ranks, axis=0), confidence)
    # Never all of it, nor, where resamples are few, less than what a single one asks.
    return float(np.clip(np.ceil(1000 * largest) / 1000, confidence, 0.999))


def _welch_satterthwaite(patients: float, freedom: int, seeds: Sequence[SeedPart]) -> tuple[float, float]:
    """Variance of the estimate and its degrees of freedom (Satterthwaite 1946, Welch 1947)."""
    several = [part for part in seeds if part.num_runs > 1]
    added = sum(max(0.0, part.spread - part.interaction) for part in several)
    variance = patients + added
    # Only parts that add something have a say. The chance in a part is that of its S^2, before I is taken off.
    weights = [(patients, freedom)]
    weights += [(part.spread, part.num_runs - 1) for part in several if part.spread > part.interaction]
    doubt = sum(part_variance**2 / part_freedom for part_variance, part_freedom in weights)
    least = min(part_freedom for _, part_freedom in weights)
    return variance, max(variance**2 / doubt, least) if doubt > 0 else float(least)


def _slope(value: float, scale: Scale) -> float:
    return value * (1.0 - value) if scale == "logit" else value


def limits_around(value: float, half: float, scale: Scale) -> tuple[float, float]:
    """``value`` -+ ``half`` (in the value's own units), laid out symmetrically on ``scale``."""
    if scale == "identity":
        return value - half, value + half
    # d logit(v)/dv = 1 / (v (1 - v)), d log(v)/dv = 1 / v. The cap keeps exp finite and the limit inside.
    factor = float(np.exp(min(half / _slope(value, scale), 700.0)))
    if scale == "log":
        return value / factor, value * factor
    return value / (value + (1.0 - value) * factor), value / (value + (1.0 - value) / factor)


def _seeds_text(seeds: Sequence[SeedPart]) -> str:
    runs = " and ".join(str(part.num_runs) for part in seeds if part.num_runs > 1)
    numbers = [part.num_runs for part in seeds]
    if not runs:
        return f" only ({'one run, spread between seeds unknown' if 1 in numbers else 'another run would be the same'})"
    alone = ", one method with one run" if 1 in numbers else ""
    certain = ", one method without chance" if 0 in numbers else ""
    return f" and spread of {runs} runs{alone}{certain}"


def _none(note: str) -> Interval:
    return Interval(float("nan"), float("nan"), "", note)
