"""Backbones by name: what is cut, what is fed, what is refused."""

import pytest
import tiny
import torch
from torch import nn
from torchvision.models import get_model

from pipeline.params import ParamsError
from pipeline.training.backbone import architecture, blocks, build, input_spec, load_state

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
    ours = build(name, 3, seed=1, state=theirs.state_dict(), image_shape=(1, 64, 64)).eval()
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
    with pytest.raises(ParamsError, match=rf"backbones\.{name}: its last layer is not linear"):
        build(name, 1, seed=0, state=None)


def test_other_auxiliary_heads_are_refused_before_torchvision_warns():
    with pytest.raises(ParamsError, match=r"backbones\.googlenet: its auxiliary classifiers"):
        build("googlenet", 1, seed=0, state=None)


def test_inception_with_its_auxiliary_head_is_torchvisions_own():
    """Its input transform too: without it, weights of the enum see another picture."""
    theirs = get_model("inception_v3", weights=None, transform_input=True, init_weights=True).eval()
    state = theirs.state_dict()
    ours = build("inception_v3", 1000, seed=1, state=state, image_shape=(1, 299, 299)).eval()
    with torch.no_grad():
        for own, whole in ((ours.head, theirs.fc), (ours.trunk.AuxLogits.fc, theirs.AuxLogits.fc)):
            own.weight.copy_(whole.weight)
            own.bias.copy_(whole.bias)
    images = grey(2, 299)
    spec = input_spec("inception_v3")
    channels = torch.stack([(images[:, 0] - m) / s for m, s in zip(spec.mean, spec.std, strict=True)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(channels))
        theirs.transform_input = False
        assert (ours(images) - theirs(channels)).abs().max() > 1e-3
        theirs.transform_input = True
        # In training mode batch-norm and dropout are at work: alike under one seed.
        torch.manual_seed(4)
        expected = theirs.train()(channels)
        torch.manual_seed(4)
        logits, auxiliary = ours.train()(images)
    torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(auxiliary, expected.aux_logits)


def test_inception_says_what_size_it_needs():
    with pytest.raises(ParamsError, match=r"images of 299 px; they are 224 x 224. Set preprocess.size_px: 299"):
        build("inception_v3", 1, seed=0, state=None, image_shape=(1, 224, 224))


def test_a_vision_transformer_at_its_own_size_is_torchvisions_and_at_another_has_its_positions_interpolated():
    theirs = get_model("vit_b_16", weights=None).eval()
    torch.nn.init.normal_(theirs.heads.head.weight, generator=torch.Generator().manual_seed(1))
    state = theirs.state_dict()
    seen = []
    theirs.heads.head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    images = grey(1, 224)
    spec = input_spec("vit_b_16")
    channels = torch.stack([(images[:, 0] - m) / s for m, s in zip(spec.mean, spec.std, strict=True)], dim=1)
    with torch.no_grad():
        theirs(channels)
        ours = build("vit_b_16", 1, seed=0, state=state).eval()
        torch.testing.assert_close(ours.features(images), seen[0])
    smaller = build("vit_b_16", 1, seed=0, state=state, image_shape=(1, 96, 96))
    table = smaller.state_dict()["trunk.encoder.pos_embedding"]
    assert table.shape == (1, 37, 768)
    assert torch.equal(table[:, 0], state["encoder.pos_embedding"][:, 0])
    grid = state["encoder.pos_embedding"][0, 1:].T.reshape(1, 768, 14, 14)
    wanted = torch.nn.functional.interpolate(grid, size=6, mode="bicubic", align_corners=True)
    torch.testing.assert_close(table[0, 1:].T.reshape(1, 768, 6, 6), wanted)


def test_a_vision_transformer_refuses_sizes_that_its_patches_do_not_fill():
    with pytest.raises(ParamsError, match=r"a multiple of 16 px wide; preprocess\.size_px is 100"):
        build("vit_b_16", 1, seed=0, state=None, image_shape=(1, 100, 100))


@pytest.mark.parametrize(("name", "width"), [("vgg11", 512), ("alexnet", 256), ("mobilenet_v3_small", 576)])
def test_pooled_features_are_the_mean_of_the_convolutions_last_map(name, width):
    theirs = get_model(name, weights=None).eval()
    ours = build(name, 1, seed=0, state=theirs.state_dict(), image_shape=(1, 64, 64), pooled=True).eval()
    assert ours.head.in_features == width
    spec = input_spec(name)
    channels = torch.stack([(grey()[:, 0] - m) / s for m, s in zip(spec.mean, spec.std, strict=True)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(grey()), theirs.features(channels).mean(dim=(2, 3)))


def test_pooled_changes_nothing_where_the_head_follows_the_pooling():
    state = get_model("resnet18", weights=None).state_dict()
    plain, pooled = (build("resnet18", 1, seed=0, state=state, pooled=value) for value in (False, True))
    assert plain.state_dict().keys() == pooled.state_dict().keys()
    assert all(torch.equal(value, pooled.state_dict()[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "vit_b_16", "densenet121", "mobilenet_v2"])
def test_blocks_hold_every_parameter_once_in_order(name):
    model = build(name, 1, seed=0, state=None)
    parts = blocks(model.trunk)
    assert [key for part in parts for key in part] == [key for key, _ in model.trunk.named_parameters()]
    assert len(parts) > 3
    sizes = dict(model.trunk.named_parameters())
    total = sum(value.numel() for value in sizes.values())
    if not name.startswith("vgg"):  # one layer of VGG is most of it
        assert max(sum(sizes[key].numel() for key in part) for part in parts) <= total / 2


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
