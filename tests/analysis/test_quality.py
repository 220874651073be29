"""Planted faults are found and nothing else is, on simulated radiographs; what is measured has known values."""

from functools import cache
from itertools import pairwise

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.analysis import quality
from pipeline.analysis.quality import QualityParams
from pipeline.simulation.phantom import draw_anatomy, draw_opacity, draw_pose, render
from pipeline.tables.quality import OUTLIER_KINDS

PX = 64
PARAMS = QualityParams()


@cache
def radiograph(number: int) -> np.ndarray:
    """(64, 64) uint8: a simulated chest, without noise."""
    rng = np.random.default_rng(number)
    pose = draw_pose(rng, frontal_beam=number % 3 == 0)
    plane = render(draw_anatomy(rng), pose, draw_opacity(rng, 14.0, 0.5 * (number % 2)), (PX, PX), 6.0)
    return np.rint(np.clip(plane / 1.6, 0, 1) * 255).astype(np.uint8)


def slice_of_a_trunk() -> np.ndarray:
    """(64, 64) uint8: an axial CT slice in outline, an ellipse of tissue with two lungs and a spine."""
    image = np.zeros((PX, PX), np.uint8)
    cv2.ellipse(image, (32, 34), (29, 20), 0, 0, 360, 150, -1)
    for across in (19, 45):
        cv2.ellipse(image, (across, 33), (10, 13), 0, 0, 360, 10, -1)
    cv2.circle(image, (32, 47), 4, 250, -1)
    return image


def upper_half(image: np.ndarray) -> np.ndarray:
    cut = image.copy()
    cut[PX // 2 :] = 0
    return cut


def boxes(num: int, box: tuple[int, int, int, int] = (0, 0, PX, PX)) -> np.ndarray:
    return np.tile(np.array(box, np.int64), (num, 1))


def summarise(images: list[np.ndarray]) -> quality.Summaries:
    return quality.summarise([(np.stack(images), boxes(len(images)))])


def facts(num: int, site: str = "north", role: str = "source", **changes: object) -> pd.DataFrame:
    values = {"modality": "dx", "body_part": "chest", "view_position": None, **changes}
    frame = pd.DataFrame({"image_id": [f"{site}{n:04d}" for n in range(num)], "site": site, "role": role, **values})
    return frame.convert_dtypes().astype({"image_id": "string"})


def kinds(outliers: pd.DataFrame) -> dict[str, str]:
    return dict(zip(outliers["image_id"], outliers["kind"], strict=True))


class TestOutliers:
    def test_exactly_what_is_planted(self):
        images = [radiograph(number) for number in range(120)]
        images[7] = 255 - images[7]
        images[30] = np.full((PX, PX), 90, np.uint8)
        images[31] = np.rint(images[31] / 255 * 8 + 120).astype(np.uint8)  # a picture, but none that can be seen
        images[64] = upper_half(images[64])
        images[99] = slice_of_a_trunk()
        images[100] = np.ascontiguousarray(np.rot90(images[100]))
        outliers, counts, _ = quality.find_outliers(facts(120), summarise(images), PARAMS)
        assert kinds(outliers) == {
            "north0007": "inverted",
            "north0030": "blank",
            "north0031": "blank",
            "north0064": "cropped",
            "north0099": "unusual",
            "north0100": "unusual",
        }
        beyond = outliers["score"] > outliers["threshold"]
        assert (beyond == outliers["kind"].isin(["cropped", "unusual"])).all()
        told = counts.set_index("kind")
        assert dict(told["num_outliers"]) == {"blank": 2, "inverted": 1, "cropped": 1, "unusual": 2}
        assert dict(told["num_judged"]) == {"blank": 120, "inverted": 118, "cropped": 118, "unusual": 118}

    def test_sound_images_are_left_alone(self):
        found, _, _ = quality.find_outliers(facts(200), summarise([radiograph(n) for n in range(200)]), PARAMS)
        assert len(found) <= 2  # phantoms vary; measured: 1 in 100 or fewer

    def test_a_slice_that_calls_itself_ct_is_compared_with_its_site(self):
        rows = facts(100).assign(modality=["ct", *["dx"] * 99])
        images = [slice_of_a_trunk(), *(radiograph(n) for n in range(99))]
        assert kinds(quality.find_outliers(rows, summarise(images), PARAMS)[0]) == {"north0000": "unusual"}

    def test_two_kinds_of_image_at_one_site_are_two_kin(self):
        noise = np.random.default_rng(1).normal(0, 20, (40, PX, PX))
        slices = list(np.clip(slice_of_a_trunk() + noise, 0, 255).astype(np.uint8))
        rows = pd.concat([facts(60), facts(40, modality="ct").assign(image_id=[f"ct{n}" for n in range(40)])])
        images = [*(radiograph(n) for n in range(60)), *slices]
        found, counts, _ = quality.find_outliers(rows.reset_index(drop=True), summarise(images), PARAMS)
        assert not [name for name in found["image_id"] if name.startswith("ct")]
        assert (counts["num_judged"] == 100).all()

    def test_a_site_inverted_as_a_whole_is_seen_from_the_source(self):
        rows = pd.concat([facts(50), facts(50, site="east", role="target")], ignore_index=True)
        images = [radiograph(n) for n in range(50)] + [255 - radiograph(n) for n in range(50, 100)]
        found, _, _ = quality.find_outliers(rows, summarise(images), PARAMS)
        assert set(found.loc[found["kind"] == "inverted", "site"]) == {"east"}
        assert (found["kind"] == "inverted").sum() == 50

    def test_too_few_kin_are_not_judged_but_counted(self):
        images = [255 - radiograph(0), np.zeros((PX, PX), np.uint8), *(radiograph(n) for n in range(2, 12))]
        found, counts, _ = quality.find_outliers(facts(12), summarise(images), PARAMS)
        assert kinds(found) == {"north0001": "blank"}
        assert dict(counts.set_index("kind")["num_judged"]) == {"blank": 12, "inverted": 0, "cropped": 0, "unusual": 0}

    def test_the_same_image_throughout_has_no_distance(self):
        found, counts, _ = quality.find_outliers(facts(40), summarise([radiograph(1)] * 40), PARAMS)
        assert found.empty
        assert dict(counts.set_index("kind")["num_judged"])["unusual"] == 0

    def test_no_image_at_all(self):
        found, counts, _ = quality.find_outliers(facts(0), quality.summarise([]), PARAMS)
        assert found.empty
        assert counts.empty

    def test_order_does_not_matter(self):
        images = [radiograph(n) for n in range(60)]
        images[3] = slice_of_a_trunk()
        one, _, _ = quality.find_outliers(facts(60), summarise(images), PARAMS)
        other, _, _ = quality.find_outliers(facts(60)[::-1].reset_index(drop=True), summarise(images[::-1]), PARAMS)
        assert kinds(one) == kinds(other)
        np.testing.assert_allclose(one["score"], other["score"], rtol=1e-5)


class TestSummaries:
    def test_histogram_leaves_padding_out(self):
        image = np.zeros((PX, PX), np.uint8)
        image[:, 16:48] = 255
        image[:16, 16:48] = 100
        box = boxes(1, (0, 16, PX, 32))
        histogram = quality.summarise([(image[None], box)]).histogram
        assert histogram[63] == pytest.approx(0.75)
        assert histogram[100 // 4] == pytest.approx(0.25)
        assert histogram.sum() == pytest.approx(1)

    def test_spread_is_of_percentiles(self):
        image = np.full((100, 100), 51, np.uint8)
        image[:4] = 0  # 4 % and 4 %: beyond the 5th and the 95th percentile
        image[-4:] = 255
        box = boxes(1, (0, 0, 100, 100))
        assert quality.summarise([(image[None], box)]).spread[0] == 0
        image[:6] = 0
        assert quality.summarise([(image[None], box)]).spread[0] == pytest.approx(0.2)

    def test_covered_is_the_area_with_content(self):
        rng = np.random.default_rng(0)
        image = np.zeros((PX, PX), np.uint8)
        image[16:48, 8:56] = rng.integers(0, 255, (32, 48))
        image[60, 2] = 255  # a marker in the margin
        assert quality.summarise([(image[None], boxes(1))]).covered[0] == pytest.approx(0.5 * 0.75)

    @given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    def test_batches_make_no_difference(self, sizes):
        images = np.stack([radiograph(n) for n in range(sum(sizes))])
        ends = np.cumsum([0, *sizes])
        parts = [(images[a:b], boxes(b - a)) for a, b in pairwise(ends)]
        one, other = quality.summarise([(images, boxes(len(images)))]), quality.summarise(parts)
        for name in ("thumbnails", "spread", "covered", "histogram"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))

    def test_sixteen_bits_are_the_same_picture(self):
        eight = np.stack([radiograph(n) for n in range(5)])
        sixteen = eight.astype(np.uint16) * 257
        one, other = (quality.summarise([(images, boxes(5))]) for images in (eight, sixteen))
        np.testing.assert_array_equal(one.histogram, other.histogram)
        np.testing.assert_array_equal(one.spread, other.spread)
        np.testing.assert_allclose(one.thumbnails, other.thumbnails, atol=1 / 255)
        np.testing.assert_array_equal(quality.contact_sheet(eight), quality.contact_sheet(sixteen))

    def test_a_site_without_images_has_no_histogram(self):
        table = quality.grey_histograms({"north": summarise([radiograph(0)]), "east": quality.summarise([])})
        assert set(table["site"]) == {"north"}
        assert table["share"].sum() == pytest.approx(1)


class TestSheet:
    SPLITS = pd.DataFrame(
        [(f"{n * 37 % 100:02d}", f"p{n // 2}", "train" if n < 80 else "id_val") for n in range(100)],
        columns=["image_id", "patient_id", "split"],
    )

    def test_tiles_are_spread_over_splits_and_patients(self):
        chosen = self.SPLITS.set_index("image_id").loc[quality.choose_tiles(self.SPLITS, 16)]
        assert dict(chosen["split"].value_counts()) == {"train": 8, "id_val": 8}
        assert chosen["patient_id"].is_unique

    def test_a_small_split_leaves_its_place_to_others(self):
        splits = self.SPLITS.drop(self.SPLITS.index[84:])
        chosen = splits.set_index("image_id").loc[quality.choose_tiles(splits, 16)]
        assert dict(chosen["split"].value_counts()) == {"train": 14, "id_val": 2}

    def test_order_of_rows_does_not_matter(self):
        assert quality.choose_tiles(self.SPLITS, 16) == quality.choose_tiles(self.SPLITS[::-1], 16)

    def test_tiles_lie_where_they_should(self):
        images = np.stack([np.full((8, 8), 20 * n + 20, np.uint8) for n in range(5)])
        sheet = quality.contact_sheet(images, columns=3, tile_px=8)
        assert sheet.shape == (20, 30)
        assert (sheet[10:18, 10:18] == 100).all()
        assert (sheet[10:, 20:] == 0).all()
        assert (sheet[8:10] == 0).all()


def test_kinds_have_scores_and_limits():
    _, counts, scores = quality.find_outliers(facts(40), summarise([radiograph(n) for n in range(40)]), PARAMS)
    assert set(counts["kind"]) == set(OUTLIER_KINDS)
    assert scores[list(OUTLIER_KINDS)].notna().all().all()
    assert len(scores) == 40
