"""VinDr-CXR's layout: headers without a UID or a patient, three readers an image, and a consensus."""

import warnings

import pytest
from datasets.miniature import grey, recognised_by, run, write
from minimal import content, dataset

from pipeline.datasets import vindr_cxr as adapter
from pipeline.params import parse

TRAIN = {
    "adapter": "vindr_cxr",
    "root": "vindr/train",
    "labels": {
        "file": "vindr/annotations/image_labels_train.csv",
        "columns": {"edema": "Edema", "nodule_mass": "Nodule/Mass"},
    },
}
TEST = {**TRAIN, "root": "vindr/test", "labels": {**TRAIN["labels"], "file": "vindr/annotations/image_labels_test.csv"}}
IDS = {x: f"{ord(x):x}" * 16 for x in "abcdefg"}
REMOVED = dict.fromkeys(
    ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "PatientName", "PatientID",
     "PatientBirthDate", "Modality")
)  # fmt: skip


def dicom(image_id: str, number: int, **elements) -> bytes:
    """What the owners' script leaves of a header; it puts the name of the image into the file meta."""
    made = dataset(grey(number, 16), **{**REMOVED, "PatientSex": "M", "PatientAge": "061Y", **elements})
    made.file_meta.ImplementationClassUID = "1.2.3.4"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no UID
        made.file_meta.MediaStorageSOPInstanceUID = image_id
    return content(made)


@pytest.fixture
def vindr(study):
    files = {f"vindr/train/{IDS[x]}.dicom": dicom(IDS[x], ord(x)) for x in "abcd"}
    files["vindr/train/copy of a.dicom"] = dicom(IDS["a"], 1)
    files[f"vindr/test/{IDS['f']}.dicom"] = dicom(IDS["f"], 6)
    header = ["image_id", "rad_id", *adapter.FINDINGS]
    readings = {  # reader: edema, nodule or mass
        "a": {"R9": "11", "R10": "10", "R8": "10"},
        "b": {"R1": "00", "R2": "00", "R3": "00"},
        "c": {"R1": "1 ", "R2": "10", "R3": "1?"},
        "g": {"R1": "11"},  # an image that is not there
    }
    rows = [
        ",".join(
            [IDS[x], reader, *({"Edema": cells[0], "Nodule/Mass": cells[1]}.get(f, "0").strip() for f in header[2:])]
        )
        for x, by_reader in readings.items()
        for reader, cells in by_reader.items()
    ]
    files["vindr/annotations/image_labels_train.csv"] = "\n".join([",".join(header), *rows]) + "\n"
    header = ["image_id", *(name.replace("Other diseases", "Other disease") for name in adapter.FINDINGS)]
    cells = ["1" if name == "Edema" else "0" for name in header[1:]]
    files["vindr/annotations/image_labels_test.csv"] = (
        "\n".join([",".join(header), ",".join([IDS["f"], *cells])]) + "\n"
    )
    write(study, files)
    return study


def test_readers_are_kept(vindr):
    site = parse(adapter.Params, TRAIN, "sites.mini")
    rows = list(adapter.read_labels(site, vindr.folder))
    assert [(row.target, row.reader, row.level) for row in rows[:3]] == [
        (f"{IDS['a']}.dicom", reader, "file") for reader in ("R9", "R10", "R8")
    ]
    assert [row.labels for row in rows[:2]] == [
        {"edema": "present", "nodule_mass": "present"},
        {"edema": "present", "nodule_mass": "absent"},
    ]
    assert [(row.labels.get("nodule_mass", "unknown"), row.issues) for row in rows[6:9]] == [
        (None, ()), ("absent", ()), ("unknown", ("unknown_value",)),
    ]  # fmt: skip


def test_images_without_a_uid(vindr):
    outcome = run(vindr, TRAIN, ["edema", "nodule_mass"], conflict="majority")
    labels = {x: tuple(outcome.labels[f"{IDS[x]}.dicom"][f] for f in ("edema", "nodule_mass")) for x in "abcd"}
    assert labels == {"a": (1, 0), "b": (0, 0), "c": (1, 0), "d": (None, None)}
    assert outcome.readers == 6
    assert outcome.refused == {"copy of a.dicom": "missing_required_tag"}
    assert outcome.issues["unknown_image"] == 1
    rows = list(outcome.instances.values())
    # each image its own patient and study, as the adapter says
    assert len({row["patient_id"] for row in rows}) == len({row["study_id"] for row in rows}) == len(rows) == 4
    row = rows[0]
    assert (row["sex"], row["age_years"], row["view_position"], row["series_id"], row["day"]) == (
        "M",
        61,
        "pa",
        None,
        None,
    )
    assert row["sop_class_uid"] == "1.2.840.10008.5.1.4.1.1.1.1"  # the file meta's
    assert not any(name in repr(rows) for name in IDS.values())


def test_consensus_has_no_reader(vindr):
    site = parse(adapter.Params, TEST, "sites.mini")
    (row,) = adapter.read_labels(site, vindr.folder)
    assert (row.labels, row.reader) == ({"edema": "present", "nodule_mass": "absent"}, None)
    outcome = run(vindr, TEST, ["edema"])
    assert outcome.readers == 0
    assert outcome.labels == {f"{IDS['f']}.dicom": {"edema": 1}}


def test_one_image_at_two_sites_has_one_pseudonym(vindr):
    name = f"{IDS['a']}.dicom"
    first = run(vindr, TRAIN, ["edema"]).instances[name]
    write(vindr, {f"vindr/test/{name}": dicom(IDS["a"], ord("a"))})
    second = run(vindr, TEST, ["edema"]).instances[name]
    assert (first["image_id"], first["patient_id"]) == (second["image_id"], second["patient_id"])


def test_a_header_that_has_its_identifiers_keeps_them(vindr):
    """Only what is missing is taken from the name."""
    write(vindr, {f"vindr/test/{IDS[x]}.dicom": dicom(IDS[x], ord(x), PatientID="4711") for x in "fg"})
    rows = run(vindr, TEST, ["edema"]).instances.values()
    assert len({row["patient_id"] for row in rows}) == 1
    assert len({row["image_id"] for row in rows}) == 2


def test_terms_and_layout(vindr):
    assert recognised_by(vindr.folder / "vindr") == ["vindr_cxr"]
    proposal = adapter.recognise(vindr.folder / "vindr")
    site = parse(adapter.Params, proposal, "sites.mini")
    assert site.labels.columns["nodule_mass"] == "Nodule/Mass"
    assert len(list(adapter.read_labels(site, vindr.folder / "vindr"))) == 10
    assert adapter.recognise(vindr.folder) is None
    assert (adapter.terms(site).origin, adapter.terms(site).redistribution) == ("vindr_cxr", False)
