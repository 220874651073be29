"""Assignment by patient: nobody on two sides, nobody moves when data are added, strata are met."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.assignment import assign, first_sight
from pipeline.splits import SplitParams
from pipeline.tables.contract import make_table
from pipeline.tables.images import Duplicates, Ledger
from pipeline.tables.labels import Labels

PARAMS = SplitParams(seed=3, source=["north", "south"], target=["east", "west"])
LEDGER = make_table(Ledger, [])
SITES = ("north", "south", "east", "west")
PRECEDENCE = ("id_test", "id_val", "train", "ood_test", "target_adapt")
# (site, patient, label of the first finding, of the second)
label = st.sampled_from([None, 0, 1])
rows = st.lists(st.tuples(st.sampled_from(SITES), st.integers(0, 25), label, label), min_size=1, max_size=40)
links = st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=8)


def frame(entries):
    return pd.DataFrame(
        [{"image_id": f"i{n:03d}", "source_id": f"s{n}", "patient_id": f"p{patient}", "site": site}
         for n, (site, patient, *_) in enumerate(entries)]
    )  # fmt: skip


def label_table(entries):
    return make_table(Labels, [
        {"image_id": f"i{n:03d}", "finding": finding, "label": value}
        for n, (_, _, *values) in enumerate(entries)
        for finding, value in zip(("opacity", "effusion"), values, strict=True)
    ])  # fmt: skip


def pairs(entries, linked, correlation=0.995):
    """The links between images that there are, as ``tables.images.Duplicates``."""
    known = {(min(a, b), max(a, b)) for a, b in linked if a != b and max(a, b) < len(entries)}
    return make_table(Duplicates, [
        {"image_id": f"i{a:03d}", "duplicate_of": f"i{b:03d}", "patient_id": f"p{entries[a][1]}",
         "duplicate_patient_id": f"p{entries[b][1]}", "site": entries[a][0], "duplicate_site": entries[b][0],
         "same_patient": entries[a][1] == entries[b][1], "hamming": 0, "correlation": correlation}
        for a, b in known
    ])  # fmt: skip


def run(entries, linked=(), ledger=LEDGER, params=PARAMS):
    return assign(frame(entries), label_table(entries), pairs(entries, linked), ledger, params)


def sides(assigned):
    return dict(zip(assigned.ledger["patient_id"], assigned.ledger["side"], strict=True))


def components(count, linked):
    """By repeated relabelling: an oracle without the library's graphs."""
    group = list(range(count))
    for _ in range(count):
        for a, b in linked:
            if max(a, b) < count:
                group = [group[a] if value == group[b] else value for value in group]
    return group


@settings(deadline=None, max_examples=10)
@given(rows, links)
def test_no_patient_and_no_picture_on_two_sides_and_nothing_lost(entries, linked):
    assigned = run(entries, linked)
    splits = assigned.splits
    assert len(splits[["patient_id", "split"]].drop_duplicates()) == splits["patient_id"].nunique()
    crossing, repeated = assigned.left_out["patient_in_source"], assigned.left_out["near_duplicate"]
    assert sorted([*splits["image_id"], *crossing["image_id"], *repeated["image_id"]]) == sorted(
        frame(entries)["image_id"]
    )
    at_source = {patient for site, patient, *_ in entries if site in PARAMS.source}
    assert set(crossing["image_id"]) == {
        f"i{n:03d}" for n, (site, patient, *_) in enumerate(entries) if site in PARAMS.target and patient in at_source
    }
    assert set(splits.loc[splits["role"] == "target", "split"]) <= {"target_adapt", "ood_test"}
    assert set(splits.loc[splits["role"] == "source", "split"]) <= {"train", "id_val", "id_test"}
    # Patients who were all seen together: a picture of theirs is in one split, and nothing of it was left out but a
    # target's, where a source has it.
    split_of = dict(zip(splits["image_id"], splits["split"], strict=True))
    gone = set(repeated["image_id"])
    assert set(repeated["site"]) <= set(PARAMS.target)
    for a, b in linked:
        first, second = f"i{a:03d}", f"i{b:03d}"
        if first in split_of and second in split_of:
            assert split_of[first] == split_of[second]
    group = components(len(entries), [(a, b) for a, b in linked])
    for n in range(len(entries)):
        if f"i{n:03d}" in gone:
            assert any(group[m] == group[n] and entries[m][0] in PARAMS.source for m in range(len(entries)))


@settings(deadline=None, max_examples=10)
@given(rows, rows, links)
def test_additions_move_nobody(before, added, linked):
    """New patients, a new target hospital and new near-duplicates: old sides stay, and so do old images' splits."""
    first = run(before)
    joined = SplitParams(**{**PARAMS.model_dump(), "target": ["east", "west", "far"]})
    more = [*before, *[("far" if site == "south" else site, *rest) for site, *rest in added]]
    # Only new images are linked with others: old pictures do not change.
    second = run(more, [(a, b) for a, b in linked if max(a, b) >= len(before)], first.ledger, joined)
    assert sides(second).items() >= sides(first).items()
    old = first.ledger.merge(second.ledger)
    assert len(old) == len(first.ledger), "a row is changed or gone"
    gone = {image for rows in second.left_out.values() for image in rows["image_id"]}
    after = dict(zip(second.splits["image_id"], second.splits["split"], strict=True))
    for image_id, split in zip(first.splits["image_id"], first.splits["split"], strict=True):
        assert (image_id in gone) != (after.get(image_id) == split)


@settings(deadline=None, max_examples=10)
@given(rows, rows)
def test_a_target_that_joins_changes_nothing_of_the_sources(entries, targets):
    """Not even where its pictures link two of the source's."""
    first = run(entries)
    more = [
        *entries,
        *[(("east", "west")[n % 2], 100 + patient, *rest) for n, (_, patient, *rest) in enumerate(targets)],
    ]
    linked = [(n % len(entries), len(entries) + n // 2) for n in range(2 * len(targets))]
    second = run(more, linked, first.ledger)
    of_source = [assigned.splits[assigned.splits["role"] == "source"] for assigned in (first, second)]
    pd.testing.assert_frame_equal(*[rows.reset_index(drop=True) for rows in of_source])


@settings(deadline=None, max_examples=10)
@given(rows, st.lists(st.permutations(SITES), min_size=1, max_size=3), st.integers(1, 3))
def test_no_swap_of_roles_turns_a_test_patient_into_a_training_patient(entries, orders, number):
    ledger, tested = LEDGER, set()
    for order in [SITES, *orders]:
        params = SplitParams(**{**PARAMS.model_dump(), "source": list(order[:number]), "target": list(order[number:])})
        assigned = run(entries, ledger=ledger, params=params)
        ledger = assigned.ledger
        trained = assigned.splits[assigned.splits["split"].isin(["train", "id_val", "target_adapt"])]
        tested |= set(assigned.splits.loc[assigned.splits["split"].isin(["id_test", "ood_test"]), "patient_id"])
        assert not tested & set(trained["patient_id"])


@settings(deadline=None, max_examples=10)
@given(st.randoms(), rows, links)
def test_order_does_not_matter(random, entries, linked):
    number = random.randrange(2**31)
    shuffled = assign(
        frame(entries).sample(frac=1.0, random_state=number),
        label_table(entries).sample(frac=1.0, random_state=number),
        pairs(entries, linked).sample(frac=1.0, random_state=number),
        LEDGER,
        PARAMS,
    )
    plain = run(entries, linked)
    pd.testing.assert_frame_equal(plain.splits, shuffled.splits)
    pd.testing.assert_frame_equal(plain.ledger, shuffled.ledger)


@settings(deadline=None, max_examples=10)
@given(st.lists(rows, min_size=1, max_size=3), st.floats(0.05, 0.45), st.floats(0.05, 0.45), st.floats(0.05, 0.95))
def test_every_stratum_is_within_one_patient_of_its_fractions(steps, val, test, adapt):
    """Also where the patients came in several steps."""
    fractions = {"id_val_fraction": val, "id_test_fraction": test, "target_adapt_fraction": adapt}
    params = SplitParams(**{**PARAMS.model_dump(), **fractions})
    ledger, entries = LEDGER, []
    for number, step in enumerate(steps):
        entries += [(site, patient + 100 * number, *rest) for site, patient, *rest in step]
        ledger = run(entries, ledger=ledger, params=params).ledger
    for (site, stratum), group in ledger.groupby(["site", "stratum"]):
        for side, share in zip(("train", "val", "test"), params.shares(site), strict=True):
            assert abs((group["side"] == side).sum() - share * len(group)) < 1 + 1e-9
        if site in params.source and len(group) > 1 and len(steps) == 1:
            lacking = {"train", "val"} - set(group["side"])
            assert not lacking or (group["side"] == "test").sum() >= 1
        assert (stratum == "(any)") == (site in params.target)


@pytest.mark.parametrize("val", [0.05, 0.1, 0.2, 0.4])
def test_two_patients_of_a_class_are_enough_to_train_and_select(val):
    params = SplitParams(**{**PARAMS.model_dump(), "id_val_fraction": val})
    assigned = run([("north", n, int(n < 2), 0) for n in range(4)], params=params)
    assert sorted(assigned.ledger["side"]) == ["train", "train", "val", "val"]
    assert assigned.ledger.groupby("stratum")["side"].nunique().tolist() == [2, 2]


def test_strata_are_the_rarest_finding_at_home():
    entries = [
        ("north", 0, 1, 0), ("north", 1, 1, 1), ("north", 2, 1, 1), ("north", 3, 0, None), ("north", 4, None, None),
        ("south", 5, 1, 1), ("south", 6, 0, 1),
        ("east", 0, 0, 1), ("east", 7, 1, 1), ("south", 8, 0, 0), ("north", 8, None, None), ("west", 8, 1, 1),
    ]  # fmt: skip
    seen = first_sight(frame(entries), label_table(entries), PARAMS).set_index("patient_id")
    found = {patient: tuple(row) for patient, row in zip(seen.index, seen.to_numpy(), strict=True)}
    assert found == {
        "p0": ("north", "opacity"),
        "p1": ("north", "effusion"),  # two of the site's patients have it, three the other
        "p2": ("north", "effusion"),
        "p3": ("north", "(negative)"),
        "p4": ("north", "(unlabelled)"),
        "p5": ("south", "opacity"),  # here the other is the more frequent
        "p6": ("south", "effusion"),
        "p7": ("east", "(any)"),
        "p8": ("north", "(unlabelled)"),  # of two source sites the first by name; what others say is not looked at
    }


@settings(deadline=None, max_examples=10)
@given(rows, links, st.randoms())
def test_a_targets_labels_are_not_looked_at(entries, linked, random):
    poisoned = [
        (site, patient, *(random.choice([None, 0, 1]) for _ in values)) if site in PARAMS.target
        else (site, patient, *values)
        for site, patient, *values in entries
    ]  # fmt: skip
    first, second = run(entries, linked), run(poisoned, linked)
    pd.testing.assert_frame_equal(first.splits, second.splits)
    pd.testing.assert_frame_equal(first.ledger, second.ledger)


@settings(deadline=None, max_examples=10)
@given(rows, links)
def test_the_ledger_is_the_same_whichever_site_is_left_out(entries, linked):
    everyone = {**PARAMS.model_dump(exclude={"leave_out"}), "source": list(SITES), "target": []}
    ledgers = [run(entries, linked, params=SplitParams(**everyone, leave_out=site)).ledger for site in SITES]
    for other in ledgers[1:]:
        pd.testing.assert_frame_equal(ledgers[0], other)


def known(**given):
    return make_table(Ledger, [
        {"patient_id": patient, "site": "north", "stratum": "(negative)", "side": side}
        for patient, side in given.items()
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("old", "split", "left"),
    [
        (("train", "test"), "id_test", ["i000"]),
        (("val", "test"), "id_test", ["i000"]),
        (("val", "train"), "id_val", ["i001"]),
        (("train", "train"), "train", []),
    ],
)
def test_pictures_of_patients_who_are_on_two_sides_already(old, split, left):
    """Sides stay; of the picture the images on the losing side go, and a new patient with it joins the winner."""
    entries = [("north", 0, 0, 0), ("north", 1, 0, 0), ("north", 0, 0, 0), ("south", 2, 1, 0)]
    assigned = run(entries, [(0, 1), (1, 3)], known(p0=old[0], p1=old[1]))
    assert (sides(assigned)["p0"], sides(assigned)["p1"]) == old
    assert assigned.left_out["near_duplicate"]["image_id"].tolist() == left
    after = dict(zip(assigned.splits["image_id"], assigned.splits["split"], strict=True))
    assert after["i003"] == split
    assert after["i002"] == {"train": "train", "val": "id_val"}[old[0]]


def test_equal_pictures_stay_together_when_the_one_that_links_them_goes():
    """Of n equal images n - 1 pairs are told, all with the first: here a target's, which is left out."""
    entries = [("east", 9, 0, 0), ("north", 0, 0, 0), ("north", 1, 0, 0)]
    before = known(p0="train", p1="test", p9="test")
    equal = pairs(entries, [(0, 1), (0, 2)], correlation=1.0)
    assigned = assign(frame(entries), label_table(entries), equal, before, PARAMS)
    assert assigned.splits["image_id"].tolist() == ["i002"]
    assert assigned.left_out["near_duplicate"]["image_id"].tolist() == ["i000", "i001"]


def test_who_is_gone_from_the_data_stays_in_the_ledger_and_counts():
    before = known(**{f"q{n}": "train" for n in range(6)})
    assigned = run([("north", n, 0, 0) for n in range(4)], ledger=before)
    assert sides(assigned).items() >= {f"q{n}": "train" for n in range(6)}.items()
    assert sorted(sides(assigned)[f"p{n}"] for n in range(4)) == ["test", "test", "val", "val"]


def test_seed_matters():
    entries = [("north", n, 0, 0) for n in range(40)]
    other = SplitParams(**{**PARAMS.model_dump(), "seed": 4})
    assert sides(run(entries)) != sides(run(entries, params=other))
