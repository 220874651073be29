"""A run that is killed, whenever, ends in the bytes that an undisturbed one makes (minutes: `make test-all`)."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from end_to_end.project import Project

pytestmark = pytest.mark.slow

KILLS = 20
TARGETS = ["ingest@home", "preprocess@home"]
# Stops the stage between the rename of its nth shard and that of the shard's card.
BETWEEN = """
import os, signal, sys
from pipeline.imaging import reuse
from pipeline.stages import preprocess
real, left = reuse.keep, [{number}]
def keep(*arguments):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    real(*arguments)
preprocess.keep = keep
sys.argv[0] = "preprocess"
preprocess.main()
"""


def repro(project: Project) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *TARGETS], cwd=project.folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def outputs(project: Project) -> dict[str, bytes]:
    return {
        os.fspath(path.relative_to(project.folder)): path.read_bytes()
        for name in ("data/ingest", "data/images")
        for path in sorted((project.folder / name).rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A site of some hundred images in small shards, so that there is something to interrupt."""
    made = Project.create(tmp_path)
    params = made.params
    params["sites"]["home"]["simulate"]["patients"] = 150
    made.params = params
    store = tmp_path / "pipeline/imaging/store.py"
    text = store.read_text()
    assert "SHARD_BYTES = 256 * 2**20" in text
    store.write_text(text.replace("SHARD_BYTES = 256 * 2**20", "SHARD_BYTES = 8 * 32 * 32"))
    return made


def test_killed_at_random_moments(project: Project):
    start = time.monotonic()
    assert repro(project).wait() == 0
    whole = time.monotonic() - start
    expected, lock = outputs(project), (project.folder / "dvc.lock").read_bytes()
    assert len([name for name in expected if "planes-" in name]) > 15
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    print(f"seed {seed}; undisturbed {whole:.1f} s")
    finished = 0
    for number in range(KILLS):
        if number % 5 == 0:  # from nothing, and on what the last one left
            shutil.rmtree(project.folder / ".checkpoints", ignore_errors=True)
            shutil.rmtree(project.folder / "data/images", ignore_errors=True)
            shutil.rmtree(project.folder / "data/ingest", ignore_errors=True)
            shutil.rmtree(project.folder / ".dvc/cache", ignore_errors=True)
        running = repro(project)
        time.sleep(moments.uniform(0.3, whole))
        finished += running.poll() is not None
        with contextlib.suppress(ProcessLookupError):  # it has finished
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert finished < KILLS
    assert repro(project).wait() == 0
    assert outputs(project) == expected
    assert (project.folder / "dvc.lock").read_bytes() == lock


@pytest.mark.parametrize("number", [0, 3])
def test_killed_between_a_shard_and_its_card(project: Project, number: int):
    assert repro(project).wait() == 0
    expected = outputs(project)
    shutil.rmtree(project.folder / ".checkpoints/preprocess")
    shutil.rmtree(project.folder / "data/images/home")
    command = ["--site", "home", "--ingest", "data/ingest/home", "--manifest", "data/manifests/home.parquet",
               "--out", "data/images/home"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.fspath(project.folder)}
    killed = subprocess.run(
        [sys.executable, "-c", BETWEEN.format(number=number), *command], cwd=project.folder, env=environment,
        capture_output=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    (folder,) = (project.folder / ".checkpoints/preprocess").glob("home-*")
    assert len(list(folder.glob("*.npy"))) == len(list(folder.glob("*.json"))) + 1
    assert repro(project).wait() == 0
    assert outputs(project) == expected
