"""Grad-CAM against gradients taken by hand, against what theory says of it, and on a network whose place is known."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import get_model_builder, list_models

from pipeline.training import gradcam
from pipeline.training.backbone import Classifier, InputSpec, _classification_models, architecture, build
from pipeline.training.gradcam import NO_MAP, MapMaker, has_map

# Small ones of each family, the layer whose output is the last map, and whether all that follows is mean and head.
FAMILIES = {
    "resnet18": ("layer4", True),
    "densenet121": ("features", True),
    "efficientnet_b0": ("features", True),
    "mobilenet_v2": ("features", True),
    "shufflenet_v2_x0_5": ("conv5", True),
    "mnasnet0_5": ("layers", True),
    "regnet_y_400mf": ("trunk_output", True),
    "inception_v3": ("Mixed_7c", True),
    "convnext_tiny": ("features", False),
    "mobilenet_v3_small": ("features", False),
    "vgg11": ("features.19", False),
    "alexnet": ("features.11", False),
}
TRANSFORMERS = {"VisionTransformer", "SwinTransformer", "MaxVit"}
UNSUPPORTED = {"GoogLeNet", "SqueezeNet"}  # as backbones at all


def model_of(name, findings=2):
    """Random; what takes long to draw (VGG, Inception) is filled here instead."""
    px = {"inception_v3": 299, "alexnet": 96}.get(name, 64)
    large = name in ("vgg11", "alexnet", "inception_v3")
    model = build(name, findings, seed=1, state=None, image_shape=(1, px, px), pooled=large, empty=large)
    if large:
        model.trunk.to_empty(device="cpu")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(2)
            for module in model.trunk.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()
                    module.reset_parameters()
                elif isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
    with torch.no_grad():
        model.last.bias.zero_()
    number = 1 if name == "inception_v3" else 2
    return model.eval(), torch.rand(number, 1, px, px, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", FAMILIES)
def test_is_what_gradients_by_hand_give(name):
    """Oracle: one own hook for the map, autograd for its gradient, and the paper's two equations."""
    layer, linear = FAMILIES[name]
    model, images = model_of(name)
    seen = []

    def keep(_, __, output):
        seen.append(output.clone())
        return seen[-1].clone()  # DenseNet rectifies what it gets in place

    handle = model.trunk.get_submodule(layer).register_forward_hook(keep)
    logits = model(images)[:, 1]
    (gradient,) = torch.autograd.grad(logits.sum(), seen[0])
    handle.remove()
    maps = seen[0].detach()
    if name == "densenet121":  # its map is rectified where it is pooled; the gradient of a rectified map is the mask's
        mask = maps > 0
        gradient = gradient.sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True).clamp(min=1)
        maps = maps.relu()
    weighted = (gradient.mean((2, 3), keepdim=True) * maps).sum(1)
    scale = weighted.abs().max()
    made, found = MapMaker(model), {}
    for present, by_hand in ((True, weighted.relu()), (False, (-weighted).relu())):
        values, found[present] = made.maps(images, 1, present=present)
        assert found[present] == pytest.approx(by_hand.numpy(), abs=1e-4 * float(scale))
        fine = functional.interpolate(by_hand[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        assert values == pytest.approx(fine.numpy(), abs=1e-4 * float(scale))
        assert (values >= 0).all()
    assert float(scale) > 0
    if linear:
        # Selvaraju 2017, sec. 3.1: here it is CAM's, whose cells add up to the logit (without bias, which is 0).
        signed = found[True] - found[False]
        assert signed.sum((1, 2)) == pytest.approx(logits.detach().numpy(), rel=1e-3, abs=1e-5 * float(scale))


def test_every_architecture_of_the_registry_has_a_map_or_is_a_transformer():
    names = list_models(module=_classification_models())
    of = {name: inspect.signature(get_model_builder(name)).return_annotation for name in names}
    classes = {getattr(found, "__name__", found) for found in of.values()}
    known = {kind.__name__ for kind in gradcam._LAST_MAP}
    assert classes - known == TRANSFORMERS | UNSUPPORTED
    assert known <= classes
    tested = {type(architecture(name, 1, empty=True)).__name__ for name in FAMILIES}
    assert tested == known


def test_a_vision_transformer_is_refused_in_words():
    model = build("vit_b_16", 1, seed=1, state=None, image_shape=(1, 32, 32), empty=True)
    assert not has_map(model)
    with pytest.raises(ValueError, match=f"VisionTransformer: {NO_MAP}"):
        MapMaker(model)


# --- a network whose evidence lies where we put it ---------------------------------------------------------------

SIZE, BLOCK = 64, 8
QUADRANTS = {(top, left): (slice(top, top + 32), slice(left, left + 32)) for top in (0, 32) for left in (0, 32)}


def brightness_detector(random_seed=None):
    """A ResNet that looks for bright blocks of 8 x 8 pixels, wherever they are; or the same with random weights."""
    trunk = architecture("resnet18", 1, empty=True)  # all with weights is replaced
    trunk.conv1 = nn.Conv2d(3, 8, BLOCK, stride=BLOCK)
    trunk.bn1 = trunk.maxpool = trunk.layer1 = trunk.layer2 = trunk.layer3 = nn.Identity()
    trunk.layer4 = nn.Sequential(nn.Conv2d(8, 8, 1))
    trunk.fc = nn.Identity()
    head = nn.Linear(8, 1)
    if random_seed is None:
        with torch.no_grad():
            trunk.conv1.weight.fill_(1 / (3 * BLOCK * BLOCK))
            trunk.conv1.bias.fill_(-0.5)  # rectified: darker than the middle is nothing
            trunk.layer4[0].weight.copy_(torch.eye(8)[:, :, None, None])
            trunk.layer4[0].bias.zero_()
            head.weight.fill_(1.0)
    else:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(random_seed)
            for parameter in (*trunk.conv1.parameters(), *trunk.layer4.parameters(), *head.parameters()):
                parameter.normal_()
    return Classifier(trunk, head, InputSpec((0.0,) * 3, (1.0,) * 3)).eval()


def planted(quadrant):
    """Grain, and one bright blob inside a quadrant."""
    pixels = 0.3 * np.random.default_rng(4).random((1, 1, SIZE, SIZE), dtype=np.float32)
    rows, columns = QUADRANTS[quadrant]
    pixels[0, 0, rows.start + 8 : rows.stop - 8, columns.start + 8 : columns.stop - 8] = 0.9
    return torch.from_numpy(pixels)


def mass_in(values, quadrant):
    return values[0][QUADRANTS[quadrant]].sum() / values.sum()


@pytest.mark.parametrize("quadrant", QUADRANTS)
def test_the_map_lies_where_the_evidence_was_put(quadrant):
    found = MapMaker(brightness_detector()).maps(planted(quadrant), 0, present=True).values
    assert mass_in(found, quadrant) > 0.95
    assert max(mass_in(found, other) for other in set(QUADRANTS) - {quadrant}) < 0.03


def test_nothing_speaks_for_a_call_without_evidence():
    found = MapMaker(brightness_detector()).maps(planted((0, 32)), 0, present=False).values
    assert not found.any()


def test_random_weights_take_the_map_away_from_there():
    """Adebayo 2018: a map that stays where it was when the weights are random says nothing of the weights."""
    masses = []
    for seed in range(8):
        made = MapMaker(brightness_detector(random_seed=seed))
        signs = [made.maps(planted((0, 32)), 0, present=present).values for present in (True, False)]
        masses += [mass_in(values, (0, 32)) for values in signs if values.any()]
    assert len(masses) >= 8
    assert np.median(masses) < 0.5  # a quarter is what no preference would give
    assert max(masses) < 0.95


def test_an_image_has_the_same_map_in_any_batch():
    model, images = model_of("resnet18")
    made = MapMaker(model)
    alone = [made.maps(images[i : i + 1], 0, present=True).values[0] for i in range(2)]
    together = made.maps(images, 0, present=True).values
    assert together == pytest.approx(np.stack(alone), rel=1e-4, abs=1e-5 * float(together.max()))
