"""The command's lines: one a file, the stages' verdicts, the modality array and its hash, and nobody's name."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from minimal import NUMBER, PATIENT, content, dataset

ROOT = Path(__file__).parents[2]
STORED = np.array([[0, 100], [1000, 4095]], dtype=np.uint16)


def inspect(
    folder: Path, *arguments: str, python: str | Path = sys.executable
) -> tuple[list[dict], subprocess.CompletedProcess[str]]:
    done = subprocess.run(
        [python, "-m", "pipeline.commands.inspect", *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()], done


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict], str, Path]:
    """One run over a folder of everything."""
    folder = tmp_path_factory.mktemp("inspect")
    raw = folder / "raw"
    raw.mkdir()
    files = {
        "good": content(dataset(STORED, RescaleSlope="2", RescaleIntercept="-1024")),
        "bare": content(dataset(STORED))[132:],
        "burned": content(dataset(STORED, BurnedInAnnotation="YES")),
        "cut": content(dataset(STORED))[:-3],
        "text": f"{PATIENT} {NUMBER}".encode() * 30,
        "empty": b"",
    }
    for name, data in files.items():
        (raw / name).write_bytes(data)
    (raw / os.fsdecode(b"caf\xe9")).write_bytes(files["good"])
    (raw / "nowhere").symlink_to("/nowhere/at/all")
    os.mkfifo(raw / "pipe")
    rows, done = inspect(folder, "raw", "--workers", "1")
    assert done.returncode == 0, done.stderr
    return {row["path"]: row for row in rows}, done.stdout + done.stderr, folder


def test_one_line_a_file_with_its_verdict(found):
    rows, _, _ = found
    assert {path.removeprefix("raw/"): (row["outcome"], row["reason"]) for path, row in rows.items()} == {
        "good": ("accepted", None),
        "bare": ("accepted", None),
        os.fsdecode(b"caf\xe9"): ("accepted", None),
        "burned": ("quarantined", "burned_in_annotation"),
        "cut": ("rejected", "truncated"),
        "text": ("rejected", "not_dicom"),
        "empty": ("rejected", "empty_file"),
        "nowhere": ("rejected", "unreadable"),
        "pipe": ("rejected", "unreadable"),
    }
    assert rows["raw/bare"]["notes"] == ["missing_preamble"]
    assert rows["raw/pipe"]["detail"] == "pipe"


def test_the_array_is_the_modality_array(found):
    rows, _, _ = found
    expected = (STORED * 2.0 - 1024)[None].astype("<f4")
    row = rows["raw/good"]
    assert (row["shape"], row["minimum"], row["maximum"]) == ([1, 2, 2], -1024.0, 7166.0)
    assert row["sha256"] == hashlib.sha256(expected.tobytes()).hexdigest()
    assert rows["raw/burned"]["shape"] == [1, 2, 2]  # a person decides, and must see what there is
    assert rows["raw/cut"]["sha256"] is None


def test_nothing_but_the_path_may_identify(found):
    _, told, _ = found
    for secret in (PATIENT, "ZEBRAFELD", NUMBER, "1234567891", "22334455667", "20190517", "19401103"):
        assert secret not in told


def test_policy_array_and_errors(found, warm_python):
    _, _, folder = found
    (folder / "keep.yaml").write_text("ingest: {burned_in_annotation: keep}\n")
    (row,), _ = inspect(folder, "raw/burned", "--params", "keep.yaml", "--array", "out.npy", python=warm_python)
    assert (row["outcome"], row["path"]) == ("accepted", "raw/burned")
    np.testing.assert_array_equal(np.load(folder / "out.npy"), STORED[None].astype(np.float32))
    rows, done = inspect(folder, "raw", "--array", "out.npy", python=warm_python)
    assert (rows, done.returncode) == ([], 2)
    assert "--array is for one file" in done.stderr
    rows, done = inspect(folder, f"{PATIENT}.dcm", python=warm_python)
    assert (rows, done.returncode) == ([], 2)
    assert "Traceback" not in done.stderr
    rows, done = inspect(folder, "raw/good", "--params", "other.yaml", python=warm_python)
    assert (rows, done.returncode) == ([], 2)
    assert "other.yaml is not there" in done.stderr
