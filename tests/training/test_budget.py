"""Which patients a label budget annotates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.training.budget import annotated_patients, few_shots, label_order, strata_of

PATIENTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=6), st.sampled_from(["0", "1", "x"]), min_size=2)


def test_a_patient_is_positive_by_one_image_and_unknown_without_any():
    labels = np.array([[0, np.nan], [1, np.nan], [0, 0], [np.nan, np.nan]], np.float32)
    assert strata_of(labels, np.array(["a", "a", "b", "c"])) == {"a": "1x", "b": "00", "c": "xx"}


@settings(deadline=None)
@given(PATIENTS, st.integers(0, 20))
def test_an_order_holds_each_patient_once_and_hangs_on_names_alone(strata, draw):
    order = label_order(draw, strata)
    assert sorted(order) == sorted(strata)
    assert order == label_order(draw, dict(reversed(strata.items())))


@settings(deadline=None)
@given(PATIENTS, st.integers(0, 20))
def test_two_patients_are_one_of_each_class_where_there_are_both(strata, draw):
    first = {strata[patient] for patient in label_order(draw, strata)[:2]}
    assert {"0", "1"} & set(strata.values()) <= first | {"x"}


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_every_stratum_keeps_its_share(fraction):
    strata = {f"p{number}": "1" if number % 5 == 0 else "0" for number in range(200)}
    for draw in range(5):
        chosen = label_order(draw, strata)[: int(200 * fraction)]
        positives = sum(strata[patient] == "1" for patient in chosen)
        assert abs(positives - 40 * fraction) <= 1


def test_draws_differ_and_budgets_are_nested():
    strata = {f"p{number}": "01"[number % 2] for number in range(50)}
    orders = {tuple(label_order(draw, strata)) for draw in range(10)}
    assert len(orders) == 10
    for draw in range(3):
        few, more = (set(few_shots(draw, strata, shots)) for shots in (2, 5))
        assert few < more
        assert sorted(strata[patient] for patient in few) == ["0", "0", "1", "1"]


def test_more_shots_than_patients_are_refused_with_the_number():
    strata = {"a": "1", "b": "0", "c": "0"}
    with pytest.raises(PipelineError, match="2 labelled patients a class are wanted; of finding 1 only 1 are positive"):
        few_shots(0, strata, 2)


def test_the_budget_of_a_run():
    labels = np.array([[1], [0], [1], [0], [np.nan]], np.float32)
    patients = np.array(["a", "b", "c", "d", "e"])
    assert annotated_patients(labels, patients, 1.0, 0, None) == ["a", "b", "c", "d", "e"]
    assert len(annotated_patients(labels, patients, 0.6, 0, None)) == 3
    assert len(annotated_patients(labels, patients, 0.01, 0, None)) == 2  # one of each class at least
    assert len(annotated_patients(labels, patients, 1.0, 0, 1)) == 2
