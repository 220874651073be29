"""The adapter of a folder with a CSV: which files it lists, how it reads cells, what it says of bad label files."""

import csv
import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets import dicom_folder as adapter
from pipeline.datasets.common import LabelColumns, LabelRow, Terms, label_row, read_csv_rows
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
    return [
        (row.target, row.labels.get("opacity", "unknown"), row.issues)
        for row in adapter.read_labels(site(**labels), tmp_path)
    ]


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
        ("e", "unknown", ("unknown_value",)),
        ("f", None, ()),
        ("g", "present", ()),
    ]


@pytest.mark.parametrize("present", [[1], ["1"], [1.0], ["1.0"]])
@pytest.mark.parametrize("cell", ["1", "1.0"])
def test_numbers_and_texts_of_params_meet_cells(present, cell):
    row = label_row({"Opacity": cell}, site(present=present).labels, "a", "file")
    assert row.labels == {"opacity": "present"}


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


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"file,Opacity\n\xff\xfe,1\n", "not a readable CSV in UTF-8"),
        ("file,Opacity\na,1\n".encode("utf-16"), "not a readable CSV in UTF-8"),
        (b"file,Opacity\nPARUS," + b"1" * 2**18, "not a readable CSV"),
        (b"", "the file or its first line is empty"),
        (b"\n\nPARUS,1\n", "the file or its first line is empty"),
        (b"file,Opacity,Opacity\nPARUS,1,0\n", r"columns \[2, 3\] have the same name"),
        (b"file|Opacity\nPARUS|1\n", "no column 'file' among its 1"),
    ],
)
def test_label_files_that_are_refused(tmp_path, content, wrong):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(PipelineError, match=wrong) as raised:
        list(adapter.read_labels(site(), tmp_path))
    assert "PARUS" not in str(raised.value)


def test_missing_label_files(tmp_path):
    with pytest.raises(PipelineError, match=r"labels\.csv is not there"):
        list(adapter.read_labels(site(), tmp_path))
    (tmp_path / "labels.csv").mkdir()
    with pytest.raises(PipelineError, match="not a readable CSV"):
        list(adapter.read_labels(site(), tmp_path))


@given(
    rows=st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs", "Cc"]))] * 2), max_size=5),
    mark=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
    gz=st.booleans(),
)
def test_any_text_comes_back_under_any_separator(tmp_path_factory, rows, mark, encoding, gz):
    path = tmp_path_factory.mktemp("csv") / ("t.csv.gz" if gz else "t.csv")
    text = io.StringIO()
    csv.writer(text, delimiter=mark).writerows([("file", "a\nb"), *rows])
    content = text.getvalue().encode(encoding)
    path.write_bytes(gzip.compress(content) if gz else content)
    expected = [{"file": a.strip(), "a\nb": b.strip()} for a, b in rows]
    assert list(read_csv_rows(path, ["file", "a\nb"])) == expected


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: c[:20] + b"\0\0" + c[22:], lambda c: b"no gzip" + c])
def test_damaged_gzip(tmp_path, damage):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(damage(gzip.compress(b"file,Opacity\n" + b"a,1\n" * 1000)))
    with pytest.raises(PipelineError, match="not a readable CSV"):
        list(read_csv_rows(path, ["file"]))


def test_several_tables_of_one_folder(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/reads.csv").write_text("uid;rad;on;Opacity\n1.2;R1;2020-01-02;1\n1.2;;;0\n")
    (tmp_path / "labels/later.csv").write_text("patient,Edema\n7,yes\n")
    tables = [
        {"file": "reads.csv", "key": "series_instance_uid", "key_column": "uid", "columns": {"opacity": "Opacity"},
         "reader_column": "rad", "date_column": "on"},
        {"file": "later.csv", "key": "patient_id", "key_column": "patient", "columns": {"edema": "Edema"},
         "present": ["yes"], "absent": ["no"]},
    ]  # fmt: skip
    entry = parse(adapter.Params, {**SITE, "labels": {"file": "labels", "tables": tables}}, "sites.north")
    assert list(adapter.read_labels(entry, tmp_path)) == [
        LabelRow("1.2", "series", {"opacity": "present"}, (), "R1", "2020-01-02"),
        LabelRow("1.2", "series", {"opacity": "absent"}),
        LabelRow("7", "patient", {"edema": "present"}),
    ]
    assert set(entry.labels.columns) == {"opacity", "edema"}


TABLE = SITE["labels"]


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        ({**TABLE, "key_colum": "x"}, "sites.north.labels.key_colum: unknown key; did you mean 'key_column'"),
        ({"file": "x", "tables": [{**TABLE, "columms": 1}]}, "tables.0.columms: unknown key; did you mean 'columns'"),
        ({"file": "x", "tables": [TABLE], "tabels": 1}, "labels.tabels: unknown key; did you mean 'tables'"),
        ({"file": "x", "tables": []}, "sites.north.labels.tables: .*at least 1 item"),
        ({"file": "x", "tables": [{**TABLE, "file": "../y"}]}, "must be below the folder x; got ../y"),
        ({"file": "x", "tables": [{**TABLE, "file": "/y"}]}, "must be below the folder x; got /y"),
        ({"file": "x"}, "sites.north.labels.key: required, but missing"),
        (None, "sites.north.labels"),
        (["x"], "sites.north.labels"),
    ],
)  # fmt: skip
def test_bad_label_entries(labels, wrong):
    with pytest.raises(ParamsError, match=wrong):
        parse(adapter.Params, {**SITE, "labels": labels}, "sites.north")


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
