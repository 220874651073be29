"""Each corruption against a formula of its own; stronger at each severity; hanging on the image alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import correlate1d, zoom
from scipy.stats import kstest, norm

from pipeline.imaging.corruption import CORRUPTIONS, SEVERITIES, corrupt, image_key
from pipeline.tables.stress import KINDS

LEVELS = range(1, SEVERITIES + 1)


def picture(size=96, dtype=np.uint8, channels=1):
    """Soft structures, a sharp round edge and some grain, (channels, size, size), the whole range of the type."""
    rng = np.random.default_rng(size)
    y, x = np.mgrid[0:size, 0:size] / size
    soft = (
        np.sin(7 * x) * np.cos(5 * y)
        + (np.hypot(x - 0.4, y - 0.5) < 0.3) * 0.5
        + 0.05 * rng.standard_normal((channels, size, size))
    )
    return ((soft - soft.min()) / (soft.max() - soft.min()) * np.iinfo(dtype).max).astype(dtype)


def unit(image):
    return image / np.iinfo(image.dtype).max


def made(kind, severity, image):
    return unit(corrupt(image, kind, severity, 5))


def strength(kind, severity):
    return CORRUPTIONS[kind].strengths[severity]


def close(image, expected):
    """To half a grey level of the type, and float32's rounding."""
    return pytest.approx(expected.clip(0, 1), abs=0.5 / np.iinfo(image.dtype).max + 2e-6)


def test_kinds_are_those_of_the_table():
    assert tuple(CORRUPTIONS) == KINDS


@pytest.mark.parametrize("severity", LEVELS)
def test_blur_is_the_gaussian_integrated_over_pixels(severity):
    """Oracle: weights by scipy.stats, correlated by scipy.ndimage, the border repeated."""
    image = picture(dtype=np.uint16, channels=3)
    sigma = strength("blur", severity) * 96
    reach = int(max(4 * sigma, 0.5) + 0.5)
    at = np.arange(-reach, reach + 1)
    weights = norm.cdf(at + 0.5, scale=sigma) - norm.cdf(at - 0.5, scale=sigma)
    expected = unit(image)
    for axis in (1, 2):
        expected = correlate1d(expected, weights, axis=axis, mode="nearest")
    assert made("blur", severity, image) == close(image, expected)


@pytest.mark.parametrize("severity", LEVELS)
def test_gamma_is_a_power_between_darkest_and_brightest(severity):
    image = (picture(dtype=np.uint16) // 2 + 5000).astype(np.uint16)
    low, high = unit(image).min(), unit(image).max()
    expected = ((unit(image) - low) / (high - low)) ** strength("gamma", severity) * (high - low) + low
    assert made("gamma", severity, image) == close(image, expected)


@pytest.mark.parametrize("severity", LEVELS)
def test_window_is_linear_about_the_middle(severity):
    image, width = picture(), strength("window", severity)
    assert made("window", severity, image) == close(image, (unit(image) - (0.5 - width / 2)) / width)


@pytest.mark.parametrize("severity", LEVELS)
def test_resolution_is_means_of_blocks_joined_by_lines(severity):
    """Oracle: blocks by reshaping, scipy's linear zoom with pixels as areas; 2 to 8 divide the edge."""
    factor = int(strength("resolution", severity))
    image = picture(120)
    blocks = unit(image)[0].reshape(120 // factor, factor, 120 // factor, factor).mean(axis=(1, 3))
    expected = zoom(blocks, factor, order=1, mode="nearest", grid_mode=True)
    assert made("resolution", severity, image)[0] == close(image, expected)


@pytest.mark.parametrize("severity", LEVELS)
def test_noise_is_normal_with_the_stated_spread(severity):
    grey = np.full((1, 128, 128), 32768, dtype=np.uint16)
    noise = made("noise", severity, grey) - unit(grey)
    inside = noise[np.abs(noise) < 0.49]
    assert inside.std() == pytest.approx(strength("noise", severity), rel=0.03)
    assert abs(inside.mean()) < 4 * inside.std() / 128
    assert kstest(inside / strength("noise", severity), "norm").pvalue > 1e-3


@pytest.mark.parametrize("severity", LEVELS)
def test_marker_is_white_in_the_top_right_corner_alone(severity):
    image = np.full((2, 100, 100), 40, dtype=np.uint8)
    changed = made("marker", severity, image) != unit(image)
    size = round(strength("marker", severity) * 100)
    rows, columns = np.flatnonzero(changed[0].any(axis=1)), np.flatnonzero(changed[0].any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (3, 2 + size, 97 - size, 96)
    stroke = max(size // 4, 1)
    assert changed.sum(axis=(1, 2)).tolist() == [2 * size * stroke - stroke**2] * 2
    assert (made("marker", severity, image)[changed] == 1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [64, 97, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_each_severity_is_stronger_than_the_one_before(kind, size, dtype):
    image = picture(size, dtype)
    assert np.array_equal(corrupt(image, kind, 0, 5), image)
    errors = [np.mean((made(kind, severity, image) - unit(image)) ** 2) for severity in range(SEVERITIES + 1)]
    assert errors[0] == 0
    assert (np.diff(errors) > 0).all()
    steps = np.diff(strength(kind, slice(None)))
    assert (steps > 0).all() or (steps < 0).all()


@settings(max_examples=25, deadline=None)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=8, max_side=8).map(lambda s: (1, *s))),
    st.sampled_from(KINDS),
    st.integers(1, SEVERITIES),
)
def test_any_image_stays_an_image(image, kind, severity):
    """Constant ones too, where gamma divides by the range."""
    before = image.copy()
    out = corrupt(image, kind, severity, 1)
    assert (out.shape, out.dtype) == (image.shape, image.dtype)
    assert np.array_equal(image, before)
    assert np.array_equal(out, corrupt(image, kind, severity, 1))


def test_noise_hangs_on_seed_and_name():
    grey = np.full((1, 32, 32), 128, dtype=np.uint8)
    keys = [image_key(seed, name) for seed in (1, 2) for name in ("a", "b")]
    assert len({corrupt(grey, "noise", 3, key).tobytes() for key in keys}) == 4
    assert image_key(1, "a") == 0xBF1D9877  # `printf 1/a | sha256sum`; another number would be other noise
