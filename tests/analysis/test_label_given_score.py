import numpy as np
import pytest
from analysis.shifted import MODEL, pair
from scipy.stats import binom

from pipeline.analysis.label_given_score import _line, line_change


def change(rng, kind, concept=0.0, sizes=(5, 120, 120)):
    own = pair(rng, kind, sizes, concept, with_labels=True)[1][MODEL]
    home = (own.logits, own.labels.astype(float), own.patients)
    return line_change(*home, own.target_logits, own.target_labels, own.target_patients)


def test_line_with_one_image_a_patient_has_the_textbook_errors():
    """Where the model holds, the sandwich is the inverse of Fisher's information."""
    rng = np.random.default_rng(0)
    s = rng.normal(size=20_000)
    y = (rng.random(20_000) < 1 / (1 + np.exp(-(0.5 + 1.2 * s)))).astype(float)
    beta, covariance = _line(s, y, np.arange(20_000))
    assert beta == pytest.approx([0.5, 1.2], abs=0.1)
    p = 1 / (1 + np.exp(-(beta[0] + beta[1] * s)))
    design = np.stack([np.ones_like(s), s], 1)
    assert covariance == pytest.approx(np.linalg.inv((design.T * (p * (1 - p))) @ design), rel=0.05)
    # Every image twice under its patient's name: the same errors, not smaller ones.
    again = _line(np.repeat(s, 2), np.repeat(y, 2), np.repeat(np.arange(20_000), 2))
    assert again[0] == pytest.approx(beta, abs=1e-6)
    assert again[1] == pytest.approx(covariance, rel=1e-4)


def test_a_changed_prevalence_moves_the_constant_and_a_changed_concept_the_slope():
    rng, repeats = np.random.default_rng(1), 40
    rejected = {}
    for name, kind, concept in (("none", "none", 0.0), ("label", "label", 0.0), ("concept", "none", 0.6)):
        found = [change(rng, kind, concept) for _ in range(repeats)]
        made = [one for one in found if not one.note]
        assert len(made) > 0.9 * repeats
        rejected[name] = [np.mean([getattr(one, part)[1] <= 0.05 for one in made]) for part in ("both", "slope")]
        if name == "concept":
            assert np.mean([one.change for one in made]) < -0.5
    print(rejected)
    limit = binom.ppf(0.999, repeats, 0.05) / repeats
    assert max(rejected["none"]) <= limit
    assert rejected["label"][0] > 0.5
    assert rejected["label"][1] <= limit
    assert min(rejected["concept"]) > 0.8


def test_unit_of_the_logit_and_null_labels():
    own = pair(np.random.default_rng(2), "none", (5, 120, 120), with_labels=True)[1][MODEL]
    labels, target = own.labels.astype(float), own.target_labels.copy()
    target[::5] = np.nan
    sides = labels, own.patients, own.target_patients
    one = line_change(own.logits, sides[0], sides[1], own.target_logits, target, sides[2])
    ten = line_change(10 * own.logits, sides[0], sides[1], 10 * own.target_logits, target, sides[2])
    assert ten.change == pytest.approx(one.change / 10, rel=1e-4)
    assert ten.both == pytest.approx(one.both, rel=1e-3)
    left = ~np.isnan(target)
    gone = line_change(own.logits, sides[0], sides[1], own.target_logits[left], target[left], sides[2][left])
    assert gone == one


def test_undefined_says_why():
    rng = np.random.default_rng(0)
    assert "10 patients of each label" in change(rng, "none", sizes=(5, 120, 8)).note
    s, names = np.linspace(-1, 1, 60), np.arange(60)
    found = line_change(s, (s > 0).astype(float), names, s, rng.integers(0, 2, 60).astype(float), names)
    assert "separate" in found.note
    assert np.isnan(found.both).all()
