"""The manifest: no name in it, and it must agree with what lies there; reading a file never hangs."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets import dicom_folder as adapter
from pipeline.datasets import inventory
from pipeline.datasets.common import Source, walk_files
from pipeline.datasets.inventory import (
    NotRegularError,
    TooLargeError,
    identify,
    locate,
    read_regular,
    take_inventory,
)
from pipeline.dicom.deidentify import keyed_hash
from pipeline.errors import PipelineError
from pipeline.params import parse
from pipeline.tables.contract import write_table
from pipeline.tables.files import Manifest
from pipeline.withdrawn import Withdrawn, write_withdrawn

KEY = b"k" * 32
NAME = "ZEBRAFELD_QUINTESSA_19401103"


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "raw" / NAME
    folder.mkdir(parents=True)
    for name in ("a.dcm", "b.dcm"):
        (folder / name).write_bytes(name.encode())
    labels = {"file": "l.csv", "key": "file", "key_column": "file", "columns": {}}
    return parse(adapter.Params, {"adapter": "dicom_folder", "root": "raw", "labels": labels}, "sites.north")


def sources_of(site, tmp_path, name="north"):
    return identify(adapter, site, name, tmp_path, KEY)


@pytest.mark.parametrize("hash_content", [True, False])
def test_manifest_names_nobody(site, tmp_path, hash_content):
    manifest = take_inventory(sources_of(site, tmp_path), KEY, hash_content=hash_content)
    write_table(Manifest, manifest, tmp_path / "m.parquet")
    assert len(manifest) == 2
    assert manifest["source_hmac"].isna().all() != hash_content
    for secret in (b"ZEBRAFELD", b"QUINTESSA", b"a.dcm"):
        assert secret not in (tmp_path / "m.parquet").read_bytes()
    assert set(locate(manifest, sources_of(site, tmp_path), "north")) == set(manifest["source_id"])


def test_pseudonyms_hang_on_the_site(site, tmp_path):
    assert not set(sources_of(site, tmp_path)) & set(sources_of(site, tmp_path, "south"))


def test_content_hash_sees_a_change_of_the_same_size(site, tmp_path):
    before = take_inventory(sources_of(site, tmp_path), KEY, hash_content=True)
    (tmp_path / "raw" / NAME / "a.dcm").write_bytes(b"A.dcm")
    after = take_inventory(sources_of(site, tmp_path), KEY, hash_content=True)
    assert (before["source_hmac"] != after["source_hmac"]).sum() == 1


def test_files_come_and_go(site, tmp_path):
    manifest = take_inventory(sources_of(site, tmp_path), KEY, hash_content=False)
    (tmp_path / "raw" / NAME / "a.dcm").rename(tmp_path / "raw" / "new.dcm")
    with pytest.raises(PipelineError, match="1 files are not in the manifest, 1 of the manifest are gone") as raised:
        locate(manifest, sources_of(site, tmp_path), "north")
    assert "ZEBRAFELD" not in str(raised.value)


def test_empty_folder(site, tmp_path):
    for path in (tmp_path / "raw" / NAME).iterdir():
        path.unlink()
    with pytest.raises(PipelineError, match="north: no file below raw"):
        sources_of(site, tmp_path)


def test_a_listed_file_that_is_not_there_stays_listed(site, tmp_path):
    sources = sources_of(site, tmp_path)
    (tmp_path / "raw" / NAME / "a.dcm").unlink()
    assert sorted(take_inventory(sources, KEY, hash_content=True)["size_bytes"]) == [-1, 5]


def test_a_withdrawn_file_is_left_out(site, tmp_path):
    before = sources_of(site, tmp_path)
    gone = next(source_id for source_id, source in before.items() if source.relative.endswith("a.dcm"))
    write_withdrawn(tmp_path, Withdrawn(frozenset(), frozenset({gone})))
    assert set(sources_of(site, tmp_path)) == set(before) - {gone}
    # whoever is to remove it must find it
    assert set(identify(adapter, site, "north", tmp_path, KEY, with_withdrawn=True)) == set(before)


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 5])
def test_the_hash_in_pieces_is_that_of_the_whole(tmp_path, size):
    content = random.Random(size).randbytes(size)
    (tmp_path / "f").write_bytes(content)
    manifest = take_inventory({"s": Source("f", tmp_path / "f")}, KEY, hash_content=True)
    assert manifest.to_dict("records")[0]["source_hmac"] == keyed_hash(KEY, content)
    assert manifest["size_bytes"].tolist() == [size]


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(min_size=1, max_size=100), st.integers(1, 64))
def test_the_size_of_a_piece_makes_no_difference(tmp_path_factory, content, key, piece):
    path = tmp_path_factory.mktemp("pieces") / "f"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inventory, "_PIECE", piece)
        manifest = take_inventory({"s": Source("f", path)}, key, hash_content=True)
    assert manifest["source_hmac"].tolist() == [keyed_hash(key, content)]


def test_many_files_each_with_its_own_row(tmp_path, monkeypatch):
    monkeypatch.setattr(inventory, "_CHUNK", 7)
    contents = {f"{index:03d}": bytes([index]) * index for index in range(100)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    sources = {source.relative: source for source in walk_files(tmp_path)}
    manifest = take_inventory(sources, KEY, hash_content=True)
    found = dict(zip(manifest["source_id"], manifest["source_hmac"], strict=True))
    assert found == {name: keyed_hash(KEY, content) for name, content in contents.items()}


def test_what_is_too_large_to_hash_has_a_time_instead(tmp_path):
    """A sparse file: hashing it would take an hour."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 2**42)
    manifest = take_inventory({"s": Source("sparse", path)}, KEY, hash_content=True)
    assert manifest["size_bytes"].tolist() == [2**42]
    assert manifest["modified_ns"].tolist() == [path.stat().st_mtime_ns]
    assert manifest["source_hmac"].isna().all()


@pytest.mark.parametrize("hash_content", [True, False])
def test_obstacles_and_what_became_one(tmp_path, hash_content, monkeypatch):
    for name in ("pipe", "folder", "link", "gone", "closed", "stays"):
        (tmp_path / name).write_bytes(b"x")
    sources = {source.relative: source for source in walk_files(tmp_path)}
    sources["table"] = Source("table", tmp_path / "null \0 byte")
    sources["obstacle"] = Source("obstacle", tmp_path / "stays", obstacle="pipe")
    for name in ("pipe", "folder", "link", "gone"):
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("stays")
    opened, allowed = os.open, os.access

    def refusing(path, *arguments, **options):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "no")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)  # root may read everything
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "closed" and allowed(path, mode))
    manifest = take_inventory(sources, KEY, hash_content=hash_content)
    sizes = dict(zip(manifest["source_id"], manifest["size_bytes"], strict=True))
    assert sizes == dict.fromkeys(sources, -1) | {"stays": 1}
    unread = manifest[manifest["size_bytes"] < 0]
    assert unread["modified_ns"].isna().all()
    assert unread["source_hmac"].isna().all()


def test_no_sources_no_rows():
    assert len(take_inventory({}, KEY, hash_content=True)) == 0


# --- read_regular -----------------------------------------------------------------------------------------------


def test_read_regular(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    source = Source("f", tmp_path / "f")
    assert read_regular(source, 5) == read_regular(source, 2**40) == b"12345"
    with pytest.raises(TooLargeError) as raised:
        read_regular(source, 4)
    assert raised.value.size_bytes == 5
    (tmp_path / "f").write_bytes(b"")
    assert read_regular(source, 0) == b""


def test_a_huge_file_is_not_read(tmp_path):
    (tmp_path / "f").touch()
    os.truncate(tmp_path / "f", 2**43)
    with pytest.raises(TooLargeError) as raised:
        read_regular(Source("f", tmp_path / "f"), 2**30)
    assert raised.value.size_bytes == 2**43


def test_a_file_that_says_it_is_empty():
    content = read_regular(Source("cmdline", Path("/proc/self/cmdline")), 2**20)
    assert content
    with pytest.raises(TooLargeError):
        read_regular(Source("cmdline", Path("/proc/self/cmdline")), 3)


def test_a_file_that_grows_beyond_the_limit_while_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"12")
    small = (tmp_path / "f").stat()
    (tmp_path / "f").write_bytes(b"x" * 50)
    monkeypatch.setattr(os, "fstat", lambda _: small)
    with pytest.raises(TooLargeError) as raised:
        read_regular(Source("f", tmp_path / "f"), 10)
    assert raised.value.size_bytes == 11
    assert read_regular(Source("f", tmp_path / "f"), 50) == b"x" * 50


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_said_to_be_none_at_once(tmp_path, kind):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(NotRegularError) as raised:
        read_regular(Source(kind, path), 100)
    assert isinstance(raised.value, OSError)
    assert str(tmp_path) not in str(raised.value)


def test_an_obstacle_is_not_opened(tmp_path):
    (tmp_path / "f").write_bytes(b"1")
    with pytest.raises(NotRegularError, match="link loop"):
        read_regular(Source("f", tmp_path / "f", obstacle="link loop"), 100)


def test_a_pipe_that_takes_the_files_place_after_the_look_at_it(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"1")
    opened = os.open

    def replace(name, *arguments, **options):
        path.unlink()
        os.mkfifo(path)
        return opened(name, *arguments, **options)

    monkeypatch.setattr(os, "open", replace)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(NotRegularError):
        read_regular(Source("f", path), 100)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_links_of_tables_are_followed_and_those_put_in_a_walked_files_place_are_not(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "raw/f").write_bytes(b"1")
    (walked,) = walk_files(tmp_path / "raw")
    (tmp_path / "raw/f").unlink()
    (tmp_path / "raw/f").symlink_to(tmp_path / "secret")
    with pytest.raises(NotRegularError):
        read_regular(walked, 100)
    assert read_regular(Source("f", tmp_path / "raw/f"), 100) == b"secret"


def test_nothing_there(tmp_path):
    for path in (tmp_path / "f", tmp_path / "null \0 byte", tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match=r".") as raised:
            read_regular(Source("f", path), 100)
        assert not isinstance(raised.value, NotRegularError)
