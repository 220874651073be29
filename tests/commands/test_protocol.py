"""protocol: seal and show, from the study's folder."""

import pytest
import tiny
from ruamel.yaml import YAML

from pipeline.commands import protocol
from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.protocol import load_protocol, read_log, read_sections, record_opening, splits_digest

DECLARED = {
    "hypothesis": "LP-FT is better than scratch.",
    "primary_outcome": {"metric": "auroc", "finding": "opacity", "split": "ood_test", "group": "target"},
    "primary_comparison": {"backbone": tiny.BACKBONE, "method": "lp_ft", "against": "scratch"},
    "margin": 0.05,
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


def write(folder, margin=0.05, **changes):
    tiny.write_params(folder / "params.yaml", labels={"findings": ["opacity"]}, verdict={"margin": margin}, **changes)
    with (folder / "protocol.yaml").open("w") as file:
        YAML(typ="safe").dump({**DECLARED, "margin": margin}, file)


def open_labels(folder):
    sections = read_sections(folder / "params.yaml")
    declared = load_protocol(folder / "protocol.yaml", sections)
    return record_opening(folder / "openings.csv", declared, sections, ["i1", "i2"])


def test_seal_open_change_and_seal_again(study, monkeypatch, capsys):
    tiny.call(monkeypatch, protocol, "seal")
    assert "sealed: commit protocol.yaml and openings.csv" in capsys.readouterr().out
    open_labels(study)
    before = (study / "openings.csv").read_bytes()
    tiny.call(monkeypatch, protocol, "seal")
    assert "sealed already, nothing changed" in capsys.readouterr().out
    assert (study / "openings.csv").read_bytes() == before

    write(study, margin=0.1)
    with pytest.raises(PipelineError, match="not sealed as it stands"):
        open_labels(study)
    with pytest.raises(PipelineError, match="say with --reason"):
        tiny.call(monkeypatch, protocol, "seal")
    assert (study / "openings.csv").read_bytes() == before
    tiny.call(monkeypatch, protocol, "seal", "--reason", "a wider margin")
    open_labels(study)
    capsys.readouterr()
    tiny.call(monkeypatch, protocol, "show")
    assert capsys.readouterr().out.splitlines() == [
        "LP-FT is better than scratch.",
        f"primary outcome: auroc of opacity, ood_test, target; {tiny.BACKBONE} by lp_ft less scratch, margin 0.1",
        "seal: sealed",
        "opening 1: first opening",
        "seal: a wider margin",
        "opening 2: protocol changed and params changed",
        "protocol sealed after opening 1 of the test labels; test labels opened 2 times; protocol changed and params "
        "changed after opening 1",
    ]
    assert (study / "openings.csv").read_bytes().startswith(before)


def test_a_study_without_a_protocol_is_exploratory(study, monkeypatch, capsys):
    (study / "protocol.yaml").unlink()
    tiny.call(monkeypatch, protocol, "show")
    assert capsys.readouterr().out == "no protocol was declared: exploratory; test labels not opened yet\n"
    with pytest.raises(PipelineError, match=r"protocol.yaml declares nothing; --help shows"):
        tiny.call(monkeypatch, protocol, "seal")
    assert not (study / "openings.csv").exists()


def test_the_test_images_are_sealed_where_they_are_known(study, monkeypatch):
    tiny.write_sites(study / "data")
    tiny.call(monkeypatch, protocol, "seal")
    (entry,) = read_log(study / "openings.csv")
    assert entry.splits_sha256 == splits_digest(f"away-ood_test-{i}" for i in range(6))


def test_a_protocol_that_params_contradict_is_not_sealed(study, monkeypatch):
    write(study, methods={"scratch": {}})
    with pytest.raises(ParamsError, match=r"primary_comparison.method: 'lp_ft' has no result"):
        tiny.call(monkeypatch, protocol, "seal")
    assert not (study / "openings.csv").exists()


def test_the_help_shows_a_protocol_that_is_valid(tmp_path):
    """The example below the docstring's colon, as YAML, against the demo's own params."""
    example = protocol.__doc__.partition("A protocol.yaml:\n")[2]
    (tmp_path / "protocol.yaml").write_text(example)
    root = tiny.Path(__file__).parents[2]
    assert load_protocol(tmp_path / "protocol.yaml", read_sections(root / "params.yaml")) is not None
