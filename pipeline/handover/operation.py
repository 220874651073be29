"""What a rule did to the test cases, with intervals."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.metrics.intervals import bootstrap, interval, over_seeds, patient_counts

Floats = npt.NDArray[np.float64]


def operation(decided: pd.DataFrame, *, resamples: int, seed: int, confidence: float) -> list[dict[str, Any]]:
    """Rows of ``tables.handover.Operation``.

    Args:
        decided: of ``rule.decide``, with site, split, patient_id and label (null: not annotated).
        resamples: of the bootstrap of patients.
        seed: of it.
        confidence: such as 0.95.
    """
    # A study is positive if one of its images is, as it is evaluated (analysis/aggregate.py).
    keys = ["site", "split", "finding", "case"]
    label = decided["label"].astype("Float64").astype(float)
    cases = decided.assign(label=label.groupby([decided[key] for key in keys]).transform("max")).drop_duplicates(keys)
    rows = []
    for (site, split, finding), own in cases.groupby(keys[:3], sort=True):
        row: dict[str, Any] = {
            "site": site,
            "split": split,
            "finding": finding,
            "num_patients": own["patient_id"].nunique(),
            "num_cases": len(own),
            "out_of_distribution": float(own["out_of_distribution"].mean()),
            "abstained": float(own["abstained"].mean()),
        }
        for name, number, side, right in (
            ("sensitivity", "num_positive_patients", 1.0, "positive"),
            ("specificity", "num_negative_patients", 0.0, "negative"),
        ):
            judged = own[(own["label"] == side) & ~own["abstained"]]
            row[number] = judged["patient_id"].nunique()
            found = _share(judged["call"] == right, judged["patient_id"], resamples, seed, confidence)
            row |= {name: found[0], f"{name}_low": found[1], f"{name}_high": found[2]}
        rows.append(row)
    return rows


def _share(right: pd.Series, patients: pd.Series, resamples: int, seed: int, confidence: float) -> tuple[float, ...]:
    if not len(right):
        return float("nan"), float("nan"), float("nan")
    values = right.to_numpy(float)
    names, codes = np.unique(patients.to_numpy(str), return_inverse=True)
    function: Callable[[Floats], Floats] = partial(_mean, values)
    draws = bootstrap(function, patient_counts(list(names), resamples, seed), codes)
    value = np.array([values.mean()])
    found = interval(over_seeds(value, draws[None], len(names)), "logit", confidence, exact=True)
    return float(value[0]), found.low, found.high


def _mean(values: Floats, weights: Floats) -> Floats:
    taken = weights.sum(axis=1)
    return np.divide(weights @ values, taken, out=np.full(len(taken), np.nan), where=taken > 0)
