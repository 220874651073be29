"""No identifier leaves ingest: random strings, planted wherever a file can hold one, are searched for in all that a run
leaves behind, in several encodings and inside what is compressed."""

import base64
import gzip
import hashlib
import io
import os
import random
import sqlite3
import string
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from end_to_end.project import BACKBONE, Project
from minimal import content, dataset
from pydicom.datadict import DicomDictionary, keyword_dict
from pydicom.dataset import Dataset

TEXT = ["AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"]
DIGITS = ["IS", "DS", "UI", "AS", "DA", "DT", "TM"]
# What decides that a file is accepted, and how its pixels and text are read.
NEEDED = {
    "SpecificCharacterSet", "Modality", "BurnedInAnnotation", "ImageType", "PatientID", "NumberOfFrames",
    "PixelSpacing", "ImagerPixelSpacing", "RescaleSlope", "RescaleIntercept", "RescaleType", "StudyInstanceUID",
    "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "TransferSyntaxUID", "RecognizableVisualFeatures",
    "ImagePositionPatient", "ImageOrientationPatient", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "PhotometricInterpretation", "PresentationLUTShape", "LUTDescriptor", "PixelPaddingValue", "PlanarConfiguration",
}  # fmt: skip


class Planter:
    """Draws strings, remembers them, and puts them into files."""

    def __init__(self, seed: str) -> None:
        self.draw = random.Random(seed)
        self.planted: set[str] = set()
        self.by_vr: dict[str, list[int]] = {}
        for keyword, tag in keyword_dict.items():
            vr = DicomDictionary[tag][0]
            if keyword not in NEEDED and tag >> 16 not in (0x0000, 0x0002, 0x0004, 0x0028, 0xFFFE, 0x7FE0):
                self.by_vr.setdefault(vr, []).append(tag)

    def word(self, length: int = 14) -> str:
        made = "".join(self.draw.choices(string.ascii_uppercase, k=length))
        self.planted.add(made)
        return made

    def digits(self, length: int = 11) -> str:
        made = str(self.draw.randint(1, 9)) + "".join(self.draw.choices(string.digits, k=length - 1))
        self.planted.add(made)
        return made

    def value(self, vr: str) -> str:
        if vr == "UI":
            return "2.25." + self.digits()
        if vr == "PN":
            return f"{self.word()}^{self.word(8)}"
        if vr == "UR":
            return f"http://{self.word()}.example/"
        return self.digits() if vr in DIGITS else self.word()

    def fill(self, made: Dataset, number: int, depth: int = 2) -> None:
        for vr in self.draw.choices([*TEXT, *DIGITS], k=number):
            tag = self.draw.choice(self.by_vr[vr])
            if tag not in made:
                made.add_new(tag, vr, self.value(vr))
        block = made.private_block(0x0011 + 2 * self.draw.randrange(50), self.word(), create=True)
        block.add_new(1, "LO", self.word())
        block.add_new(2, "OB", b"\1\2" + self.word().encode("utf-16-le"))  # a vendor's binary header
        block.add_new(3, "UN", struct.pack("<L", 7) + self.word().encode() + b"\0")
        block.add_new(4, "SH", self.word())
        if depth:
            for tag in self.draw.sample(self.by_vr["SQ"], 2):
                item = Dataset()
                self.fill(item, 6, depth - 1)
                made.add_new(tag, "SQ", [item])

    def file(self, patient: int, charset: str) -> bytes:
        pixels = np.random.default_rng(patient).integers(0, 4096, (40, 40), dtype=np.uint16)
        number = self.word()
        made = dataset(
            pixels, PatientID=number, PatientName=self.value("PN"), SOPInstanceUID=self.value("UI"),
            StudyInstanceUID=self.value("UI"), SeriesInstanceUID=self.value("UI"), SpecificCharacterSet=charset,
            Manufacturer=self.word(), ManufacturerModelName=self.word(), BodyPartExamined=self.word(),
            ViewPosition=self.word(), PatientSex=self.word(), PatientAge="033Y", StudyDate="20130317",
        )  # fmt: skip
        self.fill(made, 40)
        made.file_meta.SourceApplicationEntityTitle = self.word()
        made.file_meta.ImplementationVersionName = self.word()
        made.file_meta.PrivateInformationCreatorUID = self.value("UI")
        made.file_meta.PrivateInformation = self.word().encode() + b"  "
        made.preamble = self.word(100).encode() + bytes(28)
        return content(made)


def spellings(secret: str) -> set[bytes]:
    """How a string may stand in a file, in lower case; base64 by the middle that no neighbour changes."""
    found = set()
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le"):
        coded = secret.encode(encoding)
        found |= {coded.lower(), coded.hex().encode(), coded[::-1].lower()}
        for shift in range(3):
            middle = base64.b64encode(b"\0" * shift + coded)
            found.add(middle[4 : len(middle) // 4 * 4 - 4].lower())
    return {spelling for spelling in found if len(spelling) >= 10}


def views(path: Path) -> list[bytes]:
    """A file's bytes, and what it holds behind compression."""
    data = path.read_bytes()
    found = [data]
    if data[:4] == b"PAR1":
        found.append(pd.read_parquet(io.BytesIO(data)).to_csv().encode("utf-8", "surrogateescape"))
    if data[:2] == b"\x1f\x8b":
        found.append(gzip.decompress(data))
    if data[:15] == b"SQLite format 3":
        connection = sqlite3.connect(path)
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):  # noqa: S608 - names of its own tables
                for cell in row:
                    if isinstance(cell, bytes):
                        found.append(cell)
                        with suppress(zlib.error):
                            found.append(zlib.decompress(cell))
                    else:
                        found.append(str(cell).encode())
        connection.close()
    return found


class Search:
    """Thousands of spellings sought at once: by the first eight bytes of each, then in full."""

    def __init__(self, secrets: set[str]) -> None:
        self.by_start: dict[bytes, list[tuple[bytes, str]]] = {}
        for secret in secrets:
            for spelling in spellings(secret):
                self.by_start.setdefault(spelling[:8], []).append((spelling, secret))
        # A table of what the starts' hashes may be: most places of a file are passed over by one look at it.
        starts = np.array([int.from_bytes(start, "little") for start in self.by_start], dtype=np.uint64)
        self.may_start = np.zeros(2**22, dtype=bool)
        self.may_start[self.hashed(starts)] = True

    @staticmethod
    def hashed(words: np.ndarray) -> np.ndarray:
        return (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(42)

    def __call__(self, data: bytes) -> set[str]:
        lowered = data.lower()
        found = set()
        for shift in range(min(8, max(len(lowered) - 7, 0))):
            words = np.frombuffer(lowered, dtype="<u8", count=(len(lowered) - shift) // 8, offset=shift)
            for index in np.flatnonzero(self.may_start[self.hashed(words)]):
                place = shift + 8 * int(index)
                candidates = self.by_start.get(lowered[place : place + 8], [])
                found |= {secret for spelling, secret in candidates if lowered.startswith(spelling, place)}
        return found


def leaks(root: Path, told: str, secrets: set[str]) -> list[str]:
    """Where a secret is found: files below ``root`` beside the archive and the code, their names, what was printed."""
    search = Search(secrets)
    found: list[str] = []
    known: set[bytes] = set()  # data, cache and remote hold the same files
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).as_posix()
        if inside.startswith(("raw/", "pipeline/")) or inside in ("home.csv", "away.csv"):
            continue
        contents = [os.fsencode(inside)]
        if path.is_file() and not path.is_symlink():
            digest = hashlib.sha256(path.read_bytes()).digest()
            contents += [] if digest in known else views(path)
            known.add(digest)
        found += [f"{secret} in {inside}" for secret in search(b"\n".join(contents))]
    return found + [f"{secret} was printed" for secret in search(told.encode())]


def test_the_search_finds_what_is_there(tmp_path: Path):
    """A search that cannot find would pass everything."""
    secret = "QWERTZUIOPASDF"  # noqa: S105
    (tmp_path / "a.bin").write_bytes(b"\0\0" + base64.b64encode(b"x" + secret.encode() + b"yz") + b"\0")
    (tmp_path / "b.gz").write_bytes(gzip.compress(secret.encode("utf-16-le")))
    pd.DataFrame({"x": ["a", secret.lower()] * 500}).to_parquet(tmp_path / "c.parquet", compression="zstd")
    connection = sqlite3.connect(tmp_path / "d.sqlite")
    connection.execute("CREATE TABLE t (v BLOB)")
    connection.execute("INSERT INTO t VALUES (?)", (zlib.compress(secret.encode()),))
    connection.commit()
    connection.close()
    (tmp_path / f"e_{secret}").write_text("")
    found = leaks(tmp_path, f"error: {secret.encode().hex()}", {secret})
    assert {entry.split(" in ")[-1] for entry in found} >= {"a.bin", "b.gz", "c.parquet", "d.sqlite", f"e_{secret}"}
    assert f"{secret} was printed" in found


def archive(folder: Path, site: str, patients: int, planter: Planter) -> dict[str, object]:
    """A raw archive full of planted strings, with its label file; the site's entry in params."""
    lines = ["file,opacity"]
    for patient in range(patients):
        name = f"{planter.word()}/{planter.word()}_{planter.digits()}.dcm"
        path = folder / "raw" / site / name
        path.parent.mkdir(parents=True)
        data = planter.file(patient, ["ISO_IR 100", "ISO_IR 192", r"\ISO 2022 IR 87", ""][patient % 4])
        if patient == patients - 2:
            data = data[: len(data) // 2]
        if patient == patients - 1:
            data = data[132:]
        path.write_bytes(data)
        lines.append(f"{name},{patient % 2}")
    (folder / "raw" / site / f"{planter.word()}.txt").write_text(f"{planter.word()} {planter.digits()}\n" * 40)
    (folder / "raw" / site / planter.word()).symlink_to(f"/nowhere/{planter.word()}")
    lines.append(f"{planter.word()}.dcm,1")
    (folder / f"{site}.csv").write_text("\n".join(lines) + "\n")
    labels = {"file": f"{site}.csv", "key": "file", "key_column": "file", "columns": {"opacity": "opacity"}}
    return {"adapter": "dicom_folder", "redistribution": True, "root": f"raw/{site}", "labels": labels}


def test_no_planted_string_leaves_the_archive(tmp_path: Path, warm_python: Path):
    seed = os.urandom(8).hex()
    print(f"planted with seed {seed}")
    planter = Planter(seed)
    project = Project.create(tmp_path / "project")
    project.python = warm_python
    folder = project.folder
    (folder / "pipeline/simulation/dvc.yaml").unlink()  # raw archives of one's own, as a study has
    params = project.params
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of digits for dates and the like
        params["sites"] = {site: archive(folder, site, 26, planter) for site in ("home", "away")}
    del params["methods"]["linear_probe"]
    params["finetune"]["seeds"] = [1]
    params["gallery"] = {"shown": {"backbone": BACKBONE, "method": "scratch", "seed": 1}}
    params["privacy"] = {"key": "private", "remote": None}
    project.params = params

    told = ""
    refused = project.run("pipeline.commands.inventory", check=False)  # makes the key, and asks for its fingerprint
    told += refused.stdout + refused.stderr
    mark = refused.stderr.split("key_fingerprint: ")[1].split()[0]
    params["privacy"]["key_fingerprint"] = mark
    project.params = params
    for command in (
        "pipeline.commands.prune",
        "pipeline.commands.inventory",
        "pipeline.commands.fetch_weights",
        "dvc repro",
    ):
        done = project.run(*command.split())
        told += done.stdout + done.stderr
    (folder / "remote").mkdir()
    for command in ("dvc remote add -d there remote", "dvc push", "dvc status", "dvc metrics show"):
        done = project.run(*command.split())
        told += done.stdout + done.stderr
    manifest = pd.read_parquet(folder / "data/manifests/away.parquet")
    # Errors, with the names of files at hand: a changed archive, a label file without a header, another key.
    (folder / "raw/away" / planter.word()).write_text(planter.word())
    stage = "pipeline.stages.ingest --site away --manifest data/manifests/away.parquet --out out"
    errors = [project.run(*stage.split(), check=False)]
    (folder / "away.csv").write_text("\n".join((folder / "away.csv").read_text().splitlines()[1:]) + "\n")
    labels = "pipeline.stages.labels --site away --ingest data/ingest/away --out out"
    errors.append(project.run(*labels.split(), check=False))
    (folder / ".pipeline-key").write_text("ab" * 32)
    errors.append(project.run(*stage.split(), check=False))
    assert [done.returncode for done in errors] == [2, 2, 2]
    told += "".join(done.stdout + done.stderr for done in errors)

    instances = pd.read_parquet(folder / "data/ingest/away/instances.parquet")
    assert len(manifest) == 28
    assert len(instances) == 25  # one is cut; the one without a preamble is repaired
    assert len(planter.planted) > 3000
    assert list((folder / "remote").rglob("*.dir"))
    assert leaks(folder, told, planter.planted) == []
