"""Two processes are one, to rounding, where batch-norm allows it; started by torchrun and by the stage itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import distributed_worker

from pipeline.params import ParamsError
from pipeline.training.determinism import ComputeParams, make_fabric

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("distributed_worker.py")


def run(tmp_path, processes, batch_norm, fault="none", launcher=()):
    out = tmp_path / f"{processes}-{batch_norm}-{fault}.pt"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(WORKER), str(processes), batch_norm, fault, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


def torchrun(processes):
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def furthest(one, other):
    return max(
        float((value.double() - other["state"][key].double()).abs().max()) for key, value in one["state"].items()
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """In this process, which has torch imported."""
    out = tmp_path_factory.mktemp("alone") / "alone.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(WORKER), "1", "frozen", "none", str(out)])
        distributed_worker.main()
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("how", [pytest.param("torchrun", marks=pytest.mark.slow), "by itself"])
def test_two_processes_are_one_with_the_double_batch(tmp_path, alone, how):
    """An odd number of images, an unlabelled one, shares of unequal size."""
    both = run(tmp_path, 2, "frozen", launcher=torchrun(2) if how == "torchrun" else ())
    assert furthest(alone, both) < 1e-4
    assert both["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    assert both["logits"].shape == (7, 1)
    torch.testing.assert_close(both["logits"], alone["logits"], atol=1e-3, rtol=0)


@pytest.mark.slow
def test_a_wrong_share_of_the_loss_would_be_seen(tmp_path, alone):
    wrong = run(tmp_path, 2, "frozen", fault="own_images")
    assert abs(wrong["loss"] - alone["loss"]) > 0.1


@pytest.mark.slow
def test_plain_batch_norm_is_another_training(tmp_path):
    """Why it is refused: the same three steps end visibly elsewhere."""
    one, two = run(tmp_path, 1, "train"), run(tmp_path, 2, "each", launcher=torchrun(2))
    assert furthest(one, two) > 0.01


def test_another_number_of_processes_than_params_say_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ParamsError, match="2 devices on 2 nodes make 4 processes; there are 3"):
        make_fabric(ComputeParams(accelerator="cpu", devices=2, nodes=2), together=True)
