"""How much DVC costs where nothing is to be done: `dvc repro` against `dvc status` on the root's graph."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = 5


def seconds(*command: str) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dvc", *command], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start


@pytest.mark.slow
def test_repro_of_nothing_against_status():
    """The two in turn, so that a noisy machine disturbs both alike."""
    # A benchmark of a run that has nothing to do: on a bare clone there is no run yet, and making one is no part of it.
    if not (ROOT / "reports/html/index.html").is_file():
        pytest.skip("there are no results to be up to date with; run make repro first")
    pairs = [(seconds("repro"), seconds("status")) for _ in range(RUNS)]
    ratios = [repro / status for repro, status in pairs]
    print(
        f"\ndvc repro {statistics.median(pair[0] for pair in pairs):.2f} s, "
        f"dvc status {statistics.median(pair[1] for pair in pairs):.2f} s, "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {RUNS} pairs"
    )
