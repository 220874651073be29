"""Windows and tables against pydicom and against values worked out by hand from PS3.3 C.11.2."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minimal import dataset
from pydicom.pixels.processing import apply_windowing

from pipeline.imaging.intensity import (
    NAMED_WINDOWS,
    ModalityImage,
    Percentiles,
    Range,
    VoiLut,
    Window,
    ZScore,
    apply_voi,
    apply_window,
    display_grey,
    look_up,
)

VALUES = np.arange(-1200, 1300, dtype=np.float32).reshape(50, 50)
centers = st.floats(-1000, 1000, width=32)


def by_pydicom(values, window):
    made = dataset(WindowCenter=0, WindowWidth=1, VOILUTFunction=window.function)
    made.WindowCenter, made.WindowWidth = f"{window.center:.8g}", f"{window.width:.8g}"
    with np.errstate(over="ignore"):
        return apply_windowing(values, made) / 4095  # spreads over the range of 12 unsigned bits


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (-600, 1500), (0, 2), (-0.5, 1.5), (12.25, 100.5), (0, 4096)])
def test_window_as_pydicom(function, center, width):
    window = Window(center, width, function)
    np.testing.assert_allclose(apply_window(VALUES, window), by_pydicom(VALUES, window), atol=2e-6)


def test_step_of_width_1():
    """PS3.3 C.11.2.1.2.1: x <= c - 0.5 gives the minimum, above it the maximum."""
    got = apply_window(np.array([9, 9.5, 9.51, 10, 11], dtype=np.float32), Window(10, 1))
    np.testing.assert_array_equal(got, [0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("window", "value", "grey"),
    [
        # The standard's own example: c=2048, w=4096 maps 0 to the minimum and 4095 to the maximum.
        (Window(2048, 4096), 0, 0.0),
        (Window(2048, 4096), 4095, 1.0),
        (Window(2048, 4096), 1, 1 / 4095),
        (Window(2048, 1), 2047, 0.0),
        (Window(2048, 1), 2048, 1.0),
        (Window(0, 100), -50, 0.0),
        (Window(0, 100), 49, 1.0),
        (Window(0, 100, "LINEAR_EXACT"), -50, 0.0),
        (Window(0, 100, "LINEAR_EXACT"), 0, 0.5),
        (Window(0, 100, "LINEAR_EXACT"), 50, 1.0),
        (Window(0, 0.5, "LINEAR_EXACT"), 0.125, 0.75),
        (Window(10, 20, "SIGMOID"), 10, 0.5),
        (Window(10, 20, "SIGMOID"), 20, 1 / (1 + math.exp(-2))),
        (Window(10, 20, "SIGMOID"), -32000, 0.0),
    ],
)
def test_by_hand(window, value, grey):
    assert apply_window(np.array([value], dtype=np.float32), window)[0] == pytest.approx(grey, abs=1e-6)


@pytest.mark.parametrize("window", [Window(0, 0.9), Window(0, 0, "LINEAR_EXACT"), Window(0, -1, "SIGMOID")])
def test_forbidden_widths(window):
    with pytest.raises(ValueError, match="width"):
        apply_window(VALUES, window)


@given(centers, st.floats(1, 4000, width=32), st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]))
def test_monotonic_and_in_range(center, width, function):
    grey = apply_window(VALUES.ravel(), Window(center, width, function))
    assert grey.dtype == np.float32
    assert grey.min() >= 0.0
    assert grey.max() <= 1.0
    assert (np.diff(grey) >= 0).all()


def test_named_windows_are_the_usual_ones():
    soft = apply_window(np.array([-160, 40, 240], dtype=np.float32), NAMED_WINDOWS["soft_tissue"])
    np.testing.assert_allclose(soft, [0, 0.5, 1], atol=2e-3)


def test_table_ends_are_held():
    lut = VoiLut(-2, np.array([0.1, 0.2, 0.9], dtype=np.float32))
    got = apply_voi(np.array([-99, -2, -1, 0, 99], dtype=np.float32), lut)
    np.testing.assert_allclose(got, [0.1, 0.1, 0.2, 0.9, 0.9])


def test_polarity_follows_the_window_and_padding_follows_both():
    values = np.array([[0, 50, 100, -999]], dtype=np.float32)
    padding = np.array([[False, False, False, True]])
    grey, voi = display_grey(ModalityImage(values, Window(50, 100, "LINEAR_EXACT"), True, padding), None)
    np.testing.assert_array_equal(grey[0, [0, 2, 3]], [255, 0, 0])
    assert voi == Window(50, 100, "LINEAR_EXACT")


def test_chosen_voi_overrides_the_header():
    image = ModalityImage(VALUES, Window(0, 10), False)
    assert display_grey(image, NAMED_WINDOWS["lung"])[1] == NAMED_WINDOWS["lung"]


def test_without_voi_the_range_outside_padding():
    values = np.array([[1, 3, -5000]], dtype=np.float32)
    grey, voi = display_grey(ModalityImage(values, None, False, values < 0), None)
    assert voi == Range(1, 3)
    np.testing.assert_array_equal(grey, [[0, 255, 0]])


@pytest.mark.parametrize("padding", [None, np.ones((2, 2), dtype=bool)])
def test_flat_and_all_padding_images_are_black(padding):
    for rule in (None, Percentiles(1, 99), ZScore(2)):
        grey, _ = display_grey(ModalityImage(np.full((2, 2), 7, dtype=np.float32), None, False, padding), rule)
        assert not grey.any()


MR = np.random.default_rng(3).gamma(2.0, 100.0, (40, 50)).astype(np.float32)


def test_percentiles_are_numpys_of_the_pixels_outside_padding():
    padding = np.zeros(MR.shape, bool)
    padding[:10] = True
    _, voi = display_grey(ModalityImage(MR, Window(1, 2), False, padding), Percentiles(2, 98))
    low, high = np.percentile(MR[10:], [2, 98], method="inverted_cdf")
    assert voi == Range(float(low), float(high))
    grey, _ = display_grey(ModalityImage(MR, None, False, padding), Percentiles(2, 98))
    assert (grey[10:] == 0).mean() == pytest.approx(0.02, abs=0.005)
    assert (grey[10:] == 255).mean() == pytest.approx(0.02, abs=0.005)


def test_z_scores_by_hand():
    values = np.array([[1, 3, 5, 7, -999]], np.float32)
    image = ModalityImage(values, None, False, values == -999)
    grey, voi = display_grey(image, ZScore(2.0))
    assert voi == Range(pytest.approx(4 - 2 * 5**0.5), pytest.approx(4 + 2 * 5**0.5))
    expected = (values[0, :4] - 4) / 5**0.5 / 4 + 0.5
    np.testing.assert_array_equal(grey[0], [*np.rint(expected * 255), 0])


def test_a_change_of_scale_and_offset_changes_neither_percentiles_nor_z_scores():
    """What modalities without absolute units need."""
    for rule in (Percentiles(1, 99), ZScore(3)):
        one, _ = display_grey(ModalityImage(MR, None, False), rule)
        other, _ = display_grey(ModalityImage(MR * 7 + 300, None, False), rule)
        assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize(
    "rule", [None, NAMED_WINDOWS["lung"], Percentiles(3, 90), ZScore(1.5), Window(0, 50, "SIGMOID")]
)
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("bits", [8, 16])
def test_looking_up_is_the_same_as_computing(rule, inverted, kind, bits):
    """Every path from codes to grey twice: through the table, and pixel by pixel."""
    codes = np.random.default_rng(5).integers(0, np.iinfo(kind).max + 1, (30, 40), dtype=kind)
    values = (np.arange(np.iinfo(kind).max + 1) * 0.25 - 900).astype(np.float32)
    padding = np.arange(len(values)) % 97 == 3
    table = display_grey(ModalityImage(values, None, inverted, padding, codes), rule, bits)
    plain = display_grey(ModalityImage(values[codes], None, inverted, padding[codes]), rule, bits)
    assert table[0].dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_array_equal(table[0], plain[0])
    if isinstance(rule, ZScore):  # sums in another order
        assert table[1].low == pytest.approx(plain[1].low)
    else:
        assert table[1] == plain[1]


def test_short_tables_and_strided_indices_too():
    table = np.arange(10, dtype=np.uint8) * 3
    index = np.array([[1, 9], [0, 4]], np.uint16)
    np.testing.assert_array_equal(look_up(table, index), table[index])
    full = np.arange(65536).astype(np.uint16)[::-1].copy()
    strided = np.arange(24, dtype=np.uint16).reshape(4, 6)[:, ::2]
    np.testing.assert_array_equal(look_up(full, strided), full[strided])


def test_sixteen_bits_hold_what_eight_round_away():
    values = np.linspace(0, 1, 4000, dtype=np.float32)[None]
    grey, _ = display_grey(ModalityImage(values, None, False), Range(0, 1), 16)
    assert len(np.unique(grey)) == 4000
    np.testing.assert_allclose(grey / 65535, values, atol=1e-5)


def test_window_before_resampling():
    """A metal screw of 3000 HU beside soft tissue: resampled first, it would stain its surroundings white."""
    from pipeline.imaging.geometry import Sampling, place, resample

    values = np.full((64, 64), 40, np.float32)
    values[::4, ::4] = 3000
    grey, _ = display_grey(ModalityImage(values, None, False), Window(40, 400))
    square = resample(grey, 16, place(64, 64, Sampling(16)))
    assert square.mean() == pytest.approx(128 * 15 / 16 + 255 / 16, abs=1)
    averaged = values.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    other, _ = display_grey(ModalityImage(averaged, None, False), Window(40, 400))
    assert other.mean() > square.mean() + 100
