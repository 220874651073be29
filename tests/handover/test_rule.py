"""The rule that calls, abstains or flags: against scikit-learn, hand-made cases and properties."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.covariance import LedoitWolf

from pipeline.analysis import outlying
from pipeline.handover.operation import operation
from pipeline.handover.rule import Rule, decide, fit_reference, fix_rule, to_cases
from pipeline.tables.contract import make_table
from pipeline.tables.handover import Operation


def rows(logits, distances, studies=None, finding="opacity"):
    names = [f"i{place}" for place in range(len(logits))]
    return pd.DataFrame(
        {"image_id": names, "study_id": studies or names, "finding": finding, "logit": logits, "distance": distances}
    )


def rule(**changes):
    plain = {"unit": "image", "aggregate": "mean", "distance_limit": 2.0, "thresholds": {"opacity": 0.5}}
    return Rule(**{**plain, "margins": {"opacity": 0.0}, **changes})


@pytest.mark.parametrize("shape", [(40, 5), (12, 30)])
def test_the_distance_is_mahalanobis(shape):
    draw = np.random.default_rng(0)
    train, other = draw.normal(size=shape).astype(np.float32), draw.normal(1.0, 2.0, (7, shape[1])).astype(np.float32)
    found = fit_reference(train).distance(other)
    model = LedoitWolf().fit(train.astype(float))
    by_hand = [np.sqrt((x - model.location_) @ np.linalg.inv(model.covariance_) @ (x - model.location_)) for x in other]
    np.testing.assert_allclose(found, by_hand, rtol=1e-8)
    np.testing.assert_allclose(found, outlying.mahalanobis(train, other), rtol=1e-8)


def test_one_image_is_no_reference():
    with pytest.raises(ValueError, match="two images"):
        fit_reference(np.ones((1, 3)))


def test_who_is_called_and_why_not():
    found = decide(rows([-3.0, -0.1, 0.0, 0.1, 3.0, 3.0], [1, 1, 1, 1, 2.0, 2.1]), rule(margins={"opacity": 0.1}))
    assert found["call"].fillna("").tolist() == ["negative", "negative", "", "positive", "positive", ""]
    assert found["abstained_because"].fillna("").tolist() == ["", "", "near_threshold", "", "", "out_of_distribution"]
    assert found["out_of_distribution"].tolist() == [False] * 5 + [True]
    np.testing.assert_allclose(found["probability"], expit([-3.0, -0.1, 0.0, 0.1, 3.0, 3.0]), rtol=1e-14)


def test_without_a_threshold_nothing_is_called():
    found = decide(rows([-3.0, 3.0], [1, 9]), rule(thresholds={"opacity": None}))
    assert found["call"].isna().all()
    assert found["abstained_because"].tolist() == ["no_threshold", "no_threshold"]
    assert found["threshold"].isna().all()


@pytest.mark.parametrize(("aggregate", "logits"), [("mean", [1.0, 1.0, -4.0]), ("max", [3.0, 3.0, -4.0])])
def test_a_study_is_called_as_one(aggregate, logits):
    found = decide(rows([3.0, -1.0, -4.0], [1.0, 5.0, 1.0], ["a", "a", "b"]), rule(unit="study", aggregate=aggregate))
    np.testing.assert_allclose(found["unit_logit"], logits)
    assert found["out_of_distribution"].tolist() == [True, True, False]
    np.testing.assert_allclose(found["unit_probability"], expit(logits))
    np.testing.assert_allclose(found["probability"], expit([3.0, -1.0, -4.0]))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 100)), min_size=1, max_size=40),
    st.floats(0.05, 0.95),
    st.floats(0, 0.95),
    st.floats(0.01, 0.99),
)
def test_the_shares_of_id_val_that_it_was_asked_for(pairs, inside, undecided, threshold):
    selecting = rows([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    made = fix_rule(
        selecting, {"opacity": threshold}, unit="image", aggregate="mean", in_distribution=inside, undecided=undecided
    )
    found = decide(selecting, made)
    assert (~found["out_of_distribution"]).mean() >= inside - 1e-9
    near = np.abs(selecting["logit"] - logit(threshold)) < made.margins["opacity"]
    assert near.mean() <= undecided + 1e-9
    assert made.distance_limit in selecting["distance"].tolist()


def test_a_threshold_that_no_probability_reaches_leaves_no_margin():
    made = fix_rule(
        rows([0.0, 1.0], [1, 2]), {"opacity": np.nextafter(1.0, 2.0)}, unit="image", aggregate="mean",
        in_distribution=0.5, undecided=0.5,
    )  # fmt: skip
    assert made.margins == {"opacity": 0.0}
    assert decide(rows([50.0], [1]), made)["call"].tolist() == ["negative"]


def test_a_study_counts_once_when_the_rule_is_fixed():
    selecting = rows([0.0] * 4, [9.0, 1.0, 1.0, 2.0], ["a", "a", "a", "b"])
    assert to_cases(selecting, "study", "mean")["unit_distance"].tolist() == [9.0, 9.0, 9.0, 2.0]
    options = {"aggregate": "mean", "in_distribution": 0.5, "undecided": 0.0}
    # Of two studies the nearer half is one, of four images it is two.
    assert fix_rule(selecting, {"opacity": 0.5}, unit="study", **options).distance_limit == 9.0
    assert fix_rule(selecting, {"opacity": 0.5}, unit="image", **options).distance_limit == 2.0


def test_no_selecting_image_is_no_rule():
    with pytest.raises(ValueError, match="id_val"):
        fix_rule(rows([], []), {}, unit="image", aggregate="mean", in_distribution=0.9, undecided=0.0)


def test_what_the_rule_does_to_test_cases_by_hand():
    """Ten patients; one of five positives is missed, one is flagged; two of five negatives are called positive."""
    logits = [1, 1, 1, -1, 9, -1, -1, -1, 1, 1]
    distances = [1, 1, 1, 1, 3, 1, 1, 1, 1, 1]
    decided = decide(rows(np.array(logits, float), distances), rule()).assign(
        site="home", split="id_test", patient_id=[f"p{place}" for place in range(10)], label=[1] * 5 + [0] * 5
    )
    made = make_table(Operation, operation(decided, resamples=200, seed=1, confidence=0.95)).iloc[0]
    assert (made["num_cases"], made["out_of_distribution"], made["abstained"]) == (10, 0.1, 0.1)
    assert (made["sensitivity"], made["num_positive_patients"]) == (0.75, 4)
    assert (made["specificity"], made["num_negative_patients"]) == (0.6, 5)
    assert made["sensitivity_low"] < 0.75 < made["sensitivity_high"]
    unlabelled = decided.assign(label=None)
    none = make_table(Operation, operation(unlabelled, resamples=200, seed=1, confidence=0.95)).iloc[0]
    assert np.isnan([none["sensitivity"], none["specificity_low"]]).all()
