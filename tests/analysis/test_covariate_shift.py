import numpy as np
import pytest
from scipy.stats import binom

from pipeline.analysis.covariate_shift import TwoSamples
from pipeline.analysis.label_shift import PrevalenceEstimate
from pipeline.metrics.distance import mmd_test


def known(prevalence, error=0.02, patients=200):
    """An estimate whose score is the label itself, so that its mean is the prevalence."""
    return PrevalenceEstimate(0.4, np.array([prevalence, 1.0, 0.0]), np.diag([error**2, 1e-12, 1e-12]), patients)


def side(rng, num, prevalence, moved=0.0):
    labels = (rng.random(num) < prevalence).astype(float)
    x = rng.normal(size=(num, 3)) + moved
    x[:, 0] += 3 * labels
    return x, labels, np.array([f"p{index}" for index in range(num)])


def samples(rng, prevalence, moved=0.0):
    x, labels, patients = side(rng, 80, 0.4)
    y, _, target_patients = side(rng, 60, prevalence, moved)
    return TwoSamples.of(x, y, patients, target_patients, int(rng.integers(2**31))), labels


def test_plain_test_is_that_of_distance():
    rng = np.random.default_rng(0)
    x, _, patients = side(rng, 30, 0.4)
    y, _, others = side(rng, 20, 0.8)
    codes = {f"codes_{name}": np.unique(own, return_inverse=True)[1] for name, own in (("x", patients), ("y", others))}
    expected = mmd_test(x, y, permutations=99, seed=3, **codes)
    assert TwoSamples.of(x, y, patients, others, 3).test(99) == pytest.approx(expected)


def test_label_shift_is_explained_and_a_moved_scanner_is_not():
    rng, repeats, plain, kept, seen = np.random.default_rng(1), 25, 0, 0, 0
    for _ in range(repeats):
        own, labels = samples(rng, 0.75)
        plain += own.test(99)[1] <= 0.05
        kept += own.matched_test(labels, known(0.75), 0.001, 99)[1] > 0.05
        own, labels = samples(rng, 0.75, moved=1.0)
        seen += own.matched_test(labels, known(0.75), 0.001, 99)[1] <= 0.05
    assert plain > 0.85 * repeats
    assert kept >= binom.ppf(0.001, repeats, 0.95)
    assert seen > 0.85 * repeats
    # An estimate that allows for the target's 0.75 cannot reject, though most of what it allows for would.
    own, labels = samples(rng, 0.75)
    assert own.matched_test(labels, known(0.2), 0.001, 99)[1] < 0.05
    assert own.matched_test(labels, known(0.2, 0.4), 0.001, 99)[1] > 0.05
    # Matched to a prevalence that is not the target's, the difference of the labels is what is left.
    own, labels = samples(rng, 0.9)
    assert own.matched_test(labels, known(0.2), 0.001, 99)[1] < 0.05


def test_edges():
    own, labels = samples(np.random.default_rng(0), 0.5)
    nothing_fits = PrevalenceEstimate(0.4, np.array([0.99, 0.8, 0.2]), np.eye(3) * 1e-6, 50)
    statistic, p = own.matched_test(labels, nothing_fits, 0.001, 99)
    assert np.isnan(statistic)
    assert p == 0.001
    # Without a positive at home, a target of positives leaves no one to compare with: that cannot reject.
    assert own.matched_test(labels * 0, known(1.0, 1e-4), 0.001, 99)[1] == 1.0
    assert own.matched_test(np.full(80, np.nan), known(0.5), 0.001, 99)[1] == 1.0


def test_unannotated_rows_are_left_out():
    rng = np.random.default_rng(2)
    own, labels = samples(rng, 0.4)
    hidden = labels.copy()
    hidden[::2] = np.nan
    part = TwoSamples(
        own.kernel[np.ix_(*[np.r_[1:80:2, 80:140]] * 2)],
        own.rows[1::2],
        own.patients[1::2],
        own.target_patients,
        own.seed,
    )
    kept = part.matched_test(labels[1::2], known(0.4), 0.001, 99)
    assert own.matched_test(hidden, known(0.4), 0.001, 99) == pytest.approx(kept)
