"""Every file of the manifest ends as instances or as one exclusion, and no identifier goes on."""

import pandas as pd
import pytest
from minimal import content, dataset
from stages.study import NAME, NUMBER, SECRETS, picture

from pipeline.errors import PipelineError
from pipeline.stages import ingest
from pipeline.tables import Exclusions, Instances, Manifest, read_table

SIEMENS = "data/ct_contrast/siemens"


def tables(out):
    return read_table(Instances, out / "instances.parquet"), read_table(Exclusions, out / "exclusions.parquet")


def test_manifest_is_used_plus_excluded(study):
    study.fill(4)
    study.put("north", "copy.dcm", picture("north", 1))
    study.put("north", "empty", b"")
    study.put("north", "note.txt", f"{NAME} {NUMBER}".encode() * 30)
    study.put("north", "cut.dcm", picture("north", 77)[:-50])
    study.put("north", "other.dcm", picture("north", 2, StudyDate="20010101"))  # same UID, other content
    study.inventory()
    instances, exclusions = tables(study.ingest("north"))
    manifest = read_table(Manifest, study.folder / "manifests/north.parquet")
    assert sorted([*instances["source_id"], *exclusions["source_id"]]) == sorted(manifest["source_id"])
    assert exclusions["reason"].value_counts().to_dict() == {
        "duplicate_sop_uid": 3, "empty_file": 1, "not_dicom": 1, "truncated": 1
    }  # fmt: skip
    copies = exclusions.dropna(subset="duplicate_of")
    assert len(copies) == 1
    assert set(copies["duplicate_of"]) <= set(instances["source_id"])
    assert len(instances) == 3


def test_no_identifier_in_any_output_or_message(study):
    study.fill()
    study.put("north", "note.txt", f"{NAME} {NUMBER}".encode() * 30)
    study.put("north", "cut.dcm", picture("north", 77)[:-50])
    study.put("north", "age.dcm", picture("north", 78, PatientAge=NAME, StudyDate=NAME))
    study.all()
    for path, data in [*study.outputs().items(), ("console", study.told.encode())]:
        lowered = data.lower()
        for secret in SECRETS:
            for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
                coded = secret.encode(encoding)
                assert coded.lower() not in lowered, (path, secret)
                assert coded.hex().encode() not in lowered, (path, secret)
    for path in study.folder.rglob("*.parquet"):  # what compression would hide
        text = pd.read_parquet(path).to_csv().lower()
        assert not any(secret.lower() in text for secret in SECRETS), path


def test_bytes_hang_neither_on_workers_nor_on_the_order_of_files(study, tmp_path, monkeypatch, capsys):
    first = study.fill().all(workers=1).outputs()
    assert len(first) > 15
    other = type(study)(tmp_path / "elsewhere", monkeypatch, capsys)
    other.folder.mkdir()
    assert other.fill(reverse=True).all(workers=2).outputs() == first


def test_no_usable_file(study):
    study.put("north", "a", b"")
    study.put("north", "b", b"x" * 500)
    study.params["sites"] = {"north": study.site("north")}
    study.inventory()
    with pytest.raises(PipelineError, match=r"site north: none of 2 files .*'empty_file': 1.*"):
        study.ingest("north")


def test_missing_raw_folder_and_stale_manifest(study):
    study.fill(2).inventory()
    study.put("north", "new", b"x")
    with pytest.raises(PipelineError, match=r"1 files are not in the manifest.*commands.inventory"):
        study.ingest("north")
    (study.folder / "raw").rename(study.folder / "gone")
    with pytest.raises(PipelineError, match="is not there; set the site's root"):
        study.ingest("north")


@pytest.mark.parametrize(
    ("section", "value", "text"),
    [
        ("ingest", {"localiser": "keep"}, "ingest.localiser: unknown key; did you mean 'localizer'"),
        ("ingest", {"max_pixels": "many"}, "ingest.max_pixels: .*integer.*got 'many'"),
        ("versions", {"pydicom": "2.0"}, "versions.pydicom is 2.0"),
    ],
)
def test_bad_params(study, section, value, text):
    study.fill(1).inventory()
    study.params[section] = value
    with pytest.raises(PipelineError, match=text):
        study.ingest("north")


def test_numeric_site(study):
    study.fill(1)
    study.params["sites"][5] = study.site("north")
    with pytest.raises(PipelineError, match="the name 5 must match"):
        study.inventory()


def test_defect_names_pseudonym_and_line_only(study, monkeypatch):
    study.fill(2).inventory()

    def broken(*arguments, **options):
        raise ZeroDivisionError(f"{NAME} {NUMBER}")

    monkeypatch.setattr("pipeline.datasets.dicom_folder.describe", broken)
    with pytest.raises(
        PipelineError, match=r"defect while reading source [0-9a-f]{32}: ZeroDivisionError at"
    ) as raised:
        study.ingest("north")
    assert not any(secret in str(raised.value) for secret in SECRETS)
    assert raised.value.__suppress_context__


def test_unreadable_file_is_an_exclusion(tmp_path):
    source = ingest.Source("x", tmp_path)  # a folder cannot be read
    task = ingest.Task("dicom_folder", "s", source, "north", "north", b"k", ingest.IngestParams())
    assert ingest.read_source(task).refusal.reason == "unreadable"


def test_frames_of_a_copy_go_together():
    rows = [{"image_id": f"i{frame}", "source_id": source, "source_hmac": "h"} for source in "ba" for frame in (0, 1)]
    kept, refused, copies = ingest.settle_duplicates(rows)
    assert {row["source_id"] for row in kept} == {"a"}
    assert list(refused) == ["b"]
    assert copies == {"b": "a"}


def test_one_patient_of_two_files_is_one(study):
    study.put("north", "a", content(dataset()))
    study.put("north", "b", content(dataset(SOPInstanceUID="2.25.77", StudyInstanceUID="2.25.78")))
    study.params["sites"] = {"north": study.site("north")}
    study.inventory()
    instances, _ = tables(study.ingest("north"))
    assert len(set(instances["patient_id"])) == 1
    assert instances["study_id"].nunique() == 2


def test_real_archive(study, shared):
    study.params["sites"] = {"north": {**study.site("north"), "root": str(shared / SIEMENS / "dicom")}}
    study.params["sites"]["north"]["labels"] |= {
        "file": str(shared / SIEMENS / "labels.csv"), "prefix": "dicom/", "columns": {"opacity": "contrast"}
    }  # fmt: skip
    study.inventory()
    instances, exclusions = tables(study.ingest("north"))
    assert len(instances) == 62
    assert instances["patient_id"].nunique() == 32
    assert exclusions["reason"].tolist() == ["duplicate_sop_uid"] * 5
    assert exclusions["duplicate_of"].notna().all()
    study.labels("north")
    assert "62 of 62 labels given; issues in the file: none" in study.told
