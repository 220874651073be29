"""Calls against scikit-learn's counts, regions against a picture drawn by hand, shares and means against NumPy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import confusion_matrix

from pipeline.analysis.gallery import (
    NOT_RECORDED,
    SHARES,
    ZERO_MAP,
    Placement,
    call_counts,
    called,
    cases,
    drawn,
    mean_shares,
    most_confident,
    region_masks,
    shares,
)
from pipeline.tables.contract import make_table
from pipeline.tables.gallery import CALLS, GROUPS, REGIONS
from pipeline.tables.predictions import Predictions


def predictions(num: int = 60, seed: int = 0, **columns: object) -> pd.DataFrame:
    """Of one run on two sites; two images a patient and study, a few without a label."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(0, 2, num), 1)  # with ties
    made = pd.DataFrame(
        {
            "image_id": [f"i{i * 7 % 211:03d}" for i in range(num)],
            "finding": "opacity", "run": "r", "backbone": "b", "method": "m", "adaptation": "none",
            "patient_id": [f"p{i // 2}" for i in range(num)], "study_id": [f"s{i // 2}" for i in range(num)],
            "site": ["home" if i < num // 2 else "away" for i in range(num)],
            "split": ["id_test" if i < num // 2 else "ood_test" for i in range(num)],
            "label": pd.array([None if i % 10 == 9 else int(rng.random() < 0.5) for i in range(num)], dtype="Int8"),
            "logit": logits, "probability": expit(logits), **columns,
        }
    )  # fmt: skip
    return make_table(Predictions, made).astype({"image_id": object, "patient_id": object, "study_id": object})


def calls_of(frame: pd.DataFrame, threshold: float, unit: str = "image", aggregate: str = "mean") -> pd.DataFrame:
    return called(cases(frame, unit, aggregate), {"opacity": threshold})


class TestCalls:
    @pytest.mark.parametrize("threshold", [0.5, 0.731, float(expit(0.4))])
    def test_kinds_are_the_confusion_matrix(self, threshold: float):
        frame = predictions()
        found = calls_of(frame, threshold)
        for site in ("home", "away"):
            own = frame[(frame["site"] == site) & frame["label"].notna()]
            truth, positive = own["label"].to_numpy(int), own["probability"].to_numpy() >= threshold
            (tn, fp), (fn, tp) = confusion_matrix(truth, positive, labels=[0, 1])
            counts = call_counts(found[found["site"] == site])
            assert [counts[kind][0] for kind in CALLS] == [fp, tp, fn, tn]
            wrong = own[(truth == 0) & positive]
            assert counts["false_positive"][1] == wrong["patient_id"].nunique()

    def test_at_the_threshold_is_positive(self):
        frame = predictions(2, logit=[0.4, 0.3], probability=expit([0.4, 0.3]), label=[0, 0])
        assert list(calls_of(frame, float(expit(0.4))).sort_values("logit")["kind"]) == [
            "true_negative", "false_positive",
        ]  # fmt: skip

    def test_only_annotated_test_images_with_a_threshold(self):
        frame = predictions(split=["id_val", "id_test"] * 30, site="home")
        found = calls_of(frame, 0.5)
        kept = frame[(frame["split"] == "id_test") & frame["label"].notna()]
        assert set(found["image_id"]) == set(kept["image_id"])
        assert calls_of(frame, float("nan")).empty
        assert called(cases(frame, "image", "mean"), {}).empty

    @pytest.mark.parametrize("aggregate", ["mean", "max"])
    def test_studies_are_called_as_a_whole_and_shown_by_the_image_that_speaks_most_for_the_call(self, aggregate: str):
        frame = predictions(80, seed=3, label=[int(i // 2 % 3 == 0) for i in range(80)])
        found = calls_of(frame, 0.6, "study", aggregate).set_index("image_id")
        kinds = set()
        for _, study in frame.groupby("study_id"):
            logit = study["logit"].max() if aggregate == "max" else study["logit"].mean()
            positive = expit(logit) >= 0.6
            ordered = study.sort_values(["logit", "image_id"])
            row = found.loc[ordered["image_id"].iloc[-1 if positive else 0]]
            assert row["logit"] == pytest.approx(logit)
            right = positive == bool(study["label"].iloc[0])
            assert row["kind"] == ("true_" if right else "false_") + ("positive" if positive else "negative")
            kinds.add(row["kind"])
        assert kinds == set(CALLS)
        assert len(found) == 40


class TestMostConfident:
    def test_one_image_a_patient_in_order_of_confidence(self):
        found = calls_of(predictions(200, seed=5), 0.55)
        shown = most_confident(found, 3)
        for (site, kind), part in found.groupby(["site", "kind"]):
            sign = -1 if kind.endswith("positive") else 1
            best: dict[str, tuple[float, str]] = {}
            for row in part.to_dict("records"):  # by hand, a patient at a time
                entry = (sign * row["logit"], row["image_id"])
                best[row["patient_id"]] = min(entry, best.get(row["patient_id"], entry))
            own = shown[(shown["site"] == site) & (shown["kind"] == kind)].sort_values("rank")
            assert list(own["image_id"]) == [name for _, name in sorted(best.values())[:3]]
            assert list(own["rank"]) == list(range(1, len(own) + 1))

    def test_the_order_of_rows_does_not_matter(self):
        frame = predictions(100, seed=6)
        one, other = (most_confident(calls_of(f, 0.5), 4) for f in (frame, frame.sample(frac=1, random_state=1)))
        columns = ["finding", "site", "kind", "rank"]
        assert one.set_index(columns).sort_index().equals(other.set_index(columns).sort_index())


class TestDrawn:
    def test_whole_patients_up_to_a_number_of_images_a_site(self):
        found = calls_of(predictions(100, seed=7), 0.5)
        few = found[drawn(found, 15)]
        assert set(few["site"]) == {"home", "away"}
        for _, part in few.groupby("site"):
            assert 13 <= len(part) <= 15
        for patient, part in few.groupby("patient_id"):
            assert len(part) == (found["patient_id"] == patient).sum()
        assert drawn(found, 1000).all()
        assert len(found[drawn(found, 1)]) >= 2  # a patient a site

    def test_who_is_drawn_stays_when_others_leave(self):
        found = calls_of(predictions(100, seed=7), 0.5).reset_index(drop=True)
        few = set(found[drawn(found, 15)]["patient_id"])
        gone = next(patient for patient in found["patient_id"] if patient not in few)
        rest = found[found["patient_id"] != gone].reset_index(drop=True)
        assert few <= set(rest[drawn(rest, 15)]["patient_id"])


class TestRegions:
    def test_by_hand(self):
        """10 rows by 20 columns in a square of 20: a strip of 1 (10/16 rounds to it), corners of 2."""
        masks = region_masks(Placement(20, 5, 15, 0, 20))
        padding, border, corners = (masks[name] for name in REGIONS)
        assert padding.sum() == 200
        assert padding[:5].all()
        assert padding[15:].all()
        assert border.sum() == 2 * 20 + 2 * 8
        assert border[5].all()
        assert border[5:15, 0].all()
        assert not border[6:14, 1:19].any()
        assert corners.sum() == 16
        for row in (5, 6, 13, 14):
            assert list(np.flatnonzero(corners[row])) == [0, 1, 18, 19]

    @pytest.mark.parametrize(
        ("row", "place"),
        [
            ((-2, 24, 3, 14), Placement(20, 0, 20, 3, 17)),  # cut at both ends of its rows
            ((0, 20, 0, 20), Placement(20, 0, 20, 0, 20)),
            ((0, 20, None, 20), None),
        ],
    )
    def test_placement(self, row: tuple[int | None, ...], place: Placement | None):
        names = ("pad_top", "resized_rows", "pad_left", "resized_columns")
        assert Placement.of(20, dict(zip(names, row, strict=True))) == place

    @settings(deadline=None, max_examples=50)
    @given(st.integers(16, 64), st.data())
    def test_properties(self, size: int, data: st.DataObject):
        rows, columns = (data.draw(st.integers(6, size)) for _ in range(2))
        top, left = (size - rows) // 2, (size - columns) // 2
        masks = region_masks(Placement(size, top, top + rows, left, left + columns))
        assert (~masks["padding"]).sum() == rows * columns
        for name in ("border", "corners"):
            assert not (masks[name] & masks["padding"]).any()
            inside = masks[name][top : top + rows, left : left + columns]
            assert (inside == inside[::-1]).all()
            assert (inside == inside[:, ::-1]).all()
        turned = region_masks(Placement(size, left, left + columns, top, top + rows))
        assert all((turned[name] == mask.T).all() for name, mask in masks.items())


class TestShares:
    masks = region_masks(Placement(20, 0, 20, 2, 18))

    def test_a_map_without_preference_has_the_shares_of_the_area(self):
        row = shares(np.full((20, 20), 0.3, np.float32), self.masks)
        for name in REGIONS:
            assert row[name] == pytest.approx(row[f"{name}_area"]) == pytest.approx(self.masks[name].mean())

    @pytest.mark.parametrize("name", REGIONS)
    def test_a_map_in_one_region_lies_there(self, name: str):
        row = shares(self.masks[name].astype(np.float32), self.masks)
        assert row[name] == 1
        assert row["padding"] == float(name == "padding")

    def test_without_padding_its_share_is_not_defined(self):
        row = shares(np.ones((20, 20), np.float32), region_masks(Placement(20, 0, 20, 0, 20)))
        assert (row["padding"], row["padding_area"]) == (None, None)
        assert row["border"] > 0

    def test_a_map_of_zeros_has_no_shares_and_says_so(self):
        row = shares(np.zeros((20, 20), np.float32), self.masks)
        assert [row[name] for name in REGIONS] == [None] * 3
        assert row["note"] == ZERO_MAP
        assert row["border_area"] > 0

    def test_where_the_image_lies_is_not_guessed(self):
        row = shares(np.ones((20, 20), np.float32), None)
        assert [row[name] for name in SHARES] == [None] * 6
        assert row["note"] == NOT_RECORDED


def measured(kinds: list[str], values: list[float | None], patients: list[str], note: str = "") -> pd.DataFrame:
    frame = pd.DataFrame({"kind": kinds, "patient_id": patients, "note": note})
    for name in SHARES:
        frame[name] = values
    return frame


class TestMeans:
    def rows(self, frame: pd.DataFrame, region: str = "corners") -> dict[str, dict[str, object]]:
        made = {(row["group"], row["region"]): row for row in mean_shares(frame, 400)}
        assert len(made) == len(GROUPS) * len(REGIONS)
        return {group: made[group, region] for group in GROUPS}

    def frame(self, num: int = 40, seed: int = 1) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        kinds = [CALLS[i % 4] for i in range(num)]
        values = [0.2 + 0.2 * (kind == "false_positive") + 0.05 * rng.random() for kind in kinds]
        return measured(kinds, values, [f"p{i // 2}" for i in range(num)])

    def test_means_of_each_group(self):
        frame = self.frame()
        rows = self.rows(frame)
        for group in GROUPS[:-1]:
            kinds = [kind for kind in CALLS if group in (kind, "mistakes" if kind.startswith("f") else "correct")]
            own = frame[frame["kind"].isin(kinds)]
            row = rows[group]
            assert row["value"] == pytest.approx(own["corners"].mean())
            assert row["area"] == pytest.approx(own["corners_area"].mean())
            assert (row["num_images"], row["num_patients"]) == (len(own), own["patient_id"].nunique())
            assert row["ci_low"] < row["value"] < row["ci_high"]
        change = rows["mistakes_minus_correct"]
        assert change["value"] == pytest.approx(rows["mistakes"]["value"] - rows["correct"]["value"])
        assert change["ci_low"] > 0
        assert change["area"] is None

    def test_the_interval_counts_patients_and_not_images(self):
        """Each image twice over, of the same patient, says nothing new. Sampled by image it would be narrower."""
        frame = self.frame()
        once, twice = self.rows(frame), self.rows(pd.concat([frame, frame], ignore_index=True))
        for group in ("mistakes", "mistakes_minus_correct"):
            for column in ("value", "ci_low", "ci_high", "num_patients"):
                assert twice[group][column] == pytest.approx(once[group][column])
            assert twice[group]["num_images"] == 2 * once[group]["num_images"]

    def test_the_difference_is_paired_by_patient(self):
        """Every patient with a mistake and a right call of the same share: between them nothing varies."""
        levels = np.random.default_rng(2).uniform(0.1, 0.9, 20)
        frame = measured(
            ["false_positive", "true_negative"] * 20, list(np.repeat(levels, 2)), [f"p{i // 2}" for i in range(40)]
        )
        row = self.rows(frame)["mistakes_minus_correct"]
        assert row["value"] == 0
        assert "no variation" in str(row["note"])

    def test_a_site_without_mistakes(self):
        rows = self.rows(measured(["true_positive", "true_negative"], [0.2, 0.4], ["a", "b"]))
        assert np.isnan(rows["mistakes"]["value"])
        assert (rows["mistakes"]["note"], rows["mistakes"]["num_patients"]) == ("no such call", 0)
        assert rows["mistakes_minus_correct"]["note"] == "needs mistakes and correct calls"
        assert rows["correct"]["value"] == pytest.approx(0.3)

    def test_nothing_at_all(self):
        rows = self.rows(measured([], [], []))
        assert all(np.isnan(row["value"]) and row["note"] for row in rows.values())

    def test_why_there_is_no_value(self):
        frame = self.frame()
        frame[["padding", "padding_area"]] = None
        assert self.rows(frame, "padding")["mistakes"]["note"] == "no image has padding"
        assert self.rows(frame, "padding")["mistakes"]["num_images"] == 0
        frame["border"], frame["note"] = None, ZERO_MAP
        assert self.rows(frame, "border")["mistakes"]["note"] == ZERO_MAP
        lost = measured(["false_positive"], [None], ["a"], NOT_RECORDED)
        assert self.rows(lost)["mistakes"]["note"] == NOT_RECORDED

    def test_a_single_patient_has_no_interval(self):
        rows = self.rows(measured(["false_positive"] * 2, [0.2, 0.3], ["a", "a"]))
        assert rows["mistakes"]["value"] == pytest.approx(0.25)
        assert "single patient" in str(rows["mistakes"]["note"])
