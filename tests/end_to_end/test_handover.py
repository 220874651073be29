"""A model leaves its study: in a folder that holds the bundle alone it says of renamed files what the study said."""

import json
import os
import random
import shutil
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from end_to_end.project import BACKBONE, Project, site
from pydicom.uid import generate_uid

from pipeline.commands import apply
from pipeline.errors import PipelineError
from pipeline.handover import card
from pipeline.key import KEY_FILE
from pipeline.stages import bundle
from pipeline.tables.contract import read_table
from pipeline.tables.files import Exclusions, Instances
from pipeline.tables.handover import Applied, Refused
from pipeline.tables.predictions import Predictions
from pipeline.training.checkpoints import file_sha256

RUN = f"{BACKBONE}-full_finetune-seed1"
TO_THE_ARRAYS = ("simulate", "ingest", "labels", "preprocess", "split", "gather")
TO_THE_BUNDLE = ("features", "choice", "search", "baseline", "finetune", "predict", "evaluate", "bundle")
CHOICE = {"backbone": BACKBONE, "method": "full_finetune", "seed": 1, "undecided": 0.25, "accept": {"modality": ["cr"]}}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two small hospitals (DX and CR) up to the bundle; the stages run in this process."""
    made = Project.create(tmp_path_factory.mktemp("handover"))
    params = made.params
    params["sites"] = {"home": site("home"), "away": site("away", vendor="BETA", model="CR2")}
    params["methods"] = {"full_finetune": {"learning_rate": 1e-3}, "scratch": {"learning_rate": 1e-3}}
    params["finetune"] |= {"seeds": [1]}
    params["evaluate"]["subgroups"] = ["sex"]
    params["handover"] = {"opacity": CHOICE}
    params["report"]["min_cell"] = 3
    made.params = params
    made.run("pipeline.commands.fetch_weights")
    with pytest.MonkeyPatch.context() as patch:
        made.run_here(patch, *TO_THE_ARRAYS, *TO_THE_BUNDLE)
    return made


@pytest.fixture(scope="module")
def raw(project, tmp_path_factory):
    """All files of both hospitals, shuffled into other folders under other names."""
    folder, draw = tmp_path_factory.mktemp("raw"), random.Random(1)
    for name in ("home", "away"):
        for path in sorted((project.folder / f"data/cohort/{name}/archive").rglob("*")):
            if path.is_file():
                place = folder / f"ZEBRAFELD{draw.randrange(3)}" / str(draw.randrange(3))
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place / f"{draw.getrandbits(64):x}")
    return folder


@pytest.fixture
def alone(project, tmp_path, monkeypatch):
    """A folder that holds the bundle and nothing else of the study."""
    shutil.copytree(project.folder / "data/bundle/opacity", tmp_path / "elsewhere/opacity")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def call(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["apply", "--model", "opacity", "--workers", "1", *map(str, options)])
    apply.main()


def few(raw, folder, number):
    """A folder with that many readable files, as data sets to change."""
    folder.mkdir()
    found = []
    for path in sorted(raw.rglob("*")):
        if path.is_file() and path.read_bytes()[128:132] == b"DICM" and len(found) < number:
            try:
                made = pydicom.dcmread(path)
                if (
                    made.PixelData
                    and made.PatientID
                    and "BurnedInAnnotation" in made
                    and made.BurnedInAnnotation == "NO"
                ):
                    found.append((folder / f"{len(found)}.dcm", made))
            except (AttributeError, OSError):
                continue
    return found


def tables(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return pd.read_csv(out), pd.read_csv(out.with_name(f"{out.stem}.refused.csv"), keep_default_na=False)


@pytest.fixture(scope="module")
def applied(project, raw, tmp_path_factory):
    """The command on all files, once: its folder, with the study's tables out of the way."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(project.folder / "data/bundle/opacity", folder / "opacity")
    hidden = project.folder.with_name("hidden")
    (project.folder / "data").rename(hidden)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            options = ["--key", "public", "--lookup", "../lookup.csv", "--arrays", "arrays"]
            call(patch, "--input", raw, "--out", "out/new.csv", *options)
    finally:
        hidden.rename(project.folder / "data")
    return folder


def test_it_says_of_renamed_files_what_the_study_said(project, applied):
    """Issue 7, 'It shows' 3."""
    said = read_table(Predictions, project.folder / "data/predict/predictions.parquet")
    said = said[said["run"] == RUN]
    found, _ = tables(applied / "out/new.csv")
    both = said.merge(found, on=["image_id", "finding"], suffixes=("", "_now"))
    assert len(said) == len(both) > 20
    assert (both["probability"] - both["probability_now"]).abs().max() <= 1e-6
    assert (both["study_id"] == both["study_id_now"]).all()


def test_every_file_is_in_one_of_the_two_tables_for_the_studys_reasons(project, raw, applied):
    found, refused = tables(applied / "out/new.csv")
    files = [path for path in raw.rglob("*") if path.is_file()]
    assert found["source_id"].nunique() + len(refused) == len(files)
    assert not set(found["source_id"]) & set(refused["source_id"])
    places = [project.folder / "data" / stage / name for stage in ("ingest", "images") for name in ("home", "away")]
    excluded = pd.concat([read_table(Exclusions, place / "exclusions.parquet") for place in places])
    assert refused["reason"].value_counts().to_dict() == excluded["reason"].value_counts().to_dict()
    assert list(found.columns) == list(Applied.columns)
    assert list(refused.columns) == list(Refused.columns)


def test_the_rule_is_the_bundles(applied):
    found, _ = tables(applied / "out/new.csv")
    rule = json.loads((applied / "opacity/configs/apply.json").read_text())["rule"]
    assert (found["threshold"] == rule["thresholds"]["opacity"]).all()
    assert (found["out_of_distribution"] == (found["distance"] > rule["distance_limit"])).all()
    assert (found["abstained"] == found["call"].isna()).all()
    assert (found["abstained"] == found["abstained_because"].notna()).all()
    called = found[~found["abstained"]]
    assert ((called["call"] == "positive") == (called["probability"] >= called["threshold"])).all()
    logit = np.log(found["probability"] / (1 - found["probability"]))
    cut = np.log(rule["thresholds"]["opacity"] / (1 - rule["thresholds"]["opacity"]))
    near = (logit - cut).abs() < rule["margins"]["opacity"]
    assert (found["abstained"] == (near | found["out_of_distribution"])).all()
    assert rule["margins"]["opacity"] > 0


def test_no_identifier_is_in_what_it_leaves_but_the_lookup_that_was_asked_for(raw, applied):
    identifiers = {"ZEBRAFELD"}
    for path in raw.rglob("*"):
        if path.is_file() and path.read_bytes()[128:132] == b"DICM":
            made = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            identifiers |= {
                str(made.get(name) or "ZEBRAFELD") for name in ("PatientID", "StudyInstanceUID", "PatientName")
            }
            identifiers.add(path.name)
    assert len(identifiers) > 50
    left = b"".join(path.read_bytes() for path in applied.rglob("*") if path.is_file())
    assert [name for name in identifiers if name.encode() in left] == []
    lookup = applied.parent / "lookup.csv"
    assert stat.S_IMODE(lookup.stat().st_mode) == 0o600
    rows = pd.read_csv(lookup)
    found, refused = tables(applied / "out/new.csv")
    assert set(rows["source_id"]) == {*found["source_id"], *refused["source_id"]}
    assert all(Path(path).is_file() for path in rows["path"])


def test_monai_verifies_and_runs_it_where_this_repository_is_not(applied, tmp_path):
    """In a process of its own that cannot import this repository nor reach a network."""
    code = """
import hashlib, pathlib, socket, sys
def refuse(*args): raise AssertionError("network")
socket.socket.connect = refuse
from monai.bundle import ConfigWorkflow, run, verify_metadata, verify_net_in_out
try:
    import pipeline
except ImportError:
    pass
else:
    raise AssertionError("this repository can be imported")
schema = pathlib.Path("configs/schema.json")
meta = {"meta_file": "configs/metadata.json"}
verify_metadata(**meta, filepath=schema, hash_type="sha256", hash_val=hashlib.sha256(schema.read_bytes()).hexdigest())
verify_net_in_out(net_id="network_def", **meta, config_file="configs/inference.json", device="cpu")
workflow = ConfigWorkflow(config_file="configs/inference.json", workflow_type="infer")
workflow.initialize()
assert workflow.check_properties() == [], workflow.check_properties()
run(config_file="configs/inference.json", bundle_root=".", dataset_dir=sys.argv[1], output_file=sys.argv[2])
run(config_file="configs/inference.json", bundle_root=".", output_file=sys.argv[3])
"""
    outs = [tmp_path / "new.csv", tmp_path / "check.csv"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, applied / "arrays", *outs], cwd=applied / "opacity",
        capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found, _ = tables(applied / "out/new.csv")
    by_monai = pd.read_csv(outs[0]).assign(image_id=lambda rows: rows["image"].str.removesuffix(".npy"))
    both = found.merge(by_monai, on="image_id", validate="one_to_one")
    assert len(both) == len(found)
    assert (both["probability"] - both["opacity"]).abs().max() <= 1e-6
    logits = np.array(json.loads((applied / "opacity/configs/apply.json").read_text())["check_logits"])
    assert np.abs(pd.read_csv(outs[1])["opacity"] - 1 / (1 + np.exp(-logits[:, 0]))).max() <= 1e-6


def test_the_bundle_holds_the_studys_weights_and_its_hashes(project):
    made = project.folder / "data/bundle/opacity"
    model = project.folder / f"data/models/{BACKBONE}-full_finetune/{RUN}/model.safetensors"
    assert (made / "models/model.safetensors").read_bytes() == model.read_bytes()
    listed = json.loads((made / "configs/metadata.json").read_text())["file_sha256"]
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert files == {*listed, "configs/metadata.json"}
    assert {name: file_sha256(made / name) for name in listed} == listed


def test_the_cards_figures_are_the_tables(project):
    """Each metric of this model, made again from the predictions, stands on the card; a small group does not."""
    made = project.folder / "data/bundle/opacity"
    text = (made / "docs/README.md").read_text()
    flat = json.loads((made / "configs/metadata.json").read_text())["eval_metrics"]
    params = project.params
    predictions = read_table(Predictions, project.folder / "data/predict/predictions.parquet")
    predictions = predictions[
        (predictions["run"] == RUN) & predictions["split"].isin(["id_val", "id_test", "ood_test"])
    ]
    metrics = bundle.own_metrics(
        predictions,
        bundle.EvaluateParams(**params["evaluate"]),
        bundle.SplitParams(**params["split"]),
        project.folder / "data/ingest",
    )
    shown = 0
    for row in card.records(metrics):
        if row["group"] in ("site=home", "site=away") and row["split"] != "id_val" and row["metric"] in card.METRICS:
            assert f"| {card.interval(row)} |" in text
            name = "/".join(row[part] for part in ("finding", "split", "group", "metric"))
            assert flat[name] == row["value"]
            shown += 1
    assert shown == 2 * len(card.METRICS)
    threshold = json.loads((made / "configs/apply.json").read_text())["rule"]["thresholds"]["opacity"]
    assert f"| opacity | {threshold:.4f} |" in text
    assert "**The author must fill this in**" in text
    assert "random numbers, for tests" in text


def test_forced_again_it_has_the_same_bytes(project, monkeypatch, tmp_path):
    made = project.folder / "data/bundle/opacity"
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    project.run_here(monkeypatch, "bundle")
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_a_model_that_was_not_trained_is_refused(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    params = bundle.HandoverParams(backbone=BACKBONE, method="full_finetune", seed=2)
    with pytest.raises(PipelineError, match=f"no model {BACKBONE}-full_finetune-seed2; .* holds {RUN}"):
        bundle.choose(project.folder / f"data/models/{BACKBONE}-full_finetune", params, bundle.ComputeParams())


UNLIKE = [
    ("Modality", "MG", "other_modality"),
    ("ViewPosition", "LL", "other_view"),
    ("BodyPartExamined", "KNEE", "other_body_part"),
    ("BodyPartExamined", "", "other_body_part"),
    ("WindowCenter", None, "other_window"),
]


def test_images_unlike_the_training_images_are_refused_or_told(raw, alone, monkeypatch):
    changed = {}
    for (path, made), change in zip(few(raw, alone / "new", len(UNLIKE) + 1), [*UNLIKE, None], strict=True):
        if change is not None:
            if change[1] is None:
                for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"):
                    made.pop(keyword, None)
            else:
                setattr(made, *change[:2])
            changed[path.name] = change[2]
        made.save_as(path)
    call(monkeypatch, "--input", "new", "--out", "out/new.csv", "--lookup", "lookup.csv")
    assert (alone / KEY_FILE).is_file()
    names = {row["source_id"]: Path(row["path"]).name for row in pd.read_csv(alone / "lookup.csv").to_dict("records")}
    found, refused = tables(alone / "out/new.csv")
    assert len(found) == 1
    assert {names[row["source_id"]]: row["reason"] for row in refused.to_dict("records")} == changed
    assert set(refused["stage"]) == {"apply"}
    call(monkeypatch, "--input", "new", "--out", "out/told.csv", "--unlike", "tell")
    found, refused = tables(alone / "out/told.csv")
    assert len(refused) == 0
    told = found.dropna(subset="unlike")
    assert {names[row["source_id"]]: row["unlike"] for row in told.to_dict("records")} == changed


def test_where_no_file_can_be_used_the_reasons_are_left_and_the_command_fails(raw, alone, monkeypatch):
    for path, made in few(raw, alone / "new", 2):
        made.Modality = "MG"
        made.SOPInstanceUID = generate_uid()
        made.save_as(path)
    (alone / "new/notes.txt").write_text("ZEBRAFELD")
    with pytest.raises(PipelineError, match="none of the files can be used"):
        call(monkeypatch, "--input", "new", "--out", "out/new.csv")
    found, refused = tables(alone / "out/new.csv")
    assert len(found) == 0
    assert sorted(refused["reason"]) == ["not_dicom", "other_modality", "other_modality"]


def test_a_bundle_that_was_changed_or_is_not_whole_is_refused(alone, raw, monkeypatch):
    options = ["--input", raw, "--out", "out/new.csv"]
    weights = alone / "opacity/models/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PipelineError, match=r"models/model\.safetensors is not the file whose hash"):
        call(monkeypatch, *options)
    weights.unlink()
    with pytest.raises(PipelineError, match=r"models/model\.safetensors is missing"):
        call(monkeypatch, *options)
    weights.write_bytes(content)
    (alone / "opacity/configs/metadata.json").unlink()
    with pytest.raises(PipelineError, match="is no bundle"):
        call(monkeypatch, *options)
    assert not (alone / "out").exists()


def test_another_version_is_told_and_other_numbers_are_refused(raw, alone, monkeypatch, capsys):
    for path, made in few(raw, alone / "new", 1):
        made.save_as(path)
    real = metadata.version
    monkeypatch.setattr(apply, "version", lambda name: "9.9.9" if name == "torch" else real(name))
    call(monkeypatch, "--input", "new", "--out", "out/new.csv")
    assert f"torch 9.9.9 instead of {real('torch').split('+')[0]}" in capsys.readouterr().err
    application = alone / "opacity/configs/apply.json"
    told = json.loads(application.read_text())
    told["check_logits"][0][0] += 1.0
    application.write_text(json.dumps(told))
    described = alone / "opacity/configs/metadata.json"
    whole = json.loads(described.read_text())
    whole["file_sha256"]["configs/apply.json"] = file_sha256(application)
    described.write_text(json.dumps(whole))
    with pytest.raises(PipelineError, match="other probabilities on its own test pictures"):
        call(monkeypatch, "--input", "new", "--out", "out/new.csv")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--input", "nowhere_ZEBRAFELD", "--out", "new.csv"], "--input: no such folder"),
        (["--input", "new", "--out", "new/out.csv"], "--out may not lie inside --input"),
        (["--input", "new", "--out", "out/new.csv", "--lookup", "out/lookup.csv"], "--lookup may not lie beside"),
        (["--input", "new", "--out", "out/new.csv", "--patient", "(?P<patient>.)"], "--patient is for PNG"),
        (["--input", "new", "--out", "out/new.csv", "--site", "Mr Z"], "--site must match"),
        (["--input", "new", "--out", "out/new.csv"], "no file lies there"),
    ],
)
def test_what_it_is_not_asked_for_rightly_is_told_without_a_path(alone, monkeypatch, options, text):
    (alone / "new").mkdir()
    with pytest.raises(PipelineError, match=text) as raised:
        call(monkeypatch, *options)
    assert "ZEBRAFELD" not in str(raised.value)


def test_what_the_model_saw_is_what_was_trained_on(project):
    instances = read_table(Instances, project.folder / "data/ingest/home/instances.parquet")
    seen = json.loads((project.folder / "data/bundle/opacity/configs/apply.json").read_text())["seen"]
    assert seen["levels"]["modality"] == sorted(instances["modality"].unique()) == ["dx"]
    assert seen["accepted"]["modality"] == ["cr"]
    assert set(seen["levels"]["view_position"]) <= set(instances["view_position"])
