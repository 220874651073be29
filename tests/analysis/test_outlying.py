import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from pipeline.analysis.outlying import COVERAGES, abstention, energy, mahalanobis

OPTIONS = {"resamples": 200, "seed": 1}


def test_mahalanobis_by_solving_the_system():
    rng = np.random.default_rng(0)
    train = (rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4)) + 3).astype(np.float32)
    others = rng.normal(size=(5000, 4)).astype(np.float32)
    model = LedoitWolf().fit(train.astype(float))
    away = others - train.astype(float).mean(axis=0)
    expected = np.sqrt(np.sum(away * np.linalg.solve(model.covariance_, away.T).T, axis=1))
    assert mahalanobis(train, others) == pytest.approx(expected, rel=1e-6)
    assert len(mahalanobis(train, others[:0])) == 0


def test_energy_is_minus_the_log_sum_of_both_classes():
    z = np.array([-800.0, -1.0, 0.0, 3.0, 800.0])
    assert energy(z[1:4]) == pytest.approx(-np.log(np.exp(z[1:4] / 2) + np.exp(-z[1:4] / 2)))
    assert energy(z)[[0, 2, 4]] == pytest.approx([-400, -np.log(2), -400])


def test_abstention_keeps_the_nearest_whatever_their_labels():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2.0
    logits, far = rng.normal(size=40) + labels, rng.permutation(40).astype(float)
    patients = np.array([f"p{index}" for index in range(40)])
    labels[far == 3] = np.nan
    rows = abstention(far, logits, labels, patients, 0.5, **OPTIONS)
    assert [row["coverage"] for row in rows] == list(COVERAGES)
    # One of the nearest is not annotated: it counts for coverage, and judges nothing.
    assert [row["num_images"] for row in rows] == [39, 35, 31, 27, 23, 19]
    near = (far < 20) & ~np.isnan(labels)
    assert rows[-1]["auroc"] == pytest.approx(roc_auc_score(labels[near], logits[near]))
    assert rows[-1]["sensitivity"] == pytest.approx(np.mean(logits[near & (labels == 1)] >= 0))
    flipped = abstention(far, logits, 1 - labels, patients, 0.5, **OPTIONS)
    assert [row["auroc"] for row in flipped] == pytest.approx([1 - row["auroc"] for row in rows])


def test_abstention_without_labels_or_with_one_class():
    far, patients = np.arange(10.0), np.arange(10).astype(str)
    nothing = abstention(far, far, np.full(10, np.nan), patients, 0.5, **OPTIONS)
    assert {row["note"] for row in nothing} == {"no labels"}
    assert np.isnan([row["sensitivity"] for row in nothing]).all()
    ones = abstention(far, far, np.ones(10), patients, np.nan, **OPTIONS)
    assert {row["note"] for row in ones} == {"one class only"}
    assert len(abstention(far[:0], far[:0], far[:0], patients[:0], 0.5, **OPTIONS)) == len(COVERAGES)
