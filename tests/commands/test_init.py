"""init: a study is the root's graph but for one line, with a DVC of its own and the root's cache."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny

from pipeline.commands import init
from pipeline.commands.init import study_graph
from pipeline.errors import PipelineError
from pipeline.params import ParamsError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc/config")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_and_what_stays_on_a_second_call(checkout, monkeypatch, capsys):
    tiny.call(monkeypatch, init, "ward_7")
    study = checkout / "studies/ward_7"
    root, own = ((folder / "dvc.yaml").read_text().splitlines() for folder in (checkout, study))
    assert len(root) == len(own)
    assert [(a, b) for a, b in zip(root, own, strict=True) if a != b] == [
        ('vars: [{code: ""}]', "vars: [{code: ../../}]")
    ]
    config = configparser.ConfigParser()
    config.read_string("\n".join(line.strip() for line in (study / ".dvc/config").read_text().splitlines()))
    assert (study / ".dvc" / config["cache"]["dir"]).resolve() == checkout / ".dvc/cache"
    assert config["core"]["analytics"] == "false"
    assert config["core"]["autostage"] == "false"
    assert (study / ".dvcignore").read_bytes() == (checkout / ".dvcignore").read_bytes()
    told = capsys.readouterr().out
    assert "now write studies/ward_7/params.yaml" in told
    assert "make study STUDY=ward_7" in told
    # a second call brings the graph up to date and leaves what is the person's
    (study / "params.yaml").write_text("sites: {}\n")
    (study / ".dvcignore").write_text("mine\n")
    (study / "dvc.yaml").write_text("old\n")
    tiny.call(monkeypatch, init, "ward_7")
    assert (study / "params.yaml").read_text() == "sites: {}\n"
    assert (study / ".dvcignore").read_text() == "mine\n"
    assert (study / "dvc.yaml").read_text().splitlines() == own
    assert "now write" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../evil", "a/b", "Ward7", "7th", "ward-7", "", "."])
def test_a_name_that_is_no_name_makes_nothing(checkout, monkeypatch, name):
    with pytest.raises(ParamsError, match="the study's name must match"):
        tiny.call(monkeypatch, init, name)
    assert not (checkout / "studies").exists()


def test_outside_the_root_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match="run this in the root of the checkout"):
        tiny.call(monkeypatch, init, "ward_7")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_without_the_line_is_refused():
    with pytest.raises(PipelineError, match="expected the line"):
        study_graph("stages: {}\n")
