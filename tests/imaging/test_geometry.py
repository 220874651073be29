"""The square keeps sides, shape and brightness, and does not alias."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.imaging.geometry import fit_square

sides = st.integers(1, 90)


@settings(deadline=None)
@given(sides, sides, st.integers(16, 64), st.floats(0.05, 20), st.integers(1, 255))
def test_size_and_constant(rows, columns, size_px, ratio, value):
    square, place = fit_square(np.full((rows, columns), value, dtype=np.uint8), size_px, ratio)
    assert square.shape == (size_px, size_px)
    assert square.dtype == np.uint8
    inside = np.zeros_like(square, dtype=bool)
    inside[place.pad_top :, place.pad_left :][: place.resized_rows, : place.resized_columns] = True
    assert inside.sum() == place.resized_rows * place.resized_columns
    assert (square[inside] == value).all()
    assert not square[~inside].any()
    assert max(place.resized_rows, place.resized_columns) == size_px
    assert abs(size_px - place.resized_rows - 2 * place.pad_top) <= 1
    assert abs(size_px - place.resized_columns - 2 * place.pad_left) <= 1
    wanted = rows * ratio / columns
    if wanted <= 1:
        assert place.resized_rows == pytest.approx(max(size_px * wanted, 1), abs=0.51)
    else:
        assert place.resized_columns == pytest.approx(max(size_px / wanted, 1), abs=0.51)


@pytest.mark.parametrize("shape", [(100, 60), (60, 100), (20, 12)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_marked_corner_stays_in_its_corner(shape, corner):
    grey = np.zeros(shape, dtype=np.uint8)
    block = [slice(0, n // 4) if end == 0 else slice(n - n // 4, n) for n, end in zip(shape, corner, strict=True)]
    grey[block[0], block[1]] = 255
    square, place = fit_square(grey, 48)
    found = square[place.pad_top :, place.pad_left :][: place.resized_rows, : place.resized_columns]
    for row in (0, 1):
        for column in (0, 1):
            expected = 255 if (row, column) == corner else 0
            assert found[-row, -column] == expected


def test_circle_stays_a_circle_where_pixels_are_not_square():
    """Rows 2 mm apart, columns 1 mm: a circle of 20 mm is 20 rows and 40 columns wide in the raw array."""
    y, x = np.mgrid[:60, :120]
    disc = ((((y - 29.5) * 2.0) ** 2 + (x - 59.5) ** 2) < 20**2).astype(np.uint8) * 255
    square, _ = fit_square(disc, 120, 2.0)
    inside = square > 127
    assert abs(int(inside.any(axis=1).sum()) - int(inside.any(axis=0).sum())) <= 2
    assert inside.any(axis=0).sum() == pytest.approx(40, abs=2)


def block_mean(grey, rows, columns):
    """Area averaging by whole factors, without OpenCV."""
    height, width = grey.shape[0] // rows, grey.shape[1] // columns
    return grey.reshape(rows, height, columns, width).mean(axis=(1, 3))


def test_shrinking_averages_areas():
    grey = np.random.default_rng(1).integers(0, 256, (256, 256), dtype=np.uint8)
    square, _ = fit_square(grey, 32)
    np.testing.assert_allclose(square, block_mean(grey, 32, 32), atol=0.51)
    np.testing.assert_array_equal(square, cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA))


def test_fine_stripes_become_grey():
    stripes = np.zeros((200, 200), dtype=np.uint8)
    stripes[:, ::2] = 255
    square, _ = fit_square(stripes, 50)
    assert square.min() >= 126
    assert square.max() <= 129


def test_fine_stripes_become_grey_where_the_other_side_grows():
    """50 rows 10 mm apart, 1000 columns 1 mm: the columns shrink by four while the rows grow."""
    stripes = np.zeros((50, 1000), dtype=np.uint8)
    stripes[:, ::2] = 255
    square, place = fit_square(stripes, 250, 10.0)
    assert (place.resized_rows, place.resized_columns) == (125, 250)
    inside = square[place.pad_top : place.pad_top + 125]
    assert inside.min() >= 126
    assert inside.max() <= 129


def test_growing_interpolates():
    square, _ = fit_square(np.array([[0, 200]], dtype=np.uint8), 16)
    assert (np.diff(square[4].astype(int)) >= 0).all()
    assert len(np.unique(square[4])) > 4


def test_same_size_is_untouched():
    grey = np.random.default_rng(2).integers(0, 256, (32, 32), dtype=np.uint8)
    np.testing.assert_array_equal(fit_square(grey, 32)[0], grey)
