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
from pipeline.tables.choice import RankCorrelations, SearchOutcome, SearchRungs, TransferScores
from pipeline.tables.contract import make_table, read_table, write_table
from pipeline.tables.evaluation import (
    Calibration,
    Efficiency,
    LabelSavings,
    Metrics,
    Overfitting,
    SeedSpread,
    Thresholds,
    Verdicts,
)
from pipeline.tables.files import Instances
from pipeline.tables.mismatch import Mismatch
from pipeline.tables.predictions import Predictions
from pipeline.tables.protocol import Openings, Protocols
from pipeline.tables.training import Curves, Distances, Runs


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


def run(tmp_path, monkeypatch, frame, runs=None, evaluate_params=None, **places):
    write_table(Predictions, frame, tmp_path / "predict/predictions.parquet")
    write_table(Runs, runs_of(frame) if runs is None else runs, tmp_path / "predict/runs.parquet")
    curves = [
        {"run": name, "phase": "all", "epoch": 0, "train_loss": 0.25, "id_val_loss": 0.5, "kept": True}
        for name in sorted(set(frame["run"]))
    ]
    write_table(Curves, curves, tmp_path / "predict/curves.parquet")
    distances = [
        {
            "run": name,
            "site": "east",
            "mmd2": 0.1,
            "p_value": 0.01,
            "home_mmd2": 0.0,
            "num_images": 9,
            "num_patients": 5,
        }
        for name in sorted(set(frame["run"]))
    ]
    write_table(Distances, distances, tmp_path / "predict/distances.parquet")
    settings = {"resamples": 100, "seed": 1, **(evaluate_params or {})}
    remedies = {"bn": {"base": "seed_probe"}}
    path = tiny.write_params(
        tmp_path / "params.yaml", verdict={"margin": 0.05}, evaluate=settings, remedies=remedies,
        backbones={"resnet18": {"weights": "IMAGENET1K_V1"}},
    )  # fmt: skip
    metrics = tmp_path / "reports/metrics.json"
    tiny.call(
        monkeypatch,
        evaluate,
        predict=tmp_path / "predict",
        out=tmp_path / "out",
        metrics=metrics,
        params=path,
        **places,
    )
    return json.loads(metrics.read_text())


def test_three_tables_and_the_flat_file_agree(tmp_path, monkeypatch):
    flat = run(tmp_path, monkeypatch, predictions())
    table = read_table(Metrics, tmp_path / "out/metrics.parquet")
    assert len(read_table(Thresholds, tmp_path / "out/thresholds.parquet")) == 4
    assert len(read_table(SeedSpread, tmp_path / "out/spread.parquet"))
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


def test_the_baseline_and_remedies_join_and_are_no_part_of_what_training_is_told_of(tmp_path, monkeypatch):
    frame = predictions()
    plain = frame[frame["method"] == "seed_probe"]
    bare = plain[plain["seed"] == 1].assign(
        run="no_pixels-logistic-seed0", backbone="no_pixels", method="logistic", seed=0
    )
    write_table(Predictions, bare, tmp_path / "baseline/predictions.parquet")
    adapted = plain.assign(run=plain["run"] + "-adapt_bn", adaptation="bn")
    write_table(Predictions, adapted, tmp_path / "adapt/resnet18-bn/predictions.parquet")
    write_table(Predictions, adapted, tmp_path / "adapt/resnet18-gone/predictions.parquet")
    places = {"baseline": tmp_path / "baseline", "adapt": tmp_path / "adapt"}
    flat = run(tmp_path, monkeypatch, frame, **places)
    assert flat["resnet18-seed_probe-bn/opacity/ood_test/target/auroc_minus_plain"] == 0
    assert "resnet18-scratch/opacity/ood_test/target/auroc_minus_no_pixels" in flat
    assert not (tmp_path / "adapt/resnet18-gone").exists()
    out = tmp_path / "out"
    families = {"resnet18-scratch", "resnet18-seed_probe"}
    assert set(read_table(Efficiency, out / "efficiency.parquet")["run"]) == families
    assert set(read_table(Overfitting, out / "overfitting.parquet")["run"]) == families
    verdicts = read_table(Verdicts, out / "verdicts.parquet")
    assert set(zip(verdicts["run"], verdicts["against"], strict=True)) == {
        ("resnet18-seed_probe", "scratch"),
        ("resnet18-seed_probe-bn", "seed_probe"),
    }
    # Without them every other row is as it was.
    before = read_table(Metrics, out / "metrics.parquet")
    run(tmp_path, monkeypatch, frame)
    alone = read_table(Metrics, out / "metrics.parquet")
    kept = before[before["run"].isin(set(alone["run"])) & (before["metric"] != "auroc_minus_no_pixels")]
    pd.testing.assert_frame_equal(kept.reset_index(drop=True), alone, check_exact=True)


def instances(frame, **columns):
    images = frame[["image_id", "patient_id", "site"]].drop_duplicates().reset_index(drop=True)
    fixed = {"source_id": images["image_id"], "frame": 0, "study_id": "s", "rows": 1, "columns": 1, "source_hmac": "h"}
    return images.assign(**fixed, **columns)


def test_domains_and_subgroups_are_read_from_instances(tmp_path, monkeypatch):
    frame = predictions()
    known = instances(frame, transfer_syntax="1.2.840.10008.1.2.1", sex="F")
    known.loc[known.index % 2 == 0, "sex"] = None
    for site, part in known.groupby("site"):
        write_table(Instances, part, tmp_path / f"ingest/{site}/instances.parquet")
    wanted = {"domains": ["transfer_syntax"], "subgroups": ["sex"]}
    flat = run(tmp_path, monkeypatch, frame, evaluate_params=wanted, ingest=tmp_path / "ingest")
    # A dot would be a level of its own to DVC.
    assert "resnet18-scratch/opacity/ood_test/transfer_syntax=1_2_840_10008_1_2_1/brier" in flat
    assert "resnet18-scratch/opacity/id_test/sex=(missing)/auroc" in flat
    groups = set(read_table(Metrics, tmp_path / "out/metrics.parquet")["group"])
    assert {"transfer_syntax=1.2.840.10008.1.2.1", "sex=F", "sex=(missing)", "worst_sex"} <= groups
    with pytest.raises(PipelineError, match="give --ingest"):
        run(tmp_path, monkeypatch, frame, evaluate_params=wanted)
    with pytest.raises(PipelineError, match=r"no column \['gender'\]; known: age_band, .*sex"):
        run(tmp_path, monkeypatch, frame, evaluate_params={"subgroups": ["gender+sex"]})


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


def test_an_opening_is_recorded_once_and_again_when_params_change(tmp_path, monkeypatch):
    log = tmp_path / "openings.csv"
    run(tmp_path, monkeypatch, predictions(), openings=log)
    first = log.read_bytes()
    run(tmp_path, monkeypatch, predictions(), openings=log)
    assert log.read_bytes() == first
    (row,) = read_table(Protocols, tmp_path / "out/protocol.parquet").to_dict("records")
    assert row["statement"] == "no protocol was declared: exploratory; test labels opened once"
    run(tmp_path, monkeypatch, predictions(), openings=log, evaluate_params={"resamples": 101})
    openings = read_table(Openings, tmp_path / "out/openings.parquet")
    assert openings["opening"].tolist() == [1, 2]
    assert "params" in openings["reason"].iloc[1]


def test_scores_and_the_search_stand_beside_what_training_gave(tmp_path, monkeypatch):
    score = {"backbone": "resnet18", "finding": "opacity", "score": "log_me", "value": 0.5, "num_images": 9, "note": ""}
    write_table(TransferScores, [score], tmp_path / "choice/scores.parquet")
    rung = {"rung": 0, "epochs": 1, "backbone": "resnet18", "kept": True, "note": ""}
    rungs = [
        {**rung, "method": "seed_probe", "id_val_loss": 0.4},
        {**rung, "method": "scratch", "id_val_loss": 0.6, "kept": False},
    ]
    write_table(SearchRungs, rungs, tmp_path / "search/rungs.parquet")
    flat = run(tmp_path, monkeypatch, predictions(), choice=tmp_path / "choice", search=tmp_path / "search")
    correlations = read_table(RankCorrelations, tmp_path / "out/rank_correlations.parquet")
    assert correlations["spearman"].isna().all()  # one backbone ranks nothing
    assert set(correlations["method"]) == {"scratch", "seed_probe"}
    outcome = read_table(SearchOutcome, tmp_path / "out/search_outcome.parquet").set_index(["split", "metric"])
    found = outcome.loc["ood_test", "auroc"]
    assert (found["method"], found["num_families"]) == ("seed_probe", 2)
    assert found["value"] == pytest.approx(flat["resnet18-seed_probe/opacity/ood_test/target/auroc"])
    mismatch = read_table(Mismatch, tmp_path / "out/mismatch.parquet")
    assert set(mismatch["run"]) == {"resnet18-scratch", "resnet18-seed_probe"}
