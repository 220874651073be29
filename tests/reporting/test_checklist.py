"""The guidelines' items are complete, and each leads to evidence that the page has."""

import re

import pytest
from reporting import fabricated
from reporting.page_checker import read
from reporting.test_page import section, text_of

from pipeline.reporting import checklist, html
from pipeline.reporting.study import _PARTS

TRIPOD = """1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f 12g 13 14 15 16 17
18a 18b 18c 18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c""".split()


@pytest.fixture(scope="module")
def page() -> str:
    return html.page(fabricated.study(), {})


def numbers(guideline: checklist.Guideline) -> list[str]:
    return [item.number for _, items in guideline.parts for item in items]


def test_all_items_stand_in_order():
    assert numbers(checklist.CLAIM) == [str(number) for number in range(1, 45)]
    assert numbers(checklist.TRIPOD_AI) == TRIPOD
    assert len(TRIPOD) == 52


def test_sections_are_the_pages():
    named = {
        section for guide in checklist.GUIDELINES for _, items in guide.parts for i in items for section in i.sections
    }
    assert named <= set(_PARTS)


def test_each_item_links_to_what_is_there_or_is_the_authors(page: str):
    shown = section(page, "checklist")
    ids = {attributes["id"] for _, attributes in read(page).elements if "id" in attributes}
    rows = re.findall(r'<tr><th scope="row" class="verbatim">(.*?)</th>.*?</tr>', shown, re.DOTALL)
    assert rows == [number for guideline in checklist.GUIDELINES for number in numbers(guideline)]
    for row in re.findall(r'<tr><th scope="row".*?</tr>', shown, re.DOTALL):
        links = re.findall(r'href="#(\w+)"', row)
        assert set(links) <= ids
        assert bool(links) != ("author must fill" in row)


def test_sources_are_named(page: str):
    text = text_of(section(page, "checklist"))
    assert "Tejani et al." in text
    assert "BMJ 2024;385:e078378" in text


def test_a_section_that_is_not_there_is_the_authors():
    frames = {name: fabricated.study().frames[name].head(0) for name in ("remedies", "continual_scores")}
    metrics = fabricated.study().frames["metrics"]
    frames["metrics"] = metrics[~metrics["run"].str.contains("-coral|-prevalence|-temperature|adapt_")]
    shown = section(html.page(fabricated.study(frames=frames), {}), "checklist")
    assert "#remedies" not in shown
    _, row = re.findall(r'class="verbatim">24</th>.*?</tr>', shown, re.DOTALL)  # CLAIM's, TRIPOD's
    assert "author must fill" in row
