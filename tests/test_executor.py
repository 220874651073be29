"""The ordered map over files: processes and a real cluster, with workers that die, hang and ask for too much."""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from pipeline import cluster, executor
from pipeline.errors import PipelineError
from pipeline.executor import Done, Workers, available_cores, limit_address_space, ordered_map, run_chunk

ROOT = Path(__file__).parents[1]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space needs Linux")


def mapped(function, tasks, **changes):
    """``ordered_map`` with the settings that most tests share."""
    settings = {
        "description": "test",
        "name_of": lambda task: f"pseudonym-{task}",
        "on_death": lambda task: ("died", task),
    }
    return ordered_map(function, tasks, **{**settings, "isolate": True, "workers": 2, **changes})


# What workers run: picklable, hence of this module.


def square(task):
    return task * task


def slow_first(task):
    time.sleep(0.3 if task == 0 else 0.0)
    return task


def where(task):
    return os.getpid()


def killed(task):
    if task in (5, 40):
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task


def killed_first(task):
    if task == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def segfault(task):
    if task == 7:
        ctypes.string_at(0)
    return task * task


def killed_once(marker, task):
    """Dies at task 30 the first time only."""
    if task == 30 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.002)
    return task * task


class KilledOnce:
    def __init__(self, marker):
        self.marker = marker

    def __call__(self, task):
        return killed_once(self.marker, task)


def greedy(task):
    try:
        return len(bytearray(task))
    except MemoryError:
        return "MemoryError"


_leaked = []


def leak(task):
    _leaked.append(mmap.mmap(-1, task))  # address space that is never touched
    return task


def hang(task):
    if task == 3:
        time.sleep(60)
    return task


def hang_in_c(task):
    """As a decoder that loops without ever letting go of the interpreter's lock: Python sees no signal."""
    if task == 3:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        ctypes.PyDLL(None).sleep(60)
    return task


def refuse(task):
    if task == 20:
        raise PipelineError("source 20: told in words")
    return task


class TwoArgumentsError(Exception):
    """Does not pickle: its arguments are not those of its constructor."""

    def __init__(self, one, two):
        super().__init__(one + two)


def unpicklable(task):
    raise TwoArgumentsError(1, 2)


def function_in_result(task):
    return lambda: task


class TestResults:
    def test_in_the_order_of_the_tasks(self):
        assert list(mapped(slow_first, list(range(300)))) == list(range(300))

    def test_the_number_of_workers_changes_nothing(self):
        tasks = list(range(50))
        expected = [task * task for task in tasks]
        assert list(mapped(square, tasks, workers=1)) == list(mapped(square, tasks, workers=3)) == expected

    def test_no_tasks_start_nothing(self, monkeypatch):
        monkeypatch.setattr(executor, "_processes", None)
        assert list(mapped(square, [])) == []

    def test_little_work_stays_here_unless_it_must_be_isolated(self):
        assert set(mapped(where, [1, 2], isolate=False, workers=None)) == {os.getpid()}
        isolated = set(mapped(where, [1, 2], isolate=True, workers=1))
        assert len(isolated) == 1
        assert os.getpid() not in isolated

    def test_a_result_that_does_not_pickle_is_an_error_and_no_death(self):
        with pytest.raises((AttributeError, TypeError, Exception), match=r"pickle|local object"):
            list(mapped(function_in_result, [1]))


class TestErrors:
    def test_one_of_ours_arrives_with_its_text_after_the_results_before_it(self):
        results = mapped(refuse, list(range(100)))
        seen = []
        with pytest.raises(PipelineError, match=r"^source 20: told in words$"):
            seen.extend(iter(lambda: next(results), None))
        assert seen == list(range(20))

    def test_one_that_does_not_pickle_is_told_by_its_name(self):
        with pytest.raises(RuntimeError, match="TwoArgumentsError"):
            list(mapped(unpicklable, [1]))

    def test_the_place_in_the_worker_is_noted(self):
        with pytest.raises(TypeError) as caught:
            list(mapped(square, [{}]))
        assert "in square" in "".join(caught.value.__notes__)


class _Recorder:
    """An executor that runs nothing until its future is asked for, and counts."""

    def __init__(self):
        self.pending = []
        self.sent = 0
        self.most = 0
        self.closed = 0

    def submit(self, runner, function, chunk):
        self.sent += len(chunk)
        return _Lazy(lambda: runner(function, chunk))

    def workers(self):
        return Workers(self, run_chunk, (), lambda: 2, self.close)

    def close(self, _pending):
        self.closed += 1


class _Lazy(Future):
    def __init__(self, work):
        super().__init__()
        self.set_result(None)
        self.work = work

    def result(self):
        return self.work()


class TestWindow:
    @pytest.fixture
    def recorder(self, monkeypatch):
        made = _Recorder()
        monkeypatch.setattr(executor, "_processes", lambda *_: made.workers())
        return made

    def test_few_tasks_are_sent_ahead(self, recorder):
        ahead = 0
        for seen, result in enumerate(mapped(square, range(10_000)), start=1):
            assert result == (seen - 1) ** 2
            ahead = max(ahead, recorder.sent - seen)
        assert recorder.sent == 10_000
        # Four chunks for each of two workers, of at most 64 tasks, and the one being handed out.
        assert 64 < ahead <= 9 * 64
        assert recorder.closed == 1

    def test_nothing_is_sent_before_the_first_result_is_asked_for(self, recorder):
        results = mapped(square, range(100))
        assert recorder.sent == 0
        next(results)
        assert 0 < recorder.sent < 100
        results.close()
        assert recorder.closed == 1

    def test_slow_tasks_go_one_by_one(self, recorder, monkeypatch):
        sizes = []

        def slow(function, tasks):
            sizes.append(len(tasks))
            return Done([function(task) for task in tasks], None, 0.5 * len(tasks))

        monkeypatch.setattr(recorder, "workers", lambda: Workers(recorder, slow, (), lambda: 2, recorder.close))
        assert list(mapped(square, range(30))) == [task * task for task in range(30)]
        assert set(sizes) == {1}


class TestDeath:
    def test_costs_the_one_task(self):
        results = list(mapped(killed, list(range(60))))
        assert results == [("died", task) if task in (5, 40) else task * task for task in range(60)]

    def test_by_a_segmentation_fault(self):
        results = list(mapped(segfault, list(range(20)), workers=1))
        assert results == [("died", task) if task == 7 else task * task for task in range(20)]

    def test_of_the_first_and_only_task(self):
        assert list(mapped(killed_first, [0], workers=1)) == [("died", 0)]

    def test_that_does_not_happen_again_costs_nothing(self, tmp_path):
        results = list(mapped(KilledOnce(str(tmp_path / "marker")), list(range(60))))
        assert results == [task * task for task in range(60)]
        assert (tmp_path / "marker").exists()

    def test_of_workers_that_never_start_is_blamed_on_no_file(self, monkeypatch):
        monkeypatch.setattr(executor, "_prepare_worker", os.abort)
        with pytest.raises(PipelineError, match="before they have begun"):
            list(mapped(square, list(range(10)), workers=1))


class TestLimits:
    @linux_only
    def test_too_much_memory_is_a_memory_error_in_the_function(self):
        assert list(mapped(greedy, [10, 64 * 2**30, 2**28, 5 * 2**30])) == [10, "MemoryError", 2**28, "MemoryError"]

    @linux_only
    def test_what_earlier_tasks_leaked_does_not_count(self):
        assert list(mapped(leak, [2**31] * 4, workers=1)) == [2**31] * 4

    @linux_only
    def test_the_limit_is_above_what_is_there(self):
        code = """
            from pipeline.executor import limit_address_space
            assert limit_address_space(2**28)
            bytearray(2**27)
            try:
                bytearray(2**29)
            except MemoryError:
                print("refused")
        """
        assert run(code).stdout == "refused\n"

    def test_where_it_cannot_be_set_work_goes_on(self, monkeypatch):
        def unreadable(*_args, **_settings):
            raise FileNotFoundError

        monkeypatch.setattr(Path, "read_text", unreadable)
        assert limit_address_space(2**40) is False

    @pytest.mark.parametrize("function", [hang, hang_in_c])
    def test_a_task_that_takes_too_long_ends_the_run(self, function):
        started = time.monotonic()
        with pytest.raises(PipelineError, match=r"^pseudonym-3 took longer than 1 s.*overloaded.*Run again"):
            list(mapped(function, list(range(6)), time_limit=1.0))
        assert time.monotonic() - started < 20

    def test_workers_that_never_answer_end_the_run(self, monkeypatch):
        class Silent:
            def submit(self, *_):
                return Future()

        monkeypatch.setattr(
            executor, "_processes", lambda *_: Workers(Silent(), run_chunk, (), lambda: 1, lambda _: None)
        )
        with pytest.raises(PipelineError, match=r"no worker has answered.*pseudonym-1 "):
            list(mapped(square, [1, 2], time_limit=0.01))


def run(code, **settings):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True, **settings
    )


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@linux_only
class TestOrphans:
    SCRIPT = """
        import signal, sys
        sys.path.insert(0, {folder!r})
        from task import tell
        # In the background of a shell, as CI may run, Ctrl-C is ignored and Python leaves it so.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        if __name__ == "__main__":
            from pipeline.executor import ordered_map
            options = dict(description="t", name_of=str, on_death=str, isolate=True, workers=2)
            list(ordered_map(tell, [{folder!r}] * 2, **options))
    """
    TASK = """
        import os, time
        from pathlib import Path

        def tell(folder):
            Path(folder, f"{os.getpid()}.pid").touch()
            time.sleep(60)
    """

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_none_survive_whoever_started_them(self, tmp_path, number):
        (tmp_path / "task.py").write_text(textwrap.dedent(self.TASK))
        (tmp_path / "main.py").write_text(textwrap.dedent(self.SCRIPT).format(folder=str(tmp_path)))
        with subprocess.Popen(
            [sys.executable, str(tmp_path / "main.py")],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                deadline = time.monotonic() + 30
                while len(pids := [int(path.stem) for path in tmp_path.glob("*.pid")]) < 2:
                    assert time.monotonic() < deadline
                    assert process.poll() is None
                    time.sleep(0.05)
                assert all(is_alive(pid) for pid in pids)
                process.send_signal(number)
                process.wait(20)
            finally:
                process.kill()
        deadline = time.monotonic() + 10
        while any(is_alive(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_a_caller_that_stops_ends_the_workers(self):
        results = mapped(where, list(range(1000)))
        pids = {next(results) for _ in range(50)}
        results.close()
        assert pids
        assert not any(is_alive(pid) for pid in pids)


@pytest.fixture(scope="class")
def address():
    """A scheduler with two workers, each a process with one thread, in the folder the tests run in."""
    import dask
    from distributed import LocalCluster

    with (
        # One death and one more before the scheduler gives a task up; else it would take four.
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=60
        ) as cluster,
    ):
        yield cluster.scheduler_address


class TestCluster:
    @pytest.fixture(autouse=True)
    def use(self, address, monkeypatch):
        monkeypatch.setenv("PIPELINE_SCHEDULER", address)
        # Without the code: whoever edits it while the tests run would have the workers refuse.
        lasting = tuple(pair for pair in cluster.environment() if pair[0] != "the code")
        monkeypatch.setattr(cluster, "environment", lambda: lasting)

    def test_equal_results_elsewhere(self):
        tasks = list(range(300))
        assert list(mapped(square, tasks)) == [task * task for task in tasks]
        pids = set(mapped(where, tasks, isolate=False))
        assert pids
        assert os.getpid() not in pids

    def test_a_worker_killed_midway_costs_nothing(self, tmp_path):
        results = list(mapped(KilledOnce(str(tmp_path / "marker")), list(range(200))))
        assert results == [task * task for task in range(200)]
        assert (tmp_path / "marker").exists()

    def test_a_task_that_kills_its_worker_costs_itself(self):
        results = list(mapped(segfault, list(range(60))))
        assert results == [("died", task) if task == 7 else task * task for task in range(60)]

    def test_an_error_of_ours_arrives_with_its_text(self):
        with pytest.raises(PipelineError, match=r"^source 20: told in words$"):
            list(mapped(refuse, list(range(100))))

    def test_a_task_that_takes_too_long_ends_the_run(self):
        with pytest.raises(PipelineError, match=r"^pseudonym-3 took longer than 1 s"):
            list(mapped(hang, list(range(6)), time_limit=1.0))

    def test_workers_with_other_code_are_refused(self, monkeypatch):
        other = (("Python", sys.version), ("the code", "0" * 64))
        monkeypatch.setattr(cluster, "environment", lambda: other)
        with pytest.raises(PipelineError, match="differs in: the code"):
            list(mapped(square, [1]))


class TestNoCluster:
    def test_unreachable(self, monkeypatch):
        monkeypatch.setenv("PIPELINE_SCHEDULER", "tcp://127.0.0.1:9")
        monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
        with pytest.raises(PipelineError, match=r"no scheduler with workers answers there within 1 s"):
            list(mapped(square, [1]))

    @pytest.mark.parametrize("address", ["nonsense://x", "no port"])
    def test_no_address(self, monkeypatch, address):
        monkeypatch.setenv("PIPELINE_SCHEDULER", address)
        monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
        with pytest.raises(PipelineError, match="no scheduler"):
            list(mapped(square, [1]))

    def test_not_installed(self, monkeypatch):
        monkeypatch.setenv("PIPELINE_SCHEDULER", "tcp://127.0.0.1:8786")
        monkeypatch.setitem(sys.modules, "distributed", None)
        with pytest.raises(PipelineError, match='pip install "distributed'):
            list(mapped(square, [1]))


def test_cores_are_counted():
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
