"""Counts by hand; standardised mean differences by hand and by their laws."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.analysis import table_one
from pipeline.analysis.table_one import smd_of_levels, smd_of_quantities

# image, patient, study, site, role, split, sex, age, manufacturer, model, view, row spacing, label
ROWS = [
    ("i1", "p1", "s1", "north", "source", "train", "F", 40, "acme", "dr1", "pa", 0.2, 1),
    ("i2", "p1", "s2", "north", "source", "train", "F", 42, "acme", "dr1", "ap", 0.2, 0),
    ("i3", "p2", "s3", "north", "source", "train", "F", 50, "acme", None, "pa", 0.4, 0),
    ("i4", "p2", "s3", "north", "source", "train", "M", 50, None, None, "pa", None, None),
    ("i5", "p3", "s4", "north", "source", "train", None, None, "beta", "x", None, None, None),
    ("i6", "p4", "s5", "north", "source", "id_val", "M", 61, "beta", "x", "pa", 0.3, 1),
    ("i7", "p5", "s6", "east", "target", "ood_test", "M", 70, "gamma", "y", "ap", 0.5, 0),
    ("i8", "p6", "s7", "east", "target", "ood_test", "F", 90, "gamma", "y", "ap", 0.7, 1),
]
COLUMNS = """image_id patient_id study_id site role split sex age_years
    manufacturer model view_position row_spacing_mm""".split()
EMPTY = {"modality": None, "body_part": "chest", "photometric_interpretation": "MONOCHROME2"}


def described() -> pd.DataFrame:
    instances = pd.DataFrame([row[:-1] for row in ROWS], columns=COLUMNS).assign(**EMPTY, imager_row_spacing_mm=np.nan)
    labels = pd.DataFrame({"image_id": [r[0] for r in ROWS], "finding": "opacity", "label": [r[-1] for r in ROWS]})
    return table_one.describe(instances.convert_dtypes(), labels.convert_dtypes())


def level(table: pd.DataFrame, variable: str, name: str, split: str = "train") -> dict[str, object]:
    hit = (table["split"] == split) & (table["variable"] == variable) & (table["level"] == name)
    return table[hit].iloc[0].to_dict()


class TestTableOne:
    @pytest.fixture
    def table(self) -> pd.DataFrame:
        return table_one.table_one(described())

    @pytest.mark.parametrize(
        ("variable", "name", "patients", "studies", "images", "share"),
        [
            ("total", "", 3, 4, 5, 1),
            ("sex", "F", 1, 2, 2, 1 / 3),
            ("sex", "M", 0, 0, 0, 0),
            ("sex", "contradictory", 1, 1, 2, 1 / 3),
            ("sex", "missing", 1, 1, 1, 1 / 3),
            ("age_years", "missing", 1, 1, 1, 1 / 3),
            ("finding: opacity", "present", 1, 2, 2, 1 / 3),  # one positive image makes the patient positive
            ("finding: opacity", "absent", 1, 1, 2, 1 / 3),
            ("finding: opacity", "not annotated", 1, 1, 1, 1 / 3),
            ("image finding: opacity", "present", 1, 1, 1, 1 / 5),
            ("image finding: opacity", "absent", 2, 2, 2, 2 / 5),
            ("image finding: opacity", "not annotated", 2, 2, 2, 2 / 5),
            ("device", "acme, dr1", 1, 2, 2, 2 / 5),
            ("device", "acme, missing", 1, 1, 1, 1 / 5),
            ("device", "missing", 1, 1, 1, 1 / 5),
            ("device", "gamma, y", 0, 0, 0, 0),
            ("view_position", "pa", 2, 2, 3, 3 / 5),
            ("view_position", "missing", 1, 1, 1, 1 / 5),
            ("modality", "missing", 3, 4, 5, 1),
            ("pixel_spacing_mm", "missing", 2, 2, 2, 2 / 5),
        ],
    )
    def test_counts(self, table, variable, name, patients, studies, images, share):
        row = level(table, variable, name)
        assert (row["num_patients"], row["num_studies"], row["num_images"]) == (patients, studies, images)
        assert row["share"] == pytest.approx(share)

    def test_age_is_the_patients_at_the_first_image(self, table):
        row = level(table, "age_years", "known")
        assert [row[name] for name in ("first_quartile", "median", "third_quartile")] == [42.5, 45, 47.5]
        assert row["num_patients"] == 2

    def test_spacing_is_the_images(self, table):
        assert level(table, "pixel_spacing_mm", "known")["median"] == pytest.approx(0.2)

    def test_a_quantity_that_nobody_has_has_no_rows(self, table):
        assert "imager_pixel_spacing_mm" not in set(table["variable"])

    def test_a_quantity_unknown_here_is_null_here(self, table):
        known = table[(table["variable"] == "pixel_spacing_mm") & (table["level"] == "missing")]
        assert known["median"].isna().all()

    def test_levels_add_up(self, table):
        for (_, _, variable), rows in table.groupby(["site", "split", "variable"]):
            assert rows["share"].sum() == pytest.approx(1), variable


class TestBalance:
    def test_by_hand(self):
        table = table_one.balance(described()).set_index("variable")
        # Home 40, 50, 61 (variance 110.333), elsewhere 70, 90 (variance 200).
        assert table.loc["age_years", "smd"] == pytest.approx((80 - 151 / 3) / math.sqrt((331 / 3 + 200) / 2))
        # Home F, M (contradictory and missing left out), elsewhere M, F.
        assert table.loc["sex", "smd"] == 0
        # Of images: home one ap of five known, elsewhere two of two.
        assert table.loc["view_position", "smd"] == pytest.approx(0.8 / math.sqrt(0.16 / 2))
        assert math.isnan(table.loc["device", "smd"])
        assert table.loc["device", "note"] == "undefined: no value occurs on both sides"
        assert table.loc["body_part", "note"] == "undefined: the same value throughout"
        assert table.loc["modality", "note"] == "no known value on one side"
        assert table.loc["age_years", "num_patients"] == 2
        assert set(table["site"]) == {"east"}

    def test_three_levels_by_hand(self):
        # p = (.5, .3, .2), q = (.2, .3, .5) without the first level: d = (0, -.3); S = [[.21, -.105], [-.105, .205]].
        inverse = np.array([[0.205, 0.105], [0.105, 0.21]]) / (0.21 * 0.205 - 0.105**2)
        expected = math.sqrt(0.3**2 * inverse[1, 1])
        value, note = smd_of_levels({"a": 5, "b": 3, "c": 2}, {"a": 2, "b": 3, "c": 5})
        assert value == pytest.approx(expected)
        assert note is None

    @given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50), st.integers(1, 50))
    def test_two_levels_are_the_binary_difference(self, a, b, c, d):
        p, q = a / (a + c), b / (b + d)
        value, _ = smd_of_levels({"yes": a, "no": c}, {"yes": b, "no": d})
        variance = (p * (1 - p) + q * (1 - q)) / 2
        assert value == (pytest.approx(abs(p - q) / math.sqrt(variance), abs=1e-9) if variance else None)

    @given(
        st.dictionaries(st.sampled_from("abcde"), st.integers(0, 40), min_size=1),
        st.dictionaries(st.sampled_from("abcde"), st.integers(0, 40), min_size=1),
    )
    def test_symmetric_blind_to_the_names_and_null_where_nothing_is_shared(self, one, other):
        value, note = smd_of_levels(one, other)
        back, _ = smd_of_levels(other, one)
        renamed, _ = smd_of_levels(*({chr(219 - ord(k)): v for k, v in side.items()} for side in (one, other)))
        assert (value is None) == (note is not None)
        if value is None:
            assert back is None
            assert renamed is None
        else:
            assert back == pytest.approx(value, abs=1e-9)
            assert renamed == pytest.approx(value, abs=1e-6)

    def test_undefined_quantities(self):
        assert smd_of_quantities(np.array([1.0]), np.array([1.0, 2.0]))[0] is None
        assert smd_of_quantities(np.array([1.0, 1.0]), np.array([2.0, 2.0])) == (
            None,
            "undefined: no variance on either side",
        )
