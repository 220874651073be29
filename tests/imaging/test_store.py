"""The array store: NumPy alone reads it, equal images give equal bytes, what is not whole is told."""

import errno
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.imaging import store as store_module
from pipeline.imaging.store import (
    SHARD_BYTES,
    PlaneFormat,
    Store,
    num_shards,
    read_summary,
    write_planes,
    write_store,
)

FORM = PlaneFormat(16, 8)
PLANES = np.random.default_rng(0).integers(0, 256, (9, 16, 16), dtype=np.uint8)
EACH = np.arange(9)[:, None]


@pytest.fixture
def small_shards(monkeypatch):
    """Three planes at most, so that nine make four shards."""
    monkeypatch.setattr(store_module, "SHARD_BYTES", 3 * 256)


@pytest.mark.parametrize("bits", [8, 16])
def test_numpy_alone_reads_it(tmp_path, small_shards, bits):
    form = PlaneFormat(16, bits)
    planes = PLANES.astype(form.dtype) * (1 if bits == 8 else 257)
    write_store(iter(planes), EACH, form, tmp_path)
    files = sorted(tmp_path.glob("planes-*.npy"))
    assert len(files) == (4 if bits == 8 else 8)
    together = np.concatenate([np.load(file, mmap_mode="r") for file in files])
    np.testing.assert_array_equal(together, planes)
    np.testing.assert_array_equal(together[np.load(tmp_path / "channels.npy")][:, 0], planes)


@given(st.lists(st.lists(st.integers(0, 8), min_size=3, max_size=3), max_size=6), st.data())
@settings(max_examples=40, deadline=None)
def test_reads_what_channels_name(tmp_path_factory, channels, data):
    folder = tmp_path_factory.mktemp("store")
    wanted = np.array([*channels, [8, 0, 4]], np.int64).reshape(-1, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SHARD_BYTES", 3 * 256)
        write_store(iter(PLANES), wanted, FORM, folder)
    store = Store(folder)
    assert store.shape == (len(wanted), 3, 16, 16)
    assert len(store) == len(wanted)
    indices = data.draw(st.lists(st.integers(0, len(wanted) - 1), max_size=5))
    np.testing.assert_array_equal(store.read(indices), PLANES[wanted[indices]])


def test_same_bytes(tmp_path, small_shards):
    for name in "ab":
        write_store(iter(PLANES), EACH, FORM, tmp_path / name)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert first == second
    assert not any(name.endswith(".part") for name in first)


def test_another_pixel_is_another_hash(tmp_path):
    other = PLANES.copy()
    other[4, 3, 2] ^= 1
    write_store(iter(PLANES), EACH, FORM, tmp_path / "a")
    write_store(iter(other), EACH, FORM, tmp_path / "b")
    write_store(iter(PLANES), EACH[::-1], FORM, tmp_path / "c")
    assert len({read_summary(tmp_path / name)["sha256"] for name in "abc"}) == 3


@given(st.integers(1, 10**8), st.sampled_from([(224, 8), (512, 16), (96, 8), (2048, 16)]))
def test_shards_are_of_50_to_500_megabytes(planes, form):
    plane = PlaneFormat(*form).plane_bytes
    shards = num_shards(planes, PlaneFormat(*form))
    assert planes * plane / shards <= SHARD_BYTES < 500e6
    assert shards == 1 or planes * plane / shards > SHARD_BYTES / 2 > 50e6
    assert shards & (shards - 1) == 0


def test_header_grows_with_the_count(tmp_path):
    shard = write_planes((PLANES[0] for _ in range(12_345)), FORM, tmp_path / "p.npy")
    assert shard.planes == 12_345
    assert np.load(tmp_path / "p.npy").shape == (12_345, 16, 16)


@pytest.mark.parametrize("bad", [np.zeros((16, 15), np.uint8), np.zeros((16, 16), np.int16)])
def test_wrong_planes_leave_nothing(tmp_path, bad):
    with pytest.raises(ValueError, match="expected"):
        write_planes(iter([PLANES[0], bad]), FORM, tmp_path / "p.npy")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_and_says_what_to_do(tmp_path):
    def planes():
        yield PLANES[0]
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PipelineError, match="disk is full"):
        write_planes(planes(), FORM, tmp_path / "p.npy")
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_disk(tmp_path):
    """/dev/full takes an open file and refuses every write."""
    path = tmp_path / "p.npy"
    (tmp_path / "p.npy.part").symlink_to("/dev/full")
    with pytest.raises(PipelineError, match="disk is full"):
        write_planes((PLANES[0] for _ in range(1000)), FORM, path)
    assert not path.exists()


def test_what_was_read_is_a_copy(tmp_path):
    write_store(iter(PLANES), EACH, FORM, tmp_path)
    store = Store(tmp_path)
    store.read([0])[:] = 0
    np.testing.assert_array_equal(store.read([0])[0, 0], PLANES[0])


def break_summary(folder):
    (folder / "store.json").write_text("{")


def break_shard(folder):
    shard = next(folder.glob("planes-*"))
    shard.write_bytes(shard.read_bytes()[:-1])


def another_array(folder):
    np.save(next(folder.glob("planes-*")), np.zeros((3, 4)))


def no_array(folder):
    (folder / "channels.npy").write_bytes(b"x" * 300)


def channels_beyond(folder):
    np.save(folder / "channels.npy", np.array([[9]] * 20))


@pytest.mark.parametrize("harm", [break_summary, break_shard, another_array, no_array, channels_beyond])
def test_damage_is_told(tmp_path, harm):
    write_store(iter(PLANES), EACH, FORM, tmp_path)
    harm(tmp_path)
    with pytest.raises(PipelineError, match=r"damaged.*dvc repro"):
        Store(tmp_path)


@pytest.mark.parametrize("file", ["store.json", "channels.npy", "planes-0000-of-0001.npy"])
def test_a_missing_part_is_told(tmp_path, file):
    write_store(iter(PLANES), EACH, FORM, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(PipelineError, match=r"not there.*dvc repro"):
        Store(tmp_path)


def test_summary_says_what_is_there(tmp_path):
    write_store(iter(PLANES), EACH, FORM, tmp_path)
    summary = json.loads((tmp_path / "store.json").read_text())
    assert (summary["size_px"], summary["bits"]) == (16, 8)
    assert [shard["planes"] for shard in summary["shards"]] == [9]
