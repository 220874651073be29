"""The planner as a command: what it prints, and what it refuses."""

import sys

import pytest

from pipeline.commands import plan
from pipeline.metrics.planning import Cohort, auroc_width, patients_needed
from pipeline.params import ParamsError

PLAIN = ["--auroc", "0.8", "--sensitivity", "0.7", "--prevalence", "0.2", "--width", "0.1"]


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["plan", *PLAIN, *arguments])
    plan.main()
    return capsys.readouterr().out.splitlines()


def test_it_prints_the_numbers(monkeypatch, capsys):
    head, area, sensitivity = call(monkeypatch, capsys, "--images", "3", "--correlation", "0.6")
    assert head == "95 % interval of width 0.1, prevalence 0.2:"
    needed = patients_needed(lambda n: auroc_width(n, 0.8, Cohort(0.2, 3, 0.6)), 0.1)
    assert area == f"AUROC 0.8: {needed} patients, {round(needed * 0.2)} of them with the finding"
    assert sensitivity.startswith("sensitivity 0.7: 1,")


def test_what_cannot_be_reached_is_said(monkeypatch, capsys):
    _, area, _ = call(monkeypatch, capsys, "--width", "0.000001")
    assert area == "AUROC 0.8: not within 1e-06 with 10,000,000 patients"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--auroc", "1"), ("--prevalence", "0"), ("--width", "-0.1"), ("--correlation", "1.5"), ("--images", "0.5")],
)
def test_what_is_out_of_range_is_refused(monkeypatch, capsys, option, value):
    with pytest.raises(ParamsError, match=f"{option} must .*; got {value}"):
        call(monkeypatch, capsys, option, value)
