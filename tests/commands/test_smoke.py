"""smoke: what it makes small, and what it refuses; end_to_end/test_teamwork.py runs it."""

import copy
from pathlib import Path

import pytest
import tiny

from pipeline.analysis.evaluation import EvaluateParams
from pipeline.commands import smoke
from pipeline.commands.smoke import overrides, reduced
from pipeline.errors import PipelineError
from pipeline.params import parse, read_params_file
from pipeline.simulation.spec import SimulatedSite
from pipeline.stages.finetune import FinetuneParams, load_method
from pipeline.stages.stress import StressParams
from pipeline.training.halving import SearchParams

ROOT = Path(__file__).parents[2]


def changed(params, small):
    tree = copy.deepcopy(params)
    for name, value in small.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node[part]  # a section that is not there is none of ours to make
        node[last] = value
    return tree


def test_the_demo_made_small_is_valid_and_the_same_study():
    params = read_params_file(ROOT / "params.yaml")
    small = changed(params, reduced(params))
    for site in small["sites"].values():
        assert parse(SimulatedSite, site["simulate"], "simulate").patients == 40
    assert parse(FinetuneParams, small["finetune"], "finetune").epochs == 1
    assert parse(SearchParams, small["search"], "search").epochs == [1]
    parse(StressParams, small["stress"], "stress")
    parse(EvaluateParams, small["evaluate"], "evaluate")
    for method, settings in small["methods"].items():
        parse(load_method(method).Params, settings, f"methods.{method}")
    for section in ("sites", "methods", "remedies", "backbones"):
        assert list(small[section]) == list(params[section])
    # The model that leaves must still be trained.
    assert {bundle["seed"] for bundle in params["handover"].values()} <= set(small["finetune"]["seeds"])


def test_what_params_lack_is_left_out_and_what_is_small_stays():
    params = {
        "sites": {"home": {"simulate": {}}},
        "preprocess": {"size_px": 16},
        "finetune": {"seeds": [5]},
        "methods": {
            "linear_probe": None,
            "scratch_converged": {"epochs": 40},
            "prototypes": {"shots": [2, 9], "draws": 5},
        },
    }
    small = reduced(params)
    assert small["preprocess.size_px"] == 16
    assert small["finetune.seeds"] == [5]
    assert {name: value for name, value in small.items() if name.startswith("methods.")} == {
        "methods.scratch_converged.epochs": 1,
        "methods.prototypes.shots": [2],
        "methods.prototypes.draws": 2,
    }
    assert not [name for name in small if name.startswith(("search", "stress", "diagnose", "membership"))]
    assert overrides({"a.b": [1, 2], "c": 0.5}) == ["--set-param", "++a.b=[1, 2]", "--set-param", "++c=0.5"]


def test_real_hospitals_and_missing_inputs_are_refused(tmp_path, monkeypatch):
    real = tiny.write_params(tmp_path / "params.yaml", sites={"home": {"simulate": {}}, "ward": {"root": "/archive"}})
    with pytest.raises(PipelineError, match=r"simulated hospitals; these are none: ward"):
        tiny.call(monkeypatch, smoke, params=real)
    params = tiny.write_params(
        tmp_path / "params.yaml", sites={"home": {"simulate": {"patients": 90}}}, preprocess={"size_px": 32}
    )
    with pytest.raises(PipelineError, match=r"data/weights, data/adapt, .*data/matrix_scores must be there"):
        tiny.call(monkeypatch, smoke, params=params)
