"""Section ``split``, and draws that hang on names alone."""

import pytest

from pipeline.params import ParamsError, parse
from pipeline.splits import SIDES, SplitParams, check_sites, uniform

PARAMS = SplitParams(seed=3, source=["north", "south"], target=["east", "west"])


@pytest.mark.parametrize("left_out", ["north", "south"])
def test_leaving_a_site_out_makes_it_a_target_that_is_assigned_as_before(left_out):
    plain = {**PARAMS.model_dump(exclude={"leave_out"}), "target": ["east"]}
    params = parse(SplitParams, {**plain, "leave_out": left_out}, "split")
    assert params.source == [site for site in ("north", "south") if site != left_out]
    assert params.target == ["east", left_out]
    assert sorted(params.pool) == ["north", "south"]
    before = parse(SplitParams, plain, "split")
    assert all(params.shares(site) == before.shares(site) for site in ("north", "south", "east"))
    assert [params.split_of(left_out, side) for side in SIDES] == ["target_adapt", "target_adapt", "ood_test"]


def test_leaving_out_needs_no_other_target():
    raw = {"seed": 1, "source": ["north", "south"], "leave_out": "south"}
    assert parse(SplitParams, raw, "split").target == ["south"]


@pytest.mark.parametrize("site", PARAMS.sites)
def test_shares_of_a_site_are_the_fractions_of_its_splits(site):
    shares = PARAMS.shares(site)
    assert sum(shares) == pytest.approx(1.0)
    share = dict.fromkeys(("train", "id_val", "id_test", "target_adapt", "ood_test"), 0.0)
    for side, part in zip(SIDES, shares, strict=True):
        share[PARAMS.split_of(site, side)] += part
    wanted = {"train": 0.6, "id_val": 0.2, "id_test": 0.2} if site in PARAMS.source else \
        {"target_adapt": 0.3, "ood_test": 0.7}  # fmt: skip
    assert {split: part for split, part in share.items() if part} == pytest.approx(wanted)


def test_seed_matters_and_uniform_is_uniform():
    draws = [uniform(1, "split", f"p{n}") for n in range(4000)]
    assert min(draws) >= 0.0
    assert max(draws) < 1.0
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.02)
    assert draws[0] != uniform(2, "split", "p0")


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
        ({"leave_out": "east"}, "leave_out: 'east' must be one of split.source"),
        ({"leave_out": "north", "source": ["north"]}, "leave_out: 'north' is the only source site"),
        ({"leave_out": 5}, "must be one of split.source"),
        ({"leave_out": "north", "source": "north"}, "split.source: .*list"),
        ({"duplicate_hamming": 21}, "split.duplicate_hamming: .*less than or equal to 20; got 21"),
        ({"duplicate_correlation": 1.0}, "split.duplicate_correlation: .*less than 1"),
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
