"""histogram_matching: a known change of grey levels is undone, and what must not move does not."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.adaptation.histogram_matching import Mapped, grey_levels, match


def ramps(num, seed, bits=8):
    """Images of all grey levels, mostly dark, a tenth of them 0."""
    values = np.random.default_rng(seed).beta(2, 4, (num, 16, 16)) * (2**bits - 1)
    values[:, :2] = 0
    return np.rint(values).astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("gamma", [0.6, 1.7])
def test_a_gamma_is_undone(gamma):
    """Other images, of another hospital that shows the same grey through a gamma."""
    plain = ramps(300, 1)
    seen = np.rint(255 * (plain / 255) ** gamma).astype(np.uint8)
    table = match(grey_levels(tiny.Memory(seen), np.arange(300), 64),
                  grey_levels(tiny.Memory(ramps(300, 2)), np.arange(300), 64))  # fmt: skip
    occurring = np.bincount(plain.ravel(), minlength=256) > 20
    off = np.abs(table[seen].astype(int) - plain)[occurring[plain]]
    assert np.mean(off) < 1.5
    assert np.mean(np.abs(seen.astype(int) - plain)) > 15


def test_16_bits():
    plain = ramps(100, 1, 16)
    counts = grey_levels(tiny.Memory(plain // 2), np.arange(100), 7)
    assert counts.shape == (65536,)
    table = match(counts, grey_levels(tiny.Memory(plain), np.arange(100), 64))
    assert table.dtype == np.uint16
    assert np.mean(np.abs(table[plain // 2].astype(int) - plain)) < 65535 * 0.001


def test_counts_are_of_the_chosen_images_whatever_the_batch():
    images = ramps(9, 3)
    chosen = np.array([1, 4, 8])
    expected = np.bincount(images[chosen].ravel(), minlength=256)
    for size in (1, 2, 10):
        assert (grey_levels(tiny.Memory(images), chosen, size) == expected).all()


@given(st.integers(0, 2**32), st.integers(1, 256), st.integers(1, 256))
@settings(deadline=None, max_examples=50)
def test_the_map_is_monotone_keeps_0_and_ends_on_levels_of_the_reference(seed, own, other):
    """Any counts, of few levels or many."""
    rng = np.random.default_rng(seed)
    counts, reference = (rng.integers(0, 50, 256) * (rng.permutation(256) < levels) for levels in (own, other))
    table = match(counts, reference)
    assert table[0] == 0
    assert (np.diff(table.astype(int)) >= 0).all()
    if any(counts[1:]) and any(reference[1:]):
        levels = np.flatnonzero(reference[1:]) + 1
        assert table[1] >= levels[0]
        assert table[-1] <= levels[-1]


def test_the_same_distribution_is_left_alone():
    counts = grey_levels(tiny.Memory(ramps(20, 1)), np.arange(20), 5)
    occurring = np.flatnonzero(counts)
    assert (match(counts, counts)[occurring] == occurring).all()


def test_black_images_are_left_alone():
    black = np.bincount([0], minlength=256)
    some = np.ones(256, int)
    assert (match(black, some) == np.arange(256)).all()
    assert (match(some, black) == np.arange(256)).all()


def test_mapped_images_are_the_images_through_the_table():
    images = ramps(4, 1)
    mapped = Mapped(tiny.Memory(images), np.arange(256, dtype=np.uint8)[::-1].copy())
    assert mapped.shape == (4, 1, 16, 16)
    assert len(mapped) == 4
    assert (mapped.read(np.array([2])) == 255 - images[2]).all()
