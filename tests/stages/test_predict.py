"""predict: every model on what selects and tests, and no label before the end."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.metrics.distance import mmd_test
from pipeline.splits import SplitParams
from pipeline.stages import predict
from pipeline.stages.predict import rows_of_run
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.images import Images, Splits
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Curves, Distances, Runs
from pipeline.training import inference
from pipeline.training.backbone import build
from pipeline.training.checkpoints import file_sha256, load_model, save_model, trunk_digest
from pipeline.training.feed import AugmentParams, ImageFeed, to_unit
from pipeline.training.loop import predict_logits

CARD = {
    "run": "r",
    "backbone": "b",
    "method": "m",
    "seed": 1,
    "label_fraction": 1.0,
    "draw": 0,
    "shots": None,
    "findings": ["opacity"],
}


def probabilities(logits):
    part = pd.DataFrame(
        {"image_id": map(str, range(len(logits))), "patient_id": "p", "study_id": "s", "split": "id_test"},
        index=range(len(logits)),
    )
    rows = rows_of_run(CARD, "home", part, np.float32(logits)[:, None], "home")
    return rows["probability"].to_numpy()


def test_probability_is_the_logistic_function_to_full_precision():
    """Against Python's own exp on the other branch: small probabilities keep their relative precision."""
    logits = [-700.0, -87.5, -40.0, -20.0, -1.5, -1e-6, 0.0, 0.25, 3.0, 20.0, 40.0]
    expected = [math.exp(x) / (1 + math.exp(x)) if x < 0 else 1 / (1 + math.exp(-x)) for x in np.float32(logits)]
    np.testing.assert_allclose(probabilities(logits), expected, rtol=1e-12)


def test_extreme_logits_give_0_and_1_without_a_warning():
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert probabilities([-1000.0, 1000.0, -3e38, 3e38]).tolist() == [0.0, 1.0, 0.0, 1.0]


def test_probabilities_are_in_the_order_of_logits():
    logits = np.linspace(-60, 30, 500)
    assert (np.diff(probabilities(logits)) > 0).all()


METHODS = {name: tiny.METHODS[name] for name in ("scratch", "linear_probe")}


@pytest.fixture
def study(tmp_path):
    """Two models of two findings, one of which no site annotates at home."""
    tiny.write_sites(tmp_path)
    for seed, method in enumerate(METHODS):
        job = tmp_path / "models" / f"{tiny.BACKBONE}-{method}"
        name = f"{tiny.BACKBONE}-{method}-seed{seed}"
        card = {
            "run": name,
            "backbone": tiny.BACKBONE,
            "method": method,
            "seed": seed,
            "label_fraction": 1.0,
            "draw": 0,
            "shots": None,
            "findings": ["effusion", "opacity"],
            "image_shape": [1, 32, 32],
            "hidden": None,
            "pooled": False,
            "trials": 1,
            "train_tflop": 0.5,
            "input": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            "initialisation": "scratch" if method == "scratch" else "imagenet",
            "weights_name": None if method == "scratch" else "W",
            "weights_sha256": None if method == "scratch" else "ff",
            "num_train_images": 6,
            "num_train_patients": 5,
            "num_parameters": 4,
        }
        model = build(tiny.BACKBONE, 2, seed=seed, state=None)
        save_model(model, {**card, "trunk_sha256": trunk_digest(model)}, job / name)
        write_table(Curves, [{"run": name, "epoch": 0, "phase": "finetune", "kept": True}], job / "curves.parquet")
    return tmp_path


def run(study, monkeypatch, out="predict", methods=METHODS, **params):
    path = tiny.write_params(study / "params.yaml", methods=methods, **params)
    folders = {name: study / name for name in ("split", "images", "labels", "models")}
    tiny.call(monkeypatch, predict, **folders, out=study / out, params=path)
    return read_table(Predictions, study / out / "predictions.parquet")


def test_who_is_predicted_and_with_what(study, monkeypatch):
    rows = run(study, monkeypatch)
    assert len(rows) == 2 * 2 * 24  # models, findings, images
    assert rows.groupby(["site", "split"])["image_id"].nunique().to_dict() == {
        ("home", "id_val"): 6,
        ("home", "id_test"): 6,
        ("away", "ood_test"): 6,
        ("away", "target_adapt"): 6,
    }
    unseen = rows["split"] == "target_adapt"
    assert rows.loc[unseen, "label"].isna().all()
    rows = rows[~unseen]
    assert set(rows["protocol"]) == {"home"}
    assert set(rows["adaptation"]) == {"none"}
    assert rows.loc[rows["finding"] == "effusion", "label"].isna().all()
    truth = pd.concat(
        [read_table(Labels, study / "labels" / site / "labels.parquet") for site in ("home", "away")]
    ).set_index("image_id")["label"]
    annotated = rows[rows["finding"] == "opacity"]
    assert annotated["label"].tolist() == truth[annotated["image_id"]].tolist()


def test_each_images_logit_is_its_own(study, monkeypatch):
    """Oracle: one image at a time through the loaded model, found by its name."""
    rows = run(study, monkeypatch).set_index(["run", "finding", "image_id"])["logit"]
    names = {
        "home": [f"home-{split}-{i}" for split in ("train", "id_val", "id_test") for i in range(6)],
        "away": [f"away-{split}-{i}" for split in ("target_adapt", "ood_test") for i in range(6)],
    }
    for method in METHODS:
        folder = next((study / "models" / f"{tiny.BACKBONE}-{method}").glob("*/"))
        model, card = load_model(folder)
        for site, image in (("home", "home-id_test-3"), ("away", "away-ood_test-5")):
            pixels = Store(study / "images" / site).read([names[site].index(image)])
            with torch.no_grad():
                expected = model(to_unit(torch.from_numpy(pixels), torch.device("cpu"), torch.contiguous_format))[0]
            for position, finding in enumerate(card["findings"]):
                assert rows[card["run"], finding, image] == pytest.approx(float(expected[position]), abs=1e-5)


def test_heads_on_one_trunk_are_each_their_own(tmp_path):
    """Frozen backbones: the images go through the trunk once, and each head gives what its own model would."""
    names = ["a", "b", "c"]
    for seed, name in enumerate(names):
        state = dict(tiny.weights()) if name != "c" else None  # c has another trunk
        model = build(tiny.BACKBONE, 1, seed=seed, state=state)
        card = {"backbone": tiny.BACKBONE, "findings": ["x"], "image_shape": [1, 32, 32], "hidden": None,
                "pooled": False, "input": model.input_spec, "run": name}  # fmt: skip
        save_model(model, {**card, "trunk_sha256": trunk_digest(model)}, tmp_path / "job" / name)
    groups = inference.model_folders(tmp_path, ["job"])
    assert [[folder.name for folder in folders] for folders in groups] == [["a", "b"], ["c"]]
    data = tiny.dataset(num=9)
    feed = ImageFeed(data.images, torch.device("cpu"), torch.contiguous_format, AugmentParams(), 0)
    trunk, members = inference.load_together(groups[0])
    assert [card["run"] for _, card in members] == ["a", "b"]
    found, features = inference.logits_of(
        trunk, [head for head, _ in members], feed, np.arange(9), 4, np.arange(9) % 3 == 1
    )
    for name, logits in zip(names, found, strict=False):
        alone, _ = load_model(tmp_path / "job" / name)
        expected = predict_logits(tiny.fabric(), alone, data.images, np.arange(9), 4, torch.contiguous_format)
        assert np.array_equal(logits, expected)
    with torch.inference_mode():
        images = to_unit(
            torch.from_numpy(data.images.read(np.array([1, 4, 7]))), torch.device("cpu"), torch.contiguous_format
        )
        np.testing.assert_allclose(features, trunk.features(images).numpy(), rtol=1e-4, atol=1e-6)


def test_poisoned_target_labels_change_no_prediction(study, monkeypatch):
    before = run(study, monkeypatch)
    path = study / "labels/away/labels.parquet"
    labels = read_table(Labels, path)
    write_table(Labels, labels.assign(label=1 - labels["label"]), path)
    after = run(study, monkeypatch)
    assert not after["label"].equals(before["label"])
    pd.testing.assert_frame_equal(after.drop(columns="label"), before.drop(columns="label"))


def test_runs_say_where_models_come_from(study, monkeypatch):
    run(study, monkeypatch)
    runs = read_table(Runs, study / "predict/runs.parquet").set_index("method")
    assert len(runs) == 2
    for method, row in runs.iterrows():
        folder = study / "models" / f"{tiny.BACKBONE}-{method}" / row["run"]
        card = json.loads((folder / "model.json").read_text())
        assert row["model_sha256"] == file_sha256(folder / "model.safetensors")
        shown = {name: None if pd.isna(row[name]) else row[name] for name in runs.columns if name != "model_sha256"}
        assert shown == {name: card[name] for name in shown}
    assert runs.loc["scratch", "initialisation"] == "scratch"
    assert pd.isna(runs.loc["scratch", "weights_name"])
    curves = read_table(Curves, study / "predict/curves.parquet")
    assert set(curves["run"]) == set(runs["run"])


def test_distances_are_of_each_runs_own_features(study, monkeypatch):
    """Against the distance of features that are computed here; the site whose images are alike is near."""
    run(study, monkeypatch)
    found = read_table(Distances, study / "predict/distances.parquet").set_index("run")
    splits = read_table(Splits, study / "split/splits.parquet")
    for folder in (study / "models").glob("*/*/"):
        model, card = load_model(folder)
        sides = []
        for site, wanted in (("home", ["id_val", "id_test"]), ("away", ["target_adapt", "ood_test"])):
            part = splits[(splits["site"] == site) & splits["split"].isin(wanted)].merge(
                read_table(Images, study / "images" / site / INDEX_FILE), on="image_id"
            )
            pixels = Store(study / "images" / site).read(part["array_index"].to_numpy(np.int64))
            with torch.inference_mode():
                features = model.features(
                    to_unit(torch.from_numpy(pixels), torch.device("cpu"), torch.contiguous_format)
                )
            sides.append((features.numpy(), np.unique(part["patient_id"], return_inverse=True)[1]))
        (x, codes_x), (y, codes_y) = sides
        value, p = mmd_test(x, y, permutations=predict.PERMUTATIONS, seed=1, codes_x=codes_x, codes_y=codes_y)
        row = found.loc[card["run"]]
        assert row["mmd2"] == pytest.approx(value, abs=1e-4)
        assert row["p_value"] == pytest.approx(p, abs=0.02)
        assert (row["site"], row["num_images"], row["num_patients"]) == ("away", len(y), len(set(codes_y)))
        assert abs(row["home_mmd2"]) < 2


def test_a_distance_needs_two_patients_a_side():
    parts = {
        "home": pd.DataFrame({"patient_id": ["a", "b", "c", "d"], "split": ["id_val", "id_val", "id_test", "id_test"]}),
        "away": pd.DataFrame({"patient_id": ["e", "e"], "split": "ood_test"}),
    }
    features = {"home": np.eye(4, 3, dtype=np.float32), "away": np.ones((2, 3), np.float32)}
    (row,) = predict.domain_distances(features, parts, SplitParams(seed=1, source=["home"], target=["away"]))
    assert math.isnan(row["mmd2"])
    assert "two patients" in row["note"]
    assert np.isfinite(row["home_mmd2"])


def test_what_params_no_longer_name_is_gone(study, monkeypatch):
    run(study, monkeypatch)
    rows = run(study, monkeypatch, methods={"scratch": METHODS["scratch"]})
    assert set(rows["method"]) == {"scratch"}
    assert not (study / "models" / f"{tiny.BACKBONE}-linear_probe").exists()


def test_the_same_inputs_give_the_same_bytes(study, monkeypatch):
    run(study, monkeypatch, "one")
    run(study, monkeypatch, "two")
    for name in ("predictions", "runs", "curves", "distances"):
        file = f"{name}.parquet"
        assert (study / "one" / file).read_bytes() == (study / "two" / file).read_bytes()


def test_a_model_that_was_changed_behind_our_back_is_refused(study, monkeypatch):
    file = next((study / "models").rglob("model.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(PipelineError, match=r"is not the file that model\.json describes; run `dvc repro`"):
        run(study, monkeypatch)


def test_nothing_to_predict_is_told_in_words(study, monkeypatch):
    path = study / "split/splits.parquet"
    splits = read_table(Splits, path)
    write_table(Splits, splits[splits["split"].isin(["train", "target_adapt"])], path)
    with pytest.raises(PipelineError, match="nothing to predict: 2 models, 0 images"):
        run(study, monkeypatch)
