"""What ingest costs beside the least that any reader must do, measured in one run: ratios, printed and held to a floor.

Run it on a quiet machine: `make bench`.
"""

import hashlib
import os
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from benchmarks.measure import INGEST, ROOT, make_study, resident_peak
from minimal import content, dataset
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from pipeline.commands import inspect
from pipeline.datasets.common import Source
from pipeline.dicom.headers import IngestParams
from pipeline.stages import ingest

pytestmark = pytest.mark.slow

FILES = 120


def slice_of(number: int) -> bytes:
    """A CT slice of half a megabyte, its header as rich as a scanner's: 110 elements, 30 of them nested or private."""
    pixels = np.random.default_rng(number).integers(0, 4096, (512, 512), dtype=np.uint16)
    made = dataset(
        pixels, Modality="CT", SOPInstanceUID=f"2.25.7{number:06d}", PatientID=f"P{number // 4:05d}",
        StudyInstanceUID=f"2.25.8{number // 4:05d}", SeriesInstanceUID=f"2.25.9{number // 4:05d}",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2", BodyPartExamined="CHEST", Manufacturer="SIEMENS",
        ImagePositionPatient=[-180, -180, 2.5 * (number % 4)], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelSpacing=[0.7, 0.7], RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, -600],
        WindowWidth=[400, 1500], KVP=120, SliceThickness=2.5, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
    )  # fmt: skip
    for tag in range(0x00181100, 0x00181130):
        if tag in pydicom.datadict.DicomDictionary and tag not in made:
            vr = pydicom.datadict.dictionary_VR(tag)
            if vr in ("DS", "IS", "SH", "LO", "CS"):
                made.add_new(tag, vr, "1")
    block = made.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", bytes(8000))
    for index in range(15):
        block.add_new(0x20 + index, "LO", f"value {index}")
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.3", "1.2.4"
    made.ReferencedStudySequence, made.ReferencedImageSequence = [item], [item, item, item]
    for keyword in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"):
        setattr(made, keyword, "101112")
    return content(made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("raw")
    for number in range(FILES):
        (made / f"{number:05d}").write_bytes(slice_of(number))
    return made


READER = ingest.Reader("dicom_folder", "north", "north", b"k" * 32, IngestParams())


def tasks(folder: Path) -> list[ingest.Task]:
    return [ingest.Task(path.name, Source(path.name, path), "") for path in sorted(folder.iterdir())]


def bare(path: Path) -> None:
    pydicom.dcmread(path, stop_before_pixels=True)
    hashlib.sha256(path.read_bytes()).hexdigest()


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def test_rate_of_one_core_beside_bare_pydicom_and_sha256(folder: Path):
    files, todo = sorted(folder.iterdir()), tasks(folder)
    assert all("rows" in ingest.read_source(READER, task) for task in todo)
    size = statistics.mean(path.stat().st_size for path in files)
    elements = len(list(pydicom.dcmread(files[0], stop_before_pixels=True).iterall()))
    ratios = []
    for _ in range(9):
        peer = seconds(lambda: [bare(path) for path in files])
        ours = seconds(lambda: [ingest.read_source(READER, task) for task in todo])
        ratios.append(peer / ours)
    ratio = statistics.median(ratios)
    print(f"\nfiles of {size / 1e6:.2f} MB, {elements} elements: rate of ingest / bare dcmread + SHA-256 = {ratio:.2f}")
    assert ratio >= 0.8


PEER = """
import hashlib, sys, pydicom
for path in sys.argv[1:]:
    pydicom.dcmread(path, stop_before_pixels=True); hashlib.sha256(open(path, "rb").read()).hexdigest()
"""


def test_two_workers_beside_two_bare_processes(tmp_path: Path):
    """Start-up left out of both: the time that 4,400 files take more than 400 do."""
    raw = {}
    data = [slice_of(number) for number in range(40)]
    for number in (400, 4400):
        raw[number] = tmp_path / f"raw{number}"
        raw[number].mkdir()
        for index in range(number):
            uid = f"2.25.6{index:06d}".encode()
            (raw[number] / f"{index:05d}").write_bytes(
                data[index % 40].replace(f"2.25.7{index % 40:06d}".encode(), uid)
            )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline.stages.ingest", *INGEST, "--workers", "2"]
    ours: dict[int, float] = dict.fromkeys(raw, np.inf)
    peer = dict(ours)
    for attempt in range(5):  # the least of five: what else the machine does only ever adds
        for number in raw:
            own = tmp_path / f"study{number}-{attempt}"
            make_study(own, raw[number])
            start = time.monotonic()
            subprocess.run(command, cwd=own, check=True, capture_output=True, env=environment)
            ours[number] = min(ours[number], time.monotonic() - start)
            files = sorted(map(str, raw[number].iterdir()))
            start = time.monotonic()
            halves = [subprocess.Popen([sys.executable, "-c", PEER, *files[part::2]]) for part in (0, 1)]
            assert [process.wait() for process in halves] == [0, 0]
            peer[number] = min(peer[number], time.monotonic() - start)
    ratio = (peer[4400] - peer[400]) / (ours[4400] - ours[400])
    print(f"\ntwo workers: rate of ingest / two bare processes = {ratio:.3f} ({peer} / {ours} s)")
    assert ratio >= 0.85  # the aim is 0.95; a busy machine costs a tenth


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path):
    peaks = {}
    small = content(dataset())
    for number in (1_000, 10_000):
        raw = tmp_path / f"raw{number}"
        raw.mkdir()
        for index in range(number):
            (raw / f"{index:05d}").write_bytes(
                small.replace(b"2.25.1234567891", f"2.25.12345{index:05d}".encode()).replace(
                    b"ID-7391846-X", f"ID-{index // 3:07d}-X".encode()
                )
            )
        make_study(tmp_path / f"study{number}", raw)
        command = [sys.executable, "-m", "pipeline.stages.ingest", *INGEST, "--workers", "2"]
        peaks[number] = resident_peak(command, tmp_path / f"study{number}")
    ratio = peaks[10_000] / peaks[1_000]
    few, many = (peaks[number] / 1024 for number in (1_000, 10_000))
    print(f"\npeak memory: {few:.0f} MiB for 1,000 files, {many:.0f} for 10,000: {ratio:.2f}")
    assert ratio <= 1.1


def bombs() -> dict[str, bytes]:
    """Files that promise much in little."""
    header = content(dataset())
    meta_end = header.index(b"\x08\0\x16\0UI")
    meta = header[:meta_end].replace(b"\x14\x001.2.840.10008.1.2.1\0", b"\x16\x001.2.840.10008.1.2.1.99")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = deflater.compress(header[meta_end:]) + b"".join(deflater.compress(bytes(2**24)) for _ in range(256))
    nested = struct.pack("<HH2sHLHHL", 0x40, 0xA730, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    segment = b"\x81\0" * 2**22  # each pair is 128 bytes
    rle = struct.pack("<16L", 2, 64, 64 + len(segment), *[0] * 13) + segment + segment
    groups = range(0x51, 0x77, 2)
    small = b"".join(struct.pack("<HH2sH", group, index, b"LO", 0) for group in groups for index in range(65536))
    place = header.index(b"\xe0\x7f\x10\0OW")
    return {
        "deflate, 4 GiB": meta + deflated + deflater.flush(),
        "rows and columns": content(dataset(Rows=65535, Columns=65535)),
        "frames": content(dataset(NumberOfFrames=2**31 - 1)),
        "nested a million deep": header[:place] + nested * 2**20 + header[place:],
        "RLE, 1 GiB": content(dataset(syntax="1.2.840.10008.1.2.5", PixelData=encapsulate([rle]))),
        "elements": header[:place] + small + header[place:],
        "length of 4 GiB": header[:place] + struct.pack("<HH2sHL", 0x51, 1, b"OB", 0, 0xFFFFFFF0) + header[place:],
    }


VERDICT = """
import json, resource, sys, time
from pathlib import Path
from pipeline.commands import inspect
from pipeline.datasets.common import Source
from pipeline.dicom.headers import IngestParams
path = Path(sys.argv[1])
start = time.monotonic()
found = inspect.verdict(inspect.Task("x", Source("x", path), IngestParams()))
print(json.dumps([found["outcome"], found["reason"], time.monotonic() - start,
                  resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def test_no_bad_file_takes_long_or_much(tmp_path: Path):
    import json

    files = {name: tmp_path / f"{number}" for number, name in enumerate(bombs())}
    for name, data in bombs().items():
        files[name].write_bytes(data)
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    files["a sparse terabyte"] = sparse
    print()
    for name, path in files.items():
        done = subprocess.run(
            [sys.executable, "-c", VERDICT, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        outcome, reason, took, peak = json.loads(done.stdout)
        print(f"{name:24s} {outcome} {reason}: {took:.2f} s, {peak:.0f} MiB")
        assert outcome == "rejected"
        assert took < 10
        assert peak < 2048


def test_pixels_beside_pydicom(folder: Path):
    """Modality arrays of uncompressed slices, beside pydicom's pixel_array and rescale of the same files."""
    files = sorted(folder.iterdir())[:60]

    def ours() -> None:
        for path in files:
            assert inspect.verdict(inspect.Task("x", Source("x", path), IngestParams()))["sha256"]

    def peer() -> None:
        for path in files:
            read = pydicom.dcmread(path)
            values = pydicom.pixels.apply_modality_lut(read.pixel_array, read).astype("<f4")
            hashlib.sha256(values.data).hexdigest()
            values.min(), values.max()

    ratios = [seconds(peer) / seconds(ours) for _ in range(5)]
    print(f"\nmodality arrays: rate of ours / pydicom = {statistics.median(ratios):.2f}")
    assert statistics.median(ratios) >= 0.8
