"""coral, dann, group_dro: their losses against NumPy and the papers, and domains that come nearer."""

import math
from functools import cache
from itertools import repeat

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from pipeline.adaptation import coral, dann, group_dro
from pipeline.adaptation.coral import coral_loss
from pipeline.adaptation.dann import DomainClassifier, ReverseGradient, reversal
from pipeline.adaptation.group_dro import site_label_groups
from pipeline.errors import PipelineError
from pipeline.training import alignment
from pipeline.training.alignment import Alongside, Reweighted, Told, target_batches
from pipeline.training.backbone import Classifier, InputSpec
from pipeline.training.feed import to_unit
from pipeline.training.loop import learning_rate_factor
from pipeline.training.loss import masked_loss
from pipeline.transfer import full_finetune


def test_coral_loss_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)), rng.normal(2, 3, size=(4, 5))
    expected = np.sum((np.cov(a, rowvar=False) - np.cov(b, rowvar=False)) ** 2) / (4 * 25)
    assert float(coral_loss(torch.from_numpy(a), torch.from_numpy(b))) == pytest.approx(expected, rel=1e-12)
    assert float(coral_loss(torch.from_numpy(a), torch.from_numpy(a + 5.0))) == pytest.approx(0.0, abs=1e-20)


def test_coral_of_one_dimension():
    a, b = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [0.0], [0.0]])
    assert float(coral_loss(a, b)) == pytest.approx(2.0**2 / 4)


def test_the_gradient_is_reversed_and_the_value_is_not():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    out = ReverseGradient.apply(x, 0.3)
    assert torch.equal(out, x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2,), -0.3))


def test_the_reversal_grows_as_in_the_paper():
    assert reversal(0.0) == 0.0
    assert reversal(0.5) == pytest.approx(math.tanh(2.5))  # 2 / (1 + exp(-10 p)) - 1 = tanh(5 p)
    assert 0.999 < reversal(1.0) < 1.0


def test_the_domain_classifier_learns_and_the_features_unlearn():
    """A step down its loss makes the classifier better; the same step on the features makes them harder to tell."""
    source, target = (torch.randn(20, 4, generator=torch.Generator().manual_seed(n)) + n for n in (0, 1))
    both = torch.cat([source, target]).requires_grad_()
    domains = DomainClassifier(4, 8, 10, 1)
    domains._step = 10
    before = domains(both[:20], both[20:])
    before.backward()
    with torch.no_grad():
        assert domains((both - 0.5 * both.grad)[:20], (both - 0.5 * both.grad)[20:]) > before
        for parameter in domains.parameters():
            parameter -= 0.5 * parameter.grad
        assert domains(both[:20], both[20:]) < before


def test_both_domains_count_alike():
    domains = DomainClassifier(3, 8, 10, 1)
    source, target = torch.randn(6, 3), torch.randn(2, 3)
    with torch.no_grad():
        once = domains(source, target)
        assert float(domains(source, target.repeat(10, 1))) == pytest.approx(float(once), rel=1e-5)
        logits = domains.layers(torch.cat([source, target]))[:, 0]
        wanted = torch.tensor([1.0] * 6 + [0.0] * 2)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    assert float(once) == pytest.approx(float(losses[:6].mean() + losses[6:].mean()) / 2, rel=1e-5)


# --- training on two hospitals ----------------------------------------------------------------------------


def small(engine):
    """Sixteen patches of the image, a layer and batch-norm: it can look at the one half and not at the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(engine.seed)
        trunk = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU())
        return Classifier(trunk, nn.Linear(16, 1), InputSpec((0.5,) * 3, (0.25,) * 3))


@cache
def target():
    """The same finding in the left half, and a lower half that is brighter than at home."""
    seen = tiny.images(np.arange(24) % 2, seed=9).astype(int)
    seen[:, 16:] += 60
    return tiny.Memory(np.minimum(seen, 255).astype(np.uint8))


@pytest.fixture
def engine(monkeypatch):
    made = tiny.engine(tiny.dataset(num=32), features=np.zeros((1, 1), np.float32), loop=tiny.loop(epochs=10))
    monkeypatch.setattr(type(made), "pretrained", small)
    return made


def unit(images):
    return to_unit(torch.from_numpy(images.pixels), torch.device("cpu"), torch.contiguous_format)


def features(model, images):
    with torch.no_grad():
        return model.features(unit(images))


def spread_apart(model, data):
    """Squared distance of the domains' means in units of the features' own variance."""
    a, b = features(model, data.images), features(model, target())
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() / (a.var(0) + b.var(0)).sum())


def trained(engine, remedy, **changes):
    params = remedy.Params(learning_rate=[3e-2], **changes)
    torch.manual_seed(0)  # nothing may hang on the global generator
    if remedy is full_finetune:
        return remedy.fit(engine, params)
    return remedy.align(engine, target(), np.arange(24), params)[0]


def test_dann_brings_the_domains_nearer(engine):
    """150 steps as the loop makes them, with the domain classifier's loss and without; no choice of an epoch."""
    apart = []
    for weight in (0.0, 1.0):
        module = Alongside(small(engine), repeat(unit(target())), DomainClassifier(16, 32, 150, 1)).train()
        optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, 150, 0.0))
        for _ in range(150):
            optimiser.zero_grad()
            summed, known = masked_loss(module(unit(engine.data.images)), torch.from_numpy(engine.data.labels))
            (summed / known + weight * module.penalty()).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        apart.append(spread_apart(module.eval().classifier, engine.data))
    assert apart[1] < 0.4 * apart[0]


def test_coral_brings_the_covariances_nearer(engine):
    plain = trained(engine, full_finetune)
    model = trained(engine, coral, weight=1000.0)
    apart = [float(coral_loss(features(m, engine.data.images), features(m, target()))) for m in (plain, model)]
    assert apart[1] < 0.3 * apart[0]


@pytest.mark.parametrize("remedy", [coral, dann])
def test_aligned_models_still_learn_the_label_and_are_the_same_twice(engine, remedy):
    one, two = (trained(engine, remedy) for _ in range(2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    with torch.no_grad():
        found = one(unit(engine.data.images))[:, 0].numpy()
    assert np.mean((found > 0) == engine.data.labels[:, 0]) > 0.9
    assert not one.training


@pytest.mark.parametrize("remedy", [coral, dann])
def test_three_images_are_enough_to_go_on(engine, remedy):
    engine.loop = tiny.loop(epochs=1)
    model, note = remedy.align(engine, target(), np.arange(3), remedy.Params(learning_rate=[1e-3]))
    assert "weight 1" in note
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_real_backbone_with_parts_of_batches(monkeypatch):
    """A torchvision trunk; ``accumulate`` parts each meet a part of the target."""
    made = tiny.engine(tiny.dataset(), features=np.zeros((1, 1), np.float32), loop=tiny.loop(epochs=1, accumulate=2))
    seen = []
    monkeypatch.setattr(alignment, "in_batches", lambda indices, size: seen.append(size) or [indices[:size]])
    model, _ = coral.align(made, target(), np.arange(24), coral.Params(learning_rate=[1e-3]))
    assert set(seen) == {4}
    assert model.last.out_features == 1


def test_source_and_target_share_one_batch_in_training_and_the_target_is_not_judged(engine):
    """Their statistics are the mixture's: of both by hand."""
    classifier = small(engine)
    batch = torch.rand(4, 1, 32, 32)
    other = torch.rand(6, 1, 32, 32)
    module = Alongside(classifier, iter([other]), lambda a, b: torch.tensor(float(len(a) * 100 + len(b))))
    module.train()
    logits = module(batch)
    assert logits.shape == (4, 1)
    assert float(module.penalty()) == 406.0
    with torch.no_grad():
        seen = classifier.trunk[:3]((torch.cat([batch, other]).expand(-1, 3, -1, -1) - 0.5) / 0.25)
    torch.testing.assert_close(classifier.trunk[3].running_mean, 0.1 * seen.mean(dim=0), rtol=1e-4, atol=1e-6)
    module.eval()
    with torch.no_grad():
        assert torch.equal(module(batch), classifier(batch))  # and no batch of the target was asked for


def test_the_target_comes_round_again_in_another_order(engine):
    stream = target_batches(engine, target(), np.arange(24))
    rounds = [torch.cat([next(stream) for _ in range(3)]).sum(dim=(1, 2, 3)).tolist() for _ in range(2)]
    assert sorted(rounds[0]) == pytest.approx(sorted(rounds[1]))
    assert rounds[0] != rounds[1]


# --- groups -----------------------------------------------------------------------------------------------


def test_groups_are_those_of_site_and_label_that_occur_in_training():
    labels = np.array([[0, 1], [1, np.nan], [1, 0], [0, 0]], dtype=np.float32)
    groups, names = site_label_groups(labels, np.array(["n", "n", "s", "s"]), np.array([0, 1, 2]), ["a", "b"])
    assert names == ["n a 0", "n a 1", "s a 1", "n b 1", "s b 0"]
    assert groups.tolist() == [[0, 3], [1, -1], [2, 4], [-1, 4]]


def reweighted(step, logits, groups, labels):
    head = nn.Linear(1, 1)
    module = Reweighted(head, Told(None), labels, groups, step)
    module._feed.batch = np.arange(len(logits))
    return module


def test_weights_follow_the_papers_update():
    """Algorithm 1 of Sagawa 2020 in NumPy, two steps, one group absent from the batch."""
    logits = torch.tensor([[0.5], [-1.0], [2.0], [0.1]])
    labels = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    groups = torch.tensor([[0], [0], [1], [1]])
    module = reweighted(
        0.7, logits, torch.cat([groups, torch.tensor([[2]])]), torch.cat([labels, torch.tensor([[1.0]])])
    )
    q = np.full(3, 1 / 3)
    each = np.logaddexp(0, logits.numpy()[:, 0]) - labels.numpy()[:, 0] * logits.numpy()[:, 0]
    means = np.array([each[:2].mean(), each[2:].mean(), 0.0])
    for _ in range(2):
        factors = module.ascend(logits, torch.arange(4))
        q = q * np.exp(0.7 * means)
        q /= q.sum()
        np.testing.assert_allclose(module.weights.numpy(), q, rtol=1e-6)
    assert q.argmax() == means.argmax()
    np.testing.assert_allclose(factors[:, 0].numpy(), 4 * q[[0, 0, 1, 1]] / 2, rtol=1e-6)


def test_the_gradient_is_that_of_the_weighted_groups():
    """Of sum_g q_g mean loss of g, written out; an unlabelled image has none."""
    images = torch.randn(5, 1)
    labels = torch.tensor([[1.0], [0.0], [0.0], [0.0], [float("nan")]])
    groups = torch.tensor([[0], [1], [1], [1], [-1]])
    module = reweighted(0.5, images, groups, labels)
    module.train()
    summed, known = masked_loss(module(images), labels)
    (summed / known).backward()
    found = [parameter.grad.clone() for parameter in module.classifier.parameters()]
    module.classifier.zero_grad()
    losses = nn.functional.binary_cross_entropy_with_logits(
        module.classifier(images), labels.nan_to_num(), reduction="none"
    )[:, 0]
    weights = module.weights.float()
    (weights[0] * losses[0] + weights[1] * losses[1:4].mean()).backward()
    for gradient, parameter in zip(found, module.classifier.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_the_feed_says_which_images_it_gave():
    class Lazy:
        def training(self, batches, epoch):  # noqa: ARG002 (the feed's form)
            for batch in list(batches):  # reads ahead
                yield torch.tensor(batch)

    told = Told(Lazy())
    for images in told.training(iter([np.array([3, 1]), np.array([2])]), 0):
        assert told.batch.tolist() == images.tolist()


def test_group_dro_trains_and_says_the_weights(engine):
    sites = np.array(["north", "south"])[np.arange(32) // 2 % 2]
    one, two = (
        group_dro.fit(engine, sites, group_dro.Params(learning_rate=[1e-2], step=0.1)) for _ in range(2)
    )  # fmt: skip
    assert "north finding0 0 0." in one[1]
    assert one[1] == two[1]
    shares = [float(part.rpartition(" ")[2]) for part in one[1].partition(": ")[2].split(", ")]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(1.0, abs=0.02)
    assert all(torch.equal(value, two[0].state_dict()[name]) for name, value in one[0].state_dict().items())


def test_a_group_that_is_learnt_worse_weighs_more(engine):
    """South's labels are noise: its loss stays, north's falls."""
    sites = np.array(["north", "south"])[np.arange(32) // 2 % 2]
    noise = np.random.default_rng(0).permutation(16) % 2
    engine.data.labels[sites == "south", 0] = noise
    engine.loop = tiny.loop(epochs=6)
    _, note = group_dro.fit(engine, sites, group_dro.Params(learning_rate=[1e-2], step=1.0))
    shares = dict(part.rsplit(" ", 1) for part in note.partition(": ")[2].split(", "))
    assert sum(float(v) for k, v in shares.items() if "south" in k) > 0.6


def test_one_source_site_is_refused_in_words(engine):
    with pytest.raises(PipelineError, match=r"there is 1 source site.*two sites or more"):
        group_dro.fit(engine, np.full(32, "north"), group_dro.Params(learning_rate=[1e-2]))
