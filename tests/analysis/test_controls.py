"""Permuted labels and one method against itself: how often they alarm where there is nothing, and that they do else."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest

from pipeline.analysis.controls import (
    ControlsParams,
    Probed,
    controls,
    halves,
    permuted,
    same_method_twice,
    share_of,
)
from pipeline.analysis.evaluation import name_families
from pipeline.analysis.verdict import VerdictParams

PARAMS = ControlsParams(seed=1, permutations=10, resamples=100, inverse_l2=[1e-2, 1.0])
BOUNDS = VerdictParams(margin=0.05)
SPLITS = {"train": 40, "id_val": 16, "id_test": 30, "ood_test": 40}  # patients


def probed(rng, strength=2.0, leak=False):
    """Two images a patient, features that tell label, patient and side; ``leak``: id_test's patients are train's."""
    splits = np.repeat(np.repeat(list(SPLITS), list(SPLITS.values())), 2)
    names = np.repeat(np.arange(sum(SPLITS.values())), 2)
    if leak:
        names[splits == "id_test"] -= SPLITS["train"] + SPLITS["id_val"]
    labels = (np.random.default_rng(rng.integers(2**31)).random(200) < 0.4)[names].astype(np.float32)
    own = rng.normal(size=(200, 30))[names]
    x = own + 0.3 * rng.normal(size=(len(names), 30))
    x[:, 0] += strength * labels
    x[:, 1] += splits == "ood_test"
    return Probed(x.astype(np.float32), labels, np.array([f"p{name:03d}" for name in names], object), splits)


def of_labels(own, **changes):
    table = controls({("opacity", "net"): own}, predictions([]), ControlsParams(**{**vars(PARAMS), **changes}), BOUNDS)
    return table.set_index("split")


def predictions(scores, labels=None, method="scratch", shots=None):
    """A run for each row of ``scores`` (runs, images); two images a patient, half of them on either test split."""
    frames = []
    for seed, logits in enumerate(scores):
        images = np.arange(len(logits))
        frames.append(
            pd.DataFrame(
                {"run": f"net-{method}-seed{seed}", "backbone": "net", "method": method, "seed": seed, "finding": "f",
                 "image_id": [f"i{image}" for image in images], "patient_id": [f"p{image // 2}" for image in images],
                 "split": np.where(images % 4 < 2, "id_test", "ood_test"), "label": labels, "logit": logits,
                 "probability": expit(logits), "label_fraction": 1.0, "shots": shots, "draw": 0, "adaptation": "none",
                 "protocol": "home"}
            )
        )  # fmt: skip
    columns = ["run", "backbone", "method", "seed", "finding", "image_id", "patient_id", "split", "label", "logit"]
    columns += ["probability", "label_fraction", "shots", "draw", "adaptation", "protocol"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def trainings(rng, runs=4, better=0.0, images=400):
    """Runs of one method, each with its luck; every second one is ``better``."""
    labels = np.repeat(rng.random(images // 2) < 0.5, 2).astype(int)
    shared = rng.normal(size=images) + 1.5 * labels
    scores = [shared + 0.5 * rng.normal(size=images) + better * (run % 2) * labels for run in range(runs)]
    return predictions(scores, labels)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(0, 99))
def test_labels_go_from_patient_to_patient(sizes, seed):
    patients = np.repeat([f"p{n}" for n in range(len(sizes))], sizes)
    order = np.random.default_rng(seed).permutation(len(patients))
    own = np.repeat(np.arange(len(sizes), dtype=np.float32), sizes)  # a label that names its patient
    dealt = np.empty_like(own)
    dealt[np.argsort(order)] = permuted(own[order], patients[order], np.random.default_rng(seed))[np.argsort(order)]
    givers = [set(permuted(own, patients, np.random.default_rng(seed))[patients == name]) for name in set(patients)]
    assert all(len(giver) == 1 for giver in givers)
    assert len(set.union(*givers)) == len(sizes)  # each gives once
    mixed = permuted(np.array([0, 1, 5, 5], np.float32), np.array(["a", "a", "b", "b"]), np.random.default_rng(seed))
    assert sorted(mixed) == [0, 1, 5, 5]


def test_no_alarm_where_nothing_leaks_however_plain_the_signal():
    rng, studies = np.random.default_rng(11), 8
    found = [of_labels(probed(rng)) for _ in range(studies)]
    alarms = sum((one["verdict"] == "alarm").any() for one in found)
    misses = np.array([one["misses"] * one["num_runs"] for one in found]).sum()
    total = sum(one["num_runs"].sum() for one in found)
    print(f"alarms {alarms} of {studies}, intervals that miss a half {misses / total:.3f} of {total}")
    assert alarms <= 2
    assert binomtest(round(misses), total, 0.05).pvalue > 1e-3
    assert abs(np.mean([one["value"] for one in found]) - 0.5) < 0.02


def test_a_patient_on_two_sides_is_found():
    one = of_labels(probed(np.random.default_rng(5), leak=True))
    assert one["verdict"].to_dict() == {"id_test": "alarm", "ood_test": "passed"}
    assert one.loc["id_test", "ci_low"] > 0.6
    assert one.loc["id_test", "misses"] > 0.5


def test_few_patients_and_one_class_are_undetermined():
    own = probed(np.random.default_rng(5))
    nobody = Probed(own.features, own.labels * np.nan, own.patients, own.splits)
    one = Probed(own.features, own.labels * 0, own.patients, own.splits)
    for made in (nobody, one):
        table = of_labels(made)
        assert (table["verdict"] == "undetermined").all()
        assert table["note"].str.contains("both classes").all()
        assert table[["value", "p_value", "misses"]].isna().all().all()
    home = own.splits != "ood_test"
    alone = of_labels(Probed(own.features[home], own.labels[home], own.patients[home], own.splits[home]))
    assert (alone["verdict"] == "undetermined").to_dict() == {"id_test": False, "ood_test": True}


def test_one_method_against_itself_and_a_method_that_is_two():
    rng, words = np.random.default_rng(2), []
    for _ in range(12):
        words += [row["outcome"] for row in same_method_twice(trainings(rng, runs=6), PARAMS, BOUNDS)]
    print(words)
    assert {"helps", "harms"} & set(words) == set()
    two = same_method_twice(trainings(rng, runs=8, better=1.5), PARAMS, BOUNDS)
    assert [(row["verdict"], row["outcome"]) for row in two] == [("alarm", "harms")] * 2
    assert all(row["value"] < -0.03 for row in two)
    # The same scores in every run: nothing is as equivalent, and the interval says that it cannot say.
    rows = trainings(rng, runs=1)
    same = pd.concat([rows.assign(run=f"net-scratch-seed{n}", seed=n) for n in range(4)])
    assert {row["verdict"] for row in same_method_twice(same, PARAMS, BOUNDS)} == {"undetermined"}


def test_scratch_with_few_trainings_is_told_and_other_methods_are_left_out():
    rng = np.random.default_rng(0)
    three = trainings(rng, runs=3)
    other = three.assign(method="lp_ft", run=three["run"].str.replace("scratch", "lp_ft"))
    rows = same_method_twice(pd.concat([three, other]), PARAMS, BOUNDS)
    assert {row["run"] for row in rows} == {"net-scratch"}
    assert all("needs 4 trainings, 2 a group; there are 3" in row["note"] for row in rows)
    assert {row["verdict"] for row in rows} == {"undetermined"}
    none = same_method_twice(trainings(rng, runs=4).assign(label=pd.NA), PARAMS, BOUNDS)
    assert [row["note"] for row in none] == ["no labels"] * 2


def test_a_draw_keeps_its_runs_together():
    frames = [trainings(np.random.default_rng(n), runs=2).assign(draw=n, label_fraction=0.5) for n in range(5)]
    frames = [frame.assign(run=frame["run"] + f"-draw{n}") for n, frame in enumerate(frames)]
    (family,) = name_families(pd.concat(frames))
    first, second = halves(family)
    assert [len(first), len(second)] == [3, 2]
    for group in (*first, *second):
        assert len({family.draws[run] for run in group}) == 1
        assert len(group) == 2


@pytest.mark.parametrize(("count", "total"), [(0, 20), (3, 20), (20, 20)])
def test_limits_of_a_share_are_clopper_and_pearsons(count, total):
    known = binomtest(count, total).proportion_ci(0.95, "exact")
    assert share_of(count, total) == pytest.approx((known.low, known.high))
    assert np.isnan(share_of(0, 0)).all()
