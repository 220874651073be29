"""The command on a tree that is out to hang or crash it: it ends, lists everything, and names nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from datasets.test_walk import deep_folders, write_hostile_tree

from pipeline.commands import inventory
from pipeline.datasets.common import walk_files
from pipeline.dicom.deidentify import keyed_hash, pseudonym
from pipeline.errors import PipelineError
from pipeline.key import PUBLIC_KEY, fingerprint
from pipeline.tables.contract import read_table
from pipeline.tables.files import Manifest
from pipeline.withdrawn import Withdrawn, write_withdrawn

ROOT = Path(__file__).parents[2]
NAME = "ZEBRAFELD_QUINTESSA_19401103"


@pytest.fixture
def study(tmp_path):
    """A study's folder whose archive is hostile, with a patient's name among the names in it."""
    folder = tmp_path / "study"
    expected = write_hostile_tree(folder / "raw")
    for name, target in ((NAME, ""), (f"{NAME}_out", folder), (f"{NAME}_loop", f"{NAME}_loop")):
        path = folder / "raw" / name
        path.symlink_to(target) if target else path.write_bytes(b"z")
        expected[name] = "" if not target else "an obstacle"
    write_params(folder, hash_content=False)
    return folder, expected


def write_params(folder, *, hash_content):
    (folder / "params.yaml").write_text(
        f"""
privacy: {{key: public, key_fingerprint: "{fingerprint(PUBLIC_KEY)}"}}
inventory: {{hash: {str(hash_content).lower()}}}
sites:
  north:
    adapter: dicom_folder
    root: raw
    labels: {{file: labels.csv, key: file, key_column: file, columns: {{}}}}
"""
    )


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "pipeline.commands.inventory", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=120,
    )


def source_id(relative):
    return pseudonym(PUBLIC_KEY, "source", "north", relative)


@pytest.mark.parametrize("hash_content", [False, True])
def test_all_hostile_cases_at_once(study, hash_content):
    folder, expected = study
    write_params(folder, hash_content=hash_content)
    with deep_folders(folder / "raw", 1500):
        done = run(folder)
        deep = [source for source in walk_files(folder / "raw") if source.relative.startswith("deep/")]
    assert done.returncode == 0, done.stderr
    manifest = read_table(Manifest, folder / "data/manifests/north.parquet")
    sizes = dict(zip(manifest["source_id"], manifest["size_bytes"], strict=True))
    assert len(deep) == 820
    expected |= {source.relative: source.obstacle for source in deep}
    assert set(sizes) == {source_id(name) for name in expected}
    # the last two files of the deep folders lie too far down to be opened from the study's folder, by "raw/deep/..."
    assert [source.relative[-4:] for source in deep if sizes[source_id(source.relative)] < 0] == [
        "f817",
        "f818",
        "deep",
    ]
    near = {name: obstacle for name, obstacle in expected.items() if len(name) < 4080}
    assert {name for name in near if sizes[source_id(name)] < 0} == {name for name in near if near[name]}
    if hash_content:
        hashes = dict(zip(manifest["source_id"], manifest["source_hmac"], strict=True))
        assert hashes[source_id(NAME)] == keyed_hash(PUBLIC_KEY, b"z")
        assert hashes[source_id(os.fsdecode(b"caf\xe9"))] == keyed_hash(PUBLIC_KEY, b"y")
    told = done.stdout + done.stderr
    kept = (folder / "data/manifests/north.parquet").read_bytes() + manifest.to_csv().encode()
    for word in (
        b"ZEBRAFELD",
        b"QUINTESSA",
        b"caf\xe9",
        b"caf\\",
        b"secret",
        b"loop",
        b"deep",
        b"new\nline",
        b"outside",
    ):
        assert word not in told + kept
    assert f"north: {len(expected)} files, ".encode() in done.stdout
    assert b"inventory: 100%" in done.stderr  # the progress bar


def test_two_runs_give_equal_bytes(study):
    folder, _ = study
    for out in ("first", "second"):
        assert run(folder, "--out", out).returncode == 0
    assert (folder / "first/north.parquet").read_bytes() == (folder / "second/north.parquet").read_bytes()


ODD = [NAME, "link", "loop a", "new\nline", os.fsdecode(b"caf\xe9"), os.fsdecode(b"a/\x80.dcm")]


@pytest.mark.parametrize("relative", ODD)
def test_find_prints_the_bytes_of_the_path(study, monkeypatch, capsysbinary, relative):
    folder, _ = study
    monkeypatch.chdir(folder)
    tiny.call(monkeypatch, inventory, "--find", source_id(relative))
    assert capsysbinary.readouterr().out == b"raw/" + os.fsencode(relative) + b"\n"


def test_find_prints_to_a_pipe(study):
    folder, _ = study
    done = run(folder, "--find", source_id(ODD[-2]))
    assert (done.returncode, done.stdout) == (0, b"raw/caf\xe9\n")


def test_find_nothing(study, monkeypatch):
    folder, _ = study
    monkeypatch.chdir(folder)
    with pytest.raises(PipelineError, match="no file of this study has the pseudonym 00ff"):
        tiny.call(monkeypatch, inventory, "--find", "00ff")


def test_withdrawn_files_are_not_listed_but_found(study, monkeypatch, capsysbinary):
    folder, expected = study
    write_withdrawn(folder, Withdrawn(frozenset(), frozenset({source_id(NAME)})))
    monkeypatch.chdir(folder)
    tiny.call(monkeypatch, inventory)
    listed = set(read_table(Manifest, folder / "data/manifests/north.parquet")["source_id"])
    assert listed == {source_id(name) for name in expected} - {source_id(NAME)}
    capsysbinary.readouterr()
    tiny.call(monkeypatch, inventory, "--find", source_id(NAME))
    assert capsysbinary.readouterr().out == b"raw/" + NAME.encode() + b"\n"


def test_a_missing_root_is_told_in_a_line(study):
    folder, _ = study
    (folder / "raw").rename(folder / "moved")
    done = run(folder)
    assert done.returncode == 2
    assert b"error: the raw folder raw is not there" in done.stderr
    assert b"Traceback" not in done.stderr
