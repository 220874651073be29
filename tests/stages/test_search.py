"""search: what each rung trains, by which loss it keeps, and what it says where a candidate fails."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import closure
import numpy as np
import pytest
import tiny
import torch

from pipeline.errors import PipelineError
from pipeline.stages import features, finetune, search
from pipeline.tables.choice import SearchRungs
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.labels import Labels
from pipeline.tables.training import Curves

OTHER = "mobilenet_v3_small"
SEARCH = {"epochs": [1, 2], "keep": 0.5, "seed": 3}
FEW = {name: tiny.METHODS[name] for name in ("linear_probe", "prototypes", "scratch")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """gather, weights and features of two backbones."""
    folder = tmp_path_factory.mktemp("in")
    tiny.write_gather(folder / "gather")
    params = tiny.write_params(folder / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        for backbone in (tiny.BACKBONE, OTHER):
            tiny.write_weights(folder / "weights" / backbone, backbone)
            paths = {"gather": folder / "gather", "weights": folder / "weights" / backbone, "params": params}
            tiny.call(patch, features, **paths, out=folder / "features" / backbone)
    return folder


@pytest.fixture
def stage(inputs, tmp_path, monkeypatch):
    """Runs the stage in a copy of the inputs; returns its rows."""
    shutil.copytree(inputs, tmp_path / "in")

    def call(out="search", methods=FEW, backbones=(tiny.BACKBONE,), **params):
        params = {"search": SEARCH, "methods": methods, "backbones": {name: {} for name in backbones}, **params}
        path = tiny.write_params(tmp_path / "params.yaml", **params)
        folders = {name: tmp_path / "in" / name for name in ("gather", "features", "weights")}
        tiny.call(monkeypatch, search, **folders, params=path, out=tmp_path / out)
        return read_table(SearchRungs, tmp_path / out / "rungs.parquet")

    return call


def by_method(rows, rung):
    own = rows[rows["rung"] == rung]
    return dict(zip(own["method"], own.to_dict("records"), strict=True))


def test_methods_of_each_kind_in_two_rungs(stage):
    methods = "full_finetune gradual_unfreeze linear_probe prototypes scratch_converged vgg_head".split()
    rows = stage(methods={name: tiny.METHODS[name] for name in methods})
    first, second = by_method(rows, 0), by_method(rows, 1)
    assert list(first) == methods
    notes = {method: row["note"] for method, row in first.items() if row["note"]}
    assert set(notes) == {"gradual_unfreeze", "scratch_converged"}
    assert notes["scratch_converged"].startswith("methods.scratch_converged.epochs: it has epochs of its own")
    assert notes["gradual_unfreeze"].startswith("methods.gradual_unfreeze: 2 phases need as many epochs")
    losses = {method: row["id_val_loss"] for method, row in first.items()}
    assert [method for method, loss in losses.items() if np.isnan(loss)] == sorted(notes)
    best = sorted(set(losses) - set(notes), key=losses.get)[:2]  # half of the four that have one
    assert {method for method, row in first.items() if row["kept"]} == set(second) == set(best)
    assert [row["epochs"] for row in first.values()] == [
        0 if method in ("linear_probe", "prototypes") else 1 for method in first
    ]
    assert [row["kept"] for row in second.values()].count(True) == 1
    for method in {"linear_probe", "prototypes"} & set(second):  # fitted once
        assert second[method]["id_val_loss"] == first[method]["id_val_loss"]
        assert second[method]["epochs"] == 0


@pytest.mark.slow  # finetune's whole stage twice
def test_losses_are_those_of_the_models_that_finetune_makes(stage, tmp_path, monkeypatch):
    """With as many epochs and the same seed: both train by the same engine."""
    method = "full_finetune"
    rows = stage(search={"epochs": [2], "keep": 0.5, "seed": 3}, methods={method: tiny.METHODS[method]})
    params = tiny.write_params(tmp_path / "full.yaml", finetune={"seeds": [3], "epochs": 2, "batch_size": 8})
    of_backbone = {name: tmp_path / "in" / name / tiny.BACKBONE for name in ("features", "weights")}
    options = {"gather": tmp_path / "in/gather", "params": params, "backbone": tiny.BACKBONE, "method": method}
    tiny.call(monkeypatch, finetune, **of_backbone, **options, out=tmp_path / method)
    curves = read_table(Curves, tmp_path / method / "curves.parquet")
    kept = float(curves.loc[curves["kept"], "id_val_loss"].iloc[0])
    assert rows["id_val_loss"].tolist() == pytest.approx([kept], abs=1e-5)


def test_loss_is_the_mean_over_annotated_labels_and_knows_no_weights():
    data = tiny.dataset(findings=2)
    data.labels[data.id_val[:3], 1] = np.nan
    weighted = tiny.loop(class_weights="balanced", finding_weights={"finding0": 9.0})
    engine = tiny.engine(data, loop=weighted)
    model = engine.pretrained()
    found = search.id_val_loss(engine, model, 3)
    with torch.no_grad():
        pixels = torch.from_numpy(data.images.read(data.id_val)).float() / 255
        logits = model.eval()(pixels).double().numpy()
    truth = data.labels[data.id_val].astype(np.float64)
    losses = np.logaddexp(0, np.where(truth == 1, -logits, logits))
    assert found == pytest.approx(losses[np.isfinite(truth)].mean(), rel=1e-5)
    data.labels[data.id_val] = np.nan
    with pytest.raises(PipelineError, match="needs an annotated image in id_val"):
        search.id_val_loss(engine, model, 3)


def trainer(data, methods, **shared):
    engine = tiny.engine(data)
    sources = {tiny.BACKBONE: search.Source(dict(tiny.weights()), engine.features, engine.pooled)}.__getitem__
    shared = finetune.FinetuneParams(**{"seeds": [1], "epochs": 7, "batch_size": 8, **shared})
    compute = search.ComputeParams(**tiny.COMPUTE)
    return search.Trainer(engine.fabric, data, engine.findings, methods, sources, shared, compute, 1)


def counted(name, fits):
    """A method whose fits are counted, with the epochs that the engine was told."""
    module = finetune.load_method(name)
    fake = ModuleType(name)

    def fit(engine, params):
        fits.append((name, engine.loop.epochs))
        return module.fit(engine, params)

    fake.fit = fit
    return fake, module.Params(**tiny.METHODS[name])


def test_a_rung_trains_for_its_epochs_and_a_fit_without_epochs_is_made_once():
    fits = []
    methods = {name: counted(name, fits) for name in ("linear_probe", "vgg_head", "prototypes")}
    params = search.SearchParams(epochs=[1, 2], keep=0.9, seed=1)
    rows = search.search(trainer(tiny.dataset(), methods), [(tiny.BACKBONE, name) for name in methods], params)
    assert fits[:3] == [("linear_probe", 1), ("prototypes", 1), ("vgg_head", 1)]
    kept = {row["method"] for row in rows if row["rung"] == 1}
    assert len(kept) == 2
    assert fits[3:] == [("vgg_head", 2)] * ("vgg_head" in kept)


def test_the_better_on_id_val_wins_whatever_training_says():
    """Labels of id_val turned round: the probe that learnt is the worse; nothing else judges."""
    data = tiny.dataset(num=48, num_val=16)
    methods = {"linear_probe": counted("linear_probe", []), "prototypes": counted("prototypes", [])}
    candidates, params = [(tiny.BACKBONE, name) for name in methods], search.SearchParams(epochs=[1], keep=0.5, seed=1)

    def losses(data):
        return {row["method"]: row["id_val_loss"] for row in search.search(trainer(data, methods), candidates, params)}

    plain = losses(data)
    labels = data.labels.copy()
    labels[data.id_val] = 1 - labels[data.id_val]
    turned = losses(replace(data, labels=labels))
    assert plain["linear_probe"] < plain["prototypes"]
    assert turned["linear_probe"] > turned["prototypes"]


def test_a_candidate_that_fails_is_dropped_and_the_rest_goes_on(stage):
    frozen = {"seeds": [1], "epochs": 1, "batch_size": 8, "batch_norm": "frozen"}
    first = by_method(stage(finetune=frozen), 0)
    assert first["scratch"]["note"].startswith("finetune.batch_norm: 'frozen' leaves a network")
    assert np.isnan(first["scratch"]["id_val_loss"])
    assert {method for method, row in first.items() if row["note"] == ""} == {"linear_probe", "prototypes"}


def test_one_class_leaves_no_winner_and_says_so(stage, tmp_path, capsys):
    path = tmp_path / "in/gather/labels.parquet"
    write_table(Labels, read_table(Labels, path).assign(label=1), path)
    rows = stage()
    assert rows["kept"].tolist() == [False] * 3
    assert rows["note"].str.contains("both classes|with and without|no labelled image").all()
    assert "the last kept none" in capsys.readouterr().out


def test_two_backbones_twice_give_the_same_bytes_and_what_is_stale_goes(stage, tmp_path):
    both, methods = (OTHER, tiny.BACKBONE), {name: FEW[name] for name in ("linear_probe", "prototypes")}
    rows = stage("first", methods, both)
    assert set(rows.loc[rows["rung"] == 0, "backbone"]) == set(both)
    for name in ("features", "weights"):
        (tmp_path / "in" / name / "gone").mkdir()
    stage("second", dict(reversed(methods.items())), both[::-1])
    assert not (tmp_path / "in/features/gone").exists()
    assert not (tmp_path / "in/weights/gone").exists()
    assert (tmp_path / "first/rungs.parquet").read_bytes() == (tmp_path / "second/rungs.parquet").read_bytes()


def test_damaged_inputs_are_refused_and_drop_no_candidate(stage, tmp_path):
    shutil.rmtree(tmp_path / "in/weights" / tiny.BACKBONE)
    tiny.write_weights(tmp_path / "in/weights" / tiny.BACKBONE, OTHER)
    with pytest.raises(PipelineError, match=f"holds weights of {OTHER}, not of {tiny.BACKBONE}"):
        stage()


def test_the_stage_depends_on_the_folder_of_methods_and_on_what_they_import():
    files, packages = closure.closure(Path("pipeline/stages/search.py"), {})
    assert "pipeline/transfer" in files
    assert not [name for name in files if name.startswith("pipeline/transfer/")]
    assert {"pipeline/training/engine.py", "pipeline/training/probe.py", "pipeline/stages/finetune.py"} <= files
    one, _ = closure.closure(Path("pipeline/stages/search.py"), {"pipeline/transfer": "lp_ft"})
    assert "pipeline/transfer/lp_ft.py" in one
    assert "pipeline/transfer" not in one
    assert "sklearn" in packages


def test_a_folder_that_is_imported_at_will_is_followed_through_all_its_modules(tmp_path, monkeypatch):
    (tmp_path / "pipeline/many").mkdir(parents=True)
    (tmp_path / "pipeline/a.py").write_text("import importlib\nimportlib.import_module(f'pipeline.many.{name}')\n")
    (tmp_path / "pipeline/b.py").write_text("import numpy\n")
    (tmp_path / "pipeline/many/one.py").write_text("from pipeline import b\n")
    (tmp_path / "pipeline/many/two.py").write_text("import scipy\n")
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    files, packages = closure.closure(Path("pipeline/a.py"), {})
    assert files == {"pipeline/a.py", "pipeline/many", "pipeline/b.py"}
    assert packages == {"importlib", "numpy", "scipy"}
