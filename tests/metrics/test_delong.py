"""DeLong's and Obuchowski's variances against published figures, their definition in double loops, and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm, t
from sklearn.metrics import roc_auc_score

from pipeline.metrics.delong import clustered_delong, delong_interval, placements


def hanley():
    """Ratings of 58 normal and 51 abnormal CT images (Hanley & McNeil 1982, Radiology 143:29, table I)."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    return np.repeat([0, 1], [58, 51]), np.repeat(np.tile(np.arange(5.0), 2), normal + abnormal)


def test_published_example():
    """Stata's manual ([R] roctab) gives for these data, by DeLong's method: 0.8932, SE 0.0307, 0.83295 to 0.95339."""
    labels, scores = hanley()
    areas = clustered_delong(labels, scores[None], np.arange(109))
    se = np.sqrt(areas.covariance[0, 0])
    assert areas.values[0] == pytest.approx(0.8932, abs=5e-5)
    assert se == pytest.approx(0.0307, abs=5e-5)
    limits = areas.values[0] + se * norm.ppf([0.025, 0.975])
    assert limits == pytest.approx([0.83295, 0.95339], abs=5e-6)


def by_definition(labels, one, other, patients):
    """Obuchowski's covariance of two AUROCs, from the kernel of every pair."""
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positives), len(negatives)

    def parts(scores):
        kernel = np.array(
            [[1.0 * (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for j in negatives] for i in positives]
        )
        area = kernel.mean()
        of_positives, of_negatives = {}, {}
        for row, i in zip(kernel, positives, strict=True):
            of_positives[patients[i]] = of_positives.get(patients[i], 0.0) + row.mean() - area
        for column, j in zip(kernel.T, negatives, strict=True):
            of_negatives[patients[j]] = of_negatives.get(patients[j], 0.0) + column.mean() - area
        return of_positives, of_negatives

    (p1, n1), (p2, n2) = parts(one), parts(other)
    everyone = set(patients)
    s10 = sum(p1[k] * p2[k] for k in p1) * len(p1) / (len(p1) - 1) / m
    s01 = sum(n1[k] * n2[k] for k in n1) * len(n1) / (len(n1) - 1) / n
    factor = len(everyone) / (len(everyone) - 1)
    s11 = sum(p1.get(k, 0.0) * n2.get(k, 0.0) for k in everyone) * factor
    s11_other = sum(p2.get(k, 0.0) * n1.get(k, 0.0) for k in everyone) * factor
    return s10 / m + s01 / n + (s11 + s11_other) / (m * n)


cases = st.integers(8, 24).flatmap(
    lambda n: st.tuples(
        arrays(np.int8, n, elements=st.integers(0, 1)),
        arrays(np.int64, (2, n), elements=st.integers(-4, 4)).map(lambda scores: scores / 2),
        arrays(np.int64, n, elements=st.integers(3, 12)),
    )
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases)
def test_as_defined(case):
    labels, scores, patients = case
    areas = clustered_delong(labels, scores, patients)
    diseased, healthy = (len(set(patients[labels == label])) for label in (1, 0))
    assert areas.patients == min(diseased, healthy)
    if areas.patients == 0:
        assert np.isnan(areas.values).all()
        return
    assert areas.values == pytest.approx([roc_auc_score(labels, row) for row in scores], abs=1e-12)
    if areas.patients == 1:
        assert np.isnan(areas.covariance).all()
        return
    expected = [[by_definition(labels, one, other, patients) for other in scores] for one in scores]
    assert areas.covariance == pytest.approx(np.array(expected), abs=1e-12)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(cases)
def test_an_image_twice_in_its_patient_tells_nothing_new(case):
    labels, scores, patients = case
    once = clustered_delong(labels, scores, patients)
    twice = clustered_delong(np.tile(labels, 2), np.tile(scores, (1, 2)), np.tile(patients, 2))
    np.testing.assert_allclose(twice.values, once.values, atol=1e-12)
    np.testing.assert_allclose(twice.covariance, once.covariance, atol=1e-12)


def test_placements_are_means_of_the_kernel():
    labels = np.array([1, 0, 0, 1, 0])
    made = placements(labels, np.array([[3.0, 1.0, 3.0, 2.0, 5.0]]))[0]
    assert made.tolist() == pytest.approx([1.5 / 3, 1.0, 0.25 + 0.0, 1 / 3, 0.0])


def test_interval_of_an_area_and_of_a_difference():
    rng = np.random.default_rng(0)
    labels = (rng.random(60) < 0.4).astype(np.int8)
    scores = labels + rng.normal(size=(2, 60))
    areas = clustered_delong(labels, scores, np.arange(60))
    value, low, high = delong_interval(areas, np.array([0.0, 1.0]), "logit")
    assert value == areas.values[1]
    half = t.ppf(0.975, areas.patients - 1) * np.sqrt(areas.covariance[1, 1]) / (value * (1 - value))
    assert np.log([low / (1 - low), high / (1 - high)]) == pytest.approx(
        np.log(value / (1 - value)) + np.array([-half, half])
    )
    value, low, high = delong_interval(areas, np.array([1.0, -1.0]), "identity")
    assert value == pytest.approx(areas.values[0] - areas.values[1])
    variance = areas.covariance[0, 0] + areas.covariance[1, 1] - 2 * areas.covariance[0, 1]
    assert high - value == pytest.approx(t.ppf(0.975, areas.patients - 1) * np.sqrt(variance))
    assert value - low == pytest.approx(high - value)


def test_no_limits_where_there_is_no_variance():
    labels = np.repeat([0, 1], 5)
    areas = clustered_delong(labels, labels[None] * 1.0, np.arange(10))
    assert delong_interval(areas, np.ones(1), "logit")[0] == 1.0
    assert np.isnan(delong_interval(areas, np.ones(1), "logit")[1:]).all()
    single = clustered_delong(labels, np.arange(10.0)[None], np.zeros(10, dtype=int))
    assert np.isnan(delong_interval(single, np.ones(1), "logit")[1:]).all()


def test_mean_variance_over_cohorts_is_that_of_the_areas():
    """Clustered, with patients who have images of both labels; images taken as independent it is far too small."""
    rng = np.random.default_rng(3)
    areas, clustered, independent = [], [], []
    for _ in range(400):
        codes = np.repeat(np.arange(60), rng.integers(1, 7, 60))
        labels = (rng.random(len(codes)) < np.where(rng.random(60) < 0.4, 0.7, 0.1)[codes]).astype(np.int8)
        scores = 1.2 * labels + rng.normal(size=60)[codes] + 0.5 * rng.normal(size=len(codes))
        made = clustered_delong(labels, scores[None], codes)
        areas.append(made.values[0])
        clustered.append(made.covariance[0, 0])
        independent.append(clustered_delong(labels, scores[None], np.arange(len(codes))).covariance[0, 0])
    truth = np.var(areas)
    assert np.mean(clustered) == pytest.approx(truth, rel=0.15)
    assert np.mean(independent) < 0.7 * truth
