"""The settings that results hang on are really set."""

import os

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from threadpoolctl import threadpool_info

from pipeline.training.determinism import ComputeParams, make_fabric, memory_format


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    make_fabric(ComputeParams(threads=1, accelerator="cpu"))


@pytest.mark.parametrize("threads", [2, 1])
def test_threads_and_deterministic_algorithms(threads):
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    fabric = make_fabric(ComputeParams(threads=threads, accelerator="cpu"))
    assert fabric.device == torch.device("cpu")
    assert torch.get_num_threads() == threads
    assert all(pool["num_threads"] <= threads for pool in threadpool_info())
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    np.ones((4, 4)) @ np.ones((4, 4))


def test_a_workspace_that_was_chosen_outside_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_fabric(ComputeParams(threads=1, accelerator="cpu"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_layouts():
    assert memory_format(ComputeParams()) is torch.contiguous_format
    assert memory_format(ComputeParams(channels_last=True)) is torch.channels_last


@pytest.mark.parametrize("bad", [{"threads": 0}, {"precision": "16-mixed"}, {"accelerator": "tpu"}, {"batch_size": 0}])
def test_other_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        ComputeParams(**bad)
