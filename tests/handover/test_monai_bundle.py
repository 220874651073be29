"""MONAI's config builds the very network, from torchvision's parts."""

import json

import jsonschema
import pytest
import tiny
import torch
from monai.bundle import ConfigParser

from pipeline.handover import card
from pipeline.handover.monai_bundle import inference_config
from pipeline.training.backbone import build

CASES = [
    ("resnet18", {}),
    ("shufflenet_v2_x0_5", {"image_shape": (5, 64, 64)}),  # neighbouring slices
    ("shufflenet_v2_x0_5", {"image_shape": (3, 64, 64), "hidden": 8}),
    ("mobilenet_v3_small", {}),
    ("mobilenet_v3_small", {"pooled": True, "hidden": 8}),
    ("mnasnet0_5", {}),  # refuses a state dict without its metadata
]
SLOW = [("vit_b_16", {"image_shape": (1, 64, 64)}), ("inception_v3", {"image_shape": (1, 299, 299)}),
        ("vgg16", {"pooled": True}), ("densenet121", {}), ("convnext_tiny", {}), ("efficientnet_b0", {})]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_the_config_builds_the_network_that_was_trained(name, options, tmp_path):
    shape = options.get("image_shape", (1, 64, 64))
    model = build(name, 2, seed=1, state=None, **{**options, "image_shape": shape}).eval()
    facts = {"backbone": name, "image_shape": list(shape), "findings": ["a", "b"], "input": model.input_spec,
             "pooled": model.pooled}  # fmt: skip
    config = json.loads(json.dumps(inference_config(model, facts, batch_size=4, bits=8)))
    parser = ConfigParser({**config, "weights": model.state_dict()})
    network = parser.get_parsed_content("network_def")
    for place in range(len(config["initialize"]) - 1):
        parser.get_parsed_content(f"initialize#{place}")
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(network.eval()(images), model(images))


def test_weights_of_another_network_are_refused():
    model = build(tiny.BACKBONE, 1, seed=1, state=None, image_shape=(1, 32, 32))
    facts = {"backbone": tiny.BACKBONE, "image_shape": [1, 32, 32], "findings": ["a"], "input": model.input_spec,
             "pooled": False}  # fmt: skip
    state = model.state_dict()
    del state["head.weight"]
    parser = ConfigParser({**inference_config(model, facts, 4, 8), "weights": state})
    with pytest.raises(RuntimeError) as raised:
        parser.get_parsed_content("initialize#0")
    assert isinstance(raised.value.__cause__, AssertionError)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(json.loads(card.render("metadata_schema.json")))
