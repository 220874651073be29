"""Executes the `run` steps of a GitHub Actions workflow as a runner would: bash, step after step, expressions resolved.

Not GitHub: `uses` steps are named and left out (artifacts by copying files), and an expression that is not known fails.
"""

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

_EXPRESSION = re.compile(r"\$\{\{\s*(.+?)\s*\}\}")


@dataclass
class Job:
    """What a job did: exit code of each `run` step by its name, `uses` steps, outputs, and what was printed."""

    codes: dict[str, int] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    printed: str = ""
    summary: str = ""

    @property
    def green(self) -> bool:
        return all(code == 0 for code in self.codes.values())


def load(path: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def resolve(text: str, context: dict[str, str]) -> str:
    """With each ``${{ expression }}`` looked up as it stands."""
    return _EXPRESSION.sub(lambda match: context[match[1]], str(text))


def run_job(
    workflow: dict[str, Any], name: str, checkout: Path, context: dict[str, str], environment: dict[str, str]
) -> Job:
    """The steps of one job in ``checkout``; after a step that failed the others are left out, as on GitHub.

    Args:
        workflow: as ``load`` gives.
        name: of the job.
        checkout: the folder that `actions/checkout` would make.
        context: what expressions stand for.
        environment: all that the runner has beside what the workflow sets.
    """
    done = Job()
    job = workflow["jobs"][name]
    assert workflow["defaults"]["run"]["shell"] == "bash"
    files = {variable: checkout.parent / f"{variable}.txt" for variable in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for path in files.values():
        path.write_text("")
    for step in job["steps"]:
        if "uses" in step:
            done.used.append(step["uses"])
            continue
        assert set(step) <= {"name", "id", "env", "run"}, f"{step['name']}: this runner does not know {sorted(step)}"
        if not done.green:
            continue
        given = {**workflow.get("env", {}), **job.get("env", {}), **step.get("env", {})}
        settings = {variable: resolve(value, context) for variable, value in given.items()}
        ran = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=checkout, capture_output=True, text=True,
            env={**environment, **settings, **{variable: os.fspath(path) for variable, path in files.items()}},
        )  # fmt: skip
        done.codes[step["name"]] = ran.returncode
        done.printed += ran.stdout + ran.stderr
    done.outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    done.summary = files["GITHUB_STEP_SUMMARY"].read_text()
    return done
