"""Shared by all tests: where things lie, and small helpers that need no DVC."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm import warm

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# One thread a worker: pytest-xdist runs one worker a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Files that take minutes, first: else one core works on the last of them while the others have nothing left.
LONGEST = (
    "end_to_end/test_selectivity.py",
    "end_to_end/test_controls.py",
    "end_to_end/test_identifiers.py",
    "end_to_end/test_handover.py",
    "transfer/test_every_pair.py",
    "training/test_distributed.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of LONGEST, then as collected."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights beside the checkout."""
    # The data's and weights' terms keep them out of the repository: a clone elsewhere lacks them, CI has them.
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with real data and weights is not there")
    return SHARED


@pytest.fixture(scope="session")
def warm_python() -> Iterator[Path]:
    """For stages and commands as processes of their own; see warm.py."""
    with warm() as python:
        yield python
