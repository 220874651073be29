"""tolerance: the moderated variance against its own model, and the interval against Student's t."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from pipeline.metrics.tolerance import moderated, tolerance


def drawn(rng, prior, freedom, number=4000, centre=2.0):
    """Variances of Smyth's model: true ones scaled inverse chi-squared, seen ones chi-squared about them."""
    true = centre * prior / rng.chisquare(prior, number) if np.isfinite(prior) else np.full(number, centre)
    return true * rng.chisquare(freedom, number) / freedom


@pytest.mark.parametrize("freedom", [2.0, 4.0])
def test_the_prior_is_that_of_the_model_and_half_of_it_counts(freedom):
    variances = drawn(np.random.default_rng(1), 8.0, freedom)
    found, together = moderated(variances, np.full(len(variances), freedom), 1e9)
    prior = together[0] - freedom
    assert prior == pytest.approx(4.0, rel=0.2)
    centre = (found * together - freedom * variances) / prior
    assert centre == pytest.approx(np.full(len(centre), 2.0), rel=0.07)


def test_variances_that_scatter_by_chance_alone_become_one():
    variances = drawn(np.random.default_rng(2), np.inf, 2.0, number=60)
    found, together = moderated(variances, np.full(60, 2.0), 120.0)
    assert together[0] > 40
    assert np.ptp(found) < 0.15 * np.ptp(variances)


def test_no_variance_is_better_known_than_all_trainings_allow():
    variances = drawn(np.random.default_rng(3), np.inf, 2.0, number=40)
    _, together = moderated(variances, np.full(40, 2.0), 6.0)
    assert together.max() <= 6.0
    alone, freedom = moderated(variances, np.full(40, 2.0), 2.0)
    assert np.array_equal(alone, variances)
    assert (freedom == 2.0).all()


def test_two_variances_stay_as_they_are():
    given = np.array([1.0, 9.0]), np.array([2.0, 2.0])
    assert all(np.array_equal(a, b) for a, b in zip(moderated(*given, 4.0), given, strict=True))


def test_the_tolerance_is_that_of_two_means():
    made = tolerance(np.array([4.0]), np.array([2.0]), [3], [5], 0.05)
    assert made[0] == pytest.approx(student_t.ppf(0.975, 2) * 2 * np.sqrt(1 / 3 + 1 / 5))
