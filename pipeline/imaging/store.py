"""The on-disk array store: one images.npy (N, H, W) uint8 that NumPy alone can memory-map."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError

ARRAY_FILE = "images.npy"
INDEX_FILE = "images.parquet"
SUMMARY_FILE = "store.json"

Images = npt.NDArray[np.uint8]


def write_images(images: Iterable[Images], size_px: int, folder: Path) -> int:
    """Write images one by one, so that memory does not grow with their number.

    Written beside its place and renamed when whole: a half array is never taken for a store.

    Args:
        images: arrays (size_px, size_px) uint8, in the order of array_index; how many shows at the end.
        size_px: edge in pixels.
        folder: gets images.npy and store.json (shape, dtype, SHA-256 of the array's bytes).

    Returns:
        The number of images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (ARRAY_FILE + ".part")
    digest = hashlib.sha256()
    written = 0
    with partial.open("wb") as file:
        _write_header(file, 0, size_px)
        for image in images:
            if image.shape != (size_px, size_px) or image.dtype != np.uint8:
                raise ValueError(f"expected ({size_px}, {size_px}) uint8, got {image.shape} {image.dtype}")
            data = image.tobytes()
            digest.update(data)
            file.write(data)
            written += 1
        # NumPy leaves room in the header for the first axis to grow, for this use.
        end = file.tell()
        file.seek(0)
        _write_header(file, written, size_px)
        file.seek(end)
    partial.replace(folder / ARRAY_FILE)
    summary = {"dtype": "uint8", "sha256": digest.hexdigest(), "shape": [written, size_px, size_px]}
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    return written


def open_images(folder: Path) -> Images:
    """The store as a read-only memory map (N, H, W) uint8.

    Raises:
        PipelineError: it is not there or not such an array.
    """
    path = folder / ARRAY_FILE
    if not path.is_file():
        raise PipelineError(f"{path} is not there; `dvc repro` makes it")
    # A file without a single image cannot be mapped; it can be read.
    array = np.load(path, mmap_mode="r" if path.stat().st_size > 1024 else None, allow_pickle=False)
    if array.ndim != 3 or array.dtype != np.uint8:
        raise PipelineError(f"{path}: expected (N, H, W) uint8, got {array.shape} {array.dtype}")
    return array


def read_summary(folder: Path) -> dict[str, object]:
    """What ``write_images`` recorded: shape, dtype, sha256."""
    return dict(json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8")))


def _write_header(file: BinaryIO, count: int, size_px: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, size_px, size_px)}
    np.lib.format.write_array_header_1_0(file, header)
