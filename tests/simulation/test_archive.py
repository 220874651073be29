"""The archive as a whole: same bytes again, independent of other sites, with bad files that are bad."""

import csv
import hashlib
import io
import json
import sys

import pytest
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from pipeline.errors import PipelineError
from pipeline.key import PUBLIC_KEY, fingerprint
from pipeline.params import ParamsError, parse
from pipeline.simulation.archive import BAD_KINDS, simulate
from pipeline.simulation.cohort import Hospital
from pipeline.simulation.spec import SimulatedSite
from pipeline.stages import simulate as stage

LABELS = "key: study_instance_uid, key_column: StudyInstanceUID, columns: {opacity: opacity}"
PARAMS = f"""
simulate: {{seed: 7}}
privacy: {{key: public, key_fingerprint: {fingerprint(PUBLIC_KEY)}}}
sites:
  north:
    adapter: dicom_folder
    root: north/archive
    labels: {{file: north/labels.csv, {LABELS}}}
    simulate: {{patients: 6, prevalence: 0.5, marker_positive: 0.8, marker_negative: 0.1}}
  south:
    adapter: dicom_folder
    root: south/archive
    labels: {{file: south/labels.csv, {LABELS}}}
    simulate: {{patients: 6, prevalence: 0.5, transfer_syntax: SYNTAX, modality: rescale}}
"""


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_stage(monkeypatch, folder, site, params):
    (folder / "params.yaml").write_text(params)
    arguments = ["--site", site, "--out", folder / site, "--manifest", folder / f"{site}.parquet"]
    arguments += ["--params", folder / "params.yaml"]
    monkeypatch.setattr(sys, "argv", ["simulate", *map(str, arguments)])
    stage.main()
    return tree(folder / site)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "east"
    spec = SimulatedSite(patients=8, prevalence=0.4, transfer_syntax="jpeg_lossless", voi="lut", bad_share=0.1)
    simulate(Hospital("east", spec, seed=1), folder)
    return folder


def truth_of(cohort):
    with (cohort / "truth.csv").open(encoding="utf-8") as file:
        return json.loads((cohort / "truth.json").read_text()), list(csv.DictReader(file))


def test_same_seed_same_bytes_whatever_other_sites_do(tmp_path, monkeypatch):
    runs = []
    for name, params in (
        ("first", PARAMS.replace("SYNTAX", "rle")),
        ("again", PARAMS.replace("SYNTAX", "rle")),
        ("other", PARAMS.replace("SYNTAX", "jpeg2000") + "  west: {simulate: {prevalence: 0.1}}\n"),
        ("seed", PARAMS.replace("SYNTAX", "rle").replace("seed: 7", "seed: 8")),
    ):
        (tmp_path / name).mkdir()
        runs.append(run_stage(monkeypatch, tmp_path / name, "north", params))
    assert runs[0] == runs[1] == runs[2]
    manifests = [(tmp_path / name / "north.parquet").read_bytes() for name in ("first", "again", "other")]
    assert manifests[0] == manifests[1] == manifests[2]
    assert not set(runs[0].values()) & set(runs[3].values()) - {hashlib.sha256(b"").hexdigest()}
    south = run_stage(monkeypatch, tmp_path / "first", "south", PARAMS.replace("SYNTAX", "rle"))
    assert south.keys().isdisjoint(set(runs[0]) - {"labels.csv", "truth.json", "truth.csv"})


def test_every_file_is_accounted_for(cohort):
    truth, rows = truth_of(cohort)
    bad = [path for paths in truth["bad_files"].values() for path in paths]
    files = {path.relative_to(cohort / "archive").as_posix() for path in (cohort / "archive").rglob("*")}
    files = {path for path in files if (cohort / "archive" / path).is_file()}
    assert files == {row["file"] for row in rows} | set(bad)
    assert len(files) == len(rows) + len(bad)
    assert {path.endswith(".dcm") for path in files} == {True, False}
    for row in rows:
        ds = dcmread(cohort / "archive" / row["file"])
        assert (ds.SOPInstanceUID, ds.StudyInstanceUID) == (row["sop_instance_uid"], row["study"])
        assert ds.pixel_array.any()
        assert row["file"].startswith(str(ds.PatientName).replace("Ü", "U") + "_" + ds.PatientID)
    assert len(rows) == truth["num_images"]


def test_bad_files_are_bad(cohort):
    truth, rows = truth_of(cohort)
    assert set(truth["bad_files"]) == set(BAD_KINDS)
    contents = {kind: (cohort / "archive" / paths[0]).read_bytes() for kind, paths in truth["bad_files"].items()}
    assert contents["empty"] == b""
    with pytest.raises(InvalidDicomError):
        dcmread(io.BytesIO(contents["not_dicom"]))
    assert dcmread(io.BytesIO(contents["structured_report"])).Modality == "SR"
    bare = dcmread(io.BytesIO(contents["no_pixel_data"]))
    assert "PixelData" not in bare
    assert bare.Rows > 0
    assert contents["duplicate"] in [(cohort / "archive" / row["file"]).read_bytes() for row in rows]
    uids = {row["sop_instance_uid"] for row in rows}
    for kind in ("structured_report", "no_pixel_data"):
        assert dcmread(io.BytesIO(contents[kind])).SOPInstanceUID not in uids


@pytest.mark.parametrize("syntax", ["explicit_little", "implicit_little", "rle", "jpeg_lossless", "jpeg2000"])
def test_truncated_file_has_a_header_but_no_whole_image(tmp_path, syntax):
    spec = SimulatedSite(patients=4, prevalence=0.5, transfer_syntax=syntax)
    simulate(Hospital("west", spec, seed=1), tmp_path / "west")
    truth, _ = truth_of(tmp_path / "west")
    path = tmp_path / "west" / "archive" / truth["bad_files"]["truncated"][0]
    assert dcmread(path, stop_before_pixels=True).Rows == spec.rows
    with pytest.raises(Exception):  # noqa: B017 - EOFError or ValueError or a decoder's own
        dcmread(path).pixel_array  # noqa: B018 - the access decodes


def test_label_file_has_its_two_flaws(cohort):
    truth, rows = truth_of(cohort)
    with (cohort / "labels.csv").open(encoding="utf-8") as file:
        given = list(csv.reader(file))
    assert given[0] == ["StudyInstanceUID", "opacity"]
    body = given[1:]
    assert len(body) == truth["num_studies"] + 2
    repeated = truth["label_flaws"]["duplicate_row"]
    assert [row[0] for row in body].count(repeated) == 2
    assert len({tuple(row) for row in body}) == len(body) - 1
    without_images = {row[0] for row in body} - {row["study"] for row in rows}
    assert without_images == {truth["label_flaws"]["study_without_images"]}
    labels = dict(body)
    assert all(labels[row["study"]] == row["label"] for row in rows)
    assert set(labels.values()) <= {"0", "1"}


def test_truth_says_what_was_simulated(cohort):
    truth, _ = truth_of(cohort)
    assert truth["attainable_auroc"] == pytest.approx(0.955157)
    assert truth["num_patients"] == 8
    assert (truth["prevalence"], truth["d_prime"]) == (0.4, 2.4)
    assert truth["shift"]["transfer_syntax"] == "jpeg_lossless"
    assert {"marker_positive", "marker_negative", "noise", "gamma", "blur_mm", "vendor"} <= set(truth["shift"])
    assert list(truth) == sorted(truth)


def test_clears_what_it_wrote_and_nothing_else(cohort, tmp_path):
    spec = SimulatedSite(patients=4, prevalence=0.5, bad_share=0.0)
    simulate(Hospital("a", spec, seed=1), tmp_path / "out")
    before = tree(tmp_path / "out")
    simulate(Hospital("b", spec, seed=1), tmp_path / "out")
    assert set(tree(tmp_path / "out")) & set(before) == {"labels.csv", "truth.json", "truth.csv"}
    assert truth_of(tmp_path / "out")[0]["bad_files"] == {kind: [] for kind in BAD_KINDS}
    (tmp_path / "out" / "thesis.docx").write_text("years of work")
    with pytest.raises(PipelineError, match=r"1 other\s+entries, such as 'thesis.docx'"):
        simulate(Hospital("b", spec, seed=1), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.docx").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prevalance": 0.3}, "unknown key; did you mean 'prevalence'"),
        ({"bits_stored": 8}, "sites.x.simulate.bits_stored: .*greater than or equal to 10; got 8"),
        ({"transfer_syntax": "jpeg"}, "transfer_syntax: .*'jpeg_lossless'.*; got 'jpeg'"),
        ({"marker_positive": 1.2}, "marker_positive: .*less than or equal to 1; got 1.2"),
        ({"prevalence": "0.3"}, "prevalence: .*number; got '0.3'"),
        ({"vendor": "Siemens"}, "vendor: .*pattern.*; got 'Siemens'"),
        ({"pixel_spacing_mm": 1.0}, "rows x pixel_spacing_mm must be 300 to 520 mm to show a chest, not 192 mm"),
        ({"modality": "rescale", "voi": "lut"}, "voi: lut goes with modality: none or lut, not with rescale"),
    ],
)
def test_errors_of_the_spec_say_key_constraint_and_value(change, message):
    with pytest.raises(ParamsError, match=message):
        parse(SimulatedSite, {"prevalence": 0.3, **change}, "sites.x.simulate")


def test_prevalence_is_required():
    with pytest.raises(ParamsError, match="prevalence: required, but missing"):
        parse(SimulatedSite, {}, "sites.x.simulate")
