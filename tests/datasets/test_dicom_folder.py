"""The adapter of a folder with a CSV: which files it lists, how it reads cells, what it says of bad label files."""

import pytest

from pipeline.datasets import dicom_folder as adapter
from pipeline.datasets.common import LabelColumns, Terms, read_cell
from pipeline.datasets.registry import load_site
from pipeline.dicom.deidentify import pseudonym
from pipeline.errors import PipelineError
from pipeline.params import ParamsError, parse

KEY = b"k" * 32
SITE = {
    "adapter": "dicom_folder",
    "root": "raw",
    "labels": {"file": "labels.csv", "key": "file", "key_column": "file", "columns": {"opacity": "Opacity"}},
}


def site(**labels):
    return parse(adapter.Params, {**SITE, "labels": {**SITE["labels"], **labels}}, "sites.north")


def read(tmp_path, text, **labels):
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    return [(row.target, row.labels["opacity"], row.issues) for row in adapter.read_labels(site(**labels), tmp_path)]


def test_missing_root(tmp_path):
    with pytest.raises(PipelineError, match="raw is not there; set the site's root"):
        list(adapter.list_sources(site(), tmp_path))


def test_cells(tmp_path):
    text = "\ufefffile, Opacity \nraw/a,1\nraw/b,0.0\nraw/c,-1.0\nraw/d,\nraw/e,maybe\nraw/f\nraw/g,1,surplus\n"
    assert read(tmp_path, text, prefix="raw/") == [
        ("a", "present", ()),
        ("b", "absent", ()),
        ("c", "uncertain", ()),
        ("d", None, ()),
        ("e", None, ("unknown_value",)),
        ("f", None, ()),
        ("g", "present", ()),
    ]


@pytest.mark.parametrize("present", [[1], ["1"], [1.0], ["1.0"]])
@pytest.mark.parametrize("cell", ["1", "1.0"])
def test_numbers_and_texts_of_params_meet_cells(present, cell):
    assert read_cell(cell, site(present=present).labels) == ("present", None)


def test_a_value_has_one_meaning():
    with pytest.raises(ParamsError, match=r"sites.north.labels.*repeated: \['1'\]"):
        site(present=[1], absent=["1"])
    assert isinstance(site().labels, LabelColumns)


def test_missing_column_and_its_nearest(tmp_path):
    with pytest.raises(PipelineError, match="no column 'Opacity' among its 2; did you mean 'opacity'"):
        read(tmp_path, "file,opacity\na,1\n")


def test_a_file_without_a_header_quotes_no_patient(tmp_path):
    with pytest.raises(PipelineError, match="no column 'file' among its 2") as raised:
        read(tmp_path, "ZEBRAFELD,1\n")
    assert "ZEBRAFELD" not in str(raised.value)


def test_missing_and_unreadable_label_files(tmp_path):
    with pytest.raises(PipelineError, match="is not there"):
        list(adapter.read_labels(site(), tmp_path))
    (tmp_path / "labels.csv").write_bytes(b"file,Opacity\n\xff\xfe,1\n")
    with pytest.raises(PipelineError, match="UTF-8"):
        list(adapter.read_labels(site(), tmp_path))


@pytest.mark.parametrize(
    ("kind", "column", "parts"),
    [
        ("file", "source_id", ("source", "north", "x")),
        ("sop_instance_uid", "image_id", ("image", "x", "0")),
        ("series_instance_uid", "series_id", ("series", "x")),
        ("study_instance_uid", "study_id", ("study", "x")),
        ("patient_id", "patient_id", ("patient", "north", "x")),
    ],
)
def test_label_target(tmp_path, kind, column, parts):
    (tmp_path / "labels.csv").write_text("file,Opacity\nx,1\n")
    entry = site(key=kind)
    (row,) = adapter.read_labels(entry, tmp_path)
    assert adapter.label_target(entry, "north", KEY, row) == (column, pseudonym(KEY, *parts))


def test_terms_are_the_owners_to_state():
    assert adapter.terms(site()) == Terms("", "", False, "")
    stated = {"origin": "tcia", "licence": "CC BY 3.0", "redistribution": True, "citation": "Albertina et al."}
    assert adapter.terms(parse(adapter.Params, {**SITE, **stated}, "sites.north")) == Terms(**stated)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sites: {north: {root: x}}", "sites.north.adapter: required"),
        ("sites: {north: {adapter: dicomfolder}}", "unknown adapter 'dicomfolder'; known: chestxray14, dicom_folder"),
        ("sites: {north: {adapter: common}}", "unknown adapter"),
        ("sites: {noth: {adapter: dicom_folder}}", "no 'north'; did you mean 'noth'"),
        ("sites: {north: {adapter: dicom_folder, rot: x}}", "sites.north.rot: unknown key; did you mean 'root'"),
        ("sites: {north: {adapter: dicom_folder, root: 5}}", "sites.north.root: .*string; got 5"),
    ],
)
def test_bad_entries(tmp_path, text, expected):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=expected):
        load_site("north", tmp_path / "params.yaml")
