"""The configs of a MONAI bundle: a network of torchvision's parts alone, and how MONAI runs it.

Spec: https://docs.monai.io/en/stable/mb_specification.html. What the config builds has the very state dict of a
``Classifier`` (``trunk.``, ``head.``), so that the bundle holds the study's own file of weights; and none of this
repository's code, so that MONAI, torch and torchvision are enough where it is run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models import Inception3

from pipeline.training.backbone import Classifier, architecture, has_hidden_layers

# MONAI's own, for whoever has a network; the bundle has one of its own, stricter, beside it.
SCHEMA_URL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
WEIGHTS = "models/model.safetensors"
CHECK = "check"


def _module(target: type[nn.Module], **options: Any) -> dict[str, Any]:
    return {"_target_": f"torch.nn.{target.__name__}", **options}


def replaced_modules(model: Classifier, card: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Where a trunk departs from torchvision's architecture: module path to MONAI's config of what stands there."""
    trunk: Any = model.trunk
    plain = architecture(card["backbone"], 0, card["image_shape"][1], empty=True)
    replaced: dict[str, dict[str, Any]] = {}
    if card["pooled"] and has_hidden_layers(plain):
        replaced["avgpool"] = _module(nn.AdaptiveAvgPool2d, output_size=1)
        replaced["classifier"] = _module(nn.Identity)
    else:
        last = [path for path, module in plain.named_modules() if isinstance(module, nn.Linear)][-1]
        replaced[last] = _module(nn.Identity)
    if isinstance(trunk, Inception3) and trunk.AuxLogits is not None:
        fc = trunk.AuxLogits.fc
        replaced["AuxLogits.fc"] = _module(nn.Linear, in_features=fc.in_features, out_features=fc.out_features)
    for path, module in plain.named_modules():
        if isinstance(module, nn.Conv2d):  # the first: it is another one where there are other than three channels
            own = trunk.get_submodule(path)
            if own.in_channels != module.in_channels:
                names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
                options = {name: getattr(own, name) for name in names}
                replaced[path] = _module(nn.Conv2d, **options, bias=own.bias is not None)
            break
    return replaced


def _head(model: Classifier) -> dict[str, Any]:
    def linear(layer: nn.Linear) -> dict[str, Any]:
        return _module(nn.Linear, in_features=layer.in_features, out_features=layer.out_features)

    if isinstance(model.head, nn.Linear):
        return linear(model.head)
    first, _, last = model.head.children()
    assert isinstance(first, nn.Linear)  # noqa: S101 - build makes no other head
    assert isinstance(last, nn.Linear)  # noqa: S101
    return {"first": linear(first), "last": linear(last)}


def inference_config(model: Classifier, card: Mapping[str, Any], batch_size: int, bits: int) -> dict[str, Any]:
    """configs/inference.json: predicts a folder of preprocessed images (``.npy``, channels first) into a CSV.

    Args:
        model: the trained one.
        card: its model.json.
        batch_size: of inference.
        bits: of a pixel of the arrays.
    """
    channels, rows, _ = card["image_shape"]
    options: dict[str, Any] = {}
    if card["backbone"] == "inception_v3":
        options = {"transform_input": True, "init_weights": False}
    elif card["backbone"].startswith("vit_"):
        options = {"image_size": rows}
    replaced = replaced_modules(model, card)
    head = _head(model)
    hidden = {} if "_target_" in head else {"head_first": head["first"], "head_last": head["last"]}
    head_config = "$torch.nn.Sequential(@head_first, torch.nn.ReLU(), @head_last)" if hidden else head
    cuts = [f"@trunk_plain.set_submodule({path!r}, @replaced#{place})" for place, path in enumerate(replaced)]
    # One channel becomes three alike, as in training.
    steps = ["('three_channels', torchvision.transforms.v2.RGB())"] if channels == 1 else []
    steps += [
        "('normalise', torchvision.transforms.v2.Normalize(@mean, @std))",
        "('trunk', @trunk)",
        "('head', @head)",
    ]
    return {
        "imports": [
            f"$import {name}"
            for name in ("collections", "glob", "numpy", "os", "pandas", "torch", "torchvision")
        ]
        + ["$import torchvision.transforms.v2", "$from safetensors.torch import load_file"],
        "bundle_root": ".",
        "dataset_dir": f"$@bundle_root + '/{CHECK}'",
        "output_file": "$@bundle_root + '/eval/predictions.csv'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "findings": card["findings"],
        "mean": card["input"]["mean"],
        "std": card["input"]["std"],
        "trunk_plain": {
            "_target_": "torchvision.models.get_model", "name": card["backbone"], "weights": None, **options,
        },
        "replaced": list(replaced.values()),
        "trunk": f"$[{', '.join([*cuts, '@trunk_plain'])}][-1]",
        **hidden,
        "head": head_config,
        "network_def": f"$torch.nn.Sequential(collections.OrderedDict([{', '.join(steps)}]))",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                # Not LoadImaged: it warns of every reader of other formats that is not installed.
                {"_target_": "Lambdad", "keys": "image", "func": "$numpy.load", "track_meta": False},
                {
                    "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 2**bits - 1, "b_min": 0.0,
                    "b_max": 1.0,
                },
                {"_target_": "ToTensord", "keys": "image", "track_meta": False},
            ],
        },
        "files": "$sorted(glob.glob(@dataset_dir + '/*.npy'))",
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @files]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": batch_size, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "evaluator": "$torch.inference_mode()(lambda batch, infer=@inferer, net=@network_def, device=@device: "
        "infer(batch['image'].to(device), net).cpu())",
        "logits": "$torch.cat([*map(@evaluator, @dataloader)]).double()",
        "weights": f"$load_file(@bundle_root + '/{WEIGHTS}')",
        # Into the network's own mapping, whose metadata some architectures refuse to be without.
        "state": "$@network_def.state_dict()",
        "initialize": [
            "$numpy.testing.assert_array_equal(sorted(@state), sorted(@weights))",
            "$@state.update(@weights)",
            "$@network_def.load_state_dict(@state)",
            "$@network_def.to(@device).eval()",
        ],
        "run": [
            "$os.makedirs(os.path.dirname(os.path.abspath(@output_file)), exist_ok=True)",
            "$pandas.DataFrame(torch.sigmoid(@logits).numpy(), columns=@findings, "
            "index=[*map(os.path.basename, @files)]).to_csv(@output_file, index_label='image')",
        ],
    }  # fmt: skip


def network_data_format(card: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the network and what comes out, as the metadata states it."""
    channels, rows, columns = card["image_shape"]
    findings: Sequence[str] = card["findings"]
    return {
        "inputs": {
            "image": {
                "type": "image",
                "format": "magnitude",
                "num_channels": channels,
                "spatial_shape": [rows, columns],
                "dtype": str(torch.float32).removeprefix("torch."),
                "value_range": [0, 1],
                "is_patch_data": False,
                "channel_def": {str(channel): "grey" for channel in range(channels)},
            }
        },
        "outputs": {
            "pred": {
                "type": "probabilities",
                "format": "logits",
                "num_channels": len(findings),
                "spatial_shape": [],
                "dtype": str(torch.float32).removeprefix("torch."),
                "value_range": [],
                "is_patch_data": False,
                "channel_def": {str(place): finding for place, finding in enumerate(findings)},
            }
        },
    }
