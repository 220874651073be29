"""Figures with hover values: all that they draw and tell are cells."""

import base64
import gzip
import hashlib
import json
import re
from copy import deepcopy
from importlib.metadata import distribution

import pytest
from reporting import fabricated
from reporting.page_checker import Page, misdrawn, read
from reporting.test_page import PIXEL

from pipeline.reporting import html, interactive
from pipeline.reporting.study import Study
from pipeline.tables.contract import make_table
from pipeline.tables.stress import StressCurves

KINDS = {"histograms", "curves", "verdict", "labels", "costs", "forest", "reliability", "stress", "abstention"}


@pytest.fixture(scope="module")
def study() -> Study:
    return fabricated.study()


@pytest.fixture(scope="module")
def page(study: Study) -> str:
    return html.page(study, dict.fromkeys(interactive.specs(study), PIXEL))


def test_each_kind_of_figure_is_there_and_draws_cells(page: str, study: Study):
    assert {name.partition("-")[0] for name in interactive.specs(study)} == KINDS
    assert len(read(page).figures) == len(interactive.specs(study))
    assert misdrawn(read(page), study.frames, study.min_cell) == []


def test_the_checker_sees_another_number(page: str, study: Study):
    for part, value in (("raw", 0.123), ("shown", "0.99")):
        altered = Page("")
        altered.figures = deepcopy(read(page).figures)
        trace = next(t for f in altered.figures for p in f["panels"] for t in p["traces"] if t["table"] == "verdicts")
        trace[part]["difference"][0] = value
        assert len(misdrawn(altered, study.frames, study.min_cell)) == 1
    altered.figures[0]["panels"][0]["width"] = 3
    assert [text for text in misdrawn(altered, study.frames, study.min_cell) if "a number beside the cells" in text]


def test_few_patients_are_not_told(page: str):
    told = {text for f in read(page).figures for p in f["panels"] for t in p["traces"]
            for text in t["shown"].get("num_patients", [])}  # fmt: skip
    assert "<11" in told
    assert not [text for text in told if text.isdigit() and 0 < int(text) < 11]


def test_points_stand_with_the_series_they_belong_to(study: Study):
    spec = interactive.verdicts(study, fabricated.FINDING, "resnet18", "scratch")
    names = [series["name"] for series in spec["series"]]
    for panel in spec["panels"]:
        for trace in panel["traces"]:
            (key,) = trace["keys"]
            assert study.family(key.partition("|")[0]).label == names[trace["series"]]
            assert names[trace["series"]] in panel["rows"]


def test_a_script_cannot_be_closed_from_inside():
    hostile = {"title": "</script><script>alert(1)</script>&"}
    text = str(interactive.as_json(hostile))
    assert "<" not in text
    assert json.loads(text) == hostile


def test_the_library_is_the_packages_own_and_the_policy_lets_it_run(page: str):
    package = distribution("plotly")
    script = package.locate_file("plotly/package_data/plotly.min.js").read_bytes()
    packed = re.search(r'id="plotly">([^<]+)<', page)
    assert packed
    assert gzip.decompress(base64.b64decode(packed[1])) == script
    allowed = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert allowed
    own = page.rpartition("<script>")[2].partition("</script>")[0]
    for code in (script, own.encode()):
        assert base64.b64encode(hashlib.sha256(code).digest()).decode() in allowed[1]
    assert hashlib.sha256(script).hexdigest() in page


def test_without_such_figures_no_library_is_carried(study: Study):
    assert 'id="plotly"' not in html.page(study, {})


def test_what_is_not_defined_is_a_gap_not_a_zero():
    stress = fabricated.study().frames["stress"].copy()
    stress.loc[stress["severity"] == 2, ["value", "ci_low", "ci_high"]] = None
    study = fabricated.study(frames={"stress": make_table(StressCurves, stress)})
    spec = interactive.stress(study, fabricated.FINDING, "resnet18")
    trace = spec["panels"][0]["traces"][0]
    assert trace["raw"]["value"][2] is None
    assert trace["shown"]["value"][2] == "–"
