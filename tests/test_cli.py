"""What a person sees of an error, and what a joint stage cleans up."""

import pytest

from pipeline import cli
from pipeline.errors import PipelineError


def test_an_expected_error_is_told_in_one_line(capsys):
    def main() -> None:
        raise PipelineError("split.target: unknown site 'wst'")

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: split.target: unknown site 'wst'\n"


def test_an_error_of_the_machine_quotes_no_file_name(capsys, tmp_path):
    def main() -> None:
        (tmp_path / "DOE^JANE.dcm").read_bytes()

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert "No such file" in told
    assert "DOE" not in told


def test_a_defect_shows_its_traceback():
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main)


def test_prune_keeps_what_is_named_and_deletes_the_rest(tmp_path):
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.parquet").write_bytes(b"")
    (tmp_path / "stray.txt").write_text("")
    cli.prune(tmp_path, ["north"])
    assert [path.name for path in tmp_path.iterdir()] == ["north"]
    cli.prune(tmp_path / "not_there", [])


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit):
        cli.parser("What it does.", out="folder for the result").parse_args(["--help"])
    told = capsys.readouterr().out
    assert "What it does." in told
    assert "folder for the result" in told
