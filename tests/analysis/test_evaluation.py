"""evaluate: who is compared where, what is null and why, and what must not change when other things do."""

import re

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from pipeline.analysis.evaluation import (
    SUBGROUP_METRICS,
    EvaluateParams,
    Setting,
    evaluate,
    family_name,
    name_families,
)
from pipeline.errors import PipelineError
from pipeline.metrics.binary import METRICS
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Calibration, Metrics, SeedSpread, Thresholds
from pipeline.tables.predictions import Predictions

PARAMS = EvaluateParams(seed=1, resamples=100)
SOURCE, TARGET = ["east", "north"], ["west", "south"]
SITES = {"id_val": SOURCE, "id_test": SOURCE, "ood_test": TARGET}


def cohort(sites=SITES, patients=30, findings=("effusion",)):
    """Two images a patient; labels and image noise hang on the image's name alone."""
    rows = []
    for split, names in sites.items():
        for site in names:
            for finding in findings:
                rng = np.random.default_rng([len(split), *map(ord, site + finding)])
                rows += [
                    {
                        "image_id": f"{split}-{site}-{image:03d}",
                        "patient_id": f"{split}-{site}-p{image // 2}",
                        "site": site,
                        "split": split,
                        "finding": finding,
                        "label": int(rng.random() < 0.4),
                        "noise": rng.normal(),
                    }
                    for image in range(2 * patients)
                ]
    return pd.DataFrame(rows)


def run(images, method, seed, signal=1.0, backbone="resnet", **others):
    name = "-".join([backbone, method, f"s{seed}", *(f"{value}" for value in others.values())])
    own = np.random.default_rng([seed, *map(ord, backbone + method)]).normal(size=len(images))
    logits = signal * images["label"].fillna(0).astype(float) + 0.8 * images["noise"] + 0.5 * own - 0.5
    return images.drop(columns="noise").assign(
        run=name,
        backbone=backbone,
        method=method,
        seed=seed,
        logit=logits,
        probability=expit(logits),
        **{"label_fraction": 1.0, "draw": 0, "adaptation": None, "protocol": "main", **others},
    )


def study(images=None, methods=("scratch", "full"), seeds=(0, 1), **others):
    images = cohort() if images is None else images
    return pd.concat(
        [
            run(images, method, seed, 0.8 if method == "scratch" else 1.6, **others)
            for method in methods
            for seed in seeds
        ],
        ignore_index=True,
    )


def contract(frame):
    return make_table(Predictions, frame)


def pick(table, **wanted):
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def one(table, **wanted):
    rows = pick(table, **wanted)
    assert len(rows) == 1, (wanted, len(rows))
    return rows.iloc[0]


@pytest.fixture(scope="module")
def predictions():
    return contract(study())


@pytest.fixture(scope="module")
def evaluation(predictions):
    return evaluate(predictions, PARAMS, SOURCE, TARGET)


def test_tables_keep_their_contracts(evaluation):
    for table, frame in (
        (Metrics, evaluation.metrics),
        (Calibration, evaluation.calibration),
        (Thresholds, evaluation.thresholds),
    ):
        assert list(frame.columns) == list(table.columns)
        assert len(frame)


def test_which_rows_there_are(evaluation):
    rows = pick(evaluation.metrics, run="resnet-full")
    assert set(zip(rows["split"], rows["group"], strict=True)) == {
        ("id_val", "source"),
        ("id_test", "source"),
        ("id_test", "site=east"),
        ("id_test", "site=north"),
        ("ood_test", "target"),
        ("ood_test", "site=west"),
        ("ood_test", "site=south"),
        ("ood_test", "worst_site"),
        ("ood_test", "target_minus_source"),
    }
    pooled = {*METRICS, "auroc_minus_scratch", "auroc_delong"}
    assert set(pick(rows, split="ood_test", group="target")["metric"]) == pooled
    assert set(pick(rows, split="ood_test", group="site=west")["metric"]) == pooled - {"auroc_delong"}
    assert "auroc_minus_scratch" not in set(pick(evaluation.metrics, run="resnet-scratch")["metric"])
    single = pick(evaluation.metrics, run="resnet-full-s1")
    assert set(single["metric"]) == {"auroc"}
    assert single["ci_low"].isna().all()


def test_value_is_the_mean_over_seeds(evaluation, predictions):
    part = pick(predictions, method="full", split="ood_test", site="west")
    each = [roc_auc_score(rows["label"].astype(int), rows["logit"]) for _, rows in part.groupby("run")]
    row = one(evaluation.metrics, run="resnet-full", split="ood_test", group="site=west", metric="auroc")
    assert row["value"] == pytest.approx(np.mean(each))
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert (row["num_images"], row["num_patients"]) == (60, 30)
    assert "2 runs" in row["interval"]
    single = one(evaluation.metrics, run="resnet-full-s1", split="ood_test", group="site=west")
    assert single["value"] == pytest.approx(each[1])


def test_the_spread_is_that_of_the_single_trainings(evaluation):
    table = make_table(SeedSpread, evaluation.spread)
    for group, split in (("site=east", "id_test"), ("target", "ood_test")):
        single = evaluation.metrics[
            evaluation.metrics["run"].str.contains("-s\\d")
            & (evaluation.metrics["split"] == split)
            & (evaluation.metrics["group"] == group)
            & evaluation.metrics["run"].str.startswith("resnet-full")
        ]
        row = one(table, run="resnet-full", split=split, group=group, metric="auroc")
        assert row["num_runs"] == len(single) == 2
        assert row["variance"] == pytest.approx(np.var(single["value"], ddof=1))
    known = evaluation.metrics[~evaluation.metrics["metric"].str.contains("minus|delong")]
    pooled = known[~known["run"].str.contains("-s\\d")]
    assert len(table) == len(pooled)


def test_one_training_has_no_spread():
    table = evaluate(contract(study(seeds=(0,))), PARAMS, SOURCE, TARGET).spread
    assert (table["num_runs"] == 1).all()
    assert table["variance"].isna().all()


def test_worst_site_gap_and_difference_agree_with_their_parts(evaluation):
    def value(run, group, metric="auroc", split="ood_test"):
        return one(evaluation.metrics, run=run, split=split, group=group, metric=metric)

    for metric, choose in (("auroc", min), ("brier", max)):
        worst = value("resnet-full", "worst_site", metric)
        sites = {name: value("resnet-full", f"site={name}", metric)["value"] for name in TARGET}
        name = choose(sites, key=sites.get)
        assert worst["value"] == sites[name]
        assert worst["note"] == f"site {name}"
    gap = value("resnet-full", "target_minus_source")
    expected = value("resnet-full", "target")["value"] - value("resnet-full", "source", split="id_test")["value"]
    assert gap["value"] == pytest.approx(expected)
    assert gap["ci_low"] < gap["value"] < gap["ci_high"]
    paired = value("resnet-full", "target", "auroc_minus_scratch")
    expected = value("resnet-full", "target")["value"] - value("resnet-scratch", "target")["value"]
    assert paired["value"] == pytest.approx(expected)
    assert "2 and 2 runs" in paired["interval"]


def width(table, **wanted):
    row = one(table, **wanted)
    return row["ci_high"] - row["ci_low"]


def test_gap_counts_both_sides_patients_and_pairs_the_seeds():
    images = cohort()
    name = "calibration_intercept"  # symmetric limits for the parts too
    made = evaluate(contract(study(images, seeds=(0,))), EvaluateParams(seed=1, resamples=2000), SOURCE, TARGET).metrics
    target = width(made, run="resnet-full", split="ood_test", group="target", metric=name)
    source = width(made, run="resnet-full", split="id_test", group="source", metric=name)
    gap = width(made, run="resnet-full", group="target_minus_source", metric=name)
    assert gap == pytest.approx(np.hypot(target, source), rel=0.05)
    # A bad and a good seed: each is bad or good on both sides, and the gap hardly knows of it.
    unequal = pd.concat([run(images, "full", 0, 0.3), run(images, "full", 1, 3.0)], ignore_index=True)
    made = evaluate(contract(unequal), PARAMS, SOURCE, TARGET).metrics
    assert width(made, run="resnet-full", group="target_minus_source", metric="auroc") < 0.8
    assert width(made, run="resnet-full", group="target", metric="auroc") > 0.8


def test_delong_agrees_with_the_bootstrap_of_patients():
    made = evaluate(
        contract(study(cohort(patients=80))), EvaluateParams(seed=1, resamples=1000), SOURCE, TARGET
    ).metrics
    for split, group in (("id_test", "source"), ("ood_test", "target")):
        row = one(made, run="resnet-full", split=split, group=group, metric="auroc_delong")
        whole = one(made, run="resnet-full", split=split, group=group, metric="auroc")
        assert row["value"] == pytest.approx(whole["value"], abs=1e-12)
        low, high = map(float, re.search(r"only: (0\.\d+) to (0\.\d+)", row["note"]).groups())
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=0.1 * (high - low))
        # The seeds' part is in the other alone.
        assert row["ci_high"] - row["ci_low"] < whole["ci_high"] - whole["ci_low"]


def test_threshold_comes_from_id_val_of_each_run(evaluation, predictions):
    point = one(evaluation.thresholds, run="resnet-full-s0")
    part = pick(predictions, run="resnet-full-s0", split="id_val")
    negatives = part[part["label"] == 0]
    assert point["num_images"] == len(negatives)
    assert point["reached_specificity"] == pytest.approx((negatives["probability"] < point["threshold"]).mean())
    assert point["reached_specificity"] >= 0.9


def test_poisoned_test_labels_move_no_threshold(evaluation, predictions):
    poisoned = predictions.copy()
    for split in ("ood_test", "id_test"):
        hit = poisoned["split"] == split
        poisoned.loc[hit, "label"] = 1 - poisoned.loc[hit, "label"]
        again = evaluate(poisoned, PARAMS, SOURCE, TARGET)
        pd.testing.assert_frame_equal(again.thresholds, evaluation.thresholds)
    assert not again.metrics.equals(evaluation.metrics)


def same_rows(before, after, **wanted):
    pd.testing.assert_frame_equal(
        pick(before, **wanted).reset_index(drop=True),
        pick(after, **wanted).reset_index(drop=True),
        check_exact=True,
    )


def test_another_method_changes_no_other_row(evaluation):
    more = evaluate(contract(study(methods=("scratch", "full", "probe"))), PARAMS, SOURCE, TARGET)
    for run_name in set(evaluation.metrics["run"]):
        same_rows(evaluation.metrics, more.metrics, run=run_name)
        same_rows(evaluation.calibration, more.calibration, run=run_name)


def test_another_hospital_changes_only_the_pooled_rows(evaluation):
    sites = {**SITES, "ood_test": [*TARGET, "arctic"]}
    more = evaluate(contract(study(cohort(sites))), PARAMS, SOURCE, [*TARGET, "arctic"])
    for group in ("source", "site=east", "site=north", "site=west", "site=south"):
        # A run's noise is drawn over all its images: the new ones come last and leave the others alone.
        same_rows(evaluation.metrics, more.metrics, group=group)
    assert len(pick(more.metrics, group="site=arctic"))


def test_order_of_rows_does_not_matter(evaluation, predictions):
    shuffled = predictions.sample(frac=1.0, random_state=0)
    again = evaluate(shuffled, PARAMS, SOURCE[::-1], TARGET[::-1])
    for name in ("metrics", "calibration", "thresholds"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(evaluation, name), check_exact=True)


def test_seed_changes_intervals_and_no_value(evaluation, predictions):
    again = evaluate(predictions, EvaluateParams(seed=2, resamples=100), SOURCE, TARGET).metrics
    pd.testing.assert_series_equal(again["value"], evaluation.metrics["value"])
    assert (again["ci_low"] != evaluation.metrics["ci_low"]).any()


def test_one_class_is_null_with_a_note():
    images = cohort()
    images.loc[images["site"] == "west", "label"] = 0
    made = evaluate(contract(study(images)), PARAMS, SOURCE, TARGET).metrics
    west = pick(made, run="resnet-full", group="site=west").set_index("metric")
    for metric in ("auroc", "average_precision", "calibration_slope", "calibration_intercept", "sensitivity"):
        assert np.isnan(west.loc[metric, "value"])
        assert west.loc[metric, "note"] == "one class only (positives: 0)"
    assert west.loc["auroc_minus_scratch", "note"] == "one class only (positives: 0)"
    assert west.loc["specificity", "value"] > 0
    assert west.loc["prevalence", "value"] == 0
    assert "exact binomial on 30 patients" in west.loc["prevalence", "interval"]
    assert one(made, run="resnet-full-s0", group="site=west")["note"] == "one class only (positives: 0)"
    worst = one(made, run="resnet-full", group="worst_site", metric="auroc")
    assert worst["note"] == "site south; undefined at west"


def test_images_without_label_are_left_out_and_counted():
    images = cohort()
    images["label"] = images["label"].astype("Int8")
    images.loc[images.index[images["site"] == "west"][:7], "label"] = pd.NA
    made = evaluate(contract(study(images)), PARAMS, SOURCE, TARGET)
    row = one(made.metrics, run="resnet-full", group="site=west", metric="auroc")
    assert (row["num_images"], row["num_patients"]) == (53, 27)
    assert row["note"] == "7 images without label left out"
    assert pick(made.calibration, run="resnet-full", group="site=west")["num_images"].sum() == 2 * 53


def test_a_site_without_labels_or_images_is_null():
    images = cohort()
    images["label"] = images["label"].astype("Int8")
    images.loc[images["site"] == "west", "label"] = pd.NA
    made = evaluate(contract(study(images)), PARAMS, SOURCE, [*TARGET, "arctic"]).metrics
    for group in ("site=west", "site=arctic"):
        rows = pick(made, run="resnet-full", group=group)
        assert rows["value"].isna().all()
        assert (rows["num_images"] == 0).all()
        assert rows["note"].str.contains("no annotated images").all()


def test_predictive_values_are_at_the_prevalence_of_id_val_and_at_stated_ones(predictions):
    params = EvaluateParams(seed=1, resamples=100, prevalences=[0.05], threshold_probabilities=[0.2])
    made = evaluate(predictions, params, SOURCE, TARGET)
    rows = pick(made.metrics, run="resnet-full", group="target").set_index("metric")
    images = predictions[predictions["split"] == "id_val"].drop_duplicates("image_id")
    share = {"ppv": images["label"].mean(), "ppv_at_5_percent": 0.05}
    own = predictions[(predictions["split"] == "ood_test") & (predictions["method"] == "full")]
    points = made.thresholds.set_index("run")["threshold"]
    for name, prior in share.items():
        each = []
        for run_name, part in own.groupby("run"):
            called = part["probability"] >= points[run_name]
            hit, false = (called[part["label"] == label].mean() for label in (1, 0))
            each.append(hit * prior / (hit * prior + false * (1 - prior)))
        assert rows.loc[name, "value"] == pytest.approx(np.mean(each))
    total = rows.loc["brier_calibration", "value"] + rows.loc["brier_refinement", "value"]
    assert total == pytest.approx(rows.loc["brier", "value"], abs=1e-12)
    assert np.isnan(rows.loc["brier_refinement", "ci_low"])
    prior = own.drop_duplicates("image_id")["label"].mean()
    assert rows.loc["net_benefit_all_at_20_percent", "value"] == pytest.approx(prior - (1 - prior) / 4)


def test_one_class_on_id_val_leaves_no_prevalence():
    images = cohort()
    images.loc[images["split"] == "id_val", "label"] = 0
    made = evaluate(contract(study(images)), PARAMS, SOURCE, TARGET).metrics
    row = one(made, run="resnet-full", group="target", metric="ppv")
    assert row["note"] == "no prevalence: id_val has not both classes"


def test_no_negatives_on_id_val_means_no_operating_point():
    images = cohort()
    images.loc[images["split"] == "id_val", "label"] = 1
    made = evaluate(contract(study(images)), PARAMS, SOURCE, TARGET)
    assert made.thresholds["threshold"].isna().all()
    row = one(made.metrics, run="resnet-full", group="target", metric="sensitivity")
    assert np.isnan(row["value"])
    assert row["note"] == "no threshold: no annotated negatives on id_val"


def test_a_single_run_says_that_seeds_are_unknown():
    made = evaluate(contract(study(seeds=(0,))), PARAMS, SOURCE, TARGET).metrics
    row = one(made, run="resnet-full", group="target", metric="auroc")
    assert "one run, spread between seeds unknown" in row["interval"]


def test_perfect_separation_has_an_exact_auroc_and_no_slope():
    images = cohort()
    frame = study(images, seeds=(0, 1))
    frame["logit"] = 6.0 * frame["label"] - 3 + 0.001 * frame["logit"]
    frame["probability"] = expit(frame["logit"])
    made = pick(evaluate(contract(frame), PARAMS, SOURCE, TARGET).metrics, run="resnet-full", group="target").set_index(
        "metric"
    )
    assert made.loc["auroc", "value"] == 1.0
    assert 0.8 < made.loc["auroc", "ci_low"] < 1.0
    assert "exact binomial" in made.loc["auroc", "interval"]
    assert np.isnan(made.loc["calibration_slope", "value"])
    assert "2 of 2 runs" in made.loc["calibration_slope", "note"]
    assert made.loc["auroc_minus_scratch", "value"] == 0.0
    assert "no variation" in made.loc["auroc_minus_scratch", "note"]


def test_draws_of_the_label_subset_are_the_repetitions():
    images = cohort()
    frame = pd.concat(
        [study(images, label_fraction=0.1, draw=draw) for draw in (0, 1)] + [study(images, seeds=(0, 1, 2))],
        ignore_index=True,
    )
    made = evaluate(contract(frame), PARAMS, SOURCE, TARGET).metrics
    row = one(made, run="resnet-full-labels10", group="target", metric="auroc")
    assert "2 runs" in row["interval"]
    assert len(pick(made, run="resnet-full-labels10", group="target", metric="auroc_minus_scratch")) == 1
    assert "3 runs" in one(made, run="resnet-full", group="target", metric="auroc")["interval"]


def test_draws_of_shots_are_the_repetitions_of_a_family_of_their_own():
    images = cohort()
    few = [study(images, methods=("full",), seeds=(0,), shots=5, draw=draw) for draw in (0, 1, 2)]
    frame = contract(pd.concat([*few, study(images)], ignore_index=True))
    made = evaluate(frame, PARAMS, SOURCE, TARGET)
    row = one(made.metrics, run="resnet-full-shots5", group="target", metric="auroc")
    assert "3 runs" in row["interval"]
    assert {family.name: family.setting.shots for family in name_families(frame)} == {
        "resnet-full": 0,
        "resnet-full-shots5": 5,
        "resnet-scratch": 0,
    }
    # There is no few-shot run from scratch to compare it with.
    assert not len(pick(made.metrics, run="resnet-full-shots5", metric="auroc_minus_scratch"))


def test_adapted_runs_may_have_target_predictions_only():
    images = cohort()
    adapted = study(images[images["split"] == "ood_test"], adaptation="batch_norm")
    made = evaluate(contract(pd.concat([study(images), adapted], ignore_index=True)), PARAMS, SOURCE, TARGET).metrics
    rows = pick(made, run="resnet-full-batch_norm")
    assert set(rows["split"]) == {"ood_test"}
    assert "target_minus_source" not in set(rows["group"])
    assert len(pick(rows, group="target", metric="auroc_minus_scratch")) == 1


def blind(images, auroc_of=0.4):
    """The baseline without pixels: one run, without chance."""
    return run(images, "logistic", 0, auroc_of, backbone="no_pixels").assign(run="no_pixels-logistic-seed0")


def adapt(plain, name="bn", shift=0.0, own_noise=0.0):
    """Runs made from plain ones, named after them."""
    noise = np.random.default_rng(0).normal(size=len(plain))
    logits = plain["logit"] + shift * plain["label"].astype(float) + own_noise * noise
    return plain.assign(run=plain["run"] + f"-adapt_{name}", adaptation=name, logit=logits, probability=expit(logits))


def test_the_baseline_without_pixels_is_every_familys_twin_and_leaves_other_rows_alone(evaluation):
    images = cohort()
    made = evaluate(contract(pd.concat([study(images), blind(images)], ignore_index=True)), PARAMS, SOURCE, TARGET)
    more = made.metrics[made.metrics["metric"] != "auroc_minus_no_pixels"]
    for name in sorted(set(evaluation.metrics["run"])):
        same_rows(evaluation.metrics, more, run=name)
    for name in ("resnet-full", "resnet-scratch"):
        row = one(made.metrics, run=name, group="target", metric="auroc_minus_no_pixels")
        values = [
            one(made.metrics, run=part, group="target", metric="auroc")["value"]
            for part in (name, "no_pixels-logistic")
        ]
        assert row["value"] == pytest.approx(values[0] - values[1])
        assert row["ci_low"] < row["value"] < row["ci_high"]
        assert row["interval"].endswith("spread of 2 runs, one method without chance")
    own = pick(made.metrics, run="no_pixels-logistic")
    assert {"auroc", "brier"} < set(own["metric"])
    assert not own["metric"].str.contains("_minus_").any()
    assert one(own, group="target", metric="auroc")["interval"].endswith("another run would be the same)")
    assert len(made.comparisons) == len(evaluation.comparisons)
    assert made.remedies == ()


def test_a_baseline_that_lacks_a_finding_is_not_compared_there():
    images = cohort(findings=("effusion", "nodule"))
    frame = pd.concat([study(images), blind(images[images["finding"] == "nodule"])], ignore_index=True)
    made = pick(evaluate(contract(frame), PARAMS, SOURCE, TARGET).metrics, metric="auroc_minus_no_pixels")
    assert set(made["finding"]) == {"nodule"}


def test_an_adapted_run_is_taken_less_the_run_that_it_was_made_from():
    images = cohort()
    signals = enumerate((0.3, 1.5, 3.0))
    unequal = pd.concat([run(images, "full", seed, signal) for seed, signal in signals], ignore_index=True)
    frame = pd.concat([unequal, adapt(unequal, shift=0.3)], ignore_index=True)
    made = evaluate(contract(frame), PARAMS, SOURCE, TARGET)
    row = one(made.metrics, run="resnet-full-bn", group="target", metric="auroc_minus_plain")
    adapted, plain = (
        one(made.metrics, run=name, group="target", metric="auroc") for name in ("resnet-full-bn", "resnet-full")
    )
    assert row["value"] == pytest.approx(adapted["value"] - plain["value"])
    # A bad and a good seed, each bad or good with and without the remedy; unnamed, they are six trainings.
    strangers = frame.assign(run=frame["run"].str.replace("-adapt_bn", "-b"))
    unpaired = evaluate(contract(strangers), PARAMS, SOURCE, TARGET).metrics
    apart = one(unpaired, run="resnet-full-bn", group="target", metric="auroc_minus_plain")
    assert apart["value"] == pytest.approx(row["value"])
    assert apart["ci_high"] - apart["ci_low"] > 3 * (row["ci_high"] - row["ci_low"])
    assert row["interval"].endswith("spread of 3 runs")
    assert apart["interval"].endswith("spread of 3 and 3 runs")
    places = {(pair.split, pair.group) for pair in made.remedies}
    assert {("id_test", "source"), ("ood_test", "target"), ("ood_test", "site=west")} <= places
    assert {(pair.family.name, pair.twin.name) for pair in made.remedies} == {("resnet-full-bn", "resnet-full")}


def test_a_remedy_that_changes_nothing_differs_by_nothing():
    plain = study(cohort(), methods=("full",))
    frame = pd.concat([plain, adapt(plain)], ignore_index=True)
    made = evaluate(contract(frame), PARAMS, SOURCE, TARGET).metrics
    rows = pick(made, metric="auroc_minus_plain")
    assert (rows["value"] == 0).all()
    # Of the worst site it is not known that the runs are paired: which one it is may differ from run to run.
    assert rows[rows["group"] != "worst_site"]["note"].str.contains("no variation").all()


def test_unlabelled_images_of_the_target_are_no_test(evaluation, predictions):
    seen = predictions[predictions["split"] == "ood_test"].assign(split="target_adapt", label=pd.NA)
    seen["image_id"], seen["patient_id"] = "u-" + seen["image_id"], "u-" + seen["patient_id"]
    more = evaluate(contract(pd.concat([predictions, seen], ignore_index=True)), PARAMS, SOURCE, TARGET)
    pd.testing.assert_frame_equal(more.metrics, evaluation.metrics)


def recorded(images):
    """Groups of images by name, the scanner not recorded of part of them."""
    names = images["image_id"].drop_duplicates()
    number = names.str[-3:].astype(int)
    frame = pd.DataFrame(
        {
            "vendor": np.where(number % 7 == 0, "vendor=(missing)", np.where(number < 20, "vendor=ge", "vendor=mr")),
            "sex": np.where(number // 2 % 2, "sex=F", "sex=M"),
        },
        dtype=object,
    ).set_index(pd.Index(names, dtype=object))
    return frame.assign(**{"sex+vendor": frame["sex"] + "+" + frame["vendor"]})


BY_GROUP = EvaluateParams(seed=1, resamples=100, domains=["vendor"], subgroups=["sex", "sex+vendor"])


@pytest.fixture(scope="module")
def by_group(predictions):
    return evaluate(predictions, BY_GROUP, SOURCE, TARGET, recorded(cohort()))


def test_domains_and_subgroups_have_rows_at_home_and_elsewhere(by_group, predictions):
    rows = pick(by_group.metrics, run="resnet-full")
    for split in ("id_test", "ood_test"):
        groups = set(pick(rows, split=split)["group"])
        assert {"vendor=ge", "vendor=mr", "vendor=(missing)", "worst_vendor", "sex=F", "worst_sex"} <= groups
        assert {"sex=F+vendor=(missing)", "worst_sex+vendor"} <= groups
    assert not pick(rows, split="id_val")["group"].str.contains("=").any()
    assert set(pick(rows, split="ood_test", group="vendor=ge")["metric"]) == set(METRICS)
    assert set(pick(rows, split="ood_test", group="sex=F")["metric"]) == set(SUBGROUP_METRICS)
    number = predictions["image_id"].str[-3:].astype(int)
    part = predictions[
        (number // 2 % 2 == 1) & (predictions["split"] == "ood_test") & (predictions["method"] == "full")
    ]
    each = [roc_auc_score(own["label"].astype(int), own["logit"]) for _, own in part.groupby("run")]
    row = one(rows, split="ood_test", group="sex=F", metric="auroc")
    assert row["value"] == pytest.approx(np.mean(each))
    assert row["num_images"] == part["image_id"].nunique()
    assert row["num_patients"] == part["patient_id"].nunique()


def test_domains_and_subgroups_change_no_other_row(by_group, evaluation):
    known = evaluation.metrics.merge(by_group.metrics, how="left", indicator=True)
    assert (known["_merge"] == "both").all()
    pd.testing.assert_frame_equal(by_group.calibration, evaluation.calibration)
    assert len(by_group.comparisons) == len(evaluation.comparisons)


def test_the_worst_subgroup_is_one_that_is_known(by_group):
    rows = pick(by_group.metrics, run="resnet-full", split="ood_test", metric="auroc").set_index("group")
    worst = min(("vendor=ge", "vendor=mr"), key=lambda name: rows.loc[name, "value"])
    assert rows.loc["worst_vendor", "value"] == rows.loc[worst, "value"]
    assert rows.loc["worst_vendor", "note"] == worst
    assert re.match("95 % for the worst of 2: each at 9[78] %", rows.loc["worst_vendor", "interval"])
    assert rows.loc["worst_vendor", "ci_low"] < rows.loc[worst, "ci_low"]


def test_no_group_of_a_few_patients_is_called_the_worst(predictions):
    groups = recorded(cohort())
    few = groups.index.str.endswith(("-000", "-001", "-002", "-003", "-004", "-005"))
    groups.loc[few, "vendor"] = "vendor=few"
    rows = pick(evaluate(predictions, BY_GROUP, SOURCE, TARGET, groups).metrics, run="resnet-full", split="ood_test")
    worst = one(rows, group="worst_vendor", metric="auroc")
    assert worst["note"] == "vendor=mr; under 10 patients of a class: vendor=few, vendor=ge"
    groups["sex"] = [f"sex={number // 24}" for number in range(len(groups))]
    rows = pick(evaluate(predictions, BY_GROUP, SOURCE, TARGET, groups).metrics, run="resnet-full", split="ood_test")
    worst = one(rows, group="worst_sex", metric="auroc")
    assert worst["note"] == "under 10 patients of a class in every group"
    assert np.isnan(worst["value"])


def test_an_image_that_was_never_ingested_is_refused(predictions):
    groups = recorded(cohort()).iloc[1:]
    with pytest.raises(PipelineError, match="1 of 120 images with predictions are not among the instances"):
        evaluate(predictions, BY_GROUP, SOURCE, TARGET, groups)


def test_findings_do_not_mix(evaluation):
    made = evaluate(contract(study(cohort(findings=("effusion", "nodule")))), PARAMS, SOURCE, TARGET)
    assert set(made.metrics["finding"]) == {"effusion", "nodule"}
    assert set(made.thresholds["finding"]) == {"effusion", "nodule"}


def test_calibration_bins(evaluation):
    rows = pick(evaluation.calibration, run="resnet-full", group="target")
    assert rows["bin"].tolist() == list(range(10))
    assert (rows["num_images"] == 24).all()  # 120 images x 2 runs / 10
    assert rows["mean_probability"].is_monotonic_increasing


def test_names_of_families():
    assert family_name("resnet", "full", Setting("", 1.0, 0, "")) == "resnet-full"
    assert family_name("resnet", "full", Setting("loho", 0.05, 0, "bn")) == "resnet-full-labels5-bn-loho"
    assert family_name("resnet", "full", Setting("", 1.0, 5, "")) == "resnet-full-shots5"
    images = cohort()
    several = pd.concat([study(images), study(images, protocol="other")], ignore_index=True)
    assert {family.name for family in name_families(contract(several))} == {
        f"resnet-{method}-{protocol}" for method in ("full", "scratch") for protocol in ("main", "other")
    }


def test_bad_input_is_refused(predictions):
    def refused(match, source=SOURCE, target=TARGET, frame=None, **columns):
        bad = (predictions if frame is None else frame).copy()
        for column, (row, value) in columns.items():
            bad.loc[bad.index[row], column] = value
        with pytest.raises(ValueError, match=match):
            evaluate(bad, PARAMS, source, target)

    refused("must be unique; 1 of", frame=pd.concat([predictions, predictions.iloc[:1]], ignore_index=True))
    refused("probability must lie in", probability=(0, 1.2))
    refused("probability must lie in", probability=(0, float("nan")))
    refused("logit must be finite", logit=(0, float("inf")))
    refused("logistic function", probability=(0, 0.999999))
    refused("label must be 0, 1 or null", label=(0, 2))
    refused("unknown sites \\['west'\\]", target=["south"])
    refused("source and target at once", target=["west", "south", "east"])
    refused("id_val and id_test must hold source sites only", site=(0, "west"))
    refused("ood_test must hold target sites only", site=(len(predictions) - 1, "east"))
    refused("one split only", patient_id=(0, "id_val-east-p0"))
    refused("same images", frame=predictions.iloc[1:])
    refused("label of an image must be the same", label=(0, 1 - int(predictions["label"].iloc[0])))
    refused("lacks", frame=predictions[(predictions["run"] != "resnet-full-s1") | (predictions["split"] != "ood_test")])
    refused("runs have rows of different", method=(0, "probe"))


def test_params_are_checked():
    for wrong in ({"resamples": 10}, {"specificity": 1.0}, {"ece_bins": 0}, {"unknown": 1}, {"prevalences": [0.0]}):
        with pytest.raises(ValidationError):
            EvaluateParams(seed=0, **wrong)
