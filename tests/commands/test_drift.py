"""drift: real files of a new month through the study's own ingest, preprocess and models; what it leaves behind."""

import importlib
import sys
from importlib.metadata import version

import numpy as np
import pytest
import tiny
from stages.study import NAME, SECRETS, Study, picture

from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.stages import embed, predict
from pipeline.tables.contract import write_table
from pipeline.tables.training import Curves
from pipeline.training.backbone import build
from pipeline.training.checkpoints import save_model, trunk_digest

METHOD = "linear_probe"
MODEL = f"{tiny.BACKBONE}-{METHOD}"


class Quiet:
    """What ``Study`` wants of pytest's capsys, where the fixture lives longer."""

    @staticmethod
    def readouterr():
        return type("Captured", (), {"out": "", "err": ""})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two sites of 30 patients, embedded, and two trainings with their predictions."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Study(folder, monkeypatch, Quiet)
        made.params |= {
            "backbones": {tiny.BACKBONE: {"weights": "IMAGENET1K_V1"}},
            "methods": {METHOD: {}},
            "compute": tiny.COMPUTE,
            "drift": {"model": MODEL, "seed": 1, "alpha": 0.05, "permutations": 199},
        }
        made.params["preprocess"]["size_px"] = 32
        made.params["versions"] |= {name: version(name).split("+")[0] for name in ("torch", "torchvision")}
        made.fill().all()
        tiny.write_weights(folder / "data/weights" / tiny.BACKBONE)
        for seed in (1, 2):
            model = build(tiny.BACKBONE, 1, seed=seed, state=dict(tiny.weights()))
            name = f"{MODEL}-seed{seed}"
            card = {
                "run": name, "backbone": tiny.BACKBONE, "method": METHOD, "seed": seed, "label_fraction": 1.0,
                "draw": 0, "shots": None, "findings": ["opacity"], "image_shape": [1, 32, 32], "hidden": None,
                "pooled": False, "trials": 1, "train_tflop": 0.5, "input": model.input_spec, "initialisation": "file",
                "weights_name": "W", "weights_sha256": "ff", "num_train_images": 6, "num_train_patients": 5,
                "num_parameters": 4, "trunk_sha256": trunk_digest(model),
            }  # fmt: skip
            save_model(model, card, folder / "data/models" / MODEL / name)
        curve = {"run": f"{MODEL}-seed1", "epoch": 0, "phase": "probe", "kept": True}
        write_table(Curves, [curve], folder / "data/models" / MODEL / "curves.parquet")
        params = folder / "params.yaml"
        places = {"split": folder / "split", "images": folder / "images"}
        tiny.call(
            monkeypatch, embed, **places, weights=folder / "data/weights" / tiny.BACKBONE,
            out=folder / "data/embed" / tiny.BACKBONE, params=params,
        )  # fmt: skip
        tiny.call(
            monkeypatch, predict, **places, labels=folder / "labels", models=folder / "data/models",
            out=folder / "data/predict", params=params,
        )  # fmt: skip
    return folder


def new_month(folder, patients, **elements):
    folder.mkdir()
    for patient in patients:
        (folder / f"{NAME}_{patient}.dcm").write_bytes(picture("north", patient, **elements))
    return folder


def run(study, monkeypatch, folder, *options, site="north", processes=False):
    """The exit code; the stages in this process, where torch is loaded already, unless ``processes`` are asked for."""
    drift = importlib.import_module("pipeline.commands.drift")
    options = ("--site", site, "--folder", folder, "--params", study / "params.yaml", *options)

    def stage(name, *given):
        with pytest.MonkeyPatch.context() as inside:
            tiny.call(inside, importlib.import_module(f"pipeline.stages.{name}"), *given, "--workers", 1)

    with pytest.MonkeyPatch.context() as patch:
        if not processes:
            patch.setattr(drift, "_stage", stage)
        patch.setattr(sys, "argv", ["drift", *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            drift.main()
    return stop.value.code


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_month_like_the_others_passes_and_leaves_nothing(study, tmp_path, monkeypatch, capfd):
    before = everything(study)
    folder = new_month(tmp_path / "month", [*range(100, 124), 0, 1])  # two images that the study has
    assert run(study, monkeypatch, folder, "--out", tmp_path / "told.md", processes=True) == 0
    told = capfd.readouterr()
    assert told.out.startswith("**No drift found**: north, 24 new images of 24 patients; 2 checks at level 0.05.")
    assert "Files: 26; left out: none. Images that the study has: 2." in told.out
    assert (tmp_path / "told.md").read_text() in told.out
    assert [secret for secret in SECRETS if secret in told.out + told.err] == []
    assert everything(study) == before


def test_another_window_is_found(study, tmp_path, monkeypatch, capfd):
    folder = new_month(tmp_path / "month", range(200, 224), WindowCenter=3600, WindowWidth=900)
    (folder / "notes.txt").write_text("no image")
    assert run(study, monkeypatch, folder) == 1
    told = capfd.readouterr().out
    told = told[told.index("**Drift") :]
    assert told.startswith("**Drift**: north, 24 new images of 24 patients; ")
    row = next(line for line in told.splitlines() if line.startswith("| images"))
    assert row.endswith("| **drifted** |")
    assert row.count("|") == 7
    assert "left out: 1 not_dicom" in told


@pytest.mark.parametrize(
    ("patients", "text"),
    [((0, 1), "the study has all 2 images of the folder already"), ((300, 301), "needs 4 patients on each side")],
)
def test_too_little_is_no_verdict(study, tmp_path, monkeypatch, patients, text):
    folder = new_month(tmp_path / "month", patients)
    with pytest.raises(PipelineError, match=text):
        run(study, monkeypatch, folder)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"site": "nort"}, "unknown site 'nort'; did you mean 'north'"), ({"folder": "nowhere"}, "no such folder")],
)
def test_what_is_not_there_is_told(study, tmp_path, monkeypatch, changes, text):
    with pytest.raises(PipelineError, match=text):
        run(study, monkeypatch, **{"folder": tmp_path, **changes})


def test_a_model_that_the_study_does_not_train(study, tmp_path, monkeypatch):
    text = (study / "params.yaml").read_text()
    (study / "other.yaml").write_text(text.replace(f"model: {MODEL}", f"model: {tiny.BACKBONE}-linear_prob"))
    monkeypatch.setattr(
        sys, "argv",
        ["drift", "--site", "north", "--folder", str(tmp_path), "--params", str(study / "other.yaml")],
    )  # fmt: skip
    with pytest.raises(ParamsError, match=f"trains no '{tiny.BACKBONE}-linear_prob'; did you mean '{MODEL}'"):
        importlib.import_module("pipeline.commands.drift").main()
    (study / "other.yaml").unlink()


def test_who_comes_again_is_left_out_of_the_earlier_side():
    drift = importlib.import_module("pipeline.commands.drift")
    pd = importlib.import_module("pandas")
    month = drift.Month(pd.DataFrame({"patient_id": ["b", "d"], "image_id": ["1", "2"]}), None, 2, {}, 0)
    sides = drift.sides_of(np.arange(3.0), np.array(["a", "b", "c"], dtype=object), np.arange(2.0), month)
    assert sides.patients.tolist() == ["a", "c"]
    assert sides.before.tolist() == [0.0, 2.0]
