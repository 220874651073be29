"""Every file of the manifest ends as instances or as one exclusion, and no identifier goes on."""

import os
import re
import shutil
import signal

import pandas as pd
import pytest
from minimal import content, dataset
from stages.study import NAME, NUMBER, SECRETS, picture

from pipeline.datasets.common import Source
from pipeline.dicom import headers
from pipeline.dicom.headers import IngestParams
from pipeline.errors import PipelineError
from pipeline.scratch import decode, encode
from pipeline.stages import ingest
from pipeline.tables.contract import read_table
from pipeline.tables.files import Exclusions, Instances, Manifest

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


def test_a_dask_cluster_changes_no_byte_even_when_a_worker_is_killed(study, monkeypatch):
    """Two real workers, one of which is killed while files are read."""
    from distributed import LocalCluster

    def bytes_of(folder):
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    study.fill(40).inventory()
    study.put("north", "note.txt", b"no DICOM" * 99)
    study.inventory()
    local = bytes_of(study.ingest("north")), bytes_of(study.preprocess("north"))
    shutil.rmtree(study.folder / ".checkpoints")
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=60
    ) as cluster:
        monkeypatch.setenv("PIPELINE_SCHEDULER", cluster.scheduler_address)
        victim = next(iter(cluster.workers.values())).pid
        real, read = ingest.Scratch.put, []

        def put(self, *arguments):
            read.append(1)
            if len(read) == 5:
                os.kill(victim, signal.SIGKILL)
            real(self, *arguments)

        monkeypatch.setattr(ingest.Scratch, "put", put)
        clustered = bytes_of(study.ingest("north")), bytes_of(study.preprocess("north"))
    assert len(read) == 41
    assert clustered == local


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


def test_a_defect_costs_its_file_alone_and_is_told(study, monkeypatch, capsys):
    study.fill(2).inventory()
    real, calls = headers.describe, []

    def broken(content, *arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError(f"{NAME} {NUMBER}")
        return real(content, *arguments, **options)

    monkeypatch.setattr("pipeline.dicom.headers.describe", broken)
    instances, exclusions = tables(study.ingest("north"))
    assert len(instances) == 1
    (row,) = exclusions.to_dict("records")
    assert (row["outcome"], row["reason"]) == ("defect", "defect")
    assert re.fullmatch(r"ZeroDivisionError at test_ingest.py:\d+", row["detail"])
    assert re.search(r"DEFECT over source [0-9a-f]{32}: ZeroDivisionError at .*; please report it", study.told)
    assert not any(secret in study.told for secret in SECRETS)
    # It is not kept as the file's outcome: the next run looks at the file again.
    instances, exclusions = tables(study.ingest("north"))
    assert (len(instances), len(exclusions), len(calls)) == (2, 0, 3)


def test_frames_of_a_copy_go_together():
    refused, copies = ingest.settle_duplicates({f"i{frame}": {"b": "h", "a": "h"} for frame in (0, 1)}, IngestParams())
    assert list(refused) == ["b"]
    assert refused["b"].outcome == "rejected"
    assert copies == {"b": "a"}


def test_files_that_contradict_each_other_wait_for_a_person():
    refused, copies = ingest.settle_duplicates({"i": {"b": "h", "a": "g", "c": "h"}}, IngestParams())
    assert {name: refusal.outcome for name, refusal in refused.items()} == dict.fromkeys("abc", "quarantined")
    assert copies == {}


def test_one_of_them_may_stay_by_policy():
    policy = IngestParams(conflicting_duplicates="first")
    refused, copies = ingest.settle_duplicates({"i": {"b": "h", "a": "g", "c": "h"}}, policy)
    assert {name: refusal.outcome for name, refusal in refused.items()} == dict.fromkeys("bc", "rejected")
    assert copies == {}  # the label of another content is no label of this one


def test_only_what_changed_is_read_again(study, monkeypatch):
    study.fill(5).inventory()
    read = []
    real = ingest.read_source
    monkeypatch.setattr(ingest, "read_source", lambda reader, task: read.append(task.source_id) or real(reader, task))
    first = study.ingest("north")
    assert len(read) == 5
    whole = {path.name: path.read_bytes() for path in first.iterdir()}
    read.clear()
    study.ingest("north")
    assert read == []
    study.put("north", f"{NAME}_03.dcm", picture("north", 3, KVP="77"))
    assert len(list((study.folder / "raw/north").iterdir())) == 5
    study.inventory()
    again = study.ingest("north")
    assert len(read) == 1
    resumed = {path.name: path.read_bytes() for path in again.iterdir()}
    assert resumed["instances.parquet"] != whole["instances.parquet"]
    shutil.rmtree(study.folder / ".checkpoints")
    fresh = study.ingest("north")
    assert {path.name: path.read_bytes() for path in fresh.iterdir()} == resumed


def test_outcomes_come_back_from_the_scratch_as_they_were(study):
    """It stores JSON unchecked: a tuple would come back as a list, a number as a key as text."""
    study.put("north", "a", picture("north", 1))
    study.put("north", "b", picture("north", 2)[:-50])
    study.put("north", "c", b"")
    for name in "abc":
        reader = ingest.Reader("dicom_folder", "north", "north", b"k" * 32, IngestParams())
        task = ingest.Task(name, Source(name, study.folder / "raw/north" / name), "")
        outcome = ingest.read_source(reader, task)
        assert decode(encode(outcome)) == outcome


def test_an_interrupted_run_goes_on(study, monkeypatch):
    study.fill(6).inventory()
    read = []
    real = ingest.read_source

    def dies(reader, task):
        if len(read) == 4:
            raise KeyboardInterrupt
        read.append(task.source_id)
        return real(reader, task)

    monkeypatch.setattr(ingest, "read_source", dies)
    with pytest.raises(KeyboardInterrupt):
        study.ingest("north")
    monkeypatch.setattr(ingest, "read_source", lambda reader, task: read.append(task.source_id) or real(reader, task))
    instances, _ = tables(study.ingest("north"))
    assert len(instances) == 6
    assert len(read) == 6


def test_a_file_that_changed_behind_the_manifest(study):
    study.fill(2).inventory()
    name = next((study.folder / "raw/north").iterdir())
    name.write_bytes(name.read_bytes() + bytes(2))
    with pytest.raises(PipelineError, match=r"1 files are not what the manifest says.*commands.inventory"):
        study.ingest("north")


def test_a_withdrawn_patients_new_file_stays_out(study):
    study.fill(3).inventory()
    instances, _ = tables(study.ingest("north"))
    patient = instances["patient_id"].iloc[0]
    (study.folder / "withdrawn.txt").write_text(f"patient {patient}\n")
    instances, exclusions = tables(study.ingest("north"))
    assert patient not in set(instances["patient_id"])
    assert set(exclusions["reason"]) == {"patient_withdrawn"}
    assert set(exclusions["outcome"]) == {"unused"}


def slice_file(number, z, **elements):
    return content(
        dataset(
            SOPInstanceUID=f"2.25.9{number}", SeriesInstanceUID="2.25.5", PatientID="P5", Modality="CT",
            InstanceNumber=number, ImagePositionPatient=[0, 0, z], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1], **elements,
        )
    )  # fmt: skip


def test_slices_are_ordered_by_position(study):
    study.params["sites"] = {"north": study.site("north")}
    for number, z in enumerate([7.5, 0, 5, 2.5], start=1):  # InstanceNumber says otherwise
        study.put("north", f"s{number}", slice_file(number, z))
    study.inventory()
    instances, _ = tables(study.ingest("north"))
    ordered = instances.sort_values("slice_index")
    assert ordered["slice_index"].tolist() == [0, 1, 2, 3]
    assert ordered["slice_position_mm"].tolist() == [0, 2.5, 5, 7.5]
    assert set(instances["slice_spacing_mm"]) == {2.5}


def test_a_series_with_a_gap_waits_as_a_whole(study):
    study.params["sites"] = {"north": study.site("north")}
    study.put("north", "other", picture("north", 1))
    for number, z in enumerate([0, 2.5, 5, 10, 12.5], start=1):
        study.put("north", f"s{number}", slice_file(number, z))
    study.inventory()
    instances, exclusions = tables(study.ingest("north"))
    assert len(instances) == 1
    assert set(exclusions["reason"]) == {"inconsistent_geometry"}
    assert set(exclusions["outcome"]) == {"quarantined"}
    assert len(exclusions) == 5
    assert "gap" in exclusions["detail"].iloc[0]
    study.params["ingest"] = {"inconsistent_geometry": "keep"}
    instances, exclusions = tables(study.ingest("north"))
    assert (len(instances), len(exclusions)) == (6, 0)


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
    assert "62 of 62 labels given; issues in the files: none" in study.told
