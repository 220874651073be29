"""A `python` with its packages imported: `-m pipeline...` and `-c` run in a fork of it, all else in the real one.

Importing torch, lightning and monai costs a stage some eight seconds of CPU, and the tests of the graph run a hundred
such stages. Of the project's own code the fork has nothing: it imports what lies in the folder that it runs in. It has
its caller's arguments, environment, folder and streams, is a process of its own and ends as one.

Who puts its folder first in PATH has it as `python`, as the shell that DVC runs.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = (
    "cv2", "lightning.fabric", "matplotlib.figure", "monai.networks.layers", "monai.transforms", "pandas",
    "pyarrow.parquet", "pydantic", "pydicom.pixels", "ruamel.yaml", "safetensors.torch", "scipy.optimize",
    "scipy.stats", "sklearn.linear_model", "torch", "torchvision.models", "tqdm",
)  # fmt: skip
SHIM = """#!{python} -IS
import os, sys
arguments = sys.argv[1:]
if arguments[0] != "-c" and not (arguments[0] == "-m" and arguments[1].startswith("pipeline.")):
    os.execv({python!r}, [{python!r}, *arguments])
import json, socket
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"-"], [0, 1, 2])
    server.sendall(json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    status = int(server.recv(16))
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@contextmanager
def warm() -> Iterator[Path]:
    """That `python`, in a folder of its own, as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:  # short: a socket's address has room for 107 bytes
        address = os.path.join(folder, "socket")  # noqa: PTH118 - goes into the script as text
        shim = Path(folder, "python")
        shim.write_text(SHIM.format(python=sys.executable, address=address))
        shim.chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [sys.executable, __file__, address]
        with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == b"ready\n"
                yield shim
            finally:
                server.kill()


def serve(address: str) -> list[str]:
    """Forks for each caller and tells it how the fork ended; returns in the forks, with each one's arguments."""
    for name in PACKAGES:
        importlib.import_module(name)
    assert not [name for name in sys.modules if name.partition(".")[0] == "pipeline"]
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            caller, _ = listener.accept()
            with caller:
                _, streams, _, _ = socket.recv_fds(caller, 1, 3)
                words, folder, environment = json.loads(b"".join(iter(lambda: caller.recv(2**16), b"")))  # noqa: B023 - read at once
                fork = os.fork()
                if fork == 0:
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                        os.close(stream)
                    os.chdir(folder)
                    os.environ.clear()
                    os.environ.update(environment)
                    return words
                for stream in streams:
                    os.close(stream)
                _, status = os.waitpid(fork, 0)
                caller.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def run(arguments: list[str]) -> None:
    """As `python` does."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [os.fspath(Path(path).absolute()) for path in ["", *filter(None, paths)]]
    option, what, *sys.argv[1:] = arguments
    main = sys.modules["__main__"] = sys.modules["__mp_main__"] = types.ModuleType("__main__")
    if option == "-m":
        runpy._run_module_as_main(what)  # type: ignore[attr-defined]  # what the interpreter itself calls
    else:
        sys.argv[0] = option
        exec(what, vars(main))  # noqa: S102 - a test's own words


def status_of(stop: SystemExit) -> int:
    """The exit status, as the interpreter makes it of what stands in the exception."""
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this script
    words = serve(sys.argv[1])
    status = 0
    try:
        run(words)
    except SystemExit as stop:
        status = status_of(stop)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    # As the interpreter ends, but for taking every module apart, which takes seconds.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
