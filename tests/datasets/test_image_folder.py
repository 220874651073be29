"""A folder a class: what folders mean, who the patients are, and that neither is guessed."""

import pytest
from datasets.miniature import encode, grey, run, write

from pipeline.datasets import image_folder as adapter
from pipeline.errors import PipelineError
from pipeline.params import ParamsError, parse

NAME = "ZEBRAFELD"
PATTERN = r"person(?P<patient>\d+)"
ENTRY = {
    "adapter": "image_folder",
    "root": "chest",
    "patient": {"pattern": PATTERN},
    "labels": {
        "file": "manifests/mini.parquet",
        "columns": {
            "pneumonia": {"present": ["PNEUMONIA"], "absent": ["NORMAL"]},
            "abnormal": {"present": ["PNEUMONIA", "OTHER"], "absent": ["NORMAL"], "uncertain": ["DOUBT"]},
        },
    },
}
FILES = {
    "NORMAL/person1_1.png": encode(".png", grey(1)),
    "NORMAL/deep/er/person2_1.jpeg": encode(".jpg", grey(2)),
    "PNEUMONIA/person2_2.jpg": encode(".jpg", grey(3)),
    "PNEUMONIA/person3_1.PNG": encode(".png", grey(4, 16)),
    "OTHER/person4_1.png": encode(".png", grey(5)),
    "DOUBT/person5_1.png": encode(".png", grey(6)),
    "normal/person6_1.png": encode(".png", grey(7)),  # another case than the entry's
    "person7_1.png": encode(".png", grey(8)),
    f"NORMAL/{NAME}.png": encode(".png", grey(9)),
    "NORMAL/Thumbs.db": b"\xd0\xcf\x11\xe0",
    "NORMAL/person8.png": b"",
}


@pytest.fixture
def chest(study):
    write(study, {f"chest/{name}": data for name, data in FILES.items()})
    return study


def test_labels_are_the_folders(chest):
    outcome = run(chest, ENTRY, ["pneumonia", "abnormal"])
    labels = {name: (row["pneumonia"], row["abnormal"]) for name, row in outcome.labels.items()}
    assert labels == {
        "NORMAL/person1_1.png": (0, 0),
        "NORMAL/deep/er/person2_1.jpeg": (0, 0),
        "PNEUMONIA/person2_2.jpg": (1, 1),
        "PNEUMONIA/person3_1.PNG": (1, 1),
        "OTHER/person4_1.png": (None, 1),
        "DOUBT/person5_1.png": (None, None),
        "normal/person6_1.png": (None, None),
        "person7_1.png": (None, None),
    }
    assert outcome.refused == {f"NORMAL/{NAME}.png": "missing_required_tag", "NORMAL/Thumbs.db": "non_image_object",
                               "NORMAL/person8.png": "empty_file"}  # fmt: skip
    assert outcome.issues == {"uncertain_value": 1, "unknown_value": 2, "unknown_image": 3}
    patients = {name: row["patient_id"] for name, row in outcome.instances.items()}
    assert patients["NORMAL/deep/er/person2_1.jpeg"] == patients["PNEUMONIA/person2_2.jpg"]
    assert len(set(patients.values())) == 7
    assert NAME not in chest.told


def test_each_file_its_own_patient_only_where_somebody_says_so(chest):
    outcome = run(chest, {**ENTRY, "patient": "file"}, ["pneumonia"])
    assert len({row["patient_id"] for row in outcome.instances.values()}) == len(outcome.instances) == 9
    assert outcome.refused == {"NORMAL/Thumbs.db": "non_image_object", "NORMAL/person8.png": "empty_file"}
    without = {name: value for name, value in ENTRY.items() if name != "patient"}
    with pytest.raises(ParamsError, match=r"sites.mini.patient: required, but missing"):
        parse(adapter.Params, without, "sites.mini")


def test_patients_of_a_table(chest):
    rows = ["NORMAL/person1_1.png,p", "PNEUMONIA/person2_2.jpg,p", "OTHER/person4_1.png,q", "OTHER/person4_1.png,r"]
    write(chest, {"patients.csv": "\n".join(["path,subject", *rows]) + "\n"})
    table = {"file": "patients.csv", "key_column": "path", "patient_column": "subject"}
    outcome = run(chest, {**ENTRY, "patient": table}, ["pneumonia"])
    assert set(outcome.instances) == {"NORMAL/person1_1.png", "PNEUMONIA/person2_2.jpg"}
    assert len({row["patient_id"] for row in outcome.instances.values()}) == 1
    assert outcome.refused["OTHER/person4_1.png"] == "missing_required_tag"  # two patients of one file
    write(chest, {"patients.csv": "file,subject\n"})
    site = parse(adapter.Params, {**ENTRY, "patient": table}, "sites.mini")
    with pytest.raises(PipelineError, match="no column 'path' among its 2"):
        list(adapter.list_sources(site, chest.folder))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("person(", "not a regular expression"), (r"person(\d+)", r"must have a group \(\?P<patient>")],
)
def test_bad_patterns(pattern, expected):
    with pytest.raises(ParamsError, match=rf"sites.mini.patient.*pattern: {expected}"):
        parse(adapter.Params, {**ENTRY, "patient": {"pattern": pattern}}, "sites.mini")


def test_a_folder_means_one_thing_and_is_there(chest):
    columns = {"pneumonia": {"present": ["PNEUMONIA"], "absent": ["PNEUMONIA"]}}
    with pytest.raises(ParamsError, match=r"sites.mini.labels.columns: pneumonia: each folder .*\['PNEUMONIA'\]"):
        parse(adapter.Params, {**ENTRY, "labels": {"file": "x", "columns": columns}}, "sites.mini")
    columns = {"pneumonia": {"present": ["PNEUMONIAS"], "absent": ["NORMAL"]}}
    site = parse(adapter.Params, {**ENTRY, "labels": {"file": "x", "columns": columns}}, "sites.mini")
    with pytest.raises(ParamsError, match=r"no file lies in a folder 'PNEUMONIAS'; did you mean 'PNEUMONIA'\?"):
        list(adapter.read_labels(site, chest.folder))
    wrong_root = parse(adapter.Params, {**ENTRY, "root": "chest/NORMAL"}, "sites.mini")
    with pytest.raises(ParamsError, match=r"below chest/NORMAL no file lies in a folder 'DOUBT'$"):
        list(adapter.read_labels(wrong_root, chest.folder))


def test_terms_and_layout(tmp_path):
    terms = adapter.terms(parse(adapter.Params, {**ENTRY, "licence": "CC BY 4.0"}, "sites.mini"))
    assert (terms.origin, terms.licence, terms.redistribution) == ("", "CC BY 4.0", False)
    for name in ("a/x.png", "b/y.JPG"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    assert adapter.recognise(tmp_path) == {"adapter": "image_folder", "root": "."}
    assert adapter.recognise(tmp_path / "a") is None
    (tmp_path / "a/notes.txt").write_bytes(b"")
    assert adapter.recognise(tmp_path) is None
