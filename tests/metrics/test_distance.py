from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from pipeline.errors import PipelineError
from pipeline.metrics.distance import (
    draw_rows,
    kernel_matrix,
    median_bandwidth,
    mmd2,
    mmd_test,
    permutation_test,
)


def brute_force(x, y, bandwidth, codes_x=None, codes_y=None):
    """Gretton's equation 3 written as double loops; pairs within a patient are left out."""
    codes_x = range(len(x)) if codes_x is None else codes_x
    codes_y = range(len(y)) if codes_y is None else codes_y

    def mean(a, b, keep):
        pairs = [np.exp(-np.sum((p - q) ** 2) / (2 * bandwidth**2)) for i, p in enumerate(a) for j, q in enumerate(b)
                 if keep(i, j)]  # fmt: skip
        return np.mean(pairs)

    return (
        mean(x, x, lambda i, j: codes_x[i] != codes_x[j])
        + mean(y, y, lambda i, j: codes_y[i] != codes_y[j])
        - 2 * mean(x, y, lambda _i, _j: True)
    )


@pytest.mark.parametrize("shift", [0.0, 3.0, 1e5])
def test_mmd2_is_the_double_loop(shift):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(13, 3)) + shift, rng.normal(0.5, 1, size=(9, 3)) + shift
    assert mmd2(x, y, 1.3) == pytest.approx(brute_force(x, y, 1.3), rel=1e-9, abs=1e-9)


def test_blocks_add_up_and_by_hand():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(700, 2)), rng.normal(1, 1, size=(600, 2))
    kernel = kernel_matrix(np.concatenate([x, y]), 1.0)
    within_x, within_y, across = kernel[:700, :700], kernel[700:, 700:], kernel[:700, 700:]
    expected = (within_x.sum() - 700) / (700 * 699) + (within_y.sum() - 600) / (600 * 599) - 2 * across.mean()
    assert mmd2(x, y, 1.0) == pytest.approx(expected, rel=1e-10)
    # Two points at 0, two at distance 2, bandwidth 1: 1 + 1 - 2 exp(-2).
    assert mmd2(np.zeros((2, 1)), np.full((2, 1), 2.0), 1.0) == pytest.approx(2 - 2 * np.exp(-2))


def test_known_population_value():
    """N(0, 1) against N(m, 1) in one dimension: 2 b / sqrt(b^2 + 2) (1 - exp(-m^2 / (2 (b^2 + 2))))."""
    rng = np.random.default_rng(1)
    values = [mmd2(rng.normal(size=(200, 1)), rng.normal(1.0, 1, (200, 1)), 1.5) for _ in range(40)]
    truth = 2 * 1.5 / np.sqrt(1.5**2 + 2) * (1 - np.exp(-1 / (2 * (1.5**2 + 2))))
    assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / np.sqrt(40))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(4, 12), st.integers(4, 12))
def test_symmetric_bounded_and_blind_to_order_rotation_and_unit(seed, n, m):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(m, 3))
    value = mmd2(x, y, 1.0)
    assert value == pytest.approx(mmd2(y, x, 1.0), abs=1e-12)
    assert value <= 2
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0] * 7
    assert value == pytest.approx(mmd2(x[::-1] @ rotation, y @ rotation, 7.0), abs=1e-9)


def test_median_bandwidth():
    # Distances 1, 2, 3, 1, 2, 1 of the points 0 1 2 3.
    assert median_bandwidth(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])) == 1.5
    assert median_bandwidth(np.zeros((3, 2)), np.zeros((2, 2))) == 1.0
    rng = np.random.default_rng(0)
    many = median_bandwidth(rng.normal(size=(5000, 1)), rng.normal(size=(3000, 1)))
    assert many == pytest.approx(np.sqrt(2) * 0.6745, rel=0.05)


def test_statistic_leaves_out_pairs_within_a_patient():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 2)), rng.normal(size=(8, 2))
    codes_x, codes_y = rng.permutation([0, 0, 0, 5, 5, 7, 7, 7, 9, 9, 2]), rng.permutation([3, 3, 0, 0, 0, 1, 1, 2])
    value, _ = permutation_test(kernel_matrix(np.concatenate([x, y]), 0.8), codes_x, codes_y, permutations=9, seed=1)
    assert value == pytest.approx(brute_force(x, y, 0.8, codes_x, codes_y), abs=1e-12)
    alone, _ = mmd_test(x, y, permutations=9, seed=1)
    assert alone == pytest.approx(mmd2(x, y, median_bandwidth(x, y)), abs=1e-12)


def test_p_value_against_all_permutations():
    """Three patients a side: 20 ways to choose a side, each equally often."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 1)), rng.normal(1.2, 1, size=(6, 1))
    codes = np.repeat([0, 1, 2], 2)
    kernel = kernel_matrix(np.concatenate([x, y]), 1.0)
    value, p = permutation_test(kernel, codes, codes, permutations=20_000, seed=0)
    rows = np.concatenate([x, y])
    patients = np.concatenate([codes, codes + 3])
    all_values = []
    for chosen in combinations(range(6), 3):
        side = np.isin(patients, chosen)
        all_values.append(brute_force(rows[side], rows[~side], 1.0, patients[side], patients[~side]))
    assert p == pytest.approx(np.mean(np.array(all_values) >= value - 1e-12), abs=0.01)


def clustered(rng, patients, shift=0.0, most=6):
    """Images (N, 4) of patients whose variance is 70 % the patient's, and codes."""
    codes = np.repeat(np.arange(patients), rng.integers(1, most, patients))
    own = np.sqrt(0.7) * rng.normal(size=(patients, 4))[codes]
    return own + np.sqrt(0.3) * rng.normal(size=(len(codes), 4)) + shift, codes


def false_alarms(rng, repeats, *, by_patient, most=(6, 6), shift=0.0):
    found = 0
    for _ in range(repeats):
        (x, codes_x), (y, codes_y) = clustered(rng, 20, most=most[0]), clustered(rng, 25, shift, most=most[1])
        codes = {"codes_x": codes_x, "codes_y": codes_y} if by_patient else {}
        found += mmd_test(x, y, permutations=99, seed=int(rng.integers(2**31)), **codes)[1] <= 0.05
    return found


def test_false_alarms_with_clustered_images():
    rng, repeats = np.random.default_rng(5), 300
    by_patient = false_alarms(rng, repeats, by_patient=True)
    by_image = false_alarms(rng, repeats, by_patient=False)
    unequal = false_alarms(rng, repeats, by_patient=True, most=(2, 9))
    print(f"false alarms: patients {by_patient / repeats:.3f}, images {by_image / repeats:.3f}, unequal {unequal}")
    low, high = binom.ppf([0.001, 0.999], repeats, 0.05)
    assert low <= by_patient <= high
    assert unequal <= high  # sides with 1 and with 1 to 8 images a patient
    assert by_image > 0.3 * repeats
    assert false_alarms(rng, 50, by_patient=True, shift=0.8) > 40


def test_large_sides_are_drawn_by_patient():
    codes = np.random.default_rng(0).integers(0, 900, 5000)
    rows = draw_rows(codes, 2000, 1)
    assert 1980 < len(rows) <= 2000
    assert set(codes[rows]).isdisjoint(set(np.delete(codes, rows)))
    assert (rows == draw_rows(codes, 2000, 1)).all()
    assert (rows[:50] != draw_rows(codes, 2000, 2)[:50]).any()
    assert len(draw_rows(np.zeros(50, int), 20, 0)) == 20
    assert (draw_rows(codes, 5000, 1) == np.arange(5000)).all()
    rng = np.random.default_rng(2)
    value, p = mmd_test(rng.normal(size=(2500, 1)), rng.normal(0.3, 1, (2200, 1)), permutations=19, seed=1)
    assert value > 0
    assert p == 0.05


def test_undefined_and_refused():
    two, one = np.zeros((2, 2)), np.zeros((1, 2))
    assert np.isnan(mmd2(two, one, 1.0))
    assert np.isnan(mmd_test(two, one, permutations=9, seed=0)).all()
    assert np.isnan(mmd_test(two, two, permutations=9, seed=0, codes_x=np.array([4, 4]))).all()
    assert mmd_test(two, two, permutations=9, seed=0) == (0.0, 1.0)
    with pytest.raises(PipelineError, match="finite"):
        mmd2(np.array([[np.nan, 0.0]]), two, 1.0)
    with pytest.raises(ValueError, match="must be"):
        mmd2(np.zeros((2, 3)), two, 1.0)
    with pytest.raises(ValueError, match="one a row"):
        mmd_test(two, two, permutations=9, seed=0, codes_x=np.zeros(3, int))
