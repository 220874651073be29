"""drift: how often it cries where nothing drifted, what it finds, and what it cannot say."""

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.analysis.drift import DriftParams, Sides, drift_checks, predicted
from pipeline.params import ParamsError, parse

PARAMS = DriftParams(model="net-probe", seed=1, alpha=0.05, permutations=99)


def month(seed, moved=0.0, prevalence=0.4, patients=(60, 30), width=6):
    """Embeddings and scores of a site before and now: patients of one to three images each, who are alike.

    A patient has the finding or not, and all images of them say so; home's labels calibrate the scores.
    """
    rng = np.random.default_rng(seed)
    made = []
    for number, share, shift in zip(patients, (0.4, prevalence), (0.0, moved), strict=True):
        who = np.repeat(np.arange(number), rng.integers(1, 4, number))
        labels = (rng.random(number) < share).astype(int)[who]
        own = rng.normal(shift, 1.0, (number, width))[who] + rng.normal(0, 0.5, (len(who), width))
        logits = 3.0 * labels - 1.5 + rng.normal(0, 1, number)[who] + rng.normal(0, 0.5, len(who))
        made.append((own, logits, labels, who))
    (x, z, y, p), (x_now, z_now, _, p_now) = made
    p_now = p_now + 1000
    return Sides(x, p, x_now, p_now), Sides(predicted(z, y, z), p, predicted(z, y, z_now), p_now)


def alarms(number, **changes):
    """How often any check drifted, the images' did, and the prevalence's."""
    found = np.zeros(3, dtype=int)
    for seed in range(number):
        embeddings, scores = month(seed, **changes)
        images, prevalence = drift_checks({"net": embeddings}, {"opacity": scores}, PARAMS)
        found += [images.drifted or prevalence.drifted, images.drifted, prevalence.drifted]
    return found


def test_without_drift_it_cries_as_often_as_its_level_says():
    """Over both checks together: 2.9 % of 1,000 months at 5 %."""
    found, *_ = alarms(120)
    assert 1 <= found <= binom.ppf(0.999, 120, 0.05)


def test_images_that_look_otherwise_are_found():
    _, images, prevalence = alarms(30, moved=0.8)
    assert images >= 29
    assert prevalence <= 4


def test_a_finding_that_became_frequent_is_found():
    _, images, prevalence = alarms(30, prevalence=0.9)
    assert prevalence >= 27
    assert images <= 4


def test_patients_are_exchanged_and_not_images():
    """Six patients of forty images each: by images nearly everything would have drifted."""
    drifted = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        who = np.repeat(np.arange(12), 40)
        x = rng.normal(0, 1, (12, 4))[who] + rng.normal(0, 0.1, (480, 4))
        sides = Sides(x[:240], who[:240], x[240:], who[240:])
        drifted += drift_checks({"net": sides}, {}, PARAMS)[0].drifted
    assert drifted <= 7


def test_what_is_told_of_a_check():
    embeddings, scores = month(3, prevalence=0.9)
    images, prevalence = drift_checks({"net": embeddings}, {"opacity": scores}, PARAMS)
    assert (images.kind, images.subject, prevalence.kind, prevalence.subject) == (
        "images", "net", "prevalence", "opacity",
    )  # fmt: skip
    assert np.isnan(images.before)
    assert prevalence.before == pytest.approx(scores.before.mean())
    assert prevalence.statistic == pytest.approx(scores.now.mean() - scores.before.mean())
    assert prevalence.p_holm == pytest.approx(min(1, 2 * prevalence.p_value))


def test_a_level_that_the_permutations_could_never_reach_is_reached():
    strict = DriftParams(model="net-probe", seed=1, alpha=0.001, permutations=99)
    embeddings, _ = month(1, moved=3.0)
    assert drift_checks({"net": embeddings}, {}, strict)[0].drifted


def test_three_patients_say_nothing_and_the_others_are_adjusted_without_them():
    few, _ = month(1, patients=(60, 3))
    images, prevalence = drift_checks({"net": few}, {"opacity": month(2)[1]}, PARAMS)
    assert images.note == "needs 4 patients on each side; there are 3 now"
    assert not images.drifted
    assert prevalence.p_holm == prevalence.p_value


@pytest.mark.parametrize("model", ["resnet18", "resnet18-full-finetune", "ResNet-probe"])
def test_a_model_is_a_backbone_and_a_method(model):
    with pytest.raises(ParamsError, match=r"drift\.model"):
        parse(DriftParams, {"model": model, "seed": 1}, "drift")
