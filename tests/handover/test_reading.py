"""New files become the very arrays that the study's stages make of them."""

import shutil
import stat

import cv2
import numpy as np
import pytest
from stages.study import NAME, Study, picture

from pipeline.dicom.deidentify import pseudonym
from pipeline.dicom.headers import IngestParams
from pipeline.errors import PipelineError
from pipeline.handover.reading import (
    ADAPTERS,
    Funnel,
    find_files,
    make_arrays,
    read,
    write_lookup,
)
from pipeline.handover.seen import CHECKED, Seen
from pipeline.imaging.recipe import PreprocessParams
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.key import PUBLIC_KEY
from pipeline.stages.ingest import Reader
from pipeline.tables.contract import read_table
from pipeline.tables.images import Images

SERIES = {"PatientID": "P-77", "StudyInstanceUID": "2.25.9999771", "SeriesInstanceUID": "2.25.9999772",
          "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}  # fmt: skip


def anything(kind):
    """Seen by a model that was trained on everything: no file is unlike it."""
    blank = {column: [] for column in CHECKED}
    return Seen(kind=kind, levels=blank, accepted=blank, windowless=True, windows={})


def arrays(folder, out, params, kind="dicom", patient=None):
    out.mkdir()
    reader = Reader(ADAPTERS[kind], "north", "north", PUBLIC_KEY, IngestParams())
    funnel = Funnel(find_files(folder, kind, PUBLIC_KEY, "north", patient))
    instances = read(funnel, reader, frozenset(), out, 1)
    found = make_arrays(funnel, instances, reader, params, anything(kind), "refuse", out, 1)
    return funnel, found, Store(out)


@pytest.mark.parametrize(
    "preprocess", [{"voi": ["header", "lung", {"z_score": 3.0}]}, {"voi": "header", "neighbours": 3, "bits": 16}]
)
def test_the_arrays_are_those_of_the_study(tmp_path, monkeypatch, capsys, preprocess):
    study = Study(tmp_path, monkeypatch, capsys)
    study.params["preprocess"] = {"size_px": 16, **preprocess}
    for number in range(5):
        elements = {**SERIES, "ImagePositionPatient": [0, 0, 3.0 * number]} if "neighbours" in preprocess else {}
        study.put("north", f"{NAME}_{number}.dcm", picture("north", number, **elements))
    study.put("north", "copy.dcm", picture("north", 0, **elements) if "neighbours" not in preprocess else b"")
    study.put("east", f"{NAME}.dcm", picture("east", 1))
    study.inventory()
    study.ingest("north")
    made = study.preprocess("north")
    for place, path in enumerate(sorted((tmp_path / "raw/north").iterdir())):
        (tmp_path / "new" / str(place)).mkdir(parents=True)
        shutil.copy(path, tmp_path / "new" / str(place) / f"{9 - place}")
    funnel, found, store = arrays(tmp_path / "new", tmp_path / "out", PreprocessParams(size_px=16, **preprocess))
    said, theirs = read_table(Images, made / INDEX_FILE).set_index("image_id"), Store(made)
    assert set(found["image_id"]) == set(said.index)
    assert len(funnel.refused) == 1
    for row in found.to_dict("records"):
        place = int(said.loc[row["image_id"], "array_index"])
        np.testing.assert_array_equal(store.read([row["array_index"]]), theirs.read([place]))
        assert row["pixels_sha256"] == said.loc[row["image_id"], "pixels_sha256"]


def test_png_files_by_patient_and_refusals(tmp_path):
    (tmp_path / "new/a").mkdir(parents=True)
    for number, name in enumerate(("a/007_1.png", "a/007_2.png", "a/009_1.png", "a/nobody.png")):
        cv2.imwrite(str(tmp_path / "new" / name), np.full((20, 20), 40 * number, np.uint8))
    (tmp_path / "new/notes.txt").write_text("MUELLER")
    params = PreprocessParams(size_px=16, voi="header")
    pattern = r"/0*(?P<patient>[1-9]\d*)_"
    funnel, found, store = arrays(tmp_path / "new", tmp_path / "out", params, "raster", pattern)
    assert sorted(found["patient_id"].value_counts()) == [1, 2]
    assert pseudonym(PUBLIC_KEY, "patient", "north", "7") in set(found["patient_id"])
    assert sorted(reason for _, _, reason, _ in funnel.refused.values()) == ["missing_required_tag", "non_image_object"]
    assert sorted(store.read(found["array_index"].to_numpy())[:, 0, 8, 8].tolist()) == [0, 40, 80]
    with pytest.raises(PipelineError, match="group"):
        find_files(tmp_path / "new", "raster", PUBLIC_KEY, "north", "no group")


def test_the_lookup_is_new_and_its_owners_alone(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/a, b\n.dcm").write_bytes(b"")
    sources = find_files(tmp_path / "new", "dicom", PUBLIC_KEY, "north", None)
    write_lookup(tmp_path / "lookup.csv", sources)
    assert stat.S_IMODE((tmp_path / "lookup.csv").stat().st_mode) == 0o600
    assert '/new/a, b\n.dcm"' in (tmp_path / "lookup.csv").read_text()
    with pytest.raises(PipelineError, match="already"):
        write_lookup(tmp_path / "lookup.csv", sources)


def test_a_misfit_is_refused_for_its_first_reason_or_told_with_all(tmp_path):
    funnel = Funnel({"s": None})
    funnel.misfit("s", {"other_view": "x", "other_window": "y"}, "tell")
    assert (funnel.refused, funnel.unlike) == ({}, {"s": {"other_view", "other_window"}})
    funnel.misfit("s", {"other_view": "x", "other_window": "y"}, "refuse")
    assert funnel.rows() == [
        {"source_id": "s", "stage": "apply", "outcome": "rejected", "reason": "other_view", "detail": "x"}
    ]
