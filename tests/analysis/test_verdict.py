"""verdict: p-values by hand and by scipy, Holm by hand, and error rates against what the verdicts promise."""

import secrets

import numpy as np
import pandas as pd
import pytest
from analysis.test_evaluation import SOURCE, TARGET, cohort, contract, study
from hypothesis import given
from hypothesis import strategies as st
from metrics.test_intervals import auroc_interval, binormal, counts_of
from pydantic import ValidationError
from scipy.integrate import quad
from scipy.stats import beta, cauchy, norm, t

from pipeline.analysis.evaluation import BASELINES, Comparison, EvaluateParams, Family, Setting, evaluate
from pipeline.analysis.verdict import (
    VerdictParams,
    behrens_fisher,
    decide,
    holm,
    judge,
    p_different,
    p_equivalent,
)
from pipeline.metrics.intervals import (
    Estimate,
    Interval,
    SeedPart,
    StandardError,
    VariancePart,
    difference,
    interval,
    standard_error,
)
from pipeline.tables.evaluation import VERDICTS, Verdicts

PARAMS = VerdictParams(margin=0.05)
WHOLE = Setting("main", 1.0, 0, "")
NAN = float("nan")

SEED_SD = 0.033  # of AUROC, between trainings
AREA = 0.8
SLOPE = norm.pdf(norm.ppf(AREA)) / np.sqrt(2)  # AUROC per unit of shift
SHORT_SEED = 20_261_121


# --- p-values ------------------------------------------------------------------------------------------------


def test_p_of_no_difference_is_that_of_the_tables():
    """Student's t: 2.5 % lie above 2.2281 with 10 degrees of freedom, 5 % above 1.8125."""
    assert p_different(0.022281, StandardError(0.01, 10.0)) == pytest.approx(0.05, abs=1e-5)
    assert p_different(-0.018125, StandardError(0.01, 10.0)) == pytest.approx(0.1, abs=1e-5)
    assert p_different(0.0, StandardError(0.01, 10.0)) == 1.0


def test_p_of_equivalence_is_the_larger_of_two_one_sided():
    error = StandardError(0.01, 10.0)
    # 0.05 - 0.018125 is 1.8125 standard errors from one border and 8.2 from the other.
    for sign in (1, -1):
        assert p_equivalent(sign * (0.05 - 0.018125), error, 0.05) == pytest.approx(0.05, abs=1e-5)
    assert p_equivalent(0.05, error, 0.05) == pytest.approx(0.5)
    assert p_equivalent(0.0, error, 0.05) == pytest.approx(t.sf(5.0, 10))
    assert p_equivalent(0.2, error, 0.05) > 0.999


@given(
    value=st.floats(-0.3, 0.3),
    error=st.floats(0.001, 0.2),
    freedom=st.floats(1.0, 500.0),
    margin=st.floats(0.01, 0.2),
)
def test_p_values_agree_with_intervals(value, error, freedom, margin):
    """p < 5 % where the 95 % interval misses zero; equivalent where the 90 % interval lies within the margin."""
    half_95, half_90 = (float(t.ppf(share, freedom)) * error for share in (0.975, 0.95))
    if abs(abs(value) - half_95) > 1e-9:
        assert (p_different(value, StandardError(error, freedom)) < 0.05) == (abs(value) > half_95)
    if abs(abs(value) + half_90 - margin) > 1e-9:
        inside = abs(value) + half_90 < margin
        assert (p_equivalent(value, StandardError(error, freedom), margin) < 0.05) == inside


def test_tests_and_intervals_have_one_standard_error():
    rng = np.random.default_rng(0)
    made = Estimate(0.03, 0.03 + 0.02 * rng.normal(size=500), (SeedPart(1e-4, 2e-5, 3), SeedPart(3e-4, 1e-5, 3)), 40)
    found, limits = standard_error(made), interval(made, "identity")
    assert limits.high - 0.03 == pytest.approx(t.ppf(0.975, found.freedom) * found.value, rel=1e-12)
    assert found.value == pytest.approx(np.sqrt(np.var(made.draws, ddof=1) * 40 / 39 + 8e-5 + 2.9e-4), rel=1e-12)


def test_the_sum_of_two_t_by_other_means():
    """Cauchys add their scales; a part of no variance leaves the other's t; many degrees of freedom make a normal."""
    for value in (0.5, 3.0, 300.0):
        assert behrens_fisher(value, VariancePart(1.0, 1), VariancePart(4.0, 1)) == pytest.approx(
            cauchy.sf(value / 3), rel=1e-6
        )
        assert behrens_fisher(value, VariancePart(0.0, 40), VariancePart(4.0, 2)) == pytest.approx(
            t.sf(value / 2, 2), rel=1e-6
        )
    assert behrens_fisher(10.0, VariancePart(9.0, 10**6), VariancePart(16.0, 10**6)) == pytest.approx(
        norm.sf(2.0), rel=1e-4
    )
    mixed, _ = quad(lambda u: t.pdf(u, 4) * t.sf((3.0 - 0.7 * u) / 0.5, 50), -np.inf, np.inf, limit=400)
    assert behrens_fisher(3.0, VariancePart(0.25, 50), VariancePart(0.49, 4)) == pytest.approx(mixed, rel=1e-6)
    assert behrens_fisher(-1.0, VariancePart(1.0, 5), VariancePart(1.0, 4)) == pytest.approx(
        1 - behrens_fisher(1.0, VariancePart(1.0, 5), VariancePart(1.0, 4))
    )


def test_the_larger_tail_counts():
    """One part alone: both tails are the same t. Trainings that agree by luck: the second is the larger."""
    alone = StandardError(0.01, 4.0, "", VariancePart(0.0, 60), VariancePart(1e-4, 4))
    assert p_different(0.03, alone) == pytest.approx(2 * t.sf(3.0, 4), rel=1e-6)
    lucky = difference_of([0.7, 0.702, 0.704], [0.7, 0.702, 0.704], patients_variance=1e-5, value=0.05)
    error = standard_error(lucky)
    assert error.freedom > 50
    assert p_different(0.05, error) > 20 * 2 * t.sf(0.05 / error.value, error.freedom)
    assert p_equivalent(0.05, error, 0.1) > t.sf(0.05 / error.value, error.freedom)


def difference_of(one, other, patients_variance, value, interaction=0.0, patients=100):
    """An estimate of a difference between two methods, of their trainings' AUROCs, as ``difference`` makes it."""
    parts = tuple(
        SeedPart(float(np.var(side, ddof=1)) / len(side), interaction / len(side), len(side)) for side in (one, other)
    )
    half = np.sqrt(patients_variance * (patients - 1) / patients / 2)  # two draws with the variance that is wanted
    return Estimate(value, np.array([value - half, value + half]), parts, patients)


def test_standard_error_taken_apart():
    made = standard_error(difference_of([0.70, 0.74, 0.78], [0.6, 0.6, 0.6], 4e-4, 0.1, interaction=6e-5))
    spread = 0.0016 / 3
    assert made.value == pytest.approx(np.sqrt(4e-4 + spread - 2e-5))
    # The second method's trainings have no spread: they add nothing, and no degree of freedom.
    assert (made.seeds.variance, made.seeds.freedom) == pytest.approx((spread, 2))
    assert (made.patients.variance, made.patients.freedom) == pytest.approx((4e-4 - 2e-5, 99))
    assert standard_error(difference_of([0.7, 0.7], [0.6, 0.6], 4e-4, 0.1)).seeds is None


@pytest.mark.parametrize("trainings", [2, 3])
def test_far_in_the_tail_where_trainings_dominate(trainings):
    """p < 0.001 comes no more than once in 1,000; by Student's t alone several times as often."""
    rng = np.random.default_rng(SHORT_SEED)
    number, level, patients_variance = 30_000, 0.001, 0.05
    interaction = 0.02
    both = rng.normal(scale=np.sqrt(1 + interaction), size=(number, 2, trainings))
    values = both[:, 0].mean(axis=1) - both[:, 1].mean(axis=1) + rng.normal(scale=np.sqrt(0.05), size=number)
    estimated = (patients_variance + 2 * interaction / trainings) * rng.chisquare(99, number) / 99
    # p < 0.001 is beyond 3.29 standard errors: what is within 2 needs no test, even were they taken a third too small.
    spread = both.var(axis=2, ddof=1).sum(axis=1) / trainings
    far = np.flatnonzero(np.abs(values) > 2 * np.sqrt(estimated + spread - 2 * interaction / trainings))
    errors = {
        index: standard_error(difference_of(*both[index], estimated[index], values[index], interaction))
        for index in far
    }
    student = 2 * t.sf(np.abs(values[far]) / [e.value for e in errors.values()], [e.freedom for e in errors.values()])
    small = far[student < level]
    larger = sum(p_different(values[index], errors[index]) < level for index in small)
    told(f"p < {level}, {trainings} trainings", larger, number)
    told("the same, by Student's t alone", len(small), number)
    assert is_at_most(larger, number, level)
    assert not is_at_most(len(small), number, level)


# --- Holm ----------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which is raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([0.7, 0.9, 0.8]) == [1.0, 1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_leaves_out_what_is_no_test():
    adjusted = holm([0.01, NAN, 0.03])
    assert adjusted[::2] == pytest.approx([0.02, 0.03])
    assert np.isnan(adjusted[1])


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30), st.randoms())
def test_holm_is_between_raw_and_bonferroni_and_keeps_the_order(p_values, random):
    adjusted = holm(p_values)
    assert all(p <= a <= min(1.0, len(p_values) * p) for p, a in zip(p_values, adjusted, strict=True))
    by_raw = [a for _, a in sorted(zip(p_values, adjusted, strict=True))]
    assert by_raw == sorted(by_raw)
    shuffled = list(range(len(p_values)))
    random.shuffle(shuffled)
    assert holm([p_values[i] for i in shuffled]) == [adjusted[i] for i in shuffled]


@pytest.mark.parametrize(
    ("value", "p_holm", "p_equivalence_holm", "wanted"),
    [
        (0.03, 0.01, 0.2, "helps"),
        (-0.03, 0.01, 0.2, "harms"),
        (0.03, 0.05, 0.2, "helps"),
        (0.03, 0.051, 0.2, "undecided"),
        (0.01, 0.2, 0.05, "equivalent"),
        (0.01, 0.01, 0.01, "equivalent"),
        (0.01, 0.2, 0.051, "undecided"),
        (NAN, NAN, NAN, None),
        (0.01, NAN, NAN, None),
    ],
)
def test_decisions(value, p_holm, p_equivalence_holm, wanted):
    assert decide(value, p_holm, p_equivalence_holm, 0.05) == wanted


# --- the table -----------------------------------------------------------------------------------------------


def family(method, runs=3, setting=WHOLE, backbone="resnet", draws=None):
    names = {f"{backbone}-{method}-seed{number}": draws[number] if draws else 0 for number in range(runs)}
    return Family(f"{backbone}-{method}", backbone, method, setting, names)


def comparison(value, error=0.01, group="target", **changes):
    split = changes.pop("split", "id_test" if group == "source" else "ood_test")
    own = changes.pop("family", family("full"))
    note = "" if np.isfinite(error) else "a single patient"
    settled = {
        "finding": "effusion",
        "family": own,
        "twin": family("scratch", setting=own.setting),
        "split": split,
        "group": group,
        "difference": value,
        "error": StandardError(error, 30.0 if np.isfinite(error) else NAN, note),
        "interval": Interval(value - 0.02, value + 0.02, "95 %"),
        "num_patients": 100,
        "num_runs": 3,
        "note": "",
    }
    return Comparison(**{**settled, **changes})


def trials(*comparisons, number=3):
    return {run: number for c in comparisons for side in (c.family, c.twin) for run in side.draws}


def rows_of(*comparisons, params=PARAMS, tried=None):
    made = judge(comparisons, trials(*comparisons) if tried is None else tried, params)
    assert list(made.columns) == list(Verdicts.columns)
    return made


def test_each_verdict():
    cases = {"helps": (0.10, 0.02), "harms": (-0.10, 0.02), "equivalent": (0.0, 0.01), "undecided": (0.03, 0.04)}
    assert set(cases) == set(VERDICTS)
    for verdict, (value, error) in cases.items():
        row = rows_of(comparison(value, error)).iloc[0]
        assert row["verdict"] == verdict
        assert (row["run"], row["against"], row["difference"]) == ("resnet-full", "scratch", value)
        assert (row["margin"], row["alpha"], row["num_patients"], row["num_runs"]) == (0.05, 0.05, 100, 3)
        assert (row["ci_low"], row["ci_high"]) == (value - 0.02, value + 0.02)
        assert row["p_value"] == row["p_holm"] == pytest.approx(2 * t.sf(abs(value) / error, 30))
        assert row["note"] == ""


def test_a_small_but_sure_effect_is_equivalent_and_says_that_it_is_there():
    row = rows_of(comparison(0.02, 0.004)).iloc[0]
    assert row["verdict"] == "equivalent"
    assert row["p_holm"] < 0.001
    assert row["note"] == "different from zero as well: better than scratch, by less than the margin"
    assert "worse than scratch" in rows_of(comparison(-0.02, 0.004)).iloc[0]["note"]


def test_one_finding_and_one_baseline_are_adjusted_together_and_no_others():
    methods = [family("full"), family("probe"), family("full", backbone="vgg")]
    one = [
        comparison(value, family=own, group=group)
        for own, values in zip(methods, ((0.03, 0.02), (0.025, 0.01), (0.0, 0.04)), strict=True)
        for value, group in zip(values, ("source", "target"), strict=True)
    ]
    other_finding = [comparison(0.03, finding="nodule")]
    other_baseline = [comparison(0.03, twin=family("scratch_converged"))]
    made = rows_of(*one, *other_finding, *other_baseline)
    alone = made[(made["finding"] == "nodule") | (made["against"] == "scratch_converged")]
    assert len(alone) == 2
    assert (alone["p_holm"] == alone["p_value"]).all()
    assert (alone["p_equivalence_holm"] == alone["p_equivalence"]).all()
    together = made.drop(alone.index)
    assert len(together) == 6
    for raw, adjusted in (("p_value", "p_holm"), ("p_equivalence", "p_equivalence_holm")):
        assert together[adjusted].tolist() == holm(together[raw].tolist())
        assert (together[adjusted] > together[raw]).any()


def test_holm_can_turn_a_verdict():
    narrow = VerdictParams(margin=0.01)
    alone = rows_of(comparison(0.024, 0.01), params=narrow)
    assert alone["verdict"].tolist() == ["helps"]
    others = [comparison(0.03, 0.03, family=family(f"method{n}")) for n in range(9)]
    crowded = rows_of(comparison(0.024, 0.01), *others, params=narrow)
    assert crowded.set_index("run").loc["resnet-full", "verdict"] == "undecided"


def test_other_places_and_doubled_ones_are_left_out():
    groups = [
        ("id_val", "source"), ("id_test", "source"), ("id_test", "site=north"), ("ood_test", "target"),
        ("ood_test", "site=east"), ("ood_test", "site=west"), ("ood_test", "worst_site"),
        ("ood_test", "target_minus_source"),
    ]  # fmt: skip
    made = rows_of(*(comparison(0.01, group=group, split=split) for split, group in groups))
    # One hospital at home is home: the same images, and one test.
    assert set(zip(made["split"], made["group"], strict=True)) == {
        ("id_test", "source"), ("ood_test", "target"), ("ood_test", "site=east"), ("ood_test", "site=west"),
    }  # fmt: skip


def test_undefined_is_null_with_a_reason_and_counts_for_no_other():
    alone = rows_of(comparison(0.024)).iloc[0]
    undefined = [
        comparison(NAN, NAN, family=family("a"), note="one class only (positives: 0)"),
        comparison(0.02, NAN, family=family("b")),
        comparison(0.02, 0.01, family=family("c"), num_runs=1),
    ]
    made = rows_of(comparison(0.024), *undefined).set_index("run")
    assert made.loc["resnet-full", "p_holm"] == alone["p_holm"]
    reasons = {
        "resnet-a": "one class only (positives: 0)",
        "resnet-b": "no p-value: a single patient",
        "resnet-c": "no p-value: a single training on one side, so that the spread of trainings is unknown",
    }
    for run, reason in reasons.items():
        row = made.loc[run]
        assert row["note"] == reason
        assert row[["verdict", "p_value", "p_holm", "p_equivalence", "p_equivalence_holm"]].isna().all()
    assert made.loc["resnet-c", "difference"] == 0.02


def test_tuning_budgets_are_compared():
    one = comparison(0.1)
    equal = trials(one)
    own = next(iter(one.family.draws))
    assert rows_of(one, tried=equal).iloc[0]["note"] == ""
    unequal = equal | dict.fromkeys(one.family.draws, 1)
    assert rows_of(one, tried=unequal).iloc[0]["note"] == "unequal tuning budget: 1 against 3"
    assert rows_of(one, tried=equal | {own: 1}).iloc[0]["note"] == "unequal tuning budget: 1 or 3 against 3"
    for lacking in ({}, equal | {own: None}):
        assert rows_of(one, tried=lacking).iloc[0]["note"] == "tuning budget not recorded"


def test_one_draw_of_few_labels_is_told():
    few = Setting("main", 0.1, 0, "")
    note = "one draw of the labelled patients: what other draws would change is not counted"
    assert rows_of(comparison(0.1, family=family("full", setting=few))).iloc[0]["note"] == note
    several = {"family": family("full", setting=few, draws=(0, 1, 2))}
    several["twin"] = family("scratch", setting=few, draws=(0, 1, 2))
    assert rows_of(comparison(0.1, **several)).iloc[0]["note"] == ""


def test_params_are_checked():
    for wrong in ({}, {"margin": 0.0}, {"margin": 0.5}, {"margin": 0.05, "alpha": 1.0}, {"margin": 0.05, "x": 1}):
        with pytest.raises(ValidationError):
            VerdictParams(**wrong)


# --- from predictions ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation():
    methods = ("scratch", "scratch_converged", "full")
    return evaluate(contract(study(methods=methods)), EvaluateParams(seed=1, resamples=200), SOURCE, TARGET)


def test_differences_and_intervals_are_those_of_the_metrics(evaluation):
    made = judge(evaluation.comparisons, {}, PARAMS)
    assert set(made["run"]) == {"resnet-full"}
    assert set(made["against"]) == set(BASELINES)
    places = {("id_test", "source"), ("id_test", "site=east"), ("id_test", "site=north")}
    places |= {("ood_test", "target"), ("ood_test", "site=west"), ("ood_test", "site=south")}
    assert set(zip(made["split"], made["group"], strict=True)) == places
    metrics = evaluation.metrics[evaluation.metrics["metric"] == "auroc_minus_scratch"]
    keys = ["run", "finding", "split", "group"]
    both = made[made["against"] == "scratch"].merge(metrics, on=keys, suffixes=("", "_metrics"))
    assert len(both) == len(places)
    for own, theirs in (("difference", "value"), ("ci_low", "ci_low_metrics"), ("ci_high", "ci_high_metrics")):
        assert both[own].tolist() == both[theirs].tolist()
    assert both["num_patients"].tolist() == both["num_patients_metrics"].tolist()
    excludes_zero = (both["ci_low"] > 0) | (both["ci_high"] < 0)
    assert excludes_zero[both["p_value"] < 0.05].all()


def test_a_twin_has_the_same_label_budget():
    images = cohort()
    frames = [
        study(images, label_fraction=0.1), study(images, methods=("full",), seeds=(0, 1), label_fraction=0.5),
        study(images, methods=("full",), seeds=(0, 1), shots=5), study(images),
    ]  # fmt: skip
    made = evaluate(contract(pd.concat(frames)), EvaluateParams(seed=1, resamples=100), SOURCE, TARGET)
    assert {c.family.name for c in made.comparisons} == {"resnet-full", "resnet-full-labels10"}
    assert all(c.family.setting == c.twin.setting for c in made.comparisons)
    assert "resnet-full-shots5" in set(made.metrics["run"])


def test_one_seed_has_a_difference_and_no_verdict():
    made = evaluate(contract(study(seeds=(0,))), EvaluateParams(seed=1, resamples=100), SOURCE, TARGET)
    rows = judge(made.comparisons, {}, PARAMS)
    assert len(rows)
    assert rows["difference"].notna().all()
    assert rows["verdict"].isna().all()
    assert rows["note"].str.contains("a single training on one side").all()


# --- error rates ---------------------------------------------------------------------------------------------


def shift_to(area, seed_sd=SEED_SD):
    """A shift of scores after which the AUROC, expected over trainings, is ``area`` instead of AREA.

    A training's shift is normal with SD s = seed_sd / SLOPE, so that E Phi((m + shift) / sqrt 2) is
    Phi(m / sqrt(2 + s^2)).
    """
    return np.sqrt(2 + (seed_sd / SLOPE) ** 2) * (norm.ppf(area) - norm.ppf(AREA))


def expected(seed_sd):
    """The area that ``binormal`` is to be given for AREA to be the one expected over trainings."""
    return norm.cdf(norm.ppf(AREA) * np.sqrt(1 + (seed_sd / SLOPE) ** 2 / 2))


def simulate(rng, gains=(0.0,), patients=80, seeds=3, seed_sd=SEED_SD, resamples=300, places=1):
    """A study: differences of methods of true AUROC AREA + gain from a twin of AREA, at each place.

    Patients differ between places; a training's luck is the same in all.
    """
    means = [0.0, *(shift_to(AREA + gain, seed_sd) for gain in gains)]
    shifts = np.repeat(means, seeds) + rng.normal(scale=seed_sd / SLOPE, size=seeds * len(means))
    made = []
    for _ in range(places):
        codes, labels, scores = binormal(rng, patients, expected(seed_sd), shared=0.85, shifts=shifts)
        counts = counts_of(rng, patients, resamples)
        runs = [auroc_interval(codes, labels, part, counts) for part in np.split(scores, len(means))]
        made.append([difference(one, runs[0]) for one in runs[1:]])
    return made


def patients_only(estimate):
    """The common mistake: the seeds at hand are taken for the method itself."""
    return Estimate(estimate.value, estimate.draws, (SeedPart(0.0, 0.0, 3),), estimate.patients)


def verdict_of(estimate, margin=0.05):
    error = standard_error(estimate)
    return decide(estimate.value, p_different(estimate.value, error), p_equivalent(estimate.value, error, margin), 0.05)


def verdicts_of_study(estimates, margin=0.05):
    """As ``judge`` gives them, for all methods and places."""
    made = [
        comparison(one.value, family=family(f"method{number}"), group=group, error=NAN, num_runs=3)
        for group, of_place in zip(("source", "target"), estimates, strict=False)
        for number, one in enumerate(of_place)
    ]
    errors = [standard_error(one) for of_place in estimates for one in of_place]
    told = [Comparison(**{**vars(c), "error": error}) for c, error in zip(made, errors, strict=True)]
    return judge(told, {}, VerdictParams(margin=margin))["verdict"].tolist()


def clopper_pearson(hits, number, confidence=0.95):
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, hits, number - hits + 1) if hits else 0.0
    high = beta.ppf(1 - tail, hits + 1, number - hits) if hits < number else 1.0
    return float(low), float(high)


def told(words, hits, number):
    low, high = clopper_pearson(hits, number)
    print(f"{words}: {hits}/{number} = {hits / number:.4f} (95 % Clopper-Pearson {low:.4f} to {high:.4f})")


def is_at_most(hits, number, limit=0.05):
    """Whether a rate of at most ``limit`` is compatible; one in 2,000 runs of the test fails by chance at the limit."""
    return clopper_pearson(hits, number, 0.999)[0] <= limit


def test_clopper_pearson_by_hand():
    """0 of n: the upper limit is 1 - (alpha / 2)^(1/n)."""
    assert clopper_pearson(0, 20) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert clopper_pearson(20, 20) == pytest.approx((0.025 ** (1 / 20), 1.0))


def test_the_simulation_has_the_differences_that_it_claims():
    rng = np.random.default_rng(SHORT_SEED)
    values = [simulate(rng, gains=(0.0, 0.05), patients=400, resamples=2)[0] for _ in range(150)]
    means = np.mean([[one.value for one in made] for made in values], axis=0)
    assert means == pytest.approx([0.0, 0.05], abs=4 * np.sqrt(2 / 3) * SEED_SD / np.sqrt(150))


def test_no_difference_is_called_one_no_more_than_one_time_in_twenty():
    rng = np.random.default_rng(SHORT_SEED)
    number, false, naive = 200, 0, 0
    for _ in range(number):
        one = simulate(rng, resamples=150)[0][0]
        false += verdict_of(one) in ("helps", "harms")
        naive += verdict_of(patients_only(one)) in ("helps", "harms")
    told("false helps or harms", false, number)
    told("false helps or harms, patients only", naive, number)
    assert is_at_most(false, number)
    assert not is_at_most(naive, number)


def test_a_difference_of_the_margin_is_called_none_no_more_than_one_time_in_twenty():
    rng = np.random.default_rng(SHORT_SEED)
    number, false, naive, right = 150, 0, 0, 0
    settings = {"patients": 250, "seed_sd": 0.02, "resamples": 150}
    for _ in range(number):
        margin, none = simulate(rng, gains=(0.1, 0.0), **settings)[0]
        false += verdict_of(margin, 0.1) == "equivalent"
        naive += verdict_of(patients_only(margin), 0.1) == "equivalent"
        right += verdict_of(none, 0.1) == "equivalent"
    told("false equivalent at a difference of the margin", false, number)
    told("the same, patients only", naive, number)
    told("right equivalent at no difference", right, number)
    assert is_at_most(false, number)
    assert not is_at_most(naive, number)
    assert right > number / 2


@pytest.mark.slow
def test_error_rates_and_power_with_fresh_seeds():
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)

    number = 3000
    ones = [simulate(rng)[0][0] for _ in range(number)]
    false = sum(verdict_of(one) in ("helps", "harms") for one in ones)
    naive = sum(verdict_of(patients_only(one)) in ("helps", "harms") for one in ones)
    told("false helps or harms, 80 patients, 3 seeds of SD 0.033", false, number)
    told("the same, patients only", naive, number)
    assert is_at_most(false, number)
    assert not is_at_most(naive, number)

    number = 1000
    any_false = sum(
        not {"helps", "harms"}.isdisjoint(verdicts_of_study(simulate(rng, gains=(0.0,) * 3, places=2)))
        for _ in range(number)
    )
    told("any false helps or harms, 3 methods at 2 places after Holm", any_false, number)
    assert is_at_most(any_false, number)

    number = 400
    any_false = sum(
        not {"helps", "harms"}.isdisjoint(
            verdicts_of_study(simulate(rng, gains=(0.0,) * 6, places=2, patients=300, resamples=100))
        )
        for _ in range(number)
    )
    told("any false helps or harms, 6 methods at 2 places of 300 patients after Holm", any_false, number)
    assert is_at_most(any_false, number)

    number = 1000
    for gain, patients in ((0.1, 80), (0.1, 300), (0.15, 300)):
        found = sum(verdict_of(simulate(rng, gains=(gain,), patients=patients)[0][0]) == "helps" for _ in range(number))
        told(f"power: helps at a true difference of {gain}, {patients} patients, 3 seeds of SD 0.033", found, number)

    for margin, seed_sd in ((0.05, 0.01), (0.1, 0.02)):
        settings = {"patients": 400, "seed_sd": seed_sd, "resamples": 200}
        pairs = [simulate(rng, gains=(margin, 0.0), **settings)[0] for _ in range(number)]
        false = sum(verdict_of(at_margin, margin) == "equivalent" for at_margin, _ in pairs)
        naive = sum(verdict_of(patients_only(at_margin), margin) == "equivalent" for at_margin, _ in pairs)
        right = sum(verdict_of(none, margin) == "equivalent" for _, none in pairs)
        told(f"false equivalent at a difference of the margin {margin}, 400 patients, SD {seed_sd}", false, number)
        told("the same, patients only", naive, number)
        told("power: equivalent at no difference", right, number)
        assert is_at_most(false, number)
        assert not is_at_most(naive, number)
