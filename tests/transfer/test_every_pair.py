"""Every backbone by every method: one step, saved, loaded, and the same predictions (random weights).

All pairs: `make test-all`.
"""

import gc
import importlib
import shutil
from functools import cache

import numpy as np
import pytest
import tiny
import torch

from pipeline.training.checkpoints import load_model, save_model
from pipeline.training.loop import predict_logits

# As few pixels as each one takes.
SIZES = {
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "inception_v3": 299,
    "mobilenet_v2": 32,
    "resnet18": 32,
    "resnet50": 32,
    "vgg16": 32,
    "vit_b_16": 32,
}
# Of these every method takes minutes in all: CI runs the one that trains all of it, `make test-all` the rest.
HEAVY = ("convnext_tiny", "densenet121", "inception_v3", "resnet50", "vgg16", "vit_b_16")
ALWAYS = ("full_finetune",)
PAIRS = [
    pytest.param(backbone, method, marks=pytest.mark.slow if backbone in HEAVY and method not in ALWAYS else ())
    for backbone in SIZES
    for method in sorted(tiny.METHODS)
]
LAST = sorted(tiny.METHODS)[-1]
BY_FEATURES = ("linear_probe", "lp_ft", "prototypes", "vgg_head")


@cache
def prepared(backbone):
    """The frozen backbone's features."""
    made = tiny.engine(images_of(backbone), backbone)
    return made.features, made.pooled


def images_of(backbone):
    return tiny.dataset(num=4, num_val=2, size_px=SIZES[backbone])


def logits_of(model, data):
    return predict_logits(tiny.fabric(), model, data.images, np.arange(4), 4, torch.contiguous_format)


@pytest.mark.parametrize(("backbone", "method"), PAIRS)
def test_one_step_is_saved_loaded_and_predicts_the_same(tmp_path, backbone, method):
    data = images_of(backbone)
    features, pooled = prepared(backbone) if method in BY_FEATURES else (np.full((4, 1), np.nan, np.float32),) * 2
    epochs = 2 if method == "gradual_unfreeze" else 1
    engine = tiny.engine(data, backbone, loop=tiny.loop(epochs=epochs, batch_size=4), features=features, pooled=pooled)
    module = importlib.import_module(f"pipeline.transfer.{method}")
    params = {**tiny.METHODS[method], **({"epochs": 1} if method == "scratch_converged" else {})}
    model = module.fit(engine, module.Params(**params))
    assert not model.training
    assert engine.curves
    logits = logits_of(model, data)
    assert logits.shape == (4, 1)
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 0
    save_model(model, tiny.card_of(model, backbone, engine), tmp_path / "model")
    del model
    loaded, _ = load_model(tmp_path / "model")
    assert np.array_equal(logits_of(loaded, data), logits)
    # VGG's files and weights are half a gigabyte.
    shutil.rmtree(tmp_path / "model")
    if method == LAST:
        tiny.weights.cache_clear()
        prepared.cache_clear()
    if backbone in HEAVY:
        gc.collect()
