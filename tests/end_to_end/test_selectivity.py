"""What runs again after a change, and what does not: real runs on a tiny cohort (`--dry` does not propagate)."""

import shutil

import pytest
from end_to_end.project import BACKBONE, Project, site

# What the models and the predictions lead to.
JUDGED = ["predict", "stress", "membership", "diagnose", "controls", "evaluate", "plots", "report"]
JOINT = ["split", "gather", "quality", "baseline", f"embed@{BACKBONE}", *JUDGED]
CHOICE = ["choice", "search"]  # on the source alone


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A project after its first full run, each stage by a real `python` of its own; tests work on copies."""
    project = Project.create(tmp_path_factory.mktemp("project"))
    ran = project.repro()
    assert sorted(ran) == sorted(
        [f"{stage}@{name}" for stage in ("simulate", "ingest", "labels", "preprocess") for name in ("home", "away")]
        + [f"features@{BACKBONE}"]
        + [f"finetune@{BACKBONE}-{method}" for method in ("scratch", "linear_probe")]
        + JOINT
        + CHOICE
    )
    return project


@pytest.fixture
def project(base, warm_python, tmp_path):
    made = base.copy(tmp_path / "project")
    made.python = warm_python
    return made


def test_a_second_run_does_nothing(project):
    locks = project.locks()
    assert project.repro() == []
    assert project.locks() == locks


def test_a_forced_rerun_leaves_the_lock_files_as_they_are(project):
    locks = project.locks()
    assert len(project.repro("--force")) == 26
    assert project.locks() == locks


def test_a_new_target_site_trains_nothing_and_leaves_its_sides_alone_when_removed(project):
    """The ledger keeps the sides of its patients, should the site come back; nothing else does."""
    ledger = (project.folder / "splits.csv").read_bytes()
    models = project.output_hashes("finetune@")
    gathered = project.output_hashes("gather")
    before = project.params

    params = project.params
    params["sites"]["far"] = site("far", vendor="DELTA", model="CR4", photometric="MONOCHROME1", transfer_syntax="rle")
    params["split"]["target"].append("far")
    project.params = params
    ran = project.repro()
    assert sorted(ran) == sorted([f"{stage}@far" for stage in ("simulate", "ingest", "labels", "preprocess")] + JOINT)
    assert project.output_hashes("finetune@") == models
    assert project.output_hashes("gather") == gathered
    assert "far" in (project.folder / "reports/html/index.html").read_text()

    project.params = before
    project.repro()
    lines = (project.folder / "splits.csv").read_bytes().splitlines()
    assert [line for line in lines if b",far," not in line] == ledger.splitlines() != lines
    left = [path for path in (project.folder / "data").rglob("*") if "far" in path.relative_to(project.folder).parts]
    assert left == []
    assert "site=far" not in (project.folder / "reports/metrics.json").read_text()


def test_a_new_method_runs_only_its_own_jobs(project):
    models = project.output_hashes("finetune@")
    params = project.params
    params["methods"]["full_finetune"] = {"learning_rate": 1e-3}
    project.params = params
    assert sorted(project.repro()) == sorted([f"finetune@{BACKBONE}-full_finetune", "search", *JUDGED])
    assert models.items() <= project.output_hashes("finetune@").items()


@pytest.mark.slow
def test_a_method_that_is_gone_leaves_no_model(project):
    params = project.params
    del params["methods"]["scratch"]
    project.params = params
    assert sorted(project.repro()) == sorted(["search", *JUDGED])
    assert not (project.folder / f"data/models/{BACKBONE}-scratch").exists()


def test_editing_the_report_trains_nothing_and_editing_one_method_trains_that_method(project):
    for name in ("pipeline/reporting/html.py", "pipeline/transfer/linear_probe.py"):
        path = project.folder / name
        path.write_text(path.read_text() + "\n# a remark\n")
    # The model comes out as it was, so nothing that it leads to runs; what may call any method does, and the report.
    assert set(project.repro()) == {f"finetune@{BACKBONE}-linear_probe", "search", "membership", "report"}


def test_corrected_labels_reread_no_dicom(project):
    """The label file of the target: nothing is read, decoded or trained again."""
    path = project.folder / "data/cohort/away/labels.csv"
    header, *lines = path.read_text().splitlines()
    # All of them, since those of target_adapt change no metric.
    lines = [header] + [f"{line[:-1]}{1 - int(line[-1])}" for line in lines]
    path.chmod(0o644)
    path.write_text("\n".join(lines) + "\n")
    ran = project.run("dvc", "repro", "--single-item", "labels@away").stdout
    assert "Running stage 'labels@away'" in ran
    rest = project.run("dvc", "repro", "--downstream", "labels@away").stdout
    assert not [name for name in ("ingest", "preprocess", "features", "finetune") if f"stage '{name}" in rest]
    assert "Running stage 'evaluate'" in rest


def test_a_changed_file_in_the_archive_is_refused_until_the_inventory_knows_it(project):
    archive = project.folder / "data/cohort/home/archive"
    shutil.copy(next(path for path in archive.rglob("*") if path.is_file()), archive / "new_file")
    done = project.run(
        *"pipeline.stages.ingest --site home --manifest data/manifests/home.parquet --out out".split(), check=False
    )
    assert done.returncode == 2
    assert "1 files are not in the manifest" in done.stderr
    assert "Traceback" not in done.stderr
