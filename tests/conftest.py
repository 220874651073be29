"""Shared by all tests: where things lie, and small helpers that need no DVC."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# One thread a worker: pytest-xdist runs one worker a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with real data and weights is not there")
    return SHARED
