"""RSNA Pneumonia's layout: boxes as rows, secondary captures in JPEG, classes; as its own headers are."""

import numpy as np
import pytest
from datasets.miniature import encode, grey, recognised_by, run, write
from minimal import content, dataset, spread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage

from pipeline.datasets import rsna_pneumonia as adapter
from pipeline.dicom.headers import IngestParams
from pipeline.errors import PipelineError
from pipeline.params import ParamsError, parse

ENTRY = {
    "adapter": "rsna_pneumonia",
    "root": "rsna/stage_2_train_images",
    "labels": {"file": "rsna/stage_2_train_labels.csv", "columns": {"pneumonia": "Target"}},
}
CLASS_ENTRY = {
    **ENTRY,
    "labels": {
        "file": "rsna/stage_2_detailed_class_info.csv",
        "columns": {"pneumonia": "Lung Opacity", "normal": "Normal"},
    },
}
IDS = {letter: f"0004cfab-14fd-4e49-80ba-63a80b6bddd{letter}" for letter in "abcdefg"}


def dicom(number: int, patient: str) -> bytes:
    """As the challenge's files are: PatientAge without a unit, one StudyDate for everybody."""
    image = grey(number)
    made = dataset(
        image, JPEGBaseline8Bit, SOPClassUID=SecondaryCaptureImageStorage, BitsStored=8, Modality="CR",
        SOPInstanceUID=f"1.2.276.0.7230010.3.1.4.8323329.{number}", SeriesInstanceUID=f"1.2.276.3.{number}",
        StudyInstanceUID=f"1.2.276.0.7230010.3.1.2.8323329.{number}", StudyDate="19010101", ConversionType="WSD",
        PatientName=patient, PatientID=patient, PatientBirthDate="", PatientSex="F", PatientAge="51",
        BodyPartExamined="CHEST", ViewPosition="PA", PixelData=encapsulate([encode(".jpg", image)]),
        LossyImageCompression="01",
    )  # fmt: skip
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    return content(made)


@pytest.fixture
def rsna(study):
    files = {f"rsna/stage_2_train_images/{IDS[x]}.dcm": dicom(ord(x), IDS[x]) for x in "abcde"}
    files[f"rsna/stage_2_train_images/{IDS['f']}.DCM"] = dicom(ord("f"), IDS["f"])
    rows = [
        *(f"{IDS['a']},{x},152.0,213.0,379.0,1" for x in (264.0, 562.0)),
        f"{IDS['b']},,,,,0",
        f"{IDS['c']},,,,,",
        *(f"{IDS['d']},,,,,{target}" for target in (0, 1)),
        f"{IDS['f']},,,,,1",
        f"{IDS['g']},,,,,0",
    ]
    files["rsna/stage_2_train_labels.csv"] = "\n".join(["patientId,x,y,width,height,Target", *rows]) + "\n"
    classes = {"a": "Lung Opacity", "b": "Normal", "c": "No Lung Opacity / Not Normal", "d": "lung opacity"}
    rows = [f"{IDS[x]},{name}" for x, name in classes.items()]
    files["rsna/stage_2_detailed_class_info.csv"] = "\n".join(["patientId,class", rows[0], *rows]) + "\n"
    write(study, files)
    return study


def test_boxes_become_one_label_an_image(rsna):
    outcome = run(rsna, ENTRY, ["pneumonia"], ingest={"secondary_capture": "keep"})
    labels = {x: outcome.labels[f"{IDS[x]}.dcm"]["pneumonia"] for x in "abcde"}
    assert labels == {"a": 1, "b": 0, "c": None, "d": None, "e": None}
    assert outcome.labels[f"{IDS['f']}.DCM"] == {"pneumonia": None}
    # the two boxes of a are no flaw; d contradicts itself; f is another name than the file's, g is no file
    assert outcome.issues == {"conflicting_rows": 1, "unknown_image": 2}
    row = outcome.instances[f"{IDS['a']}.dcm"]
    assert (row["sex"], row["age_years"], row["view_position"], row["body_part"]) == ("F", None, "pa", "chest")
    assert len({row["patient_id"] for row in outcome.instances.values()}) == 6


def test_classes(rsna):
    outcome = run(rsna, CLASS_ENTRY, ["pneumonia", "normal"], ingest={"secondary_capture": "keep"})
    found = {x: outcome.labels[f"{IDS[x]}.dcm"] for x in "abcd"}
    labels = {x: (row["pneumonia"], row["normal"]) for x, row in found.items()}
    assert labels == {"a": (1, 0), "b": (0, 1), "c": (0, 0), "d": (None, None)}
    assert outcome.issues == {"unknown_value": 1}


def test_its_captures_are_a_persons_decision(rsna):
    with pytest.raises(PipelineError, match=r"none of 6 files can be used: \{'burned_in_annotation': 6\}"):
        run(rsna, ENTRY, ["pneumonia"])


def test_pixels_are_the_jpeg_files(rsna):
    (image,) = adapter.read_images(dicom(97, IDS["a"]), [0], IngestParams())
    image = spread(image)
    assert image.values.shape == (20, 30)
    assert np.abs(image.values - grey(97)).mean() < 12  # noise, coded with loss


def test_target_and_classes_are_of_two_files():
    entry = {**CLASS_ENTRY, "labels": {"file": "x.csv", "columns": {"pneumonia": "Target", "normal": "Normal"}}}
    with pytest.raises(ParamsError, match=r"sites.rsna.labels: Target and the classes stand in two files"):
        parse(adapter.Params, entry, "sites.rsna")
    entry["labels"]["columns"] = {"pneumonia": "target"}
    with pytest.raises(ParamsError, match=r"sites.rsna.labels.columns.pneumonia: .*'Target'.*got 'target'"):
        parse(adapter.Params, entry, "sites.rsna")


def test_terms_and_layout(rsna):
    assert recognised_by(rsna.folder / "rsna") == ["rsna_pneumonia"]
    proposal = adapter.recognise(rsna.folder / "rsna")
    site = parse(adapter.Params, proposal, "sites.rsna")
    assert (site.root, site.labels.file) == ("stage_2_train_images", "stage_2_train_labels.csv")
    assert adapter.recognise(rsna.folder) is None
    assert adapter.terms(site).origin == "chestxray14"
