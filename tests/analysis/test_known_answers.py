"""What the simulator knows of mixtures at any strength: prevalence and attainable AUROC are covered.

The long versions measure coverage: `pytest tests/analysis/test_known_answers.py -n 0 -m slow -s`.
"""

import numpy as np
import pytest
from analysis.shifted import HOME, MODEL, Hospital, images, pair
from scipy.stats import binom, binomtest

from pipeline.analysis.label_shift import estimate_prevalence
from pipeline.analysis.probes import auroc_of
from pipeline.metrics import prevalence
from pipeline.metrics.binary import auroc


def drawn(rng, deaf=True):
    """A hospital with label shift and covariate shift, each at a strength by lot."""
    return Hospital(prevalence=float(rng.uniform(0.1, 0.9)), moved=float(rng.uniform(0, 1.2)), deaf=deaf)


def limits(rng, there, sizes):
    """95 % limits of the prevalence there by the mean score, and by maximum likelihood."""
    own = pair(rng, there, (5, *sizes))[1][MODEL]
    by_mean = estimate_prevalence(own, resamples=200, seed=1).confidence_set(0.95)
    likelihood = prevalence.estimate(
        own.logits, own.labels.astype(float), own.patients, own.target_logits, own.target_patients, 100, 1
    )
    return by_mean, likelihood.interval


def coverage(seed, pairs, sizes, there=drawn):
    rng, hits = np.random.default_rng(seed), np.zeros((2, pairs), dtype=bool)
    for number in range(pairs):
        hospital = there(rng)
        hits[:, number] = [low <= hospital.prevalence <= high for low, high in limits(rng, hospital, sizes)]
    for name, own in zip(("mean score", "likelihood"), hits, strict=True):
        found = binomtest(int(own.sum()), pairs).proportion_ci(0.95, "exact")
        print(f"{name}: covered {own.mean():.3f} ({found.low:.3f} to {found.high:.3f}) of {pairs}")
    return hits.mean(axis=1)


def test_prevalences_are_covered_whatever_else_moves_short():
    covered = coverage(5, 25, (80, 60))
    assert covered.min() >= binom.ppf(0.001, 25, 0.95) / 25


@pytest.mark.slow
def test_prevalences_are_covered_whatever_else_moves():
    """Mixtures of label shift with a covariate shift that the model does not hear; 500 unseen strengths."""
    covered = coverage(np.random.SeedSequence().entropy, 500, (120, 100))
    assert covered.min() > 0.92
    assert covered.max() < 0.99


@pytest.mark.slow
def test_a_covariate_shift_that_the_model_hears_is_taken_for_prevalence():
    """No estimate from scores alone can know: the limit of both, and the reason why label shift alone is tested."""
    covered = coverage(6, 200, (120, 100), lambda _: Hospital(prevalence=HOME, moved=2.0))
    assert covered.max() < 0.9


def auroc_coverage(seed, repeats, patients):
    rng, covered = np.random.default_rng(seed), 0
    for number in range(repeats):
        there = Hospital(
            prevalence=float(rng.uniform(0.2, 0.8)), moved=float(rng.uniform(0, 1.2)),
            concept=float(rng.choice([0.0, rng.uniform(0, 0.8)])),
        )  # fmt: skip
        _, labels, names, logits = images(rng, patients, there)
        found = auroc_of(labels, logits, names, resamples=200, seed=number)
        covered += found.low <= there.auroc <= found.high
    print(f"attainable AUROC covered {covered / repeats:.3f} of {repeats}")
    return covered / repeats


def test_the_attainable_auroc_is_what_a_large_hospital_shows():
    """Neither prevalence nor moved nuisance changes it; labels by lot do, as the formula says."""
    rng = np.random.default_rng(0)
    for there in (Hospital(), Hospital(0.8, 1.0), Hospital(0.3, 0.5, concept=0.4), Hospital(concept=1.0)):
        _, labels, _, logits = images(rng, 20_000, there)
        assert auroc(labels, logits, np.ones((1, len(labels))))[0] == pytest.approx(there.auroc, abs=0.008)
        assert labels.mean() == pytest.approx(there.positives, abs=0.015)
    assert Hospital(concept=1.0).auroc == pytest.approx(0.5)
    assert Hospital(0.8, 1.0).auroc == Hospital().auroc > 0.9


def test_the_attainable_auroc_is_covered_short():
    assert auroc_coverage(2, 80, 80) >= binom.ppf(0.001, 80, 0.95) / 80


@pytest.mark.slow
def test_the_attainable_auroc_is_covered():
    assert 0.93 < auroc_coverage(np.random.SeedSequence().entropy, 1000, 120) < 0.98
