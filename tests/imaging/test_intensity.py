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
    Range,
    VoiLut,
    Window,
    apply_voi,
    apply_window,
    display_grey,
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
    grey, _ = display_grey(ModalityImage(np.full((2, 2), 7, dtype=np.float32), None, False, padding), None)
    assert not grey.any()
