"""overfitting: losses at the epochs that were kept, over a family's runs."""

import numpy as np
import pytest

from pipeline.analysis.evaluation import Family, Setting
from pipeline.analysis.overfitting import overfitting
from pipeline.tables.contract import make_table
from pipeline.tables.training import Curves

WHOLE = Setting("main", 1.0, 0, "")


def curve(run, phase, *epochs):
    """Epochs as (training, id_val) losses; the one of least id_val loss is kept."""
    best = min(range(len(epochs)), key=lambda at: (np.nan_to_num(epochs[at][1]), at))
    return [
        {"run": run, "phase": phase, "epoch": at, "train_loss": train, "id_val_loss": val, "kept": at == best}
        for at, (train, val) in enumerate(epochs)
    ]


def of(*rows, names=("a-full-seed0", "a-full-seed1")):
    family = Family("a-full", "a", "full", WHOLE, dict.fromkeys(names, 0))
    return overfitting(make_table(Curves, [row for part in rows for row in part]), [family]).set_index("phase")


def test_means_over_runs_at_their_own_epochs():
    found = of(
        curve("a-full-seed0", "all", (0.6, 0.5), (0.3, 0.4), (0.1, 0.9)),
        curve("a-full-seed1", "all", (0.5, 0.6), (0.4, 0.7)),
        curve("a-other-seed0", "all", (9.0, 9.0)),
    )
    assert found.loc["all", ["train_loss", "id_val_loss", "gap", "num_runs"]].tolist() == pytest.approx(
        [0.4, 0.5, 0.1, 2]
    )


def test_phases_stand_apart_and_learning_rates_do_not():
    found = of(
        curve("a-full-seed0", "probe opacity", (0.5, 0.6)),
        curve("a-full-seed0", "all, rate 0.001", (0.2, 0.4)),
        [row | {"kept": False} for row in curve("a-full-seed0", "all, rate 0.01", (7.0, 7.0))],
        curve("a-full-seed1", "all, rate 0.01", (0.4, 0.8)),
    )
    assert list(found.index) == ["all", "probe opacity"]
    assert found.loc["all", "gap"] == pytest.approx(0.3)
    assert found.loc["all", "num_runs"] == 2


def test_a_loss_that_is_not_there_is_null():
    nan = float("nan")
    found = of(curve("a-full-seed0", "prototypes", (nan, nan)), curve("a-full-seed1", "prototypes", (nan, 0.3)))
    assert found.loc["prototypes", ["train_loss", "id_val_loss", "gap"]].isna().all()
    assert found.loc["prototypes", "num_runs"] == 2


def test_no_curves_no_rows():
    assert not len(of([]))
