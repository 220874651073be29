"""What DVC says of stages, in a study of three that do next to nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from pipeline.commands import partial
from pipeline.stages import report

# DVC's, of its library of paths.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
GRAPH = """
stages:
  first: {cmd: mkdir -p out && cp in.txt out/first, deps: [in.txt], outs: [out/first]}
  side: {cmd: cp side.txt out/side, deps: [side.txt, out/first], outs: [out/side]}
  second: {cmd: cp out/first out/second, deps: [out/first], outs: [out/second]}
  third: {cmd: cp out/second out/third, deps: [out/second], outs: [out/third]}
  aside: {cmd: "cp in.txt out/aside", deps: [in.txt], outs: [out/aside]}
  report: {cmd: "true && python -m pipeline.stages.report --split out/third", deps: [out/third, out/side]}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".dvc").mkdir()
    site = tmp_path / ".dvc/site"
    (tmp_path / ".dvc/config").write_text(
        f"[core]\n    analytics = false\n    no_scm = true\n    site_cache_dir = {site}\n"
    )
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    for name in ("in.txt", "side.txt"):
        (tmp_path / name).write_text("1")
    monkeypatch.chdir(tmp_path)
    Repo(".").reproduce(targets=["third", "side"])
    return tmp_path


def gaps() -> dict[str, str]:
    repo = Repo(".")
    (last,) = [stage for stage in repo.index.stages if stage.name == "report"]
    return {gap.stage: gap.why for gap in partial.find_gaps(repo, last)}


def test_nothing_is_missing(study: Path):
    assert gaps() == {}  # aside never ran, and the report does not rest on it


def test_a_stage_that_failed_and_what_waits_for_it(study: Path):
    (study / "out/second").unlink()
    found = gaps()
    assert set(found) == {"second", "third"}
    assert found["second"] == "no result"
    assert found["third"] == "its result is older than what it is made from (waits for second)"


def test_an_input_that_changed_makes_all_after_it_old(study: Path):
    (study / "in.txt").write_text("2")
    found = gaps()
    assert found["first"] == "its result is older than what it is made from"
    assert found["third"] == "its result is older than what comes before it (waits for first)"
    assert set(found) == {"first", "second", "third", "side"}


def test_the_command_hands_the_stages_own_options_on(study: Path, monkeypatch: pytest.MonkeyPatch):
    (study / "out/side").unlink()
    given: list[Any] = []

    class Options:
        def parse_args(self, options: list[str]) -> list[str]:
            return options

    monkeypatch.setattr(report, "parser", Options)
    monkeypatch.setattr(report, "render", lambda args, gaps: given.append((args, gaps)))
    monkeypatch.setattr(sys, "argv", ["partial", "--out", "elsewhere"])
    partial.main()
    ((options, found),) = given
    assert options == ["--split", "out/third", "--params", "params.yaml", "--out", "elsewhere"]
    assert [(gap.stage, gap.outputs) for gap in found] == [("side", (study / "out/side",))]


def test_a_whole_study_is_no_partial_one(study: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["partial"])
    with pytest.raises(partial.PartialReportError, match="up to date"):
        partial.main()


def test_help():
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.commands.partial", "--help"], capture_output=True, text=True, check=True
    )
    assert "some of whose stages failed" in done.stdout
