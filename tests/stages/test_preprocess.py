"""Arrays and their index agree, a bad file is one exclusion, and an unexpected error names nobody."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from minimal import content, dataset
from pydicom.encaps import encapsulate
from stages.study import NAME, SECRETS, picture

from pipeline.datasets.common import Source
from pipeline.dicom.headers import IngestParams
from pipeline.errors import PipelineError
from pipeline.imaging.intensity import Window
from pipeline.imaging.store import open_images
from pipeline.params import ParamsError, parse
from pipeline.stages import preprocess
from pipeline.tables import Exclusions, Images, Instances, read_table

RLE = "1.2.840.10008.1.2.5"
# Two segments as the header asks for, of too few bytes: only decoding shows it.
UNDECODABLE = encapsulate([struct.pack("<16L", 2, 64, 66, *[0] * 13) + b"\0a\0b"])


def single(study):
    study.params["sites"] = {"north": study.site("north")}
    return study


def test_index_array_and_instances_agree(study):
    single(study)
    for patient in range(5):
        study.put("north", f"{NAME}{patient}", picture("north", patient))
    bad = dataset(syntax=RLE, PixelData=UNDECODABLE, SOPInstanceUID="2.25.5")
    study.put("north", "bad", content(bad))
    study.inventory()
    study.ingest("north")
    out = study.preprocess("north")
    images, exclusions = read_table(Images, out / "images.parquet"), read_table(Exclusions, out / "exclusions.parquet")
    instances = read_table(Instances, study.folder / "ingest/north/instances.parquet")
    assert sorted(images["array_index"]) == list(range(5))
    assert set(images["image_id"]) <= set(instances["image_id"])
    assert sorted(exclusions["reason"]) == ["decode_error"]
    used = set(instances.loc[instances["image_id"].isin(images["image_id"]), "source_id"])
    assert used | set(exclusions["source_id"]) == set(instances["source_id"])
    array = open_images(out)
    assert array.shape == (5, 16, 16)
    for row in images.to_dict("records"):
        assert row["pixels_sha256"] == hashlib.sha256(array[row["array_index"]].tobytes()).hexdigest()
        assert (row["resized_rows"], row["pad_top"]) == (13, 1)


def test_spacing_reaches_the_geometry(study):
    single(study)
    study.put("north", "a", content(dataset(np.ones((16, 16), np.uint16), PixelSpacing=[1, 0.5])))
    study.inventory()
    study.ingest("north")
    (row,) = read_table(Images, study.preprocess("north") / "images.parquet").to_dict("records")
    assert (row["resized_rows"], row["resized_columns"], row["pad_left"]) == (16, 8, 4)


def test_a_file_is_used_whole_or_not_at_all(tmp_path, monkeypatch):
    made = dataset(NumberOfFrames=2)
    made.PixelData = made.PixelData * 2
    (tmp_path / "two").write_bytes(content(made))
    both = task(tmp_path / "two", frames=2)
    assert [image.row["image_id"] for image in preprocess.make_images(both)] == ["i0", "i1"]
    real = preprocess.load_adapter("dicom_folder").read_images

    def read_images(data, frames, policy):
        yield from real(data, frames[:1], policy)
        raise preprocess.Refusal("decode_error")

    monkeypatch.setattr("pipeline.datasets.dicom_folder.read_images", read_images)
    (only,) = preprocess.make_images(both)
    assert only.refusal == ("rejected", "decode_error", "")


def test_nothing_decodable(study):
    single(study)
    study.put("north", "bad", content(dataset(syntax=RLE, PixelData=UNDECODABLE)))
    study.inventory()
    study.ingest("north")
    with pytest.raises(PipelineError, match="site north: none of 1 files could be decoded"):
        study.preprocess("north")


def task(path, frames=1):
    wanted = tuple(preprocess.Frame(f"i{number}", number, 1.0) for number in range(frames))
    return preprocess.Task("dicom_folder", "a" * 32, Source(path.name, path), IngestParams(), wanted, 16, None)


def test_unexpected_error_costs_its_file_and_quotes_nothing(tmp_path, monkeypatch):
    path = tmp_path / f"{NAME}.dcm"
    path.write_bytes(picture("north", 1))

    def broken(*arguments):
        raise ZeroDivisionError(f"{NAME}")

    monkeypatch.setattr("pipeline.datasets.dicom_folder.read_images", broken)
    (made,) = preprocess.make_images(task(path))
    assert made.refusal[:2] == ("defect", "defect")
    assert made.refusal[2].startswith("ZeroDivisionError at test_preprocess.py:")
    assert not any(secret in made.refusal[2] for secret in SECRETS)


def test_a_file_that_went_is_unreadable():
    (made,) = preprocess.make_images(task(Path("/nowhere") / NAME))
    assert made.refusal[:2] == ("rejected", "unreadable")
    assert NAME not in made.refusal[2]


def test_a_dead_decoder_costs_its_file():
    (made,) = preprocess.decoder_died(task(Path("x")))
    assert made.refusal[:2] == ("rejected", "decode_error")


def test_archive_changed_since_ingest(study):
    single(study)
    for name in "ab":
        study.put("north", name, picture("north", ord(name)))
    study.inventory()
    study.ingest("north")
    (study.folder / "raw/north/a").unlink()
    with pytest.raises(PipelineError, match="changed since ingest"):
        study.preprocess("north")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"size_px": 8, "voi": "header"}, "preprocess.size_px: .*greater than or equal to 16; got 8"),
        ({"size_px": 32.5, "voi": "header"}, "preprocess.size_px"),
        ({"size_px": 32, "voi": "lungs"}, "preprocess.voi"),
        ({"size_px": 32, "voi": {"center": 1, "width": 0}}, "preprocess.voi.*width.*greater than or equal to 1"),
        ({"size_px": 32}, "preprocess.voi: required, but missing"),
    ],
)
def test_bad_params(raw, text):
    with pytest.raises(ParamsError, match=text):
        parse(preprocess.PreprocessParams, raw, "preprocess")


def test_chosen_voi():
    parsed = parse(preprocess.PreprocessParams, {"size_px": 32, "voi": {"center": 1, "width": 9}}, "preprocess")
    assert parsed.chosen_voi() == Window(1.0, 9.0)
    assert parse(preprocess.PreprocessParams, {"size_px": 32, "voi": "header"}, "p").chosen_voi() is None
