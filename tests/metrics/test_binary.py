"""Each metric against scikit-learn or SciPy, by hand, and in its properties; over the table where one can."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    precision_score,
    roc_auc_score,
)
from sklearn.metrics import log_loss as sklearn_log_loss

from pipeline.metrics.binary import (
    METRICS,
    auroc,
    average_precision,
    brier,
    brier_calibration,
    brier_refinement,
    calibration_intercept,
    calibration_slope,
    ece,
    equal_mass_bins,
    log_loss,
    metrics_at,
    net_benefit,
    net_benefit_all,
    predictive_value_negative,
    predictive_value_positive,
    prevalence,
    sensitivity_at,
    specificity_at,
    threshold_at_specificity,
)

SETTINGS = {"threshold": 0.4, "ece_bins": 15, "prevalence": 0.1}


def sample(seed, n=80, ties=False):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.35).astype(np.int8)
    logits = 1.5 * rng.normal(size=n) + 0.9 * labels - 0.7
    return labels, np.round(logits * 2) / 2 if ties else logits, rng.poisson(1.0, (6, n)).astype(np.float64)


def intercept_by_root(labels, logits, weights):
    return brentq(lambda a: np.sum(weights * (labels - expit(a + logits))), -50, 50, xtol=1e-12)


def slope_by_sklearn(labels, logits, weights):
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
    return model.fit(logits[:, None], labels, sample_weight=weights).coef_[0, 0]


def recalibrated(labels, logits, weights):
    model = IsotonicRegression(out_of_bounds="clip").fit(logits, labels, sample_weight=weights)
    return brier_score_loss(labels, model.predict(logits), sample_weight=weights)


def predictive_value(label):
    """As precision on a sample whose classes are weighted to the wanted prevalence."""

    def oracle(y, x, w):
        share = np.average(y, weights=w)
        to = np.where(y == 1, SETTINGS["prevalence"] / share, (1 - SETTINGS["prevalence"]) / (1 - share))
        return precision_score(y, expit(x) >= SETTINGS["threshold"], sample_weight=w * to, pos_label=label)

    return oracle


def benefit(called):
    def oracle(y, x, w):
        (_, false), (_, true) = confusion_matrix(y, called(expit(x)), labels=[0, 1], sample_weight=w)
        return (true - false * 0.4 / 0.6) / w.sum()

    return oracle


ORACLES = {
    auroc: lambda y, x, w: roc_auc_score(y, x, sample_weight=w),
    average_precision: lambda y, x, w: average_precision_score(y, x, sample_weight=w),
    brier: lambda y, x, w: brier_score_loss(y, expit(x), sample_weight=w),
    log_loss: lambda y, x, w: sklearn_log_loss(y, expit(x), sample_weight=w),
    calibration_slope: slope_by_sklearn,
    calibration_intercept: intercept_by_root,
    prevalence: lambda y, _, w: np.average(y, weights=w),
    brier_refinement: recalibrated,
    brier_calibration: lambda y, x, w: brier_score_loss(y, expit(x), sample_weight=w) - recalibrated(y, x, w),
    predictive_value_positive: predictive_value(1),
    predictive_value_negative: predictive_value(0),
    net_benefit: benefit(lambda p: p >= 0.4),
    net_benefit_all: benefit(np.ones_like),
}


@pytest.mark.parametrize("function", ORACLES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_an_independent_implementation(function, ties, seed):
    labels, logits, weights = sample(seed, ties=ties)
    expected = [ORACLES[function](labels, logits, row) for row in weights]
    metric = next(metric for metric in METRICS.values() if metric.function is function)
    np.testing.assert_allclose(metric(labels, logits, weights, **SETTINGS), expected, rtol=1e-5, atol=1e-7)


def test_every_metric_has_an_oracle_here():
    tested = set(ORACLES) | {ece, sensitivity_at, specificity_at}
    assert {metric.function for metric in METRICS.values()} == tested


def test_calibration_fits_solve_the_score_equations_exactly():
    labels, logits, weights = sample(3, n=200)
    slope = calibration_slope(labels, logits, weights)
    for row, b in zip(weights, slope, strict=True):
        a = intercept_by_root(labels, b * logits, row)
        assert np.sum(row * (labels - expit(a + b * logits)) * logits) == pytest.approx(0, abs=1e-6)


def test_calibration_finds_the_distortion_that_was_put_in():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200_000)
    labels = (rng.random(len(truth)) < expit(truth)).astype(np.int8)
    once = np.ones((1, len(truth)))
    assert calibration_slope(labels, truth * 2 + 1, once) == pytest.approx(0.5, abs=0.01)
    assert calibration_intercept(labels, truth - 0.7, once) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_calibration_slope_is_undefined_where_the_classes_do_not_overlap(sign):
    labels = np.array([0, 0, 0, 1, 1, 1], dtype=np.int8)
    apart = sign * np.array([-2.0, -1, 0, 1, 2, 3])
    touching = sign * np.array([-2.0, -1, 1, 1, 2, 3])
    crossing = sign * np.array([-2.0, -1, 1.5, 1, 2, 3])
    once = np.ones((1, 6))
    assert np.isnan(calibration_slope(labels, apart, once)).all()
    assert np.isnan(calibration_slope(labels, touching, once)).all()
    assert np.isnan(calibration_slope(labels, np.full(6, 0.3), once)).all()
    assert np.isfinite(calibration_slope(labels, crossing, once)).all()
    # The one image that makes them overlap is missing from the second resample.
    weights = np.array([[1.0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]])
    assert np.isfinite(calibration_slope(labels, crossing, weights)).tolist() == [True, False]


def test_calibration_holds_at_extreme_logits():
    labels = np.array([0, 1, 0, 1, 0, 1], dtype=np.int8)
    logits = np.array([-900.0, -800, 5, 6, 700, 900])
    once = np.ones((1, 6))
    expected = slope_by_sklearn(labels, logits / 1000, once[0]) / 1000
    assert calibration_slope(labels, logits, once) == pytest.approx(expected, rel=1e-4)
    # The root is the middle of a plateau some hundreds wide; what counts is that it solves the equation.
    a = calibration_intercept(labels, logits, once)[0]
    assert np.mean(expit(a + logits)) == pytest.approx(0.5, abs=1e-6)
    far = np.full(6, 40.0)
    assert calibration_intercept(labels, far, once) == pytest.approx(-40.0)


def test_by_hand():
    labels = np.array([0, 0, 1, 1], dtype=np.int8)
    logits = logit(np.array([0.1, 0.4, 0.35, 0.8]))
    once = np.ones((1, 4))
    assert auroc(labels, logits, once) == pytest.approx(3 / 4)
    assert average_precision(labels, logits, once) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert brier(labels, logits, once) == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
    assert log_loss(labels, logits, once) == pytest.approx(-np.log([0.9, 0.6, 0.35, 0.8]).mean())
    assert sensitivity_at(labels, logits, once, threshold=0.35) == pytest.approx(1.0)  # at the threshold: positive
    assert specificity_at(labels, logits, once, threshold=0.35) == pytest.approx(0.5)
    assert auroc(labels, np.zeros(4), once) == 0.5
    assert average_precision(labels, np.zeros(4), once) == 0.5
    assert log_loss(labels, np.array([-1e4, -1e4, 1e4, 1e4]), once) == 0.0
    assert log_loss(labels, np.array([1e4, -1e4, 1e4, 1e4]), once) == pytest.approx(2500)


def test_new_metrics_by_hand():
    # 10 diseased, 8 called; 40 healthy, 4 called.
    labels = np.repeat([1, 0], [10, 40]).astype(np.int8)
    logits = np.repeat([1.0, -1, 1, -1], [8, 2, 4, 36])
    once = np.ones((1, 50))
    at = {"threshold": 0.5, "prevalence": 0.02}
    assert predictive_value_positive(labels, logits, once, **at) == pytest.approx(0.016 / (0.016 + 0.098))
    assert predictive_value_negative(labels, logits, once, **at) == pytest.approx(0.882 / (0.882 + 0.004))
    assert net_benefit(labels, logits, once, 0.5) == pytest.approx(8 / 50 - 4 / 50)
    assert net_benefit_all(labels, logits, once, 0.2) == pytest.approx(0.2 - 0.8 / 4)
    assert net_benefit(labels, logits, once, 1.0 + 1e-9) == 0.0  # none is called
    assert np.isnan(net_benefit_all(labels, logits, once, 1.0))
    # The scores have two values: their recalibration is 8/12 and 2/38.
    assert brier_refinement(labels, logits, once) == pytest.approx((8 / 12 * 4 / 12 * 12 + 2 / 38 * 36 / 38 * 38) / 50)
    assert brier_refinement(labels, np.zeros(50), once) == pytest.approx(0.2 * 0.8)
    assert brier_refinement(labels, labels - 0.5, once) == 0.0


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_predictive_values_need_a_prevalence_inside(share):
    labels, logits, weights = sample(0)
    for function in (predictive_value_positive, predictive_value_negative):
        assert np.isnan(function(labels, logits, weights, 0.4, share)).all()


def test_predictive_values_need_someone_called_so():
    labels, logits, weights = sample(0)
    assert np.isnan(predictive_value_positive(labels, logits, weights, 1.1, 0.2)).all()
    assert np.isnan(predictive_value_negative(labels, logits, weights, 0.0, 0.2)).all()


def test_stated_prevalences_and_thresholds_have_names_without_dots():
    labels, logits, weights = sample(4)
    made = metrics_at([0.005, 0.2], [0.1])
    assert set(made) - set(METRICS) == {
        *("ppv_at_0_5_percent", "npv_at_0_5_percent", "ppv_at_20_percent", "npv_at_20_percent"),
        *("net_benefit_at_10_percent", "net_benefit_all_at_10_percent"),
    }
    stated = made["ppv_at_20_percent"](labels, logits, weights, threshold=0.4, prevalence=0.9)
    assert (stated == predictive_value_positive(labels, logits, weights, 0.4, 0.2)).all()
    stated = made["net_benefit_at_10_percent"](labels, logits, weights, threshold=0.9)
    assert (stated == net_benefit(labels, logits, weights, 0.1)).all()


@pytest.mark.parametrize("name", METRICS)
def test_undefined_is_nan_and_never_a_number(name):
    metric = METRICS[name]
    labels, logits, _ = sample(0)
    weights = np.stack([np.zeros(len(labels)), labels == 0, labels == 1]).astype(np.float64)
    finite = np.isfinite(metric(labels, logits, weights, **SETTINGS)).tolist()
    # no images, negatives only, positives only
    assert (
        finite
        == {
            "both": [False, False, False],
            "positives": [False, False, True],
            "negatives": [False, True, False],
            "any": [False, True, True],
        }[metric.needs]
    )
    if metric.needs_threshold:
        assert np.isnan(metric(labels, logits, np.ones((2, 80)), **{**SETTINGS, "threshold": float("nan")})).all()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("ties", [False, True])
def test_an_integer_weight_is_a_repeated_row(name, ties):
    labels, logits, weights = sample(11, ties=ties)
    for row in weights:
        times = row.astype(int)
        repeated = METRICS[name](
            np.repeat(labels, times), np.repeat(logits, times), np.ones((1, times.sum())), **SETTINGS
        )
        np.testing.assert_allclose(METRICS[name](labels, logits, row[None], **SETTINGS), repeated, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_rows_of_weights_do_not_influence_each_other(name):
    labels, logits, weights = sample(5)
    together = METRICS[name](labels, logits, weights, **SETTINGS)
    alone = np.concatenate([METRICS[name](labels, logits, row[None], **SETTINGS) for row in weights])
    np.testing.assert_allclose(together, alone, rtol=1e-7)


cases = st.integers(4, 40).flatmap(
    lambda n: st.tuples(
        arrays(np.int8, n, elements=st.integers(0, 1)),
        # Quarters: ties happen, and the transforms below keep them apart.
        arrays(np.int64, n, elements=st.integers(-24, 24)).map(lambda quarters: quarters / 4),
        arrays(np.int64, (3, n), elements=st.integers(0, 3)).map(lambda counts: counts.astype(np.float64)),
    )
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases)
def test_ranks_alone_count(case):
    labels, logits, weights = case
    for function in (auroc, average_precision, brier_refinement):
        expected = function(labels, logits, weights)
        np.testing.assert_allclose(function(labels, np.exp(logits) - 3, weights), expected, rtol=1e-12)
        np.testing.assert_allclose(function(labels, logits**3 + logits, weights), expected, rtol=1e-12)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases)
def test_the_parts_of_brier_sum_to_it(case):
    labels, logits, weights = case
    calibration, refinement = (part(labels, logits, weights) for part in (brier_calibration, brier_refinement))
    np.testing.assert_allclose(calibration + refinement, brier(labels, logits, weights), atol=1e-12)
    share = prevalence(labels, logits, weights)
    defined = np.isfinite(share)
    assert (calibration[defined] >= 0).all()
    # Never worse than the mean label for all.
    assert (refinement[defined] <= (share * (1 - share))[defined] + 1e-12).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases)
def test_flipped_labels_mirror(case):
    labels, logits, weights = case
    flipped = (1 - labels).astype(np.int8)
    np.testing.assert_allclose(auroc(flipped, logits, weights), 1 - auroc(labels, logits, weights), atol=1e-12)
    for function in (brier, brier_calibration, log_loss, calibration_slope):
        np.testing.assert_allclose(
            function(flipped, -logits, weights), function(labels, logits, weights), rtol=1e-5, atol=1e-8
        )
    np.testing.assert_allclose(
        calibration_intercept(flipped, -logits, weights), -calibration_intercept(labels, logits, weights), atol=1e-6
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases)
def test_a_slope_is_given_exactly_where_one_exists(case):
    labels, logits, weights = case
    slopes = calibration_slope(labels, logits, weights)
    for row, slope in zip(weights, slopes, strict=True):
        positives, negatives = logits[(row > 0) & (labels == 1)], logits[(row > 0) & (labels == 0)]
        exists = (
            len(positives) > 0
            and len(negatives) > 0
            and negatives.max() > positives.min()
            and positives.max() > negatives.min()
        )
        assert np.isfinite(slope) == exists
        if exists:
            a = intercept_by_root(labels, slope * logits, row)
            residual = row * (labels - expit(a + slope * logits)) * logits
            assert abs(residual.sum()) < 1e-5 * max(1.0, np.abs(residual).sum())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases, st.floats(0.05, 0.99))
def test_threshold_reaches_the_specificity_and_is_the_lowest_to_do_so(case, wanted):
    labels, logits, _ = case
    threshold, reached = threshold_at_specificity(labels, logits, wanted)
    if not (labels == 0).any():
        assert np.isnan(threshold)
        assert np.isnan(reached)
        return
    once = np.ones((1, len(labels)))
    assert specificity_at(labels, logits, once, threshold) == pytest.approx(reached)
    assert reached >= wanted - 1e-9
    lower = expit(logits)[expit(logits) < threshold]
    if len(lower) and (labels == 1).any():
        assert specificity_at(labels, logits, once, lower.max())[0] < wanted


def test_threshold_by_hand():
    labels = np.array([0] * 10 + [1, 1], dtype=np.int8)
    probabilities = np.array([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.6, 0.5, 0.9])
    threshold, reached = threshold_at_specificity(labels, logit(probabilities), 0.9)
    assert threshold == pytest.approx((0.45 + 0.5) / 2)
    assert reached == 0.9
    # All equal: nothing is called positive, rather than everything.
    assert threshold_at_specificity(labels, np.full(12, 80.0), 0.9)[1] == 1.0


def test_equal_mass_bins():
    assert equal_mass_bins(np.arange(10.0), np.ones(10), 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(set(equal_mass_bins(np.zeros(10), np.ones(10), 5).tolist())) == 1


def test_ece_by_hand():
    # Two bins of ten: 0.3 observed for 0.2, 0.7 for 0.8.
    logits = logit(np.repeat([0.2, 0.8], 10))
    labels = np.array([1] * 3 + [0] * 7 + [1] * 7 + [0] * 3, dtype=np.int8)
    expected = 0.1**2 - 0.21 / 9
    assert expected < 0  # within the noise
    assert ece(labels, logits, np.ones((1, 20)))[0] == 0.0
    many = np.full((1, 20), 100.0)
    expected = np.sqrt(0.1**2 - 0.21 / 999)
    assert ece(labels, logits, many)[0] == pytest.approx(expected)


def test_ece_is_debiased():
    """Mean square over calibrated samples is about 0; without the correction it is bins / n times p (1 - p)."""
    rng = np.random.default_rng(1)
    corrected, plain = [], []
    for _ in range(300):
        logits = rng.normal(size=150)
        labels = (rng.random(150) < expit(logits)).astype(np.int8)
        index = equal_mass_bins(logits, np.ones(150), 15)
        size = np.bincount(index)
        gap = np.bincount(index, expit(logits)) / size - np.bincount(index, labels) / size
        plain.append(np.sqrt(np.sum(size / 150 * gap**2)))
        corrected.append(ece(labels, logits, np.ones((1, 150)))[0])
    assert np.mean(plain) > 0.12
    assert np.mean(corrected) < 0.35 * np.mean(plain)
