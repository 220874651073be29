"""PS3.15 Table E.1-1 against an independent copy of it, and the counting against a slow one."""

from collections import Counter

import pytest
from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import DicomDictionary, tag_for_keyword

from pipeline.dicom.confidentiality import KEPT, REPLACED, action_of, count_treatments, parse_table
from pipeline.tables.files import ACTIONS

CATEGORIES = {
    "D": "D_TAGS", "Z": "Z_TAGS", "X": "X_TAGS", "U": "U_TAGS", "Z/D": "Z_D_TAGS", "X/Z": "X_Z_TAGS",
    "X/D": "X_D_TAGS", "X/Z/D": "X_Z_D_TAGS", "X/Z/U*": "X_Z_U_STAR_TAGS",
}  # fmt: skip
PUBLISHED = dicom_anonymization_database_selector("dicomfields_2026c")


def published(tag):
    """The package's action; its ranges are (group, element, mask of group, mask of element)."""
    group, element = tag >> 16, tag & 0xFFFF
    for action, category in CATEGORIES.items():
        for entry in PUBLISHED[category]:
            if len(entry) == 2 and entry == (group, element):
                return action
            if len(entry) == 4 and (group & entry[2], element & entry[3]) == entry[:2]:
                return action
    return None


def listed():
    return [
        (group << 16 | element, action)
        for action, category in CATEGORIES.items()
        for group, element, *mask in PUBLISHED[category]
        if not mask
    ]


def test_every_attribute_of_the_published_table_has_its_action():
    entries = listed()
    assert len(entries) == len({tag for tag, _ in entries}) == 652
    assert {tag: action_of(tag) for tag, _ in entries} == dict(entries)


def test_nothing_has_an_action_that_the_published_table_lacks():
    from pipeline.dicom import confidentiality

    single, masked = parse_table(confidentiality._TABLE.read_text())
    assert single.keys() == {tag for tag, _ in listed()}
    assert sorted(masked) == [
        (0xFF000000, 0x50000000, "X"),
        (0xFF00FFFF, 0x60003000, "X"),
        (0xFF00FFFF, 0x60004000, "X"),
    ]
    # All that the dictionary has. Private attributes are no entry of the package: they are the table's last row (X),
    # and its masks of repeating groups take in odd groups, which PS3.5 7.8 makes private whatever their number.
    wrong = [
        hex(tag) for tag in DicomDictionary if not tag & 0x10000 and action_of(tag) != (published(tag) or "not_listed")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("tag", "action"),
    [
        (0x00100010, "Z"),  # PatientName
        (0x00100020, "Z/D"),  # PatientID
        (0x00080018, "U"),  # SOPInstanceUID
        (0x00081140, "X/Z/U*"),  # ReferencedImageSequence
        (0x00180015, "not_listed"),  # BodyPartExamined
        (0x50000005, "X"),
        (0x501E3000, "X"),  # curves: PS3.5 7.6
        (0x60023000, "X"),
        (0x60024000, "X"),
        (0x60020010, "not_listed"),  # OverlayRows is not in the table
        (0x60010010, "private"),  # the package's mask takes odd groups in; PS3.5 7.8 makes them private
        (0x50013000, "private"),
        (0x00090010, "private"),
        (0x7FE00010, "not_listed"),
        (0xFFFCFFFC, "X"),  # DataSetTrailingPadding
    ],
)
def test_hand_made(tag, action):
    assert action_of(tag) == action
    assert action in ACTIONS


def test_the_names_that_go_on_are_the_standards():
    tags = [tag_for_keyword(keyword) for keyword in (*REPLACED, *KEPT)]
    assert None not in tags
    assert len(set(tags)) == len(tags)


def test_a_table_that_is_broken_is_refused():
    for text, told in [("0008 Q 0001", "unknown action"), ("0008 X 0001 0001", "twice")]:
        with pytest.raises(ValueError, match=told):
            parse_table(text)


def test_a_nested_number_does_not_go_on():
    patient, sequence, private = tag_for_keyword("PatientID"), tag_for_keyword("OtherPatientIDsSequence"), 0x00091001
    tags = [0x00020010, patient, sequence, patient, patient, private, tag_for_keyword("Rows")]
    assert count_treatments(tags, [0x00020010, patient, sequence, private, tag_for_keyword("Rows")]) == {
        ("not_listed", "kept"): 2,
        ("Z/D", "replaced"): 1,
        ("Z/D", "removed"): 2,
        ("X", "removed"): 1,
        ("private", "removed"): 1,
    }


def test_more_read_than_there_is():
    rows = tag_for_keyword("Rows")
    with pytest.raises(ValueError, match="more elements were read"):
        count_treatments([rows], [rows, rows])
    with pytest.raises(ValueError, match="more elements were read"):
        count_treatments([], [rows])


TAGS = st.sampled_from([tag for tag, _ in listed()] + [tag_for_keyword(name) for name in (*REPLACED, *KEPT)])
ANY = st.one_of(TAGS, st.integers(0, 2**32 - 1))


@given(st.lists(ANY), st.data())
def test_counts_equal_one_by_one(tags, data):
    used = data.draw(st.lists(st.booleans(), min_size=len(tags), max_size=len(tags)))
    read = [tag for tag, was_read in zip(tags, used, strict=True) if was_read]
    expected = Counter()
    for tag, was_read in zip(tags, used, strict=True):
        goes_on = {tag_for_keyword(name): "replaced" for name in REPLACED} | {
            tag_for_keyword(name): "kept" for name in KEPT
        }
        expected[action_of(tag), goes_on.get(tag, "removed") if was_read else "removed"] += 1
    counts = count_treatments(tags, read)
    assert counts == expected
    assert counts.total() == len(tags)
    assert all(counts.values())
