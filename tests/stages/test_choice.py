"""choice: the class head of every architecture, and scores of exactly the source's labelled training images."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from scipy.special import softmax
from torchvision.models import get_model

from pipeline.analysis.transferability import h_score, leep, log_me
from pipeline.errors import PipelineError
from pipeline.stages import choice, features
from pipeline.stages.choice import class_probabilities, last_linear, no_head, scores_of
from pipeline.stages.finetune import load_dataset
from pipeline.tables.choice import TransferScores
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.labels import Labels
from pipeline.training.backbone import INCEPTION_PX, _cut_head, architecture

OTHER = "mobilenet_v3_small"  # with a hidden layer: what the head sees is not the pooled map
FAMILIES = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "inception_v3": "fc",
    "mnasnet0_5": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "regnet_y_400mf": "fc",
    "resnet18": "fc",
    "shufflenet_v2_x0_5": "fc",
    "swin_t": "head",
    "vgg11": "classifier.6",
    "vit_b_16": "heads.head",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_is_the_layer_that_gives_the_models_output_and_sees_the_cached_features(name):
    model = architecture(name, 0, empty=True).to("meta").eval()
    head = last_linear(model)
    assert head == FAMILIES[name]
    seen = []
    model.get_submodule(head).register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output)))
    size_px = INCEPTION_PX if name == "inception_v3" else 224
    with torch.no_grad():
        given = model(torch.empty(1, 3, size_px, size_px, device="meta"))
    ((sees, gives),) = seen
    assert gives is given
    assert len(model.state_dict()[f"{head}.weight"]) == 1000
    assert sees.shape == (1, _cut_head(model, name))  # as it is cut off for the features


def test_a_head_without_bias_has_none():
    """MaxViT's."""
    weight = torch.arange(6.0).reshape(3, 2)
    seen = np.array([[1.0, 2.0], [0.5, -1.0]], np.float32)
    found = class_probabilities(seen, {"classifier.5.weight": weight}, "maxvit_t")
    np.testing.assert_allclose(found, softmax(seen @ weight.numpy().T, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ({"initialisation": "imagenet", "request": {"weights": "IMAGENET1K_V1", "file": None}}, None),
        ({"initialisation": "file", "request": {"file": "radimagenet.pt"}}, None),
        ({"initialisation": "random", "request": {"weights": "IMAGENET1K_V1"}}, "weights are random"),
        ({"initialisation": "file", "request": {"file": "a/model.safetensors"}}, "a study's own model"),
        ({"initialisation": "file", "request": {"file": "radimagenet.pt", "head": False}}, "has no class head"),
    ],
)
def test_which_weights_have_no_class_head(card, reason):
    found = no_head(card)
    assert found is None if reason is None else reason in found


def test_undefined_is_null_with_the_reason():
    seen, theta = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), np.full((9, 4), 0.25)
    one = {row["score"]: row for row in scores_of(seen, np.r_[np.ones(5), np.full(4, np.nan)], theta, None)}
    none = {row["score"]: row for row in scores_of(seen, np.full(9, np.nan), None, "no head")}
    for score in ("h_score", "log_me", "leep"):
        assert np.isnan(one[score]["value"])
        assert np.isnan(none[score]["value"])
        assert (one[score]["num_images"], one[score]["note"]) == (5, "one class only (positives: 5)")
        assert none[score]["num_images"] == 0
    assert [none[score]["note"] for score in ("h_score", "leep")] == ["no annotated images", "no head"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """gather, weights and features of two backbones; some labels are null, and a second finding is rarely annotated."""
    folder = tmp_path_factory.mktemp("in")
    tiny.write_gather(folder / "gather", num=40)
    path = folder / "gather/labels.parquet"
    labels = read_table(Labels, path)
    labels.loc[labels["image_id"].isin([tiny.image_name(3), tiny.image_name(8)]), "label"] = None
    rare = labels[labels["image_id"].isin([tiny.image_name(index) for index in (5, 6, 39)])].assign(
        finding="rare", label=1
    )
    write_table(Labels, [*labels.to_dict("records"), *rare.to_dict("records")], path)
    params = tiny.write_params(folder / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        for backbone in (tiny.BACKBONE, OTHER):
            tiny.write_weights(folder / "weights" / backbone, backbone)
            paths = {"gather": folder / "gather", "weights": folder / "weights" / backbone, "params": params}
            tiny.call(patch, features, **paths, out=folder / "features" / backbone)
    return folder


@pytest.fixture
def stage(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path / "in")

    def call(out="choice", backbones=(tiny.BACKBONE, OTHER)):
        path = tiny.write_params(tmp_path / "params.yaml", backbones={name: {} for name in backbones})
        folders = {name: tmp_path / "in" / name for name in ("gather", "features", "weights")}
        tiny.call(monkeypatch, choice, **folders, params=path, out=tmp_path / out)
        return read_table(TransferScores, tmp_path / out / "scores.parquet").set_index(["backbone", "finding", "score"])

    return call


def test_scores_are_those_of_torchvisions_own_model_on_the_labelled_training_images(stage, tmp_path):
    """Oracle: the whole model's class probabilities, and features taken by a hook, on images that are found by hand."""
    found = stage()
    assert len(found) == 2 * 2 * 3
    data, findings = load_dataset(tmp_path / "in/gather")
    assert findings == ["opacity", "rare"]
    labels = data.labels[data.train, 0].astype(np.float64)
    known = ~np.isnan(labels)
    assert (len(labels), known.sum()) == (30, 28)
    pixels = torch.from_numpy(data.images.read(data.train[known])).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for backbone in (tiny.BACKBONE, OTHER):
        model = get_model(backbone, weights=None).eval()
        model.load_state_dict(dict(tiny.weights(backbone)))
        seen = []
        last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].numpy()))
        with torch.no_grad():
            classes = torch.softmax(model((pixels.expand(-1, 3, -1, -1) - mean) / std).double(), dim=1).numpy()
        values = found.loc[(backbone, "opacity")]
        assert values["num_images"].tolist() == [28] * 3
        assert values["note"].tolist() == [""] * 3
        assert values.loc["leep", "value"] == pytest.approx(leep(classes, labels[known]), rel=1e-4)
        assert values.loc["h_score", "value"] == pytest.approx(h_score(seen[0], labels[known]), rel=1e-3)
        assert values.loc["log_me", "value"] == pytest.approx(log_me(seen[0], labels[known]), rel=1e-3, abs=1e-3)
        rare = found.loc[(backbone, "rare")]
        assert rare["value"].isna().all()
        assert rare["num_images"].tolist() == [2] * 3  # the third is of id_val
        assert rare["note"].tolist() == ["one class only (positives: 2)"] * 3


def test_labels_of_id_val_are_not_looked_at(stage, tmp_path):
    before = stage("before")
    data, _ = load_dataset(tmp_path / "in/gather")
    path = tmp_path / "in/gather/labels.parquet"
    labels = read_table(Labels, path)
    of_val = labels["image_id"].isin(list(data.image_ids[data.id_val])) & (labels["finding"] == "opacity")
    labels.loc[of_val, "label"] = 1 - labels.loc[of_val, "label"]
    write_table(Labels, labels, path)
    assert stage("after").equals(before)
    assert (tmp_path / "before/scores.parquet").read_bytes() == (tmp_path / "after/scores.parquet").read_bytes()


def test_random_weights_have_no_leep_and_say_so(stage, tmp_path):
    card = tmp_path / "in/weights" / tiny.BACKBONE / "weights.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "initialisation": "random"}))
    found = stage()
    own = found.loc[(tiny.BACKBONE, "opacity")]
    assert np.isnan(own.loc["leep", "value"])
    assert own.loc["leep", "note"] == "the weights are random: no source classes"
    assert own.loc[["h_score", "log_me"], "value"].notna().all()
    assert np.isfinite(found.loc[(OTHER, "opacity", "leep"), "value"])


def test_what_params_no_longer_name_goes(stage, tmp_path):
    found = stage(backbones=(OTHER,))
    assert set(found.index.get_level_values("backbone")) == {OTHER}
    for name in ("features", "weights"):
        assert [path.name for path in (tmp_path / "in" / name).iterdir()] == [OTHER]


def test_features_of_other_images_are_refused(stage, tmp_path):
    path = tmp_path / "in/features" / OTHER / "features.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(PipelineError, match=rf"backbones\.{OTHER}: features of 39 images, but gather has 40"):
        stage()
