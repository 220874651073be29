"""DVCLive's files hold every epoch of every phase, and come out alike however often a run was told anew."""

import csv
import hashlib

import pytest

from pipeline.training.live import live_curves
from pipeline.training.loop import Epoch

ROWS = [
    Epoch("head, rate 0.1", 0, 0.9, 0.8, 0.1),
    Epoch("head, rate 0.1", 1, 0.7, 0.6, 0.05),
    Epoch("finetune", 0, 0.5, float("nan"), 0.01),
]


def test_every_epoch_of_every_phase(tmp_path):
    with live_curves(tmp_path / "live") as told:
        for row in ROWS:
            told(row)
    found = {}
    for path in sorted((tmp_path / "live/plots/metrics").rglob("*.tsv")):
        with path.open() as file:
            lines = list(csv.DictReader(file, delimiter="\t"))
        curve = path.stem
        found[path.parent.name, curve] = [(int(line["step"]), float(line[curve])) for line in lines]
    assert found["1-head_rate_0_1", "train_loss"] == [(0, 0.9), (1, 0.7)]
    assert found["1-head_rate_0_1", "id_val_loss"] == [(0, 0.8), (1, 0.6)]
    assert found["2-finetune", "train_loss"] == [(0, 0.5)]
    assert found["2-finetune", "id_val_loss"] == [(0, pytest.approx(float("nan"), nan_ok=True))]
    assert len(found) == 4


def test_what_a_killed_run_left_is_replaced_by_the_same_bytes(tmp_path):
    def bytes_of(folder):
        return {
            path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }

    with live_curves(tmp_path / "whole") as told:
        for row in ROWS:
            told(row)
    with live_curves(tmp_path / "twice") as told:
        told(ROWS[0])
    with live_curves(tmp_path / "twice") as told:
        for row in ROWS:
            told(row)
    assert bytes_of(tmp_path / "twice") == bytes_of(tmp_path / "whole")


def test_a_run_without_epochs_leaves_nothing(tmp_path):
    with live_curves(tmp_path / "live"):
        pass
    assert not (tmp_path / "live").exists()
    with live_curves(None) as told:
        told(ROWS[0])
