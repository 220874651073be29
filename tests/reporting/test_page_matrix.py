"""The page's section on the site x site matrix, and the figure of home against elsewhere."""

from dataclasses import replace

import pytest
from matplotlib.patches import Rectangle
from reporting import fabricated
from reporting.fabricated_matrix import BACKBONE, SITES, TOO_FEW
from reporting.page_checker import misquoted, read, untraced
from reporting.test_page import section, text_of

from pipeline.reporting import cells, html, matrix_figures
from pipeline.reporting.study import Study
from pipeline.tables.contract import make_table
from pipeline.tables.matrix import MatrixScores

FINDING = fabricated.FINDING


@pytest.fixture(scope="module")
def study() -> Study:
    """Nothing but the matrix."""
    whole = fabricated.study()
    return replace(whole, frames={"matrix_scores": whole.frames["matrix_scores"]})


@pytest.fixture(scope="module")
def page(study: Study) -> str:
    return html.page(study, {})


def texts(study: Study) -> list[str]:
    figure = matrix_figures.heat_map(study, FINDING, BACKBONE, "linear_probe")
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_every_number_is_a_cell(study: Study, page: str):
    parsed = read(page)
    assert parsed.faults == []
    assert untraced(parsed, study.frames) == []
    assert misquoted(parsed, study.frames, study.min_cell) == []
    assert sum(attributes["data-column"] == "value" for attributes, _ in parsed.data) == 16 + 4
    assert sum(attributes["data-column"] == "difference" for attributes, _ in parsed.data) == 12 + 4


def test_what_is_undefined_says_why_and_few_patients_are_not_told(page: str):
    told = section(page, "matrix")
    assert TOO_FEW in text_of(told)
    budgets = [text for a, text in read(told).data if a.get("data-column") == "num_patients_per_class"]
    assert set(budgets) == {"<11", "31", "–"}


def test_limits_of_a_value_have_no_sign_and_those_of_a_difference_have():
    row = {"in_distribution": False, "value": 0.7, "ci_low": 0.61, "difference": 0.1, "difference_low": -0.02}
    assert cells.shown(row, "ci_low", 11) == "0.61"
    assert cells.shown(row, "difference", 11) == "+0.10"


def test_the_heat_map_says_its_values_and_what_has_none(study: Study):
    drawn = texts(study)
    rows = [row for _, row in study.rows("matrix_scores")]
    for row in rows:
        if row["value"] is not None:
            assert cells.shown(row, "value", 0) in drawn
    assert drawn.count("not defined") == 4
    figure = matrix_figures.heat_map(study, FINDING, BACKBONE, "linear_probe")
    frames = [p for axes in figure.axes for p in axes.patches if isinstance(p, Rectangle) and not p.get_fill()]
    assert len(frames) == 3  # the diagonal, but for the west
    assert figure.axes[0].get_yticklabels()[-1].get_text() == "on all but the tested"


@pytest.mark.parametrize("protocol", ["single_source", "leave_one_out"])
def test_one_protocol_alone(study: Study, protocol: str):
    frame = study.frames["matrix_scores"]
    own = frame[frame["protocol"] == protocol].assign(difference=None, difference_low=None, difference_high=None)
    alone = replace(study, frames={"matrix_scores": make_table(MatrixScores, own)})
    parsed = read(html.page(alone, {}))
    assert parsed.faults == []
    assert untraced(parsed, alone.frames) == []
    assert len(alone.matrix_sites(protocol)) == len(SITES)
    assert texts(alone)


def test_without_the_stage_there_is_no_section(study: Study):
    assert 'id="matrix"' not in html.page(replace(study, frames={}), {})


def test_home_against_elsewhere_draws_every_method_and_every_training():
    study = fabricated.study()
    figure = matrix_figures.home_and_away(study, FINDING)
    metrics = study.frames["metrics"].set_index(["run", "finding", "split", "group", "metric"])["value"]

    def point(run: str) -> tuple[float, float]:
        places = (("id_test", "source"), ("ood_test", "target"))
        home, away = (float(metrics.loc[(run, FINDING, *place, "auroc")]) for place in places)
        return home, away

    for axes, backbone in zip(figure.axes, fabricated.BACKBONES, strict=False):
        drawn = {
            (float(line.get_xdata()[0]), float(line.get_ydata()[0])): line.get_markersize()
            for line in axes.lines
            if line.get_marker() not in ("None", "") and len(line.get_xdata())
        }
        families = {point(family.run) for family in study.main_families(backbone)}
        trainings = {point(run) for (run,), _ in study.rows("runs", backbone=backbone)}
        assert {at for at, size in drawn.items() if size > 5} == families
        assert {at for at, size in drawn.items() if size < 5} == trainings
