"""Several people, machines and processes on one study: the remote, experiments, an array of jobs, the workflow.

Real runs of a tiny cohort in a git repository (minutes: `make test-all`).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from end_to_end.project import BACKBONE, ROOT, Project
from end_to_end.test_workflow import git, make_environment, runner
from end_to_end.workflow import load, run_job

from pipeline.commands.smoke import OUTSIDE

pytestmark = pytest.mark.slow

TRAINED = ("scratch", "linear_probe")


def dvc(folder: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": ".", "DVC_NO_ANALYTICS": "1"},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def own_site_cache(folder: Path) -> None:
    (folder / ".dvc/config.local").write_text(f"[core]\n    site_cache_dir = {folder}.site\n")


def clone(origin: Path, folder: Path, remote: Path) -> Path:
    git(origin, "clone", "--quiet", str(origin), str(folder))
    own_site_cache(folder)
    dvc(folder, "remote", "add", "--quiet", "--local", "--default", "there", str(remote))
    return folder


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A repository whose results are committed and pushed to the remote beside it."""
    folder = tmp_path_factory.mktemp("team") / "upstream"
    project = Project.create(folder)
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    own_site_cache(folder)
    for name in (".gitignore", "Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "user.name", "test")
    git(folder, "config", "user.email", "test@example.org")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "before")  # DVCLive wants one
    project.repro()
    project.run("pipeline.commands.gate", "--update")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "results")
    dvc(folder, "remote", "add", "--quiet", "--local", "--default", "there", str(folder.parent / "remote"))
    dvc(folder, "push", "--quiet")
    return folder


@pytest.fixture
def team(upstream, tmp_path):
    return clone(upstream, tmp_path / "clone", upstream.parent / "remote")


def files(folder: Path) -> dict[str, bytes]:
    return {
        os.fspath(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "reports").rglob("*"))
        if path.is_file()
    }


def test_a_clean_clone_restores_the_study_and_runs_nothing(upstream, team, capsys):
    make_environment(team)
    start = time.monotonic()
    done = subprocess.run(["make", "restore"], cwd=team, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with capsys.disabled():
        print(f"\nrestored in {time.monotonic() - start:.0f} s")
    assert "Running stage" not in done.stdout
    assert files(team) == files(upstream)
    assert (team / "reports/html/index.html").is_file()
    assert subprocess.run(["git", "status", "--short"], cwd=team, capture_output=True, text=True).stdout == ""


def test_a_part_comes_alone(team):
    dvc(team, "pull", "report")
    assert (team / "reports/html/index.html").is_file()
    assert not (team / "data").exists()
    dvc(team, "pull", "evaluate", "plots")
    assert "auroc" in dvc(team, "metrics", "show", "--json")
    dvc(team, "plots", "show", "--out", "shown")
    assert (team / "shown/index.html").is_file()


def test_a_changed_page_is_made_from_what_was_pulled_without_archive_or_weights(team):
    dvc(team, "pull")
    Project(team).run("pipeline.commands.prune")  # the folder of remedies, where there are none
    shutil.rmtree(team / "data/cohort")
    path = team / "pipeline/reporting/html.py"
    path.write_text(path.read_text() + "\n# a remark\n")
    told = dvc(team, "repro", "--downstream", "report")
    assert "Running stage 'report'" in told
    assert "Running stage 'evaluate'" not in told


def test_what_must_not_be_passed_on_is_not_in_the_remote(upstream, tmp_path):
    """privacy.remote: never, the same study: no output with rows or pixels is pushed, and pull says what it lacks."""
    folder = tmp_path / "private"
    shutil.copytree(upstream, folder, symlinks=True)
    own_site_cache(folder)
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    project = Project(folder)
    params = project.params
    params["privacy"]["remote"] = "never"
    project.params = params
    # The results are there: only where they may go has changed, which no stage depends on but those that read privacy.
    dvc(folder, "commit", "--quiet", "--force")
    dvc(folder, "remote", "add", "--quiet", "--local", "--default", "elsewhere", str(tmp_path / "elsewhere"))
    told = dvc(folder, "push", check=False)
    pushed = {path.parent.name + path.name for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()}
    lock = project.yaml.load(folder / "dvc.lock")
    hashes = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"] if "md5" in out}
    private = ("data/ingest", "data/labels", "data/images", "data/split", "data/gather", "data/models", "data/predict")
    kept = {path: oid for path, oid in hashes.items() if path.startswith((*private, "reports/html", "reports/plots"))}
    assert len(kept) > 12
    for path, oid in kept.items():
        tree = json.loads((folder / ".dvc/cache/files/md5" / oid[:2] / oid[2:]).read_text())
        assert not pushed & {oid, *(entry["md5"] for entry in tree)}, f"{path} was pushed"
    assert hashes["reports/metrics.json"] in pushed, told


# --- experiments ---------------------------------------------------------------------------------------------


def test_experiments_run_in_place_queued_and_apart_and_stand_side_by_side(upstream, tmp_path):
    folder = tmp_path / "experiments"
    shutil.copytree(upstream, folder, symlinks=True)
    own_site_cache(folder)
    lock = (folder / "dvc.lock").read_bytes()
    outside = [option for path in OUTSIDE for option in ("--copy-paths", path)]
    told = dvc(folder, "exp", "run", "--temp", "--name", "apart", "--set-param", "evaluate.specificity=0.7", *outside)
    assert "Running stage 'evaluate'" in told
    assert "Running stage 'predict'" not in told
    assert (folder / "dvc.lock").read_bytes() == lock
    for name, value in (("first", 0.6), ("second", 0.65)):
        change = f"evaluate.specificity={value}"
        dvc(folder, "exp", "run", "--queue", "--name", name, "--set-param", change, *outside)
    dvc(folder, "exp", "run", "--run-all", "--jobs", "2")
    assert dvc(folder, "queue", "status").count("Success") == 2
    dvc(folder, "exp", "run", "--name", "here", "--set-param", "evaluate.specificity=0.8")
    assert (folder / "dvc.lock").read_bytes() != lock
    shown = dvc(
        folder, "exp", "show", "--no-pager", "--drop", ".*", "--keep", "Experiment",
        "--keep", "evaluate.specificity", "--keep", ".*-scratch/opacity/id_test/source/specificity$",
    )  # fmt: skip
    for name, value in (("apart", "0.7"), ("first", "0.6"), ("second", "0.65"), ("here", "0.8")):
        assert any(f"[{name}]" in line and f" {value} " in line for line in shown.splitlines()), shown
    assert "evaluate.specificity" in dvc(folder, "exp", "diff", "first", "here")
    assert "Path" in dvc(folder, "metrics", "diff", "HEAD", "here")
    dvc(folder, "plots", "diff", "HEAD", "here", "--out", "shown")
    assert '"rev": "here"' in (folder / "shown/index.html").read_text()


def test_smoke_runs_the_whole_graph_and_leaves_nothing(upstream, tmp_path):
    folder = tmp_path / "smoke"
    shutil.copytree(upstream, folder, symlinks=True)
    own_site_cache(folder)
    make_environment(folder)
    done = run_job(load(ROOT / ".github/workflows/regression.yml"), "smoke", folder, {}, runner(tmp_path))
    assert done.green, done.printed[-3000:]
    for stage in ("ingest@home", f"finetune@{BACKBONE}-scratch", "report"):
        assert f"Running stage '{stage}'" in done.printed
    assert subprocess.run(["git", "status", "--short"], cwd=folder, capture_output=True, text=True).stdout == ""
    assert "smoke" not in dvc(folder, "exp", "list")


# --- an array of jobs ----------------------------------------------------------------------------------------


def test_an_array_of_jobs_ends_in_the_lock_of_the_serial_run(upstream, tmp_path):
    """As docs/howto/cluster.md says, the jobs at once; each is a process of its own, as on another node."""
    folder = tmp_path / "array"
    shutil.copytree(upstream, folder, symlinks=True)
    own_site_cache(folder)
    project = Project(folder)
    lock = (folder / "dvc.lock").read_text()
    models = project.output_hashes("finetune@")
    # Nothing of the trainings is left: no entry, no output, no run that DVC remembers, no checkpoint.
    parts = project.yaml.load(folder / "dvc.lock")
    parts["stages"] = {name: stage for name, stage in parts["stages"].items() if not name.startswith("finetune@")}
    project.yaml.dump(parts, folder / "dvc.lock")
    for path in ("data/models", ".checkpoints", ".dvc/cache/runs"):
        shutil.rmtree(folder / path)
    listed = dvc(folder, "stage", "list", "--name-only").splitlines()
    targets = [name for name in listed if name.startswith("finetune@")]
    assert targets == [f"finetune@{BACKBONE}-{method}" for method in sorted(TRAINED)]
    (folder / "targets.txt").write_text("".join(f"{target}\n" for target in targets))
    # The script of the page, but for the environment, which is that of the tests.
    page = (ROOT / "docs/howto/cluster.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL)
    assert script.count(". ../../.venv/bin/activate\n") == 1
    (folder / "array.sh").write_text(script.replace(". ../../.venv/bin/activate\n", ""))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    running = [
        subprocess.Popen(
            ["bash", "array.sh"], cwd=folder, env={**os.environ, "PATH": path, "SLURM_ARRAY_TASK_ID": str(number)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(len(targets))
    ]  # fmt: skip
    told = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(targets), told
    assert all("Running stage 'finetune@" in text for text in told)
    assert project.output_hashes("finetune@") == models
    assert "Running stage" not in dvc(folder, "repro")
    assert project.yaml.load(folder / "dvc.lock") == project.yaml.load(lock)


# --- the workflow --------------------------------------------------------------------------------------------


def test_the_workflow_on_the_real_graph_a_planted_defect_turns_it_red(upstream, tmp_path):
    """The sign of every logit is lost in `predict`: nothing is trained, all is evaluated anew, and the gate is red."""
    checkout = tmp_path / "run" / "checkout"
    checkout.parent.mkdir()
    git(tmp_path, "clone", "--quiet", str(upstream), str(checkout))
    own_site_cache(checkout)
    make_environment(checkout)
    unset = ("vars.DVC_PLUGIN", "vars.STUDY", "secrets.AWS_ACCESS_KEY_ID", "secrets.AWS_SECRET_ACCESS_KEY")
    context = {"vars.DVC_REMOTE_URL": str(upstream.parent / "remote"), **dict.fromkeys(unset, "")}
    workflow = load(ROOT / ".github/workflows/regression.yml")
    same = run_job(workflow, "regression", checkout, context, runner(tmp_path))
    assert same.green, same.printed[-3000:]
    assert "Running stage" not in same.printed
    path = checkout / "pipeline/stages/predict.py"
    before = path.read_text()
    path.write_text(before.replace("values = logits[:, position]", "values = -logits[:, position]"))
    assert path.read_text() != before
    red = run_job(workflow, "regression", checkout, context, runner(tmp_path))
    assert "Running stage 'finetune" not in red.printed
    assert red.codes["Gate"] == 1, red.printed[-3000:]
    assert red.summary.startswith("**Gate failed**")
