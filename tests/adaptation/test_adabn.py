"""adabn: batch-norm's statistics by hand, its collapse under label shift, and the guard against it."""

import numpy as np
import pytest
import tiny
import torch
from scipy.special import expit
from torch import nn

from pipeline.adaptation import adabn
from pipeline.adaptation.adabn import estimate_statistics
from pipeline.adaptation.interface import Case, Evidence, Scores
from pipeline.errors import PipelineError
from pipeline.training.backbone import Classifier, InputSpec
from pipeline.training.feed import AugmentParams, ImageFeed

PLAIN = InputSpec((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SIZE = 400


def hospital(prevalence, seed, gain=1.0, offset=0.0, num=SIZE):
    """Images (N, 4, 4) uint8 of one brightness, higher with the finding; a scanner's gain and offset."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(num) < prevalence * num).astype(float)
    brightness = 0.3 + 0.2 * labels + rng.normal(0, 0.035, num)
    images = np.tile(brightness[:, None, None], (1, 4, 4)) * gain + offset
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8), labels


def model(pixels, momentum=0.1):
    """Mean brightness, batch-norm with the statistics of these images, and a logit of 3 a standard deviation."""
    trunk = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.BatchNorm2d(1, momentum=momentum), nn.Flatten(),
                          nn.AvgPool1d(16))  # fmt: skip
    head = nn.Linear(1, 1)
    with torch.no_grad():
        trunk[0].weight.fill_(1 / 3)
        head.weight.fill_(3.0)
        head.bias.fill_(0.0)
    made = Classifier(trunk, head, PLAIN).eval()
    estimate_statistics(made, feed(pixels), np.arange(len(pixels)), 64)
    return made


def feed(pixels):
    return ImageFeed(tiny.Memory(pixels), torch.device("cpu"), torch.contiguous_format, AugmentParams(), 0)


def logits(trained, pixels):
    with torch.no_grad():
        return trained(torch.from_numpy(pixels[:, None] / np.float32(255.0))).numpy()[:, 0].astype(float)


def balanced_accuracy(found, labels):
    return ((found > 0)[labels == 1].mean() + (found <= 0)[labels == 0].mean()) / 2


def case(home, away, findings=1):
    (pixels, labels), (target, _) = home, away
    trained = model(pixels)
    names = np.array([f"p{number}" for number in range(SIZE)])
    evidence = Evidence(
        "away", "opacity", Scores(logits(trained, pixels), labels, names),
        Scores(logits(trained, target), np.full(len(target), np.nan), names[: len(target)]),
    )  # fmt: skip
    store = tiny.Memory(target)
    indices = np.arange(len(target))
    return Case(tiny.fabric(), torch.contiguous_format, 64, trained, store, indices, tiny.Memory(pixels), indices,
                [evidence] * findings)  # fmt: skip


def params(**changes):
    return adabn.Params(base="scratch", resamples=100, **changes)


def test_statistics_are_those_of_the_images():
    """One batch: mean and unbiased variance over images and pixels, by NumPy; momentum is as before."""
    pixels, _ = hospital(0.5, 1)
    trained = model(hospital(0.5, 2)[0], momentum=0.3)
    estimate_statistics(trained, feed(pixels), np.arange(SIZE), SIZE)
    values = pixels / 255.0
    assert float(trained.trunk[1].running_mean) == pytest.approx(values.mean(), rel=1e-5)
    assert float(trained.trunk[1].running_var) == pytest.approx(values.var(ddof=1), rel=1e-4)
    assert trained.trunk[1].momentum == 0.3
    assert not any(module.training for module in trained.modules())


def test_another_scanner_is_undone():
    """What AdaBN is for: gain and offset of the target, same prevalence."""
    home, away = hospital(0.5, 1), hospital(0.5, 2, gain=0.6, offset=0.3)
    made = case(home, away)
    assert balanced_accuracy(logits(made.model, away[0]), away[1]) < 0.6
    found = adabn.adapt(made, params(guard="off"))
    assert balanced_accuracy(logits(found.model, away[0]), away[1]) > 0.98


def test_without_the_guard_it_collapses_under_label_shift_and_with_it_it_does_not():
    home, away = hospital(0.5, 1), hospital(0.05, 2)
    plain = balanced_accuracy(logits(model(home[0]), away[0]), away[1])
    assert plain > 0.98
    result = {}
    for guard in ("off", "refuse", "correct"):
        made = case(home, away)
        found = adabn.adapt(made, params(guard=guard))
        result[guard] = balanced_accuracy(logits(found.model, away[0]), away[1]), found.outcomes[0]
    assert result["off"][0] < 0.85
    assert result["refuse"][0] == plain
    assert result["correct"][0] > 0.98
    assert [outcome.decision for _, outcome in result.values()] == ["applied", "refused", "corrected"]
    for _, outcome in result.values():
        assert outcome.estimated_prevalence == pytest.approx(0.05, abs=0.02)
        assert outcome.source_prevalence == pytest.approx(0.5, abs=0.01)
    assert "more than 0.1" in result["refuse"][1].note


def test_the_guard_lets_the_same_prevalence_pass():
    found = adabn.adapt(case(hospital(0.5, 1), hospital(0.48, 2)), params())
    assert found.outcomes[0].decision == "applied"
    assert "no change of prevalence beyond 0.1" in found.outcomes[0].note


def test_a_refused_model_is_the_plain_one_to_the_bit():
    made = case(hospital(0.5, 1), hospital(0.05, 2))
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    adabn.adapt(made, params())
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


def test_resampled_images_have_the_sources_mix():
    made = case(hospital(0.5, 1), hospital(0.05, 2))
    found = adabn.estimate(made.evidence[0], 100, 1)
    chosen = adabn.resample(made.evidence[0], found, made.indices)
    assert len(chosen) == SIZE
    assert (hospital(0.05, 2)[1][chosen]).mean() == pytest.approx(0.5, abs=0.02)


def test_few_images_no_batch_norm_and_an_unknown_source_are_refused():
    home = hospital(0.5, 1)
    three = adabn.adapt(case(home, (hospital(0.5, 2)[0][:3], None)), params())
    assert three.outcomes[0].decision == "refused"
    assert "3 images in target_adapt" in three.outcomes[0].note
    made = case(home, hospital(0.5, 2))
    made.model.trunk[1] = nn.Identity()
    assert "no batch-norm" in adabn.adapt(made, params()).outcomes[0].note
    made = case((home[0], np.ones(SIZE)), hospital(0.5, 2))
    assert "cannot be ruled out" in adabn.adapt(made, params()).outcomes[0].note


def test_pseudo_labels_of_one_class_leave_nothing_to_resample():
    made = case(hospital(0.5, 1), hospital(0.0, 2))
    found = adabn.adapt(made, params(guard="correct"))
    assert found.outcomes[0].decision == "refused"
    assert "one class" in found.outcomes[0].note


def test_correct_is_for_one_finding():
    made = case(hospital(0.5, 1), hospital(0.05, 2), findings=2)
    with pytest.raises(PipelineError, match="2 findings"):
        adabn.adapt(made, params(guard="correct"))
    assert [outcome.decision for outcome in adabn.adapt(made, params()).outcomes] == ["refused", "refused"]


def test_it_is_calibrated_at_home():
    """The simulated logits are what the guard assumes: they rise with the label, as probabilities of it."""
    pixels, labels = hospital(0.5, 3)
    assert np.mean((expit(logits(model(pixels), pixels)) > 0.5) == labels) > 0.98


def test_the_same_images_give_the_same_bytes():
    states = [adabn.adapt(case(hospital(0.5, 1), hospital(0.05, 2)), params(guard="correct")).model.state_dict()
              for _ in range(2)]  # fmt: skip
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
