"""Assignment by patient: nobody on two sides, and nothing moves when data are added."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.params import ParamsError, parse
from pipeline.splits import SplitParams, assign, check_sites, label_order, uniform

PARAMS = SplitParams(seed=3, source=["north", "south"], target=["east", "west"])
rows = st.lists(st.tuples(st.sampled_from(["north", "south", "east", "west"]), st.integers(0, 25)), min_size=1)


def frame(pairs):
    return pd.DataFrame(
        [{"image_id": f"i{n}", "source_id": f"s{n}", "patient_id": f"p{patient}", "site": site}
         for n, (site, patient) in enumerate(pairs)]
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(rows)
def test_nobody_on_two_sides_and_nothing_lost(pairs):
    splits, crossing = assign(frame(pairs), PARAMS)
    assert len(splits[["patient_id", "split"]].drop_duplicates()) == len(set(splits["patient_id"]))
    assert sorted([*splits["image_id"], *crossing["image_id"]]) == sorted(frame(pairs)["image_id"])
    at_source = {patient for site, patient in pairs if site in PARAMS.source}
    expected = {f"i{n}" for n, (site, patient) in enumerate(pairs) if site in PARAMS.target and patient in at_source}
    assert set(crossing["image_id"]) == expected
    assert set(splits.loc[splits["role"] == "target", "split"]) <= {"target_adapt", "ood_test"}
    assert set(splits.loc[splits["role"] == "source", "split"]) <= {"train", "id_val", "id_test"}


@settings(deadline=None, max_examples=60)
@given(rows, rows)
def test_additions_move_nobody(before, added):
    """Also a new target hospital: the source's rows keep their split, and the target's unless they cross."""
    first, _ = assign(frame(before), PARAMS)
    joined = SplitParams(**{**PARAMS.model_dump(), "target": ["east", "west", "far"]})
    more = [*before, *[("far" if site == "south" else site, patient) for site, patient in added]]
    second, crossing = assign(frame(more), joined)
    after = second.set_index("image_id")["split"].to_dict()
    for image_id, split in zip(first["image_id"], first["split"], strict=True):
        assert after.get(image_id, "crossed") == (split if image_id not in set(crossing["image_id"]) else "crossed")
    assert set(crossing["site"]) <= {"east", "west", "far"}


@settings(deadline=None, max_examples=20)
@given(st.randoms(), rows)
def test_order_does_not_matter(random, pairs):
    shuffled = frame(pairs).sample(frac=1.0, random_state=random.randrange(2**31))
    pd.testing.assert_frame_equal(assign(frame(pairs), PARAMS)[0], assign(shuffled, PARAMS)[0])


def test_fractions():
    splits, _ = assign(frame([("north" if n % 2 else "east", n) for n in range(8000)]), PARAMS)
    share = splits.groupby("role")["split"].value_counts(normalize=True)
    for key, wanted in {("source", "train"): 0.6, ("source", "id_val"): 0.2, ("source", "id_test"): 0.2,
                        ("target", "target_adapt"): 0.3, ("target", "ood_test"): 0.7}.items():  # fmt: skip
        assert share[key] == pytest.approx(wanted, abs=0.03)  # over 4 standard errors


def test_seed_matters_and_uniform_is_uniform():
    draws = [uniform(1, "split", f"p{n}") for n in range(4000)]
    assert min(draws) >= 0.0
    assert max(draws) < 1.0
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.02)
    assert draws[0] != uniform(2, "split", "p0")


@given(st.sets(st.text(min_size=1, max_size=4), min_size=2), st.integers(0, 5))
def test_label_budgets_are_nested_and_append_only(patients, draw):
    order = label_order(1, draw, sorted(patients))
    assert sorted(order) == sorted(patients)
    fewer = sorted(patients)[1:]
    assert [patient for patient in order if patient in fewer] == label_order(1, draw, fewer[::-1])


def test_draws_differ():
    patients = [f"p{n}" for n in range(40)]
    assert label_order(1, 0, patients) != label_order(1, 1, patients) != label_order(2, 1, patients)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"target": ["east", "north"]}, r"source or target, not both: \['north'\]"),
        ({"target": ["east", "east"]}, "named twice"),
        ({"id_val_fraction": 0.6, "id_test_fraction": 0.4}, "nothing is left to train on"),
        ({"id_val_fraction": 0.0}, "greater than 0"),
        ({"source": []}, "at least 1"),
        ({"source": [5]}, "split.source.0: .*string.*got 5"),
        ({"seed": -1}, "split.seed: .*greater than or equal to 0; got -1"),
        ({"seed": 1.5}, "split.seed"),
        ({"sourse": ["north"]}, "split.sourse: unknown key; did you mean 'source'"),
    ],
)
def test_bad_params(changes, text):
    with pytest.raises(ParamsError, match=text):
        parse(SplitParams, {**PARAMS.model_dump(), **changes}, "split")


def test_unknown_and_unused_sites_are_named():
    with pytest.raises(ParamsError, match=r"split.target: unknown site 'west'; did you mean 'wets'"):
        check_sites(PARAMS, ["north", "south", "east", "wets"])
    with pytest.raises(ParamsError, match=r"\['far'\] stand under `sites`"):
        check_sites(PARAMS, ["north", "south", "east", "west", "far"])
