"""How far what is cheap to know before training agrees with what training gave: scores, and the short search.

**Rank correlation** of a transferability score with the AUROC after a method, over backbones. A score that ranks them
as training does would save the training; on medical images the literature finds such scores unreliable (Chaves et al.
2023, "The Performance of Transferability Metrics does not Translate to Medical Tasks", DART). ``scratch`` and its like
use no pretrained weights: their correlation tells what the architectures alone make alike.

**Outcome of the search**: where its winner stands among the full runs. It was chosen on id_val, as every run was, so
that only its place on the test splits is free of that choice.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis.efficiency import PLACES
from pipeline.analysis.evaluation import Family
from pipeline.analysis.transferability import rank_correlation
from pipeline.metrics.binary import METRICS
from pipeline.tables.choice import RankCorrelations, SearchOutcome
from pipeline.tables.contract import make_table

# Where the winner is judged: by what the search selects on, then by what is asked of a model.
JUDGED = (("id_val", "source", "log_loss"), ("id_val", "source", "auroc"), *((*place, "auroc") for place in PLACES))
_UNKNOWN = "not evaluated here in full, or not for every finding"

Row = dict[str, Any]
Candidate = tuple[str, str]  # backbone and method


def rank_correlations(scores: pd.DataFrame, metrics: pd.DataFrame, families: Sequence[Family]) -> pd.DataFrame:
    """Each score against the AUROC after each method, as ``tables.choice.RankCorrelations``.

    Args:
        scores: as ``tables.choice.TransferScores``.
        metrics: as ``tables.evaluation.Metrics``.
        families: of one protocol, as ``evaluation.name_families`` gives them; those with all labels count.

    Raises:
        ValueError: the families are of several protocols.
    """
    names = full_families(families)
    scored = set(scores["backbone"])
    methods = sorted({method for backbone, method in names if backbone in scored})
    columns = ["run", "finding", "split", "group", "value"]
    found = metrics.loc[metrics["metric"] == "auroc", columns].itertuples(index=False, name=None)
    auroc = {tuple(key): value for *key, value in found}
    rows = []
    for (finding, score), own in scores.groupby(["finding", "score"], sort=True):
        for method in methods:
            for place in PLACES:
                keys = [(names.get((backbone, method)), finding, *place) for backbone in own["backbone"]]
                quality = np.array([auroc.get(key, np.nan) for key in keys], np.float64)
                agreement = rank_correlation(own["value"].to_numpy(np.float64), quality)
                rows.append(
                    {
                        "finding": finding,
                        "score": score,
                        "method": method,
                        "split": place[0],
                        "group": place[1],
                        "weighted_tau": agreement.weighted_tau,
                        "spearman": agreement.spearman,
                        "num_backbones": agreement.num,
                        "note": agreement.reason or "",
                    }
                )
    return make_table(RankCorrelations, rows)


def search_outcome(rungs: pd.DataFrame, metrics: pd.DataFrame, families: Sequence[Family]) -> pd.DataFrame:
    """Rank and regret of the search's winner among the full runs, as ``tables.choice.SearchOutcome``.

    Args:
        rungs: as ``tables.choice.SearchRungs``.
        metrics: as ``tables.evaluation.Metrics``.
        families: as for ``rank_correlations``; those of the search's candidates count.

    Raises:
        ValueError: the families are of several protocols.
    """
    candidates = sorted(set(zip(rungs["backbone"].astype(str), rungs["method"].astype(str), strict=True)))
    names = {candidate: name for candidate, name in full_families(families).items() if candidate in candidates}
    final = rungs[(rungs["rung"] == rungs["rung"].max()) & rungs["kept"]]
    winner = (str(final["backbone"].iloc[0]), str(final["method"].iloc[0])) if len(final) else None
    return make_table(SearchOutcome, list(_outcomes(winner, candidates, names, metrics)))


def _outcomes(
    winner: Candidate | None, candidates: Sequence[Candidate], names: dict[Candidate, str], metrics: pd.DataFrame
) -> Iterator[Row]:
    for split, group, metric in JUDGED:
        row: Row = {"split": split, "group": group, "metric": metric}
        here = metrics[(metrics["split"] == split) & (metrics["group"] == group) & (metrics["metric"] == metric)]
        wide = here.pivot(index="run", columns="finding", values="value").reindex(list(names.values()))  # noqa: PD010 - a key is unique; nothing to aggregate
        # A finding that has no value for anyone (one class) is nobody's fault; one that some lack is theirs.
        told = wide.dropna(axis="columns", how="all")
        means = told.mean(axis="columns", skipna=False) if len(told.columns) else pd.Series(np.nan, index=wide.index)
        values = {candidate: float(means[name]) for candidate, name in names.items() if np.isfinite(means[name])}
        undefined = sorted(set(wide.columns) - set(told.columns))
        notes = [f"undefined for {', '.join(undefined)}, which are left out"] if undefined else []
        if len(values) < len(candidates):
            notes.append(f"{len(candidates) - len(values)} of {len(candidates)} candidates {_UNKNOWN}")
        if winner is None:
            notes.insert(0, "no winner: nothing of the search's last rung could be trained")
        else:
            row |= {"backbone": winner[0], "method": winner[1]}
            if winner in values:
                row |= _standing(winner, values, higher_is_better=bool(METRICS[metric].higher_is_better))
            else:
                notes.insert(0, f"the search's winner: {_UNKNOWN}")
        yield {**row, "num_families": len(values), "note": "; ".join(notes)}


def _standing(winner: Candidate, values: dict[Candidate, float], *, higher_is_better: bool) -> Row:
    sign = -1.0 if higher_is_better else 1.0
    best = min(values, key=lambda candidate: (sign * values[candidate], candidate))
    regret = sign * (values[winner] - values[best])
    return {
        "value": values[winner],
        "rank": 1 + sum(sign * other < sign * values[winner] for other in values.values()),
        "best_backbone": best[0],
        "best_method": best[1],
        "best_value": values[best],
        "regret": regret + 0.0,  # no -0
    }


def full_families(families: Sequence[Family]) -> dict[Candidate, str]:
    """Names of the families with all labels and no adaptation, by backbone and method.

    Raises:
        ValueError: two have the same backbone and method.
    """
    plain = [family for family in families if family.setting.all_labels and not family.setting.adaptation]
    names = {(family.backbone, family.method): family.name for family in plain}
    if len(names) < len(plain):
        raise ValueError("the families must be of one protocol; there are several with one backbone and method")
    return names
