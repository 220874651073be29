"""Texts of the card: what is undefined, and what is too small to be told."""

import pytest
from jinja2 import UndefinedError

from pipeline.handover import card


def metric(group, patients, name="auroc", value=0.7, split="ood_test"):
    return {"finding": "a", "split": split, "group": group, "metric": name, "value": value, "ci_low": 0.6,
            "ci_high": 0.8, "num_images": 2 * patients, "num_patients": patients, "note": ""}  # fmt: skip


def test_a_value_has_its_interval_or_says_that_it_has_none():
    row = metric("target", 20)
    assert card.interval(row) == "0.700 (0.600 to 0.800)"
    assert card.interval({**row, "ci_low": None}) == "0.700 (no interval)"
    assert card.interval({**row, "value": None}) == "undefined"


def test_small_counts_are_not_told():
    row = {"num_patients": 4, "num_images": 40, "num_none": 0}
    assert [card.count(row, name, 11) for name in row] == ["<11", "hidden", "0"]
    assert [card.count(row, name, 0) for name in row] == ["4", "40", "0"]


def test_a_label_that_would_give_a_small_one_away_is_hidden():
    row = {"num_patients": 50, "num_images": 60, "num_positive": 3, "num_negative": 57, "num_unknown": 0}
    found = card.composition_rows([row], 11)[0]
    assert (found["num_positive"], found["num_negative"], found["num_unknown"]) == ("<11", "hidden", "0")
    assert card.composition_rows([row], 0)[0]["num_negative"] == "57"


def test_a_group_that_would_give_a_small_one_away_is_not_told():
    rows = [metric(f"sex={sex}", count) for sex, count in (("F", 40), ("M", 30), ("O", 4))]
    assert card.told_groups(rows, 11) == {("ood_test", "sex=F")}
    assert len(card.told_groups(rows, 0)) == 3
    assert card.told_groups([metric("sex=F", 4), metric("sex=M", 30)], 11) == set()
    of_two = [metric(f"age_band={band}", count) for band, count in (("0-19", 6), ("20-39", 7), ("40-59", 50))]
    assert card.told_groups(of_two, 11) == {("ood_test", "age_band=40-59")}
    table, hidden = card.subgroups(rows, "a", 11)
    assert [row["group"] for row in table] == ["sex=F"]
    assert hidden == 2
    assert list(card.eval_metrics(rows, 11)) == [f"a/ood_test/sex=F/auroc{end}" for end in ("", "/ci_low", "/ci_high")]


def test_the_total_of_sites_is_hidden_with_a_small_site():
    rows = [metric("site=x", 4), metric("site=y", 40), metric("target", 44)]
    told = {row["group"]: (row["num_patients"], row["num_images"]) for row in card.places(rows, "a", 11)}
    assert told == {"site=x": ("<11", "<11"), "site=y": ("40", "80"), "target": ("hidden", "hidden")}
    assert card.total(rows, "num_images", 11) == "hidden"
    assert card.total(rows[1:2], "num_images", 11) == "80"


def test_reasons_of_undefined_values_are_told_once():
    rows = [{**metric("site=x", 4, value=None), "note": "one class only"}] * 2
    rows.append({**metric("sex=F", 4, value=None), "note": "few"})
    assert card.undefined_notes(rows) == ["auroc, ood_test site=x: one class only"]


def test_a_missing_fact_is_an_error():
    with pytest.raises(UndefinedError):
        card.render("LICENSE.j2", name="a")
