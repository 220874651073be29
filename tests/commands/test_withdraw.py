"""withdraw: of the patient nothing is left anywhere, of the others everything is, and the models are told.

The study is a graph of the real one's shape whose stages copy prepared folders, run by DVC itself; some of its outputs
exist in two versions. Each patient's pixels and features are random bytes that occur nowhere else.
"""

import io
import json
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from dvc.cli import main as dvc
from dvc.repo import Repo
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands import withdraw
from pipeline.dicom.deidentify import pseudonym
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE
from pipeline.key import PUBLIC_KEY, fingerprint
from pipeline.ledger import write_ledger
from pipeline.tables.contract import make_table, read_table, write_table
from pipeline.tables.evaluation import Metrics
from pipeline.tables.files import Exclusions, Instances, Manifest
from pipeline.tables.images import Images, Ledger, Splits
from pipeline.tables.labels import LabelIssues, Labels
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Samples
from pipeline.training.budget import label_order
from pipeline.withdrawn import WITHDRAWN_FILE, Withdrawn, read_withdrawn, write_withdrawn

# DVC calls what pygtrie deprecates
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")

SPLITS = {
    **{f"h{index}": ("home", "train") for index in range(6)},
    "h6": ("home", "id_val"),
    "h7": ("home", "id_test"),
    "a0": ("away", "target_adapt"),
    "a1": ("away", "ood_test"),
}
# each patient has one image; the first of home has two
PAIRS = [(patient, frame) for patient in SPLITS for frame in ("0", "1") if frame == "0" or patient == "h0"]


def name(kind, *parts):
    return pseudonym(PUBLIC_KEY, kind, *parts)


def patient_id(patient):
    return name("patient", SPLITS[patient][0], patient)


def source_id(patient):
    return name("source", SPLITS[patient][0], f"{patient}.dcm")


def image_id(patient, frame):
    return name("image", patient, frame)


def own(patient):
    """All pseudonyms of a patient."""
    frames = [frame for other, frame in PAIRS if other == patient]
    return {patient_id(patient), source_id(patient), *(image_id(patient, frame) for frame in frames)}


def pixels(patient, frame="0"):
    return np.random.default_rng([len(patient), *patient.encode(), int(frame)]).integers(0, 256, (16, 16), np.uint8)


def features(patient, frame="0"):
    return np.random.default_rng([7, *patient.encode(), int(frame)]).random(8, np.float32)


def at(site):
    return [(patient, frame) for patient, frame in PAIRS if SPLITS[patient][0] == site]


def write_array(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def write_made(root, version):
    """What the stages copy; the second version has other predictions, features and models, and an equal remainder."""
    made = root / "made"
    for site in ("home", "away"):
        pairs = at(site)
        patients = sorted({patient for patient, _ in pairs})
        write_table(
            Manifest,
            [{"source_id": source_id(p), "size_bytes": 9, "source_hmac": name("h", p)} for p in patients],
            root / f"data/manifests/{site}.parquet",
        )
        rows = [
            {
                "image_id": image_id(p, frame), "source_id": source_id(p), "frame": int(frame),
                "patient_id": patient_id(p), "study_id": name("study", p), "site": site, "rows": 16, "columns": 16,
                "source_hmac": name("h", p),
            }
            for p, frame in pairs
        ]  # fmt: skip
        write_table(Instances, rows, made / f"ingest-{site}/instances.parquet")
        copies = [{"source_id": name("copy", "h0"), "stage": "ingest", "site": site, "outcome": "rejected",
                   "reason": "duplicate_sop_uid", "duplicate_of": name("source", "home", "h0.dcm")}]  # fmt: skip
        write_table(
            Exclusions, copies if site == "home" and "h0" in SPLITS else [], made / f"ingest-{site}/exclusions.parquet"
        )
        index = [
            {"image_id": image_id(*pair), "array_index": i, "voi": "none", "inverted": False, "pixels_sha256": "0"}
            for i, pair in enumerate(pairs)
        ]
        write_table(Images, index, made / f"images-{site}" / INDEX_FILE)
        write_array(np.stack([pixels(*pair) for pair in pairs]), made / f"images-{site}/images.npy")
        write_labels(pairs, made / f"labels-{site}/labels.parquet")
        write_table(LabelIssues, [], made / f"labels-{site}/issues.parquet")  # the same bytes at both sites
    splits = [
        {"image_id": image_id(p, f), "patient_id": patient_id(p), "site": SPLITS[p][0], "split": SPLITS[p][1],
         "role": "source" if SPLITS[p][0] == "home" else "target"}
        for p, f in PAIRS
    ]  # fmt: skip
    write_table(Splits, splits, made / "split/splits.parquet")
    gathered = [pair for pair in PAIRS if SPLITS[pair[0]][1] in ("train", "id_val")]
    samples = [
        {"image_id": image_id(p, f), "array_index": i, "patient_id": patient_id(p), "site": "home",
         "split": SPLITS[p][1]}
        for i, (p, f) in enumerate(gathered)
    ]  # fmt: skip
    write_table(Samples, samples, made / "gather_/samples.parquet")
    write_labels(gathered, made / "gather_/labels.parquet")
    write_array(np.stack([pixels(*pair) for pair in gathered]), made / "gather_/images.npy")
    write_array(np.stack([features(*pair) for pair in gathered]) + (version - 1), made / "features/features.npy")
    for run, fraction in (("r-seed1", 1.0), ("r-seed1-labels50-draw0", 0.5)):
        (made / f"models/{run}").mkdir(parents=True, exist_ok=True)
        card = {"run": run, "backbone": "r", "method": "m", "seed": 1, "label_fraction": fraction, "draw": 0,
                "shots": None}  # fmt: skip
        (made / f"models/{run}/model.json").write_text(json.dumps(card))
        (made / f"models/{run}/model.safetensors").write_bytes(f"weights {run} {version}".encode())
    tested = [pair for pair in PAIRS if SPLITS[pair[0]][1] in ("id_val", "id_test", "ood_test")]
    predictions = [
        {"image_id": image_id(p, f), "finding": "opacity", "run": "r", "backbone": "r", "method": "m",
         "patient_id": patient_id(p), "site": SPLITS[p][0], "split": SPLITS[p][1], "logit": version, "probability": 0.5}
        for p, f in tested
    ]  # fmt: skip
    write_table(Predictions, predictions, made / "predict/predictions.parquet")
    metrics = [{"run": "r", "finding": "opacity", "split": "id_test", "group": "source", "metric": "auroc",
                "value": version, "num_images": 1, "num_patients": 1}]  # fmt: skip
    write_table(Metrics, metrics, made / "evaluate/metrics.parquet")
    (made / "metrics.json").write_text(json.dumps({"auroc": version}))
    (made / "html").mkdir(exist_ok=True)
    figure = b"".join(pixels(*pair).tobytes() for pair in PAIRS)
    (made / "html/index.html").write_bytes(b"<html>" + figure + b"%d" % version)


def write_labels(pairs, path):
    write_table(Labels, [{"image_id": image_id(*pair), "finding": "opacity", "label": 1} for pair in pairs], path)


GRAPH = {
    **{f"ingest@{s}": ([f"data/manifests/{s}.parquet"], f"data/ingest/{s}", f"ingest-{s}") for s in ("home", "away")},
    **{f"labels@{s}": ([f"data/ingest/{s}"], f"data/labels/{s}", f"labels-{s}") for s in ("home", "away")},
    **{f"preprocess@{s}": ([f"data/ingest/{s}"], f"data/images/{s}", f"images-{s}") for s in ("home", "away")},
    "split": (["data/ingest", "data/images", "data/labels"], "data/split", "split"),
    "gather": (["data/split", "data/images", "data/labels"], "data/gather", "gather_"),
    "features": (["data/gather"], "data/features/r", "features"),
    "finetune": (["data/gather", "data/features/r"], "data/models/r-m", "models"),
    "predict": (["data/split", "data/images", "data/labels", "data/models"], "data/predict", "predict"),
    "evaluate": (["data/predict"], "data/evaluate", "evaluate"),
    "report": (["data/ingest", "data/split", "data/predict", "data/images"], "reports/html", "html"),
}


class Study:
    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        labels = {"file": "x.csv", "key": "file", "key_column": "file", "columns": {"opacity": "opacity"}}
        sites = {site: {"adapter": "dicom_folder", "root": "raw", "labels": labels} for site in ("home", "away")}
        params = {"sites": sites, "privacy": {"key": "public", "key_fingerprint": fingerprint(PUBLIC_KEY)}}
        (folder / "params.yaml").write_text(json.dumps(params))
        (folder / ".dvc").mkdir()
        (folder / ".dvc/config").write_text(
            f"[core]\n analytics = false\n no_scm = true\n site_cache_dir = {folder}/.dvc/site\n"
        )
        (folder / "reports").mkdir()
        stages = {
            stage.replace("@", "_"): {
                "cmd": f"mkdir -p {out} && cp -r made/{source}/. {out}"
                + (" && cp made/metrics.json reports" if stage == "evaluate" else ""),
                "deps": [*deps, f"made/{source}"],
                "outs": [out],
            }
            for stage, (deps, out, source) in GRAPH.items()
        }
        stages["split"]["outs"].append({"splits.csv": {"cache": False, "persist": True}})
        stages["evaluate"]["metrics"] = ["reports/metrics.json"]
        (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))

    def repro(self):
        with Repo(str(self.folder)) as repo:
            ran = repo.reproduce()
        self.capsys.readouterr()
        return {stage.name for stage in ran}

    def withdraw(self, *arguments, number=None):
        def ask(prompt):
            assert number is not None, "asked for a number that is not needed"
            return number

        self.monkeypatch.setattr(withdraw.getpass, "getpass", ask)
        try:
            tiny.call(self.monkeypatch, withdraw, *arguments, params=self.folder / "params.yaml")
        finally:
            captured = self.capsys.readouterr()
            self.told = captured.out + captured.err
        return captured.out

    def files(self, *folders):
        folders = folders or ("data", "reports", ".dvc", ".checkpoints")
        return [path for folder in folders for path in sorted((self.folder / folder).rglob("*")) if path.is_file()]

    def find(self, *patients, frames=("0",)):
        """Files that hold a pseudonym, pixels or features of the patients, Parquet also decoded."""
        needles = {text.encode() for patient in patients for text in own(patient)}
        needles |= {pixels(patient, frame).tobytes() for patient in patients for frame in frames}
        needles |= {features(patient, frame).tobytes() for patient in patients for frame in frames}
        needles |= {(features(patient, frame) + 1).tobytes() for patient in patients for frame in frames}
        return {
            path.relative_to(self.folder)
            for path in self.files()
            if any(n in plain(path.read_bytes()) for n in needles)
        }


@cache
def plain(content):
    """Parquet decoded too, once: most files stand in several places, and stay as they are."""
    if content[:4] == b"PAR1":
        content += pq.read_table(io.BytesIO(content)).to_pandas().to_csv().encode()
    return content


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two versions, run by DVC; copied for each test."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_NO_ANALYTICS", "1")
        made = Study(folder, patch, SimpleNamespace(readouterr=lambda: None))
        write_made(folder, version=1)
        rows = [{"patient_id": patient_id(p), "site": site, "stratum": "(any)", "side": "test"}
                for p, (site, _) in SPLITS.items()]  # fmt: skip
        write_ledger(folder / "splits.csv", fingerprint(PUBLIC_KEY), make_table(Ledger, rows))
        made.repro()
        write_made(folder, version=2)
        made.repro()
    return folder


@pytest.fixture
def study(built, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    shutil.copytree(built, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    made = Study.__new__(Study)
    made.folder, made.monkeypatch, made.capsys = folder, monkeypatch, capsys
    config = folder / ".dvc/config"
    config.write_text(config.read_text().replace(str(built), str(folder)))
    (folder / ".checkpoints/ingest").mkdir(parents=True)
    (folder / ".checkpoints/ingest/home.sqlite").write_text(patient_id("h0"))
    return made


def cached(study):
    return {path.name: path for path in study.files(".dvc/cache/files")}


def test_of_a_trained_patient_nothing_is_left_and_of_the_others_all_that_can_be(study):
    before = {path: path.read_bytes() for path in study.files()}
    assert {path.parts[:2] for path in study.find("h0")} >= {("data", "ingest"), ("data", "gather"), (".dvc", "cache")}
    told = study.withdraw("--site", "home", number=" h0 ")
    assert study.find("h0", frames=("0", "1")) == set()
    assert "2 images in 2 files" in told  # the second file is a byte-identical copy
    # Where the patient was not, nothing was touched; of the shared empty table one object serves both sites.
    after = {path: path.read_bytes() for path in study.files()}
    kept = {path.relative_to(study.folder).as_posix() for path in after if path in before}
    for folder in ("data/ingest/away", "data/images/away", "data/labels/away", "data/models/r-m", "data/predict"):
        paths = [path for path in before if path.is_relative_to(study.folder / folder)]
        assert paths
        assert all(after.get(path) == before[path] for path in paths)
    assert {"data/manifests/home.parquet", "data/evaluate/metrics.parquet", "reports/metrics.json"} <= kept
    for gone in (
        "data/ingest/home",
        "data/images/home",
        "data/gather",
        "data/features/r",
        "data/split",
        "reports/html",
    ):
        assert not (study.folder / gone).exists()
    objects = {path for path in before if ".dvc/cache/files" in path.as_posix()}
    assert all(after[path] == before[path] for path in objects & after.keys())
    entries = [path.read_text() for path in study.files(".dvc/cache/runs")]
    assert entries
    for path in objects - after.keys():
        assert not any(path.parent.name + path.name in entry.split("\nouts:")[1] for entry in entries)
    with Repo(".") as repo:  # what stays can be restored
        for out in repo.index.outs:
            if Path(out.fs_path).exists() and out.use_cache:  # the ledger is in git
                assert all(repo.cache.local.exists(oid) for oid in oids(repo, out)), out
    manifest = read_table(Manifest, study.folder / "data/manifests/home.parquet")
    assert set(manifest["source_id"]) == {source_id(p) for p in SPLITS if p != "h0" and SPLITS[p][0] == "home"}
    assert read_withdrawn(study.folder) == Withdrawn(
        frozenset({patient_id("h0")}), frozenset({source_id("h0"), name("copy", "h0")})
    )
    assert not (study.folder / ".checkpoints/ingest").exists()
    assert "h0" not in study.told.replace(patient_id("h0"), "")


def oids(repo, out):
    yield out.hash_info.value
    if out.hash_info.isdir:
        yield from (oid.value for _, _, oid in out.get_obj())


@pytest.mark.parametrize("patient", ["h0", "h6", "h7", "a0", "a1"])
def test_a_patient_of_every_split_and_the_way_back(study, patient):
    site, split = SPLITS[patient]
    ledger = (study.folder / "splits.csv").read_text().splitlines()
    assert "cut: splits.csv" in study.withdraw("--site", site, number=patient)
    rest = [line for line in ledger if not line.startswith(patient_id(patient))]
    assert (study.folder / "splits.csv").read_text().splitlines() == rest
    assert len(rest) == len(ledger) - 1
    assert study.find(patient, frames=("0", "1") if patient == "h0" else ("0",)) == set()
    others = [other for other in SPLITS if other != patient]
    for other in others:
        assert study.find(other), "a patient of the other site is somewhere still"
    gathered = split in ("train", "id_val")
    assert (study.folder / "data/gather").exists() != gathered
    assert (study.folder / "data/features/r").exists() != gathered
    tested = split in ("id_val", "id_test", "ood_test")
    assert (study.folder / "data/predict").exists() != tested
    assert (study.folder / "data/evaluate").exists() != tested
    assert (study.folder / "reports/metrics.json").exists() != tested
    assert (study.folder / "data/models/r-m/r-seed1/model.safetensors").is_file()
    if patient in ("h6", "h7", "a0"):
        return  # runs of DVC take their time; a patient of each side goes through them
    # DVC goes on: status and gc do not fall over the gaps, and the stages run again without the patient.
    assert dvc(["status", "--quiet"]) in (0, 1)
    shutil.rmtree(study.folder / "made")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(SPLITS, patient)
        patch.setattr(f"{__name__}.PAIRS", [pair for pair in PAIRS if pair[0] != patient])
        write_made(study.folder, version=2)
    ran = study.repro()
    assert f"ingest_{site}" in ran
    assert "split" in ran
    assert ("features" in ran) == gathered
    assert study.find(patient) == set()
    assert dvc(["status", "--quiet"]) == 0
    assert dvc(["gc", "--workspace", "--force", "--quiet"]) == 0
    study.capsys.readouterr()


def test_a_patient_of_whom_the_ledger_alone_is_left(study):
    gone = name("patient", "home", "gone")
    ledger = study.folder / "splits.csv"
    before = ledger.read_text()
    ledger.write_text(before + f"{gone},home,(negative),train\n")
    study.withdraw("--pseudonym", gone)
    assert ledger.read_text() == before
    assert gone in read_withdrawn(study.folder).patients


def test_models_are_told_by_what_they_had_of_the_patient(study):
    train = [patient_id(p) for p, (_, split) in SPLITS.items() if split == "train"]
    half = set(label_order(0, dict.fromkeys(train, "1"))[:3])
    inside = next(p for p in SPLITS if patient_id(p) in half)
    outside = next(p for p in SPLITS if patient_id(p) in set(train) - half)
    for patient, full, part in [
        (inside, "trained on", "trained on"),
        (outside, "trained on", "not trained on"),
        ("h6", "selected on", "selected on"),
    ]:
        told = study.withdraw("--dry-run", "--pseudonym", patient_id(patient))
        lines = [line.split("): ")[1] for line in told.splitlines() if " model r-seed1 " in line]
        assert len(lines) == 2, "two versions: the workspace's, and one in the cache"
        assert all(line.startswith(full) for line in lines)
        lines = [line.split("): ")[1] for line in told.splitlines() if " model r-seed1-labels50" in line]
        assert len(lines) == 2
        assert all(line.startswith(part) for line in lines)
    for patient in ("h7", "a0", "a1"):
        assert "no model had this patient" in study.withdraw("--dry-run", "--pseudonym", patient_id(patient))


def test_models_of_unknown_origin_are_told_as_such(study):
    shutil.rmtree(study.folder / ".dvc/cache/runs")
    (study.folder / "dvc.lock").unlink()
    told = study.withdraw("--dry-run", "--pseudonym", patient_id("a1"))
    assert told.count("cannot be known") == 4
    assert "cached outputs without rows" in told  # features, evaluate, report: two versions each
    study.withdraw("--pseudonym", patient_id("a1"), "--delete-models")
    assert (study.folder / "data/models/r-m/r-seed1/model.safetensors").is_file(), "not shown to be trained on them"


def test_models_are_deleted_on_request_in_every_version(study):
    weights = [path for path in study.files() if path.read_bytes().startswith(b"weights ")]
    assert len(weights) == 2 + 4
    told = study.withdraw("--pseudonym", patient_id("h1"), "--delete-models")
    assert not [path for path in study.files() if path.read_bytes().startswith(b"weights ")]
    assert "delete them with --delete-models" not in told
    assert dvc(["status", "--quiet"]) in (0, 1)
    study.capsys.readouterr()


def test_a_dry_run_changes_nothing(study):
    before = {path: path.read_bytes() for path in study.files("data", "reports", ".dvc/cache", ".checkpoints")}
    ledger = (study.folder / "splits.csv").read_bytes()
    told = study.withdraw("--dry-run", "--site", "home", "--delete-models", number="h0")
    assert (study.folder / "splits.csv").read_bytes() == ledger
    assert {p: p.read_bytes() for p in study.files("data", "reports", ".dvc/cache", ".checkpoints")} == before
    assert not (study.folder / WITHDRAWN_FILE).exists()
    would = {line.split(": ")[1] for line in told.splitlines() if line.startswith("  would be deleted: ")}
    done = study.withdraw("--site", "home", "--delete-models", number="h0")
    assert would == {line.split(": ")[1] for line in done.splitlines() if line.startswith("  deleted: ")}
    assert would == {path for path in would if not (study.folder / path).exists()}


@pytest.mark.parametrize("survives", [0, 3, 7, 9, 12, 15, 18, 22, 30])
def test_a_call_that_breaks_off_is_finished_by_the_next(study, monkeypatch, survives):
    real, left = withdraw.delete, [survives]

    def failing(path):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "input/output error")
        real(path)

    monkeypatch.setattr(withdraw, "delete", failing)
    with pytest.raises(OSError, match="input/output"):
        study.withdraw("--site", "home", number="h0")
    assert source_id("h0") in read_withdrawn(study.folder).sources
    monkeypatch.setattr(withdraw, "delete", real)
    study.withdraw("--site", "home", number="h0")
    assert study.find("h0", frames=("0", "1")) == set()
    assert study.withdraw("--site", "home", number="h0"), "a third call has nothing to do and says so"


def test_links_to_the_cache_are_cut_not_written_through(study):
    """With cache.type hardlink a file of the workspace is the cache's own."""
    manifest = study.folder / "data/manifests/home.parquet"
    other = study.folder / "elsewhere"
    content = manifest.read_bytes()
    other.hardlink_to(manifest)
    study.withdraw("--pseudonym", patient_id("h0"))
    assert other.read_bytes() == content
    assert manifest.read_bytes() != content


def test_a_path_that_was_used_again_is_not_withdrawn(study):
    """Yesterday's tables give a file to the patient, today's to another."""
    ingest = study.folder / "data/ingest/home/instances.parquet"
    rows = read_table(Instances, ingest)
    mine = rows["patient_id"] == patient_id("h1")
    rows.loc[mine, "patient_id"] = patient_id("h2")
    rows.loc[mine, "image_id"] = name("image", "new", "0")
    ingest.unlink()
    write_table(Instances, rows, ingest)
    study.withdraw("--pseudonym", patient_id("h1"))
    assert source_id("h1") not in read_withdrawn(study.folder).sources
    manifest = read_table(Manifest, study.folder / "data/manifests/home.parquet")
    assert source_id("h1") in set(manifest["source_id"])


def test_what_a_removed_site_left_goes_too(study):
    old = study.folder / "data/ingest/closed"
    shutil.copytree(study.folder / "data/ingest/home", old)
    write_array(pixels("h0"), old / "images.npy")
    study.withdraw("--pseudonym", patient_id("h0"))
    assert not old.exists()


def test_tables_of_old_contracts_and_broken_ones(study):
    cache = study.folder / ".dvc/cache/files/md5"
    old = pa.table({"image_id": pa.array([image_id("h0", "0")]).dictionary_encode(), "was": ["1"]})
    (cache / "00").mkdir(exist_ok=True)
    pq.write_table(old, cache / "00" / ("a" * 30))
    (cache / "00" / ("b" * 30)).write_bytes(b"PAR1 broken")
    (cache / "00" / ("c" * 30 + ".dir")).write_bytes(b"[{")
    told = study.withdraw("--pseudonym", patient_id("h0"))
    assert "among them 2 broken ones" in told
    assert not list((cache / "00").glob("[abc]" * 3 + "*"))


def test_who_is_meant(study):
    with pytest.raises(PipelineError, match=r"--site or --issuer.*away, home"):
        study.withdraw(number="h0")
    with pytest.raises(PipelineError, match="no such site; known: away, home"):
        study.withdraw("--site", "nowhere", number="h0")
    with pytest.raises(PipelineError, match="no site has this issuer"):
        study.withdraw("--issuer", "nobody", number="h0")
    with pytest.raises(PipelineError, match="32 hexadecimal digits") as caught:
        study.withdraw("--pseudonym", "h0-ZEBRAFELD")
    assert "ZEBRA" not in str(caught.value)
    with pytest.raises(PipelineError, match="no PatientID"):
        study.withdraw("--site", "home", number="  ")
    with pytest.raises(PipelineError, match="nothing of patient") as caught:
        study.withdraw("--site", "away", number="h0")  # the number of another hospital's patient
    assert "h0" not in str(caught.value).replace(name("patient", "away", "h0"), "")
    assert not (study.folder / WITHDRAWN_FILE).exists()
    study.withdraw("--site", "away", "--add-anyway", number="h0")
    assert read_withdrawn(study.folder) == Withdrawn(frozenset({name("patient", "away", "h0")}))
    assert "images" in study.withdraw("--issuer", "home", number="h0")


def test_while_dvc_is_at_work_nothing_is_deleted(study):
    with Repo(".") as repo, repo.lock, pytest.raises(PipelineError, match="DVC is at work"):
        study.withdraw("--pseudonym", patient_id("h0"))
    assert study.find("h0")


def test_outside_dvc(study):
    shutil.rmtree(study.folder / ".dvc")
    with pytest.raises(PipelineError, match="no DVC repository"):
        study.withdraw("--pseudonym", patient_id("h0"))


def test_what_is_left_to_the_person(study):
    with (study.folder / ".dvc/config").open("a") as config:
        config.write("['remote \"vault\"']\n url = /nowhere\n")
    (study.folder / ".dvc/tmp/exps/standalone/tmp1").mkdir(parents=True)
    told = study.withdraw("--pseudonym", patient_id("h0"))
    for text in ("commit withdrawn.txt", "raw files", "make repro", "vault", "exps", "--delete-models"):
        assert text in told


# --- the list ---------------------------------------------------------------------------------------------

NAMES = st.frozensets(st.binary(min_size=16, max_size=16).map(bytes.hex), max_size=5)


@given(NAMES, NAMES)
def test_the_list_comes_back_and_is_the_same_text_whatever_the_order(tmp_path_factory, patients, sources):
    folder = tmp_path_factory.mktemp("list")
    write_withdrawn(folder, Withdrawn(patients, sources))
    assert read_withdrawn(folder) == Withdrawn(patients, sources)
    lines = [line for line in (folder / WITHDRAWN_FILE).read_text().splitlines() if not line.startswith("#")]
    assert all(a < b for a, b in pairwise(lines))
    assert [path.name for path in folder.iterdir()] == [WITHDRAWN_FILE]


@pytest.mark.parametrize(
    "line",
    ["patient 7391846", "ZEBRAFELD", "patient", f"patient {'A' * 32}", f"patients {'a' * 32}", f"patient {'a' * 33}",
     "<<<<<<< HEAD", f"patient {'a' * 32} x"],
)  # fmt: skip
def test_a_malformed_list_is_an_error_that_quotes_nothing(tmp_path, line):
    (tmp_path / WITHDRAWN_FILE).write_text(f"# ours\n\npatient {'a' * 32}\n{line}\n")
    with pytest.raises(PipelineError, match="line 4") as caught:
        read_withdrawn(tmp_path)
    assert "7391846" not in str(caught.value)
    assert "ZEBRAFELD" not in str(caught.value)


def test_no_list_is_an_empty_one(tmp_path):
    assert read_withdrawn(tmp_path) == Withdrawn()
    (tmp_path / WITHDRAWN_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(PipelineError, match="UTF-8"):
        read_withdrawn(tmp_path)
