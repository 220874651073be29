"""evaluate as a stage: what it writes, and how bad predictions reach a person."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from scipy.special import expit

from pipeline import cli
from pipeline.analysis.evaluation import PredictionsError
from pipeline.errors import PipelineError
from pipeline.stages import evaluate
from pipeline.stages.evaluate import flat_metrics, trials_of
from pipeline.tables.contract import make_table, read_table, write_table
from pipeline.tables.evaluation import Calibration, Efficiency, LabelSavings, Metrics, Overfitting, Thresholds, Verdicts
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Curves, Runs


def predictions(methods=("scratch", "seed_probe"), seeds=(1, 2), num=30):
    rows = []
    for method in methods:
        for seed in seeds:
            rng = np.random.default_rng([seed, len(method)])
            for site, split in (("home", "id_val"), ("home", "id_test"), ("away", "ood_test")):
                labels = np.arange(num) % 3 == 0
                logits = 1.5 * labels + rng.normal(size=num) - 0.5
                rows += [
                    {
                        "image_id": f"{split}-{i}",
                        "finding": "opacity",
                        "run": f"resnet18-{method}-seed{seed}",
                        "protocol": "home",
                        "backbone": "resnet18",
                        "method": method,
                        "seed": seed,
                        "label_fraction": 1.0,
                        "draw": 0,
                        "adaptation": "none",
                        "patient_id": f"{split}-p{i // 2}",
                        "site": site,
                        "split": split,
                        "label": int(labels[i]),
                        "logit": logits[i],
                        "probability": expit(logits[i]),
                    }
                    for i in range(num)
                ]
    return pd.DataFrame(rows)


def runs_of(frame, trials=3):
    runs = frame[["run", "backbone", "method", "seed", "label_fraction", "draw"]].drop_duplicates()
    return runs.assign(trials=trials, num_train_patients=100, train_tflop=2.5)


def run(tmp_path, monkeypatch, frame, runs=None):
    write_table(Predictions, frame, tmp_path / "predict/predictions.parquet")
    write_table(Runs, runs_of(frame) if runs is None else runs, tmp_path / "predict/runs.parquet")
    curves = [
        {"run": name, "phase": "all", "epoch": 0, "train_loss": 0.25, "id_val_loss": 0.5, "kept": True}
        for name in sorted(set(frame["run"]))
    ]
    write_table(Curves, curves, tmp_path / "predict/curves.parquet")
    path = tiny.write_params(tmp_path / "params.yaml", verdict={"margin": 0.05})
    metrics = tmp_path / "reports/metrics.json"
    tiny.call(monkeypatch, evaluate, predict=tmp_path / "predict", out=tmp_path / "out", metrics=metrics, params=path)
    return json.loads(metrics.read_text())


def test_three_tables_and_the_flat_file_agree(tmp_path, monkeypatch):
    flat = run(tmp_path, monkeypatch, predictions())
    table = read_table(Metrics, tmp_path / "out/metrics.parquet")
    assert len(read_table(Thresholds, tmp_path / "out/thresholds.parquet")) == 4
    assert len(read_table(Calibration, tmp_path / "out/calibration.parquet"))
    families = {"resnet18-scratch", "resnet18-seed_probe"}
    assert {key.split("/")[0] for key in flat} == families  # single seeds stand in the table alone
    assert set(table["run"]) - families == {f"{family}-seed{seed}" for family in families for seed in (1, 2)}
    rows = table[table["run"].isin(families)]
    assert len(flat) == len(rows)
    for row in rows.to_dict("records"):
        value = flat["/".join((row["run"], row["finding"], row["split"], row["group"], row["metric"]))]
        assert (value is None and pd.isna(row["value"])) or value == row["value"]
    assert "resnet18-seed_probe/opacity/ood_test/target_minus_source/auroc" in flat
    assert "resnet18-seed_probe/opacity/ood_test/target/auroc_minus_scratch" in flat
    assert list(flat) == sorted(flat)


def test_what_it_says_of_transfer(tmp_path, monkeypatch):
    frame = predictions()
    few = frame.assign(run=frame["run"] + "-labels25-draw0", label_fraction=0.25)
    both = pd.concat([frame, few], ignore_index=True)
    runs = runs_of(both)
    runs.loc[runs["method"] == "scratch", "trials"] = 1
    run(tmp_path, monkeypatch, both, runs)
    out = tmp_path / "out"
    verdicts = read_table(Verdicts, out / "verdicts.parquet")
    assert set(verdicts["run"]) == {"resnet18-seed_probe", "resnet18-seed_probe-labels25"}
    assert set(zip(verdicts["split"], verdicts["group"], strict=True)) == {
        ("id_test", "source"),
        ("ood_test", "target"),
    }
    assert (verdicts["margin"] == 0.05).all()
    assert verdicts["note"].str.contains("unequal tuning budget: 3 against 1").all()
    points = read_table(Efficiency, out / "efficiency.parquet")
    assert len(points) == 2 * 2 * 2
    assert (points["train_tflop"] == 2.5).all()
    assert len(read_table(LabelSavings, out / "savings.parquet")) == 2
    losses = read_table(Overfitting, out / "overfitting.parquet")
    assert len(losses) == 4
    assert (losses["gap"] == 0.25).all()


def test_trials_that_are_not_recorded_are_none():
    rows = [{"run": "a", "trials": 3}, {"run": "b"}]
    assert trials_of(make_table(Runs, rows)) == {"a": 3, "b": None}


def test_undefined_is_null_and_never_a_number(tmp_path, monkeypatch):
    frame = predictions()
    frame.loc[frame["split"] == "ood_test", "label"] = 0
    flat = run(tmp_path, monkeypatch, frame)
    assert flat["resnet18-scratch/opacity/ood_test/target/auroc"] is None
    assert "NaN" not in (tmp_path / "reports/metrics.json").read_text()


def test_flat_names_hold_exactly_five_parts():
    row = {"finding": "f", "split": "id_test", "group": "source", "metric": "auroc", "value": 0.5}
    table = make_table(
        Metrics,
        [
            {**row, "run": name, "num_images": 1, "num_patients": 1}
            for name in ("a-b", "a-b-seed3", "a-b-seed3-labels25-draw0", "a-seeded_b", "a-b-labels25")
        ],
    )
    assert sorted(flat_metrics(table)) == [
        f"{run}/f/id_test/source/auroc" for run in ("a-b-labels25", "a-b", "a-seeded_b")
    ]


BAD = {
    "logit must be finite": lambda frame: frame.assign(logit=np.where(frame.index == 3, np.inf, frame["logit"])),
    "must be the logistic function": lambda frame: frame.assign(probability=0.5),
    "unknown sites": lambda frame: frame.assign(site=frame["site"].replace("away", "elsewhere")),
    "must hold source sites only": lambda frame: frame.assign(site="away"),
    "patient must be in one split": lambda frame: frame.assign(patient_id="p"),
    "must cover the same images": lambda frame: frame.iloc[1:],
}


@pytest.mark.parametrize("constraint", BAD)
def test_bad_predictions_are_an_expected_error(tmp_path, monkeypatch, constraint):
    with pytest.raises(PipelineError, match=constraint) as caught:
        run(tmp_path, monkeypatch, BAD[constraint](predictions()))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PredictionsError)


def test_bad_predictions_end_in_a_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: run(tmp_path, monkeypatch, predictions().assign(site="away")) and None)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: predictions: id_val and id_test must hold source sites only; ")
    assert "Traceback" not in told


def test_evaluate_needs_no_torch():
    """A new metric never touches the GPU."""
    code = "import sys, pipeline.stages.evaluate; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
