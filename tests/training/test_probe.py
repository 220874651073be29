"""The probe against first principles: the optimum's own equations, scikit-learn fitted apart, and its choice."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.errors import PipelineError
from pipeline.training.probe import fit_probe


def problem(num=160, width=6, nulls=0, seed=0):
    """Features of very different scales and offsets; noisy labels; the last quarter selects."""
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(num, width)) * np.logspace(-2, 2, width) + rng.normal(size=width) * 50).astype(
        np.float32
    )
    standard = (features - features.mean(0)) / features.std(0)
    labels = (standard @ rng.normal(size=width) + rng.normal(size=num) > 0).astype(np.float32)
    labels[rng.choice(num, nulls, replace=False)] = np.nan
    return features, labels, np.arange(num * 3 // 4), np.arange(num * 3 // 4, num)


def standardised(features, rows):
    reference = features[rows].astype(np.float64)
    return (features.astype(np.float64) - reference.mean(axis=0)) / reference.std(axis=0), reference.std(axis=0)


def loss(logits, labels):
    return np.logaddexp(0.0, np.where(labels == 1, -logits, logits)).mean()


@pytest.mark.parametrize("nulls", [0, 40])
@pytest.mark.parametrize("strength", [1e-3, 1e-1, 10.0])
def test_logits_are_those_of_scikit_learn_on_standardised_features(strength, nulls):
    features, labels, train, id_val = problem(nulls=nulls)
    probe = fit_probe(features, labels, train, id_val, [strength], "opacity")
    known = train[~np.isnan(labels[train])]
    inputs, _ = standardised(features, known)
    model = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000, solver="newton-cholesky")
    model.fit(inputs[known], labels[known])
    ours = features.astype(np.float64) @ probe.weight + probe.bias
    np.testing.assert_allclose(ours, model.decision_function(inputs), atol=1e-4)


def test_the_weights_solve_the_penalised_likelihoods_equations():
    """No library: at the optimum X'(p - y) + w / C = 0 and sum(p - y) = 0, in standardised features."""
    features, labels, train, id_val = problem()
    probe = fit_probe(features, labels, train, id_val, [0.05], "opacity")
    inputs, scale = standardised(features, train)
    weight = probe.weight * scale
    logits = features.astype(np.float64) @ probe.weight + probe.bias
    residual = 1 / (1 + np.exp(-logits[train])) - labels[train]
    np.testing.assert_allclose(inputs[train].T @ residual + weight / 0.05, 0.0, atol=1e-3)
    assert abs(residual.sum()) < 1e-3
    assert probe.train_loss == pytest.approx(loss(logits[train], labels[train]), abs=1e-9)
    assert probe.id_val_loss == pytest.approx(loss(logits[id_val], labels[id_val]), abs=1e-9)


def test_images_without_a_label_are_as_good_as_absent():
    features, labels, train, id_val = problem(nulls=50)
    known = ~np.isnan(labels)
    probe = fit_probe(features, labels, train, id_val, [0.1], "opacity")
    alone = fit_probe(features, labels, train[known[train]], id_val[known[id_val]], [0.1], "opacity")
    assert np.array_equal(probe.weight, alone.weight)
    assert probe.id_val_loss == alone.id_val_loss


@pytest.mark.parametrize("order", [1, -1])
def test_the_penalty_of_least_id_val_loss_is_picked(order):
    features, labels, train, id_val = problem(num=60, width=20, seed=4)
    candidates = [1e-4, 1e-2, 1.0, 100.0][::order]
    inputs, _ = standardised(features, train)
    losses = {}
    for strength in candidates:
        model = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(inputs[train], labels[train])
        losses[strength] = loss(model.decision_function(inputs[id_val]), labels[id_val])
    probe = fit_probe(features, labels, train, id_val, candidates, "opacity")
    best = min(losses, key=losses.get)
    assert best not in (1e-4, 100.0)  # the problem tells them apart
    assert probe.inverse_l2 == best
    assert probe.id_val_loss == pytest.approx(losses[best], abs=1e-5)


def test_a_feature_that_never_varies_gets_no_weight_and_no_division_by_zero():
    features, labels, train, id_val = problem()
    features[:, 2] = 3.0
    probe = fit_probe(features, labels, train, id_val, [0.1], "opacity")
    assert probe.weight[2] == pytest.approx(0.0, abs=1e-9)
    assert np.isfinite(probe.weight).all()


def test_one_class_is_enough_to_select_on():
    features, labels, train, id_val = problem()
    labels[id_val] = 1.0
    assert np.isfinite(fit_probe(features, labels, train, id_val, [0.1], "opacity").id_val_loss)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class_is_not_enough_to_train_on(value):
    features, labels, train, id_val = problem(nulls=10)
    labels[train[~np.isnan(labels[train])]] = value
    with pytest.raises(PipelineError, match=rf"'opacity': training needs both classes .* the labels \[{value}\]"):
        fit_probe(features, labels, train, id_val, [0.1], "opacity")


@pytest.mark.parametrize("side", ["train", "id_val"])
def test_nothing_annotated_is_told(side):
    features, labels, train, id_val = problem()
    labels[train if side == "train" else id_val] = np.nan
    with pytest.raises(PipelineError, match="linear probe of 'opacity'"):
        fit_probe(features, labels, train, id_val, [0.1], "opacity")


def test_a_fit_that_did_not_converge_is_no_candidate(monkeypatch):
    class Hasty(LogisticRegression):
        def fit(self, X, y):
            self.max_iter = 1 if self.C > 1 else 5000
            return super().fit(X, y)

    monkeypatch.setattr("pipeline.training.probe.LogisticRegression", Hasty)
    features, labels, train, id_val = problem()
    assert fit_probe(features, labels, train, id_val, [10.0, 1e-4], "opacity").inverse_l2 == 1e-4
    with pytest.raises(PipelineError, match=r"no fit converged; try smaller inverse_l2 \(\[10.0\]\)"):
        fit_probe(features, labels, train, id_val, [10.0], "opacity")
