"""MIMIC-CXR's layout: labels of a study reach the files that the metadata lists for it, through gzipped tables."""

import gzip

import pytest
from datasets.miniature import grey, recognised_by, run, write
from minimal import content, dataset

from pipeline.datasets import mimic_cxr as adapter
from pipeline.errors import PipelineError
from pipeline.params import ParamsError, parse

METADATA, CHEXPERT = "mimic/mimic-cxr-2.0.0-metadata.csv.gz", "mimic/mimic-cxr-2.0.0-chexpert.csv.gz"
ENTRY = {
    "adapter": "mimic_cxr",
    "root": "mimic/files",
    "metadata": METADATA,
    "labels": {"file": CHEXPERT, "columns": {"edema": "Edema", "pneumonia": "Pneumonia"}},
}
# dicom_id, subject, study, view
FILES = [
    ("02aa804e-bde0afdd", "10000032", "50414267", "AP"),
    ("174413ec-4ec4c1f7", "10000032", "50414267", "LATERAL"),
    ("2a2277a9-b0ded155", "10000032", "53189527", "AP"),
    ("68b5c4b1-227d0485", "11000764", "57375967", "PA"),
    ("8959e402-2175d68d", "11000764", "59999999", "LATERAL"),
    ("deadbeef-00000000", "11000764", "57375967", "AP"),
]
ABSENT, UNLISTED = FILES[-1], ("feedface-11111111", "11000764", "57375967", "AP")
STUDIES = {
    ("10000032", "50414267"): ("1.0", "0.0"),
    ("10000032", "53189527"): ("-1.0", ""),
    ("11000764", "57375967"): ("0.0", "2.0"),
    ("11000764", "59999999"): ("1.0", "1.0"),
    ("12000000", "51111111"): ("1.0", "1.0"),  # not in the metadata
}


def path(dicom_id, subject, study, view):
    del view
    return f"p{subject[:2]}/p{subject}/s{study}/{dicom_id}.dcm"


def dicom(number, subject, study):
    """The study's UID is not made of its number: only the folder and the tables know that."""
    uids = {"SOPInstanceUID": f"2.25.1{number}", "StudyInstanceUID": f"2.25.2{int(study) % 977}"}
    return content(dataset(grey(number, 16), PatientID=subject, StudyDate="21800506", **uids))


@pytest.fixture
def mimic(study):
    present = [*FILES[:-1], UNLISTED]
    files = {f"mimic/files/{path(*file)}": dicom(n, file[1], file[2]) for n, file in enumerate(present)}
    header = (
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
        "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
    )
    rows = [f'{d},{u},{s},"CHEST (PA AND LAT)",{v},20,30,21800506,213014.5,,,Erect' for d, u, s, v in FILES]
    files[METADATA] = "\n".join([header, *rows]) + "\n"
    rows = [
        ",".join(
            [*key, *(dict(zip(("Edema", "Pneumonia"), cells, strict=True)).get(name, "") for name in adapter.FINDINGS)]
        )
        for key, cells in STUDIES.items()
    ]
    files[CHEXPERT] = "\n".join([",".join(["subject_id", "study_id", *adapter.FINDINGS]), *rows]) + "\n"
    write(study, files)
    return study


def test_a_studys_labels_reach_its_files(mimic):
    outcome = run(mimic, ENTRY, ["edema", "pneumonia"])
    labels = {name: (row["edema"], row["pneumonia"]) for name, row in outcome.labels.items()}
    assert labels == {
        path(*FILES[0]): (1, 0),
        path(*FILES[1]): (1, 0),
        path(*FILES[2]): (None, None),
        path(*FILES[3]): (0, None),
        path(*FILES[4]): (1, 1),
    }
    assert outcome.refused == {path(*ABSENT): "unreadable"}
    # of the study with the file that is absent: a row for it as well, and its unknown value twice
    assert outcome.issues == {"uncertain_value": 1, "unknown_value": 2, "unknown_image": 2}
    assert len({row["patient_id"] for row in outcome.instances.values()}) == 2
    assert len({row["study_id"] for row in outcome.instances.values()}) == 4


def test_what_is_uncertain_and_what_is_not_mentioned_are_policies(mimic):
    name = path(*FILES[2])
    assert run(mimic, ENTRY, ["edema", "pneumonia"], uncertain="present").labels[name] == {
        "edema": 1,
        "pneumonia": None,
    }
    assert run(mimic, ENTRY, ["edema", "pneumonia"], missing="absent").labels[name] == {"edema": None, "pneumonia": 0}


def test_a_view_is_a_site(mimic):
    outcome = run(mimic, {**ENTRY, "view_position": "LATERAL"}, ["edema", "pneumonia"])
    assert outcome.labels == {
        path(*FILES[1]): {"edema": 1, "pneumonia": 0},
        path(*FILES[4]): {"edema": 1, "pneumonia": 1},
    }
    assert outcome.issues == {"unknown_image": 1}  # studies without this view are another site's, no flaw


def test_tables_may_be_unpacked_and_negbios(mimic):
    for name, plain in ((METADATA, "metadata.csv"), (CHEXPERT, "negbio.csv")):
        text = gzip.decompress((mimic.folder / name).read_bytes())
        (mimic.folder / f"mimic/mimic-cxr-2.0.0-{plain}").write_bytes(text)
    tables = {"metadata": "mimic/mimic-cxr-2.0.0-metadata.csv",
              "labels": {**ENTRY["labels"], "file": "mimic/mimic-cxr-2.0.0-negbio.csv"}}  # fmt: skip
    assert run(mimic, {**ENTRY, **tables}, ["edema"]).labels[path(*FILES[0])] == {"edema": 1}


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-30], lambda data: b"not gzip" + data, lambda data: data[:40] + b"x" * 40]
)
def test_a_damaged_table_is_an_error_that_names_it(mimic, damage):
    file = mimic.folder / METADATA
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(PipelineError, match=r"metadata.csv.gz: not a readable CSV"):
        list(adapter.list_sources(parse(adapter.Params, ENTRY, "sites.mini"), mimic.folder))


def test_params_terms_and_layout(mimic):
    with pytest.raises(ParamsError, match=r"sites.mini.view_position: .*'LATERAL'.*got 'lateral'"):
        parse(adapter.Params, {**ENTRY, "view_position": "lateral"}, "sites.mini")
    assert recognised_by(mimic.folder / "mimic") == ["mimic_cxr"]
    proposal = adapter.recognise(mimic.folder / "mimic")
    site = parse(adapter.Params, proposal, "sites.mini")
    assert site.labels.columns["enlarged_cardiomediastinum"] == "Enlarged Cardiomediastinum"
    assert len(list(adapter.list_sources(site, mimic.folder / "mimic"))) == 6
    assert adapter.recognise(mimic.folder) is None
    assert (adapter.terms(site).origin, adapter.terms(site).redistribution) == ("mimic_cxr", False)
