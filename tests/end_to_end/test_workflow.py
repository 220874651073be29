"""The GitHub workflow's steps, executed: a planted regression turns its gate red, noise does not.

The graph is a toy of one stage, so that this costs seconds; `test_teamwork.py` has the real one.
"""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from end_to_end.project import ROOT
from end_to_end.workflow import load, run_job
from ruamel.yaml import YAML

WORKFLOW = ROOT / ".github/workflows/regression.yml"
AUROC = "net-lp_ft/opacity/ood_test/target/auroc"

# --- what it says --------------------------------------------------------------------------------------------


def test_every_action_is_pinned_every_job_bounded_and_no_job_may_write_but_one():
    workflow = load(WORKFLOW)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 120
        assert job.get("permissions", {}) == ({"pull-requests": "write"} if name == "comment" else {})
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", step["uses"])
            else:
                # An expression in a script is code of whoever names a branch; values come by the environment.
                assert "${{" not in step["run"]
    # The job that may write runs nothing of the pull request, and no secret meets one from a fork (GitHub gives none).
    assert not any("checkout" in step.get("uses", "") for step in workflow["jobs"]["comment"]["steps"])
    assert "pull_request_target" not in workflow["on"]


# --- what it does --------------------------------------------------------------------------------------------

STAGE = """
    import json
    from pathlib import Path
    from pipeline.tables.contract import write_table
    from pipeline.tables.training import Runs

    value = float(Path("pipeline/quality.txt").read_text())
    Path("reports").mkdir(exist_ok=True)
    Path("reports/metrics.json").write_text(json.dumps({"%s": value}))
    run = {"run": "net-lp_ft-seed1", "backbone": "net", "method": "lp_ft"}
    run |= {"initialisation": "file", "weights_name": "w"}
    write_table(Runs, [run], Path("data/predict/runs.parquet"))
"""
GRAPH = {
    "stages": {
        "evaluate": {
            "cmd": "PYTHONPATH=. python stage.py",
            "deps": ["stage.py", "pipeline/quality.txt"],
            "outs": ["data/predict"],
            "metrics": ["reports/metrics.json"],
        }
    }
}
PARAMS = {
    "sites": {"home": {"adapter": "dicom_folder", "simulate": {"patients": 90}}},
    "privacy": {"key": "public", "key_fingerprint": "72c7f20e1eb5bcc2", "remote": None},
    "inventory": {"hash": True},
    "gate": {"tolerances": {"auroc": 0.1}},
}


def git(folder: Path, *arguments: str) -> None:
    settings = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True)


def run(folder: Path, *command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": "."}
    subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, check=True, capture_output=True)


def make_environment(checkout: Path) -> None:
    """A `.venv` of links to the tests' own, newer than requirements.lock, so that `make setup` has nothing to do."""
    own = checkout / ".venv"
    own.mkdir()
    for name in ("bin", "lib"):
        (own / name).symlink_to(Path(sys.prefix) / name)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", own)
    shutil.copyfile(checkout / "requirements.lock", own / "requirements.lock")


@pytest.fixture
def upstream(tmp_path):
    """A repository with its results in a remote and a baseline; its one stage makes an AUROC of 0.80."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__", "dvc.*"))
    for name in ("Makefile", ".gitignore", ".dvcignore", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "pipeline/quality.txt").write_text("0.80\n")
    (folder / "stage.py").write_text(textwrap.dedent(STAGE % AUROC))
    for name, tree in (("dvc.yaml", GRAPH), ("params.yaml", PARAMS)):
        with (folder / name).open("w") as file:
            YAML().dump(tree, file)
    # Nothing to bring, and nothing to import torch for: what these two do is tested elsewhere.
    (folder / "pipeline/commands/fetch_weights.py").write_text("")
    (folder / "pipeline/commands/inventory.py").write_text("")
    git(folder, "init", "--quiet", "--initial-branch=main")
    run(folder, "dvc", "init", "--quiet")
    run(folder, "dvc", "repro", "--quiet")
    run(folder, "pipeline.commands.gate", "--update")
    run(folder, "dvc", "remote", "add", "--local", "--default", "there", str(tmp_path / "remote"))
    run(folder, "dvc", "push", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "results")
    return folder


def runner(tmp_path: Path) -> dict[str, str]:
    """The environment of a runner: a home of its own, and a `gh` that writes down what it is told."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "gh").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/gh.txt\ncat comment.md >> {tmp_path}/gh.txt\n')
    (tools / "gh").chmod(0o755)
    return {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path / "home"), "LANG": "C.UTF-8"}


def regression(tmp_path, upstream, turn):
    """The job `regression` in a fresh clone, and `comment` after it."""
    workflow = load(WORKFLOW)
    checkout = tmp_path / turn / "checkout"
    checkout.parent.mkdir()
    git(tmp_path, "clone", "--quiet", str(upstream), str(checkout))
    make_environment(checkout)
    context = {
        "vars.DVC_REMOTE_URL": str(tmp_path / "remote"),
        "vars.DVC_PLUGIN": "",
        "vars.STUDY": "",
        "secrets.AWS_ACCESS_KEY_ID": "",
        "secrets.AWS_SECRET_ACCESS_KEY": "",
        "github.token": "token",
        "github.repository": "lab/study",
        "github.event.pull_request.number": "7",
    }
    judged = run_job(workflow, "regression", checkout, context, runner(tmp_path))
    if judged.outputs.get("judged") == "yes":
        away = tmp_path / turn / "elsewhere"
        away.mkdir()
        shutil.copy(checkout / "gate.md", away)  # the artifact
        assert run_job(workflow, "comment", away, context, runner(tmp_path)).green
    return judged


def commit(upstream, name, value):
    (upstream / "pipeline/quality.txt").write_text(f"{value}\n")
    git(upstream, "commit", "--quiet", "-a", "-m", name)


def test_a_planted_regression_turns_it_red_and_noise_does_not(tmp_path, upstream):
    """What a commit changed is computed, judged and commented on."""
    for turn, value, code in (("noise", "0.74", 0), ("planted", "0.62", 1)):
        commit(upstream, turn, value)
        done = regression(tmp_path, upstream, turn)
        assert list(done.codes) == ["Environment", "Remote", "Restore and reproduce", "Gate"], done.printed
        assert "Running stage 'evaluate'" in done.printed
        assert list(done.codes.values()) == [0, 0, 0, code], done.printed
        told = (tmp_path / "gh.txt").read_text()
        assert "pr comment 7 --edit-last --create-if-none --body-file comment.md\n**Gate " in told
        if code == 0:
            assert done.summary.startswith("**Gate passed**: 1 metrics")
    row = f"| {AUROC} | 0.8000 | 0.6200 | 0.1800 | 0.1000 |"
    assert row in done.summary
    assert row in told


@pytest.mark.slow
def test_a_clean_clone_computes_nothing_and_a_gate_that_cannot_judge_is_red_without_a_comment(tmp_path, upstream):
    same = regression(tmp_path, upstream, "same")
    assert same.green, same.printed
    assert "Running stage" not in same.printed
    assert "2 files fetched" in same.printed
    (tmp_path / "gh.txt").unlink()
    (upstream / "baseline.json").unlink()
    git(upstream, "commit", "--quiet", "-a", "-m", "no baseline")
    done = regression(tmp_path, upstream, "without")
    assert done.codes["Gate"] == 2
    assert "baseline.json is not there" in done.printed
    assert done.outputs == {}
    assert not (tmp_path / "gh.txt").exists()
