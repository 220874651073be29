"""The test against an independent likelihood, what it holds fixed, and where it says that it cannot be told."""

import numpy as np
import pytest
from analysis.shifted import MODEL, Hospital, pair
from scipy.special import expit
from scipy.stats import binom, chi2
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from pipeline.analysis.label_given_propensity import _fitted, _score_test, propensity, remainder
from pipeline.analysis.label_given_score import line_change


def sides(rng, there, sizes=(60, 110, 110)):
    """Arguments of ``remainder``, and of ``line_change``."""
    embeddings, scores, _ = pair(rng, there, sizes, with_labels=True)
    own, score = embeddings["net"], scores[MODEL]
    away = np.repeat([0.0, 1.0], [len(own.source), len(own.target)])
    names = np.concatenate([own.patients, own.target_patients])
    odds = propensity(np.concatenate([own.source, own.target]), away, names, 1)
    tested = np.isin(np.concatenate([own.source_ids, own.target_ids]), np.r_[score.ids, score.target_ids])
    labels = np.concatenate([score.labels.astype(float), score.target_labels])
    logits = np.concatenate([score.logits, score.target_logits])
    line = (score.logits, score.labels.astype(float), score.patients)
    return (
        (logits, labels, odds[tested], away[tested], names[tested]),
        (*line, score.target_logits, score.target_labels, score.target_patients),
    )


def test_one_image_a_patient_is_the_textbook_test():
    """Where the model holds, the score test is near twice the gain in log likelihood."""
    rng = np.random.default_rng(1)
    n = 20_000
    x = np.stack([np.ones(n), rng.normal(size=n), rng.normal(size=n)], axis=1)
    added = np.stack([(rng.random(n) < expit(x[:, 1])).astype(float), rng.normal(size=n)], axis=1)
    y = (rng.random(n) < expit(x @ [0.2, 1.0, -0.5] + 0.08 * added[:, 0])).astype(float)
    found = _score_test(y, x, added, np.arange(n), n)

    def loss(columns):
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(columns, y)
        return n * log_loss(y, model.predict_proba(columns)[:, 1])

    gain = 2 * (loss(x[:, 1:]) - loss(np.concatenate([x[:, 1:], added], axis=1)))
    assert 2 * found.statistic == pytest.approx(gain, rel=0.05)
    assert found.p_value == pytest.approx(chi2.sf(gain, 2), rel=0.1)
    full = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(np.concatenate([x[:, 1:], added], axis=1), y)
    assert found.steps == pytest.approx(full.coef_[0, 2:], abs=0.003)
    # Every image twice under its patient's name tells no more.
    again = _score_test(np.repeat(y, 2), np.repeat(x, 2, 0), np.repeat(added, 2, 0), np.repeat(np.arange(n), 2), n)
    assert again.statistic == pytest.approx(found.statistic, rel=1e-6)
    assert again.halves == pytest.approx(found.halves, rel=1e-6)
    assert _fitted(x, y)[1:] == pytest.approx(
        LogisticRegression(C=np.inf, tol=1e-10).fit(x[:, 1:], y).coef_[0], abs=1e-4
    )


def test_a_propensity_is_out_of_fold_by_patient():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(60), 3)
    away = (codes >= 30).astype(float)
    noise = rng.normal(size=(60, 40))[codes]  # names the patient, and says nothing of the side
    odds = propensity(noise, away, codes, 1)
    assert abs(roc_auc_score(away, odds) - 0.5) < 0.2
    told = propensity(noise + 1.5 * away[:, None], away, codes, 1)
    assert roc_auc_score(away, told) > 0.95
    assert np.isnan(propensity(noise, away, np.where(away == 1, codes % 4, codes + 10), 1)).all()
    assert (propensity(noise, away, codes, 1) == odds).all()


def test_a_moved_nuisance_that_the_model_hears_is_no_change_of_the_label(monkeypatch):
    """The old test, by the score alone, takes covariate shift for a change of what labels mean; this one does not."""
    monkeypatch.setattr("analysis.shifted.LISTENS", 2.0)
    rng, repeats, rejected = np.random.default_rng(3), 16, {"propensity": 0, "score": 0}
    for _ in range(repeats):
        own, line = sides(rng, Hospital(moved=0.8))
        rejected["propensity"] += remainder(*own).both[1] <= 0.05
        rejected["score"] += line_change(*line).both[1] <= 0.05
    print(rejected)
    assert rejected["propensity"] <= binom.ppf(0.999, repeats, 0.05) < rejected["score"]


def test_what_is_rejected_and_the_direction():
    rng, repeats = np.random.default_rng(7), 12
    found = {
        name: [remainder(*sides(rng, there)[0]) for _ in range(repeats)]
        for name, there in {
            "none": Hospital(),
            "both": Hospital(prevalence=0.75, moved=0.8),
            "concept": Hospital(moved=0.8, concept=0.6),
        }.items()
    }
    both = {name: sum(one.both[1] <= 0.05 for one in own) for name, own in found.items()}
    slope = {name: sum(one.slope[1] <= 0.05 for one in own) for name, own in found.items()}
    print(both, slope)
    limit = binom.ppf(0.999, repeats, 0.05)
    assert max(both["none"], slope["none"], slope["both"]) <= limit
    assert both["both"] > 0.4 * repeats  # a constant is more than covariate shift alone allows
    assert min(both["concept"], slope["concept"]) > 0.7 * repeats
    # 0.75 for 0.4 is a constant of log(3 / 1) - log(2 / 3) = 1.5; one step from none falls short of it.
    assert 0.7 < np.mean([one.level[0] for one in found["both"]]) < 1.6
    assert np.mean([one.change[0] for one in found["concept"]]) < -0.5
    for one in found["both"]:
        value, low, high = one.change
        assert (low <= 0 <= high) == (one.slope[1] > 0.05)  # interval and test are one
        assert low < value < high


def test_unit_of_the_logit_and_null_labels():
    (logits, labels, odds, away, names), _ = sides(np.random.default_rng(2), Hospital())
    labels[::7] = np.nan
    one = remainder(logits, labels, odds, away, names)
    ten = remainder(10 * logits - 3, labels, odds, away, names)
    assert ten.both == pytest.approx(one.both, rel=1e-6)
    assert ten.change[0] == pytest.approx(one.change[0] / 10, rel=1e-6)
    assert ten.level == pytest.approx(one.level, rel=1e-6)
    known = ~np.isnan(labels)
    assert remainder(logits[known], labels[known], odds[known], away[known], names[known]) == one


def test_undetermined_says_why():
    rng = np.random.default_rng(0)
    (logits, labels, odds, away, names), _ = sides(rng, Hospital())
    assert "5 patients on each side" in remainder(logits, labels, odds * np.nan, away, names).note
    few = np.where((away == 1) & ~np.isin(names, np.unique(names[away == 1])[:9]), np.nan, labels)
    assert (
        "needs 10 patients of each label on each side; the smallest group has"
        in remainder(logits, few, odds, away, names).note
    )
    assert "no finite slope" in remainder(labels * 2 - 1.0, labels, odds, away, names).note
    assert "no finite slope" in remainder(logits * 0, labels, odds, away, names).note
    own, _ = sides(rng, Hospital(moved=3.0))
    apart = remainder(*own)
    assert "the features tell the hospitals apart" in apart.note
    assert apart.effective < 10
    assert np.isnan([*apart.both, *apart.slope, *apart.level, *apart.change]).all()
