"""temperature: scipy's optimum, whole patients, and no temperature where none is best."""

import numpy as np
import pytest
import simulated_logits as simulated
from scipy.optimize import minimize_scalar

from pipeline.adaptation import temperature
from pipeline.adaptation.interface import Evidence, Scores
from pipeline.adaptation.temperature import best_slope, few_labels

TARGET = simulated.scores(0.4, 500, 3, slope=0.4, home=0.4)


def evidence(target=TARGET):
    return Evidence("away", "opacity", target, target)


@pytest.mark.parametrize("seed", range(5))
def test_the_temperature_is_that_of_scipy(seed):
    target = simulated.scores(0.4, 40, seed, slope=0.3, intercept=0.5)
    best = minimize_scalar(
        lambda log_t: simulated.log_loss(target.logits / np.exp(log_t), target.labels),
        bounds=(-5, 5), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    found = temperature.recalibrate(evidence(target), temperature.Params(base="scratch", labelled_images=80))
    assert found.temperature == pytest.approx(np.exp(best.x), rel=1e-5)


def test_an_overconfident_model_gets_its_temperature():
    found = temperature.recalibrate(evidence(), temperature.Params(base="scratch", labelled_images=1000))
    assert found.temperature == pytest.approx(1 / 0.4, rel=0.15)
    assert found.num_labelled_used == 1000
    assert "few-label" in found.note
    after = TARGET.logits * found.slope + found.intercept
    assert simulated.log_loss(after, TARGET.labels) < simulated.log_loss(TARGET.logits, TARGET.labels) - 0.05


def test_whole_patients_are_drawn_by_seed_and_nothing_else_is_looked_at():
    drawn = few_labels(TARGET, 31, 1)
    assert drawn.sum() == 32  # two images a patient
    assert not set(TARGET.patients[drawn]) & set(TARGET.patients[~drawn])
    assert (few_labels(TARGET, 31, 1) == drawn).all()
    assert (few_labels(TARGET, 31, 2) != drawn).any()
    params = temperature.Params(base="scratch", labelled_images=31)
    hidden = Scores(TARGET.logits, np.where(drawn, TARGET.labels, 1 - TARGET.labels), TARGET.patients)
    assert temperature.recalibrate(evidence(hidden), params) == temperature.recalibrate(evidence(), params)


def test_images_without_label_do_not_count():
    labels = TARGET.labels.copy()
    labels[::2] = np.nan
    drawn = few_labels(Scores(TARGET.logits, labels, TARGET.patients), 20, 1)
    assert drawn.sum() == 20
    assert not drawn[::2].any()


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([], []),
        ([-1.0, 2.0], [0.0, 1.0]),  # all signs right: colder without end
        ([-1.0, 2.0], [1.0, 0.0]),  # all wrong: hotter without end
        ([0.0, 0.0], [0.0, 1.0]),
    ],
)
def test_where_no_temperature_is_best_it_is_refused(logits, labels):
    assert np.isnan(best_slope(np.array(logits), np.array(labels)))
    target = Scores(np.array(logits), np.array(labels), np.array([str(i) for i in range(len(logits))], dtype=str))
    found = temperature.recalibrate(evidence(target), temperature.Params(base="scratch", labelled_images=5))
    assert found.decision == "refused"
    assert np.isnan([found.temperature, found.slope]).all()
    assert found.num_labelled_used == len(logits)
