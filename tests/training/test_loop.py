"""The loop: its loss, its schedule, what it keeps, when it stops, and that it repeats itself."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError
from sklearn.utils.class_weight import compute_class_weight

from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.training import loop
from pipeline.training.backbone import build
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.feed import AugmentParams, ImageFeed, epoch_order, in_batches
from pipeline.training.loop import Plan, learning_rate_factor, predict_logits, train
from pipeline.training.loss import balanced_weights, masked_loss


def fit(data, model, *, seed=1, learning_rate=1e-3, plan=None, checkpoint=None, **options):
    params = tiny.loop(**options)
    fabric = tiny.fabric()
    return train(
        fabric,
        model,
        data,
        params,
        plan or Plan(learning_rate),
        feed=ImageFeed(data.images, fabric.device, torch.contiguous_format, params.augment, seed),
        findings=[f"finding{index}" for index in range(data.labels.shape[1])],
        seed=seed,
        layout=torch.contiguous_format,
        description="run",
        checkpoint=checkpoint,
    )


def logits_of(model, data, indices, batch_size=8):
    return predict_logits(tiny.fabric(), model, data.images, indices, batch_size, torch.contiguous_format)


def loss_of(logits, labels):
    """By hand, in double precision: -log p of the annotated labels, mean."""
    known = ~np.isnan(labels)
    signed = np.where(labels == 1, logits, -logits).astype(np.float64)[known]
    return np.log1p(np.exp(-signed)).mean()


def test_masked_loss_is_binary_cross_entropy_of_what_is_annotated():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 2, (20, 3), generator=generator).double()
    labels[torch.rand(20, 3, generator=generator) < 0.4] = float("nan")
    known = ~labels.isnan()
    total, count = masked_loss(logits, labels)
    expected = torch.nn.BCELoss(reduction="sum")(torch.sigmoid(logits[known]), labels[known])
    torch.testing.assert_close(total, expected)
    assert int(count) == int(known.sum())
    total.backward()
    assert torch.equal(logits.grad[~known], torch.zeros(int((~known).sum()), dtype=torch.float64))
    torch.testing.assert_close(logits.grad[known], (torch.sigmoid(logits) - labels)[known].detach())


def test_masked_loss_of_nothing_annotated_is_zero_of_zero_with_a_gradient_of_zero():
    logits = torch.ones(4, 2, requires_grad=True)
    total, count = masked_loss(logits, torch.full((4, 2), float("nan")))
    assert (float(total.detach()), int(count)) == (0.0, 0)
    total.backward()
    assert torch.equal(logits.grad, torch.zeros(4, 2))


def test_masked_loss_is_finite_for_certain_and_wrong():
    total, _ = masked_loss(torch.tensor([[1000.0], [-1000.0]]), torch.tensor([[0.0], [1.0]]))
    assert float(total) == 2000.0


def test_learning_rate_warms_up_linearly_and_falls_to_nothing():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert learning_rate_factor(0, 100, 0.0) == 1.0


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 0.99])
def test_learning_rate_of_a_few_steps_is_never_zero(steps, warmup):
    assert all(0.0 < learning_rate_factor(step, steps, warmup) <= 1.0 for step in range(steps))


def test_training_learns_what_can_be_learnt():
    data = tiny.dataset(num=32, num_val=8)
    model = build(tiny.BACKBONE, 1, seed=1, state=None)
    rows = fit(data, model, epochs=12, learning_rate=3e-3)
    assert [row.epoch for row in rows] == list(range(12))
    assert rows[0].train_loss == pytest.approx(np.log(2), abs=0.15)  # a fresh head knows nothing
    assert rows[-1].train_loss < 0.3 * rows[0].train_loss
    assert not model.training


def test_the_epoch_of_least_id_val_loss_stays():
    """id_val's labels are wrong on purpose: the better training goes, the worse it gets there."""
    data = tiny.dataset(num=32, num_val=8)
    wrong = data.labels.copy()
    wrong[data.id_val] = 1 - wrong[data.id_val]
    data = replace(data, labels=wrong)
    model = build(tiny.BACKBONE, 1, seed=1, state=None)
    rows = fit(data, model, epochs=8, learning_rate=3e-3)
    losses = [row.id_val_loss for row in rows]
    kept = [row.epoch for row in rows if row.kept]
    assert kept == [int(np.argmin(losses))]
    assert kept != [7]
    again = loss_of(logits_of(model, data, data.id_val), data.labels[data.id_val])
    assert again == pytest.approx(min(losses), abs=1e-6)
    assert abs(again - losses[-1]) > 1e-3


def test_a_loss_that_is_not_finite_stops_and_names_the_batch():
    data = tiny.dataset()
    model = build(tiny.BACKBONE, 1, seed=1, state=None)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    first = next(in_batches(epoch_order(data.train, 1, 0), 8)).tolist()
    with pytest.raises(PipelineError) as caught:
        fit(data, model)
    ids = ", ".join(f"image{index:03d}" for index in first)
    assert f"the loss is nan in epoch 0 at the batch of images {ids};" in str(caught.value)


def test_an_id_val_loss_that_is_never_finite_is_an_error():
    data = tiny.dataset()
    labels = data.labels.copy()
    labels[data.id_val] = np.nan
    with pytest.raises(PipelineError, match="run: the id_val loss was never finite"):
        fit(replace(data, labels=labels), build(tiny.BACKBONE, 1, seed=1, state=None))


@pytest.mark.parametrize(("train_images", "val_images"), [(0, 8), (1, 8), (8, 0)])
def test_too_few_images_are_told_in_words(train_images, val_images):
    data = tiny.dataset()
    data = replace(data, train=data.train[:train_images], id_val=data.id_val[:val_images])
    with pytest.raises(PipelineError, match=f"there are {train_images} and {val_images}"):
        fit(data, build(tiny.BACKBONE, 1, seed=1, state=None))


def test_a_batch_size_that_must_leave_single_images_is_refused():
    with pytest.raises(ValidationError):
        tiny.loop(batch_size=2)


def test_an_odd_image_trains_where_batch_norm_sees_one_pixel():
    """9 images in batches of 8; at 32 px resnet18 ends in 1 x 1 pixels, where one image has no variance."""
    data = tiny.dataset(num=13, num_val=4)
    fit(data, build("resnet18", 1, seed=1, state=None), epochs=1)


def test_images_without_any_label_change_no_gradient_but_batch_norms():
    """A trunk without batch-norm's coupling is not at hand; the head's own gradient shows it."""
    model = torch.nn.Linear(3, 1)
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1.0], [0.0], [1.0], [float("nan")], [float("nan")], [0.0]])
    total, _ = masked_loss(model(inputs), labels)
    (with_null,) = torch.autograd.grad(total, [model.weight])
    known = ~labels[:, 0].isnan()
    total, _ = masked_loss(model(inputs[known]), labels[known])
    (without,) = torch.autograd.grad(total, [model.weight])
    torch.testing.assert_close(with_null, without)


def test_two_runs_give_the_same_bytes_with_dropout_and_augmentation():
    data = tiny.dataset()

    def run(seed):
        model = build("mobilenet_v3_small", 1, seed=1, state=None)
        torch.rand(7)  # what others drew before must not matter
        rows = fit(data, model, seed=seed, augment=AugmentParams())
        return rows, {key: value.numpy().tobytes() for key, value in model.state_dict().items()}

    first, second, other = run(1), run(1), run(2)
    assert first == second
    assert first[1] != other[1]


def test_logits_do_not_depend_on_the_batch():
    """To 1e-5: convolutions add in another order for another batch size."""
    data = tiny.dataset()
    model = build(tiny.BACKBONE, 2, seed=1, state=None)
    everything = np.arange(24)
    whole = logits_of(model, data, everything, 24)
    for batch_size in (1, 5, 7):
        np.testing.assert_allclose(logits_of(model, data, everything, batch_size), whole, atol=1e-5)
    order = everything[::-1].copy()
    np.testing.assert_allclose(logits_of(model, data, order, 24)[::-1], whole, atol=1e-5)


def test_prediction_leaves_no_trace_in_the_model():
    data = tiny.dataset()
    model = build(tiny.BACKBONE, 1, seed=1, state=None).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits_of(model, data, data.train)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(logits_of(model, data, data.train[:0])) == 0


# --- options of the loop -----------------------------------------------------------------------------------------


def test_balanced_weights_are_scikit_learns():
    labels = np.array([[1, 0], [0, 0], [0, np.nan], [0, 1], [np.nan, 1], [1, 1]], np.float32)
    train = np.arange(5)
    made = balanced_weights(labels, train)
    for position in (0, 1):
        known = labels[train, position][~np.isnan(labels[train, position])]
        expected = compute_class_weight("balanced", classes=np.array([0.0, 1.0]), y=known)
        np.testing.assert_allclose(made[:, position], expected, rtol=1e-6)


def test_weights_of_classes_and_findings_in_the_loss_by_hand():
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 0.1]])
    labels = torch.tensor([[1.0, 0.0], [0.0, float("nan")], [1.0, 1.0]])
    classes = torch.tensor([[0.5, 2.0], [3.0, 0.25]])
    findings = torch.tensor([1.0, 4.0])
    total, count = masked_loss(logits, labels, classes, findings)
    expected = 0.0
    for i, j in ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1)):
        y = float(labels[i, j])
        p = 1 / (1 + np.exp(-float(logits[i, j])))
        expected += float(classes[int(y), j] * findings[j]) * -(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert int(count) == 5


def test_a_finding_of_weight_near_zero_is_not_learnt():
    """One trunk, two heads: the head of the finding that hardly counts stays where it was."""
    data = tiny.dataset(findings=2)

    def moved(weights):
        model = build(tiny.BACKBONE, 2, seed=1, state=None)
        before = model.head.weight.detach().clone()
        fit(data, model, finding_weights=weights, weight_decay=0.0, epochs=1)
        return (model.head.weight.detach() - before).abs().sum(dim=1)

    even = moved({})
    first = moved({"finding1": 1e-12})
    assert first[1] < 0.05 * even[1]
    assert first[0] > 0.5 * even[0]


def test_an_unknown_finding_to_weigh_is_refused():
    with pytest.raises(ParamsError, match=r"finding_weights: unknown findings \['effusion'\]"):
        fit(tiny.dataset(), build(tiny.BACKBONE, 1, seed=1, state=None), finding_weights={"effusion": 2.0})


def test_parts_of_a_batch_make_the_step_of_the_whole():
    """With batch-norm frozen, else each part has statistics of its own."""
    data = tiny.dataset(num=31, num_val=7)
    data.labels[5] = np.nan

    def state(accumulate):
        model = build("resnet18", 1, seed=1, state=tiny.weights("resnet18"))
        rows = fit(data, model, epochs=1, accumulate=accumulate, batch_norm="frozen")
        return rows[0].train_loss, model.state_dict()

    (loss, whole), (same_loss, parts) = state(1), state(3)
    assert same_loss == pytest.approx(loss, abs=1e-5)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-4, rtol=1e-3)


def test_parts_that_would_be_empty_are_refused():
    with pytest.raises(PipelineError, match=r"a batch of 8 of 16 images in 5 parts .* leaves 1 in some"):
        fit(tiny.dataset(), build(tiny.BACKBONE, 1, seed=1, state=None), accumulate=5)


def test_synchronised_batch_norm_needs_gpus():
    with pytest.raises(ParamsError, match="'synchronised' needs GPUs"):
        fit(tiny.dataset(), build(tiny.BACKBONE, 1, seed=1, state=None), batch_norm="synchronised")


def test_training_ends_after_so_many_epochs_without_a_better_one():
    data = tiny.dataset(num=32, num_val=8)
    wrong = data.labels.copy()
    wrong[data.id_val] = 1 - wrong[data.id_val]
    rows = fit(replace(data, labels=wrong), build(tiny.BACKBONE, 1, seed=1, state=None), epochs=12, patience=2,
               learning_rate=3e-3)  # fmt: skip
    kept = next(row.epoch for row in rows if row.kept)
    assert len(rows) == kept + 3


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_in_training_is_refused_with_its_finding(label):
    data = tiny.dataset(findings=2)
    data.labels[data.train, 1] = label
    with pytest.raises(PipelineError, match="training needs images with and without 'finding1'"):
        fit(data, build(tiny.BACKBONE, 2, seed=1, state=None))


def test_a_finding_that_no_image_has_is_refused():
    data = tiny.dataset(findings=2)
    data.labels[data.train, 0] = np.nan
    with pytest.raises(PipelineError, match="'finding0'; there are 0 with and 0 without"):
        fit(data, build(tiny.BACKBONE, 2, seed=1, state=None))


def test_out_of_memory_says_what_to_lower(monkeypatch):
    model = build(tiny.BACKBONE, 1, seed=1, state=None)

    def full(*_arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model.trunk, "forward", full)
    with pytest.raises(PipelineError, match=r"no memory left on cpu at a batch of 8 images\. Lower"):
        fit(tiny.dataset(), model)


def test_a_gradient_that_is_not_finite_stops_with_its_batch_and_saves_nothing(tmp_path, monkeypatch):
    """The loss is finite, its gradient is not; the checkpoint of the step before stays."""
    monkeypatch.setattr(loop, "STEPS_UNCHECKED", 1)
    data = tiny.dataset()
    model = build(tiny.BACKBONE, 1, seed=1, state=None)
    steps = []

    def poison(gradient):
        steps.append(None)
        return gradient * (float("inf") if len(steps) == 2 else 1.0)

    model.head.weight.register_hook(poison)
    second = list(in_batches(epoch_order(data.train, 1, 0), 8))[1]
    checkpoint = Checkpoint(tmp_path / "c.pt", seconds=0.0)
    with pytest.raises(PipelineError) as caught:
        fit(data, model, checkpoint=checkpoint)
    assert ", ".join(data.image_ids[second]) in str(caught.value)
    saved = checkpoint.load()
    assert saved["progress"]["batch"] == 1
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
