"""dvc.yaml says what each stage depends on; the source says what it imports and which params it reads. Both agree."""

import ast
import re
from functools import cache
from pathlib import Path

import closure
import pytest
from dvc.repo import Repo

from pipeline.params import read_params_file
from pipeline.protocol import SECTIONS

ROOT = Path(__file__).parents[1]
NUMERIC = {
    "cv2": "opencv-python-headless",
    "monai": "monai",
    "numpy": "numpy",
    "pydicom": "pydicom",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "torchvision": "torchvision",
}


@cache
def stages(root: Path = ROOT) -> dict[str, object]:
    """All stages of the demo, templates expanded, by name."""
    return {stage.addressing: stage for stage in Repo(str(root)).index.stages}


def module_of(stage: object) -> Path:
    match = re.search(r"-m (pipeline\.stages\.\w+)", stage.cmd)
    assert match is not None, stage.cmd
    return Path(*match[1].split(".")).with_suffix(".py")


def chosen_modules(stage: object) -> dict[str, str]:
    """What the dynamic imports of a stage resolve to, from its command and params."""
    chosen = {}
    if method := re.search(r"--method (\w+)", stage.cmd):
        chosen["pipeline/transfer"] = method[1]
    if remedy := re.search(r"--remedy (\w+)", stage.cmd):
        chosen["pipeline/adaptation"] = remedy[1]
    if site := re.search(r"--site (\w+)", stage.cmd):
        chosen["pipeline/datasets"] = read_params_file(ROOT / "params.yaml")["sites"][site[1]]["adapter"]
    return chosen


def imported(stage: object) -> tuple[set[str], set[str]]:
    """Files that a stage's import runs, and packages; of remedies, which share a template, all that any needs."""
    files, packages = closure.closure(module_of(stage), chosen_modules(stage))
    if "pipeline/adaptation" in chosen_modules(stage):
        shared, more = closure.shared_modules(module_of(stage), "pipeline/adaptation")
        return files | shared, packages | more
    return files, packages


def declared_code(stage: object) -> set[str]:
    return {
        path
        for dep in stage.deps
        if dep.protocol == "local" and hasattr(dep, "fs_path")
        for path in [Path(dep.fs_path).relative_to(ROOT).as_posix() if dep.fs_path.startswith(str(ROOT)) else ""]
        if path.startswith("pipeline/")
    }


def declared_params(stage: object) -> set[str]:
    return {name for dep in stage.deps for name in getattr(dep, "params", None) or []}


def read_params(stage: object) -> set[str]:
    """Sections that a stage reads: the literal names in its calls, f-strings by the stage's own item."""
    source = (ROOT / module_of(stage)).read_text(encoding="utf-8")
    options = {
        name: re.search(rf"--{name} (\w+)", stage.cmd) for name in ("site", "method", "remedy", "bundle", "name")
    }
    values = {f"args.{name}": found and found[1] for name, found in options.items()}
    found: set[str] = set()
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        if name == "load_key":
            found.add("privacy")
        elif name == "load_site":
            found.add(f"sites.{options['site'][1]}")
        elif name == "read_sections":
            found |= set(SECTIONS)
        elif name == "check_versions":
            found |= {f"versions.{argument.value}" for argument in call.args}
        elif name in ("load_params", "load_names", "section_of"):
            section = call.args[0 if name == "load_names" else 1]
            text = ast.unparse(section)
            for expression, value in values.items():
                text = text.replace("{" + expression + "}", str(value))
            found.add(text.removeprefix("f").strip("'"))
    return {section.removesuffix(".simulate") for section in found}


def disagreement(declared: set[str], imported: set[str]) -> list[str]:
    """What stands in dvc.yaml and is never imported, and what is imported unseen (stale results)."""
    return [f"surplus {path}" for path in sorted(declared - imported)] + [
        f"missing {path}" for path in sorted(imported - declared)
    ]


@pytest.mark.parametrize("name", sorted(stages()))
def test_declared_code_is_the_import_closure(name):
    stage = stages()[name]
    wanted, _ = imported(stage)
    assert disagreement(declared_code(stage), wanted) == []


@pytest.mark.parametrize("name", sorted(stages()))
def test_declared_params_are_those_that_are_read(name):
    stage = stages()[name]
    if module_of(stage).stem == "report":  # the page shows params.yaml as it stands
        assert "params.yaml" in {Path(dep.fs_path).name for dep in stage.deps}
    else:
        assert declared_params(stage) == read_params(stage)


@pytest.mark.parametrize("name", sorted(stages()))
def test_numeric_versions_are_checked_where_numbers_are_made(name):
    """A stage that computes with a package depends on its version; reading headers or tables is no computing."""
    stage = stages()[name]
    computing = {
        "ingest": {"pydicom"},
        "preprocess": {"numpy", "opencv-python-headless", "pydicom"},
        "split": {"numpy", "opencv-python-headless"},
        "quality": {"numpy", "opencv-python-headless"},
        "features": {"torch", "torchvision"},
        "finetune": {"monai", "numpy", "scikit-learn", "torch", "torchvision"},
        "predict": {"torch", "torchvision"},
        "baseline": {"numpy", "scikit-learn", "scipy"},
        "choice": {"numpy", "scipy"},
        "search": {"monai", "numpy", "scikit-learn", "torch", "torchvision"},
        "embed": {"torch", "torchvision"},
        "stress": {"monai", "numpy", "scipy", "torch", "torchvision"},
        "membership": {"monai", "numpy", "scikit-learn", "scipy", "torch", "torchvision"},
        "adapt": {"monai", "numpy", "scipy", "torch", "torchvision"},
        "continual": {"monai", "numpy", "torch", "torchvision"},
        "forgetting": {"numpy", "scipy"},
        "matrix": {"monai", "numpy", "scikit-learn", "torch", "torchvision"},
        "matrix_scores": {"numpy", "scipy"},
        "diagnose": {"numpy", "scikit-learn", "scipy"},
        "controls": {"numpy", "scikit-learn", "scipy"},
        "gallery": {"monai", "numpy", "scipy", "torch", "torchvision"},
        "evaluate": {"numpy", "scipy"},
        "bundle": set(NUMERIC.values()),  # it hands on the versions that made the arrays, too
        "plots": {"numpy", "scipy"},
    }.get(module_of(stage).stem, set())
    _, packages = imported(stage)
    assert computing <= {NUMERIC[package] for package in packages if package in NUMERIC}
    assert {n.removeprefix("versions.") for n in declared_params(stage) if n.startswith("versions.")} == computing


def test_every_params_section_belongs_to_a_stage_or_command():
    """DVC ignores a misspelt section without a word."""
    params = read_params_file(ROOT / "params.yaml")
    known = {"sites", "privacy", "backbones", "methods", "compute", "remedies", "versions"}  # read by several
    known |= {module_of(stage).stem for stage in stages().values()} & set(params)
    known |= {path.stem for path in (ROOT / "pipeline/commands").glob("*.py")}
    known |= {"weights", "report", "verdict", "handover"}
    assert set(params) - known == set()


def test_a_planted_omission_and_a_planted_surplus_are_caught():
    stage = stages()["finetune@resnet18-lp_ft"]
    wanted, _ = closure.closure(module_of(stage), chosen_modules(stage))
    declared = declared_code(stage)
    assert disagreement(declared - {"pipeline/training/loop.py"}, wanted) == ["missing pipeline/training/loop.py"]
    assert disagreement(declared | {"pipeline/transfer/scratch.py"}, wanted) == ["surplus pipeline/transfer/scratch.py"]


def test_an_import_of_an_import_is_followed(tmp_path, monkeypatch):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/a.py").write_text("from pipeline import b\n")
    (tmp_path / "pipeline/b.py").write_text("import numpy\n")
    (tmp_path / "pipeline/c.py").write_text("")
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    files, packages = closure.closure(Path("pipeline/a.py"), {})
    assert files == {"pipeline/a.py", "pipeline/b.py"}
    assert packages == {"numpy"}


@pytest.mark.parametrize("line", ["importlib.import_module(name)", "__import__('os')", "import_module(f'{x}.y')"])
def test_other_dynamic_imports_are_refused(tmp_path, monkeypatch, line):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/a.py").write_text(line + "\n")
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    with pytest.raises(closure.DynamicImportError):
        closure.closure(Path("pipeline/a.py"), {})


def test_packages_run_nothing_on_import():
    """Re-exports in an __init__ would widen every closure unseen."""
    assert [path for path in (ROOT / "pipeline").rglob("__init__.py") if path.read_text().strip()] == []


@pytest.mark.parametrize("study", sorted(path.parent.name for path in ROOT.glob("studies/*/params.yaml")))
def test_a_study_copies_the_graph_but_for_the_line_that_finds_the_code(study):
    own = (ROOT / "studies" / study / "dvc.yaml").read_text().splitlines()
    root = (ROOT / "dvc.yaml").read_text().splitlines()
    different = [(a, b) for a, b in zip(root, own, strict=True) if a != b]
    assert different == [('vars: [{code: ""}]', "vars: [{code: ../../}]")]


def test_dvcignore_keeps_bytecode_out():
    ignored = (ROOT / ".dvcignore").read_text().split()
    assert {"__pycache__/", "*.pyc"} <= set(ignored)
