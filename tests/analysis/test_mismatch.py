"""Means over a family's own runs; a run without a distance leaves the family without one."""

import numpy as np
import pytest

from pipeline.analysis.evaluation import Family, Setting
from pipeline.analysis.mismatch import mismatch
from pipeline.tables.contract import make_table
from pipeline.tables.training import Distances

PLAIN = Setting("home", 1.0, 0, "none")
FAMILIES = [
    Family("net-full", "net", "full", PLAIN, {"net-full-seed1": 0, "net-full-seed2": 0, "net-full-seed3": 0}),
    Family("net-probe", "net", "probe", PLAIN, {"net-probe-seed1": 0}),
    Family("no_pixels-logistic", "no_pixels", "logistic", PLAIN, {"no_pixels-logistic-seed0": 0}),
]


def row(run, site="away", mmd2=0.1, p=0.01, note=""):
    return {"run": run, "site": site, "mmd2": mmd2, "p_value": p, "home_mmd2": mmd2 / 10, "num_images": 9,
            "num_patients": 5, "note": note}  # fmt: skip


def test_means_and_median_over_the_familys_own_runs():
    runs = [row("net-full-seed1", mmd2=0.1, p=0.01), row("net-full-seed2", mmd2=0.2, p=0.5)]
    runs += [row("net-full-seed3", mmd2=0.6, p=0.02), row("net-probe-seed1", mmd2=9.0), row("net-probe-seed1", "far")]
    table = mismatch(make_table(Distances, runs), FAMILIES).set_index(["run", "site"])
    assert list(table.index) == [("net-full", "away"), ("net-probe", "away"), ("net-probe", "far")]
    full = table.loc["net-full", "away"]
    assert full["mmd2"] == pytest.approx(0.3)
    assert full["home_mmd2"] == pytest.approx(0.03)
    assert (full["p_value"], full["num_runs"], full["num_patients"]) == (0.02, 3, 5)


def test_undefined_is_null_with_the_reason():
    runs = [row("net-full-seed1"), row("net-full-seed2", mmd2=np.nan, p=np.nan, note="too few")]
    (found,) = mismatch(make_table(Distances, runs), FAMILIES).to_dict("records")
    assert np.isnan(found["mmd2"])
    assert np.isnan(found["p_value"])
    assert found["note"] == "too few"


def test_no_distances_no_rows():
    assert mismatch(make_table(Distances, []), FAMILIES).empty
