"""What the benchmarks of stages share: a study made in a folder, and the memory of a process with its children."""

import os
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from pipeline.key import PUBLIC_KEY, fingerprint

ROOT = Path(__file__).parents[2]


def make_study(folder: Path, raw: Path, preprocess: str = "{size_px: 64, voi: header}") -> None:
    """A study of one site, with its manifest."""
    folder.mkdir(parents=True)
    labels = "{file: l.csv, key: file, key_column: f, columns: {x: x}}"
    versions = ", ".join(f"{name}: {version(name)}" for name in ("numpy", "opencv-python-headless", "pydicom"))
    (folder / "params.yaml").write_text(
        f"sites:\n  north: {{adapter: dicom_folder, root: {raw}, labels: {labels}}}\n"
        f"privacy: {{key: public, key_fingerprint: {fingerprint(PUBLIC_KEY)}}}\ninventory: {{hash: false}}\n"
        f"ingest: {{inconsistent_geometry: keep}}\npreprocess: {preprocess}\nversions: {{{versions}}}\n"
    )
    call(folder, "commands.inventory")


def call(folder: Path, module: str, *arguments: str) -> None:
    """Run a module of ours in a study's folder."""
    subprocess.run(
        [sys.executable, "-m", f"pipeline.{module}", *arguments], cwd=folder, check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


INGEST = ("--site", "north", "--manifest", "data/manifests/north.parquet", "--out", "data/ingest/north")
PREPROCESS = (
    *("--site", "north", "--ingest", "data/ingest/north"),
    *("--manifest", "data/manifests/north.parquet", "--out", "data/images/north"),
)


def command_in(folder: Path, raw: Path, preprocess: str) -> list[str]:
    """The command that preprocesses a new study whose files have been ingested."""
    make_study(folder, raw, preprocess)
    call(folder, "stages.ingest", *INGEST)
    return [sys.executable, "-m", "pipeline.stages.preprocess", *PREPROCESS]


def resident_peak(command: list[str], folder: Path) -> int:
    """The peak resident memory in KiB of a process and its children together, sampled."""
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    assert process.returncode == 0
    return peak


def resident(pid: int) -> int:
    """KiB of a process and all below it; pages that they share (maps of one file) count for each."""
    total = 0
    try:
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() // 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += resident(int(child))
    except (OSError, IndexError):
        pass
    return total
