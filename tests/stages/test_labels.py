"""Every flaw of a label file is counted or told, and a corrected one rereads no DICOM."""

import pytest
from stages.study import NAME, picture

from pipeline.errors import PipelineError
from pipeline.tables import Instances, LabelIssues, Labels, read_table


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
