"""The array store: NumPy alone reads it, equal images give equal bytes, half a store is none."""

import hashlib

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.imaging.store import open_images, read_summary, write_images

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16), dtype=np.uint8)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_round_trip_and_summary(tmp_path, count):
    assert write_images(iter(IMAGES[:count]), 16, tmp_path) == count
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), IMAGES[:count])
    np.testing.assert_array_equal(open_images(tmp_path), IMAGES[:count])
    assert read_summary(tmp_path) == {
        "dtype": "uint8", "shape": [count, 16, 16], "sha256": hashlib.sha256(IMAGES[:count].tobytes()).hexdigest()
    }  # fmt: skip


def test_header_grows_with_the_count(tmp_path):
    write_images((IMAGES[0] for _ in range(12_345)), 16, tmp_path)
    assert open_images(tmp_path).shape == (12_345, 16, 16)
    assert open_images(tmp_path)[-1, 0, 0] == IMAGES[0, 0, 0]


def test_same_bytes(tmp_path):
    for name in "ab":
        write_images(iter(IMAGES), 16, tmp_path / name)
    for file in ("images.npy", "store.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("bad", [np.zeros((16, 15), np.uint8), np.zeros((16, 16), np.int16)])
def test_wrong_images_leave_no_store(tmp_path, bad):
    with pytest.raises(ValueError, match="expected"):
        write_images(iter([IMAGES[0], bad]), 16, tmp_path)
    with pytest.raises(PipelineError, match="not there"):
        open_images(tmp_path)


def test_map_is_read_only(tmp_path):
    write_images(iter(IMAGES), 16, tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        open_images(tmp_path)[0] = 0


def test_another_array_is_refused(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((3, 4)))
    with pytest.raises(PipelineError, match="uint8"):
        open_images(tmp_path)
