"""The stage: its table, the same bytes again, and a patient on two sides of a split."""

from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import tiny
from stages import small_sites

from pipeline.stages import controls
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.controls import Controls
from pipeline.tables.diagnosis import Embedded
from pipeline.tables.predictions import Predictions


@pytest.fixture
def folder(tmp_path):
    return small_sites.build(tmp_path)


def run(folder, monkeypatch):
    params = tiny.write_params(
        folder / "params.yaml",
        split={"seed": 1, "source": ["home"], "target": ["away", "poor"]},
        backbones={"net": {}},
        controls={"permutations": 12, "seed": 1, "resamples": 100},
        verdict={"margin": 0.05},
        versions={name: version(name) for name in ("numpy", "scikit-learn", "scipy")},
    )
    paths = {name: folder / name for name in ("embed", "predict", "labels")}
    tiny.call(monkeypatch, controls, **paths, out=folder / "out", params=params)
    return read_table(Controls, folder / "out/controls.parquet").set_index(["control", "run", "split"])


def test_table(folder, monkeypatch):
    """Features that tell the label plainly, and 24 images a split: nothing is found where there is nothing."""
    path = folder / "predict/predictions.parquet"
    rows = read_table(Predictions, path)
    scratch = [rows.assign(method="scratch", seed=n, run=f"net-scratch-seed{n}") for n in (1, 2, 3, 4)]
    noise = np.random.default_rng(0).normal(size=4)
    scratch = [
        part.assign(logit=part["logit"] + n * np.cos(np.arange(len(part))))
        for part, n in zip(scratch, noise, strict=True)
    ]
    write_table(Predictions, pd.concat([rows, *(part.drop_duplicates("image_id") for part in scratch)]), path)
    found = run(folder, monkeypatch)
    for split in ("id_test", "ood_test"):
        one = found.loc[("permuted_labels", "net-linear_probe", split)]
        assert one["verdict"] == "passed"
        assert one["ci_low"] < 0.5 < one["ci_high"]
        assert one["num_runs"] == 12
        twice = found.loc[("same_method_twice", "net-scratch", split)]
        assert (twice["verdict"], twice["num_runs"]) == ("passed", 2)
        assert twice["outcome"] in ("undecided", "equivalent")
    assert found.loc[("permuted_labels", "net-linear_probe", "ood_test"), "num_patients"] == 24  # poor has no labels
    assert len(found) == 4  # two seeds of probe are too few, and not asked for
    before = (folder / "out/controls.parquet").read_bytes()
    run(folder, monkeypatch)
    assert (folder / "out/controls.parquet").read_bytes() == before


def test_a_patient_on_two_sides_of_the_split_raises_an_alarm(folder, monkeypatch):
    path = folder / "embed/net/index.parquet"
    index = read_table(Embedded, path)
    of_train = index.loc[index["split"] == "train", ["patient_id", "row"]].to_numpy()
    features = np.load(folder / "embed/net/features.npy")
    features = np.concatenate([features, np.eye(len(features), dtype=np.float32) * 3], axis=1)
    tested = (index["split"] == "id_test").to_numpy(bool)
    features[index.loc[tested, "row"]] = features[of_train[:, 1].astype(int)]
    np.save(folder / "embed/net/features.npy", features)
    index.loc[tested, "patient_id"] = of_train[:, 0]
    write_table(Embedded, index, path)
    found = run(folder, monkeypatch)
    assert found.loc[("permuted_labels", "net-linear_probe", "id_test"), "verdict"] == "alarm"
    assert found.loc[("permuted_labels", "net-linear_probe", "id_test"), "value"] > 0.7
    assert found.loc[("permuted_labels", "net-linear_probe", "ood_test"), "verdict"] == "passed"
    scratch = found.loc["same_method_twice"] if "same_method_twice" in found.index else []
    assert len(scratch) == 0  # this study has none
