"""What is lost and gained where one hospital is learnt after another: scores after each step, and measures over all.

Chaudhry A, Dokania PK, Ajanthan T, Torr PHS. Riemannian Walk for Incremental Learning. ECCV 2018 (forgetting).
Lopez-Paz D, Ranzato MA. Gradient Episodic Memory for Continual Learning. NeurIPS 2017 (backward and forward transfer).

Forward transfer is measured from the score of a network before it has learnt anything. Of the AUROC that is 0.5: a
random head and its negative are equally likely, and their AUROCs add up to 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis.tested import Tested, tested_images
from pipeline.metrics.binary import FloatArray, auroc
from pipeline.metrics.intervals import CountArray, Estimate, interval, over_seeds, patient_counts
from pipeline.metrics.resampled import resampled_auroc
from pipeline.tables.continual import MEASURES

NAIVE = "naive"
CHANCE = 0.5
Row = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """AUROCs of k seeds of one strategy: values (k, T, T) by seed, step and hospital, draws (k, T, T, resamples)."""

    values: FloatArray
    draws: FloatArray


def sequence_of(steps: pd.DataFrame) -> list[str]:
    """The hospitals in the order in which they were learnt.

    Args:
        steps: as ``tables.continual.ContinualSteps``, of one job.
    """
    return [str(site) for site in steps.sort_values("step")["site"].drop_duplicates()]


def scores(
    predictions: pd.DataFrame, steps: pd.DataFrame, labels: pd.DataFrame, resamples: int, seed: int, confidence: float
) -> tuple[list[Row], list[Row]]:
    """Rows of ``ContinualScores`` and ``ContinualMeasures`` of one backbone.

    Args:
        predictions: as ``tables.continual.ContinualPredictions``.
        steps: as ``tables.continual.ContinualSteps``.
        labels: as ``tables.labels.Labels``; of other images too.
        resamples: of patients.
        seed: of the resamples.
        confidence: of the intervals.
    """
    sites = sequence_of(steps)
    runs = steps.drop_duplicates("run").sort_values(["strategy", "seed"])
    codes, names = pd.factorize(predictions["patient_id"], sort=True)
    counts = patient_counts([str(name) for name in names], resamples, seed)
    known = labels.dropna(subset=["label"]).set_index(["finding", "image_id"])["label"]
    scored: list[Row] = []
    measured: list[Row] = []
    for finding, rows in predictions.assign(code=codes).groupby("finding", sort=True):
        tested = {site: tested_images(rows[rows["site"] == site], known, str(finding)) for site in sites}
        logits = {
            key: part.set_index("image_id")["logit"]
            for key, part in rows.groupby(["run", "step", "site"], sort=True)
        }  # fmt: skip
        courses: dict[str, Course] = {}
        for strategy, own in runs.groupby("strategy", sort=True):
            single = [_course(logits, str(run), sites, tested, counts) for run in own["run"]]
            values, draws = (np.stack(parts) for parts in zip(*single, strict=True))
            courses[str(strategy)] = Course(values, draws)
            base = {"finding": finding, "backbone": own["backbone"].iloc[0], "strategy": strategy}
            scored += list(_score_rows(base, courses[str(strategy)], own["seed"].tolist(), sites, tested, confidence))
        for strategy, course in courses.items():
            base = {"finding": finding, "backbone": runs["backbone"].iloc[0], "strategy": strategy}
            naive = courses.get(NAIVE) if strategy != NAIVE else None
            measured += list(_measure_rows(base, course, naive, sites, tested, confidence))
    return scored, measured


def measures(course: FloatArray) -> dict[str, FloatArray]:
    """Each measure by hospital, NaN where it has none.

    Args:
        course: (..., T, T, n) AUROC after a step (second axis from behind but one) on a hospital, n resamples or 1.

    Returns:
        Name to (..., T, n).
    """
    last, steps = course[..., -1, :, :], course.shape[-3]
    none = np.full_like(last, np.nan)
    made = {name: none.copy() for name in MEASURES}
    made["final_auroc"] = last.copy()
    for site in range(steps):
        if site < steps - 1:
            # Not learnt yet counts as well: knowledge gained from others can be lost too.
            made["forgetting"][..., site, :] = course[..., :-1, site, :].max(axis=-2) - last[..., site, :]
            made["backward_transfer"][..., site, :] = last[..., site, :] - course[..., site, site, :]
        if site > 0:
            made["forward_transfer"][..., site, :] = course[..., site - 1, site, :] - CHANCE
    return made


def _course(
    logits: Mapping[Any, pd.Series], run: str, sites: Sequence[str], tested: Mapping[str, Tested], counts: CountArray
) -> tuple[FloatArray, FloatArray]:
    """One training sequence's AUROCs (T, T) and those on the resamples (T, T, resamples)."""
    values = np.full((len(sites), len(sites)), np.nan)
    draws = np.full((*values.shape, counts.shape[1]), np.nan)
    for column, site in enumerate(sites):
        images = tested[site]
        if images.undefined:
            continue
        once = np.ones((1, len(images.labels)))
        for step in range(len(sites)):
            own = logits[run, step, site].loc[images.image_ids].to_numpy(np.float64)
            values[step, column] = auroc(images.labels, own, once)[0]
            draws[step, column] = resampled_auroc(images.labels, own, counts, images.patients)
    return values, draws


def _score_rows(
    base: Row, course: Course, seeds: list[int], sites: Sequence[str], tested: Mapping[str, Tested], confidence: float
) -> Iterator[Row]:
    name = f"{base['backbone']}-{base['strategy']}"
    every = range(len(seeds))
    groups = [(name, None, list(every)), *((f"{name}-seed{seeds[one]}", seeds[one], [one]) for one in every)]
    for run, seed, members in groups:
        for step, (column, site) in ((s, c) for s in range(len(sites)) for c in enumerate(sites)):
            images = tested[site]
            estimate = over_seeds(
                course.values[members, step, column], course.draws[members, step, column], images.limiting
            )
            made = interval(estimate, "logit", confidence, exact=True)
            alone = "one run, spread between seeds unknown" if seed is None and len(seeds) == 1 else ""
            yield {
                **base,
                "run": run,
                "seed": seed,
                "step": step,
                "site": site,
                "joins_at": column,
                "value": estimate.value,
                "ci_low": made.low,
                "ci_high": made.high,
                "num_runs": len(members),
                "num_images": len(images.labels),
                "num_patients": images.num_patients,
                "note": _joined(images.note, made.note, "" if images.undefined else alone),
            }


def _measure_rows(
    base: Row, course: Course, naive: Course | None, sites: Sequence[str], tested: Mapping[str, Tested],
    confidence: float,
) -> Iterator[Row]:  # fmt: skip
    values, draws = measures(course.values[..., None]), measures(course.draws)
    others = None if naive is None else (measures(naive.values[..., None]), measures(naive.draws))
    for measure in MEASURES:
        # A measure is not about the last or the first hospital; one without a score has none either.
        about = [n for n, _ in enumerate(sites) if _is_about(measure, n, len(sites))]
        defined = [n for n in about if not tested[sites[n]].undefined]
        lacking = [sites[n] for n in about if n not in defined]
        for members, site in [*(([n], sites[n]) for n in about), (defined, "")]:
            row = {**base, "run": f"{base['backbone']}-{base['strategy']}", "measure": measure, "site": site}
            row |= {
                "num_runs": len(course.values),
                "num_sites": len(members) if site == "" else 1,
                "num_patients": sum(tested[sites[n]].num_patients for n in members),
            }
            if not set(members) & set(defined):
                yield {**row, "note": tested[site].note if site else f"undefined at {', '.join(lacking)}"}
                continue
            limiting = min(tested[sites[n]].limiting for n in members)

            def mean(of: dict[str, FloatArray], members: list[int] = members, measure: str = measure) -> FloatArray:
                return of[measure][:, members].mean(axis=1)

            estimate = over_seeds(mean(values)[:, 0], mean(draws), limiting)
            made = interval(estimate, "logit" if measure == "final_auroc" else "identity", confidence, exact=True)
            row |= {"value": estimate.value, "ci_low": made.low, "ci_high": made.high}
            notes = [f"undefined at {', '.join(lacking)}, left out" if lacking and not site else "", made.note]
            if site:
                notes.append(tested[site].note)
            if others is not None:
                gap = over_seeds(mean(values)[:, 0] - mean(others[0])[:, 0], mean(draws) - mean(others[1]), limiting)
                more, why_none = _difference(gap, confidence)
                row |= more
                notes.append(why_none)
            if len(course.values) == 1:
                notes.append("one run, spread between seeds unknown")
            if measure != "final_auroc":
                row |= {name: _within_one(row[name]) for name in ("ci_low", "ci_high")}
            yield {**row, "note": _joined(*notes)}


def _is_about(measure: str, site: int, number: int) -> bool:
    if measure in ("forgetting", "backward_transfer"):
        return site < number - 1
    return measure == "final_auroc" or site > 0


def _difference(estimate: Estimate, confidence: float) -> tuple[Row, str]:
    made = interval(estimate, "identity", confidence)
    limits = {"difference_low": _within_one(made.low), "difference_high": _within_one(made.high)}
    return {"difference": estimate.value, **limits}, f"difference: {made.note}" if made.note else ""


def _within_one(limit: float) -> float:
    """What lies beyond -1 and 1 cannot be."""
    return float(np.clip(limit, -1.0, 1.0))


def _joined(*notes: str) -> str:
    return "; ".join(dict.fromkeys(note for note in notes if note))
