"""A reduced copy of the project in a folder of its own, run by the real `dvc repro`."""

import hashlib
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from dvc.repo import Repo
from ruamel.yaml import YAML
from torchvision.models import get_model

ROOT = Path(__file__).parents[2]
BACKBONE = "shufflenet_v2_x0_5"  # the smallest with a linear last layer
METHODS = {"scratch": {"learning_rate": 1e-3}, "linear_probe": {"inverse_l2": [1e-3, 1e-1]}}


def site(name: str, **simulate: Any) -> dict[str, Any]:
    """A simulated hospital's entry."""
    spec = {"patients": 24, "prevalence": 0.45, "rows": 128, "columns": 128, "pixel_spacing_mm": 3.0}
    return {
        "adapter": "dicom_folder",
        "redistribution": True,
        "root": f"data/cohort/{name}/archive",
        "labels": {
            "file": f"data/cohort/{name}/labels.csv",
            "key": "study_instance_uid",
            "key_column": "StudyInstanceUID",
            "columns": {"opacity": "opacity"},
        },
        "simulate": {**spec, **simulate},
    }


class Project:
    """The copy, with its params as a dict to change. Its stages run by ``python``."""

    python = Path(sys.executable)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.yaml = YAML(typ="safe")
        self.yaml.default_flow_style = False

    @classmethod
    def create(cls, folder: Path) -> "Project":
        """Code, graph and reduced params; random weights as a local file, so that nothing is downloaded."""
        shutil.copytree(
            ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__", "dvc.lock")
        )
        for name in ("dvc.yaml", ".dvcignore", "params.yaml", "protocol.yaml", "withdrawn.txt"):
            shutil.copy(ROOT / name, folder / name)
        (folder / ".dvc").mkdir()
        (folder / ".dvc/config").write_text(
            "[core]\n    analytics = false\n    no_scm = true\n    site_cache_dir = " + str(folder / ".dvc/site") + "\n"
        )
        torch.manual_seed(0)
        weights = folder / "weights.pth"
        torch.save(get_model(BACKBONE, weights=None).state_dict(), weights)
        project = cls(folder)
        params = project.params
        params["sites"] = {"home": site("home"), "away": site("away", vendor="BETA", model="CR2")}
        params["split"] |= {"source": ["home"], "target": ["away"], "id_val_fraction": 0.3, "id_test_fraction": 0.3}
        params["preprocess"]["size_px"] = 32
        params["backbones"] = {
            BACKBONE: {
                "file": "weights.pth",
                "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
                "description": "random numbers, for tests",
            }
        }
        params["methods"] = METHODS
        params["finetune"] |= {"seeds": [1, 2], "epochs": 1, "batch_size": 8}
        params["compute"]["threads"] = 1
        params["evaluate"] |= {"resamples": 100, "subgroups": []}
        params["remedies"], params["handover"], params["gallery"] = {}, {}, {}
        params["continual"] = {"backbones": []}
        params["matrix"]["backbones"] = []
        params["search"]["epochs"] = [1]
        params["stress"] |= {"kinds": ["marker"], "severities": [5], "resamples": 100}
        params["diagnose"]["permutations"] = 100
        params["membership"] |= {"resamples": 100}
        params["controls"] |= {"permutations": 10, "resamples": 100}
        project.params = params
        return project

    @property
    def params(self) -> dict[str, Any]:
        """params.yaml as it stands."""
        return self.yaml.load(self.folder / "params.yaml")

    @params.setter
    def params(self, value: dict[str, Any]) -> None:
        self.yaml.dump(value, self.folder / "params.yaml")

    def copy(self, folder: Path) -> "Project":
        """The same state elsewhere, cache included."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, symlinks=True)
        return Project(folder)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``python -m COMMAND`` in the project's folder."""
        search = os.pathsep.join([os.fspath(self.python.parent), os.environ["PATH"]])
        environment = {**os.environ, "PYTHONPATH": ".", "PATH": search}
        done = subprocess.run(
            [self.python, "-m", *command], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def repro(self, *options: str) -> list[str]:
        """What `make repro` does; returns the stages that really ran."""
        self.run("pipeline.commands.prune")
        self.run("pipeline.commands.inventory")
        self.run("pipeline.commands.fetch_weights")
        done = self.run("dvc", "repro", *options)
        return re.findall(r"Running stage '(?:[\w/.]+:)?([\w@-]+)'", done.stdout)

    def run_here(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        """Stages by the name of their module, in the graph's order and in this process, where torch is loaded already.

        For tests of what comes out; DVC has no part in it but for the order and the commands.
        """
        monkeypatch.chdir(self.folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a library of DVC's
            stages = list(nx.dfs_postorder_nodes(Repo(os.fspath(self.folder)).index.graph))
        for stage in stages:
            words = [word for word in shlex.split(stage.cmd) if "=" not in word.partition("-")[0]]
            module = importlib.import_module(words[words.index("-m") + 1])
            if module.__name__.rpartition(".")[2] in names:
                for out in stage.outs:
                    shutil.rmtree(out.fs_path, ignore_errors=True)
                monkeypatch.chdir(stage.wdir)
                monkeypatch.setattr(sys, "argv", [module.__name__, *words[words.index("-m") + 2 :]])
                module.main()

    def locks(self) -> dict[str, str]:
        """The text of all lock files."""
        return {path.relative_to(self.folder).as_posix(): path.read_text() for path in self.folder.rglob("dvc.lock")}

    def output_hashes(self, prefix: str) -> dict[str, str]:
        """Hashes of the outputs of the stages whose name begins so, from dvc.lock."""
        lock = self.yaml.load(self.folder / "dvc.lock")
        return {
            out["path"]: out["md5"]
            for name, stage in lock["stages"].items()
            if name.startswith(prefix)
            for out in stage["outs"]
        }
