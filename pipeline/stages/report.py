"""Render all tables as one self-contained HTML page with its figures; nothing is computed here.

Stages that a study leaves out have no section: their options may be left out, or name folders that are not there.
"""

import hashlib
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field
from ruamel.yaml import YAML

from pipeline import cli
from pipeline.imaging.store import INDEX_FILE, Store, read_summary
from pipeline.params import StrictParams, load_params, read_params_file
from pipeline.reporting import html
from pipeline.reporting.figures import SiteSamples
from pipeline.reporting.gallery_figures import Exhibit, Wall
from pipeline.reporting.study import Row, Study, slug
from pipeline.splits import SplitParams
from pipeline.tables.adaptation import Remedies
from pipeline.tables.baseline import BaselineColumns
from pipeline.tables.choice import RankCorrelations, SearchOutcome, SearchRungs, TransferScores
from pipeline.tables.continual import ContinualMeasures, ContinualScores, ContinualSteps
from pipeline.tables.contract import Table, make_table, read_table
from pipeline.tables.controls import Controls
from pipeline.tables.diagnosis import Abstention, Diagnoses, Probes
from pipeline.tables.evaluation import Calibration, Efficiency, LabelSavings, Metrics, Overfitting, Thresholds, Verdicts
from pipeline.tables.files import Deidentification, Notes
from pipeline.tables.gallery import CallCounts, Gallery, MapMeans
from pipeline.tables.images import Flow, Images, Leakage, Splits
from pipeline.tables.labels import LabelIssues, Labels
from pipeline.tables.matrix import MatrixScores
from pipeline.tables.membership import MembershipAttacks, MembershipExposures
from pipeline.tables.mismatch import Mismatch
from pipeline.tables.protocol import Openings, Protocols
from pipeline.tables.quality import Balance, GreyHistograms, OutlierCounts, Outliers, TableOne
from pipeline.tables.stress import StressCurves
from pipeline.tables.training import Curves, Runs

# Where each table of the page lies: name on the page, contract, folder (an option of the command), file.
_TABLES: tuple[tuple[str, type[Table], str], ...] = (
    ("flow", Flow, "split"),
    ("table_one", TableOne, "quality"),
    ("balance", Balance, "quality"),
    ("histograms", GreyHistograms, "quality"),
    ("outliers", Outliers, "quality"),
    ("outlier_counts", OutlierCounts, "quality"),
    ("leakage", Leakage, "split"),
    ("metrics", Metrics, "evaluate"),
    ("calibration", Calibration, "evaluate"),
    ("thresholds", Thresholds, "evaluate"),
    ("verdicts", Verdicts, "evaluate"),
    ("efficiency", Efficiency, "evaluate"),
    ("savings", LabelSavings, "evaluate"),
    ("overfitting", Overfitting, "evaluate"),
    ("runs", Runs, "predict"),
    ("curves", Curves, "predict"),
)
# The same of stages that a study may leave out; file beside name.
_OPTIONAL: tuple[tuple[str, type[Table], str, str], ...] = (
    ("baseline_columns", BaselineColumns, "baseline", "columns"),
    ("scores", TransferScores, "choice", "scores"),
    ("rungs", SearchRungs, "search", "rungs"),
    ("diagnoses", Diagnoses, "diagnose", "diagnoses"),
    ("probes", Probes, "diagnose", "probes"),
    ("abstention", Abstention, "diagnose", "abstention"),
    ("controls", Controls, "controls", "controls"),
    ("stress", StressCurves, "stress", "curves"),
    ("attacks", MembershipAttacks, "membership", "attacks"),
    ("exposures", MembershipExposures, "membership", "exposures"),
)
# Of stages with one folder a backbone: name on the page, contract, folder, file, and the section that names them.
_BY_BACKBONE: tuple[tuple[str, type[Table], str, str, str], ...] = (
    ("continual_steps", ContinualSteps, "continual", "steps", "continual"),
    ("continual_scores", ContinualScores, "forgetting", "scores", "continual"),
    ("continual_measures", ContinualMeasures, "forgetting", "measures", "continual"),
    ("matrix_scores", MatrixScores, "matrix_scores", "scores", "matrix"),
)
# What evaluate writes where it was given more than predictions.
_IF_EVALUATED: tuple[tuple[str, type[Table]], ...] = (
    ("mismatch", Mismatch),
    ("rank_correlations", RankCorrelations),
    ("search_outcome", SearchOutcome),
    ("protocol", Protocols),
    ("openings", Openings),
)
# A folder an entry of section gallery; what of it is on the page.
_OF_GALLERIES: tuple[tuple[str, type[Table], str], ...] = (
    ("gallery", Gallery, "gallery"),
    ("gallery_counts", CallCounts, "counts"),
    ("gallery_means", MapMeans, "means"),
)


class ReportParams(StrictParams):
    """Section ``report``.

    ``notice`` is a sentence that must not be overlooked; ``images`` says whether images of patients are shown,
    ``samples_per_site`` of them a hospital; counts from 1 to ``min_cell`` - 1 are not told.
    """

    title: str = Field(min_length=1)
    notice: str = ""
    images: bool
    min_cell: int = Field(default=11, ge=0)
    samples_per_site: int = Field(default=8, ge=2, le=24)


def choose(index: pd.DataFrame, labels: pd.DataFrame, splits: pd.DataFrame, per_label: int) -> dict[int, list[int]]:
    """Which images to show, one a patient, in the order of their pseudonyms.

    Args:
        index: a site's images (image_id, array_index).
        labels: one finding's labels.
        splits: the images that are used, with their patients.
        per_label: how many with and how many without the finding, at most.

    Returns:
        Label (1, 0) to rows of images.npy.
    """
    known = index.merge(splits[["image_id", "patient_id"]], on="image_id").merge(
        labels.dropna(subset=["label"]), on="image_id"
    )
    chosen = known.sort_values("image_id").drop_duplicates("patient_id")
    return {
        label: [int(row) for row in chosen.loc[chosen["label"] == label, "array_index"].head(per_label)]
        for label in (1, 0)
    }


def optional_paths(args: Namespace) -> Iterator[tuple[str, type[Table], str, Path]]:
    """Name on the page, contract, name for the hash and path of each table of the stages that the study has."""
    for name, contract, folder, file in _OPTIONAL:
        parent: Path | None = getattr(args, folder)
        if parent is not None and parent.is_dir():
            yield name, contract, f"{folder}: {file}", parent / f"{file}.parquet"
    for name, contract in _IF_EVALUATED:
        path = args.evaluate / f"{name}.parquet"
        if path.is_file():
            yield name, contract, f"evaluate: {name}", path


def walls(study: Study, galleries: Path, images: Path, indices: Mapping[str, pd.Series]) -> Iterator[Wall]:
    """The failure galleries with their images and maps, hospital by hospital; what is too small to show left out.

    Args:
        study: the tables.
        galleries: the folder of all galleries.
        images: the folder of all sites' images.
        indices: per site the array_index by image_id.
    """
    for gallery, _, finding in study.galleries:
        maps = np.load(galleries / gallery / "maps.npy", mmap_mode="r", allow_pickle=False)
        for site in study.sites:
            chosen = study.exhibits(gallery, finding, site)
            store = Store(images / site)

            def exhibit(row: Row, site: str = site, store: Store = store, maps: Any = maps) -> Exhibit:
                image = store.shown([indices[site][row["image_id"]]])[0]
                at = row["array_index"]
                return Exhibit(row, image, None if at is None else np.asarray(maps[at]))

            if chosen:
                yield Wall(gallery, finding, site, {kind: [*map(exhibit, rows)] for kind, rows in chosen.items()})


def canonical_yaml(tree: object) -> str:
    """Parameters as YAML without comments: what DVC compares, so that an edited comment leaves nothing stale."""
    yaml = YAML()
    text = StringIO()
    yaml.dump(tree, text)
    return text.getvalue()


@dataclass(frozen=True)
class Gap:
    """A stage without a usable result: its outputs, and why in words."""

    stage: str
    outputs: tuple[Path, ...]
    why: str


def parser() -> ArgumentParser:
    """The stage's options."""
    arguments = cli.parser(
        __doc__,
        ingest="the folder of all sites' ingest",
        split="the folder of split",
        quality="the folder of quality",
        evaluate="the folder of evaluate",
        predict="the folder of predict",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        out="folder for index.html and figures/",
    )
    for name in ("baseline", "choice", "search", "diagnose", "controls", "stress", "membership"):
        arguments.add_argument(f"--{name}", type=Path, metavar="PATH", help=f"the folder of {name}")
    for name in ("continual", "forgetting", "matrix-scores"):
        arguments.add_argument(f"--{name}", type=Path, metavar="PATH", help=f"the folder of all backbones' {name}")
    arguments.add_argument("--adapt", type=Path, metavar="PATH", help="the folder of all remedies")
    arguments.add_argument("--gallery", type=Path, metavar="PATH", help="the folder of all failure galleries")
    return arguments


def main() -> None:
    """Run the stage."""
    render(parser().parse_args())


def render(args: Namespace, gaps: Sequence[Gap] | None = None) -> None:
    """Write the page and its figures.

    Args:
        args: the stage's options.
        gaps: None where each table must be there. Otherwise (``commands.partial``) what is not usable: outputs below
            these are not read, what is missing is left out, and the page begins with these words.
    """
    unusable = [output.resolve() for gap in gaps or () for output in gap.outputs]

    def there(path: Path) -> bool:
        return gaps is None or (path.exists() and not any(path.resolve().is_relative_to(out) for out in unusable))

    params = load_params(ReportParams, "report", args.params)
    sides = load_params(SplitParams, "split", args.params)
    tree = read_params_file(args.params)
    hashes: dict[str, str] = {}

    def read(contract: type[Table], name: str, path: Path) -> pd.DataFrame:
        if not there(path):
            return make_table(contract, [])
        frame = read_table(contract, path)
        hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return frame

    frames = {
        name: read(contract, f"{folder}: {name}", getattr(args, folder) / f"{name}.parquet")
        for name, contract, folder in _TABLES
    }
    frames |= {name: read(contract, words, path) for name, contract, words, path in optional_paths(args)}
    if args.adapt is not None and args.adapt.is_dir():
        jobs = [f"{backbone}-{remedy}" for backbone in tree.get("backbones", {}) for remedy in tree.get("remedies", {})]
        parts = [read(Remedies, f"{job}: remedies", args.adapt / job / "remedies.parquet") for job in jobs]
        if parts:
            frames["remedies"] = make_table(Remedies, pd.concat(parts, ignore_index=True))
    for name, contract, folder, file, section in _BY_BACKBONE:
        parent = getattr(args, folder)
        named = tree.get(section, {}).get("backbones", [])
        if parent is not None and parent.is_dir() and named:
            parts = [read(contract, f"{folder} {one}: {file}", parent / one / f"{file}.parquet") for one in named]
            frames[name] = make_table(contract, pd.concat(parts, ignore_index=True))
    if args.gallery is not None and args.gallery.is_dir():
        for name, contract, file in _OF_GALLERIES:
            entries = [
                read(contract, f"gallery {entry}: {file}", args.gallery / entry / f"{file}.parquet")
                for entry in tree.get("gallery") or {}
            ]
            if entries:
                frames[name] = make_table(contract, pd.concat(entries, ignore_index=True))
    splits = read(Splits, "split: splits", args.split / "splits.parquet")
    findings = sorted(frames["metrics"]["finding"].unique())
    samples: dict[str, list[SiteSamples]] = {finding: [] for finding in findings} if params.images else {}
    issues, notes, treatments = [], [], []
    indices: dict[str, pd.Series] = {}
    for site in sides.sites:
        notes.append(read(Notes, f"{site}: notes", args.ingest / site / "notes.parquet"))
        treatments.append(
            read(Deidentification, f"{site}: deidentification", args.ingest / site / "deidentification.parquet")
        )
        labels = read(Labels, f"{site}: labels", args.labels / site / "labels.parquet")
        issues.append(read(LabelIssues, f"{site}: label issues", args.labels / site / "issues.parquet"))
        index = read(Images, f"{site}: images", args.images / site / INDEX_FILE)
        indices[site] = index.set_index("image_id")["array_index"]
        if not there(args.images / site):
            continue
        hashes[f"{site}: pixels"] = str(read_summary(args.images / site)["sha256"])
        for finding, sites in samples.items():
            rows = choose(index, labels[labels["finding"] == finding], splits, params.samples_per_site // 2)
            store = Store(args.images / site)
            sites.append(SiteSamples(site, store.shown(rows[1]), store.shown(rows[0])))
    study = Study(
        title=params.title,
        notice=params.notice,
        sources=tuple(sides.source),
        targets=tuple(sides.target),
        min_cell=params.min_cell,
        frames={
            **frames,
            "issues": make_table(LabelIssues, pd.concat(issues, ignore_index=True)),
            "notes": make_table(Notes, pd.concat(notes, ignore_index=True)),
            "deidentification": make_table(Deidentification, pd.concat(treatments, ignore_index=True)),
        },
        params_yaml=canonical_yaml(tree),
        versions={str(name): str(version) for name, version in tree.get("versions", {}).items()},
        data_hashes=hashes,
        absent=frozenset(name for name, _, folder in _TABLES if not there(getattr(args, folder) / f"{name}.parquet")),
        gaps=tuple((gap.stage, gap.why) for gap in gaps or ()),
    )
    suspects, sheets, exhibits = [], {}, []
    if params.images and all(there(args.images / row["site"]) for row in study.suspects):
        suspects = [
            Store(args.images / row["site"]).shown([indices[row["site"]][row["image_id"]]])[0] for row in study.suspects
        ]
    if params.images and all(there(args.images / site) for site in study.sites):
        exhibits = [*walls(study, args.gallery, args.images, indices)]
    if params.images:
        files = {slug("sheet", site): args.quality / "sheets" / f"{site}.png" for site in study.sites}
        sheets = {name: path.read_bytes() for name, path in files.items() if there(path)}
    pictures = html.draw(study, samples, suspects, exhibits) | sheets
    figures = args.out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for old in figures.glob("*.png"):  # of a run with other backbones or findings
        old.unlink()
    for name, png in pictures.items():
        (figures / f"{name}.png").write_bytes(png)
    page = args.out / "index.html"
    page.write_text(html.page(study, pictures), encoding="utf-8", newline="\n")
    print(page)


if __name__ == "__main__":
    cli.run(main)
