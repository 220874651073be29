"""The on-disk array store: planes (H, W) in memory-mapped shards, and which planes are an image's channels.

A folder of NumPy files, readable without this module: ``planes-*.npy`` hold (P, H, W) uint8 or uint16 and follow each
other in the order of their names; ``channels.npy`` is (N, C) int64, for each image by array_index the numbers of its
planes. So neighbouring slices are channels of each other without being stored twice.
"""

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError
from pipeline.imaging.intensity import Grey

CHANNELS_FILE = "channels.npy"
INDEX_FILE = "images.parquet"
SUMMARY_FILE = "store.json"

# A shard is at most this, and more than half of it where there are two or more: large enough for few files, small
# enough for a changed image to cost little.
SHARD_BYTES = 256 * 2**20

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PlaneFormat:
    """Edge in pixels, and 8 or 16 bits, of all planes of a store."""

    size_px: int
    bits: int

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """Of the arrays, little-endian."""
        return np.dtype("u1") if self.bits == 8 else np.dtype("<u2")

    @property
    def plane_bytes(self) -> int:
        """On disk."""
        return self.size_px**2 * self.bits // 8


@dataclass(frozen=True)
class Shard:
    """A file of planes: its name, how many, and the SHA-256 of their bytes."""

    file: str
    planes: int
    sha256: str


class Store:
    """A store, open to be read; nothing is in memory but what is being read."""

    def __init__(self, folder: Path) -> None:
        """Map it.

        Raises:
            PipelineError: it is not there, or not whole.
        """
        summary = read_summary(folder)
        self.format = PlaneFormat(summary["size_px"], summary["bits"])
        self._shards = [open_planes(folder, Shard(**shard), self.format) for shard in summary["shards"]]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self.channels: Indices = _load(folder / CHANNELS_FILE)
        if self.channels.size and not 0 <= self.channels.min() <= self.channels.max() < self._starts[-1]:
            raise _broken(folder / CHANNELS_FILE, "it names planes that are not there")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, channels, rows, columns)."""
        count, channels = self.channels.shape
        return count, channels, self.format.size_px, self.format.size_px

    def __len__(self) -> int:
        return len(self.channels)

    def read(self, indices: Sequence[int] | Indices) -> Grey:
        """Images by array_index: (B, C, H, W) uint8 or uint16, a copy."""
        return self.read_planes(self.channels[np.asarray(indices, np.int64)])

    def shown(self, indices: Sequence[int] | Indices) -> npt.NDArray[np.uint8]:
        """Images to look at: (B, H, W), the middle channel, which of neighbouring slices is the slice itself."""
        planes = self.read_planes(self.channels[np.asarray(indices, np.int64), self.shape[1] // 2])
        return (planes >> (self.format.bits - 8)).astype(np.uint8)

    def read_planes(self, numbers: Indices) -> Grey:
        """Planes by number: the shape of ``numbers`` and then (H, W), a copy."""
        size = self.format.size_px
        pixels: Grey = np.empty((*numbers.shape, size, size), self.format.dtype)
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        for place in np.unique(places):
            here = places == place
            pixels[here] = self._shards[place][numbers[here] - self._starts[place]]
        return pixels


def read_summary(folder: Path) -> dict[str, Any]:
    """Size, bits, shards, and one SHA-256 for all pixels and channels.

    Raises:
        PipelineError: it is not there or cannot be read.
    """
    path = folder / SUMMARY_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise PipelineError(f"{path} is not there; `dvc repro` makes it") from None
    except ValueError:
        raise _broken(path, "it is no JSON") from None


def write_store(planes: Iterable[Grey], channels: Indices, form: PlaneFormat, folder: Path) -> None:
    """A whole store, plane by plane, so that memory does not grow with their number.

    Args:
        planes: (H, W), as many as ``channels`` names, in order.
        channels: (N, C), for each image the numbers of its planes.
        form: of the planes.
        folder: made where it is not there.
    """
    count = int(channels.max()) + 1 if channels.size else 0
    shards = num_shards(count, form)
    bounds = [count * number // shards for number in range(shards + 1)]
    remaining = iter(planes)
    written = [
        write_planes(islice(remaining, end - start), form, folder / shard_name(number, shards))
        for number, (start, end) in enumerate(pairwise(bounds))
    ]
    write_index(written, channels, form, folder)


def num_shards(planes: int, form: PlaneFormat) -> int:
    """A power of two, so that a store that grows is cut anew only when it has doubled."""
    needed = -(-planes * form.plane_bytes // SHARD_BYTES)
    return 1 << (needed - 1).bit_length() if needed > 1 else 1


def shard_name(number: int, count: int) -> str:
    """``planes-0003-of-0008.npy``."""
    return f"planes-{number:04d}-of-{count:04d}.npy"


def write_planes(planes: Iterable[Grey], form: PlaneFormat, path: Path) -> Shard:
    """One shard, written beside its place and renamed when whole: half a shard is never taken for one.

    Raises:
        PipelineError: the disk is full.
        ValueError: a plane of another format.
    """
    digest = hashlib.sha256()
    written = 0
    with replacing(path) as file:
        _write_header(file, 0, form)
        for plane in planes:
            if plane.shape != (form.size_px, form.size_px) or plane.dtype != form.dtype:
                raise ValueError(
                    f"expected ({form.size_px}, {form.size_px}) {form.dtype}, got {plane.shape} {plane.dtype}"
                )
            data = plane.tobytes()
            digest.update(data)
            file.write(data)
            written += 1
        # NumPy leaves room in the header for the first axis to grow, for this use.
        file.seek(0)
        _write_header(file, written, form)
    return Shard(path.name, written, digest.hexdigest())


def write_index(shards: Sequence[Shard], channels: Indices, form: PlaneFormat, folder: Path) -> None:
    """What makes a store of shards that lie in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CHANNELS_FILE) as file:
        np.save(file, np.ascontiguousarray(channels, dtype="<i8"), allow_pickle=False)
    total = hashlib.sha256("".join(shard.sha256 for shard in shards).encode() + channels.astype("<i8").tobytes())
    summary = {**asdict(form), "shards": [asdict(shard) for shard in shards], "sha256": total.hexdigest()}
    with replacing(folder / SUMMARY_FILE) as file:
        file.write((json.dumps(summary, sort_keys=True, indent=1) + "\n").encode())


def open_planes(folder: Path, shard: Shard, form: PlaneFormat) -> Grey:
    """A shard as a read-only memory map (P, H, W).

    Raises:
        PipelineError: it is not there, or not what the summary says.
    """
    path = folder / shard.file
    planes: Grey = _load(path)
    if planes.shape != (shard.planes, form.size_px, form.size_px) or planes.dtype != form.dtype:
        raise _broken(path, f"expected {shard.planes} planes of {form.size_px} pixels and {form.bits} bits")
    return planes


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, that takes its place when whole; nothing is left of it otherwise.

    Raises:
        PipelineError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PipelineError(
                f"the disk is full: {path.name} was not written. Free some space and run again"
            ) from None
        raise


def _load(path: Path) -> Any:
    try:
        # A file without a single element cannot be mapped; it can be read.
        mapped = path.stat().st_size > 128
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise PipelineError(f"{path} is not there; `dvc repro` makes it") from None
    except (ValueError, EOFError):
        raise _broken(path, "it is no array") from None


def _broken(path: Path, why: str) -> PipelineError:
    return PipelineError(f"{path} is damaged: {why}. Delete its folder; `dvc repro` makes it anew")


def _write_header(file: BinaryIO, count: int, form: PlaneFormat) -> None:
    header = {"descr": form.dtype.str, "fortran_order": False, "shape": (count, form.size_px, form.size_px)}
    np.lib.format.write_array_header_1_0(file, header)
