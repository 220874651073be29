"""Neighbours by position become channels; a series that is not whole is left out."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.imaging.volumes import stack


def site(series):
    """Instances of series (name: slice indices, None for no position), shuffled; their images in that order."""
    rows = [
        {
            "image_id": f"{name}{index}",
            "source_id": f"f-{name}{index}",
            "series_id": name,
            "slice_index": index,
            "slice_position_mm": None if index is None else index * 2.5,
            "slice_spacing_mm": 2.5,
        }
        for name, indices in series.items()
        for index in indices
    ]
    kinds = {
        "slice_index": "Int64",
        "series_id": "string",
        "slice_position_mm": "float32",
        "slice_spacing_mm": "float32",
    }
    instances = pd.DataFrame(rows).astype(kinds)
    instances = instances.sample(frac=1, random_state=3).reset_index(drop=True)
    images = instances[["image_id"]].assign(array_index=np.arange(len(instances)))
    return images, instances


def by_name(images, channels, planes_of):
    names = {plane: name for name, plane in planes_of.items()}
    return {
        name: [names[plane] for plane in row] for name, row in zip(images["image_id"], channels.tolist(), strict=True)
    }


def test_by_hand():
    images, instances = site({"a": [0, 1, 2], "b": [0]})
    planes = np.arange(4) * 10
    kept, channels, unstacked = stack(images, planes, instances, 3)
    found = by_name(kept, channels, dict(zip(images["image_id"], planes, strict=True)))
    assert found == {
        "a0": ["a0", "a0", "a1"], "a1": ["a0", "a1", "a2"], "a2": ["a1", "a2", "a2"], "b0": ["b0", "b0", "b0"]
    }  # fmt: skip
    assert unstacked == []
    assert kept["array_index"].tolist() == [0, 1, 2, 3]


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 7), min_size=1), st.sampled_from([3, 5, 7]))
def test_neighbours_are_of_the_series_in_order_and_centred(sizes, neighbours):
    images, instances = site({name: range(size) for name, size in sizes.items()})
    planes = np.random.default_rng(0).permutation(len(images))
    kept, channels, unstacked = stack(images, planes, instances, neighbours)
    assert not unstacked
    assert kept["image_id"].tolist() == images["image_id"].tolist()
    for name, row in by_name(kept, channels, dict(zip(images["image_id"], planes, strict=True))).items():
        assert row[neighbours // 2] == name
        assert {other[0] for other in row} == {name[0]}
        steps = np.diff([int(other[1:]) for other in row])
        assert ((steps == 0) | (steps == 1)).all()
        inside = [int(name[1:]) + offset for offset in range(-(neighbours // 2), neighbours // 2 + 1)]
        assert [int(other[1:]) for other in row] == np.clip(inside, 0, sizes[name[0]] - 1).tolist()


@pytest.mark.parametrize("flaw", ["lost", "no position", "no series", "gap", "two echoes at one place"])
def test_a_series_that_is_not_whole_is_left_out_whole(flaw):
    images, instances = site({"a": [0, 1, 2], "b": [0, 1]})
    if flaw == "lost":
        images = images[images["image_id"] != "a1"].reset_index(drop=True)
    elif flaw == "no position":
        instances.loc[instances["image_id"] == "a1", "slice_index"] = pd.NA
    elif flaw == "no series":
        instances.loc[instances["series_id"] == "a", "series_id"] = pd.NA
    else:  # what the policy `keep` lets through, and what is no flaw of a series
        instances.loc[instances["image_id"] == "a2", "slice_position_mm"] = 7.5 if flaw == "gap" else 2.5
    kept, channels, unstacked = stack(images, np.arange(len(images)), instances, 3)
    assert sorted(kept["image_id"]) == ["b0", "b1"]
    assert kept["array_index"].tolist() == [0, 1]
    assert channels.shape == (2, 3)
    assert unstacked == sorted(f"f-{name}" for name in images["image_id"] if name[0] == "a")


def test_nothing_left():
    images, instances = site({"a": [None]})
    kept, channels, unstacked = stack(images, np.arange(1), instances, 3)
    assert len(kept) == 0
    assert channels.shape == (0, 3)
    assert len(unstacked) == 1
