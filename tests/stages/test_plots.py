"""plots as a stage, and what DVC makes of its files and of the templates that dvc.yaml names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny
from analysis.two_hospitals import predictions
from ruamel.yaml import YAML

from pipeline.analysis.evaluation import EvaluateParams, evaluate
from pipeline.stages import plots
from pipeline.stages.plots import to_json
from pipeline.tables.contract import make_table, write_table
from pipeline.tables.evaluation import Metrics, Thresholds
from pipeline.tables.plots import LearningCurves
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Curves, Runs

ROOT = Path(__file__).parents[2]
SETTINGS = {"seed": 1, "resamples": 100}
FILES = {"roc", "auroc", "calibration", "confusion", "learning"}


def write_inputs(folder: Path, frame: pd.DataFrame) -> None:
    evaluated = evaluate(frame, EvaluateParams(**SETTINGS), ["home"], ["away"])
    write_table(Predictions, frame, folder / "data/predict/predictions.parquet")
    write_table(Metrics, evaluated.metrics, folder / "data/evaluate/metrics.parquet")
    write_table(Thresholds, evaluated.thresholds, folder / "data/evaluate/thresholds.parquet")
    trained = frame[(frame["adaptation"] == "none") & (frame["backbone"] != "no_pixels")]
    runs = trained[["run", "backbone", "method", "seed", "label_fraction", "draw"]].drop_duplicates()
    write_table(Runs, runs, folder / "data/predict/runs.parquet")
    curves = [
        {"run": run, "phase": "all", "epoch": epoch, "train_loss": 0.5, "id_val_loss": 0.7, "learning_rate": 0.1}
        for run in runs["run"]
        for epoch in range(2)
    ]
    write_table(Curves, curves, folder / "data/predict/curves.parquet")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, min_cell: int = 0, **places: Path) -> dict[str, list[dict]]:
    params = tiny.write_params(
        folder / "params.yaml", evaluate=SETTINGS, report={"title": "x", "images": False, "min_cell": min_cell},
        remedies={"bn": {"base": "scratch"}}, backbones={"resnet18": {}},
    )  # fmt: skip
    data = {"predict": folder / "data/predict", "evaluate": folder / "data/evaluate"}
    tiny.call(monkeypatch, plots, **data, **places, out=folder / "reports/plots", params=params)
    return {path.stem: json.loads(path.read_text()) for path in (folder / "reports/plots").iterdir()}


def test_the_same_small_files_without_any_patient(tmp_path, monkeypatch):
    frame = predictions()
    write_inputs(tmp_path, frame)
    made = run(tmp_path, monkeypatch)
    texts = {path.name: path.read_bytes() for path in (tmp_path / "reports/plots").iterdir()}
    assert set(made) == FILES
    assert {row["site"] for row in made["roc"]} == {"home", "away"}
    assert max(len(text) for text in texts.values()) < 50_000
    told = b"".join(texts.values()).decode()
    assert not [name for column in ("image_id", "patient_id") for name in set(frame[column]) if name in told]
    # Rows in another order: the same bytes.
    write_table(Predictions, frame.iloc[::-1], tmp_path / "data/predict/predictions.parquet")
    run(tmp_path, monkeypatch)
    assert texts == {path.name: path.read_bytes() for path in (tmp_path / "reports/plots").iterdir()}


def test_small_cells_are_the_reports(tmp_path, monkeypatch):
    write_inputs(tmp_path, predictions())
    made = run(tmp_path, monkeypatch, min_cell=11)
    assert {row["true_positive_rate"] for row in made["roc"]} == {None}
    assert {row["note"] for row in made["roc"]} == {"under 11 patients of a class"}


def test_the_baseline_and_remedies_are_drawn_beside(tmp_path, monkeypatch):
    frame = predictions()
    bare = frame[frame["run"] == "resnet18-scratch-seed1"].assign(
        run="no_pixels-logistic-seed0", backbone="no_pixels", method="logistic", seed=0
    )
    adapted = frame[frame["method"] == "scratch"]
    adapted = adapted.assign(run=adapted["run"] + "-adapt_bn", adaptation="bn")
    write_inputs(tmp_path, make_table(Predictions, pd.concat([frame, bare, adapted], ignore_index=True)))
    write_table(Predictions, frame, tmp_path / "data/predict/predictions.parquet")
    write_table(Predictions, bare, tmp_path / "data/baseline/predictions.parquet")
    write_table(Predictions, adapted, tmp_path / "data/adapt/resnet18-bn/predictions.parquet")
    made = run(tmp_path, monkeypatch, baseline=tmp_path / "data/baseline", adapt=tmp_path / "data/adapt")
    families = {"resnet18-scratch", "resnet18-lp_ft", "no_pixels-logistic", "resnet18-scratch-bn"}
    for name in ("roc", "auroc", "calibration", "confusion"):
        assert {row["run"] for row in made[name]} == families


def test_what_dvc_cannot_draw_is_a_row_of_nulls():
    (row,) = json.loads(to_json(make_table(LearningCurves, [])))
    assert set(row.values()) == {None}
    assert set(row) == set(LearningCurves.columns)


# --- with DVC ------------------------------------------------------------------------------------------------


def dvc(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed to load" not in done.stderr.lower(), done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return done.stdout


def git(folder: Path, *arguments: str) -> None:
    settings = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True)


def fields(node: object) -> set[str]:
    """All fields that a Vega-Lite specification looks up, but for layers with data of their own."""
    if isinstance(node, dict):
        own = {node["field"]} if isinstance(node.get("field"), str) else set()
        inner = [value for key, value in node.items() if key != "data"]
        return own.union(*map(fields, inner)) if inner else own
    if isinstance(node, list):
        parts = [fields(part) for part in node if not (isinstance(part, dict) and "data" in part)]
        return set().union(*parts)
    return set()


def test_dvc_shows_and_compares_all_plots(tmp_path, monkeypatch):
    """The section `plots` of the real dvc.yaml, its outputs in DVC's cache and committed; then another result."""
    whole = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
    stage = {"cmd": "true", "outs": ["reports/plots"]}
    graph = {"vars": [{"code": f"{ROOT}/"}], "stages": {"plots": stage}, "plots": whole["plots"]}
    with (tmp_path / "dvc.yaml").open("w") as file:
        YAML().dump(graph, file)
    git(tmp_path, "init", "--quiet")
    dvc(tmp_path, "init", "--quiet")
    write_inputs(tmp_path, predictions())
    run(tmp_path, monkeypatch)
    dvc(tmp_path, "commit", "--quiet", "--force")
    git(tmp_path, "add", "dvc.yaml", "dvc.lock", ".dvc")
    git(tmp_path, "commit", "--quiet", "-m", "before")

    dvc(tmp_path, "plots", "show", "--out", "shown")
    page = (tmp_path / "shown/index.html").read_text()
    drawn = {next(iter(plot)) for plot in whole["plots"]}
    assert len(drawn) == len(FILES)
    assert all(name.replace(" ", "_") in page for name in drawn)
    assert "<DVC_METRIC" not in page

    write_inputs(tmp_path, predictions(seeds=(3, 4)))
    for path in (tmp_path / "reports/plots").iterdir():
        path.unlink()
    run(tmp_path, monkeypatch)
    compared = json.loads(dvc(tmp_path, "plots", "diff", "HEAD", "--json"))
    assert "errors" not in compared
    for name, (plot,) in compared["data"].items():
        spec = json.loads(plot["content"]) if isinstance(plot["content"], str) else plot["content"]
        rows = spec["data"]["values"]
        assert {row["rev"] for row in rows} == {"HEAD", "workspace"}
        made = {step["as"] for step in spec.get("transform", [])}
        assert fields(spec) <= made | set(rows[0]), name
    assert set(compared["data"]) == drawn
