"""One ``concurrent.futures.Executor`` behind a stage's work per file: processes of this machine, or a Dask cluster.

Neither the executor, nor the number of workers, nor the load of a machine changes a result: a file that kills its
worker is run again alone before it is blamed, and one that takes too long ends the run instead of being left out.
"""

import multiprocessing
import os
import pickle
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import closing
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from pipeline.errors import PipelineError

if sys.platform != "win32":
    import resource

T = TypeVar("T")
R = TypeVar("R")

SCHEDULER_VARIABLE = "PIPELINE_SCHEDULER"
# Address space that a worker may take for a chunk of tasks beyond what it has (after its imports about 0.75 GiB, with
# pydicom, NumPy, OpenCV and PyArrow): a decoder that asks for more gets a MemoryError.
ADDRESS_SPACE_BYTES = 4 * 2**30
TIME_LIMIT_SECONDS = 120.0

# Starting a worker costs about a second of imports: not worth it for less work than this.
_HEADERS_PER_WORKER = 200
_IMAGES_PER_WORKER = 32
# A chunk is about as many tasks as take so long: then what it costs to send one does not matter.
_CHUNK_SECONDS = 0.1
_CHUNK_TASKS = 64
_CHUNKS_PER_WORKER = 4
# A future that takes so many time limits will never come: all its workers are gone or stuck.
_PATIENCE = 10


class OvertimeError(Exception):
    """A task outlived the time limit inside a worker that cannot be ended from outside."""


@dataclass(frozen=True)
class Done(Generic[R]):
    """What became of a chunk.

    Attributes:
        results: of its tasks in order, up to the first that raised.
        error: what that one raised.
        seconds: the time it took.
    """

    results: list[R]
    error: Exception | None
    seconds: float


class Runner(Protocol):
    """Runs the tasks of a chunk in a worker; picklable."""

    def __call__(self, function: Callable[[T], R], tasks: Sequence[T], /) -> Done[R]:
        """Never raises what ``function`` raised."""


@dataclass(frozen=True)
class Workers:
    """An executor, and what differs between local processes and a cluster.

    Attributes:
        executor: its futures raise for nothing but the death of a worker, ``TimeoutError`` and faults of its own.
        runner: runs a chunk there.
        deaths: what a future raises when the worker died.
        capacity: how many chunks run at a time.
        close: end the workers (of a cluster: leave it), whatever they are doing; given the futures not yet asked for.
    """

    executor: Executor
    runner: Runner
    deaths: tuple[type[BaseException], ...]
    capacity: Callable[[], int]
    close: Callable[[Sequence[Future[Any]]], None]


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def ordered_map(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    description: str,
    name_of: Callable[[T], str],
    on_death: Callable[[T], R],
    isolate: bool = False,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT_SECONDS,
) -> Generator[R]:
    """``map(function, tasks)`` in order, in worker processes; holds a few chunks of tasks and results at a time.

    With ``PIPELINE_SCHEDULER`` (tcp://host:8786) in the environment, in the workers of that Dask cluster.

    Args:
        function: of a module; expected failures are part of its result, and what it raises ends the run.
        tasks: picklable.
        description: of the progress bar.
        name_of: what errors call a task: a pseudonym.
        on_death: the result of a task that killed its worker twice, the second time running alone.
        isolate: never run in this process (``function`` decodes); else little work is done right here.
        workers: local processes; None takes as many as cores and work allow.
        time_limit: in seconds, of one task.

    Raises:
        PipelineError: a task outlived the time limit, or workers cannot be had.
    """
    address = os.environ.get(SCHEDULER_VARIABLE)
    least = _IMAGES_PER_WORKER if isolate else _HEADERS_PER_WORKER
    wanted = workers or max(1, min(available_cores(), ceil(len(tasks) / least)))
    if not tasks:
        return
    if not address and not isolate and wanted == 1:
        results: Generator[R] = (function(task) for task in tasks)
    else:

        def start() -> Workers:
            if not address:
                return _processes(wanted, time_limit)
            from pipeline.cluster import cluster  # it builds on this module

            return cluster(address, time_limit)

        results = _Map(function, tasks, name_of, on_death, start, time_limit).results()
    bar = tqdm(total=len(tasks), desc=description, unit="file", mininterval=0.5, dynamic_ncols=True)
    with bar, closing(results):
        for result in results:
            yield result
            bar.update()


class _Map(Generic[T, R]):
    """The state of one ordered map: the chunks under way, in order, and the pace that sizes the next one."""

    def __init__(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        name_of: Callable[[T], str],
        on_death: Callable[[T], R],
        start: Callable[[], Workers],
        time_limit: float,
    ) -> None:
        self._function = function
        self._tasks = tasks
        self._name_of = name_of
        self._on_death = on_death
        self._start = start
        self._time_limit = time_limit
        self._sent = 0
        self._chunk_tasks = 1
        self._under_way: deque[tuple[Sequence[T], Future[Done[R]]]] = deque()

    def results(self) -> Generator[R]:
        """The results in order; workers live from the first to the last, or until the generator is closed."""
        self._workers = self._start()
        try:
            while self._sent < len(self._tasks) or self._under_way:
                self._fill()
                chunk, future = self._under_way.popleft()
                try:
                    done = self._outcome(future, chunk)
                except TimeoutError:
                    if len(chunk) == 1:
                        raise self._overtime(chunk[0]) from None
                    yield from self._one_by_one(chunk)
                    continue
                except self._workers.deaths:
                    yield from self._one_by_one(chunk)
                    continue
                yield from self._unpack(done, chunk)
                self._adapt(done)
        finally:
            self._close()

    def _close(self) -> None:
        self._workers.close([future for _, future in self._under_way])

    def _fill(self) -> None:
        capacity = self._workers.capacity()
        while self._sent < len(self._tasks) and len(self._under_way) < _CHUNKS_PER_WORKER * capacity:
            # Towards the end smaller chunks, so that all workers finish at about the same time.
            share = ceil((len(self._tasks) - self._sent) / (2 * capacity))
            chunk = self._tasks[self._sent : self._sent + min(self._chunk_tasks, share)]
            self._under_way.append((chunk, self._submit(chunk)))
            self._sent += len(chunk)

    def _submit(self, chunk: Sequence[T]) -> Future[Done[R]]:
        try:
            return self._workers.executor.submit(self._workers.runner, self._function, chunk)
        except self._workers.deaths as error:
            # The pool broke since: as if it had broken a moment later.
            future: Future[Done[R]] = Future()
            future.set_exception(error)
            return future

    def _adapt(self, done: Done[R]) -> None:
        if done.results:
            fitting = int(_CHUNK_SECONDS * len(done.results) / max(done.seconds, 1e-6))
            self._chunk_tasks = max(1, min(fitting, 2 * self._chunk_tasks, _CHUNK_TASKS))

    def _outcome(self, future: Future[Done[R]], chunk: Sequence[T]) -> Done[R]:
        if not wait([future], timeout=_PATIENCE * self._time_limit).done:
            raise PipelineError(
                f"no worker has answered for {_PATIENCE * self._time_limit:g} s, about {self._name_of(chunk[0])} or "
                "what was sent after it; see whether the workers are alive, and run again"
            )
        try:
            return future.result()
        except CancelledError:
            raise PipelineError("the workers were called off, or their scheduler is gone; run again") from None

    def _unpack(self, done: Done[R], chunk: Sequence[T]) -> Iterator[R]:
        yield from done.results
        if isinstance(done.error, OvertimeError):
            raise self._overtime(chunk[len(done.results)])
        if done.error is not None:
            raise done.error

    def _one_by_one(self, chunk: Sequence[T]) -> Iterator[R]:
        """Each task in a submission of its own and nothing beside it, so that no other can be the cause."""
        wait([future for _, future in self._under_way], timeout=_PATIENCE * self._time_limit)
        for task in chunk:
            self._ensure_alive()
            try:
                done = self._outcome(self._submit([task]), [task])
            except TimeoutError:
                raise self._overtime(task) from None
            except self._workers.deaths:
                yield self._on_death(task)
            else:
                yield from self._unpack(done, [task])

    def _ensure_alive(self) -> None:
        """Workers that die of themselves (a broken environment, no memory left) must not be blamed on a file."""
        failures: tuple[type[BaseException], ...] = (TimeoutError, CancelledError, *self._workers.deaths)
        for attempt in range(3):
            if attempt:
                self._close()
                self._workers = self._start()
                # What the old workers had not answered they never will.
                for index, (chunk, future) in enumerate(self._under_way):
                    if not future.done():
                        self._under_way[index] = (chunk, self._submit(chunk))
            try:
                future = self._workers.executor.submit(self._workers.runner, self._function, [])
                if wait([future], timeout=max(self._time_limit, TIME_LIMIT_SECONDS)).done:
                    future.result()
                    return
            except failures:
                continue
        raise PipelineError(
            "worker processes die before they have begun with a file; "
            "see that the machine has memory left and that the environment is whole (make), and run again"
        )

    def _overtime(self, task: T) -> PipelineError:
        return PipelineError(
            f"{self._name_of(task)} took longer than {self._time_limit:g} s: either the machine is overloaded, "
            "or a decoder hangs on that file. Run again; if it is the same file again, look into it "
            "(`python -m pipeline.commands.inspect`) and take it out of the folder"
        )


def run_chunk(function: Callable[[T], R], tasks: Sequence[T], /) -> Done[R]:
    """A ``Runner``: the tasks one after another."""
    results: list[R] = []
    started = time.perf_counter()
    for task in tasks:
        try:
            results.append(function(task))
        except Exception as error:  # carried to the caller, who raises it again
            return Done(results, _portable(error), time.perf_counter() - started)
    return Done(results, None, time.perf_counter() - started)


def _portable(error: Exception) -> Exception:
    """The error as it will arrive: one that does not pickle would break the whole pool on its way."""
    where = "".join(traceback.format_tb(error.__traceback__))
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except (pickle.PickleError, TypeError, ValueError, AttributeError):
        copy = RuntimeError(f"{type(error).__name__} (its text did not come through)")
    if not isinstance(copy, PipelineError):
        copy.add_note(f"In the worker:\n{where}")
    return copy


# Local processes.


class ProcessExecutor(Executor):
    """Pebble's pool of processes as an ``Executor``, with a limit on each worker's address space and each call's time.

    The limit on address space needs Linux; elsewhere there is none. Started by spawn: forking a process that has
    threads (OpenCV's, say) can hang the child.
    """

    def __init__(self, workers: int, time_limit: float) -> None:
        """Start nothing yet.

        Args:
            workers: processes.
            time_limit: of a call, in seconds; its future then raises ``TimeoutError``.
        """
        context = multiprocessing.get_context("spawn")
        self._pool: Any = ProcessPool(workers, initializer=_prepare_worker, context=context)
        self._time_limit = time_limit

    def submit(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """As ``Executor.submit``.

        Raises:
            BrokenExecutor: the pool broke before.
        """
        # Pickled here and unpickled in the call: what fails in that is this call's error and not the pool's end.
        content = pickle.dumps((function, args, kwargs))
        outer: Future[R] = Future()
        try:
            inner = self._pool.schedule(_call, (content,), timeout=self._time_limit)
        except RuntimeError as error:
            raise BrokenExecutor(str(error)) from None
        outer.set_running_or_notify_cancel()
        inner.add_done_callback(lambda future: _hand_over(future, outer))
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End all workers; with ``cancel_futures`` those at work too, else once all that was submitted is done."""
        self._pool.stop() if cancel_futures else self._pool.close()
        if wait:
            self._pool.join()


def _hand_over(inner: Future[bytes], outer: Future[R]) -> None:
    if inner.cancelled():
        outer.set_exception(CancelledError())
        return
    error = inner.exception()
    if error is not None:
        outer.set_exception(error)
        return
    try:
        outer.set_result(pickle.loads(inner.result()))  # noqa: S301 - our own worker's bytes
    except Exception as fault:  # carried to the caller: here it would end a thread of the pool, and all would wait
        outer.set_exception(fault)


def _call(content: bytes) -> bytes:
    function, args, kwargs = pickle.loads(content)  # noqa: S301 - our own bytes
    # With all imports done, and anew for each call: what an earlier file's decoder leaked must not fail this one.
    limit_address_space(ADDRESS_SPACE_BYTES)
    # A process for each core: OpenCV's threads beside it would only take address space.
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    return pickle.dumps(function(*args, **kwargs))


def _processes(workers: int, time_limit: float) -> Workers:
    executor = ProcessExecutor(workers, time_limit)
    return Workers(
        executor=executor,
        runner=run_chunk,
        # BrokenExecutor: the worker died before the pool knew what it was at. MemoryError: over a result on its way.
        deaths=(ProcessExpired, BrokenExecutor, MemoryError),
        capacity=lambda: workers,
        close=lambda _: executor.shutdown(cancel_futures=True),
    )


def _prepare_worker() -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End with the process that started this one, however that ended; a pipe alone tells only an idle worker."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def limit_address_space(bytes_above_present: int) -> bool:
    """Let this process take so much more address space; what asks for more gets a MemoryError.

    Returns:
        Whether it could be set: on Linux, where a lower limit of the machine's does not stand already.
    """
    if sys.platform == "win32":
        return False
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        wanted = pages * resource.getpagesize() + bytes_above_present
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard != resource.RLIM_INFINITY and hard < wanted:
            return False
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    except (OSError, ValueError):
        return False
    return True
