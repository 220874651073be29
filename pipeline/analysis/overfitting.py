"""How far training losses lie below those on id_val at the epoch that was kept; the numbers alone, no judgement."""

from collections.abc import Iterable

import pandas as pd

from pipeline.analysis.evaluation import Family
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Overfitting

# Of several learning rates the loop writes a phase each, "NAME, rate 0.001"; the one that was kept may differ by run.
_RATE = ", rate "


def overfitting(curves: pd.DataFrame, families: Iterable[Family]) -> pd.DataFrame:
    """Mean losses of each family's runs at the epochs that were kept, by phase, as ``tables.evaluation.Overfitting``.

    Args:
        curves: as ``tables.training.Curves``. A loss that one of the runs lacks is null.
        families: the runs that belong together.
    """
    kept = curves[curves["kept"].fillna(value=False)]
    kept = kept.assign(phase=kept["phase"].astype(object).map(lambda phase: phase.partition(_RATE)[0]))
    rows = []
    for family in families:
        for phase, part in kept[kept["run"].isin(list(family.draws))].groupby("phase", sort=True):
            train, id_val = part["train_loss"].mean(skipna=False), part["id_val_loss"].mean(skipna=False)
            rows.append(
                {
                    "run": family.name,
                    "phase": phase,
                    "train_loss": train,
                    "id_val_loss": id_val,
                    "gap": id_val - train,
                    "num_runs": part["run"].nunique(),
                }
            )
    return make_table(Overfitting, rows)
