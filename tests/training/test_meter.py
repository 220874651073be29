"""Seconds and energy: what a counter says, and null with the reason where none does."""

import time

import pytest
import torch

from pipeline.training.meter import Meter, read_cost, write_cost

CPU = torch.device("cpu")


def packages(folder, **microjoules):
    for name, value in microjoules.items():
        (folder / name.replace("_", ":")).mkdir(exist_ok=True)
        (folder / name.replace("_", ":") / "energy_uj").write_text(f"{value}\n")


def test_energy_is_the_difference_over_all_packages_and_no_core_twice(tmp_path):
    packages(tmp_path, **{"intel-rapl_0": 1_000_000, "intel-rapl_0_0": 900_000, "intel-rapl_1": 5_000_000})
    meter = Meter(CPU, rapl=tmp_path)
    time.sleep(0.05)
    packages(tmp_path, **{"intel-rapl_0": 3_000_000, "intel-rapl_0_0": 2_000_000, "intel-rapl_1": 5_500_000})
    cost = meter.stop()
    assert cost.energy_joule == pytest.approx(2.5)
    assert cost.seconds >= 0.05
    assert (cost.device, cost.devices, cost.note) == ("cpu", 1, "")


def test_a_counter_that_began_anew_is_no_energy(tmp_path):
    packages(tmp_path, **{"intel-rapl_0": 9_000_000})
    meter = Meter(CPU, rapl=tmp_path)
    packages(tmp_path, **{"intel-rapl_0": 1_000_000})
    cost = meter.stop()
    assert cost.energy_joule is None
    assert "no count of energy" in cost.note


@pytest.mark.parametrize(
    ("options", "seconds", "text"),
    [({}, True, "no count of energy"), ({"devices": 2}, True, "single devices"), ({"resumed": True}, False, "resumed")],
)
def test_what_is_unknown_is_null_with_the_reason(tmp_path, options, seconds, text):
    cost = Meter(CPU, rapl=tmp_path / "none", **options).stop()
    assert cost.energy_joule is None
    assert (cost.seconds is not None) == seconds
    assert text in cost.note


def test_a_cost_is_read_as_it_was_written(tmp_path):
    cost = Meter(CPU, rapl=tmp_path).stop()
    write_cost(cost, "abc", tmp_path / "costs/run.json")
    assert read_cost(tmp_path / "costs/run.json") == (cost, "abc")
    assert read_cost(tmp_path / "costs/other.json") is None
