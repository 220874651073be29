"""CheXpert's layout: patients and studies from paths, four kinds of cells, views as sites."""

import pytest
from datasets.miniature import encode, grey, recognised_by, run, write

from pipeline.datasets import chexpert as adapter
from pipeline.params import parse

ROOT = "CheXpert-v1.0-small"
ENTRY = {
    "adapter": "chexpert",
    "root": f"data/{ROOT}",
    "labels": {"file": f"data/{ROOT}/train.csv", "columns": {"edema": "Edema", "no_finding": "No Finding"}},
}
# path, sex, age, view, direction, edema, no finding
ROWS = [
    ("train/patient00001/study1/view1_frontal.jpg", "Female", "68", "Frontal", "AP", "", "1.0"),
    ("train/patient00002/study2/view1_frontal.jpg", "Male", "90", "Frontal", "PA", "1.0", ""),
    ("train/patient00002/study2/view2_lateral.jpg", "Male", "87", "Lateral", "", "1.0", ""),
    ("train/patient00002/study1/view1_frontal.jpg", "Unknown", "0", "Frontal", "AP", "-1.0", ""),
    ("train/patient00003/study1/view1_frontal.jpg", "Male", "41", "Frontal", "AP", "0.0", "maybe"),
    ("train/patient00004/study1/view1_frontal.jpg", "Male", "41", "Frontal", "AP", "0.0", ""),
    ("train/4711/view1_frontal.jpg", "Male", "41", "Frontal", "AP", "0.0", ""),
]
ABSENT, STRANGE = ROWS[5][0], ROWS[6][0]
UNLISTED = "train/patient00005/study1/view1_frontal.jpg"


@pytest.fixture
def chexpert(study):
    names = [row[0] for row in ROWS if row[0] != ABSENT]
    files = {f"data/{ROOT}/{name}": encode(".jpg", grey(n)) for n, name in enumerate([*names, UNLISTED])}
    rows = [
        ",".join(
            [
                f"{ROOT}/{row[0]}",
                *row[1:5],
                *({"Edema": row[5], "No Finding": row[6]}.get(f, "") for f in adapter.FINDINGS),
            ]
        )
        for row in ROWS
    ]
    header = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *adapter.FINDINGS])
    files[f"data/{ROOT}/train.csv"] = "\n".join([header, *rows]) + "\n"
    write(study, files)
    return study


def test_labels_facts_and_flaws(chexpert):
    outcome = run(chexpert, ENTRY, ["edema", "no_finding"])
    labels = {name: (row["edema"], row["no_finding"]) for name, row in outcome.labels.items()}
    assert labels == dict(zip((row[0] for row in ROWS[:5]),
                              [(None, 1), (1, None), (1, None), (None, None), (0, None)], strict=True))  # fmt: skip
    assert outcome.refused == {ABSENT: "unreadable", STRANGE: "missing_required_tag"}
    assert outcome.issues == {"uncertain_value": 1, "unknown_value": 1, "unknown_image": 2}
    facts = [[outcome.instances[row[0]][name] for name in ("sex", "age_years", "view_position")] for row in ROWS[:4]]
    assert facts == [["F", 68, "ap"], ["M", 90, "pa"], ["M", 87, "lateral"], [None, 0, "ap"]]
    assert len({outcome.instances[row[0]]["patient_id"] for row in ROWS[1:4]}) == 1
    assert len({outcome.instances[row[0]]["study_id"] for row in ROWS[1:4]}) == 2
    row = outcome.instances[ROWS[0][0]]
    assert (row["rows"], row["columns"], row["transfer_syntax"], row["lossy"]) == (20, 30, "jpeg", True)
    assert "patient0000" not in chexpert.told


@pytest.mark.parametrize(("view", "number"), [("frontal", 6), ("lateral", 1), ("AP", 5), ("PA", 1), (None, 7)])
def test_views(chexpert, view, number):
    site = parse(adapter.Params, {**ENTRY, "view": view}, "sites.mini")
    sources = list(adapter.list_sources(site, chexpert.folder))
    assert len(sources) == number
    assert [s.relative for s in sources] == sorted(row.target for row in adapter.read_labels(site, chexpert.folder))


def test_terms_and_layout(chexpert):
    assert recognised_by(chexpert.folder / "data" / ROOT) == ["chexpert"]
    proposal = adapter.recognise(chexpert.folder / "data" / ROOT)
    site = parse(adapter.Params, proposal, "sites.mini")
    assert site.labels.columns["pleural_other"] == "Pleural Other"
    assert len(list(adapter.list_sources(site, chexpert.folder / "data" / ROOT))) == 7
    assert adapter.recognise(chexpert.folder / "data") is None
    (chexpert.folder / "data" / ROOT / "train.csv").write_text("file,label\n")
    assert adapter.recognise(chexpert.folder / "data" / ROOT) is None
    assert (adapter.terms(site).origin, adapter.terms(site).redistribution) == ("chexpert", False)
