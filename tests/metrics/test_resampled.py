"""The fast AUROC of resamples is the plain one's, to the last bit, whatever the ties, classes and counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from pipeline.metrics import resampled
from pipeline.metrics.binary import auroc
from pipeline.metrics.intervals import bootstrap, patient_counts
from pipeline.metrics.resampled import resampled_auroc


def plain(labels, logits, counts, codes):
    return bootstrap(lambda weights: auroc(labels, logits, weights), counts, codes)


cases = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        arrays(np.int8, n, elements=st.integers(0, 1)),
        arrays(np.int64, n, elements=st.integers(-6, 6)).map(lambda halves: halves / 2),
        arrays(np.int64, n, elements=st.integers(0, 9)),
        arrays(np.uint8, (10, 33), elements=st.integers(0, 4)),
    )
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases)
def test_equal_to_the_last_bit(case):
    labels, logits, codes, counts = case
    made = resampled_auroc(labels, logits, counts, codes)
    assert np.array_equal(made, plain(labels, logits, counts, codes), equal_nan=True)


def cohort(n, patients, prevalence, ties=False, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, patients, n)
    labels = (rng.random(patients) < prevalence)[codes].astype(np.int8)
    logits = rng.normal(size=n) + 1.2 * labels
    return labels, np.round(logits, 1) if ties else logits, codes


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("prevalence", [0.02, 0.5, 0.98])
def test_equal_where_sums_pass_what_the_small_types_hold(monkeypatch, prevalence, ties):
    """Over 2^16 in a row, and rows cut in many."""
    labels, logits, codes = cohort(20_000, 4000, prevalence, ties)
    counts = patient_counts([str(patient) for patient in range(4000)], 40, seed=1)
    counts[7] = 255
    counts[8:40, 3] = 200
    expected = plain(labels, logits, counts, codes)
    assert np.array_equal(resampled_auroc(labels, logits, counts, codes), expected)
    monkeypatch.setattr(resampled, "MOST_BETWEEN", 7)
    assert np.array_equal(resampled_auroc(labels, logits, counts, codes), expected)


def test_equal_to_scikit_learn_where_sums_pass_what_single_precision_holds():
    """Of pairs, 2^24 and far more; below, of images too."""
    labels, logits, codes = cohort(100_000, 33_000, 0.1)
    counts = patient_counts([str(patient) for patient in range(33_000)], 3, seed=1)
    made = resampled_auroc(labels, logits, counts, codes)
    for draw, value in zip(counts.T, made, strict=True):
        assert abs(value - roc_auc_score(labels, logits, sample_weight=draw[codes].astype(float))) < 1e-12
    heavy = np.random.default_rng(0).integers(200, 256, counts.shape).astype(np.uint8)
    assert np.array_equal(resampled_auroc(labels, logits, heavy, codes), plain(labels, logits, heavy, codes))


def test_one_class_is_nan():
    counts = np.ones((2, 3), dtype=np.uint8)
    for label in (0, 1):
        made = resampled_auroc(np.full(2, label, np.int8), np.arange(2.0), counts, np.arange(2))
        assert np.isnan(made).all()
