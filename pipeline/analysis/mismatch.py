"""Data mismatch: how far each target lies from the source in the features that a family's runs look at."""

from collections.abc import Sequence

import pandas as pd

from pipeline.analysis.evaluation import Family
from pipeline.tables.contract import make_table
from pipeline.tables.mismatch import Mismatch


def mismatch(distances: pd.DataFrame, families: Sequence[Family]) -> pd.DataFrame:
    """Each family's distance to each target site, as ``tables.mismatch.Mismatch``.

    Args:
        distances: as ``tables.training.Distances``.
        families: as ``evaluation.name_families`` gives them; one whose runs have no distance has no row.
    """
    rows = []
    for family in families:
        own = distances[distances["run"].isin(list(family.draws))]
        for site, runs in own.groupby("site", sort=True):
            rows.append(
                {
                    "run": family.name,
                    "site": site,
                    "mmd2": runs["mmd2"].mean(skipna=False),
                    "home_mmd2": runs["home_mmd2"].mean(skipna=False),
                    "p_value": runs["p_value"].median(skipna=False),
                    "num_runs": len(runs),
                    "num_images": runs["num_images"].max(),
                    "num_patients": runs["num_patients"].max(),
                    "note": "; ".join(sorted(set(runs["note"].dropna()) - {""})),
                }
            )
    return make_table(Mismatch, rows)
