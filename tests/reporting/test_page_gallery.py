import io
import re

import numpy as np
import pytest
from matplotlib.image import imread
from reporting import fabricated, fabricated_gallery
from reporting.page_checker import misquoted, read, untraced
from reporting.test_page import PIXEL, section, text_of

from pipeline.reporting import figures, gallery_figures, html
from pipeline.reporting.gallery_figures import Exhibit, Wall, overlay
from pipeline.reporting.study import Study, slug
from pipeline.tables.gallery import CALLS


def frames_of_gallery() -> dict[str, object]:
    """The gallery and what else the page cannot do without."""
    wanted = {"gallery", "gallery_counts", "gallery_means", "metrics", "runs"}
    return {name: frame if name in wanted else frame.head(0) for name, frame in fabricated.study().frames.items()}


@pytest.fixture(scope="module")
def study() -> Study:
    return fabricated.study(frames=frames_of_gallery())


@pytest.fixture(scope="module")
def pictures(study: Study) -> dict[str, bytes]:
    return {slug("gallery", wall.gallery, wall.finding, wall.site): PIXEL for wall in fabricated_gallery.walls(study)}


@pytest.fixture(scope="module")
def page(study: Study, pictures: dict[str, bytes]) -> str:
    return html.page(study, pictures)


def test_numbers_are_traced_and_what_is_small_is_hidden(study: Study, page: str):
    parsed = read(page)
    assert parsed.faults == []
    assert untraced(parsed, study.frames) == []
    assert misquoted(parsed, study.frames, study.min_cell) == []
    own = [(a, text) for a, text in read(section(page, "gallery")).data]
    few = [text for a, text in own if re.search(r"east\|false_positive", a["data-key"])]
    assert set(few) == {"hidden"}
    assert len(few) == 2 + 3 * 2  # counts, and for each region a mean without limits and an area
    assert "east-false_positive" not in page
    assert "east-true_positive-1" in page


def test_with_no_limit_few_patients_are_shown(pictures: dict[str, bytes]):
    study = fabricated.study(min_cell=0, frames=frames_of_gallery())
    made = html.page(study, pictures)
    assert "east-false_positive-1" in made
    assert "hidden" not in {text for _, text in read(section(made, "gallery")).data}
    assert len(misquoted(read(made), study.frames, 11)) > 5  # the checker sees it


def test_without_pictures_no_image_is_named(study: Study):
    made = section(html.page(study, {}), "gallery")
    assert "Pseudonym" not in made
    assert "-true_positive-1" not in made
    assert "0.17" in made  # numbers of whole hospitals stay


def test_words(page: str):
    told = text_of(section(page, "gallery"))
    for words in (
        "where",
        "not why",
        "unreliable",
        "Adebayo",
        "Saporta",
        "Selvaraju",
        "no proof",
        "7 rows and 7 columns",
    ):
        assert words in told
    assert "no map for this architecture" not in told or "west" in told
    alts = re.findall(r'alt="([^"]*)"', section(page, "gallery"))
    assert len(alts) == 4
    assert all("under the map" in alt for alt in alts)


def test_differences_are_signed(page: str):
    rows = [text for a, text in read(section(page, "gallery")).data if "mistakes_minus_correct" in a["data-key"]]
    assert {"−0.02", "−0.05", "+0.20"} <= set(rows)


def test_exhibits_are_in_order(study: Study):
    found = study.exhibits(fabricated_gallery.GALLERY, fabricated.FINDING, "south")
    assert list(found) == list(CALLS)
    assert [[row["rank"] for row in rows] for rows in found.values()] == [[1, 2]] * 4
    assert "false_negative" not in study.exhibits(fabricated_gallery.GALLERY, fabricated.FINDING, "north")


class TestFigure:
    def test_draws_each_image_beside_its_map(self, study: Study):
        north, *_, west = fabricated_gallery.walls(study)
        drawn = gallery_figures.gallery(study, north)
        pictures = [axes.images[0].get_array() for axes in drawn.axes]
        assert len(pictures) == 3 * 2 * 2
        assert [picture.ndim for picture in pictures] == [2, 3] * 6
        words = {text.get_text() for text in drawn.texts}
        assert {"1   p 0.89", "2   p 0.79", "False", "negative", "True", "positive"} <= words
        without = gallery_figures.gallery(study, west)
        assert sum(bool(axes.images) for axes in without.axes) == len(without.axes) / 2
        assert {text.get_text() for axes in without.axes for text in axes.texts} == {"no map"}

    def test_the_overlay_is_brightest_where_the_map_is(self):
        grey = np.full((8, 8), 50, np.uint8)
        made = overlay(grey, fabricated_gallery.left(8))
        assert made is not None
        assert made.shape == (8, 8, 3)
        brightness = made.astype(float).sum(2)
        assert (brightness[:, :1] > brightness[:, 1:]).all()
        assert (brightness[:, :4].min(1) > brightness[:, 4:].max(1)).all()
        assert (made[:, -1] == 50).all()  # where the map is nothing the image is as it was
        assert overlay(grey, np.zeros((8, 8), np.uint8)) is None
        assert overlay(grey, None) is None

    @pytest.mark.parametrize("number", [1, 6])
    def test_no_word_is_cut_off_whatever_the_number(self, study: Study, number: int):
        rows = [{"rank": rank, "probability": 0.987654} for rank in range(1, number + 1)]
        image = np.full((16, 16), 90, np.uint8)
        wall = Wall("g", "a_finding", "west", {"false_positive": [Exhibit(row, image, image) for row in rows]})
        png = figures.to_png(gallery_figures.gallery, study, wall, dpi=gallery_figures.DPI)
        pixels = imread(io.BytesIO(png))[..., :3]
        rim = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, :2].reshape(-1, 3),
                              pixels[:, -2:].reshape(-1, 3)])  # fmt: skip
        assert (rim == 1).all()
