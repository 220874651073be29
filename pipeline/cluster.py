"""The executor of ``pipeline.executor`` over a Dask cluster by scheduler address (optional: needs ``distributed``).

A worker there cannot be ended from outside, may not spawn children, and must have the stage's folder, code and
packages.
"""

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import PipelineError
from pipeline.executor import SCHEDULER_VARIABLE, Done, OvertimeError, Workers, run_chunk

T = TypeVar("T")
R = TypeVar("R")

_CONNECT_SECONDS = 10
# What decides the bytes that a worker makes, beside the code.
_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "python-gdcm",
)


def run_chunk_on_cluster(
    function: Callable[[T], R],
    tasks: Sequence[T],
    /,
    *,
    needed: Sequence[tuple[str, str]],
    time_limit: float,
) -> Done[R]:
    """A ``Runner`` for a worker that cannot be ended from outside: it gives up on a task, and leaves its thread.

    Args:
        function: as of ``ordered_map``.
        tasks: of the chunk.
        needed: the stage's ``environment()``; a worker with another refuses.
        time_limit: of a task, in seconds.

    Returns:
        With an ``OvertimeError`` where a task outlived the limit.
    """
    own = dict(environment())
    differing = [name for name, value in needed if own.get(name) != value]
    if differing:
        return Done([], _unlike(differing), 0.0)
    started = time.perf_counter()
    outcomes: queue.SimpleQueue[Done[R]] = queue.SimpleQueue()

    def work() -> None:
        for task in tasks:
            outcomes.put(run_chunk(function, [task]))

    threading.Thread(target=work, daemon=True).start()
    results: list[R] = []
    for _ in tasks:
        try:
            one = outcomes.get(timeout=time_limit)
        except queue.Empty:
            return Done(results, OvertimeError(), time.perf_counter() - started)
        if one.error is not None:
            return Done(results, one.error, time.perf_counter() - started)
        results += one.results
    return Done(results, None, time.perf_counter() - started)


def _unlike(differing: Sequence[str]) -> PipelineError:
    return PipelineError(
        f"a worker of the cluster differs in: {', '.join(differing)}. "
        "Start the workers from the study's folder, with the same checkout and environment (docs/howto/cluster.md)"
    )


@cache
def environment() -> tuple[tuple[str, str], ...]:
    """What must be equal in stage and worker for equal results: Python, folder, code, packages."""
    package = Path(__file__).parent
    code = sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return (
        ("Python", sys.version),
        ("the working folder", str(Path.cwd())),
        ("the code", code.hexdigest()),
        *((name, _installed(name)) for name in _PACKAGES),
    )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def cluster(address: str, time_limit: float) -> Workers:
    """The workers of a running cluster.

    Args:
        address: of its scheduler, ``tcp://host:8786``.
        time_limit: of a task, in seconds.

    Raises:
        PipelineError: ``distributed`` is not installed, or no scheduler with workers answers there.
    """
    try:
        import distributed  # optional
    except ImportError:
        raise PipelineError(
            f"{SCHEDULER_VARIABLE} is set, but the package distributed is not installed: "
            'pip install "distributed>=2026.3", or unset the variable'
        ) from None
    unreachable = f"{SCHEDULER_VARIABLE}={address}: no scheduler with workers answers there within {_CONNECT_SECONDS} s"
    try:
        connect: Any = distributed.Client  # untyped
        client = connect(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError):
        raise PipelineError(f"{unreachable}; start one (docs/howto/cluster.md) or unset the variable") from None
    try:
        client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError):
        client.close()
        raise PipelineError(f"{unreachable}; start workers (docs/howto/cluster.md)") from None
    counted: list[float] = []

    def capacity() -> int:
        # Asked again now and then, so that workers that join are used.
        if not counted or time.monotonic() - counted[0] > _CONNECT_SECONDS:
            counted[:] = [time.monotonic(), sum(client.nthreads().values())]
        return max(1, int(counted[1]))

    # Not pure: equal tasks must not be answered from an earlier result, nor hashed.
    executor = client.get_executor(pure=False)

    def close(pending: Sequence[Future[Any]]) -> None:
        executor.shutdown(wait=False)
        # Leaving while they are being called off would end in tracebacks on stderr.
        wait(pending, timeout=_CONNECT_SECONDS)
        client.close()

    return Workers(
        executor=executor,
        runner=partial(run_chunk_on_cluster, needed=environment(), time_limit=time_limit),
        deaths=(distributed.KilledWorker,),
        capacity=capacity,
        close=close,
    )
