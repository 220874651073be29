"""walk_files and read_regular on trees that are out to hang, crash or lead astray whoever lists them."""

import os
import pickle
import random
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.datasets.common import Source, walk_files
from pipeline.errors import PipelineError

OUTSIDE = b"content of a file outside the root"


def raw_path(folder: Path, name: bytes) -> bytes:
    return os.fsencode(folder) + b"/" + name


def bind_socket(path: Path) -> None:
    """By way of the folder: a socket's path may have no more than 107 bytes."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def write_hostile_tree(root: Path) -> dict[str, str]:
    """All hostile cases at once below ``root``, with a folder of things outside beside it; path to its obstacle."""
    outside = root.parent / "outside"
    outside.mkdir(parents=True)
    (outside / "secret").write_bytes(OUTSIDE)
    os.mkfifo(outside / "pipe")
    for folder in ("a/b", "empty", "c"):
        (root / folder).mkdir(parents=True)
    expected = {}

    def file(name: str, content: bytes = b"x") -> None:
        Path(root / name).write_bytes(content)
        expected[name] = ""

    def link(name: str, target: object, obstacle: str) -> None:
        (root / name).symlink_to(target)
        expected[name] = obstacle

    for name in (
        "plain",
        "a/in a folder",
        "a/b/deeper",
        "no.ending.",
        "...",
        "-rf",
        "new\nline",
        "tab\there",
        "~",
        "*",
    ):
        file(name)
    for name in (b"caf\xe9", b"\xff\xfe", b"a/\x80.dcm"):
        Path(os.fsdecode(raw_path(root, name))).write_bytes(b"y")
        expected[os.fsdecode(name)] = ""
    (root / os.fsdecode(b"ordner\xfc")).mkdir()
    file(os.fsdecode(b"ordner\xfc/f"))
    file("x" * 255)
    (root / "plain").chmod(0)  # whoever is not root cannot read it

    link("link", "plain", "")
    link("absolute link", root / "a/in a folder", "")
    link("link to a link", "link", "")
    link("up and down", "a/../a/b/deeper", "")
    link(os.fsdecode(b"l\xefnk"), os.fsdecode(b"caf\xe9"), "")
    link("out", outside / "secret", "link out of the root")
    link("out by dots", "../outside/secret", "link out of the root")
    link("out to nothing", "../outside/nothing", "link out of the root")
    link("out to a pipe", "../outside/pipe", "link out of the root")
    link("system", "/", "link out of the root")
    link("process", "/proc/self/fd/0", "link out of the root")
    link("neighbour", "../" + root.name + "2", "link out of the root")  # its name begins as the root's does
    link("dangling", "nothing", "dangling link")
    link("below a file", "plain/x", "dangling link")
    link("loop a", "loop b", "link loop")
    link("loop b", "loop a", "link loop")
    link("self", "self", "link loop")
    link("below a loop", "self/x", "link loop")
    link("folder link", "a", "link to a folder")
    link("a/b/circle", "../..", "link to a folder")
    link("root link", root, "link to a folder")
    link("pipe link", "pipe", "link to a pipe")

    os.mkfifo(root / "pipe")
    expected["pipe"] = "pipe"
    bind_socket(root / "c/socket")
    expected["c/socket"] = "socket"
    try:
        os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        expected["null"] = "device"
    except PermissionError:  # not root
        pass
    return expected


@contextmanager
def deep_folders(root: Path, depth: int) -> Iterator[None]:
    """Folders in folders, made step by step, as no system call takes so long a path; and taken away again.

    pytest clears old folders by recursion and would fail on them, in a later run.
    """
    descriptor = os.open(root, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("deep", dir_fd=descriptor)
        inner = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
        os.close(os.open(f"f{level}", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    try:
        yield
    finally:
        subprocess.run(["rm", "-rf", str(root / "deep")], check=True)


@pytest.fixture
def hostile(tmp_path):
    root = tmp_path / "raw"
    return root, write_hostile_tree(root)


def test_each_entry_comes_with_its_obstacle(hostile):
    root, expected = hostile
    (root.parent / "raw2").write_bytes(OUTSIDE)
    found = list(walk_files(root))
    assert {source.relative: source.obstacle for source in found} == expected
    assert len(found) == len(expected)


def test_what_has_no_obstacle_can_be_read_and_is_below_the_root(hostile):
    root, _ = hostile
    (root / "plain").chmod(0o600)
    for source in walk_files(root):
        if not source.obstacle:
            assert source.path.is_file()
            assert not source.path.is_symlink()
            assert source.path.resolve().is_relative_to(root.resolve())
            assert source.path.read_bytes() == (root / source.relative).read_bytes() != OUTSIDE
        assert source.listed_path == root / source.relative


def test_the_order_is_fixed(hostile, tmp_path):
    root, expected = hostile
    first = [source.relative for source in walk_files(root)]
    assert first == [source.relative for source in walk_files(root)]
    # the same tree, written in another order
    other = tmp_path / "other/raw"
    names = [name for name, obstacle in expected.items() if not obstacle]
    random.Random(1).shuffle(names)
    for name in names:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes(b"")
    assert [source.relative for source in walk_files(other)] == [name for name in first if name in set(names)]


def test_a_root_that_is_a_link(hostile, tmp_path):
    root, expected = hostile
    del expected["root link"]
    (root / "root link").unlink()
    (tmp_path / "way in").symlink_to(root)
    for way in (tmp_path / "way in", Path(os.path.relpath(root)), root / "a" / ".."):
        assert {source.relative: source.obstacle for source in walk_files(way)} == expected


def test_names_of_sources_do_not_hang_on_the_root(hostile, tmp_path):
    root, _ = hostile
    before = [source.relative for source in walk_files(root)]
    (root / "absolute link").unlink()  # which would lead out now
    (root / "root link").unlink()
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    assert [source.relative for source in walk_files(moved)] == [
        name for name in before if name not in ("absolute link", "root link")
    ]


def test_no_root(tmp_path):
    for name in ("nothing", "file", "dangling"):
        if name == "file":
            (tmp_path / name).touch()
        if name == "dangling":
            (tmp_path / name).symlink_to("nowhere")
        with pytest.raises(PipelineError, match="is not there"):
            list(walk_files(tmp_path / name))


def test_a_root_that_cannot_be_opened_or_listed(tmp_path, monkeypatch):
    for name, word in ((str(tmp_path), "opened"), (".", "listed")):
        with monkeypatch.context() as patch:
            refuse_to_open(patch, name, PermissionError(13, "no"))
            with pytest.raises(PipelineError, match=rf"cannot be {word} \(PermissionError\)"):
                list(walk_files(tmp_path))


def refuse_to_open(monkeypatch, name, error):
    opened = os.open

    def refusing(path, *arguments, **options):
        if os.fspath(path) == name:
            raise error
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)


@pytest.mark.parametrize("error", [PermissionError(13, "no"), FileNotFoundError(2, "gone"), OSError(5, "disk")])
def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch, error):
    for name in ("a/1", "b/2", "b/c/3", "z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    refuse_to_open(monkeypatch, "b", error)
    assert [(source.relative, source.obstacle) for source in walk_files(tmp_path)] == [
        ("z", ""),
        ("a/1", ""),
        ("b", "folder that cannot be listed"),
    ]


def test_a_folder_that_breaks_off_while_it_is_listed(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1").touch()
    scanned = os.scandir

    class Broken:
        def __init__(self, descriptor):
            self.entries = scanned(descriptor)
            self.bad = os.fstat(descriptor).st_ino == (tmp_path / "a").stat().st_ino

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.entries.close()

        def __iter__(self):
            if self.bad:
                raise OSError(5, "disk")
            return iter(self.entries)

    monkeypatch.setattr(os, "scandir", Broken)
    assert [(s.relative, s.obstacle) for s in walk_files(tmp_path)] == [("a", "folder that cannot be listed")]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to stop being it")
def test_rights_that_another_user_lacks(tmp_path):
    """As seen by nobody: the folder without rights, one whose names can be seen and no more, an unreadable file."""
    for name in ("closed/1", "no x/2", "file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "no x/link").symlink_to("2")
    os.mkfifo(tmp_path / "no x/pipe")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "no x").chmod(0o444)
    (tmp_path / "file").chmod(0)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from pipeline.datasets.common import walk_files\n"
        "root = os.open(sys.argv[1], os.O_RDONLY); os.fchdir(root); os.setuid(65534)\n"
        "print([(source.relative, source.obstacle) for source in walk_files(Path('.'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False,
        timeout=60, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout) == [  # noqa: S307
        ("file", ""),  # who reads it finds out
        ("closed", "folder that cannot be listed"),
        ("no x/2", ""),
        ("no x/link", "link that cannot be followed"),
        ("no x/pipe", "entry that cannot be examined"),
    ]


def test_a_folder_replaced_by_a_link_out_is_not_entered(tmp_path, monkeypatch):
    (tmp_path / "raw/a").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(OUTSIDE)
    opened = os.open

    def replacing(path, *arguments, **options):
        if path == "a":
            (tmp_path / "raw/a").rmdir()
            (tmp_path / "raw/a").symlink_to(tmp_path / "outside")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", replacing)
    found = [(source.relative, source.obstacle) for source in walk_files(tmp_path / "raw")]
    assert found == [("a", "folder that cannot be listed")]


def test_deeper_than_a_path_can_say(tmp_path):
    (tmp_path / "after").touch()
    with deep_folders(tmp_path, 1500):
        found = list(walk_files(tmp_path))
        assert [source.relative for source in walk_files(Path(os.path.relpath(tmp_path)))] == [
            source.relative for source in found
        ]
    assert found[0].relative == "after"
    *files, last = found[1:]
    assert len(files) == 819  # 4095 bytes hold 819 times "deep/", less one
    assert files[-1].relative == "deep/" * 819 + "f818"
    assert {source.obstacle for source in files} == {""}
    assert (last.relative, last.obstacle) == ("deep/" * 819 + "deep", "folder with too long a path")


def test_no_descriptor_is_left_open(hostile):
    root, _ = hostile
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    list(walk_files(root))
    next(walk_files(root))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_sources_are_small(tmp_path):
    for index in range(2000):
        (tmp_path / f"{index:036d}.dcm").touch()
    tracemalloc.start()
    try:
        found = list(walk_files(tmp_path))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / len(found) < 300  # bytes; a million of them 300 MB


def test_a_source_as_a_table_gives_it(tmp_path):
    source = Source("a.png", tmp_path / "a.png", {"Patient ID": "1"})
    assert (source.path, source.listed_path, source.obstacle) == (tmp_path / "a.png", tmp_path / "a.png", "")
    assert pickle.loads(pickle.dumps(source)) == source  # noqa: S301
    assert not Source("b", tmp_path).facts


def test_a_pipe_with_a_waiting_writer_is_left_alone(tmp_path):
    """Opening it for reading would wake the writer up."""
    os.mkfifo(tmp_path / "pipe")
    woken = threading.Event()

    def write():
        descriptor = os.open(tmp_path / "pipe", os.O_WRONLY)
        woken.set()
        os.close(descriptor)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert [source.obstacle for source in walk_files(tmp_path)] == ["pipe"]
    time.sleep(0.2)
    assert not woken.is_set()
    os.close(os.open(tmp_path / "pipe", os.O_RDONLY))  # let it go
    writer.join(10)
    assert woken.is_set()
