"""The square keeps sides, shape, size and brightness, and does not alias; no flip is silent."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.imaging.geometry import Sampling, Turn, place, resample, turn_to_standard

sides = st.integers(1, 90)


def fit_square(grey, size_px, row_spacing=1.0, column_spacing=1.0, **sampling):
    placement = place(*grey.shape, Sampling(size_px, **sampling), row_spacing, column_spacing)
    return resample(grey, size_px, placement), placement


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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_crop_fills_the_square_from_the_middle(dtype):
    grey = np.zeros((100, 60), dtype)
    grey[20:80] = np.iinfo(dtype).max
    square, where = fit_square(grey, 30, fit="crop")
    assert square.dtype == dtype
    assert (where.resized_rows, where.resized_columns, where.pad_top, where.pad_left) == (50, 30, -10, 0)
    assert (square == np.iinfo(dtype).max).all()


@pytest.mark.parametrize(("spacing_mm", "rows", "columns"), [(1.0, 40, 40), (0.5, 80, 80), (2.0, 20, 20)])
def test_millimetres_are_kept_whatever_the_pixels(spacing_mm, rows, columns):
    """40 mm by 40 mm of two thicknesses of pixel, in a square of 64 pixels."""
    for row_mm, column_mm in ((0.5, 0.5), (1.0, 0.25), (0.2, 2.0)):
        grey = np.full((round(40 / row_mm), round(40 / column_mm)), 200, np.uint8)
        square, _ = fit_square(grey, 64, row_mm, column_mm, spacing_mm=spacing_mm)
        lit = square > 100
        assert lit.any(axis=1).sum() == min(rows, 64)
        assert lit.any(axis=0).sum() == min(columns, 64)
        centre = np.argwhere(lit).mean(axis=0)
        np.testing.assert_allclose(centre, 31.5, atol=0.51)


def test_a_square_that_the_image_does_not_reach_is_black_around_it():
    square, where = fit_square(np.full((10, 10), 9, np.uint8), 16, 1.0, 1.0, spacing_mm=1.0)
    assert where.pad_top == where.pad_left == 3
    assert (square[3:13, 3:13] == 9).all()
    assert square.sum() == 900


@settings(deadline=None)
@given(sides, sides, st.floats(0.1, 5), st.floats(0.1, 5), st.sampled_from(["pad", "crop", 0.7, 3.0]))
def test_a_turn_before_and_after_resampling_is_the_same(rows, columns, row_mm, column_mm, how):
    """What is done to a transposed image is done to its spacings as well."""
    sampling = {"spacing_mm": how} if isinstance(how, float) else {"fit": how}
    grey = np.random.default_rng(rows * 91 + columns).integers(0, 256, (rows, columns), dtype=np.uint8)
    upright, _ = fit_square(grey, 32, row_mm, column_mm, **sampling)
    turned, _ = fit_square(np.ascontiguousarray(grey.T), 32, column_mm, row_mm, **sampling)
    np.testing.assert_allclose(turned.T.astype(int), upright.astype(int), atol=1)


# Where the corner of the first row and column lies in the patient, by its two directions.
ALL = [a + b for a in "LRPAHF" for b in "LRPAHF" if {a, b} not in ({"L", "R"}, {"P", "A"}, {"H", "F"}) and a != b]
SHOWN = {"axial": ("L", "P"), "coronal": ("L", "F"), "sagittal": ("P", "F")}  # right edge, lower edge


@pytest.mark.parametrize("orientation", ALL)
def test_a_marked_corner_comes_to_its_place_on_the_standard_display(orientation):
    """The last pixel of the first row lies furthest along the first letter, and least along the second."""
    opposite = dict(zip("LRPAHF", "RLAPFH", strict=True))
    grey = np.zeros((6, 4), np.uint8)
    grey[0, -1] = 255
    marked = {orientation[0], opposite[orientation[1]]}
    plane = next(edges for edges in SHOWN.values() if {*edges, *(opposite[e] for e in edges)} >= marked)
    row, column = np.argwhere(turn_to_standard(orientation)(grey))[0]
    shape = turn_to_standard(orientation)(grey).shape
    assert (column == shape[1] - 1) == (plane[0] in marked)
    assert (row == shape[0] - 1) == (plane[1] in marked)
    assert {row, column} <= {0, shape[0] - 1, shape[1] - 1}


def test_the_standard_display_is_left_alone_and_so_is_the_unknown():
    for orientation in ("LP", "LF", "PF", None):
        assert turn_to_standard(orientation) == Turn()
