"""Leaks that were put there are counted, each by its own check."""

import pandas as pd
import pytest

from pipeline.analysis.leakage import leakage

COLUMNS = ["image_id", "patient_id", "site", "split", "study_id", "source_hmac", "pixels_sha256"]
CLEAN = [
    ("i1", "p1", "north", "train", "t1", "h1", "x1"),
    ("i2", "p1", "south", "train", "t2", "h2", "x2"),
    ("i3", "p2", "north", "id_val", "t3", "h3", "x3"),
    ("i4", "p3", "east", "ood_test", "t4", "h4", "x4"),
]


def count(rows):
    known = pd.DataFrame(rows, columns=COLUMNS)
    table = leakage(known[COLUMNS[:4]], known[["image_id", "study_id", "source_hmac"]],
                    known[["image_id", "pixels_sha256"]])  # fmt: skip
    return dict(zip(table["check"], table["count"], strict=True))


def test_clean():
    counted = count(CLEAN)
    assert counted.pop("patients_at_two_sites") == 1
    assert set(counted.values()) == {0}


@pytest.mark.parametrize(
    ("row", "check"),
    [
        (("i9", "p1", "north", "id_val", "t9", "h9", "x9"), "patients_in_two_splits"),
        (("i9", "p9", "north", "id_val", "t1", "h9", "x9"), "studies_in_two_splits"),
        (("i9", "p9", "north", "id_val", "t9", "h1", "x9"), "files_in_two_splits"),
        (("i9", "p9", "north", "id_val", "t9", "h9", "x1"), "pixels_in_two_splits"),
        (("i9", "p9", "north", "train", "t9", "h9", "x1"), "pixels_repeated_within_split"),
    ],
)
def test_a_planted_leak_is_counted(row, check):
    assert {name for name, number in count([*CLEAN, row]).items() if number} == {check, "patients_at_two_sites"}
