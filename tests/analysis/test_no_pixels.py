"""The baseline without pixels: known answers by simulation, an independent fit, and what it must not look at."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import FunctionTransformer

from pipeline.analysis import no_pixels
from pipeline.analysis.no_pixels import CATEGORIES, NUMBERS, BaselineParams, Model, facts_of, fit, without_pixels
from pipeline.errors import PipelineError
from pipeline.params import ParamsError, parse
from pipeline.tables.contract import make_table
from pipeline.tables.files import Instances
from pipeline.tables.images import Splits
from pipeline.tables.labels import Labels

PARAMS = BaselineParams(inverse_l2=[0.01, 0.1, 1.0])
SIDES = {"train": "home", "id_val": "home", "id_test": "home", "target_adapt": "away", "ood_test": "away"}


def cohort(size, **columns):
    """``size`` images a split, a patient each; ``columns`` are constants, or functions of rng, number and site."""
    rng = np.random.default_rng(1)
    frames = []
    for split, site in SIDES.items():
        ids = [f"{split}{number:05d}" for number in range(size)]
        values = {name: made(rng, size, site) if callable(made) else made for name, made in columns.items()}
        role = "source" if site == "home" else "target"
        frames.append(pd.DataFrame({"image_id": ids, "split": split, "role": role, "site": site, **values}))
    rows = pd.concat(frames, ignore_index=True).assign(source_id="s", frame=0, rows=1, columns=1, source_hmac="h")
    rows = rows.assign(patient_id=rows["image_id"], study_id=rows["image_id"])
    instances = make_table(Instances, rows[[name for name in Instances.columns if name in rows]])
    return instances, make_table(Splits, rows[list(Splits.columns)])


def labels_of(instances, probability, finding="opacity", seed=2):
    drawn = np.random.default_rng(seed).random(len(instances)) < probability
    return make_table(
        Labels, pd.DataFrame({"image_id": instances["image_id"], "finding": finding, "label": drawn.astype(int)})
    )


def aurocs(found, labels, score="logit"):
    """By split, of all findings together."""
    rows = found.logits.merge(labels, on=["image_id", "finding"])
    return {split: roc_auc_score(group["label"].astype(int), group[score]) for split, group in rows.groupby("split")}


def ages(rng, size, site):
    return rng.integers(20, 90, size)


def sexes(rng, size, site):
    return rng.choice(["F", "M"], size)


def views(rng, size, site):
    return rng.choice(["ap", "pa", None], size)


# --- known answers ---------------------------------------------------------------------------------------


def test_a_label_of_age_alone_is_ranked_as_the_truth_ranks_it():
    instances, splits = cohort(3000, age_years=ages, sex=sexes, view_position=views)
    truth = expit((instances["age_years"].astype(float) - 55) / 10)
    labels = labels_of(instances, truth)
    found = without_pixels(instances, labels, splits, PARAMS)
    attainable = aurocs(found, labels.assign(age=instances["age_years"]), "age")
    assert min(attainable.values()) > 0.8
    assert aurocs(found, labels) == pytest.approx(attainable, abs=0.01)
    rows = found.logits.set_index("image_id")["logit"]
    assert np.abs(expit(rows) - truth.set_axis(instances["image_id"])[rows.index]).mean() < 0.03


def test_an_independent_label_is_not_found():
    instances, splits = cohort(3000, age_years=ages, sex=sexes, view_position=views)
    labels = labels_of(instances, 0.3)
    found = aurocs(without_pixels(instances, labels, splits, PARAMS), labels)
    assert list(found.values()) == pytest.approx([0.5] * 3, abs=0.04)  # three standard errors


def scanners(rng, size, site):
    return rng.choice(["alpha", "beta"], size) if site == "home" else np.full(size, "gamma")


def test_a_scanner_that_gives_the_label_away_at_home_says_nothing_elsewhere():
    """P(positive) is 0.9 on one scanner and 0.1 on the other: sensitivity = specificity = AUROC = 0.9, by hand."""
    instances, splits = cohort(2000, model=scanners)
    labels = labels_of(instances, np.where(instances["model"] == "alpha", 0.9, 0.1))
    labels = labels.assign(label=labels["label"].mask(instances["site"] == "away", np.arange(len(labels)) % 2))
    found = without_pixels(instances, labels, splits, PARAMS)
    reached = aurocs(found, labels)
    assert reached["id_test"] == pytest.approx(0.9, abs=0.02)
    assert reached["ood_test"] == 0.5
    away = found.logits.loc[found.logits["split"] == "ood_test", "logit"]
    assert len(set(away)) == 1  # the mean of the two scanners, 0 by symmetry
    assert away.iloc[0] == pytest.approx(0.0, abs=0.1)


# --- an independent implementation -----------------------------------------------------------------------


def by_hand(train, labels, other, strength):
    """Penalised likelihood by BFGS on a design made by pandas: sum of losses + |w|^2 / (2 C), the bias free."""
    parts = []
    for frame in (train, other):
        made = {}
        for name in NUMBERS:
            known = train[name].fillna(train[name].median())
            values = frame[name].fillna(train[name].median())
            made[name] = (values - known.mean()) / known.std(ddof=0)
            if train[name].isna().any():
                null = train[name].isna()
                made[f"{name} null"] = (frame[name].isna() - null.mean()) / null.std(ddof=0)
        for name in CATEGORIES:
            made |= {f"{name}={level}": (frame[name] == level).astype(float) for level in set(train[name])}
        parts.append(pd.DataFrame(made))
    x, away = (part[sorted(part)].to_numpy(float) for part in parts)
    y = labels.to_numpy()

    def loss(theta):
        z = x @ theta[1:] + theta[0]
        slope = expit(z) - y
        value = np.logaddexp(0, z).sum() - y @ z + theta[1:] @ theta[1:] / (2 * strength)
        return value, np.concatenate([[slope.sum()], x.T @ slope + theta[1:] / strength])

    best = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="BFGS", options={"gtol": 1e-9})
    return away @ best.x[1:] + best.x[0]


def mixed(size=300):
    """Numbers and categories with nulls; at the target more of them, and levels that home has not."""

    def some(values, away):
        return lambda rng, n, site: rng.choice(np.array(values if site == "home" else away, dtype=object), n)

    return cohort(
        size,
        age_years=some([30, 50, 70, None], [None, 90]),
        kvp=some([85.0, 120.0], [None, 100.0]),
        sex=some(["F", "M", None], ["O", None]),
        view_position=some(["ap", "pa"], [None, "ll"]),
        body_part=some(["chest", None], ["chest"]),
        manufacturer=some(["kodak", "agfa"], ["canon"]),
        model=some(["other", None], [None, "alpha_dr1"]),
    )


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_logits_are_those_of_an_independent_fit(strength):
    instances, splits = mixed()
    labels = labels_of(instances, np.where(instances["view_position"].eq("ap").fillna(False), 0.7, 0.3))
    found = without_pixels(instances, labels, splits, BaselineParams(inverse_l2=[strength]))
    assert found.columns["used"].all()
    facts = facts_of(instances)
    chosen = [name for name in facts.index if name.startswith("train")]
    label = labels.set_index("image_id")["label"].astype(float)
    logits = found.logits.set_index("image_id")["logit"]
    expected = by_hand(facts.loc[chosen], label[chosen], facts.loc[logits.index], strength)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)


def test_the_penalty_is_the_one_that_id_val_prefers():
    """Oracle: each penalty alone; with id_val's labels as they are, then turned around, where the strongest is best."""
    instances, splits = cohort(400, age_years=ages)
    labels = labels_of(instances, expit((instances["age_years"].astype(float) - 55) / 10))
    on_val = labels["image_id"].str.startswith("id_val")
    for given_labels, best in (
        (labels, 1.0),
        (labels.assign(label=labels["label"].mask(on_val, 1 - labels["label"])), 1e-4),
    ):
        both = without_pixels(instances, given_labels, splits, BaselineParams(inverse_l2=[1e-4, 1.0]))
        alone = without_pixels(instances, given_labels, splits, BaselineParams(inverse_l2=[best]))
        pd.testing.assert_frame_equal(both.logits, alone.logits)


# --- what it may look at ---------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_labels_outside_train_and_id_val_change_no_bit(seed):
    instances, splits = mixed(40)
    labels = labels_of(instances, 0.5)
    outside = ~labels["image_id"].str.startswith(("train", "id_val"))
    noise = np.random.default_rng(seed).choice([0, 1, None], len(labels))
    poisoned = make_table(Labels, labels.assign(label=labels["label"].mask(outside, noise)))
    before, after = (without_pixels(instances, each, splits, PARAMS) for each in (labels, poisoned))
    pd.testing.assert_frame_equal(before.logits, after.logits, check_exact=True)


def test_an_images_logit_hangs_on_nobody_else_of_the_tests_and_on_no_order():
    instances, splits = mixed(60)
    labels = labels_of(instances, 0.5)
    whole = without_pixels(instances, labels, splits, PARAMS).logits.set_index("image_id")["logit"]
    for kept in (splits[splits["role"] == "source"], splits.sample(frac=1, random_state=3)):
        again = without_pixels(instances.sample(frac=1, random_state=4), labels[::-1], kept, PARAMS).logits
        again = again.set_index("image_id")["logit"]
        assert again.equals(whole[again.index])


def test_equal_facts_tie():
    """To the bit, wherever they stand: BLAS's product gives some of these rows two values."""
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat(np.arange(50), 41))
    logits = Model(FunctionTransformer(), rng.normal(size=13), 0.1).logits(rng.normal(size=(50, 13))[kind])
    assert pd.Series(logits).groupby(kind).agg(set).map(len).max() == 1


def test_a_null_in_training_is_a_level_of_its_own():
    """Positive exactly where view and age are missing, which home shows too."""
    missing = np.arange(200) % 2 == 0
    instances, splits = cohort(
        200,
        view_position=lambda *_: np.where(missing, None, "pa"),
        age_years=lambda *_: pd.array(np.where(missing, None, 50), dtype="Int16"),
    )
    labels = labels_of(instances, instances["view_position"].isna())
    for column in ("view_position", "age_years"):
        found = without_pixels(instances.assign(**{column: pd.NA}), labels, splits, PARAMS)
        assert set(aurocs(found, labels).values()) == {1.0}
        unused = found.columns.set_index("column")["note"]
        assert unused[column] == "all null in training"


# --- columns and refusals --------------------------------------------------------------------------------


def test_what_does_not_vary_in_training_is_not_used_and_told():
    """Per finding: the images that are annotated count, not all; the target's variation does not."""
    instances, splits = cohort(
        100,
        sex=sexes,
        body_part="chest",
        model=lambda _, size, __: np.where(np.arange(size) < 50, "a", "b"),
        view_position=lambda rng, size, site: np.full(size, "pa") if site == "home" else views(rng, size, site),
    )
    first = labels_of(instances, 0.5)
    late = instances["image_id"].str[-5:].astype(int) >= 50
    second = labels_of(instances, 0.5, finding="nodule").assign(label=lambda rows: rows["label"].mask(late))
    found = without_pixels(instances, pd.concat([first, second]), splits, PARAMS)
    table = found.columns.set_index(["finding", "column"])
    used = table.index[table["used"]].tolist()
    assert used == [("nodule", "sex"), ("opacity", "model"), ("opacity", "sex")]
    assert table["note"].isna().equals(table["used"].astype(bool))
    constant, null = "constant in training", "all null in training"
    assert table.loc["nodule", "note"].dropna().to_dict() == {
        "age_years": null, "kvp": null, "manufacturer": null,
        "body_part": constant, "view_position": constant, "model": constant,
    }  # fmt: skip


def test_without_a_column_that_varies_the_prevalence_is_predicted():
    instances, splits = cohort(80, body_part="chest", kvp=120.0)
    labels = labels_of(instances, 0.25)
    found = without_pixels(instances, labels, splits, PARAMS)
    train = labels.loc[labels["image_id"].str.startswith("train"), "label"].astype(float)
    np.testing.assert_allclose(expit(found.logits["logit"]), train.mean(), rtol=1e-12)
    assert set(aurocs(found, labels).values()) == {0.5}
    assert not found.columns["used"].any()


def test_findings_that_cannot_be_fitted_are_refused_with_the_reason_and_the_others_go_on():
    instances, splits = cohort(60, age_years=ages)
    train, id_val = (instances["image_id"].str.startswith(side) for side in ("train", "id_val"))
    good = labels_of(instances, 0.5)
    one = good.assign(finding="one_class", label=good["label"].mask(train, 1))
    none = good.assign(finding="unlabelled", label=good["label"].mask(train))
    blind = good.assign(finding="blind", label=good["label"].mask(id_val))
    found = without_pixels(instances, pd.concat([good, one, none, blind]), splits, PARAMS)
    assert found.refused == {
        "blind": "the penalty is chosen on id_val, which has no annotated image",
        "one_class": "training needs both classes: 60 positive and 0 negative images",
        "unlabelled": "training needs both classes: 0 positive and 0 negative images",
    }
    assert set(found.logits["finding"]) == {"opacity"}
    notes = found.columns[found.columns["finding"] != "opacity"]
    assert set(zip(notes["finding"], notes["note"], strict=True)) == set(found.refused.items())
    assert set(found.columns.loc[found.columns["used"], "finding"]) == {"opacity"}
    nothing = without_pixels(instances, one, splits, PARAMS)
    assert len(nothing.logits) == 0
    assert list(nothing.logits) == list(found.logits)


def test_an_image_that_ingest_does_not_know_is_refused_without_its_name():
    instances, splits = cohort(5, age_years=ages)
    with pytest.raises(PipelineError, match=r"2 of 25 are not\. Run `dvc repro`") as raised:
        without_pixels(instances[2:], labels_of(instances, 0.5), splits, PARAMS)
    assert "train" not in str(raised.value)


def test_a_fit_that_does_not_converge_is_no_candidate(monkeypatch):
    class Stuck(LogisticRegression):
        def fit(self, x, y):
            if self.C > 0.5:
                warnings.warn("stuck", ConvergenceWarning, stacklevel=1)
            return super().fit(x, y)

    instances, splits = cohort(50, age_years=ages)
    labels = labels_of(instances, 0.5)
    expected = without_pixels(instances, labels, splits, BaselineParams(inverse_l2=[0.1])).logits
    monkeypatch.setattr(no_pixels, "LogisticRegression", Stuck)
    both = without_pixels(instances, labels, splits, BaselineParams(inverse_l2=[1.0, 0.1])).logits
    pd.testing.assert_frame_equal(both, expected)
    with pytest.raises(PipelineError, match=r"no fit converged; try smaller baseline\.inverse_l2"):
        without_pixels(instances, labels, splits, BaselineParams(inverse_l2=[1.0]))


def test_separable_classes_have_finite_logits():
    instances, _ = cohort(200, age_years=ages, model=scanners)
    facts = facts_of(instances)
    label = (facts["model"] == "alpha").astype(float)
    home = facts.index.str.startswith("train")
    model = fit(facts[home], label[home], facts[home], label[home], ["age_years", "model"], [1e-4, 1e4])
    assert np.isfinite(model.logits(facts)).all()


@pytest.mark.parametrize("raw", [{}, {"inverse_l2": []}, {"inverse_l2": [0.0]}, {"inverse_l2": [1.0], "seed": 1}])
def test_params_are_checked(raw):
    with pytest.raises(ParamsError, match=r"baseline\."):
        parse(BaselineParams, raw, "baseline")
