"""A study of two hand-made sites in a folder, and its stages called in this process."""

import importlib
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from minimal import content, dataset
from pydicom.dataset import Dataset
from ruamel.yaml import YAML

from pipeline.key import PUBLIC_KEY, fingerprint

# Each stands in several places of every file, of its name and of the label file.
NAME, NUMBER = "ZEBRAFELD", "7391846"
SECRETS = (NAME, "QUINTESSA", NUMBER, "WALDGASSE", "OBERNARR", "2.25.9999")


def picture(site: str, patient: int, **elements: Any) -> bytes:
    """A file full of identifiers, nested and private ones too."""
    pixels = np.random.default_rng([len(site), patient]).integers(0, 4096, (20, 24), dtype=np.uint16)
    number = f"{NUMBER}-{patient}"
    values = {
        "SOPInstanceUID": f"2.25.9999{len(site)}1{patient:04d}",
        "StudyInstanceUID": f"2.25.9999{len(site)}2{patient:04d}",
        "PatientID": number,
        "PatientName": f"{NAME}^QUINTESSA",
        "PatientAddress": "3 WALDGASSE",
        "Manufacturer": f"{NAME} WORKS",
        "BodyPartExamined": "OBERNARR",
        "ReferringPhysicianName": "OBERNARR",
        **elements,
    }
    made = dataset(pixels, **values)
    nested = Dataset()
    nested.PatientID, nested.PatientName = number, f"{NAME}^QUINTESSA"
    made.OtherPatientIDsSequence = [nested]
    made.private_block(0x0009, NAME, create=True).add_new(1, "LO", f"{NAME} {number}")
    return content(made)


class Study:
    """Files below ``folder``; ``params`` is written before each stage."""

    def __init__(self, folder: Path, monkeypatch: Any, capsys: Any) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.told = ""
        self.params: dict[str, Any] = {
            "sites": {name: self.site(name) for name in ("north", "east")},
            "privacy": {"key": "public", "key_fingerprint": fingerprint(PUBLIC_KEY)},
            "inventory": {"hash": True},
            "ingest": {},
            "labels": {"findings": ["opacity"]},
            "preprocess": {"size_px": 16, "voi": "header"},
            "split": {"seed": 1, "source": ["north"], "target": ["east"]},
            "versions": {name: version(name) for name in ("numpy", "opencv-python-headless", "pydicom")},
        }

    @staticmethod
    def site(name: str) -> dict[str, Any]:
        labels = {"file": f"{name}.csv", "key": "file", "key_column": "file", "columns": {"opacity": "opacity"}}
        return {"adapter": "dicom_folder", "root": f"raw/{name}", "labels": labels}

    def fill(self, patients: int = 30, reverse: bool = False) -> "Study":
        """Both sites' files and labels, half of them positive; every third patient of east is one of north."""
        for site in ("north", "east"):
            numbers = range(patients)[:: -1 if reverse else 1]
            for patient in numbers:
                self.put(site, f"{NAME}_{patient:02d}.dcm", picture(site, patient))
            self.label(site, {f"{NAME}_{patient:02d}.dcm": patient % 2 for patient in numbers})
        return self

    def put(self, site: str, name: str, data: bytes) -> None:
        path = self.folder / "raw" / site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def label(self, site: str, cells: dict[str, object], header: str = "file,opacity", extra: str = "") -> None:
        lines = [header, *(f"{name},{cell}" for name, cell in cells.items())]
        (self.folder / f"{site}.csv").write_text("\n".join(lines) + "\n" + extra, encoding="utf-8")

    def call(self, module: str, *arguments: object) -> None:
        with (self.folder / "params.yaml").open("w") as file:
            YAML(typ="safe").dump(self.params, file)
        argv = [module, *map(str, arguments), "--params", str(self.folder / "params.yaml")]
        self.monkeypatch.setattr(sys, "argv", argv)
        try:
            importlib.import_module(f"pipeline.{module}").main()
        finally:
            captured = self.capsys.readouterr()
            self.told += captured.out + captured.err

    def inventory(self) -> None:
        self.call("commands.inventory", "--out", self.folder / "manifests")

    def ingest(self, site: str, workers: int = 1) -> Path:
        out = self.folder / "ingest" / site
        manifest = self.folder / "manifests" / f"{site}.parquet"
        self.call("stages.ingest", "--site", site, "--manifest", manifest, "--out", out, "--workers", workers)
        return out

    def labels(self, site: str) -> Path:
        out = self.folder / "labels" / site
        self.call("stages.labels", "--site", site, "--ingest", self.folder / "ingest" / site, "--out", out)
        return out

    def preprocess(self, site: str, workers: int = 1) -> Path:
        out, ingested = self.folder / "images" / site, self.folder / "ingest" / site
        manifest = self.folder / "manifests" / f"{site}.parquet"
        places = ["--ingest", ingested, "--manifest", manifest, "--out", out]
        self.call("stages.preprocess", "--site", site, *places, "--workers", workers)
        return out

    def split(self) -> Path:
        folders = [part for name in ("ingest", "images", "labels") for part in (f"--{name}", self.folder / name)]
        self.call("stages.split", *folders, "--ledger", self.folder / "splits.csv", "--out", self.folder / "split")
        return self.folder / "split"

    def gather(self) -> Path:
        folders = [part for name in ("split", "images", "labels") for part in (f"--{name}", self.folder / name)]
        self.call("stages.gather", *folders, "--out", self.folder / "gather")
        return self.folder / "gather"

    def all(self, workers: int = 1) -> "Study":
        self.inventory()
        for site in self.params["sites"]:
            self.ingest(site, workers)
            self.labels(site)
            self.preprocess(site, workers)
        self.split()
        self.gather()
        return self

    def outputs(self) -> dict[str, bytes]:
        """Bytes of everything the stages wrote, by path."""
        return {
            os.fspath(path.relative_to(self.folder)): path.read_bytes()
            for name in ("manifests", "ingest", "images", "labels", "split", "gather")
            for path in sorted((self.folder / name).rglob("*"))
            if path.is_file()
        }
