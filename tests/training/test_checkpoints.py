"""Weights and models on disk: the same bytes for the same numbers, and nothing taken for what it is not."""

import json

import pytest
import tiny
import torch

from pipeline.errors import PipelineError
from pipeline.training.backbone import build
from pipeline.training.checkpoints import file_sha256, load_model, load_weights, save_model, save_weights

CARD = {
    "backbone": tiny.BACKBONE,
    "image_shape": [1, 64, 64],
    "hidden": None,
    "pooled": False,
    "findings": ["a", "b"],
    "input": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    "run": "x",
}


@pytest.mark.parametrize("name", [tiny.BACKBONE, "mnasnet0_5", "densenet121"])
def test_a_model_comes_back_as_it_was(tmp_path, name):
    model = build(name, 2, seed=5, state=None)
    with torch.no_grad():  # batch-norm statistics that are not the fresh ones
        model.train()(torch.rand(4, 1, 64, 64))
    save_model(model, {**CARD, "backbone": name}, tmp_path)
    loaded, card = load_model(tmp_path)
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert card["findings"] == ["a", "b"]
    assert card["file_sha256"] == file_sha256(tmp_path / "model.safetensors")


def test_the_normalisation_is_the_cards(tmp_path):
    save_model(build(tiny.BACKBONE, 2, seed=5, state=None), CARD, tmp_path)
    loaded, _ = load_model(tmp_path)
    torch.testing.assert_close(loaded.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(loaded.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))


def test_equal_models_are_equal_bytes_whatever_their_layout(tmp_path):
    for name, layout in (("a", torch.contiguous_format), ("b", torch.contiguous_format), ("c", torch.channels_last)):
        save_model(build(tiny.BACKBONE, 2, seed=5, state=None).to(memory_format=layout), CARD, tmp_path / name)
    names = ("model.safetensors", "model.json")
    bits = {folder: [(tmp_path / folder / name).read_bytes() for name in names] for folder in "abc"}
    assert bits["a"] == bits["b"] == bits["c"]
    assert str(tmp_path).encode() not in b"".join(bits["a"])


def test_weights_come_back_as_they_were(tmp_path):
    state = tiny.weights()
    save_weights(state, {"backbone": tiny.BACKBONE, "name": "x"}, tmp_path)
    loaded, card = load_weights(tmp_path)
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert card["name"] == "x"


@pytest.mark.parametrize(("load", "command"), [(load_weights, "fetch_weights"), (load_model, "dvc repro")])
def test_what_is_not_there_is_told_with_the_command_that_makes_it(tmp_path, load, command):
    with pytest.raises(PipelineError, match=f"is not there; run `.*{command}`"):
        load(tmp_path)


def test_weights_that_are_not_those_of_the_card_are_refused(tmp_path):
    save_weights(tiny.weights(seed=1), {"backbone": tiny.BACKBONE}, tmp_path / "a")
    save_weights(tiny.weights(seed=2), {"backbone": tiny.BACKBONE}, tmp_path / "b")
    (tmp_path / "a/weights.json").write_bytes((tmp_path / "b/weights.json").read_bytes())
    with pytest.raises(PipelineError, match=r"weights.safetensors is not the file that weights.json describes"):
        load_weights(tmp_path / "a")


def test_a_flipped_bit_is_seen(tmp_path):
    save_model(build(tiny.BACKBONE, 2, seed=5, state=None), CARD, tmp_path)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PipelineError, match="is not the file"):
        load_model(tmp_path)


def test_a_card_of_another_architecture_is_refused_in_words(tmp_path):
    save_model(build(tiny.BACKBONE, 2, seed=5, state=None), CARD, tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | {"backbone": "resnet18"}))
    with pytest.raises(PipelineError, match=r"backbones.resnet18: the weights do not fit"):
        load_model(tmp_path)
