"""label_shift and prevalence: the EM of Saerens as oracle, known prevalences, and what cannot be estimated."""

import numpy as np
import pytest
import simulated_logits as simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit

from pipeline.adaptation import label_shift, prevalence
from pipeline.adaptation.interface import Evidence, Scores
from pipeline.adaptation.prior import estimate
from pipeline.metrics.prevalence import maximum_likelihood, platt

PARAMS = label_shift.Params(base="scratch", resamples=100)


def saerens(probabilities, source, steps=20_000):
    """The EM iteration, eq. 2.9, word by word."""
    target = source
    for _ in range(steps):
        positive = target / source * probabilities
        negative = (1 - target) / (1 - source) * (1 - probabilities)
        target = np.mean(positive / (positive + negative))
    return target


@given(st.integers(0, 10_000), st.floats(0.1, 0.9), st.floats(0.15, 0.85))
@settings(max_examples=15, deadline=None)
def test_the_estimate_is_where_em_converges(seed, source, target):
    labels = np.random.default_rng(seed).random(200) < target
    logits = np.random.default_rng(seed + 1).normal(3.0 * (labels - 0.5), 1.0) * 3.0 + logit(source)
    assert maximum_likelihood(logits, source) == pytest.approx(saerens(expit(logits), source, 2000), abs=1e-6)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_any_logits_have_an_estimate_between_0_and_1(logits, source):
    found = maximum_likelihood(np.array(logits), source)
    assert np.isnan(found) or 0.0 <= found <= 1.0


def test_weights_count_images():
    logits = np.array([-2.0, 1.0, 3.0, -0.5])
    weights = np.array([1.0, 2.0, 0.0, 3.0])
    repeated = np.repeat(logits, weights.astype(int))
    assert maximum_likelihood(logits, 0.4, weights) == pytest.approx(maximum_likelihood(repeated, 0.4), abs=1e-10)


def test_a_maximum_at_the_border_and_none_at_all():
    assert maximum_likelihood(np.array([-3.0, -2.0]), 0.5) == 0.0
    assert maximum_likelihood(np.array([3.0, 2.0]), 0.5) == 1.0
    assert np.isnan(maximum_likelihood(np.full(3, logit(0.3)), 0.3))
    assert np.isnan(maximum_likelihood(np.empty(0), 0.3))


def test_platt_against_a_general_optimiser():
    home = simulated.scores(0.3, 60, 5, slope=2.0, intercept=0.7, home=0.3)
    weights = np.random.default_rng(0).integers(0, 3, 120).astype(float)
    positives, negatives = weights @ home.labels, weights @ (1 - home.labels)
    wanted = np.where(home.labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(at):
        line = at[0] * home.logits + at[1]
        return weights @ (np.logaddexp(0, line) - wanted * line)

    best = minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-8})
    slope, intercept, mean = platt(home.logits, home.labels, weights)
    assert (slope, intercept) == pytest.approx(best.x, abs=1e-4)
    assert mean == pytest.approx(weights @ expit(slope * home.logits + intercept) / weights.sum(), abs=1e-6)


def test_platt_is_finite_without_overlap():
    slope, intercept, _ = platt(np.array([-3.0, -1.0, 1.0, 4.0]), np.array([0.0, 0, 1, 1]), np.ones(4))
    assert 0 < slope < 10
    assert abs(intercept) < 10


@pytest.mark.parametrize(("home", "away"), [(0.5, 0.1), (0.2, 0.6), (0.45, 0.45)])
def test_a_simulated_prevalence_is_recovered_and_log_loss_improves(home, away):
    """Logits that are miscalibrated at home too."""
    evidence, truth = simulated.evidence(home, away, 1000, slope=0.5, intercept=0.4)
    found = label_shift.recalibrate(evidence, PARAMS)
    assert found.decision == "applied"
    assert found.estimated_prevalence == pytest.approx(truth.mean(), abs=0.04)
    assert found.ci_low < truth.mean() < found.ci_high
    assert found.ci_high - found.ci_low < 0.2
    corrected = found.slope * evidence.target.logits + found.intercept
    ideal = evidence.target.logits * 0.5 + 0.4 + logit(away) - logit(home)
    before, after, least = (simulated.log_loss(x, truth) for x in (evidence.target.logits, corrected, ideal))
    assert after < least + 0.01
    assert after < before - 0.005


def test_no_change_is_not_taken_for_one():
    found = estimate(simulated.evidence(0.4, 0.4, 300, seed=3)[0], 100, 1)
    assert found.change[0] < 0 < found.change[1]
    shifted = estimate(simulated.evidence(0.5, 0.1, 300, seed=3)[0], 100, 1)
    assert shifted.change[1] < -0.2


@pytest.mark.slow
def test_intervals_cover_the_prevalence():
    """Of the population; clustered images; both sides drawn. Naive resampling of images would be near 83 %."""
    hits = [
        low < 0.2 < high
        for seed in range(300)
        for low, high in [estimate(simulated.evidence(0.5, 0.2, 60, seed=seed)[0], 200, seed).interval]
    ]
    assert 0.90 < np.mean(hits) < 0.99


def test_patients_not_images_are_resampled():
    """Ten copies of each image carry no more: the interval stays, and would shrink to a third by images."""
    evidence, _ = simulated.evidence(0.5, 0.3, 60, images=1)

    def repeated(scores):
        return Scores(*(np.repeat(part, 10) for part in (scores.logits, scores.labels, scores.patients)))

    copies = Evidence("away", "opacity", repeated(evidence.source), repeated(evidence.target))
    widths = [np.diff(estimate(e, 200, 1).interval)[0] for e in (evidence, copies)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def with_source(evidence, **changes):
    return Evidence(evidence.site, evidence.finding, Scores(**{**vars(evidence.source), **changes}), evidence.target)


def test_what_cannot_be_estimated_is_refused_with_the_reason():
    evidence, _ = simulated.evidence(patients=30)
    one_class = with_source(evidence, labels=np.ones(60))
    assert "60 positive of 60" in label_shift.recalibrate(one_class, PARAMS).note
    unknown = with_source(evidence, labels=np.full(60, np.nan))
    assert "0 positive of 0" in label_shift.recalibrate(unknown, PARAMS).note
    upside_down = with_source(evidence, logits=-evidence.source.logits)
    assert "do not rise" in label_shift.recalibrate(upside_down, PARAMS).note
    constant = with_source(evidence, logits=np.zeros(60))
    assert "do not rise" in label_shift.recalibrate(constant, PARAMS).note
    for each in (one_class, unknown, upside_down, constant):
        found = label_shift.recalibrate(each, PARAMS)
        assert found.decision == "refused"
        assert np.isnan([found.slope, found.intercept, found.estimated_prevalence]).all()


def test_three_images_of_one_sort_have_no_finite_correction():
    evidence, _ = simulated.evidence(patients=100)
    three = Scores(np.array([-4.0, -5.0, -3.0]), np.full(3, np.nan), np.array(["a", "b", "c"]))
    found = label_shift.recalibrate(Evidence("away", "opacity", evidence.source, three), PARAMS)
    assert (found.decision, found.estimated_prevalence) == ("refused", 0.0)
    assert "highest at a prevalence of 0" in found.note
    assert prevalence.recalibrate(
        Evidence("away", "opacity", evidence.source, three), prevalence.Params(base="scratch", resamples=100)
    ).decision == "refused"  # fmt: skip


def test_the_same_seed_gives_the_same_interval():
    evidence, _ = simulated.evidence(patients=40)
    assert estimate(evidence, 100, 1) == estimate(evidence, 100, 1)
    assert estimate(evidence, 100, 1).interval != estimate(evidence, 100, 2).interval


def test_a_stated_prevalence_is_the_mean_probability_afterwards():
    evidence, truth = simulated.evidence(0.5, 0.1, 500)
    stated = prevalence.Params(base="scratch", stated={"away": {"opacity": 0.1}})
    found = prevalence.recalibrate(evidence, stated)
    corrected = evidence.target.logits + found.intercept
    assert found.slope == 1.0
    assert np.mean(expit(corrected)) == pytest.approx(0.1, abs=1e-9)
    assert simulated.log_loss(corrected, truth) < simulated.log_loss(evidence.target.logits, truth) - 0.05
    assert "stated" in found.note
    assert np.isnan(found.estimated_prevalence)  # nothing was estimated


def test_where_none_is_stated_it_is_estimated():
    evidence, truth = simulated.evidence(0.5, 0.15, 800)
    other = prevalence.Params(base="scratch", resamples=100, stated={"elsewhere": {"opacity": 0.9}})
    found = prevalence.recalibrate(evidence, other)
    assert found.estimated_prevalence == pytest.approx(truth.mean(), abs=0.04)
    assert np.mean(expit(evidence.target.logits + found.intercept)) == pytest.approx(found.estimated_prevalence)
