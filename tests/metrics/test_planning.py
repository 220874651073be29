"""The planner against hand computation and simulated cohorts, and that its number is the least."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import norm, t

from pipeline.metrics.binary import sensitivity_at
from pipeline.metrics.delong import clustered_delong, delong_interval
from pipeline.metrics.intervals import bootstrap, interval, over_seeds
from pipeline.metrics.planning import MOST_PATIENTS, Cohort, auroc_width, patients_needed, sensitivity_width

SINGLE = Cohort(0.5, 1, 0.0)


def test_variance_is_that_of_normal_scores():
    """By the mean of the kernel's products over simulated pairs: 51 diseased and 58 others, AUROC 0.893."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2_000_000)) + np.sqrt(2) * norm.ppf(0.893), rng.normal(size=(2, 2_000_000))
    both = np.mean((x[0] > y[0]) & (x[1] > y[0]))
    variance = (0.893 * 0.107 + (51 + 58 - 2) * (both - 0.893**2)) / (51 * 58)
    half = t.ppf(0.975, 50) * np.sqrt(variance) / (0.893 * 0.107)
    low, high = expit(logit(0.893) + np.array([-half, half]))
    assert auroc_width(109, 0.893, Cohort(51 / 109, 1, 0.0)) == pytest.approx(high - low, rel=0.01)


def test_sensitivity_by_hand():
    half = t.ppf(0.975, 29) * np.sqrt(0.8 * 0.2 / 29) / 0.16
    low, high = expit(np.log(4) + np.array([-half, half]))
    assert sensitivity_width(60, 0.8, SINGLE) == pytest.approx(high - low)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.floats(0.02, 0.98), st.floats(0.55, 0.97), st.floats(1, 8), st.floats(0, 1), st.floats(0.03, 0.6),
    st.sampled_from([auroc_width, sensitivity_width]),
)  # fmt: skip
def test_the_number_is_enough_and_one_fewer_is_not(prevalence, value, images, correlation, wanted, width_of):
    cohort = Cohort(prevalence, images, correlation)
    needed = patients_needed(lambda n: width_of(n, value, cohort), wanted)
    assert width_of(needed, value, cohort) <= wanted
    assert not width_of(needed - 1, value, cohort) <= wanted
    # A patient's second image never counts as much as another patient.
    apart = patients_needed(lambda n: width_of(n, value, Cohort(prevalence, 1, 0.0)), wanted)
    assert apart / images - 2 / min(prevalence, 1 - prevalence) <= needed <= apart + 2 / min(prevalence, 1 - prevalence)


def test_too_few_and_too_narrow():
    assert np.isnan(auroc_width(2, 0.8, SINGLE))
    assert np.isnan(sensitivity_width(2, 0.8, SINGLE))
    assert patients_needed(lambda n: auroc_width(n, 0.8, SINGLE), 1e-9) is None
    assert auroc_width(MOST_PATIENTS, 0.8, SINGLE) < 1e-3


@pytest.mark.parametrize(
    ("auroc", "prevalence", "images", "correlation"), [(0.8, 0.3, 3, 0.6), (0.9, 0.1, 1, 0.0), (0.7, 0.5, 6, 0.3)]
)
def test_simulated_cohorts_of_the_planned_size(auroc, prevalence, images, correlation):
    cohort, wanted = Cohort(prevalence, images, correlation), 0.12
    patients = patients_needed(lambda n: auroc_width(n, auroc, cohort), wanted)
    diseased = round(patients * prevalence)
    rng = np.random.default_rng(5)
    areas, sensitivities = [], []
    for _ in range(60):
        codes = np.repeat(np.arange(patients), images)
        labels = (codes < diseased).astype(np.int8)
        shared, own = rng.normal(size=patients)[codes], rng.normal(size=len(codes))
        scores = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
        scores += np.sqrt(2) * norm.ppf(auroc) * labels
        _, low, high = delong_interval(clustered_delong(labels, scores[None], codes), np.ones(1), "logit")
        areas.append(high - low)
        logits = scores - scores[labels == 1].mean()
        counts = rng.poisson(1.0, (patients, 200)).astype(np.uint8)
        value = sensitivity_at(labels, logits, np.ones((1, len(codes))), 0.5)
        draws = bootstrap(
            lambda weights, logits=logits, labels=labels: sensitivity_at(labels, logits, weights, 0.5), counts, codes
        )
        made = interval(over_seeds(value, draws[None], diseased), "logit")
        sensitivities.append(made.high - made.low)
    print(f"{patients} patients: AUROC {np.mean(areas):.3f} for {wanted}")
    assert np.mean(areas) == pytest.approx(wanted, rel=0.08)
    # Their own closed form, for exponential scores.
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    m, n = cohort.effective_images(diseased), cohort.effective_images(patients - diseased)
    variance = (auroc * (1 - auroc) + (m - 1) * (q1 - auroc**2) + (n - 1) * (q2 - auroc**2)) / (m * n)
    half = t.ppf(0.975, min(diseased, patients - diseased) - 1) * np.sqrt(variance) / (auroc * (1 - auroc))
    low, high = expit(logit(auroc) + np.array([-half, half]))
    print(f"by Hanley and McNeil's closed form {high - low:.3f}")
    assert high - low > np.mean(areas)
    # The correlation of calls is below that of scores: the plan is on the safe side.
    planned = sensitivity_width(patients, 0.5, cohort)
    assert 0.75 * planned < np.mean(sensitivities) < 1.05 * planned
