"""membership: attacks against known answers, the estimator's coverage, and a calibration that invents nothing."""

import math
import zlib
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from pipeline.analysis.membership import (
    Images,
    MembershipParams,
    Outputs,
    Trained,
    audit,
    calibrated,
    class_scale,
    exposure,
    modified_entropy,
    of_patients,
    references_of,
    scores_of,
    separation,
)
from pipeline.metrics.intervals import interval, patient_counts
from pipeline.params import ParamsError, parse
from pipeline.tables.contract import make_table
from pipeline.tables.membership import ATTACKS, MembershipAttacks, MembershipExposures

PARAMS = MembershipParams(seed=1, resamples=200, false_positive_rates=[0.1])


def named(prefix, count):
    return np.array([f"{prefix}{i:04d}" for i in range(count)])


@cache
def counted(names, resamples):
    return patient_counts(names, resamples, 1)


def area(members, others, resamples=200):
    """AUROC with interval of two lots of scores, each of a patient of their own."""
    sides = [pd.Series(values, index=named(name, len(values))) for name, values in (("m", members), ("o", others))]
    names = (*sides[0].index, *sides[1].index)
    rows = {name: i for i, name in enumerate(names)}
    estimate = separation([(sides[0], sides[1])], counted(names, resamples), rows)
    return estimate.value, interval(estimate, "logit")


def one_finding(logits, labels, patients=None):
    labels = np.asarray(labels, dtype=float)[:, None]
    patients = named("p", len(labels)) if patients is None else np.asarray(patients)
    return Outputs(np.asarray(logits, dtype=float)[:, None], labels, patients)


# --- scores ----------------------------------------------------------------------------------------------------


@given(st.floats(-30, 30))
def test_scores_are_the_papers_formulae(z):
    """Of a softmax over two classes, written out as in the papers; the label is 1."""
    outputs = one_finding([z, 0.5, -0.5, 1.5, -1.5], [1, 0, 1, 0, 1])
    scale = class_scale(outputs)
    p = {1: 1 / (1 + math.exp(-z)), 0: 1 / (1 + math.exp(z))}
    scores = scores_of(outputs, scale)
    assert scores["loss"].iloc[0] == pytest.approx(math.log(p[1]), rel=1e-9)
    assert scores["entropy"].iloc[0] == pytest.approx(sum(q * math.log(q) for q in p.values()), rel=1e-9)
    # Song & Mittal 2021, eq. 8: -(1 - p_y) log p_y - sum over the other classes of p_i log(1 - p_i), and p_0 = 1 - p_1.
    expected = -(1 - p[1]) * math.log(p[1]) - p[0] * math.log(1 - p[0]) if p[0] < 1 else None
    if expected is not None and p[0] > 1e-12:
        assert modified_entropy(np.array([z]))[0] == pytest.approx(expected, rel=1e-3)


def test_each_class_is_held_against_its_own_in_id_val():
    """Positives are hard for everybody: by the loss they all look like strangers, by class they do not."""
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 2

    def agreement(gain):
        return np.where(labels == 1, rng.normal(-1, 1, 400), rng.normal(4, 1, 400)) + gain

    def outputs(gain):
        values = agreement(gain)
        return one_finding(np.where(labels == 1, values, -values), labels)

    scale = class_scale(outputs(0))
    members, others = scores_of(outputs(1.0), scale), scores_of(outputs(0), scale)
    found = {name: area(members[name].to_numpy(), others[name].to_numpy())[0] for name in members}
    assert found["modified_entropy"] > found["loss"] + 0.04


def test_a_patient_is_the_mean_of_their_annotated_images_and_findings():
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan], [7.0, 9.0]])
    found = of_patients(values, np.array(["a", "a", "b", "c"]))
    assert found.to_dict() == {"a": 3.0, "c": 8.0}


def test_a_class_that_id_val_lacks_leaves_the_modified_entropy_out():
    outputs = one_finding([1.0, -1.0, 2.0], [1, 0, 1])
    scores = scores_of(outputs, class_scale(one_finding([1.0, 2.0, 3.0], [1, 1, 1])))
    assert {name: len(values) for name, values in scores.items()} == {"loss": 3, "entropy": 3, "modified_entropy": 0}


# --- the estimator -----------------------------------------------------------------------------------------------


def test_simulated_logits_of_known_auroc():
    """Agreements N(d, 1) and N(0, 1): the loss is monotone, so that the attack's AUROC is Phi(d / sqrt 2)."""
    rng, held, lowest = np.random.default_rng(5), 0, []
    for _ in range(100):
        labels = rng.integers(0, 2, (2, 150))
        agreement = rng.normal([[0.6], [0.0]], 1.0, (2, 150))
        sides = [one_finding(np.where(y == 1, a, -a), y) for a, y in zip(agreement, labels, strict=True)]
        scale = class_scale(sides[1])
        value, made = area(*(scores_of(side, scale)["loss"].to_numpy() for side in sides))
        truth = norm.cdf(0.6 / math.sqrt(2))
        held += made.low <= truth <= made.high
        lowest.append(value)
    assert np.mean(lowest) == pytest.approx(truth, abs=0.01)
    assert held >= 89  # of 100 at 95 %: fewer in 1 of 100 runs; 94 seen


@pytest.mark.parametrize(("shift", "rate", "num"), [(0.0, 0.1, 60), (1.0, 0.1, 60), (2.0, 0.05, 200), (0.0, 0.01, 60)])
def test_limits_of_the_true_positive_rate_hold(shift, rate, num):
    """ROC of N(shift, 1) against N(0, 1) at ``rate``: Phi(shift - z). No model of the scores, so they are wide."""
    rng, truth = np.random.default_rng(7), norm.cdf(shift + norm.ppf(rate))
    held, false_alarms, found = 0, 0, []
    exposed = max(0.0, (truth - rate) / (1 - rate))
    for _ in range(400):
        members, others = rng.normal(shift, 1, 80), rng.normal(0, 1, num)
        made = exposure(members, others, rate)
        held += made.low <= truth <= made.high
        false_alarms += made.exposed_at_least > exposed * 80
        found.append(made.true_positive_rate)
    assert held >= 380
    assert false_alarms <= 20
    if rate * (num + 1) >= 1:
        assert np.mean(found) == pytest.approx(truth, abs=0.03)
    else:
        assert np.isnan(found).all()


def test_everybody_is_exposed_where_nobody_else_looks_like_them():
    made = exposure(np.full(100, 5.0), np.zeros(400), 0.01)
    assert (made.true_positive_rate, made.exposed_share) == (1.0, 1.0)
    assert 90 < made.exposed_at_least <= 97  # a share of 1 has a lower limit too
    few = exposure(np.full(100, 5.0), np.zeros(20), 0.01)
    assert math.isnan(few.true_positive_rate)
    assert (few.exposed_at_least, few.note) == (0, "20 patients never seen; a threshold at this rate needs 99")
    assert exposure(np.ones(3), np.empty(0), 0.1).note == "no patients on a side"


def test_equal_scores_expose_nobody():
    made = exposure(np.zeros(50), np.zeros(200), 0.1)
    assert (made.true_positive_rate, made.exposed_share, made.exposed_at_least) == (0.0, 0.0, 0)


# --- trained models of known leakage ------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "number"), [(400, 100), (40, 1000)])
def test_the_nearest_mean_leaks_as_much_as_theory_says(width, number):
    """w = sum y x / n on labels that mean nothing: y w.x is N(D/n, D/n) for a member, N(0, D/n) for others.

    So the attack's AUROC is Phi(sqrt(D / 2n)): 0.921 overfitted (four features a patient), 0.556 with 25 patients a
    feature.
    """
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((2, number, width)), rng.integers(0, 2, (2, number))
        weight = (2 * y[0] - 1) @ x[0] / number
        sides = [one_finding(x[side] @ weight, y[side]) for side in (0, 1)]
        scale = class_scale(sides[1])
        found.append(area(*(scores_of(side, scale)["loss"].to_numpy() for side in sides), resamples=100)[0])
    assert np.mean(found) == pytest.approx(norm.cdf(math.sqrt(width / 2 / number)), abs=0.012)


@pytest.mark.parametrize(("width", "number", "low", "high"), [(300, 100, 0.85, 1.0), (5, 1500, 0.47, 0.54)])
def test_logistic_regression_overfitted_is_found_out_and_regularised_is_not(width, number, low, high):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, number, width)), rng.integers(0, 2, (2, number))
    model = LogisticRegression(C=10.0, max_iter=1000).fit(x[0], y[0])
    sides = [one_finding(model.decision_function(x[side]), y[side]) for side in (0, 1)]
    scale = class_scale(sides[1])
    for name in ("loss", "entropy", "modified_entropy"):
        value, _ = area(*(scores_of(side, scale)[name].to_numpy() for side in sides))
        assert low <= value <= high, name


# --- references ----------------------------------------------------------------------------------------------------


def test_references_are_of_the_largest_budget_that_leaves_a_member_out():
    budgets = {"all-1": 1.0, "all-2": 1.0, "half-1": 0.5, "half-2": 0.5, "fifth-1": 0.2}
    trained = {"all-1": "abcd", "all-2": "abcd", "half-1": "ab", "half-2": "cd", "fifth-1": "a"}
    assert references_of(budgets, trained, "all-1") == ["half-1", "half-2"]
    assert references_of(budgets, trained, "half-1") == ["half-2"]
    assert references_of(budgets, trained, "fifth-1") == []
    assert references_of({"all-1": 1.0, "all-2": 1.0}, trained, "all-1") == []


def random_study(seed, gain, members=60, others=60, draws=4, hardness=3.0):
    """Agreements under a run and its references that each left half of the members out; ``gain`` is what training adds.

    Patients are more or less hard for all models alike, which is what references take away.
    """
    rng = np.random.default_rng(seed)
    names = {"own": named("m", members), "others": named("o", others)}
    hard = {side: rng.normal(0, hardness, len(own)) for side, own in names.items()}
    halves = {f"ref{i}": frozenset(rng.permutation(names["own"])[: members // 2]) for i in range(draws)}
    frames = {
        side: pd.DataFrame({run: hard[side] + rng.normal(0, 1, len(own)) for run in ("run", *halves)}, index=own)
        for side, own in names.items()
    }
    frames["own"]["run"] += gain
    for name, half in halves.items():
        frames["own"][name] += gain * np.isin(names["own"], list(half))
    return frames["own"], frames["others"], halves


def test_references_find_what_the_loss_alone_does_not():
    own, others, halves = random_study(2, gain=2.0, members=300, others=300)
    plain, _ = area(own["run"].to_numpy(), others["run"].to_numpy())
    members, strangers = calibrated(own, others, "run", halves, seed=1)
    found, _ = area(members.to_numpy(), strangers.to_numpy())
    assert plain < 0.72
    assert found > 0.85
    assert 250 < len(members) < 300  # those whom all four references had are left out: about a sixteenth


def test_references_invent_nothing():
    """No training effect: a half, and the level in the upper tail too, though members have fewer references."""
    areas, tails = [], []
    for seed in range(60):
        own, others, halves = random_study(seed, gain=0.0, members=80, others=80, draws=3, hardness=0.0)
        members, strangers = calibrated(own, others, "run", halves, seed=seed)
        areas.append(area(members.to_numpy(), strangers.to_numpy(), resamples=100)[0])
        tails.append(exposure(members.to_numpy(), strangers.to_numpy(), 0.05).true_positive_rate)
    assert np.mean(areas) == pytest.approx(0.5, abs=0.02)
    assert np.mean(tails) == pytest.approx(4 / 81, abs=0.015)  # with all references for all others: 0.075


# --- the whole audit -------------------------------------------------------------------------------------------------


def small_audit(gain=0.0, annotated=True, halves=True):
    """Three trainings with all labels, and two draws of half of them; 40 training patients with two images each."""
    patients = np.repeat(named("p", 50), 2)
    train_side, id_val = np.arange(80), np.arange(80, 100)
    labels = np.repeat(np.arange(50) % 2, 2).astype(float)[:, None] if annotated else np.full((100, 1), np.nan)
    other_labels = (np.arange(40) % 2).astype(float)[:, None] if annotated else np.full((40, 1), np.nan)
    half = {draw: np.flatnonzero(np.isin(patients[:80], named("p", 40)[draw::2])) for draw in (0, 1)}
    runs = [
        Trained(f"net-probe-seed{seed}", "net-probe", "fraction", 1.0, True, labels, train_side) for seed in (1, 2, 3)
    ]
    runs += [
        Trained(f"net-probe-seed1-labels50-draw{d}", "net-probe", "fraction", 0.5, False, labels, half[d])
        for d in (0, 1)
        if halves
    ]
    logits, other_logits = {}, {}
    for run in runs:
        rng = np.random.default_rng(zlib.crc32(run.name.encode()))
        sign = 2 * np.nan_to_num(labels) - 1
        logits[run.name] = sign * rng.normal(0.5, 1, (100, 1))
        logits[run.name][run.train] += gain * sign[run.train]
        other_logits[run.name] = (2 * np.nan_to_num(other_labels) - 1) * rng.normal(0.5, 1, (40, 1))
    images = Images(patients, train_side, id_val, logits, named("q", 40), other_labels, other_logits)
    attacks, exposures = audit(runs, images, PARAMS)
    return (
        make_table(MembershipAttacks, attacks).set_index(["run", "attack"]),
        make_table(MembershipExposures, exposures).set_index(["run", "attack", "false_positive_rate"]),
    )


def test_what_the_audit_tells_of_a_model_that_learnt_by_heart():
    attacks, exposures = small_audit(gain=4.0)
    for name in ATTACKS:
        row = attacks.loc[("net-probe", name)]
        assert row["auroc"] > 0.8, name
        assert row["ci_low"] > 0.6, name
        assert row["num_runs"] == 3
        if name != "calibrated":  # whom one half left out the other had
            assert abs(row["control"] - 0.5) < 0.15, name
            assert row["num_controls"] == 20
    mean = attacks.loc[[(f"net-probe-seed{seed}", "loss") for seed in (1, 2, 3)], "auroc"].mean()
    assert attacks.loc[("net-probe", "loss"), "auroc"] == pytest.approx(mean)
    assert attacks.loc[("net-probe-seed1", "loss"), "num_controls"] == 0
    assert attacks.loc[("net-probe-seed1-labels50-draw0", "loss"), "num_members"] == 20
    assert attacks.loc[("net-probe-seed1", "calibrated"), "num_references"] == 2
    assert ("net-probe", "loss", 0.1) not in exposures.index
    assert exposures.loc[("net-probe-seed1", "loss", 0.1), "exposed_at_least"] > 10
    calm, none = small_audit()
    assert abs(calm.loc[("net-probe", "loss"), "auroc"] - 0.5) < 0.12
    assert none["exposed_at_least"].max() <= 3


def test_what_is_undefined_is_null_with_the_reason():
    attacks, exposures = small_audit(halves=False)
    row = attacks.loc[("net-probe", "calibrated")]
    assert row[["auroc", "ci_low", "control"]].isna().all()
    assert row["note"] == "no run of this network and method left a training patient out"
    told = exposures.loc[("net-probe-seed1", "calibrated", 0.1)]
    assert told.isna()[["true_positive_rate", "ci_low", "exposed_at_least"]].all()
    assert told["note"] == row["note"]
    blank, _ = small_audit(annotated=False)
    assert blank["auroc"].isna().all()
    assert (blank["note"] != "").all()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"false_positive_rates": [0.0]}, "membership.false_positive_rates.0"),
        ({"false_positive_rates": [0.1, 0.1]}, "each may stand there once"),
        ({"false_positive_rates": []}, "membership.false_positive_rates"),
        ({"level": 0.1}, "unknown key"),
    ],
)
def test_senseless_params_are_refused(changes, text):
    with pytest.raises(ParamsError, match=text):
        parse(MembershipParams, {"seed": 1, **changes}, "membership")
