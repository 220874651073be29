"""efficiency: points from the metrics and runs, and savings read off by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.analysis.efficiency import points, reached, savings
from pipeline.analysis.evaluation import Family, Setting, family_name
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Metrics
from pipeline.tables.training import Runs

ALL = 1000
PLACES = (("id_test", "source", 0.0), ("ood_test", "target", 0.1), ("id_val", "source", 0.0))


def family(method, fraction=1.0, shots=0, adaptation="", backbone="resnet"):
    setting = Setting("main", fraction, shots, adaptation)
    name = family_name(backbone, method, setting._replace(protocol=""))
    return Family(name, backbone, method, setting, {f"{name}-run0": 0, f"{name}-run1": 1})


def runs_of(families):
    rows = []
    for one in families:
        patients = 2 * one.setting.shots or round(one.setting.label_fraction * ALL)
        rows += [
            {"run": run, "num_train_patients": patients + draw, "train_tflop": 10.0 + draw}
            for run, draw in one.draws.items()
        ]
    return make_table(Runs, rows)


def metrics_of(values):
    """AUROC at home of each family; elsewhere 0.1 less; and a metric that is none of our business."""
    rows = []
    for one, value in values:
        for split, group, less in PLACES:
            row = {"run": one.name, "finding": "f", "split": split, "group": group, "num_images": 9, "num_patients": 9}
            found = None if value is None else value - less
            limits = {} if value is None else {"ci_low": found - 0.05, "ci_high": found + 0.05}
            rows += [row | {"metric": "auroc", "value": found} | limits, row | {"metric": "brier", "value": 0.1}]
    return make_table(Metrics, rows)


def made(*values):
    """Points and savings of pairs of a family and its AUROC at home."""
    families = [one for one, _ in values]
    found = points(metrics_of(values), families, runs_of(families))
    return found, savings(found, families)


def saving(*values, **wanted):
    """The one row that is wanted; at home, against scratch, of shares, unless said otherwise."""
    _, rows = made(*values)
    for column, value in {"split": "id_test", "against": "scratch", "budget": "share", **wanted}.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0]


# --- points --------------------------------------------------------------------------------------------------


def test_a_point_is_the_familys_row_and_its_runs_means():
    found, _ = made((family("full", 0.1), 0.8), (family("full"), 0.9), (family("full", shots=5), 0.7))
    assert len(found) == 3 * 2
    row = found.set_index(["run", "split"]).loc[("resnet-full-labels10", "ood_test")]
    assert row[["curve", "backbone", "method", "budget"]].tolist() == ["resnet-full", "resnet", "full", "share"]
    assert (row["label_fraction"], row["labelled_patients"], row["train_tflop"]) == (0.1, 100.5, 10.5)
    assert row[["value", "ci_low", "ci_high"]].tolist() == pytest.approx([0.7, 0.65, 0.75])
    shots = found.set_index(["run", "split"]).loc[("resnet-full-shots5", "id_test")]
    assert (shots["budget"], shots["shots"], shots["labelled_patients"]) == ("shots", 5, 10.5)
    assert np.isnan(shots["label_fraction"])
    whole = found.set_index(["run", "split"]).loc[("resnet-full", "id_test")]
    assert (whole["budget"], whole["label_fraction"]) == ("all", 1.0)


def test_a_run_that_is_not_recorded_leaves_its_familys_means_null():
    one, other = family("full"), family("probe")
    runs = runs_of([one, other])
    runs = runs[runs["run"] != "resnet-full-run1"]
    found = points(metrics_of([(one, 0.8), (other, 0.8)]), [one, other], runs).set_index("run")
    assert found.loc["resnet-full", ["labelled_patients", "train_tflop"]].isna().all(axis=None)
    assert found.loc["resnet-probe", ["labelled_patients", "train_tflop"]].notna().all(axis=None)


def test_single_runs_are_no_points():
    one = family("full")
    metrics = metrics_of([(one, 0.8)])
    single = metrics.assign(run="resnet-full-run0")
    both = make_table(Metrics, [*metrics.to_dict("records"), *single.to_dict("records")])
    assert set(points(both, [one], runs_of([one]))["run"]) == {"resnet-full"}


# --- where a curve reaches a value ---------------------------------------------------------------------------


def test_reached_by_hand():
    # Half the way from 0.7 to 0.8 is the geometric mean of 100 and 400.
    assert reached([100, 400], [0.7, 0.8], 0.75) == ("reached", pytest.approx(200))
    assert reached([100, 400, 1000], [0.7, 0.8, 0.9], 0.8) == ("reached", pytest.approx(400))
    assert reached([100, 400], [0.8, 0.9], 0.8) == ("at_least", 100)
    bound, number = reached([100, 400], [0.7, 0.79], 0.8)
    assert bound == "not_reached"
    assert np.isnan(number)


def test_a_lucky_point_at_few_labels_promises_nothing():
    assert reached([10, 100, 1000], [0.9, 0.7, 0.9], 0.8) == ("reached", pytest.approx(10**2.5))
    assert reached([10, 100], [0.9, 0.7], 0.8)[0] == "not_reached"


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(0.4, 1.0)), min_size=2, max_size=8, unique_by=lambda p: p[0]),
    st.floats(0.4, 1.0),
)
def test_reached_lies_on_the_curve_and_stays(pairs, target):
    numbers, values = map(list, zip(*sorted(pairs), strict=True))
    bound, number = reached(numbers, values, target)
    if bound == "not_reached":
        assert values[-1] < target
        return
    assert numbers[0] <= number <= numbers[-1] * (1 + 1e-9)
    assert all(value >= target for at, value in zip(numbers, values, strict=True) if at > number * (1 + 1e-9))
    if bound == "reached":
        assert np.interp(np.log(number), np.log(numbers), values) == pytest.approx(target, abs=1e-6)


# --- savings -------------------------------------------------------------------------------------------------


def test_a_saving_by_hand():
    row = saving(
        (family("scratch", 0.1), 0.6), (family("scratch"), 0.75),
        (family("full", 0.1), 0.7), (family("full", 0.4), 0.8), (family("full"), 0.9),
    )  # fmt: skip
    needed = np.sqrt(100.5 * 400.5)  # half the way, on the logarithm
    assert row["bound"] == "reached"
    assert (row["value"], row["all_patients"]) == (0.75, 1000.5)
    assert row["labelled_patients"] == pytest.approx(needed)
    assert row["saving"] == pytest.approx(1 - needed / 1000.5)
    assert row["note"] == ""


def test_shares_and_shots_are_read_apart():
    values = [
        (family("scratch"), 0.75), (family("full", 0.1), 0.8), (family("full", shots=5), 0.7), (family("full"), 0.9),
    ]  # fmt: skip
    assert saving(*values)["bound"] == "at_least"
    shots = saving(*values, budget="shots")
    assert shots["bound"] == "reached"
    assert shots["labelled_patients"] == pytest.approx(10.5 * (1000.5 / 10.5) ** 0.25)


def test_bounds_say_what_is_not_known():
    few_are_enough = saving((family("scratch"), 0.6), (family("full", 0.1), 0.7), (family("full"), 0.8))
    assert few_are_enough["bound"] == "at_least"
    assert few_are_enough["saving"] == pytest.approx(1 - 100.5 / 1000.5)
    never = saving((family("scratch"), 0.9), (family("full", 0.1), 0.7), (family("full"), 0.8))
    assert never["bound"] == "not_reached"
    assert np.isnan(never["saving"])
    assert never["note"] == "its AUROC is not reached"


def test_undefined_is_null_with_a_reason():
    scratch = saving((family("scratch"), None), (family("full", 0.1), 0.7), (family("full"), 0.8))
    assert "no AUROC or no number of patients from scratch" in scratch["note"]
    curve = saving((family("scratch"), 0.7), (family("full", 0.1), None), (family("full"), 0.8))
    assert "fewer than two points" in curve["note"]
    three = [(family("full", 0.1), 0.7), (family("full", 0.4), None), (family("full"), 0.8)]
    partly = saving((family("scratch"), 0.75), *three)
    assert partly["note"] == "points without an AUROC are left out"
    assert partly["bound"] == "reached"
    for row in (scratch, curve):
        assert row[["saving", "labelled_patients"]].isna().all()
        assert pd.isna(row["bound"])


def test_who_is_compared_with_whom():
    few = [family("full", 0.1), family("full", 0.1, adaptation="bn"), family("full", 0.1, backbone="vgg")]
    whole = [family("full"), family("full", adaptation="bn"), family("full", backbone="vgg")]
    scratches = [family("scratch"), family("scratch", 0.1), family("scratch", adaptation="bn")]
    values = [(one, 0.8) for one in few + whole] + [(one, 0.7) for one in scratches]
    _, rows = made(*values, (family("scratch_converged"), 0.75))
    home = rows[rows["split"] == "id_test"].set_index(["curve", "against"])["value"]
    assert home.to_dict() == {
        ("resnet-full", "scratch"): 0.7,
        ("resnet-full", "scratch_converged"): 0.75,
        ("resnet-full-bn", "scratch"): 0.7,
    }


def test_one_budget_saves_nothing():
    found, rows = made((family("scratch"), 0.7), (family("full"), 0.8))
    assert len(found)
    assert not len(rows)
