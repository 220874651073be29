"""init: a study is the root's graph but for one line, with a DVC of its own; its params from looking at folders."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
from stages.study import NAME, SECRETS, picture

from pipeline import protocol
from pipeline.commands import init, inventory
from pipeline.commands.init import study_graph
from pipeline.datasets.registry import load_site
from pipeline.errors import PipelineError
from pipeline.key import KEY_FILE, KEY_VARIABLE
from pipeline.params import ParamsError, load_params, read_params_file
from pipeline.splits import SplitParams
from pipeline.stages import ingest, labels, preprocess, split
from pipeline.stages.labels import LabelsParams
from pipeline.tables.contract import read_table
from pipeline.tables.labels import LabelIssues, Labels

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc/config")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_and_what_stays_on_a_second_call(checkout, monkeypatch, capsys):
    tiny.call(monkeypatch, init, "ward_7")
    study = checkout / "studies/ward_7"
    root, own = ((folder / "dvc.yaml").read_text().splitlines() for folder in (checkout, study))
    assert len(root) == len(own)
    assert [(a, b) for a, b in zip(root, own, strict=True) if a != b] == [
        ('vars: [{code: ""}]', "vars: [{code: ../../}]")
    ]
    config = configparser.ConfigParser()
    config.read_string("\n".join(line.strip() for line in (study / ".dvc/config").read_text().splitlines()))
    assert (study / ".dvc" / config["cache"]["dir"]).resolve() == checkout / ".dvc/cache"
    assert config["core"]["analytics"] == "false"
    assert config["core"]["autostage"] == "false"
    assert config["'remote \"never\"'"]["url"].startswith("/dev/null/")
    assert (study / ".dvcignore").read_bytes() == (checkout / ".dvcignore").read_bytes()
    # as the demo's: nothing declared, in words
    assert (study / "protocol.yaml").read_bytes() == (ROOT / "protocol.yaml").read_bytes()
    assert protocol.load_protocol(study / "protocol.yaml", {}) is None
    told = capsys.readouterr().out
    assert "now write studies/ward_7/params.yaml" in told
    assert "make study STUDY=ward_7" in told
    # a second call brings the graph up to date and leaves what is the person's
    (study / "params.yaml").write_text("sites: {}\n")
    (study / ".dvcignore").write_text("mine\n")
    (study / "dvc.yaml").write_text("old\n")
    tiny.call(monkeypatch, init, "ward_7")
    assert (study / "params.yaml").read_text() == "sites: {}\n"
    assert (study / ".dvcignore").read_text() == "mine\n"
    assert (study / "dvc.yaml").read_text().splitlines() == own
    assert "now write" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../evil", "a/b", "Ward7", "7th", "ward-7", "", "."])
def test_a_name_that_is_no_name_makes_nothing(checkout, monkeypatch, name):
    with pytest.raises(ParamsError, match="the study's name must match"):
        tiny.call(monkeypatch, init, name)
    assert not (checkout / "studies").exists()


def test_outside_the_root_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match="run this in the root of the checkout"):
        tiny.call(monkeypatch, init, "ward_7")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_without_the_line_is_refused():
    with pytest.raises(PipelineError, match="expected the line"):
        study_graph("stages: {}\n")


def hospital(folder, site, table, patients=24, **elements):
    """A folder of files under names of their own, and a table beside it; both full of identifiers."""
    for patient in range(patients):
        path = folder / f"raw/{NAME}_{patient % 3}/{patient}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(site, patient, **elements))
    (folder / "raw/notes.txt").write_text("no image")
    lines = [table.splitlines()[0]]
    for patient in range(patients):
        names = {"n": patient, "name": NAME, "file": f"export/{NAME}_{patient % 3}/{patient}", "bit": patient % 2,
                 "study": f"2.25.9999{len(site)}2{patient:04d}", "word": ["Yes", "No"][patient % 2]}  # fmt: skip
        lines.append(table.splitlines()[1].format(**names))
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def look(checkout, monkeypatch, capsys, *folders):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    (checkout / "studies/ward_7/.dvc").mkdir(parents=True, exist_ok=True)  # as if it had a DVC: making one takes long
    tiny.call(monkeypatch, init, "ward_7", *[part for folder in folders for part in ("--from", folder)])
    told = capsys.readouterr()
    assert not any(secret in told.out + told.err for secret in (*SECRETS, "QUINTESSA"))
    return checkout / "studies/ward_7/params.yaml", told.out


def test_from_two_folders_to_a_split(checkout, monkeypatch, capsys):
    hospital(checkout / "north", "north", "age;path;Opaque;sex;reader\n{n};{file};{bit};f;{name}")
    hospital(checkout / "east", "east", "StudyUID,opaque,row\n{study},{word},{n}", Modality="CT")
    params, told = look(checkout, monkeypatch, capsys, "north=north/raw", checkout / "east")
    assert "24 of 25 files looked at are DICOM images; 1 of 1 CSV files name them, the one taken 100%" in told
    tree = read_params_file(params)
    assert tree["sites"]["north"] == {
        "adapter": "dicom_folder",
        "root": "../../north/raw",
        "labels": {
            "file": "../../north/list.csv", "key": "file", "key_column": "path", "prefix": "export/",
            "columns": {"opaque": "Opaque"}, "present": ["1"], "absent": ["0"],
        },
    }  # fmt: skip
    east = tree["sites"]["east"]["labels"]
    assert tree["sites"]["east"]["root"] == str(checkout / "east")
    assert (east["key"], east["key_column"], east["present"]) == ("study_instance_uid", "StudyUID", ["Yes"])
    assert tree["labels"]["findings"] == ["opaque"]
    assert tree["preprocess"]["voi"] == "header"  # two modalities
    assert tree["privacy"]["remote"] == "never"
    assert "FILL_IN" not in params.read_text().partition("\n")[2]
    assert (params.parent / KEY_FILE).stat().st_mode & 0o077 == 0
    assert read_params_file(checkout / "params.yaml").keys() - {"simulate"} <= tree.keys()

    out = checkout / "out"
    tiny.call(monkeypatch, inventory, params=params, out=out / "manifests")
    for site in ("north", "east"):
        manifest = out / f"manifests/{site}.parquet"
        tiny.call(monkeypatch, ingest, params=params, site=site, manifest=manifest, out=out / "ingest" / site)
        places = {"ingest": out / "ingest" / site}
        tiny.call(monkeypatch, labels, params=params, site=site, **places, out=out / "labels" / site)
        places["manifest"] = manifest
        tiny.call(monkeypatch, preprocess, params=params, site=site, **places, out=out / "preprocess" / site)
        assert read_table(Labels, out / f"labels/{site}/labels.parquet")["label"].notna().sum() == 24
        assert len(read_table(LabelIssues, out / f"labels/{site}/issues.parquet")) == 0
    places = {"ingest": out / "ingest", "images": out / "preprocess", "labels": out / "labels"}
    tiny.call(monkeypatch, split, params=params, **places, ledger=out / "splits.csv", out=out / "split")


def test_what_is_not_known_is_marked(checkout, monkeypatch, capsys):
    # Three kinds: a table of others, one whose columns are no findings, one without a header.
    for name, table in {
        "none": "id,opaque\n{n}x,{bit}", "kinds": "file,kind\n{file},{name}{bit}",
        "headless": f"export/{NAME}_0/0,1\n{{file}},{{bit}}",
    }.items():  # fmt: skip
        hospital(checkout / name, "north", table, patients=6, Modality="CT")
    params, _ = look(checkout, monkeypatch, capsys, *(f"{name}={name}/raw" for name in ("none", "kinds", "headless")))
    text = params.read_text()
    assert not any(secret in text for secret in SECRETS)
    tree = read_params_file(params)
    assert tree["labels"]["findings"] == ["fill_in"]
    assert tree["preprocess"]["voi"] == "soft_tissue"
    for name in ("none", "headless"):
        assert tree["sites"][name]["labels"]["file"].endswith("FILL_IN.csv")
    assert tree["sites"]["kinds"]["labels"] == {
        "file": "../../kinds/list.csv", "key": "file", "key_column": "file", "prefix": "export/",
        "columns": {"finding": "FILL_IN"},
    }  # fmt: skip
    assert "findings perhaps: kind\n" in text
    # What is written is valid as it is, so that what is left to fill in is told where it is used.
    for name in tree["sites"]:
        load_site(name, params)
    load_params(LabelsParams, "labels", params)
    load_params(SplitParams, "split", params)
    with pytest.raises(PipelineError, match="stays as it is"):
        look(checkout, monkeypatch, capsys, "kinds/raw")
    assert params.read_text() == text


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["empty"], "empty is in no known layout"),
        (["7=empty"], "give NAME=FOLDER"),
        (["a=empty", "a=empty"], "give NAME=FOLDER"),
    ],
)
def test_folders_of_which_nothing_is_made(checkout, monkeypatch, given, wrong):
    (checkout / "empty").mkdir()
    with pytest.raises(PipelineError, match=wrong):
        tiny.call(monkeypatch, init, "ward_7", *[part for folder in given for part in ("--from", folder)])
    assert not (checkout / "studies").exists()


def test_real_folders(checkout, monkeypatch, capsys, shared):
    data = shared / "data"
    folders = [
        data / "ct_contrast/siemens/dicom",
        f"ge={data / 'ct_contrast/ge'}",
        f"cxr={data / 'chestxray14_subset'}",
    ]
    params, told = look(checkout, monkeypatch, capsys, *folders)
    tree = read_params_file(params)["sites"]
    assert tree["dicom"]["labels"]["prefix"] == "dicom/"
    assert tree["dicom"]["labels"]["columns"] == tree["ge"]["labels"]["columns"] == {"contrast": "contrast"}
    assert tree["cxr"]["adapter"] == "chestxray14"
    assert tree["cxr"]["labels"]["columns"]["pneumonia"] == "Pneumonia"
    assert "67 of 67 files" in told
    for site in tree:
        adapter, entry = load_site(site, params)
        assert sum(1 for _ in adapter.list_sources(entry, params.parent)) in (67, 34, 999)
        assert sum(1 for _ in adapter.read_labels(entry, params.parent)) in (67, 33, 999)
