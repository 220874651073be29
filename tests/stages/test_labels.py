"""Every flaw of a label file is counted or told, policies do what they say, and no reader's name goes on."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stages.study import NAME, SECRETS, picture

from pipeline.datasets.common import LabelRow
from pipeline.dicom.deidentify import pseudonym
from pipeline.errors import PipelineError
from pipeline.key import PUBLIC_KEY
from pipeline.params import ParamsError
from pipeline.stages.labels import LabelsParams, collect_rows, keep_readings, label_images, match_rows
from pipeline.stages.split import without_label
from pipeline.tables.contract import make_table, read_table
from pipeline.tables.files import Instances
from pipeline.tables.labels import LabelIssues, Labels, Readings, Terms


@pytest.fixture
def ingested(study):
    study.params["sites"] = {"north": study.site("north")}
    for name, patient in (("a", 1), ("b", 2), ("c", 3), ("d", 4), ("copy1", 4), ("copy2", 4)):
        study.put("north", name, picture("north", patient))
    study.label("north", {})
    study.inventory()
    study.ingest("north")
    return study


def run(study):
    """Labels by file name, and issues."""
    out = study.labels("north")
    labels = read_table(Labels, out / "labels.parquet")
    issues = read_table(LabelIssues, out / "issues.parquet")
    instances = read_table(Instances, study.folder / "ingest/north/instances.parquet")
    assert set(labels["image_id"]) == set(instances["image_id"])  # every image has a row, foreign keys resolve
    return labels["label"].tolist(), dict(zip(issues["issue"], issues["count"], strict=True))


def values(labels):
    return sorted("null" if value != value or value is None else str(value) for value in map(plain, labels))


def plain(value):
    return None if str(value) == "<NA>" else int(value)


def test_clean(ingested):
    ingested.label("north", {"a": 1, "b": 0, "c": "1.0", "d": 0})
    labels, issues = run(ingested)
    assert values(labels) == ["0", "0", "1", "1"]
    assert issues == {}


def test_each_flaw_is_counted(ingested):
    ingested.label("north", {"a": "maybe", "b": "-1", "c": "", "nobody": 1}, extra="d,1\nd,1\na,1\nc,1\nc,0\n")
    labels, issues = run(ingested)
    assert values(labels) == ["1", "1", "null", "null"]
    assert issues == {"unknown_value": 1, "uncertain_value": 1, "unknown_image": 1, "duplicate_row": 1,
                      "conflicting_rows": 1}  # fmt: skip


def test_conflicting_rows_give_no_label(ingested):
    ingested.label("north", {"a": 1}, extra="a,0\na,1\n")
    labels, issues = run(ingested)
    assert values(labels) == ["null"] * 4
    assert issues == {"conflicting_rows": 1, "duplicate_row": 1}


@pytest.mark.parametrize("name", ["d", "copy1", "copy2"])
def test_a_row_for_any_copy_reaches_the_image(ingested, name):
    ingested.label("north", {name: 1})
    labels, issues = run(ingested)
    assert values(labels) == ["1", "null", "null", "null"]
    assert issues == {}


def test_copies_may_all_have_rows_but_not_disagree(ingested):
    ingested.label("north", {"d": 1, "copy1": 1, "copy2": 1})
    assert run(ingested)[1] == {}
    ingested.label("north", {"d": 1, "copy1": 0, "copy2": 1})
    labels, issues = run(ingested)
    assert values(labels) == ["null"] * 4
    assert issues.keys() <= {"conflicting_rows"}
    assert issues["conflicting_rows"] >= 1


def test_missing_column_and_unasked_finding(ingested):
    ingested.label("north", {"a": 1}, header="file,opacitty")
    with pytest.raises(PipelineError, match="no column 'opacity' among its 2; did you mean 'opacitty'"):
        ingested.labels("north")
    ingested.params["labels"] = {"findings": ["edema"]}
    with pytest.raises(PipelineError, match=r"sites.north.labels.columns: .*\['edema'\].*it has \['opacity'\]"):
        ingested.labels("north")
    (ingested.folder / "north.csv").unlink()
    ingested.params["labels"] = {"findings": ["opacity"]}
    with pytest.raises(PipelineError, match=r"north\.csv is not there"):
        ingested.labels("north")


def test_messages_name_no_file_of_the_archive(ingested):
    ingested.label("north", {f"{NAME}/x": 1, f"{NAME}/y": f"{NAME}"})
    run(ingested)
    assert NAME not in ingested.told


def test_header_alone(ingested):
    ingested.label("north", {})
    assert run(ingested) == ([pd.NA] * 4, {})


@pytest.mark.parametrize("conflict", ["missing", "present", "absent", "majority"])
@pytest.mark.parametrize("uncertain", ["missing", "present", "absent"])
@pytest.mark.parametrize("missing", ["missing", "absent"])
def test_policies(ingested, conflict, uncertain, missing):
    policies = {"conflict": conflict, "uncertain": uncertain, "missing": missing}
    ingested.params["labels"] = {"findings": ["opacity"], **policies}
    ingested.params["sites"]["north"]["labels"]["reader_column"] = "reader"
    # a: two to one; b: one to one, and one in doubt; c: in doubt; d: left open
    rows = "a,1,x\na,1,y\na,0,z\nb,1,x\nb,0,y\nb,-1,z\nc,-1,x\nc,,y\nd,,x\n"
    ingested.label("north", {}, header="file,opacity,reader", extra=rows)
    _, issues = run(ingested)
    named = {"present": 1, "absent": 0, "missing": None}
    a, b = (1, None) if conflict == "majority" else (named[conflict],) * 2
    expected = {"a": a, "b": b, "c": named[uncertain], "d": named[missing]}
    assert by_file(ingested) == {
        name: (expected[name], status)
        for name, status in {"a": "conflicting", "b": "conflicting", "c": "uncertain", "d": "missing"}.items()
    }
    assert {name: count for name, count in issues.items() if name.startswith("set_by")} == {
        f"set_by_{name}_policy": count
        for name, count in {
            "conflict": 0 if conflict == "missing" else 1 if conflict == "majority" else 2,
            "uncertain": int(uncertain != "missing"),
            "missing": int(missing != "missing"),
        }.items()
        if count
    }
    assert issues["conflicting_readers"] == 2
    assert "conflicting_rows" not in issues


def by_file(study):
    """Label and status by the file's name."""
    instances = read_table(Instances, study.folder / "ingest/north/instances.parquet")
    labels = read_table(Labels, study.folder / "labels/north/labels.parquet").merge(instances, on="image_id")
    names = {pseudonym(PUBLIC_KEY, "source", "north", name): name for name in ("a", "b", "c", "d", "copy1", "copy2")}
    return {
        names[row.source_id].replace("copy1", "d").replace("copy2", "d"): (plain(row.label), row.status)
        for row in labels.itertuples()
    }


def test_an_unknown_value_is_not_a_finding_left_open(ingested):
    ingested.params["labels"] = {"findings": ["opacity"], "missing": "absent"}
    ingested.label("north", {"a": "maybe", "b": ""})
    labels, issues = run(ingested)
    assert values(labels) == ["0", "null", "null", "null"]  # c and d have no row
    assert issues == {"unknown_value": 1, "set_by_missing_policy": 1}


def test_readers_and_dates_are_kept_without_a_name(ingested):
    site = ingested.params["sites"]["north"]
    site["labels"] |= {"reader_column": "by", "date_column": "on"}
    rows = f"a,1,{NAME},2021-03-05\na,1,QUINTESSA,20210301\na,-1,{NAME},\nb,0,{NAME},5.3.21\nc,1,,\nd,,{NAME},\n"
    ingested.label("north", {}, header="file,opacity,by,on", extra=rows + "gone,1,OBERNARR,2021-03-05\n")
    _, issues = run(ingested)
    assert issues == {"invalid_date": 1, "unknown_image": 1, "uncertain_value": 1}
    out = ingested.folder / "labels/north"
    readings = read_table(Readings, out / "readings.parquet")
    assert sorted(readings["value"]) == ["absent", "present", "present", "uncertain"]  # c names nobody, d says nothing
    a = readings[readings["value"] != "absent"]
    assert len(set(a["image_id"])) == 1
    assert sorted(a["reading"]) == [0, 1, 2]
    assert readings["reader"].nunique() == 2  # the same reader of a and b has one pseudonym
    days = a["day"].dropna().astype(int)
    assert (days.max() - days.min(), len(days)) == (4, 2)
    for path in out.iterdir():
        assert not any(secret.encode() in path.read_bytes() for secret in SECRETS)
    assert not any(secret in ingested.told for secret in SECRETS)


def test_a_date_shifts_as_the_patients_study_does(study):
    study.params["sites"] = {"north": study.site("north")}
    study.params["sites"]["north"]["labels"]["date_column"] = "on"
    study.put("north", "a", picture("north", 1, StudyDate="20200131"))
    study.label("north", {}, header="file,opacity,on", extra="a,1,2020-02-03T10:30\n")
    study.inventory()
    instances = read_table(Instances, study.ingest("north") / "instances.parquet")
    readings = read_table(Readings, study.labels("north") / "readings.parquet")
    assert readings["day"].tolist() == [int(instances["day"].iloc[0]) + 3]


def test_several_files_at_several_levels(ingested):
    site = ingested.params["sites"]["north"]
    table = {"key": "file", "key_column": "file", "columns": {"opacity": "opacity"}}
    later = {"key": "patient_id", "key_column": "id", "columns": {"opacity": "o", "edema": "e"}, "present": ["y"]}
    site["labels"] = {"file": "labels", "tables": [{"file": "one.csv", **table}, {"file": "two.csv", **later}]}
    ingested.params["labels"] = {"findings": ["opacity", "edema"]}
    folder = ingested.folder / "labels_north"
    site["labels"]["file"] = folder.name
    folder.mkdir()
    (folder / "one.csv").write_text("file,opacity\na,1\nb,1\n")
    (folder / "two.csv").write_text("id,o,e\n7391846-1,0,y\n7391846-3,y,\n")
    labels = read_table(Labels, ingested.labels("north") / "labels.parquet")
    counts = Counter(zip(labels["finding"], map(plain, labels["label"]), labels["status"], strict=True))
    assert counts == {
        ("opacity", None, "conflicting"): 1,  # a, by its file and its patient
        ("opacity", 1, "given"): 2,
        ("opacity", None, "missing"): 1,
        ("edema", 1, "given"): 1,
        ("edema", None, "missing"): 3,
    }


def test_terms_are_written_and_hold_back_what_may_not_be_pushed(ingested):
    out = ingested.labels("north")
    terms = read_table(Terms, out / "terms.parquet").to_dict("records")
    assert terms == [{"site": "north", "origin": "", "licence": "", "redistribution": False, "citation": ""}]
    ingested.params["privacy"]["remote"] = None
    for run_it in (lambda: ingested.labels("north"), ingested.inventory):
        with pytest.raises(ParamsError, match=r"privacy\.remote: must be never, because the terms of site north \(no"):
            run_it()
    ingested.params["sites"]["north"] |= {"redistribution": True, "licence": "CC BY 3.0", "origin": "tcia"}
    (row,) = read_table(Terms, ingested.labels("north") / "terms.parquet").to_dict("records")
    assert (row["origin"], row["licence"], row["redistribution"]) == ("tcia", "CC BY 3.0", True)


# Three files, the second of two frames; a patient of two files.
INSTANCES = make_table(
    Instances,
    [
        {"image_id": f"i{n}", "source_id": source, "frame": frame, "patient_id": patient, "study_id": f"t{patient}",
         "series_id": series, "site": "a", "rows": 1, "columns": 1, "source_hmac": "x"}
        for n, source, frame, patient, series in [(0, "s0", 0, "p0", "e0"), (1, "s1", 0, "p0", "e1"),
                                                  (2, "s1", 1, "p0", "e1"), (3, "s2", 0, "p1", None)]
    ],
)  # fmt: skip
COPIES = {"s2copy": "s2"}
LEVELS = {"file": "source_id", "image": "image_id", "series": "series_id", "study": "study_id", "patient": "patient_id"}
VALUES = ["present", "absent", "uncertain", None]
TARGETS = [("file", t) for t in ("s0", "s1", "s2", "s2copy", "gone")] + [
    ("image", "i0"), ("image", "i1"), ("image", "gone"), ("series", "e1"), ("study", "tp0"), ("patient", "p0"),
    ("patient", "p1"),
]  # fmt: skip
FINDINGS = ["edema", "opacity"]
label_rows = st.builds(
    lambda target, labels, reader, date: LabelRow(target[1], target[0], labels, (), reader, date),
    st.sampled_from(TARGETS),
    st.dictionaries(st.sampled_from(FINDINGS), st.sampled_from(VALUES)),
    st.sampled_from([None, "x", "y"]),
    st.sampled_from([None, "2020-01-01", "20200102"]),
)


def settle_all(rows, params):
    found = collect_rows(rows, lambda row: (LEVELS[row.level], row.target), FINDINGS)
    matched = match_rows(found, INSTANCES, COPIES)
    labels, _ = label_images(matched, INSTANCES, params)
    readings = keep_readings(matched, INSTANCES, issuer="a", key=b"k")
    return make_table(Labels, labels), make_table(Readings, readings), matched.issues


def expected_labels(rows, params):
    """The same, image by image and row by row."""
    named = {"present": 1, "absent": 0, "missing": None}
    found = {}
    for image in INSTANCES.itertuples():
        about = {("file", image.source_id), ("series", image.series_id), ("study", image.study_id)}
        about |= {("patient", image.patient_id), ("image", {"s0": "i0", "s1": "i1", "s2": "i3"}[image.source_id])}
        about |= {("file", copy) for copy, kept in COPIES.items() if kept == image.source_id}
        alike = {("file", "s2copy"): ("file", "s2"), ("image", "i0"): ("file", "s0"), ("image", "i1"): ("file", "s1")}
        for finding in FINDINGS:
            said = {
                (alike.get((row.level, row.target), (row.level, row.target)), tuple(sorted(row.labels.items())),
                 row.reader, (row.date or "").replace("-", ""), row.labels[finding])
                for row in rows if (row.level, row.target) in about and finding in row.labels
            }  # fmt: skip
            votes = Counter(vote for *_, vote in said)
            if votes["present"] and votes["absent"]:
                status, label = "conflicting", named.get(params.conflict)
                if params.conflict == "majority" and votes["present"] != votes["absent"]:
                    label = int(votes["present"] > votes["absent"])
            elif votes["present"] or votes["absent"]:
                status, label = "given", int(votes["present"] > 0)
            elif votes["uncertain"]:
                status, label = "uncertain", named[params.uncertain]
            else:
                status, label = "missing", named[params.missing] if votes[None] else None
            found[image.image_id, finding] = (label, status)
    return found


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.lists(label_rows, max_size=12),
    params=st.builds(
        LabelsParams,
        findings=st.just(FINDINGS),
        uncertain=st.sampled_from(["missing", "present", "absent"]),
        missing=st.sampled_from(["missing", "absent"]),
        conflict=st.sampled_from(["missing", "present", "absent", "majority"]),
    ),
    seed=st.integers(0, 99),
)
def test_the_join_is_what_one_finds_row_by_row_in_any_order(rows, params, seed):
    labels, readings, issues = settle_all(rows, params)
    found = {
        (row.image_id, row.finding): (plain(row.label), row.status) for row in labels.itertuples()
    }  # fmt: skip
    assert found == expected_labels(rows, params)
    # Neither the order of rows nor a second copy of each is of account.
    shuffled = [rows[place % len(rows)] for place in np.random.default_rng(seed).permutation(2 * len(rows))]
    again = settle_all(shuffled, params)
    pd.testing.assert_frame_equal(again[0], labels)
    pd.testing.assert_frame_equal(again[1], readings)
    assert again[2]["duplicate_row"] == len(rows) + issues["duplicate_row"]


def test_split_tells_why_an_image_has_no_label():
    images = pd.DataFrame({"image_id": list("abcd"), "source_id": list("abcd"), "site": "x"})
    said = {"a": ["uncertain", "conflicting"], "b": ["missing", "uncertain"], "c": ["missing", "missing"]}
    labels = pd.DataFrame(
        [{"image_id": image, "status": status} for image, statuses in said.items() for status in statuses]
    )
    lost = {reason: list(frame["image_id"]) for reason, frame in without_label(images, labels).items()}
    assert lost == {"conflicting_label": ["a"], "uncertain_label": ["b"], "missing_label": ["c", "d"]}
