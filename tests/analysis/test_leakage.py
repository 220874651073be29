"""Leaks that were put there are counted, each by its own check."""

import pandas as pd
import pytest

from pipeline.analysis.leakage import leakage, overlapping_origins
from pipeline.params import ParamsError
from pipeline.splits import SplitParams
from pipeline.tables.contract import make_table
from pipeline.tables.images import Duplicates
from pipeline.tables.labels import Terms

PARAMS = SplitParams(seed=1, source=["north", "south"], target=["east", "west"])
COLUMNS = ["image_id", "patient_id", "site", "split", "study_id", "source_hmac", "pixels_sha256"]
CLEAN = [
    ("i1", "p1", "north", "train", "t1", "h1", "x1"),
    ("i2", "p1", "south", "train", "t2", "h2", "x2"),
    ("i3", "p2", "north", "id_val", "t3", "h3", "x3"),
    ("i4", "p3", "east", "ood_test", "t4", "h4", "x4"),
]


def count(rows, pairs=(), overlaps=()):
    known = pd.DataFrame(rows, columns=COLUMNS).set_index("image_id", drop=False)
    duplicates = make_table(Duplicates, [
        {"image_id": a, "duplicate_of": b, "patient_id": known.loc[a, "patient_id"],
         "duplicate_patient_id": known.loc[b, "patient_id"], "site": known.loc[a, "site"],
         "duplicate_site": known.loc[b, "site"], "hamming": 0, "correlation": 1.0,
         "same_patient": known.loc[a, "patient_id"] == known.loc[b, "patient_id"]}
        for a, b in pairs
    ])  # fmt: skip
    known = known.reset_index(drop=True)
    instances = known[["image_id", "patient_id", "site", "source_hmac"]]
    table = leakage(known.loc[known["split"] != "", COLUMNS[:5]], instances, known[["image_id", "pixels_sha256"]],
                    duplicates, overlaps, PARAMS)  # fmt: skip
    return dict(zip(table["check"], table["count"], strict=True)), table.set_index("check")


def test_clean():
    counted, table = count(CLEAN)
    assert counted.pop("patients_at_two_sites") == 1
    assert set(counted.values()) == {0}
    assert table.loc["near_duplicates_in_two_splits", "must_be_zero"]


@pytest.mark.parametrize(
    ("row", "check"),
    [
        (("i9", "p1", "north", "id_val", "t9", "h9", "x9"), "patients_in_two_splits"),
        (("i9", "p9", "north", "id_val", "t1", "h9", "x9"), "studies_in_two_splits"),
        (("i9", "p9", "north", "id_val", "t9", "h1", "x9"), "files_in_two_splits"),
        (("i9", "p9", "north", "id_val", "t9", "h9", "x1"), "pixels_in_two_splits"),
        (("i9", "p9", "north", "train", "t9", "h9", "x1"), "pixels_repeated_within_split"),
        (("i9", "p2", "west", "", "t9", "h9", "x9"), "patients_in_both_roles"),
    ],
)
def test_a_planted_leak_is_counted(row, check):
    counted, _ = count([*CLEAN, row])
    assert {name for name, number in counted.items() if number} == {check, "patients_at_two_sites"}


@pytest.mark.parametrize(
    ("row", "pairs", "check", "number"),
    [
        (("i9", "p9", "north", "id_val", "t9", "h9", "x9"), [("i1", "i9")], "near_duplicates_in_two_splits", 1),
        (("i9", "p9", "north", "train", "t9", "h9", "x9"), [("i1", "i9")], "near_duplicates_across_patients", 1),
        (("i9", "p1", "north", "train", "t1", "h9", "x9"), [("i1", "i9"), ("i2", "i9")],
         "near_duplicates_within_patient", 2),
        (("i9", "p9", "north", "", "t9", "h9", "x9"), [("i1", "i9")], "near_duplicates_in_two_splits", 0),
    ],
)  # fmt: skip
def test_near_duplicates_are_counted(row, pairs, check, number):
    assert count([*CLEAN, row], pairs)[0][check] == number


def terms(**origins):
    rows = [{"site": site, "origin": origin, "licence": "", "redistribution": False, "citation": ""}
            for site, origin in origins.items()]  # fmt: skip
    return make_table(Terms, rows)


ISSUERS = {site: site for site in PARAMS.sites}


def test_a_hospitals_own_images_overlap_with_nothing():
    assert overlapping_origins(terms(north="", south="nih", east="", west="padchest"), ISSUERS, PARAMS) == []
    assert overlapping_origins(terms(north="nih", south="nih", east="", west=""), ISSUERS, PARAMS) == []


def test_a_target_of_the_sources_collection_is_refused_unless_patients_are_known_again():
    table = terms(north="", south="chestxray14", east="", west="chestxray14")
    with pytest.raises(ParamsError, match=r"'south' and of target site 'west' .*\(chestxray14\).*sites.west.issuer"):
        overlapping_origins(table, ISSUERS, PARAMS)
    overlaps = overlapping_origins(table, {**ISSUERS, "south": "nih", "west": "nih"}, PARAMS)
    assert overlaps == [("south", "west", "chestxray14")]
    counted, shown = count(CLEAN, overlaps=overlaps)
    assert counted["overlapping_origins"] == 1
    assert "south and west (chestxray14)" in shown.loc["overlapping_origins", "description"]
