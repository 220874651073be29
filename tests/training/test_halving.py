"""Successive halving: by hand, in its laws, and what it costs."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.params import ParamsError, parse
from pipeline.training.halving import SearchParams, Trial, num_kept, schedule, select, successive_halving

A, B, C, D = ((f"net{letter}", "probe") for letter in "abcd")
# Loss of each after so many epochs: d is slow at first, and would win in the end.
TABLE = {A: {1: 0.5, 3: 0.40}, B: {1: 0.6, 3: 0.35}, C: {1: 0.7, 3: 0.60}, D: {1: 0.9, 3: 0.10}}


def by_table(candidate, epochs):
    return TABLE[candidate][epochs]


def winner(trials):
    return [trial.candidate for trial in trials if trial.rung == trials[-1].rung and trial.kept]


def test_a_table_by_hand():
    trials = successive_halving([D, B, A, C], [1, 3], 0.5, by_table)
    assert trials == [
        Trial(0, 1, A, 0.5, kept=True),
        Trial(0, 1, B, 0.6, kept=True),
        Trial(0, 1, C, 0.7, kept=False),
        Trial(0, 1, D, 0.9, kept=False),
        Trial(1, 3, A, 0.40, kept=False),
        Trial(1, 3, B, 0.35, kept=True),
    ]


def test_a_candidate_that_is_slow_at_first_is_lost_unless_enough_are_kept():
    """The price: of the four, the best after three epochs is last after one."""
    assert winner(successive_halving([A, B, C, D], [1, 3], 0.5, by_table)) == [B]
    assert winner(successive_halving([A, B, C, D], [3], 0.5, by_table)) == [D]


def test_equal_losses_go_by_name():
    trials = successive_halving([C, B, A], [1, 2], 0.5, lambda *_: 0.5)
    assert [t.candidate for t in trials if t.rung == 0 and t.kept] == [A, B]
    assert winner(trials) == [A]
    assert select({("b", "x"): 1.0, ("a", "y"): 1.0, ("a", "x"): 1.0}, 2) == {("a", "x"), ("a", "y")}


def test_it_ends_when_one_is_left():
    trained = []
    trials = successive_halving([A, B], [1, 3, 9], 0.5, lambda _, epochs: trained.append(epochs) or 0.1)
    assert trained == [1, 1]
    assert winner(trials) == [A]
    assert winner(successive_halving([A], [1, 3], 0.5, by_table)) == [A]


@pytest.mark.parametrize(
    ("entrants", "keep", "kept"),
    [(4, 0.5, 2), (5, 0.5, 3), (9, 1 / 3, 3), (2, 0.9, 1), (10, 0.95, 9), (1, 0.5, 1), (3, 0.01, 1), (100, 0.07, 7)],
)
def test_the_share_is_rounded_up_but_a_rung_always_drops_one(entrants, keep, kept):
    assert num_kept(entrants, keep) == kept


def test_schedule_and_its_budget_by_hand():
    """16 candidates, halved: 16 x 1 + 8 x 2 + 4 x 4 + 2 x 8 epochs, the same for each rung, as in the paper."""
    rungs = schedule(16, [1, 2, 4, 8], 0.5)
    assert rungs == [(16, 1), (8, 2), (4, 4), (2, 8)]
    assert {entrants * epochs for entrants, epochs in rungs} == {16}
    assert schedule(3, [1, 2, 4, 8], 0.5) == [(3, 1), (2, 2)]


losses_of = st.lists(st.floats(0.01, 5.0), min_size=1, max_size=12)
rising = st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True).map(sorted)
shares = st.floats(0.05, 0.95)


@settings(deadline=None, max_examples=50)
@given(losses_of, rising, shares)
def test_what_is_trained_is_what_the_schedule_says(losses, epochs, keep):
    candidates = [(f"net{number:02d}", "m") for number in range(len(losses))]
    trained = []

    def train(candidate, number):
        trained.append(number)
        return losses[int(candidate[0][3:])]

    trials = successive_halving(candidates, epochs, keep, train)
    rungs = schedule(len(candidates), epochs, keep)
    assert len(trained) == len(trials) == sum(entrants for entrants, _ in rungs)
    assert sum(trained) == sum(entrants * number for entrants, number in rungs)
    assert sum(trained) <= len(candidates) * sum(epochs)
    # Losses that keep their order: who is best wins, whatever is kept.
    assert winner(trials) == [min(candidates, key=lambda c: (losses[int(c[0][3:])], c))]


@settings(deadline=None, max_examples=50)
@given(st.permutations([A, B, C, D]), rising, shares, st.randoms(use_true_random=False))
def test_the_order_of_candidates_changes_nothing_and_the_kept_are_the_best(candidates, epochs, keep, random):
    table = {(candidate, number): random.random() for candidate in sorted(candidates) for number in epochs}
    trials = successive_halving(candidates, epochs, keep, lambda *key: table[key])
    assert trials == successive_halving(sorted(candidates), epochs, keep, lambda *key: table[key])
    for rung in {trial.rung for trial in trials}:
        own = [trial for trial in trials if trial.rung == rung]
        kept, dropped = ([t.loss for t in own if t.kept == value] for value in (True, False))
        assert kept
        assert max(kept) <= min(dropped, default=math.inf)
        following = {trial.candidate for trial in trials if trial.rung == rung + 1}
        assert following in (set(), {trial.candidate for trial in own if trial.kept})


def failing(*broken):
    def train(candidate, epochs):
        if candidate in broken:
            raise PipelineError("one class only")
        return by_table(candidate, epochs)

    return train


def test_what_cannot_be_trained_is_dropped_with_its_reason_and_the_rest_goes_on():
    trials = successive_halving([A, B, C, D], [1, 3], 0.5, failing(A))
    first = {trial.candidate: trial for trial in trials if trial.rung == 0}
    assert first[A].note == "one class only"
    assert math.isnan(first[A].loss)
    assert [candidate for candidate, trial in first.items() if trial.kept] == [B, C]  # half of the three with a loss
    assert winner(trials) == [B]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_none(loss):
    trials = successive_halving([A, B], [3], 0.5, lambda c, _: loss if c == A else 0.7)
    assert [(trial.kept, trial.note) for trial in trials] == [(False, f"the loss on id_val is {loss}"), (True, "")]
    assert math.isnan(trials[0].loss)


def test_where_all_fail_there_is_no_winner():
    trials = successive_halving([A, B], [1, 3], 0.5, failing(A, B))
    assert [(trial.rung, trial.kept) for trial in trials] == [(0, False), (0, False)]


def test_a_defect_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        successive_halving([A], [1], 0.5, lambda *_: 1 / 0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epochs": [3, 1]}, "search.epochs: each rung needs more epochs than the one before; got"),
        ({"epochs": [1, 1]}, "search.epochs: each rung needs more epochs"),
        ({"epochs": []}, "search.epochs"),
        ({"epochs": [0, 1]}, r"search.epochs.0"),
        ({"keep": 1.0}, "search.keep"),
        ({"keep": 0.0}, "search.keep"),
    ],
)
def test_params_out_of_range_are_refused(change, text):
    with pytest.raises(ParamsError, match=text):
        parse(SearchParams, {"epochs": [1, 3], "keep": 0.5, "seed": 1, **change}, "search")


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 400), st.integers(1, 99))
def test_the_share_is_rounded_as_exact_arithmetic_does(entrants, per_cent):
    exact = math.ceil(Fraction(per_cent, 100) * entrants)
    assert num_kept(entrants, per_cent / 100) == max(1, min(exact, entrants - 1))
