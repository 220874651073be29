"""A seeded mutation fuzzer: whatever a file has become, it has one verdict, and no process or run is lost over it.

`make test` tries 500 mutants, `make fuzz` 10,000 (MUTANTS=... for another number, FUZZ_SEED=... for other mutants).
"""

import os
import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import data_store
import pydicom
import pytest
from simulation.conftest import make as make  # a fixture

from pipeline.commands import inspect
from pipeline.datasets.common import Source
from pipeline.dicom.headers import IngestParams
from pipeline.executor import ordered_map
from pipeline.tables.files import FILE_REASONS, NOTES

MUTANTS = int(os.environ.get("MUTANTS", "500"))
SEED = os.environ.get("FUZZ_SEED", "1")
SECONDS = 10.0  # no bad file takes longer
POLICY = IngestParams(**dict.fromkeys(("burned_in_annotation", "secondary_capture", "localizer"), "keep"))
SYNTAXES = [
    b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.5",
    b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.51", b"1.2.840.10008.1.2.4.57",
    b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.91",
    b"1.2.840.10008.1.2.4.201", b"1.2.840.10008.1.2.4.100",
]  # fmt: skip
EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


def seeds(made: Callable[..., object]) -> list[bytes]:
    """Small files of every kind: our own, and those that come with pydicom and its test data."""
    own = [
        made(transfer_syntax=name).content
        for name in ("explicit_little", "implicit_little", "rle", "jpeg_lossless", "jpeg2000")
    ]  # type: ignore[attr-defined]
    folders = [Path(pydicom.__file__).parent / "data/test_files", Path(data_store.__file__).parent / "data"]
    found = sorted((path for folder in folders for path in folder.glob("*.dcm")), key=lambda path: path.name)
    return own + [path.read_bytes() for path in found if path.stat().st_size < 150_000]


def mutate(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """One to four changes, most of them where a reader looks."""
    content = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4])):
        if len(content) < 200:
            break
        header = min(len(content), 3000)
        place = draw.randrange(128, header) if draw.random() < 0.7 else draw.randrange(len(content))
        match draw.randrange(11):
            case 0:
                content[place] ^= 1 << draw.randrange(8)
            case 1:
                content[place] = draw.randrange(256)
            case 2:
                del content[place:]
            case 3:
                del content[place : place + draw.choice([1, 2, 4, 8, 100])]
            case 4:
                content[place:place] = draw.randbytes(draw.choice([1, 2, 8, 64]))
            case 5:
                size = draw.choice([8, 64, 512])
                content[place:place] = content[place : place + size]
            case 6:
                content[place : place + 4] = struct.pack("<L", draw.choice(EXTREMES))
            case 7:
                content[place : place + 2] = struct.pack("<H", draw.choice(EXTREMES) & 0xFFFF)
            case 8:
                content[place:] = other[draw.randrange(len(other)) :]
            case 9:
                old, new = draw.choice(SYNTAXES), draw.choice(SYNTAXES)
                found = content.find(old, 132, 600)
                if found > 0:
                    content[found : found + len(new)] = new
            case 10:
                depth = draw.choice([3, 200, 5000])
                item = struct.pack("<HH2sHLHHL", 0x40, 0xA730, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
                content[place:place] = item * depth
    return bytes(content)


def mutant(number: int, files: list[bytes]) -> bytes:
    draw = random.Random(f"{SEED} {number}")
    return mutate(draw.choice(files), draw.choice(files), draw)


@pytest.mark.filterwarnings("ignore")
def test_every_mutant_has_one_verdict(tmp_path: Path, make: Callable[..., object], capfd: pytest.CaptureFixture[str]):
    files = seeds(make)
    assert len(files) > 60
    tasks = []
    for number in range(MUTANTS):
        path = tmp_path / f"{number:05d}"
        path.write_bytes(mutant(number, files))
        tasks.append(inspect.Task(path.name, Source(path.name, path), POLICY))
    results = list(
        ordered_map(
            inspect.verdict, tasks, description="fuzz", name_of=lambda task: task.shown, on_death=inspect.died,
            isolate=True, time_limit=SECONDS,
        )
    )  # fmt: skip
    assert [found["path"] for found in results] == [task.shown for task in tasks]
    counts = Counter((found["outcome"], found["reason"]) for found in results)
    with capfd.disabled():
        if MUTANTS > 500:
            print(
                f"\n{MUTANTS} mutants of {len(files)} files:",
                *(f"{n:6d} {k}" for k, n in counts.most_common()),
                sep="\n",
            )
    defects = {found["path"]: found["detail"] for found in results if found["outcome"] == "defect"}
    assert defects == {}
    for found in results:
        if found["outcome"] == "accepted":
            assert found["reason"] is None
            assert found["sha256"]
            assert set(found["notes"]) <= NOTES
        else:
            assert found["outcome"] in {"rejected", "quarantined"}
            assert found["reason"] in FILE_REASONS
    assert len({reason for _, reason in counts}) >= 9  # the mutants reach far
    assert any(outcome == "accepted" for outcome, _ in counts)
    crashed = [found["path"] for found in results if found["detail"] == "the decoder crashed"]
    assert len(crashed) <= MUTANTS // 100, crashed
