"""The pictures of a study are those of its tables, without any image; the README has what the command draws."""

import io
import re
from pathlib import Path

import pytest
import tiny
from PIL import Image
from reporting import fabricated

from pipeline.commands import pictures
from pipeline.errors import PipelineError
from pipeline.reporting import figures
from pipeline.tables.contract import TableError, make_table, write_table

ROOT = Path(__file__).parents[2]
SIDES = {"seed": 1, "source": list(fabricated.SOURCES), "target": list(fabricated.TARGETS)}
BACKBONE = fabricated.BACKBONES[-1]


@pytest.fixture
def study(tmp_path):
    """The fabricated study's tables, of one backbone."""
    frames = fabricated.study().frames
    for name, contract, folder in pictures._TABLES:
        frame = frames[name]
        if "run" in frame:
            frame = make_table(contract, frame[frame["run"].str.startswith(BACKBONE)])
        write_table(contract, frame, tmp_path / "data" / folder / f"{name}.parquet")
    tiny.write_params(tmp_path / "params.yaml", split=SIDES, report={"title": "T", "images": False})
    return tmp_path


def run(study, monkeypatch, *options):
    places = {"params": study / "params.yaml", "data": study / "data", "out": study / "out"}
    tiny.call(monkeypatch, pictures, *options, **places)
    return {path.name: path.read_bytes() for path in (study / "out").iterdir()}


def test_draws_the_reports_figures_in_the_same_bytes(study, monkeypatch):
    made = run(study, monkeypatch)
    names = f"{fabricated.FINDING}-{BACKBONE}"
    assert sorted(made) == [f"calibration-{names}.png", "funnel.png", f"transfer-{names}.png"]
    assert run(study, monkeypatch) == made
    read = pictures.read_study(study / "params.yaml", study / "data")
    of = (read, fabricated.FINDING, BACKBONE)
    drawn = figures.to_png(figures.verdicts, *of, "scratch", dpi=pictures.DPI)
    assert made[f"transfer-{names}.png"] == drawn
    assert all(Image.open(io.BytesIO(png)).width > 1500 and len(png) < 150_000 for png in made.values())
    assert run(study, monkeypatch, "--against", "scratch_converged")[f"transfer-{names}.png"] != drawn


def test_what_cannot_be_drawn_is_told(study, monkeypatch):
    with pytest.raises(PipelineError, match="nothing was compared with 'scrach'; did you mean 'scratch'"):
        run(study, monkeypatch, "--against", "scrach")
    (study / "data/evaluate/verdicts.parquet").unlink()
    with pytest.raises(TableError, match=r"Verdicts: .* is not there"):
        run(study, monkeypatch)


def test_the_readme_has_the_committed_pictures_and_words_for_them():
    shown = dict(re.findall(r"!\[([^\]]+)\]\(docs/images/([^)]+)\)", (ROOT / "README.md").read_text()))
    files = {path.name: path for path in (ROOT / "docs/images").iterdir()}
    assert sorted(shown.values()) == sorted(files)
    assert all(len(words) > 40 for words in shown)
    assert {name.partition("-")[0].removesuffix(".png") for name in files} == {"funnel", "transfer", "calibration"}
    for path in files.values():
        assert path.stat().st_size < 150_000
        with Image.open(path) as picture:
            assert picture.mode == "P"  # charts have a palette; images of patients would not


def test_the_calibration_shows_methods_with_all_labels_and_cuts_off_no_name(study):
    """With budgets of a few labels beside them the legend ran off the sheet."""
    read = pictures.read_study(study / "params.yaml", study / "data")
    families = {family.label for family in read.main_families(BACKBONE)}
    figure = figures.reliability(read, fabricated.FINDING, BACKBONE)
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert {text.get_text() for text in legend.get_texts()} == families
    with figures._style():
        canvas = figures.FigureCanvasAgg(figure)
        canvas.draw()
    box = legend.get_window_extent()
    assert 0 <= box.x0 <= box.x1 <= figure.bbox.width
    assert 0 <= box.y0 <= box.y1
