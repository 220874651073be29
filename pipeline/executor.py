"""One interface for CPU work: an ordered, parallel map with a progress bar, over any concurrent Executor."""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from pipeline.errors import PipelineError

T = TypeVar("T")
R = TypeVar("R")

# Starting a worker costs about a second of imports: not worth it for less work than this.
_TASKS_PER_WORKER = 200


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def ordered_map(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    description: str,
    workers: int | None = None,
    executor: Executor | None = None,
) -> Iterator[R]:
    """``map(function, tasks)`` in order; the number of workers never changes a result.

    Args:
        function: picklable; expected failures are part of its result, not exceptions.
        tasks: picklable.
        description: of the progress bar.
        workers: local processes; None takes as many as cores and work allow, 1 runs in this process.
        executor: run there instead (a Dask client's ``get_executor()``, say).

    Raises:
        PipelineError: a worker process died (out of memory, or a decoder crashed it).
    """
    bar = tqdm(total=len(tasks), desc=description, unit="file", mininterval=0.5, dynamic_ncols=True)
    wanted = workers or min(available_cores(), math.ceil(len(tasks) / _TASKS_PER_WORKER))
    with bar:
        if executor is None and wanted <= 1:
            for task in tasks:
                yield function(task)
                bar.update()
            return
        # spawn: forking a process that has threads (OpenCV's, torch's) can hang the child.
        pool = executor or ProcessPoolExecutor(wanted, mp_context=multiprocessing.get_context("spawn"))
        try:
            chunk = max(1, min(64, len(tasks) // (4 * wanted)))
            for result in pool.map(function, tasks, chunksize=chunk):
                yield result
                bar.update()
        except BrokenExecutor:
            raise PipelineError(
                f"{description}: a worker process died, most likely for lack of memory or in a decoder; "
                "run again with --workers 1 to see at which file"
            ) from None
        finally:
            if executor is None:
                pool.shutdown(cancel_futures=True)
