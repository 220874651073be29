import re
import shutil
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reporting import fabricated, fabricated_continual, fabricated_gallery, fabricated_shift
from reporting.page_checker import misquoted, read, untraced

from pipeline.imaging.store import PlaneFormat, write_store
from pipeline.params import ParamsError
from pipeline.reporting import figures, gallery_figures
from pipeline.stages import report
from pipeline.tables.adaptation import Remedies
from pipeline.tables.contract import TableError, read_table, write_table
from pipeline.tables.files import Deidentification, Notes
from pipeline.tables.gallery import Gallery
from pipeline.tables.images import Images, Splits
from pipeline.tables.labels import LabelIssues, Labels
from pipeline.tables.quality import Outliers

PARAMS = """
split:  # which side
  seed: 7
  source: [north, south]
  target: [east, west]
report:
  title: A study of nobody
  notice: Simulated images
  images: IMAGES
backbones: {mobilenet_v2: {}, resnet18: {}}
remedies: {coral: {}, prevalence: {}, temperature: {}}
continual: {backbones: [resnet18]}
gallery: {pretrained: {}}
matrix: {backbones: [resnet18]}
versions:
  torch: 2.15.0
"""
PIXEL = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 1, 1)


@pytest.fixture
def study_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    frames = fabricated.study().frames
    for name, contract, folder in report._TABLES:
        write_table(contract, frames[name], tmp_path / folder / f"{name}.parquet")
    outliers = [{"image_id": "north2", "site": "north", "kind": "unusual", "score": 4.5, "threshold": 3.5}]
    write_table(Outliers, outliers, tmp_path / "quality" / "outliers.parquet")
    (tmp_path / "quality" / "sheets").mkdir()
    splits = []
    for site in fabricated.SOURCES + fabricated.TARGETS:
        ids = [f"{site}{number}" for number in range(6)]
        labels = [{"image_id": i, "finding": fabricated.FINDING, "label": n % 2} for n, i in enumerate(ids)]
        write_table(Labels, labels, tmp_path / "labels" / site / "labels.parquet")
        write_table(LabelIssues, [], tmp_path / "labels" / site / "issues.parquet")
        write_table(Notes, [], tmp_path / "ingest" / site / "notes.parquet")
        write_table(Deidentification, [], tmp_path / "ingest" / site / "deidentification.parquet")
        index = [{"image_id": i, "array_index": n, "voi": "none", "inverted": False} for n, i in enumerate(ids)]
        if "pixels_sha256" in Images.columns:
            index = [{**row, "pixels_sha256": "a"} for row in index]
        write_table(Images, index, tmp_path / "images" / site / "images.parquet")
        planes = (np.full((8, 8), n, np.uint8) for n in range(6))
        write_store(planes, np.arange(6)[:, None], PlaneFormat(8, 8), tmp_path / "images" / site)
        (tmp_path / "quality" / "sheets" / f"{site}.png").write_bytes(PIXEL + site.encode())
        role, split = ("source", "train") if site in fabricated.SOURCES else ("target", "ood_test")
        splits += [{"image_id": i, "patient_id": i, "site": site, "role": role, "split": split} for i in ids]
    write_table(Splits, splits, tmp_path / "split" / "splits.parquet")
    monkeypatch.setattr(figures, "to_png", lambda draw, *args, **_: draw(*args) and PIXEL)
    return tmp_path


@pytest.fixture
def whole_folder(study_folder: Path) -> Path:
    """With the tables of the stages that a study may leave out."""
    frames = fabricated.study().frames
    for name, contract, folder, file in report._OPTIONAL:
        write_table(contract, frames[name], study_folder / folder / f"{file}.parquet")
    for name, contract in report._IF_EVALUATED:
        write_table(contract, frames[name], study_folder / "evaluate" / f"{name}.parquet")
    for name, contract, folder, file, _ in report._BY_BACKBONE:
        path = study_folder / folder / fabricated_continual.BACKBONE / f"{file}.parquet"
        write_table(contract, frames[name], path)
        write_table(contract, [], study_folder / folder / "removed" / f"{file}.parquet")
    remedies = frames["remedies"]
    for backbone in fabricated.BACKBONES:
        for remedy in fabricated_shift.REMEDIES:
            own = remedies[(remedies["remedy"] == remedy) & remedies["run"].str.startswith(f"{backbone}-")]
            write_table(Remedies, own, study_folder / "adapt" / f"{backbone}-{remedy}" / "remedies.parquet")
    write_table(Remedies, [], study_folder / "adapt" / "resnet18-removed" / "remedies.parquet")
    write_gallery(study_folder, frames)
    return study_folder


def write_gallery(folder: Path, frames: Mapping[str, pd.DataFrame]) -> None:
    """Of images that the hospitals have, in turn."""
    shown = frames["gallery"].copy()
    for site, rows in shown.groupby("site"):
        shown.loc[rows.index, "image_id"] = [f"{site}{number % 6}" for number in range(len(rows))]
    for name, contract, file in report._OF_GALLERIES:
        frame = shown if name == "gallery" else frames[name]
        write_table(contract, frame, folder / "gallery" / fabricated_gallery.GALLERY / f"{file}.parquet")
    maps = np.stack([np.full((8, 8), number, np.uint8) for number in range(len(shown))])
    np.save(folder / "gallery" / fabricated_gallery.GALLERY / "maps.npy", maps)


SHIFT = (
    "baseline",
    "choice",
    "search",
    "diagnose",
    "controls",
    "stress",
    "membership",
    "adapt",
    "continual",
    "forgetting",
    "gallery",
    "matrix_scores",
)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, images: bool, more: tuple[str, ...] = ()) -> str:
    (folder / "params.yaml").write_text(PARAMS.replace("IMAGES", str(images).lower()), encoding="utf-8")
    options = {name: folder / name for name in ("ingest", "split", "quality", "evaluate")}
    options |= {name: folder / name for name in ("predict", "images", "labels")}
    options |= {name: folder / name for name in more}
    options |= {"out": folder / "out", "params": folder / "params.yaml"}
    named = [(f"--{name.replace('_', '-')}", value) for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["report", *(str(part) for pair in named for part in pair)])
    report.main()
    return (folder / "out" / "index.html").read_text(encoding="utf-8")


def test_writes_page_and_figures(
    study_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (study_folder / "out" / "figures").mkdir(parents=True)
    stale = study_folder / "out" / "figures" / "forest-old.png"
    stale.touch()
    page = run(study_folder, monkeypatch, images=True)
    assert capsys.readouterr().out.strip() == str(study_folder / "out" / "index.html")
    assert not stale.exists()
    assert (study_folder / "out" / "figures" / "samples-pneumonia.png").is_file()
    assert read(page).faults == []
    assert untraced(read(page), fabricated.study().frames) == []
    assert str(study_folder) not in page
    assert "Acme" in page
    for site in fabricated.SOURCES + fabricated.TARGETS:
        assert (study_folder / "out" / "figures" / f"sheet-{site}.png").read_bytes() == PIXEL + site.encode()
    assert "north2" in page
    assert "Images are not shown" not in page


def test_shows_what_other_stages_left(whole_folder: Path, monkeypatch: pytest.MonkeyPatch):
    page = run(whole_folder, monkeypatch, images=False, more=SHIFT)
    parsed = read(page)
    found = [attributes["id"] for tag, attributes in parsed.elements if tag == "section"]
    assert found == list(fabricated.study().parts)
    assert misquoted(parsed, fabricated.study().frames | {"issues": pd.DataFrame()}, 11) == []
    names = {path.stem for path in (whole_folder / "out" / "figures").iterdir()}
    assert {"stress-pneumonia-resnet18", "abstention-pneumonia-resnet18"} <= names
    hashed = re.findall(r'<dt class="verbatim">([^<]*)</dt>', page)
    assert {"stress: curves", "evaluate: protocol", "resnet18-coral: remedies"} <= set(hashed)
    assert {"continual resnet18: steps", "forgetting resnet18: measures"} <= set(hashed)
    assert "resnet18-removed: remedies" not in hashed
    assert "gallery pretrained: means" in hashed
    assert not [name for name in names if name.startswith("gallery")]


def test_the_gallery_shows_each_image_with_its_own_map(whole_folder: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(gallery_figures, "gallery", lambda _, wall: drawn.append(wall) or PIXEL)
    page = run(whole_folder, monkeypatch, images=True, more=SHIFT)
    for wall in drawn:
        assert (whole_folder / "out/figures" / f"gallery-pretrained-pneumonia-{wall.site}.png").is_file()
        for exhibits in wall.exhibits.values():
            for exhibit in exhibits:
                assert exhibit.row["image_id"] in page
                assert (exhibit.image == int(exhibit.row["image_id"][-1])).all()
                at = exhibit.row["array_index"]
                assert exhibit.map is None if at is None else (exhibit.map == at).all()
    assert [wall.site for wall in drawn] == ["north", "south", "east", "west"]
    assert "false_positive" not in drawn[2].exhibits


def test_a_gallery_of_few_patients_shows_nothing_of_them(whole_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """One image stands in no other list of the page: its pseudonym may not be anywhere."""
    path = whole_folder / "gallery/pretrained/gallery.parquet"
    shown = read_table(Gallery, path)
    few = (shown["site"] == "east") & (shown["kind"] == "false_positive")
    names = set(shown.loc[few, "image_id"])
    assert len(names) == 2
    write_table(Gallery, shown[~shown["image_id"].isin(names) | few], path)
    page = run(whole_folder, monkeypatch, images=True, more=SHIFT)
    assert "east0" in page
    assert not [name for name in names if name in page]


def test_stages_that_are_not_there_have_no_section(study_folder: Path, monkeypatch: pytest.MonkeyPatch):
    left_out = run(study_folder, monkeypatch, images=False)
    assert run(study_folder, monkeypatch, images=False, more=SHIFT) == left_out
    assert 'id="stress"' not in left_out


def test_a_stage_without_its_table_is_an_error(whole_folder: Path, monkeypatch: pytest.MonkeyPatch):
    (whole_folder / "diagnose" / "probes.parquet").unlink()
    with pytest.raises(TableError, match="Probes"):
        run(whole_folder, monkeypatch, images=False, more=SHIFT)


def partial(folder: Path, monkeypatch: pytest.MonkeyPatch, gaps: list[report.Gap]) -> str:
    """The page of what is left; as ``run`` with images."""
    monkeypatch.setattr(report, "render", lambda args, render=report.render: render(args, gaps))
    return run(folder, monkeypatch, images=True)


def test_a_failed_evaluation_leaves_the_rest(study_folder: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.rmtree(study_folder / "evaluate")
    page = partial(study_folder, monkeypatch, [report.Gap("evaluate", (study_folder / "evaluate",), "no result")])
    parsed = read(page)
    found = [attributes["id"] for tag, attributes in parsed.elements if tag == "section"]
    assert {"funnel", "composition", "quality", "leakage", "training", "provenance"} <= set(found)
    assert not {"verdict", "efficiency", "hospitals", "calibration"} & set(found)
    assert {a["href"][1:] for tag, a in parsed.elements if tag == "a"} <= {
        a["id"] for _, a in parsed.elements if "id" in a
    }
    assert parsed.faults == []
    banner = page.partition("<nav")[0]
    assert "This report is incomplete" in banner
    assert re.search(r"evaluate</span>:\s*<span class=\"verbatim\">no result", banner)
    assert "Does transfer help, " in banner
    assert "Trained models" in page
    assert (study_folder / "out" / "figures" / "curves-resnet18.png").is_file()


def test_what_is_out_of_date_is_not_shown_for_new(study_folder: Path, monkeypatch: pytest.MonkeyPatch):
    page = partial(study_folder, monkeypatch, [report.Gap("quality", (study_folder / "quality",), "older")])
    assert 'id="quality"' not in page
    assert "north2" not in page
    assert "sheet-" not in str(list((study_folder / "out" / "figures").iterdir()))


def test_one_hospital_failed(study_folder: Path, monkeypatch: pytest.MonkeyPatch):
    gone = [study_folder / name / "east" for name in ("ingest", "images", "labels")]
    for folder in gone:
        shutil.rmtree(folder)
    page = partial(study_folder, monkeypatch, [report.Gap("ingest@east", tuple(gone), "no result")])
    assert read(page).faults == []
    assert "east: pixels" not in page
    assert "north: pixels" in page


def test_nothing_is_there(study_folder: Path, monkeypatch: pytest.MonkeyPatch):
    kept = study_folder / "params.yaml"
    for folder in list(study_folder.iterdir()):
        shutil.rmtree(folder) if folder.is_dir() and folder != kept else None
    page = partial(study_folder, monkeypatch, [report.Gap("manifest", (study_folder / "manifest",), "no result")])
    found = [attributes["id"] for tag, attributes in read(page).elements if tag == "section"]
    assert found == ["summary", "provenance", "checklist", "reading"]
    assert read(page).faults == []


def test_without_gaps_a_missing_table_is_an_error(study_folder: Path, monkeypatch: pytest.MonkeyPatch):
    (study_folder / "evaluate" / "verdicts.parquet").unlink()
    with pytest.raises(TableError, match="Verdicts"):
        run(study_folder, monkeypatch, images=False)


def test_images_can_stay_out(study_folder: Path, monkeypatch: pytest.MonkeyPatch):
    page = run(study_folder, monkeypatch, images=False)
    assert "Images are not shown" in page
    assert "north2" not in page
    names = {path.name for path in (study_folder / "out" / "figures").iterdir()}
    assert not [name for name in names if name.startswith(("samples", "sheet", "suspects"))]


def test_choose_takes_one_image_a_patient_and_only_used_ones():
    ids = ["a", "b", "c", "d", "e"]
    index = pd.DataFrame({"image_id": ids, "array_index": range(5)})
    labels = pd.DataFrame({"image_id": ids, "label": pd.array([1, 1, 0, None, 1], dtype="Int8")})
    splits = pd.DataFrame({"image_id": ids[:4], "patient_id": ["p", "p", "q", "r"]})
    assert report.choose(index, labels, splits, per_label=4) == {1: [0], 0: [2]}


def test_yaml_keeps_order_and_values_and_drops_comments():
    assert report.canonical_yaml({"b": [1, 0.001], "a": {"x": True}}) == "b:\n- 1\n- 0.001\na:\n  x: true\n"


def test_unknown_key_is_refused(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("report: {title: T, images: false, min_cel: 0}\n", encoding="utf-8")
    with pytest.raises(ParamsError, match="did you mean 'min_cell'"):
        report.load_params(report.ReportParams, "report", path)
