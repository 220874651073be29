"""Intervals against what they promise: coverage on clustered cohorts, and false alarms between equal methods."""

import numpy as np
import pytest
from scipy.stats import binom, norm, t

from pipeline.metrics.binary import auroc, sensitivity_at
from pipeline.metrics.intervals import (
    WITHOUT_CHANCE,
    Estimate,
    SeedPart,
    bootstrap,
    confidence_of_each,
    difference,
    extreme,
    interval,
    limits_of_extreme,
    over_seeds,
    patient_counts,
    patient_weights,
)

ONE_RUN = (SeedPart(0.0, 0.0, 1),)


def estimate(value, draws, patients=50):
    return Estimate(value, np.asarray(draws, dtype=np.float64), ONE_RUN, patients)


def spread_draws(value, se, resamples=4001):
    return value + se * norm.ppf((np.arange(resamples) + 0.5) / resamples)


def binormal(rng, patients, area, prevalence=0.4, shared=1.0, shifts=(0.0,)):
    """Images of patients (1 to 6 each, all with the patient's label) and scores with a known AUROC.

    Positives are shifted by sqrt(2) * probit(area); 60 % of the variance is the patient's. ``shared`` of the
    variance is common to all runs; a run's own shift comes on top.
    """
    codes = np.repeat(np.arange(patients), rng.integers(1, 7, patients))
    labels = (rng.random(patients) < prevalence).astype(np.int8)[codes]

    def noise():
        return np.sqrt(0.6) * rng.normal(size=patients)[codes] + np.sqrt(0.4) * rng.normal(size=len(codes))

    common = noise()
    scores = [
        (np.sqrt(2) * norm.ppf(area) + shift) * labels + np.sqrt(shared) * common + np.sqrt(1 - shared) * noise()
        for shift in shifts
    ]
    return codes, labels, np.stack(scores)


def counts_of(rng, patients, resamples):
    """As patient_counts, with the simulation's own generator."""
    return rng.poisson(1.0, (patients, resamples)).astype(np.uint8)


def test_counts_depend_on_seed_and_patient_alone():
    first = patient_counts(["a", "b", "c"], 500, seed=1)
    assert (patient_counts(["c", "x", "a"], 500, seed=1)[[2, 0]] == first[[0, 2]]).all()
    assert (patient_counts(["a", "b", "c"], 500, seed=2) != first).any()
    many = patient_counts([f"p{i}" for i in range(400)], 1000, seed=3)
    assert many.mean() == pytest.approx(1, abs=0.01)
    assert many.var() == pytest.approx(1, abs=0.01)
    correlation = np.corrcoef(many[:100])
    assert np.abs(correlation[np.triu_indices(100, 1)]).max() < 0.16


def test_weights_are_the_patients_counts_in_bounded_chunks():
    counts = patient_counts(["a", "b"], 700, seed=1)
    codes = np.repeat([0, 1, 0], 500)
    chunks = list(patient_weights(counts, codes))
    assert len(chunks) > 1
    assert max(weights.nbytes for _, weights in chunks) <= 2_000_000
    joined = np.concatenate([weights for _, weights in chunks])
    assert (joined == counts[codes].T).all()
    assert [chunk.start for chunk, _ in chunks[1:]] == [chunk.stop for chunk, _ in chunks[:-1]]


def test_standard_error_of_a_proportion_is_the_textbook_one():
    """Sensitivity with one image a patient: V = p (1 - p) / (m - 1) on m positive patients, t with m - 1."""
    labels = np.ones(40, dtype=np.int8)
    logits = np.where(np.arange(40) < 30, 1.0, -1.0)
    counts = patient_counts([str(i) for i in range(40)], 20_000, seed=0)
    draws = bootstrap(lambda weights: sensitivity_at(labels, logits, weights, 0.5), counts, np.arange(40))
    made = interval(over_seeds(np.array([0.75]), draws[None], 40), "identity")
    half = t.ppf(0.975, 39) * np.sqrt(0.75 * 0.25 / 39)
    assert made.high - 0.75 == pytest.approx(half, rel=0.03)
    assert "one run" in made.text


def test_scales():
    draws = spread_draws(0.9, 0.05)
    half = t.ppf(0.975, 49) * np.std(draws) * np.sqrt(50 / 49)
    plain = interval(estimate(0.9, draws), "identity")
    assert (plain.low, plain.high) == pytest.approx((0.9 - half, 0.9 + half), rel=1e-3)
    logit = interval(estimate(0.9, draws), "logit")
    for limit, sign in ((logit.low, -1), (logit.high, 1)):
        assert np.log(limit / (1 - limit)) == pytest.approx(np.log(9) + sign * half / 0.09, rel=1e-3)
    log = interval(estimate(0.9, draws), "log")
    assert np.log(log.high / 0.9) == pytest.approx(half / 0.9, rel=1e-3)
    assert np.log(0.9 / log.low) == pytest.approx(half / 0.9, rel=1e-3)


def test_seeds_add_their_variance_once():
    rng = np.random.default_rng(0)
    values = np.array([0.70, 0.74, 0.78])
    # Patients: a part common to the seeds (SD 0.03), and one of each seed's own (SD 0.02).
    draws = values[:, None] + 0.03 * rng.normal(size=20_000) + 0.02 * rng.normal(size=(3, 20_000))
    joined = over_seeds(values, draws, 100)
    assert joined.value == pytest.approx(0.74)
    patients, between, interaction = 0.03**2 + 0.02**2 / 3, 0.04**2 / 3, 0.02**2 / 3
    (part,) = joined.seeds
    assert (part.spread, part.interaction) == pytest.approx((between, interaction), rel=0.03)
    variance = patients + between - interaction
    freedom = variance**2 / (patients**2 / 99 + between**2 / 2)
    made = interval(joined, "identity")
    assert made.high - 0.74 == pytest.approx(t.ppf(0.975, freedom) * np.sqrt(variance), rel=0.03)
    assert "3 runs" in made.text
    # Seeds that agree more than the patients' noise allows add nothing, and take nothing away.
    alike = over_seeds(np.full(3, 0.74), draws - values[:, None] + 0.74, 100)
    half = interval(alike, "identity").high - 0.74
    assert half == pytest.approx(t.ppf(0.975, 99) * np.sqrt(patients), rel=0.03)


def test_difference_is_paired_by_patient_and_adds_both_methods_seeds():
    rng = np.random.default_rng(0)
    patients = 0.05 * rng.normal(size=5000)
    one = over_seeds(np.array([0.8, 0.82]), np.array([[0.8], [0.82]]) + patients, 60)
    other = over_seeds(np.array([0.7, 0.74]), np.array([[0.7], [0.74]]) + patients, 40)
    both = difference(one, other)
    assert both.value == pytest.approx(0.09)
    assert np.std(both.draws) < 1e-12
    assert both.patients == 40
    assert sum(part.spread for part in both.seeds) == pytest.approx((0.02**2 / 2 + 0.04**2 / 2) / 2)
    assert "2 and 2 runs" in interval(both, "identity").text
    assert "one method with one run" in interval(difference(one, estimate(0.7, 0.7 + patients)), "identity").text


def test_extreme_names_the_group_and_doubts_it():
    rng = np.random.default_rng(0)
    groups = [estimate(value, value + 0.05 * rng.normal(size=4000)) for value in (0.8, 0.7, 0.71)]
    index, lowest = extreme(groups, lowest=True)
    assert (index, lowest.value) == (1, 0.7)
    assert lowest.draws.mean() < 0.68
    assert extreme(groups, lowest=False)[0] == 0


def test_a_method_without_chance_says_so_and_adds_nothing():
    draws = spread_draws(0.8, 0.05)
    fixed = Estimate(0.8, draws, (WITHOUT_CHANCE,), 50)
    assert interval(fixed, "logit").text.endswith("only (another run would be the same)")
    assert interval(fixed, "logit").low == interval(estimate(0.8, draws), "logit").low
    seeds = over_seeds(np.array([0.7, 0.74]), np.array([[0.7], [0.74]]) + draws - 0.8, 40)
    both = interval(difference(seeds, fixed), "identity").text
    assert both.endswith("spread of 2 runs, one method without chance")


def test_confidence_of_each_is_sidaks_of_independent_groups_and_the_whole_of_equal_ones():
    rng = np.random.default_rng(0)
    apart = [estimate(0.7, 0.7 + 0.1 * rng.normal(size=20_000)) for _ in range(4)]
    assert confidence_of_each(apart, 0.95) == pytest.approx(0.95 ** (1 / 4), abs=0.0025)
    alike = [estimate(0.7, 0.7 + scale * apart[0].draws) for scale in (1, 2, 0.5)]
    assert confidence_of_each(alike, 0.95) == pytest.approx(0.95, abs=0.0011)
    assert confidence_of_each(apart[:1], 0.95) == 0.95
    partly = [estimate(0.7, np.where(rng.random(20_000) < 0.05, np.nan, part.draws)) for part in apart]
    assert confidence_of_each(partly, 0.95) == pytest.approx(0.95 ** (1 / 4), abs=0.0025)


def test_limits_of_the_worst_group():
    rng = np.random.default_rng(0)
    groups = [
        estimate(value, value + se * rng.normal(size=4000)) for value, se in ((0.7, 0.01), (0.72, 0.1), (0.9, 0.01))
    ]
    each = confidence_of_each(groups, 0.95)
    parts = [interval(group, "logit", each) for group in groups]
    made = limits_of_extreme(groups, lowest=True, scale="logit")
    # The least known group may be far worse than the one that looks worst, which no truth above 0.73 would allow.
    assert (made.low, made.high) == (parts[1].low, parts[0].high)
    assert made.text == f"95 % for the worst of 3: each at {parts[0].text}"
    highest = limits_of_extreme(groups, lowest=False, scale="logit")
    assert (highest.low, highest.high) == (parts[2].low, parts[2].high)
    assert limits_of_extreme(groups[:1], True, "logit") == interval(groups[0], "logit")
    without = [*groups, estimate(0.8, np.full(4000, 0.8))]
    assert limits_of_extreme(without, True, "logit").note == "no interval: there is none for 1 of the 4"


def test_coverage_of_the_worst_of_several_hospitals():
    """Four hospitals of 50 patients: a bootstrap of the minimum is centred on the lowest of noisy values, too low."""
    rng = np.random.default_rng(11)
    for areas in ((0.8, 0.8, 0.8, 0.8), (0.7, 0.8, 0.85, 0.9)):
        cohorts, joint, minimum = 150, 0, 0
        for _ in range(cohorts):
            sites = []
            for area in areas:
                codes, labels, scores = binormal(rng, 50, area)
                sites.append(auroc_interval(codes, labels, scores, counts_of(rng, 50, 200)))
            made = limits_of_extreme(sites, lowest=True, scale="logit", exact=True)
            joint += made.low <= min(areas) <= made.high
            naive = interval(extreme(sites, lowest=True)[1], "logit")
            minimum += naive.low <= min(areas) <= naive.high
        print(f"coverage of the worst: joint {joint / cohorts:.3f}, bootstrap of the minimum {minimum / cohorts:.3f}")
        assert joint >= binom.ppf(0.001, cohorts, 0.95)
        if len(set(areas)) == 1:
            assert minimum < 0.9 * cohorts


def test_no_interval_says_why():
    draws = spread_draws(0.8, 0.05, 1000)
    partly = draws.copy()
    partly[:60] = np.nan  # 6 %: dropped
    assert np.isfinite(interval(estimate(0.8, partly), "logit").low)
    partly[:80] = np.nan
    assert "undefined in 8%" in interval(estimate(0.8, partly), "logit").note
    assert "single patient" in interval(estimate(0.8, draws, patients=1), "logit").note
    assert "no variation" in interval(estimate(0.8, np.full(1000, 0.8)), "logit").note
    assert "no variation" in interval(estimate(1.0, np.full(1000, 1.0)), "logit").note
    undefined = interval(estimate(np.nan, np.full(1000, np.nan)), "logit")
    assert np.isnan(undefined.low)
    assert undefined.text == ""


def test_exact_limit_at_the_border():
    made = interval(estimate(1.0, np.ones(1000), patients=12), "logit", exact=True)
    assert made.low**12 == pytest.approx(0.025)  # twelve of twelve, one-sided 2.5 %
    assert made.high == 1.0
    assert "exact binomial on 12 patients" in made.text
    zero = interval(estimate(0.0, np.zeros(1000), patients=12), "logit", exact=True)
    assert (zero.low, zero.high) == pytest.approx((0.0, 1 - made.low))


def auroc_interval(codes, labels, scores, counts):
    values = np.array([auroc(labels, row, np.ones((1, len(row))))[0] for row in scores])
    draws = np.stack([bootstrap(lambda w, row=row: auroc(labels, row, w), counts, codes) for row in scores])
    limiting = min(len(np.unique(codes[labels == label])) for label in (0, 1))
    return over_seeds(values, draws, limiting)


def test_coverage_by_patients_and_by_images():
    """300 cohorts of 60 patients, AUROC 0.8: by patient near 95 %, by image (the common mistake) far below."""
    rng = np.random.default_rng(7)
    cohorts, by_patient, by_image = 300, 0, 0
    for _ in range(cohorts):
        codes, labels, scores = binormal(rng, 60, 0.8)
        made = interval(auroc_interval(codes, labels, scores, counts_of(rng, 60, 400)), "logit")
        by_patient += made.low <= 0.8 <= made.high
        images = np.arange(len(codes))
        made = interval(auroc_interval(images, labels, scores, counts_of(rng, len(codes), 400)), "logit")
        by_image += made.low <= 0.8 <= made.high
    print(f"coverage by patient {by_patient / cohorts:.3f}, by image {by_image / cohorts:.3f}")
    low, high = binom.ppf([0.001, 0.999], cohorts, 0.95)
    assert low <= by_patient <= high
    assert by_image < 0.85 * cohorts


def test_coverage_where_the_diseased_are_few():
    """Ten diseased among 100: degrees of freedom by patients in all would cover too little (0.93)."""
    rng = np.random.default_rng(8)
    cohorts, covered = 200, 0
    for _ in range(cohorts):
        codes, labels, scores = binormal(rng, 100, 0.85, prevalence=0.1)
        made = interval(auroc_interval(codes, labels, scores, counts_of(rng, 100, 300)), "logit", exact=True)
        covered += made.low <= 0.85 <= made.high
    print(f"coverage with few diseased {covered / cohorts:.3f}")
    assert covered >= binom.ppf(0.001, cohorts, 0.95)


def test_equal_methods_are_called_different_one_time_in_twenty():
    """Null: two methods of equal expected AUROC, three seeds each, SD between seeds 0.033."""
    rng = np.random.default_rng(9)
    slope = norm.pdf(norm.ppf(0.8)) / np.sqrt(2)  # AUROC per unit of shift
    studies, joined, patients_only = 300, 0, 0
    for _ in range(studies):
        shifts = rng.normal(scale=0.033 / slope, size=6)
        codes, labels, scores = binormal(rng, 80, 0.8, shared=0.85, shifts=shifts)
        counts = counts_of(rng, 80, 300)
        one, other = (auroc_interval(codes, labels, part, counts) for part in (scores[:3], scores[3:]))
        both = difference(one, other)
        made = interval(both, "identity")
        joined += not made.low <= 0 <= made.high
        naive = interval(Estimate(both.value, both.draws, ONE_RUN, both.patients), "identity")
        patients_only += not naive.low <= 0 <= naive.high
    print(f"false alarms: patients and seeds {joined / studies:.3f}, patients only {patients_only / studies:.3f}")
    assert joined <= binom.ppf(0.999, studies, 0.05)
    assert joined >= binom.ppf(0.001, studies, 0.02)  # conservative, but not blind
    assert patients_only > 0.2 * studies
