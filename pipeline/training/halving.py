"""Successive halving: all candidates are trained a little, the better share of them more, until one is left.

Karnin Z, Koren T, Somekh O. Almost Optimal Exploration in Multi-Armed Bandits. ICML 2013; for models in training,
Jamieson K, Talwalkar A. Non-stochastic Best Arm Identification and Hyperparameter Optimization. AISTATS 2016. Theirs
goes on with a candidate from rung to rung; here each rung trains it anew, because the learning rate's schedule is laid
out over the rung's epochs. A candidate that is slow at first is dropped for it: the price of a short search.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import Field, PositiveInt, field_validator

from pipeline.errors import PipelineError
from pipeline.params import Fraction, Seed, StrictParams

Candidate = tuple[str, str]  # backbone and method


class SearchParams(StrictParams):
    """Section ``search``: ``epochs`` of each rung, rising; the share to ``keep`` after each; ``seed`` of all fits."""

    epochs: list[PositiveInt] = Field(min_length=1)
    keep: Fraction
    seed: Seed

    @field_validator("epochs")
    @classmethod
    def _rising(cls, values: list[int]) -> list[int]:
        if any(later <= earlier for earlier, later in pairwise(values)):
            raise ValueError("each rung needs more epochs than the one before")
        return values


@dataclass(frozen=True)
class Trial:
    """One candidate in one rung.

    Attributes:
        rung: from 0.
        epochs: of the rung.
        candidate: who.
        loss: the smaller the better; NaN where it could not be trained.
        kept: whether it goes on to the next rung; in the last one, whether it won.
        note: why it was dropped without a loss, or "".
    """

    rung: int
    epochs: int
    candidate: Candidate
    loss: float
    kept: bool
    note: str = ""


def num_kept(entrants: int, keep: float) -> int:
    """How many of a rung's go on: the share rounded up, at least one of them and at least one fewer; one of one."""
    # Less a trifle: 0.07 * 100 is 7.000000000000001.
    return max(1, min(math.ceil(keep * entrants - 1e-9), entrants - 1))


def schedule(num_candidates: int, epochs: Sequence[int], keep: float) -> list[tuple[int, int]]:
    """Per rung how many candidates it trains, and for how many epochs each; it ends when one is left.

    Args:
        num_candidates: at the start; where some cannot be trained, fewer than said go on.
        epochs: of each rung.
        keep: share of a rung's that goes on, between 0 and 1.
    """
    rungs: list[tuple[int, int]] = []
    for number in epochs:
        rungs.append((num_candidates, number))
        num_candidates = num_kept(num_candidates, keep)
        if num_candidates == 1:
            break
    return rungs


def select(losses: dict[Candidate, float], number: int) -> set[Candidate]:
    """The ``number`` candidates of least loss; of equal ones those whose names come first."""
    return set(sorted(losses, key=lambda candidate: (losses[candidate], candidate))[:number])


def successive_halving(
    candidates: Sequence[Candidate], epochs: Sequence[int], keep: float, train: Callable[[Candidate, int], float]
) -> list[Trial]:
    """Every trial, by rung and name. The winner is the one that the last rung kept; none where all of it failed.

    Args:
        candidates: in any order, each once.
        epochs: of each rung, rising.
        keep: share of a rung's candidates with a loss that goes on, between 0 and 1.
        train: from a candidate and epochs to its loss; a ``PipelineError`` drops the candidate, and so does a loss
            that is not finite.
    """
    trials: list[Trial] = []
    entrants = sorted(candidates)
    for rung, number in enumerate(epochs):
        losses: dict[Candidate, float] = {}
        notes: dict[Candidate, str] = {}
        for candidate in entrants:
            try:
                loss = train(candidate, number)
            except PipelineError as error:
                notes[candidate] = str(error)
                continue
            if math.isfinite(loss):
                losses[candidate] = loss
            else:
                notes[candidate] = f"the loss on id_val is {loss}"
        last = rung == len(epochs) - 1
        kept = select(losses, 1 if last else num_kept(len(losses), keep))
        trials += [Trial(rung, number, c, losses.get(c, math.nan), c in kept, notes.get(c, "")) for c in entrants]
        entrants = sorted(kept)
        if len(entrants) <= 1:
            break
    return trials
