"""Backbones by name: what is cut, what is fed, what is refused."""

import pytest
import tiny
import torch
from torch import nn
from torchvision.models import get_model

from pipeline.params import ParamsError
from pipeline.training.backbone import architecture, build, input_spec, load_state

# name: width of what the head sees, from the papers' tables
TABLE = {
    "convnext_tiny": 768,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "mnasnet0_5": 1280,
    "mobilenet_v2": 1280,
    "mobilenet_v3_small": 1024,
    "regnet_y_400mf": 440,
    "resnet18": 512,
    "resnet50": 2048,
    "shufflenet_v2_x0_5": 1024,
    "swin_t": 768,
}


def grey(num=2, size_px=64):
    return torch.rand(num, 1, size_px, size_px, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", TABLE)
def test_trunk_and_head_together_are_torchvisions_own_model(name):
    """Oracle: torchvision's whole model on explicitly replicated and normalised input."""
    theirs = get_model(name, weights=None).eval()
    ours = build(name, 3, seed=1, state=theirs.state_dict()).eval()
    last = [module for module in theirs.modules() if isinstance(module, nn.Linear)][-1]
    assert ours.head.in_features == last.in_features == TABLE[name]
    assert last.out_features == 1000
    seen = []
    last.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    spec = input_spec(name)
    channels = [(grey()[:, 0] - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True)]
    with torch.no_grad():
        expected = theirs(torch.stack(channels, dim=1))
        features = ours.features(grey())
        assert ours(grey()).shape == (2, 3)
    torch.testing.assert_close(features, seen[0].flatten(1), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(last(features), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(ours(grey()), ours.head(features))
    assert not any(tuple(value.shape)[:1] == (1000,) and value.ndim == 2 for value in ours.state_dict().values())


@pytest.mark.parametrize("name", TABLE)
def test_every_trained_weight_gets_a_gradient(name):
    model = build(name, 1, seed=0, state=None).train()
    model(grey(2)).sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


def test_imagenet_normalisation_is_the_published_one():
    spec = input_spec("resnet18")
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_a_last_layer_that_is_no_linear_layer_is_refused(name):
    with pytest.raises(ParamsError, match=rf"backbones.{name}: its last layer is not linear"):
        build(name, 1, seed=0, state=None)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_refused_before_torchvision_warns(name):
    with pytest.raises(ParamsError, match=rf"backbones.{name}: its auxiliary classifiers"):
        build(name, 1, seed=0, state=None)


@pytest.mark.parametrize(("wrong", "right"), [("resnet81", "resnet18"), ("mobilenet2", "mobilenet_v2")])
def test_an_unknown_backbone_is_told_the_nearest(wrong, right):
    with pytest.raises(ParamsError, match=f"no classifier '{wrong}'; did you mean '{right}'"):
        architecture(wrong, 0)


@pytest.mark.parametrize("name", ["fcn_resnet50", "fasterrcnn_resnet50_fpn", "r3d_18"])
def test_what_is_no_image_classifier_is_unknown(name):
    with pytest.raises(ParamsError, match=f"no classifier '{name}'"):
        architecture(name, 0)


def test_missing_surplus_and_reshaped_keys_are_named():
    state = dict(tiny.weights())
    del state["conv5.0.weight"]
    state["conv6.weight"] = torch.zeros(1)
    state["fc.weight"] = torch.zeros(10, 1024)
    with pytest.raises(ParamsError) as caught:
        load_state(architecture(tiny.BACKBONE, 0), state, tiny.BACKBONE)
    text = str(caught.value)
    assert f"backbones.{tiny.BACKBONE}" in text
    assert "missing: conv5.0.weight (1)" in text
    assert "surplus: conv6.weight (1)" in text
    assert "other shape: fc.weight (1)" in text


def test_a_refused_state_changes_nothing():
    model = architecture("shufflenet_v2_x0_5", 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ParamsError, match=r"missing: .* \.\.\. \(\d\d+\)"):
        load_state(model, {"fc.weight": before["fc.weight"] + 1}, "shufflenet_v2_x0_5")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_files_from_before_batch_norms_counter_load():
    """torch itself takes them (batch-norm's state version below 2); torchvision's older files are such."""
    state = {key: value for key, value in tiny.weights().items() if not key.endswith("num_batches_tracked")}
    model = architecture(tiny.BACKBONE, 0)
    load_state(model, dict(state), tiny.BACKBONE)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_a_plain_dict_without_metadata_loads_where_the_layer_asks_for_its_version():
    """MNASNet refuses a state without a version, which safetensors does not keep."""
    state = {key: value + 0 for key, value in get_model("mnasnet0_5", weights=None).state_dict().items()}
    model = architecture("mnasnet0_5", 0)
    load_state(model, state, "mnasnet0_5")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_the_seed_alone_decides_what_is_random():
    def bits(seed, state=None):
        return {k: v.clone() for k, v in build(tiny.BACKBONE, 2, seed=seed, state=state).state_dict().items()}

    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = bits(1)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's generator is untouched
    torch.rand(5)
    again, other = bits(1), bits(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["trunk.conv1.0.weight"], other["trunk.conv1.0.weight"])
    given = tiny.weights()
    one, two = bits(1, given), bits(2, given)
    assert torch.equal(one["trunk.conv1.0.weight"], two["trunk.conv1.0.weight"])
    assert not torch.equal(one["head.weight"], two["head.weight"])
