"""finetune: which runs there are, what each may see, what it leaves behind."""

import hashlib
import itertools
import json
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import tiny
import torch
from torchvision.models import get_model_weights

from pipeline.errors import PipelineError
from pipeline.params import ParamsError, parse
from pipeline.stages import features, finetune
from pipeline.stages.finetune import FinetuneParams, Run, load_dataset, load_method, restrict
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.labels import Labels
from pipeline.tables.training import Curves
from pipeline.training.backbone import build
from pipeline.training.checkpoints import file_sha256, load_model, trunk_digest
from pipeline.training.loop import predict_logits
from pipeline.transfer import scratch_converged
from pipeline.work import locked


def params(**changes):
    return FinetuneParams(**{"seeds": [1], "epochs": 1, "batch_size": 8, **changes})


def run(fraction=1.0, draw=0, seed=1):
    return Run("resnet18", "lp_ft", seed, fraction, draw)


@pytest.mark.parametrize(
    ("fraction", "draw", "name"),
    [
        (1.0, 0, "resnet18-lp_ft-seed1"),
        (0.25, 0, "resnet18-lp_ft-seed1-labels25-draw0"),
        (0.29, 3, "resnet18-lp_ft-seed1-labels29-draw3"),  # 0.29 * 100 is 28.999999999999996
        (0.07, 1, "resnet18-lp_ft-seed1-labels7-draw1"),  # 7.000000000000001
    ],
)
def test_a_run_is_named_by_what_tells_it_from_its_siblings(fraction, draw, name):
    assert run(fraction, draw).name == name


def test_label_subsets_are_whole_patients_and_nested_within_a_draw():
    data = tiny.dataset(num=80, num_val=20)
    chosen = {}
    for fraction in (0.1, 0.25, 0.5, 0.9, 1.0):
        part = restrict(data, run(fraction), params())
        chosen[fraction] = set(part.train.tolist())
        patients = set(data.patients[part.train])
        assert chosen[fraction] == {i for i in data.train.tolist() if data.patients[i] in patients}
        assert len(patients) == max(2, round(fraction * 30))
        assert np.array_equal(part.id_val, data.id_val)
    sizes = sorted(chosen)
    assert all(chosen[a] < chosen[b] for a, b in itertools.pairwise(sizes))
    other_draw = set(restrict(data, run(0.25, draw=1), params()).train.tolist())
    assert other_draw != chosen[0.25]
    other_seed = set(restrict(data, run(0.25, seed=9), params()).train.tolist())
    assert other_seed == chosen[0.25]  # seeds of one draw share their training images


def test_permuted_labels_move_within_their_side_only():
    data = tiny.dataset(num=80, num_val=20)
    labels = data.labels.copy()
    labels[data.train, 0] = np.where(np.arange(60) < 9, 1.0, 0.0)
    labels[data.id_val, 0] = np.where(np.arange(20) < 15, 1.0, np.nan)
    data = replace(data, labels=np.concatenate([labels, labels], axis=1))
    before = data.labels.copy()
    part = restrict(data, run(), params(permute_labels=True))
    assert np.array_equal(data.labels, before, equal_nan=True)  # the caller's stay
    for side in (data.train, data.id_val):
        assert np.array_equal(np.sort(part.labels[side, 0]), np.sort(before[side, 0]), equal_nan=True)
        assert not np.array_equal(part.labels[side], before[side], equal_nan=True)
    assert np.array_equal(part.labels[:, 0], part.labels[:, 1], equal_nan=True)  # an image's labels stay together
    again = restrict(data, run(), params(permute_labels=True))
    assert np.array_equal(again.labels, part.labels, equal_nan=True)
    other = restrict(data, run(seed=2), params(permute_labels=True))
    assert not np.array_equal(other.labels, part.labels, equal_nan=True)


def test_permuting_a_subset_brings_in_no_label_of_the_rest():
    data = tiny.dataset(num=80, num_val=20)
    some = restrict(data, run(0.5), params())
    labels = data.labels.copy()
    rest = np.setdiff1d(data.train, some.train)
    labels[rest[labels[rest, 0] == 0]] = 9.0  # each patient stays positive, by another image: the subset is the same
    part = restrict(replace(data, labels=labels), run(0.5), params(permute_labels=True))
    assert 9.0 not in part.labels[part.train]


def test_a_seed_or_fraction_named_twice_is_refused_before_anything_is_trained():
    for key, values in (("seeds", [1, 2, 1]), ("label_fractions", [0.5, 0.5])):
        with pytest.raises(ParamsError, match=f"finetune.{key}: each must stand there once"):
            parse(FinetuneParams, {"seeds": [1], "epochs": 1, "batch_size": 8, key: values}, "finetune")


def test_an_unknown_method_is_told_the_nearest():
    with pytest.raises(ParamsError, match="unknown transfer method 'lp_tf'; did you mean 'lp_ft'"):
        load_method("lp_tf")
    with pytest.raises(ParamsError, match="unknown transfer method '__init__'"):
        load_method("__init__")


def test_the_data_are_joined_by_name_not_by_position(tmp_path):
    tiny.write_gather(tmp_path, num=24)
    table = read_table(Labels, tmp_path / "labels.parquet")
    table.loc[table["image_id"] == tiny.image_name(3), "label"] = None
    extra = table[table["image_id"].isin(map(tiny.image_name, range(5)))].assign(finding="effusion", label=1)
    write_table(Labels, [*table.to_dict("records"), *extra.to_dict("records")], tmp_path / "labels.parquet")
    data, findings = load_dataset(tmp_path)
    assert findings == ["effusion", "opacity"]
    assert data.labels.dtype == np.float32
    expected = (np.arange(24) % 2).astype(np.float32)
    expected[3] = np.nan
    assert np.array_equal(data.labels[:, 1], expected, equal_nan=True)
    assert np.array_equal(data.labels[:, 0], np.r_[np.ones(5), np.full(19, np.nan)], equal_nan=True)
    assert list(data.patients[:4]) == ["p000", "p001", "p000", "p001"]
    assert sorted(data.train) == list(range(18))
    assert sorted(data.id_val) == list(range(18, 24))
    bright = data.images.read(np.arange(24))[:, 0, :, :16].mean(axis=(1, 2)) > 120
    assert np.array_equal(bright, np.arange(24) % 2 == 1)


# --- the whole stage -----------------------------------------------------------------------------------------


def stage(tmp_path, monkeypatch, method="lp_ft", out="models", backbone=tiny.BACKBONE, **params):
    folder = tmp_path / "in"
    if not (folder / "weights").exists():
        tiny.write_gather(folder / "gather")
        tiny.write_weights(folder / "weights")
    path = tiny.write_params(tmp_path / "params.yaml", **params)
    common = {"gather": folder / "gather", "weights": folder / "weights", "params": path}
    tiny.call(monkeypatch, features, **common, out=folder / "features")
    tiny.call(
        monkeypatch,
        finetune,
        **common,
        features=folder / "features",
        backbone=backbone,
        method=method,
        out=tmp_path / out,
    )
    return tmp_path / out


def test_features_are_those_of_the_pretrained_model_in_the_stores_order(tmp_path, monkeypatch):
    stage(tmp_path, monkeypatch, method="linear_probe")
    data, _ = load_dataset(tmp_path / "in/gather")
    expected = tiny.engine(data).features
    made = np.load(tmp_path / "in/features/features.npy")
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=1e-5)  # another batch size


def test_a_hidden_layer_before_the_last_gives_pooled_features_too(tmp_path, monkeypatch):
    """MobileNet V3 has one hidden layer: cutting the head leaves one linear layer, which must not hide it."""
    tiny.write_gather(tmp_path / "gather")
    tiny.write_weights(tmp_path / "weights", "mobilenet_v3_small")
    common = {"gather": tmp_path / "gather", "weights": tmp_path / "weights"}
    tiny.call(monkeypatch, features, **common, out=tmp_path / "out", params=tiny.write_params(tmp_path / "params.yaml"))
    widths = {name: np.load(tmp_path / f"out/{name}.npy").shape[1] for name in ("features", "pooled")}
    assert widths == {"features": 1024, "pooled": 576}


@pytest.mark.parametrize("method", tiny.METHODS)
def test_a_model_and_all_that_loading_it_needs(tmp_path, monkeypatch, method):
    out = stage(tmp_path, monkeypatch, method, finetune={"seeds": [1], "epochs": 2, "batch_size": 8})
    name = f"{tiny.BACKBONE}-{method}-seed1"
    few = [f"{name}-shots{shots}-draw{draw}" for shots in (1, 2) for draw in (0, 1)] if method == "prototypes" else []
    live = [] if method in ("linear_probe", "prototypes") else ["live"]
    assert sorted(path.name for path in out.iterdir()) == sorted(["curves.parquet", name, *few, *live])
    assert not list((tmp_path / ".checkpoints/finetune").glob("*/*"))  # nothing is left of the work
    card = json.loads((out / name / "model.json").read_text())
    scratch = method in tiny.SCRATCH
    model, _ = load_model(out / name)
    assert {**card, "params": None} == {
        "run": name,
        "backbone": tiny.BACKBONE,
        "method": method,
        "seed": 1,
        "label_fraction": 1.0,
        "draw": 0,
        "shots": None,
        "findings": ["opacity"],
        "image_shape": [1, 32, 32],
        "hidden": 16 if method == "vgg_head" else None,
        "pooled": method == "vgg_head",
        "trunk_sha256": trunk_digest(model),
        "trials": 2 if method in ("linear_probe", "lp_ft") else 1,
        "train_tflop": card["train_tflop"],
        "input": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "initialisation": "scratch" if scratch else "file",
        "weights_name": None if scratch else "random numbers, for tests",
        "weights_sha256": None if scratch else "ab" * 32,
        "weights_licence": None if scratch else "a licence",
        "num_train_images": 24,
        "num_train_patients": 12,
        "num_parameters": sum(value.numel() for value in model.parameters()),
        "params": None,
        "versions": {name: version(name).split("+")[0] for name in ("torch", "torchvision", "scikit-learn")},
        "file_sha256": file_sha256(out / name / "model.safetensors"),
    }
    module = load_method(method)
    assert card["params"]["method"] == module.Params(**tiny.METHODS[method]).model_dump()
    assert card["params"]["finetune"] == {"seeds": [1], "epochs": 2, "batch_size": 8}
    per_image = finetune.forward_flops(model, (1, 32, 32)) / 1e12
    passes = {"scratch_converged": 2, "linear_probe": 0, "vgg_head": 0, "prototypes": 0}.get(method, 2)
    assert card["train_tflop"] == pytest.approx(per_image * (passes * (3 * 24 + 8) if passes else 32))
    assert str(tmp_path) not in json.dumps(card)
    curves = read_table(Curves, out / "curves.parquet")
    assert set(curves["run"]) == {name, *few}
    special = {
        "linear_probe": {"probe opacity"},
        "lp_ft": {"probe opacity", "finetune"},
        "gradual_unfreeze": {"unfreeze 0", "unfreeze 1"},
        "prototypes": {"prototypes opacity"},
    }
    assert set(curves["phase"]) == special.get(method, {"finetune"})
    if method == "prototypes":
        return  # nothing was fitted to a loss
    # the kept epoch's loss is the loaded model's
    data, _ = load_dataset(tmp_path / "in/gather")
    logits = predict_logits(tiny.fabric(), model, data.images, data.id_val, 4, torch.contiguous_format)[:, 0]
    signed = np.where(data.labels[data.id_val, 0] == 1, logits, -logits).astype(np.float64)
    kept = curves[curves["kept"] & (curves["phase"] != "probe opacity" if method == "lp_ft" else True)]
    assert np.logaddexp(0, -signed).mean() == pytest.approx(float(kept["id_val_loss"].min()), abs=1e-5)


def test_all_seeds_fractions_and_draws_and_two_runs_give_the_same_bytes(tmp_path, monkeypatch):
    runs = {"seeds": [1, 2], "label_fractions": [0.5, 1.0], "draws": 2, "epochs": 1, "batch_size": 8}
    first = stage(tmp_path, monkeypatch, "scratch", "first", finetune=runs)
    second = stage(tmp_path, monkeypatch, "scratch", "second", finetune=runs)
    base = f"{tiny.BACKBONE}-scratch"
    names = [f"{base}-seed{s}{part}" for s in (1, 2) for part in ("", "-labels50-draw0", "-labels50-draw1")]
    assert sorted(path.name for path in first.iterdir() if path.is_dir()) == sorted([*names, "live"])

    def digests(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert digests(first) == digests(second)
    tensors = {value for path, value in digests(first).items() if path.name == "model.safetensors"}
    assert len(tensors) == 6


def test_weights_of_another_backbone_are_refused(tmp_path, monkeypatch):
    with pytest.raises(PipelineError, match=f"holds weights of {tiny.BACKBONE}, not of resnet18"):
        stage(tmp_path, monkeypatch, backbone="resnet18")


def test_a_fraction_out_of_range_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ParamsError, match=r"finetune.label_fractions: each must be above 0 and at most 1; got 25"):
        stage(tmp_path, monkeypatch, finetune={"seeds": [1], "label_fractions": [25.0], "epochs": 1, "batch_size": 8})


# --- killed --------------------------------------------------------------------------------------------------


KILLED = """
import os, signal, sys
from pipeline.training import checkpoints
real, left = checkpoints.Checkpoint.save, [{saves}]
def save(self, state):
    real(self, state)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.Checkpoint.save = save
checkpoints.CHECKPOINT_SECONDS = 0.0
from pipeline.training import loop
loop.STEPS_UNCHECKED = 1
from pipeline.stages import finetune
finetune.main()
"""


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_job_that_was_killed_ends_in_the_same_bytes(tmp_path, monkeypatch, warm_python):
    """kill -9 in the first run, and again in the second; what was whole is not trained again."""
    runs = {"seeds": [1, 2], "epochs": 2, "batch_size": 8}
    whole = stage(tmp_path, monkeypatch, "lp_ft", "whole", finetune=runs)
    paths = [f"--{name}={tmp_path}/in/{name}" for name in ("gather", "weights", "features")]
    command = [*paths, f"--params={tmp_path}/params.yaml", f"--backbone={tiny.BACKBONE}", "--method=lp_ft"]
    command.append(f"--out={tmp_path}/again")
    for saves in (4, 7):
        killed = subprocess.run([warm_python, "-c", KILLED.format(saves=saves), *command], capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not (tmp_path / "again").exists()
    (work,) = (path for path in (tmp_path / ".checkpoints/finetune").iterdir() if path.is_dir())
    done = work / f"{tiny.BACKBONE}-lp_ft-seed1/model.safetensors"
    before = done.stat().st_mtime_ns
    seen = []
    real = finetune.publish
    monkeypatch.setattr(finetune, "publish", lambda *args: (seen.append(done.stat().st_mtime_ns), real(*args)))
    stage(tmp_path, monkeypatch, "lp_ft", "again", finetune=runs)
    assert seen == [before]
    assert digests(tmp_path / "again") == digests(whole)


def test_work_of_other_params_is_not_taken(tmp_path, monkeypatch):
    first = stage(tmp_path, monkeypatch, "scratch", "first")
    work = tmp_path / ".checkpoints/finetune"
    stale = work / f"{tiny.BACKBONE}-scratch-{'0' * 32}"
    name = f"{tiny.BACKBONE}-scratch-seed1"
    stale.mkdir()
    (stale / name).mkdir()
    (stale / name / "model.json").write_text("{}")
    second = stage(tmp_path, monkeypatch, "scratch", "second")
    assert not stale.exists()
    assert digests(first) == digests(second)


def test_two_at_once_are_refused(tmp_path, monkeypatch):
    stage(tmp_path, monkeypatch, "scratch")
    held = locked(tmp_path / ".checkpoints/finetune", f"{tiny.BACKBONE}-scratch")
    with held, pytest.raises(PipelineError, match="another process is at work"):
        stage(tmp_path, monkeypatch, "scratch", "again")


def test_flops_are_the_published_ones():
    """torchvision states multiply-adds in thousands of millions; an operation is half of one."""
    for name in ("resnet18", "mobilenet_v2"):
        model = build(name, 1000, seed=0, state=None)
        published = get_model_weights(name).DEFAULT.meta["_ops"] * 2e9
        assert finetune.forward_flops(model, (1, 224, 224)) == pytest.approx(published, rel=0.02)


def test_few_shot_runs_draw_patients_not_seeds(tmp_path, monkeypatch):
    out = stage(tmp_path, monkeypatch, "prototypes", finetune={"seeds": [1, 2], "epochs": 1, "batch_size": 8})
    cards = [json.loads(path.read_text()) for path in out.glob("*/model.json")]
    few = {(card["shots"], card["draw"]): card for card in cards if card["shots"]}
    assert sorted(few) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert {card["seed"] for card in few.values()} == {1}
    assert {key: card["num_train_patients"] for key, card in few.items()} == {
        (1, 0): 2, (1, 1): 2, (2, 0): 4, (2, 1): 4
    }  # fmt: skip
    assert len({card["trunk_sha256"] for card in cards}) == 1  # one pass over the images serves all of them


@pytest.mark.parametrize(("only", "fractions"), [(True, {1.0}), (False, {0.5, 1.0})])
def test_training_to_convergence_may_have_all_labels_alone(only, fractions):
    params = FinetuneParams(seeds=[1, 2], label_fractions=[0.5, 1.0], epochs=1, batch_size=8)
    own = scratch_converged.Params(learning_rate=[0.1], epochs=2, patience=1, all_labels_only=only)
    assert {run.label_fraction for run in finetune.runs_of("net", "scratch_converged", params, own)} == fractions


def test_more_shots_than_patients_are_refused(tmp_path, monkeypatch):
    with pytest.raises(PipelineError, match="50 labelled patients a class are wanted"):
        stage(tmp_path, monkeypatch, "prototypes", methods={"prototypes": {"shots": [50], "draws": 1}})


@pytest.mark.slow
def test_the_stage_starts_its_own_processes_and_ends_in_the_weights_of_one(tmp_path, monkeypatch):
    """compute.devices: 2 on a CPU; the second process is the stage's own child."""
    runs = {"seeds": [1], "epochs": 2, "batch_size": 8, "batch_norm": "frozen"}
    one = stage(tmp_path, monkeypatch, "full_finetune", "one", finetune=runs)
    params = tiny.write_params(tmp_path / "two.yaml", finetune=runs, compute={"threads": 1, "devices": 2})
    paths = [f"--{name}={tmp_path}/in/{name}" for name in ("gather", "weights", "features")]
    command = [*paths, f"--params={params}", f"--backbone={tiny.BACKBONE}", "--method=full_finetune"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.finetune", *command, f"--out={tmp_path}/two"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    name = f"{tiny.BACKBONE}-full_finetune-seed1"
    (alone, card), (together, _) = load_model(one / name), load_model(tmp_path / "two" / name)
    start = build(tiny.BACKBONE, 1, seed=1, state=tiny.weights(), image_shape=tuple(card["image_shape"]))
    moved = 0.0
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[key], value, rtol=1e-3, atol=1e-4)
        moved = max(moved, float((value.float() - start.state_dict()[key].float()).abs().max()))
    assert moved > 1e-3  # it trained
