"""The page's section on one hospital after another: what it quotes, what it hides, what its figure draws."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from reporting import fabricated
from reporting.fabricated_continual import BACKBONE, ONE_CLASS, SEQUENCE
from reporting.page_checker import misquoted, read, untraced
from reporting.test_page import section, text_of

from pipeline.reporting import cells, continual_figures, html
from pipeline.reporting.study import Study
from pipeline.tables.continual import ContinualScores, ContinualSteps
from pipeline.tables.contract import make_table

OWN = ("continual_steps", "continual_scores", "continual_measures")


@pytest.fixture(scope="module")
def study() -> Study:
    """Nothing but what continual left."""
    whole = fabricated.study()
    return replace(whole, frames={name: whole.frames[name] for name in OWN})


def with_frames(study: Study, **frames: pd.DataFrame) -> Study:
    return replace(study, frames={**study.frames, **frames})


@pytest.fixture(scope="module")
def page(study: Study) -> str:
    return html.page(study, {})


def test_every_number_is_a_cell_and_each_table_has_some(study: Study, page: str):
    parsed = read(page)
    assert parsed.faults == []
    assert untraced(parsed, study.frames) == []
    assert misquoted(parsed, study.frames, study.min_cell) == []
    quoted = {attributes["data-table"] for attributes, _ in parsed.data if "data-key" in attributes}
    assert quoted == set(OWN)


def test_hospitals_stand_in_the_order_in_which_they_were_learnt(study: Study, page: str):
    assert study.learnt(BACKBONE) == list(SEQUENCE)
    assert study.strategies(fabricated.FINDING, BACKBONE) == ["naive", "replay", "joint"]
    heads = section(page, "continual").split("<thead>")[1].split("</thead>")[0]
    assert text_of(heads.replace("</th>", "; </th>")).split("; ")[1:4] == [
        "Home: north", "Elsewhere: east", "Elsewhere: west",
    ]  # fmt: skip


def test_it_says_that_joining_spends_labels_and_only_where_it_does(study: Study, page: str):
    told = text_of(section(page, "continual"))
    assert "Joining spends labels" in told
    assert "spent by joining" in told
    at_home = make_table(ContinualSteps, study.frames["continual_steps"].assign(role="source"))
    told = text_of(section(html.page(with_frames(study, continual_steps=at_home), {}), "continual"))
    assert "Joining spends labels" not in told
    assert "spent by joining" not in told


def test_what_is_undefined_says_why_and_few_patients_are_not_told(page: str):
    told = section(page, "continual")
    assert ONE_CLASS in text_of(told)
    counts = [text for a, text in read(told).data if a.get("data-column") == "num_patients" and "west" in a["data-key"]]
    assert set(counts) == {"<11"}


def test_signs():
    row = {"measure": "forgetting", "value": 0.12, "difference": 0.1, "difference_low": -0.02, "ci_low": 0.0}
    assert cells.shown(row, "value", 11) == "+0.12"
    assert cells.shown(row, "difference_low", 11) == "−0.02"
    assert cells.shown({**row, "measure": "final_auroc"}, "value", 11) == "0.12"
    assert cells.shown({**row, "measure": "final_auroc"}, "difference", 11) == "+0.10"


def test_the_figure_draws_the_table(study: Study):
    figure = continual_figures.sequence(study, fabricated.FINDING, BACKBONE)
    frame = study.frames["continual_scores"]
    pooled = frame[frame["seed"].isna()].sort_values("step")
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    for title, site in (("Home: north", "north"), ("Elsewhere: east", "east")):
        lines = [line for line in panels[title].lines if line.get_marker() not in ("None", "")]
        drawn = {tuple(np.asarray(line.get_ydata())) for line in lines}
        assert drawn == {tuple(own["value"]) for _, own in pooled[pooled["site"] == site].groupby("run")}
    assert "not defined" in {text.get_text() for text in panels["Elsewhere: west"].texts}
    ticks = [text.get_text() for text in panels["Home: north"].get_xticklabels()]
    assert ticks == ["north", "+ east", "+ west"]


def test_one_strategy_alone_and_no_measures(study: Study):
    frame = study.frames["continual_scores"]
    joint = make_table(ContinualScores, frame[frame["strategy"] == "joint"])
    alone = replace(study, frames={"continual_scores": joint})
    parsed = read(html.page(alone, {}))
    assert parsed.faults == []
    assert untraced(parsed, alone.frames) == []
    assert continual_figures.sequence(alone, fabricated.FINDING, BACKBONE)


def test_without_the_stage_there_is_no_section(study: Study):
    assert 'id="continual"' not in html.page(replace(study, frames={}), {})
