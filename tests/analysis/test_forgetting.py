"""forgetting: the published measures from a matrix by hand, paired differences, and what is undefined."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.analysis.forgetting import measures, scores, sequence_of
from pipeline.tables.continual import ContinualMeasures, ContinualScores
from pipeline.tables.contract import make_table

SITES = ["north", "south", "west"]
NUM = 40  # test images of a hospital, one a patient


def by_hand(matrix):
    """Chaudhry et al. 2018, equation 3; Lopez-Paz and Ranzato 2017, equations 3 and 4, with chance for their b."""
    number = len(matrix)
    forgotten = [max(matrix[i][j] for i in range(number - 1)) - matrix[number - 1][j] for j in range(number - 1)]
    backward = [matrix[number - 1][j] - matrix[j][j] for j in range(number - 1)]
    forward = [matrix[j - 1][j] - 0.5 for j in range(1, number)]
    return forgotten, backward, forward


def test_the_published_measures():
    matrix = [[0.90, 0.55, 0.40, 0.5], [0.70, 0.95, 0.60, 0.6], [0.80, 0.75, 0.85, 0.4], [0.60, 0.99, 0.70, 0.9]]
    forgotten, backward, forward = by_hand(matrix)
    found = {name: values[:, 0] for name, values in measures(np.array(matrix)[..., None]).items()}
    np.testing.assert_allclose(found["forgetting"], [*forgotten, np.nan])
    np.testing.assert_allclose(found["backward_transfer"], [*backward, np.nan])
    np.testing.assert_allclose(found["forward_transfer"], [np.nan, *forward])
    np.testing.assert_allclose(found["final_auroc"], matrix[-1])
    assert found["forgetting"][0] == pytest.approx(0.3)  # since the first step
    assert found["forgetting"][1] == pytest.approx(-0.04)  # it never did better than at the end


def test_what_was_known_before_it_was_learnt_can_be_forgotten_too():
    """The paper's maximum is over all earlier steps, those before the hospital joined too."""
    matrix = np.array([[0.9, 0.8, 0.5], [0.9, 0.7, 0.5], [0.9, 0.6, 0.9]])[..., None]
    assert measures(matrix)["forgetting"][1, 0] == pytest.approx(0.2)
    assert measures(matrix)["backward_transfer"][1, 0] == pytest.approx(-0.1)


def made(strategies=("naive", "joint"), seeds=(1, 2), noise=None, one_class=(), unlabelled=0):
    """Steps, predictions, labels: naive training loses what it learnt before, joint training does not."""
    rng = np.random.default_rng(0)
    labels, rows, steps = [], [], []
    truth = {site: np.arange(NUM) % 2 if site not in one_class else np.zeros(NUM, int) for site in SITES}
    for site in SITES:
        for index in range(NUM):
            label = None if index < unlabelled else truth[site][index]
            labels.append({"finding": "f", "image_id": f"{site}{index:02d}", "label": label})
    shared = {(seed, site): rng.standard_normal(NUM) for seed in seeds for site in SITES}
    for strategy in strategies:
        for seed in seeds:
            run = f"net-{strategy}-seed{seed}"
            for step, joined in enumerate(SITES):
                steps.append({"run": run, "step": step, "backbone": "net", "strategy": strategy, "seed": seed,
                              "site": joined})  # fmt: skip
                for place, site in enumerate(SITES):
                    known = place <= step if strategy == "joint" else place == step
                    extra = 0 if noise is None else noise * rng.standard_normal(NUM)
                    logit = shared[seed, site] + (2.0 if known else 0.3) * truth[site] + extra
                    rows += [
                        {"run": run, "step": step, "finding": "f", "image_id": f"{site}{i:02d}",
                         "patient_id": f"p{site}{i:02d}", "site": site, "logit": value}
                        for i, value in enumerate(logit)
                    ]  # fmt: skip
    order = rng.permutation(len(rows))
    return pd.DataFrame(rows).iloc[order], pd.DataFrame(steps), pd.DataFrame(labels)


def found(*tables, resamples=100):
    scored, measured = scores(*tables, resamples, 1, 0.95)
    return (
        make_table(ContinualScores, scored).set_index(["run", "step", "site"]),
        make_table(ContinualMeasures, measured).set_index(["run", "measure", "site"]),
    )


def test_scores_are_scikit_learns_and_measures_are_means_over_seeds_and_sites():
    predictions, steps, labels = made()
    assert sequence_of(steps) == SITES
    scored, measured = found(predictions, steps, labels)
    truth = labels.set_index("image_id")["label"]
    matrices = {}
    for (run, step, site), rows in predictions.groupby(["run", "step", "site"]):
        expected = roc_auc_score(truth.loc[rows["image_id"]].astype(int), rows["logit"])
        assert scored.loc[(run, step, site), "value"] == pytest.approx(expected)
        matrices.setdefault(run, np.empty((3, 3)))[step, SITES.index(site)] = expected
    for strategy in ("naive", "joint"):
        run = f"net-{strategy}"
        each = [by_hand(matrices[f"{run}-seed{seed}"].tolist()) for seed in (1, 2)]
        for name, place in (("forgetting", 0), ("backward_transfer", 1), ("forward_transfer", 2)):
            by_site = np.mean([one[place] for one in each], axis=0)
            names = SITES[1:] if name == "forward_transfer" else SITES[:-1]
            own = measured.loc[(run, name)]
            np.testing.assert_allclose(own.loc[names, "value"], by_site)
            assert own.loc["", "value"] == pytest.approx(by_site.mean())
            assert set(own.index) == {"", *names}
            assert (own["num_runs"] == 2).all()
            assert own.loc["", "num_sites"] == 2
            assert own.loc["", "num_patients"] == 2 * NUM
        mean = np.mean([matrices[f"{run}-seed{seed}"][step, 0] for seed in (1, 2) for step in [1]])
        assert scored.loc[(run, 1, "north"), "value"] == pytest.approx(mean)
        assert scored.loc[(run, 1, "north"), "joins_at"] == 0
    assert measured.loc[("net-naive", "forgetting", ""), "value"] > 0.2
    assert measured.loc[("net-joint", "forgetting", ""), "value"] == 0


def test_differences_from_naive_are_paired_by_seed_and_patient():
    """What both share leaves the difference: its interval is far narrower than those of the two."""
    _, measured = found(*made(seeds=(1,)))
    joint, naive = (measured.loc[(f"net-{name}", "final_auroc", "north")] for name in ("joint", "naive"))
    assert joint["difference"] == pytest.approx(joint["value"] - naive["value"])
    assert joint["difference_low"] > 0
    width = joint["difference_high"] - joint["difference_low"]
    assert width < np.hypot(joint["ci_high"] - joint["ci_low"], naive["ci_high"] - naive["ci_low"])
    assert np.isnan(naive["difference"])
    before = measured.loc[("net-joint", "forward_transfer", "south")]  # the first step is one for all
    assert before["difference"] == 0
    assert np.isnan(before["difference_low"])
    assert "difference: no interval: no variation" in before["note"]


def test_without_naive_training_there_is_no_difference():
    _, measured = found(*made(strategies=("joint",)))
    assert measured["difference"].isna().all()
    assert measured["value"].notna().all()


def test_seeds_that_disagree_widen_the_interval():
    predictions, steps, labels = made(strategies=("naive",), noise=0.01)
    _, alike = found(predictions, steps, labels)
    worse = predictions["run"].str.endswith("seed2") & (predictions["step"] == 2) & (predictions["site"] == "north")
    flipped = predictions.assign(logit=predictions["logit"].where(~worse, -3 * predictions["logit"]))
    _, apart = found(flipped, steps, labels)
    key = ("net-naive", "forgetting", "north")
    widths = [table.loc[key, "ci_high"] - table.loc[key, "ci_low"] for table in (alike, apart)]
    assert widths[1] > widths[0]


def test_a_hospital_with_one_class_has_no_score_and_leaves_the_mean():
    predictions, steps, labels = made(one_class=("south",), unlabelled=2)
    scored, measured = found(predictions, steps, labels)
    south = scored.xs("south", level="site")
    assert south[["value", "ci_low", "ci_high"]].isna().all(axis=None)
    assert set(south["note"]) == {"one class only (positives: 0); 2 images without label left out"}
    assert (south["num_images"] == NUM - 2).all()
    row = measured.loc[("net-naive", "forgetting", "south")]
    assert np.isnan(row["value"])
    assert "one class only" in row["note"]
    overall = measured.loc[("net-naive", "forgetting", "")]
    assert overall["value"] == measured.loc[("net-naive", "forgetting", "north"), "value"]
    assert overall["num_sites"] == 1
    assert "undefined at south, left out" in overall["note"]
    _, nowhere = found(*made(one_class=SITES))
    assert nowhere["value"].isna().all()
    assert (nowhere["note"] != "").all()


def test_one_run_says_that_its_spread_is_unknown():
    scored, measured = found(*made(seeds=(1,)))
    assert scored.loc[("net-naive", 0, "north"), "note"] == "one run, spread between seeds unknown"
    assert scored.loc[("net-naive-seed1", 0, "north"), "note"] == ""
    assert measured["note"].str.contains("one run, spread").all()
