import numpy as np
import pytest
from analysis.shifted import MODEL, Hospital, images, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from pipeline.analysis.label_shift import (
    PrevalenceEstimate,
    Scores,
    calibrated,
    compare_prevalence,
    estimate_prevalence,
    matched_rows,
)


def scores(rng, home=0.4, away=0.75, patients=(80, 60)):
    _, labels, names, logits = images(rng, patients[0], Hospital(home))
    _, _, target_names, target_logits = images(rng, patients[1], Hospital(away))
    return Scores(logits, labels, names, target_logits, target_names)


def test_estimate_is_the_published_formula():
    """BBSE with two classes: q = (mean_target - mean_0) / (mean_1 - mean_0) of the calibrated probability."""
    own = scores(np.random.default_rng(0))
    found = estimate_prevalence(own, resamples=50, seed=1)
    platt = LogisticRegression(C=np.inf).fit(own.logits[:, None], own.labels)
    s, s_target = (platt.predict_proba(x[:, None])[:, 1] for x in (own.logits, own.target_logits))
    low, high = s[own.labels == 0].mean(), s[own.labels == 1].mean()
    assert found.value == pytest.approx((s_target.mean() - low) / (high - low), abs=0.01)
    assert found.source == own.labels.mean()


def test_estimate_is_exact_on_a_mixture_of_the_source_itself():
    """The target is the source's positives three times and its negatives once."""
    rng = np.random.default_rng(0)
    _, labels, names, logits = images(rng, 60, Hospital(0.5))
    rows = np.concatenate([np.repeat(np.flatnonzero(labels == 1), 3), np.flatnonzero(labels == 0)])
    found = estimate_prevalence(Scores(logits, labels, names, logits[rows], names[rows]), resamples=50, seed=1)
    assert found.value == pytest.approx(labels[rows].mean(), abs=1e-9)


def test_calibration_ignores_the_logits_unit():
    rng = np.random.default_rng(0)
    _, labels, _, logits = images(rng, 300, Hospital(0.4))
    plain, other = calibrated(logits, labels, logits), calibrated(3 * logits - 7, labels, 3 * logits - 7)
    assert plain == pytest.approx(other, abs=1e-6)
    assert np.mean(1 / (1 + np.exp(-plain))) == pytest.approx(labels.mean(), abs=1e-3)
    assert np.isfinite(calibrated(np.zeros(10), np.arange(10) % 2, np.zeros(3))).all()


def fieller(mean_target, mean_positive, mean_negative, errors, patients=10_001):
    means = np.array([mean_target, mean_positive, mean_negative])
    return PrevalenceEstimate(0.5, means, np.diag(np.square(errors)), patients)


def test_confidence_set():
    # The classes' means known exactly: q = (0.5 - 0.2) / 0.6 with standard error 0.03 / 0.6.
    low, high = fieller(0.5, 0.8, 0.2, (0.03, 1e-9, 1e-9)).confidence_set(0.95)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=2e-3)
    # Few patients: Student's t.
    few = fieller(0.5, 0.8, 0.2, (0.03, 1e-9, 1e-9), patients=4).confidence_set(0.95)
    assert few == pytest.approx((0.5 - 3.18 * 0.05, 0.5 + 3.18 * 0.05), abs=2e-3)
    # A model that cannot tell knows nothing, and a mean beyond both classes' fits no prevalence.
    assert fieller(0.5, 0.51, 0.5, (0.03, 0.03, 0.03)).confidence_set(0.95) == (0.0, 1.0)
    assert np.isnan(fieller(0.95, 0.8, 0.2, (0.01, 0.01, 0.01)).confidence_set(0.95)).all()
    assert np.isnan(fieller(0.5, 0.2, 0.8, (0.1, 0.1, 0.1)).value)
    assert fieller(0.95, 0.8, 0.2, (0.1, 0.1, 0.1)).value == 1.0


def test_coverage_and_false_alarms_with_clustered_images():
    rng, repeats, covered, alarms, seen = np.random.default_rng(4), 70, 0, 0, 0
    for _ in range(repeats):
        low, high = estimate_prevalence(scores(rng), resamples=200, seed=1).confidence_set(0.95)
        covered += low <= 0.75 <= high
        seed = int(rng.integers(2**31))
        alarms += compare_prevalence(scores(rng, away=0.4), permutations=99, seed=seed)[1] <= 0.05
        seen += compare_prevalence(scores(rng), permutations=99, seed=seed)[1] <= 0.05
    print(f"covered {covered / repeats:.3f}, false alarms {alarms / repeats:.3f}, power {seen / repeats:.3f}")
    assert covered >= binom.ppf(0.001, repeats, 0.95)
    assert alarms <= binom.ppf(0.999, repeats, 0.05)
    assert seen > 0.85 * repeats


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 60), st.floats(0, 1))
def test_matched_rows_have_the_prevalence_and_are_as_many_as_there_can_be(seed, num, prevalence):
    rng = np.random.default_rng(seed)
    labels, patients = rng.integers(0, 2, num), rng.integers(0, 8, num)
    rows = matched_rows(labels, patients, prevalence, seed)
    assert len(set(rows)) == len(rows)
    assert (rows == np.sort(rows)).all()
    positives, total = labels[rows].sum(), len(rows)
    assert abs(positives - prevalence * total) <= 1.0
    # Nothing could be added without moving away: one class is used up, to rounding.
    left = [np.sum(labels == label) - np.sum(labels[rows] == label) for label in (0, 1)]
    assert min(left[0] if prevalence < 1 else num, left[1] if prevalence > 0 else num) <= 1


def test_matched_rows_move_whole_patients():
    patients = np.repeat(np.arange(40), 3)
    labels = np.repeat(np.arange(40) % 2, 3)
    rows = matched_rows(labels, patients, 0.25, 1)
    taken = np.bincount(patients[rows], minlength=40)
    assert ((taken > 0) & (taken < 3)).sum() <= 2


def test_refusal_names_what_is_missing():
    _, found, _ = pair(np.random.default_rng(0), "none")
    own = found[MODEL]
    assert own.refusal == ""
    none = Scores(own.logits, own.labels * 0, own.patients, own.target_logits[:3], own.target_patients[:3])
    assert "0 source patients with a positive image" in none.refusal
