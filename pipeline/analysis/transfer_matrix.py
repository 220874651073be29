"""The site x site matrix: AUROC of each row's models on each hospital's test patients, and what training there buys.

The difference of a cell is between the models that were trained on the tested hospital and the row's: in-distribution
less out-of-distribution on the same patients, so that one hospital's easier patients are no part of it. Both were
trained on drawn patients, independently of each other: the spread between draws counts on both sides.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis.tested import Tested, tested_images
from pipeline.metrics.binary import auroc
from pipeline.metrics.intervals import CountArray, Estimate, difference, interval, over_seeds, patient_counts
from pipeline.metrics.resampled import resampled_auroc

SINGLE = "single_source"
Row = dict[str, Any]


def scores(
    predictions: pd.DataFrame, rows: pd.DataFrame, labels: pd.DataFrame, sites: Sequence[str],
    resamples: int, seed: int, confidence: float,
) -> list[Row]:  # fmt: skip
    """Rows of ``tables.matrix.MatrixScores``.

    Args:
        predictions: as ``tables.matrix.MatrixPredictions``.
        rows: as ``tables.matrix.MatrixRows``.
        labels: as ``tables.labels.Labels``; of other images too.
        sites: all hospitals, in order.
        resamples: of patients.
        seed: of the resamples.
        confidence: of the intervals.
    """
    codes, names = pd.factorize(predictions["patient_id"], sort=True)
    counts = patient_counts([str(name) for name in names], resamples, seed)
    known = labels.dropna(subset=["label"]).set_index(["finding", "image_id"])["label"]
    coded = predictions.assign(code=codes)
    made: list[Row] = []
    for (backbone, method, finding), own in rows.groupby(["backbone", "method", "finding"], sort=True):
        of_method = coded[(coded["method"] == method) & (coded["finding"] == finding)]
        tested = {site: tested_images(of_method[of_method["site"] == site], known, str(finding)) for site in sites}
        estimates = dict(_estimates(of_method, tested, counts))
        reasons = {(p, r): note for p, r, note in own[["protocol", "row", "note"]].itertuples(index=False) if note}
        budgets = dict(zip(zip(own["protocol"], own["row"], strict=True), own["num_patients_per_class"], strict=True))
        for protocol in sorted(set(own["protocol"])):
            for row in sites:
                for site in sites if protocol == SINGLE else [row]:
                    why_none = reasons.get((protocol, row), "")
                    number = budgets.get((protocol, row))
                    made.append(
                        {
                            "backbone": backbone,
                            "method": method,
                            "protocol": protocol,
                            "finding": finding,
                            "row": row,
                            "site": site,
                            "in_distribution": protocol == SINGLE and row == site,
                            "num_patients_per_class": None if number is None or pd.isna(number) else int(number),
                            **_cell(estimates, (protocol, row, site), tested[site], why_none, confidence),
                        }
                    )
    return made


def _estimates(
    rows: pd.DataFrame, tested: Mapping[str, Tested], counts: CountArray
) -> Iterator[tuple[tuple[str, str, str], tuple[Estimate, int]]]:
    """Protocol, row and tested hospital to the estimate over draws and their number, where there is an AUROC."""
    for (protocol, row, site), part in rows.groupby(["protocol", "row", "site"], sort=True):
        images = tested[str(site)]
        if images.undefined:
            continue
        once = np.ones((1, len(images.labels)))
        values, draws = [], []
        for _, run in part.groupby("seed", sort=True):
            logits = run.set_index("image_id")["logit"].loc[images.image_ids].to_numpy(np.float64)
            values.append(auroc(images.labels, logits, once)[0])
            draws.append(resampled_auroc(images.labels, logits, counts, images.patients))
        estimate = over_seeds(np.array(values), np.stack(draws), images.limiting)
        yield (str(protocol), str(row), str(site)), (estimate, len(values))


def _cell(
    estimates: Mapping[tuple[str, str, str], tuple[Estimate, int]], place: tuple[str, str, str], images: Tested,
    why_none: str, confidence: float,
) -> Row:  # fmt: skip
    told: Row = {"num_runs": 0, "num_images": len(images.labels), "num_patients": images.num_patients}
    if place not in estimates:
        return {**told, "note": why_none or images.note}
    estimate, runs = estimates[place]
    made = interval(estimate, "logit", confidence, exact=True)
    told |= {"num_runs": runs, "value": estimate.value, "ci_low": made.low, "ci_high": made.high}
    notes = [images.note, made.note, "one draw, spread between draws unknown" if runs == 1 else ""]
    reference = (SINGLE, place[2], place[2])
    if place != reference:
        if reference in estimates:
            gap = difference(estimates[reference][0], estimate)
            limits = interval(gap, "identity", confidence)
            low, high = (float(np.clip(limit, -1.0, 1.0)) for limit in (limits.low, limits.high))
            told |= {"difference": gap.value, "difference_low": low, "difference_high": high}
            notes.append(f"difference: {limits.note}" if limits.note else "")
        else:
            notes.append("no difference: no model was trained on the tested hospital alone")
    return {**told, "note": "; ".join(note for note in notes if note)}
