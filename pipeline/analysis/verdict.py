"""Does a method help, against the same network from scratch? Tests of difference and equivalence, for every place.

**What is tested.** The difference in AUROC between a family and its twin (``evaluation.Comparison``). Other patients
and other trainings both count, as cases and readers do in Obuchowski & Rockette (1995, Commun Stat Simul Comput
24:285), with a training in the place of a reader who reads for one method only. With a single training on one side its
spread is unknown, and there is no p-value and no verdict.

**Tails.** A p-value is the larger of two. One is Student's t with the standard error and the degrees of freedom that
the interval is made of (``metrics.intervals``). Those degrees are an estimate themselves: where a few trainings agree
by luck they promise too much, and Holm looks just where that happens. So the other is the tail of the sum of two
independent t's, one for the patients' part and one for the trainings' (Behrens and Fisher's distribution). Simulated
with normal parts, eight methods at five places and so many patients that trainings dominate, the first alone gave a
false ``helps`` or ``harms`` in 9 to 12 % of studies with three trainings a side, and in 22 to 34 % with two; the larger
of both in 2 to 4 %. A p-value can therefore stay above 5 % where the 95 % interval just misses zero.

**Four verdicts.** ``p_value`` is the two-sided p of no difference. ``p_equivalence`` is the larger of two one-sided
p's, of a difference at or below -margin and at or above +margin (Schuirmann 1987, J Pharmacokinet Biopharm 15:657).
Both are adjusted after Holm (1979, Scand J Stat 6:65), apart from each other, over all comparisons of one finding with
one baseline: methods, label budgets, backbones and places; this holds however they depend on each other. At the level
``alpha``:

- ``equivalent``: the adjusted p of equivalence is at or below alpha. Any effect is smaller than the margin that was
  declared before; that it may differ from zero as well is said in the note, and does not change the verdict.
- ``helps``, ``harms``: else, the adjusted p of no difference is at or below alpha.
- ``undecided``: else. The study is too small to tell; this is no evidence that there is no difference.

Within one finding and baseline, the chance of any false ``helps`` or ``harms`` is at most alpha, and so is that of any
false ``equivalent``.

**Places.** ``source`` and ``target`` (all hospitals at home, elsewhere), and each hospital where a side has several.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import ndtr
from scipy.stats import chi2
from scipy.stats import t as student_t

from pipeline.analysis.evaluation import Comparison, Family
from pipeline.metrics.binary import FloatArray
from pipeline.metrics.intervals import StandardError, VariancePart
from pipeline.params import Fraction, StrictParams
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Verdicts

NODES = 160  # of the integrals over mean squares; see the tests for how exact that is

_POOLED = {("id_test", "source"), ("ood_test", "target")}


class VerdictParams(StrictParams):
    """Section ``verdict``, to be written before results are seen.

    ``margin``: the difference in AUROC below which a method is as good as the other, for what it is to be used for;
    it has no default. ``alpha``: the chance of error that is accepted, see the module.
    """

    margin: Annotated[float, Field(gt=0.0, lt=0.5)]
    alpha: Fraction = 0.05


def p_different(difference: float, error: StandardError) -> float:
    """Two-sided p of no difference."""
    return min(1.0, 2.0 * upper_tail(abs(difference), error))


def p_equivalent(difference: float, error: StandardError, margin: float) -> float:
    """The larger p of two one-sided tests, of a difference <= -margin and of one >= margin."""
    return max(upper_tail(margin + difference, error), upper_tail(margin - difference, error))


def upper_tail(value: float, error: StandardError) -> float:
    """The chance that an estimate without an effect lies above ``value``, see the module."""
    student = float(student_t.sf(value / error.value, error.freedom))
    if error.patients is None or error.seeds is None:
        return student
    return max(student, behrens_fisher(value, error.patients, error.seeds))


def behrens_fisher(value: float, one: VariancePart, other: VariancePart) -> float:
    """P(a T + b U > value), T and U independent t's with the parts' degrees of freedom, a and b roots of the variances.

    A t is a normal over the root of a mean square: given both mean squares the sum is normal, so that two sums over
    their distributions remain.
    """
    (squares, weights), (other_squares, other_weights) = _mean_square(one.freedom), _mean_square(other.freedom)
    variance = one.variance / squares[:, None] + other.variance / other_squares
    return float(weights @ ndtr(-value / np.sqrt(variance)) @ other_weights)


@cache
def _mean_square(freedom: int) -> tuple[FloatArray, FloatArray]:
    """Values of chi-squared over its degrees of freedom, evenly spaced in their logarithm, and their probabilities."""
    low, high = np.log(chi2.ppf(1e-14, freedom)), np.log(chi2.isf(1e-14, freedom))
    chi_squared = np.exp(np.linspace(low, high, NODES))
    density = chi2.pdf(chi_squared, freedom) * chi_squared
    return chi_squared / freedom, density / density.sum()


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, at most 1: the i-th smallest of m times m - i + 1, and no less than one before it.

    A NaN is no test: it stays, and does not count in m.
    """
    order = sorted((index for index, p in enumerate(p_values) if not np.isnan(p)), key=lambda index: p_values[index])
    adjusted = [float("nan")] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def decide(difference: float, p_holm: float, p_equivalence_holm: float, alpha: float) -> str | None:
    """The verdict of two adjusted p-values, see the module; None where they are undefined."""
    if np.isnan(p_holm) or np.isnan(p_equivalence_holm):
        return None
    if p_equivalence_holm <= alpha:
        return "equivalent"
    if p_holm <= alpha:
        return "helps" if difference > 0 else "harms"
    return "undecided"


def judge(comparisons: Sequence[Comparison], trials: Mapping[str, int | None], params: VerdictParams) -> pd.DataFrame:
    """A verdict per family, place and baseline, as ``tables.evaluation.Verdicts``.

    Args:
        comparisons: as ``evaluation.evaluate`` makes them; those of other places are left out.
        trials: per run, how many learning rates or penalties were tried; None or no entry where it is not recorded.
        params: margin and alpha.
    """
    rows: list[dict[str, Any]] = []
    for _, members in groupby(sorted(_of_places(comparisons), key=_adjusted_together), key=_adjusted_together):
        together = list(members)
        tests = [_tests(comparison, params.margin) for comparison in together]
        p_holm = holm([p for p, _, _ in tests])
        p_equivalence_holm = holm([p for _, p, _ in tests])
        for number, comparison in enumerate(together):
            p_value, p_equivalence, why_none = tests[number]
            verdict = decide(comparison.difference, p_holm[number], p_equivalence_holm[number], params.alpha)
            notes = (
                comparison.note,
                why_none,
                _both(comparison, verdict, p_holm[number], params.alpha),
                _unequal_budget(comparison, trials),
                _one_draw(comparison),
            )
            rows.append(
                {
                    "run": comparison.family.name,
                    "finding": comparison.finding,
                    "split": comparison.split,
                    "group": comparison.group,
                    "against": comparison.twin.method,
                    "verdict": verdict,
                    "difference": comparison.difference,
                    "ci_low": comparison.interval.low,
                    "ci_high": comparison.interval.high,
                    "p_value": p_value,
                    "p_holm": p_holm[number],
                    "p_equivalence": p_equivalence,
                    "p_equivalence_holm": p_equivalence_holm[number],
                    "margin": params.margin,
                    "alpha": params.alpha,
                    "num_patients": comparison.num_patients,
                    "num_runs": comparison.num_runs,
                    "note": "; ".join(note for note in notes if note),
                }
            )
    return make_table(Verdicts, rows)


def _adjusted_together(comparison: Comparison) -> tuple[str, str]:
    return comparison.finding, comparison.twin.method


def _of_places(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those of the places named in the module; a side's only hospital is the side, and one test, not two."""
    sites = {(c.finding, c.split, c.group) for c in comparisons if c.group.startswith("site=")}
    counts: dict[tuple[str, str], int] = {}
    for finding, split, _ in sites:
        counts[finding, split] = counts.get((finding, split), 0) + 1
    return [
        c
        for c in comparisons
        if (c.split, c.group) in _POOLED or (c.group.startswith("site=") and counts[c.finding, c.split] > 1)
    ]


def _tests(comparison: Comparison, margin: float) -> tuple[float, float, str]:
    """The p of no difference, that of equivalence, and why there are none."""
    none = float("nan")
    if not np.isfinite(comparison.difference):
        return none, none, ""  # the comparison's own note says why
    if comparison.error.note:
        return none, none, f"no p-value: {comparison.error.note}"
    if comparison.num_runs < 2:
        return none, none, "no p-value: a single training on one side, so that the spread of trainings is unknown"
    p_value = p_different(comparison.difference, comparison.error)
    return p_value, p_equivalent(comparison.difference, comparison.error, margin), ""


def _both(comparison: Comparison, verdict: str | None, p_holm: float, alpha: float) -> str:
    if verdict != "equivalent" or p_holm > alpha:
        return ""
    side = "better" if comparison.difference > 0 else "worse"
    return f"different from zero as well: {side} than {comparison.twin.method}, by less than the margin"


def _unequal_budget(comparison: Comparison, trials: Mapping[str, int | None]) -> str:
    own, other = (_trials(family, trials) for family in (comparison.family, comparison.twin))
    if "" in (own, other):
        return "tuning budget not recorded"
    return "" if own == other else f"unequal tuning budget: {own} against {other}"


def _trials(family: Family, trials: Mapping[str, int | None]) -> str:
    """How many were tried, of families with runs that differ all the numbers; "" if it is not known of all runs."""
    tried = {trials.get(run) for run in family.draws}
    known = sorted(number for number in tried if number is not None)
    return " or ".join(map(str, known)) if len(known) == len(tried) else ""


def _one_draw(comparison: Comparison) -> str:
    if comparison.family.setting.all_labels:
        return ""
    draws = min(len(set(family.draws.values())) for family in (comparison.family, comparison.twin))
    return "one draw of the labelled patients: what other draws would change is not counted" if draws == 1 else ""
