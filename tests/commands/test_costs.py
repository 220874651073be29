"""costs: means over the trainings that were timed here, beside the AUROC of the same family; the rest is told."""

import pandas as pd
import pytest
import tiny

from pipeline.commands import costs
from pipeline.errors import PipelineError
from pipeline.tables.contract import make_table, write_table
from pipeline.tables.evaluation import Efficiency
from pipeline.tables.training import Runs
from pipeline.training.meter import Cost, write_cost

FAMILIES = {"scratch": None, "prototypes": 5}


@pytest.fixture
def study(tmp_path):
    runs, rows = [], []
    for method, shots in FAMILIES.items():
        for seed in (1, 2):
            name = f"net-{method}-seed{seed}"
            runs.append(
                {"run": name, "backbone": "net", "method": method, "seed": seed, "label_fraction": 1.0,
                 "shots": shots, "draw": 0, "model_sha256": name}
            )  # fmt: skip
            cost = Cost(10.0 * seed, "cpu", 1, 100.0 * seed if method == "scratch" else None, "")
            write_cost(cost, name, tmp_path / f".checkpoints/costs/{name}.json")
        for split, group, value in (("id_test", "source", 0.8), ("ood_test", "target", 0.7)):
            rows.append(
                {"run": f"net-{method}", "finding": "x", "split": split, "group": group, "curve": f"net-{method}",
                 "backbone": "net", "method": method, "budget": "all" if shots is None else "shots",
                 "label_fraction": 1.0, "shots": shots, "labelled_patients": 9.0, "value": value,
                 "ci_low": value - 0.1, "ci_high": value + 0.1}
            )  # fmt: skip
    write_table(Runs, runs, tmp_path / "runs.parquet")
    write_table(Efficiency, rows, tmp_path / "efficiency.parquet")
    return tmp_path


def call(study, monkeypatch):
    (study / "params.yaml").write_text("{}\n")
    tiny.call(
        monkeypatch, costs, runs=study / "runs.parquet", efficiency=study / "efficiency.parquet", out=study / "out",
        params=study / "params.yaml",
    )  # fmt: skip
    return pd.read_csv(study / "out/costs.csv")


def test_a_familys_mean_stands_beside_its_auroc(study, monkeypatch, capsys):
    table = call(study, monkeypatch).set_index(["run", "split"])
    assert len(table) == 4
    row = table.loc["net-scratch", "ood_test"]
    assert (row["seconds"], row["energy_joule"], row["value"], row["num_runs"]) == (15.0, 150.0, 0.7, 2)
    assert row["device_hours"] == pytest.approx(15 / 3600)
    assert table.loc["net-prototypes"]["energy_joule"].isna().all()
    assert "4 of 4 trainings were timed here" in capsys.readouterr().out
    assert (study / "out/costs-x.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_out_of_the_cache_or_resumed_has_no_time(study, monkeypatch, capsys):
    write_cost(Cost(1.0, "cpu", 1, None), "an older model", study / ".checkpoints/costs/net-scratch-seed1.json")
    write_cost(
        Cost(None, "cpu", 1, None, "resumed"),
        "net-prototypes-seed1",
        study / ".checkpoints/costs/net-prototypes-seed1.json",
    )
    table = call(study, monkeypatch)
    assert table["num_runs"].tolist() == [1] * 4
    assert table["seconds"].tolist() == [20.0] * 4
    assert "2 of 4" in capsys.readouterr().out


def test_nothing_timed_is_told_with_what_to_do(study, monkeypatch):
    for file in (study / ".checkpoints/costs").iterdir():
        file.unlink()
    with pytest.raises(PipelineError, match="none of the 4 models was trained on this machine"):
        call(study, monkeypatch)


def test_two_kinds_of_device_are_not_averaged():
    runs = pd.DataFrame(
        {"run": ["a", "b"], "backbone": "net", "method": "scratch", "label_fraction": 1.0, "shots": None,
         "device": ["cpu", "gpu"], "devices": 1, "seconds": [10.0, 1.0], "energy_joule": None}
    )  # fmt: skip
    row = {"run": "net-scratch", "finding": "x", "split": "id_test", "group": "source", "curve": "c", "backbone": "net",
           "method": "scratch", "budget": "all", "label_fraction": 1.0, "value": 0.5}  # fmt: skip
    table = costs.join(runs, make_table(Efficiency, [row]))
    assert table["seconds"].tolist() == [10.0, 1.0]
