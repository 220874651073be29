"""What reaches the device: order, batches, augmentation with its direction, bytes to floats."""

import cv2
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import STILL

from pipeline.errors import PipelineError
from pipeline.training.feed import (
    AugmentParams,
    FeatureFeed,
    ImageFeed,
    augment,
    draw_affine,
    epoch_order,
    in_batches,
    read_ahead,
    to_unit,
)

CPU = torch.device("cpu")


def only(**values):
    return STILL.model_copy(update=values)


def smooth(size_px=64):
    """Off-centre blobs, dark at the border, so that interpolation and what lies outside matter little."""
    y, x = np.mgrid[0:size_px, 0:size_px]
    blobs = [(20, 30, 6.0, 0.8), (40, 24, 5.0, 0.5), (34, 44, 4.0, 0.6)]
    made = sum(a * np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * s**2)) for r, c, s, a in blobs)
    return made.astype(np.float32)


def apply(image, theta, contrast=1.0):
    grey = torch.from_numpy(image)[None, None]
    return augment(grey, torch.as_tensor(theta, dtype=torch.float32)[None], torch.tensor([contrast]))[0, 0].numpy()


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=80, unique=True),
    st.integers(0, 2**31 - 1),
    st.integers(0, 50),
)
def test_epoch_order_is_a_permutation_of_the_training_images(train, seed, epoch):
    train = np.array(train)
    order = epoch_order(train, seed, epoch)
    assert sorted(order) == sorted(train)
    assert np.array_equal(order, epoch_order(train, seed, epoch))


def test_epoch_order_differs_between_epochs_and_seeds():
    train = np.arange(50)
    orders = {tuple(epoch_order(train, seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


@given(st.integers(1, 500), st.integers(1, 70))
def test_batches_cover_each_index_once_and_leave_none_alone(num, batch_size):
    indices = np.random.default_rng(num).permutation(num)
    batches = list(in_batches(indices, batch_size))
    assert np.array_equal(np.concatenate(batches), indices)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-num // batch_size)
    if num > 1 and batch_size > 2:
        assert min(sizes) > 1


@given(st.integers(2, 60), st.integers(0, 1000), st.integers(0, 20))
def test_an_images_augmentation_hangs_on_seed_epoch_and_index_alone(num, seed, epoch):
    params = AugmentParams()
    theta, contrast = draw_affine(num, seed, epoch, params)
    more_theta, more_contrast = draw_affine(num + 17, seed, epoch, params)
    assert np.array_equal(theta, more_theta[:num])
    assert np.array_equal(contrast, more_contrast[:num])
    other, _ = draw_affine(num, seed, epoch + 1, params)
    assert not np.array_equal(theta, other)


@pytest.mark.parametrize("batch_size", [3, 5, 12])
def test_augmented_images_do_not_depend_on_the_batch(batch_size):
    rng = np.random.default_rng(0)
    grey = torch.from_numpy(rng.random((12, 1, 32, 32), dtype=np.float32))
    theta, contrast = (torch.from_numpy(part) for part in draw_affine(12, 1, 0, AugmentParams()))
    whole = augment(grey, theta, contrast)
    parts = [augment(grey[b], theta[b], contrast[b]) for b in in_batches(np.arange(12), batch_size)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)


def test_draws_fill_their_range_and_stay_inside():
    params = AugmentParams(rotation_degrees=30.0, translation=0.2, scale=0.25, contrast=0.4)
    theta, contrast = draw_affine(4000, 3, 0, params)
    angle = np.degrees(np.arctan2(theta[:, 1, 0], theta[:, 0, 0]))
    zoom = np.sqrt(np.linalg.det(theta[:, :, :2]))
    for values, low, high in (
        (angle, -30, 30),
        (zoom, 0.75, 1.25),
        (theta[:, 0, 2] / 2, -0.2, 0.2),
        (theta[:, 1, 2] / 2, -0.2, 0.2),
        (contrast, 0.6, 1.4),
    ):
        width = high - low
        assert low - 1e-5 * width <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high + 1e-5 * width
        assert abs(values.mean() - (low + high) / 2) < 0.03 * width  # 5 standard errors are 0.023 of the width


def test_nothing_to_draw_is_the_identity():
    theta, contrast = draw_affine(5, 1, 2, STILL)
    assert np.array_equal(theta, np.tile(np.float32([[1, 0, 0], [0, 1, 0]]), (5, 1, 1)))
    assert np.array_equal(contrast, np.ones(5, np.float32))
    rng = np.random.default_rng(1)
    grey = torch.from_numpy(rng.random((5, 1, 33, 33), dtype=np.float32))
    torch.testing.assert_close(
        augment(grey, torch.from_numpy(theta), torch.from_numpy(contrast)), grey, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("degrees", [-25.0, 10.0, 90.0])
def test_a_positive_angle_turns_the_shown_image_counter_clockwise(degrees):
    """Oracle: OpenCV, whose positive angles turn counter-clockwise with the origin at the top left."""
    angle = np.deg2rad(degrees)
    theta = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]
    image = smooth()
    about = cv2.getRotationMatrix2D((31.5, 31.5), degrees, 1.0)
    expected = cv2.warpAffine(image, about, (64, 64), flags=cv2.INTER_LINEAR)
    assert np.abs(apply(image, theta) - expected).max() < 0.02  # OpenCV rounds positions to 1/32 pixel
    other_way = cv2.warpAffine(image, cv2.getRotationMatrix2D((31.5, 31.5), -degrees, 1.0), (64, 64))
    assert np.abs(other_way - expected).max() > 0.1  # the comparison can fail


def test_a_quarter_turn_is_exact():
    image = np.random.default_rng(0).random((16, 16), dtype=np.float32)
    np.testing.assert_allclose(apply(image, [[0, -1, 0], [1, 0, 0]]), np.rot90(image), atol=1e-5)


def test_zoom_above_one_shows_more_of_the_scene():
    image = smooth()
    expected = cv2.warpAffine(image, cv2.getRotationMatrix2D((31.5, 31.5), 0, 1 / 1.25), (64, 64))
    assert np.abs(apply(image, [[1.25, 0, 0], [0, 1.25, 0]]) - expected).max() < 0.02


@pytest.mark.parametrize(("right_px", "down_px"), [(5, 0), (0, 3), (-4, 7)])
def test_translation_by_whole_pixels_is_a_shift_with_black_behind(right_px, down_px):
    """theta maps output to input, so content moves against the sign of the shift."""
    image = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    expected = np.zeros_like(image)
    for row in range(32):
        for column in range(32):
            if 0 <= row - down_px < 32 and 0 <= column - right_px < 32:
                expected[row, column] = image[row - down_px, column - right_px]
    moved = apply(image, [[1, 0, -2 * right_px / 32], [0, 1, -2 * down_px / 32]])
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_contrast_stretches_about_the_mean_and_is_clipped():
    image = np.full((8, 8), 0.2, np.float32)
    image[:, 4:] = 0.6
    identity = [[1, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(np.unique(apply(image, identity, 1.5).round(5)), [0.1, 0.7], atol=1e-5)
    image[:, 4:] = 1.0
    stretched = apply(image, identity, 2.0)
    assert stretched.min() == 0.0
    assert stretched.max() == 1.0


def test_bytes_become_exact_floats_of_either_layout():
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    for layout in (torch.contiguous_format, torch.channels_last):
        grey = to_unit(torch.from_numpy(images), CPU, layout)
        assert grey.shape == (1, 1, 16, 16)
        assert grey.dtype == torch.float32
        np.testing.assert_array_equal(grey.numpy(), images.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(
    "bad", [{"rotation_degrees": -1.0}, {"translation": 0.5}, {"scale": 1.0}, {"contrast": 1.0}, {"flip": 0.5}]
)
def test_senseless_augmentation_is_refused(bad):
    with pytest.raises(ValidationError):
        AugmentParams(**bad)


@settings(deadline=None, max_examples=25)  # a loaded machine is no failure
@given(st.lists(st.integers(0, 23), min_size=1, max_size=24, unique=True), st.integers(1, 9), st.integers(0, 3))
def test_a_sample_is_the_same_in_any_batch_of_any_process(indices, batch_size, epoch):
    """Keyed by seed, epoch and image: how images come together, and in which process, changes none."""
    data = tiny.dataset()
    feed = ImageFeed(data.images, CPU, torch.contiguous_format, AugmentParams(), 5)
    (whole,) = feed.training([np.arange(24)], epoch)
    chosen = np.array(indices)
    made = torch.cat(list(feed.training(in_batches(chosen, batch_size), epoch)))
    torch.testing.assert_close(made, whole[chosen], atol=1e-6, rtol=0)
    # As two processes take it in turns.
    halves = [torch.cat(list(feed.training([chosen[rank::2]], epoch))) for rank in (0, 1) if len(chosen[rank::2])]
    for rank, half in enumerate(halves):
        torch.testing.assert_close(half, whole[chosen[rank::2]], atol=1e-6, rtol=0)


def test_a_feed_that_drew_batch_by_batch_would_be_seen():
    """The comparison above can fail: another epoch, or parameters by place in the batch, give other pictures."""
    data = tiny.dataset()
    feed = ImageFeed(data.images, CPU, torch.contiguous_format, AugmentParams(), 5)
    (whole,), (later,) = feed.training([np.arange(24)], 0), feed.training([np.arange(24)], 1)
    assert (whole - later).abs().max() > 0.05
    theta, contrast = draw_affine(24, 5, 0, AugmentParams())
    pixels = to_unit(torch.from_numpy(data.images.read(np.arange(12, 24))), CPU, torch.contiguous_format)
    by_place = augment(pixels, torch.from_numpy(theta[:12]), torch.from_numpy(contrast[:12]))
    assert (by_place - whole[12:]).abs().max() > 0.05


def test_reading_ahead_keeps_the_order_and_tells_of_errors():
    batches = [np.array([number]) for number in range(10)]
    read = list(read_ahead(lambda batch: torch.from_numpy(batch * 2), batches))
    assert [int(batch[0]) for batch, _ in read] == list(range(10))
    assert [int(value[0]) for _, value in read] == list(range(0, 20, 2))

    def broken(batch):
        if batch[0] == 3:
            raise PipelineError("the disk is gone")
        return torch.from_numpy(batch)

    seen = []
    with pytest.raises(PipelineError, match="the disk is gone"):
        seen.extend(int(batch[0]) for batch, _ in read_ahead(broken, batches))
    assert seen == [0, 1, 2]


def test_cached_features_come_by_index():
    features = torch.arange(12.0).view(6, 2)
    made = list(FeatureFeed(features).training([np.array([4, 0]), np.array([5])], epoch=3))
    assert torch.equal(made[0], features[[4, 0]])
    assert torch.equal(made[1], features[[5]])
