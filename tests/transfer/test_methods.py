"""All transfer methods over two backbones, and what each one promises to do and not to do."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.training.checkpoints import load_model, save_model
from pipeline.training.loop import predict_logits

FILES = sorted(
    path.stem for path in (Path(__file__).parents[2] / "pipeline/transfer").glob("*.py") if path.stem != "__init__"
)
BACKBONES = [tiny.BACKBONE, "mobilenet_v3_small"]


def fit(method, engine, **changes):
    module = importlib.import_module(f"pipeline.transfer.{method}")
    if method == "gradual_unfreeze":  # an epoch a phase
        engine.loop = engine.loop.model_copy(update={"epochs": max(2, engine.loop.epochs)})
    return module.fit(engine, module.Params(**{**tiny.METHODS[method], **changes}))


def bits(model):
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def logits_of(model, data):
    everything = np.arange(len(data.images))
    return predict_logits(tiny.fabric(), model, data.images, everything, 24, torch.contiguous_format)


def test_every_method_is_under_test():
    assert sorted(tiny.METHODS) == FILES


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", tiny.METHODS)
def test_one_step_is_saved_loaded_and_predicts_the_same(tmp_path, method, backbone):
    data = tiny.dataset(findings=2)
    engine = tiny.engine(data, backbone, loop=tiny.loop(epochs=1, batch_size=16))
    model = fit(method, engine)
    assert not model.training
    logits = logits_of(model, data)
    assert logits.shape == (24, 2)
    assert np.isfinite(logits).all()
    save_model(model, tiny.card_of(model, backbone, engine), tmp_path)
    assert np.array_equal(logits_of(load_model(tmp_path)[0], data), logits)
    assert engine.curves
    phases = {row.phase for row in engine.curves if not row.phase.startswith(("probe", "prototypes"))}
    assert bool(phases) == (method in tiny.BY_EPOCHS)
    assert sum(row.kept for row in engine.curves if row.phase in phases) == len(phases)


@pytest.mark.parametrize("method", tiny.METHODS)
def test_the_same_seed_gives_the_same_bytes(method):
    data = tiny.dataset()
    once, again = (bits(fit(method, tiny.engine(data, seed=3, loop=tiny.loop(epochs=1)))) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("method", ["scratch", "full_finetune"])
def test_another_seed_gives_other_weights(method):
    data = tiny.dataset()
    one, two = (bits(fit(method, tiny.engine(data, seed=seed, loop=tiny.loop(epochs=1)))) for seed in (3, 4))
    assert one != two


@pytest.mark.parametrize("backbone", BACKBONES)
def test_linear_probe_leaves_every_tensor_of_the_trunk_alone(backbone):
    """Batch-norm's running statistics too, which a forward pass in training mode would move."""
    data = tiny.dataset()
    engine = tiny.engine(data, backbone)
    model = fit("linear_probe", engine)
    trunk = {key.removeprefix("trunk."): value for key, value in model.state_dict().items() if key.startswith("trunk")}
    assert any("running_mean" in key for key in trunk)
    assert all(torch.equal(value, engine.weights[key]) for key, value in trunk.items())
    assert len(set(engine.weights) - set(trunk)) == 2  # the old head's weight and bias


def test_linear_probes_logits_are_scikit_learns():
    """The whole way: images to logits of the saved kind against features standardised and fitted apart."""
    data = tiny.dataset(num=40, num_val=12)
    noisy = data.labels.copy()
    noisy[[1, 2, 9, 30]] = 1 - noisy[[1, 2, 9, 30]]
    noisy[[5, 33]] = np.nan
    data = replace(data, labels=noisy)
    engine = tiny.engine(data)
    model = fit("linear_probe", engine, inverse_l2=[0.01])
    known = data.train[~np.isnan(noisy[data.train, 0])]
    features = engine.features.astype(np.float64)
    scale = features[known].std(axis=0)
    inputs = (features - features[known].mean(axis=0)) / np.where(scale == 0, 1, scale)
    theirs = LogisticRegression(C=0.01, tol=1e-10, max_iter=10_000).fit(inputs[known], noisy[known, 0])
    np.testing.assert_allclose(logits_of(model, data)[:, 0], theirs.decision_function(inputs), atol=1e-4)


def test_scratch_never_sees_the_pretrained_weights():
    data = tiny.dataset()
    poisoned = {key: torch.full_like(value, 7) for key, value in tiny.weights().items()}
    loop = tiny.loop(epochs=1)
    plain = bits(fit("scratch", tiny.engine(data, loop=loop)))
    features = np.full((24, 1024), np.nan, np.float32)
    assert bits(fit("scratch", tiny.engine(data, loop=loop, weights=poisoned, features=features))) == plain


@pytest.mark.parametrize("method", ["full_finetune", "lp_ft", "gradual_unfreeze", "layer_decay"])
def test_fine_tuning_starts_from_the_pretrained_weights(method):
    """At a learning rate of nearly nothing no parameter moves; batch-norm's statistics do, by design."""
    data = tiny.dataset()
    engine = tiny.engine(data, loop=tiny.loop(epochs=1, weight_decay=0.0))
    model = fit(method, engine, learning_rate=1e-12)
    for key, value in model.trunk.named_parameters():
        torch.testing.assert_close(value, engine.weights[key], atol=1e-9, rtol=0)


def test_lp_ft_starts_from_the_probes_head():
    data = tiny.dataset(findings=2)
    probe = fit("linear_probe", tiny.engine(data))
    tuned = fit("lp_ft", tiny.engine(data, loop=tiny.loop(epochs=1, weight_decay=0.0)), learning_rate=1e-12)
    fresh = fit("full_finetune", tiny.engine(data, loop=tiny.loop(epochs=1)), learning_rate=1e-12)
    torch.testing.assert_close(tuned.head.weight, probe.head.weight, atol=1e-9, rtol=0)
    torch.testing.assert_close(tuned.head.bias, probe.head.bias, atol=1e-9, rtol=0)
    assert (fresh.head.weight - probe.head.weight).abs().max() > 1e-3


def test_lp_ft_begins_where_the_probe_ended():
    """With frozen batch-norm the first epoch's loss is the probe's; with other statistics it is not."""
    data = tiny.dataset(num=32, num_val=8)

    def losses(batch_norm):
        engine = tiny.engine(data, "mobilenet_v2", loop=tiny.loop(epochs=1, weight_decay=0.0))
        fit("lp_ft", engine, learning_rate=1e-12, batch_norm=batch_norm)
        return {row.phase: row.train_loss for row in engine.curves}

    frozen, shared = losses("frozen"), losses("shared")
    # Dropout is at work while training.
    assert frozen["finetune"] == pytest.approx(frozen["probe finding0"], abs=0.1)
    assert shared["finetune"] > frozen["finetune"] + 0.3


@pytest.mark.parametrize("method", tiny.METHODS)
def test_images_outside_train_and_id_val_change_nothing(method):
    data = tiny.dataset()
    fewer = replace(data, train=data.train[:-2], pool=data.train[:-2])
    other_images, other_labels = data.images.pixels[:, 0].copy(), data.labels.copy()
    left_out = data.train[-2:]
    other_images[left_out] = 255 - other_images[left_out]
    other_labels[left_out] = 1 - other_labels[left_out]
    poisoned = replace(fewer, images=tiny.Memory(other_images), labels=other_labels)
    loop = tiny.loop(epochs=1)
    assert bits(fit(method, tiny.engine(fewer, loop=loop))) == bits(fit(method, tiny.engine(poisoned, loop=loop)))


@pytest.mark.parametrize(
    ("method", "bad"),
    [
        ("scratch", {"learning_rate": 0.0}),
        ("full_finetune", {"learning_rate": "fast"}),
        ("linear_probe", {"inverse_l2": []}),
        ("linear_probe", {"inverse_l2": [0.0]}),
        ("lp_ft", {"inverse_l2": [-1.0]}),
        ("lp_ft", {"momentum": 0.9}),
    ],
)
def test_senseless_params_are_refused(method, bad):
    module = importlib.import_module(f"pipeline.transfer.{method}")
    with pytest.raises(ValidationError):
        module.Params(**{**tiny.METHODS[method], **bad})


@pytest.mark.parametrize("method", tiny.FROZEN)
def test_a_frozen_backbone_is_the_pretrained_one_to_the_bit(method):
    data = tiny.dataset()
    engine = tiny.engine(data, "mobilenet_v3_small")
    model = fit(method, engine)
    start = engine.pretrained(hidden=16 if method == "vgg_head" else None, pooled=method == "vgg_head")
    trunk = {key: value for key, value in bits(model).items() if key.startswith("trunk.")}
    assert any("running_var" in key for key in trunk)
    assert trunk == {key: value for key, value in bits(start).items() if key.startswith("trunk.")}


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_ has:UserWarning")  # dead features of a random network
def test_prototypes_are_the_nearest_centroid():
    """Oracle: scikit-learn's, on features scaled in the same way."""
    data = tiny.dataset(num=40, num_val=12)
    data = replace(data, train=data.train[:9])
    engine = tiny.engine(data)
    model = fit("prototypes", engine)
    scale = engine.features[data.pool].astype(np.float64).std(axis=0)
    inputs = engine.features / np.where(scale > 0, scale, 1.0)
    theirs = NearestCentroid().fit(inputs[data.train], data.labels[data.train, 0])
    logits = logits_of(model, data)[:, 0]
    assert np.array_equal(logits > 0, theirs.predict(inputs) == 1)
    squared = ((inputs[:, None] - theirs.centroids_[None]) ** 2).mean(axis=2)
    np.testing.assert_allclose(logits, (squared[:, 0] - squared[:, 1]) / 2, atol=1e-4)


def test_prototypes_need_both_classes():
    data = tiny.dataset()
    data = replace(data, train=data.train[data.labels[data.train, 0] == 1])
    with pytest.raises(PipelineError, match="no labelled image has 'finding0' = 0"):
        fit("prototypes", tiny.engine(data))


def test_of_several_learning_rates_id_val_chooses():
    data = tiny.dataset(num=32, num_val=8)
    rates = [1e-9, 3e-3]
    engine = tiny.engine(data, loop=tiny.loop(epochs=6))
    model = fit("scratch", engine, learning_rate=rates)
    assert engine.trials == 2
    alone = {rate: tiny.engine(data, loop=tiny.loop(epochs=6)) for rate in rates}
    single = {rate: bits(fit("scratch", alone[rate], learning_rate=rate)) for rate in rates}
    best = min(rates, key=lambda rate: min(row.id_val_loss for row in alone[rate].curves))
    assert bits(model) == single[best]
    assert {row.phase for row in engine.curves} == {"finetune, rate 1e-09", "finetune, rate 0.003"}
    assert [row.phase for row in engine.curves if row.kept] == [f"finetune, rate {best:g}"]


def test_gradual_unfreezing_needs_an_epoch_a_phase():
    module = importlib.import_module("pipeline.transfer.gradual_unfreeze")
    engine = tiny.engine(tiny.dataset(), loop=tiny.loop(epochs=3))
    with pytest.raises(ParamsError, match=r"4 phases need as many epochs; finetune.epochs is 3"):
        module.fit(engine, module.Params(learning_rate=1e-3, groups=3))


def test_scratch_refuses_batch_norm_without_statistics():
    engine = tiny.engine(tiny.dataset(), loop=tiny.loop(batch_norm="frozen"))
    with pytest.raises(ParamsError, match="leaves a network that is trained from scratch without statistics"):
        fit("scratch", engine)


def test_scratch_converged_goes_on_longer():
    data = tiny.dataset(num=32, num_val=8)
    engine = tiny.engine(data, loop=tiny.loop(epochs=1))
    fit("scratch_converged", engine, epochs=4, patience=4)
    assert [row.epoch for row in engine.curves] == [0, 1, 2, 3]
    assert engine.image_passes == 4 * 24
