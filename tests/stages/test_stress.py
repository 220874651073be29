"""stress: which models see what, curves against scikit-learn, and a planted dependence on a marker that shows."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from pipeline.analysis.evaluation import name_families
from pipeline.errors import PipelineError
from pipeline.imaging.corruption import CORRUPTIONS, SEVERITIES, corrupt, image_key
from pipeline.imaging.store import PlaneFormat, Store, write_store
from pipeline.params import ParamsError, parse
from pipeline.stages import stress
from pipeline.stages.stress import Corrupted, StressParams, curves, draw_patients
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.images import Splits
from pipeline.tables.labels import Labels
from pipeline.tables.stress import KINDS, StressCurves
from pipeline.training.backbone import build
from pipeline.training.checkpoints import load_model, save_model, trunk_digest
from pipeline.training.feed import to_unit

METHODS = {name: tiny.METHODS[name] for name in ("scratch", "linear_probe")}
SHORT = {"seed": 1, "kinds": ["noise", "marker"], "severities": [5], "resamples": 100}
LEAST = {"kinds": ["marker"]}
NUM = 20  # images of id_test, a patient each


def save(folder, method, run, seed, **card):
    model = build(tiny.BACKBONE, 2, seed=seed, state=dict(tiny.weights()))
    card = {
        "run": run, "backbone": tiny.BACKBONE, "method": method, "seed": seed, "label_fraction": 1.0, "draw": 0,
        "shots": None, "findings": ["effusion", "opacity"], "image_shape": [1, 32, 32], "hidden": None,
        "pooled": False, "input": model.input_spec, **card,
    }  # fmt: skip
    save_model(model, {**card, "trunk_sha256": trunk_digest(model)}, folder / f"{tiny.BACKBONE}-{method}" / run)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two seeds of one method, one of another, and runs with fewer labels; nobody at home has labels of effusion."""
    tmp_path = tmp_path_factory.mktemp("made")
    tiny.write_sites(tmp_path, per_split=NUM)
    for seed in (1, 2):
        save(tmp_path / "models", "scratch", f"a-seed{seed}", seed)
    save(tmp_path / "models", "linear_probe", "b-seed1", 3)
    save(tmp_path / "models", "linear_probe", "b-seed1-labels25-draw0", 4, label_fraction=0.25)
    save(tmp_path / "models", "linear_probe", "b-seed1-shots5-draw0", 5, shots=5)
    return tmp_path


@pytest.fixture
def study(made, tmp_path):
    return shutil.copytree(made, tmp_path / "study")


def run(study, monkeypatch, out="stress", changes=(), **params):
    path = tiny.write_params(study / "params.yaml", methods=METHODS, stress={**SHORT, **dict(changes)}, **params)
    folders = {name: study / name for name in ("split", "images", "labels", "models")}
    tiny.call(monkeypatch, stress, **folders, out=study / out, params=path)
    return read_table(StressCurves, study / out / "curves.parquet")


def names_by_evaluation(study):
    """The families that evaluation would name of the same runs, those with fewer labels left out."""
    columns = ("run", "backbone", "method", "label_fraction", "shots", "draw")
    cards = [json.loads(path.read_text()) for path in sorted(study.glob("models/*/*/model.json"))]
    frame = pd.DataFrame([{name: card[name] for name in columns} for card in cards])
    families = name_families(frame.assign(adaptation="none", protocol="home"))
    return [family.name for family in families if family.setting.all_labels]


def test_curves_are_those_of_models_with_all_labels_on_id_test(study, monkeypatch):
    """Oracle: each image alone, corrupted and through the loaded model; scikit-learn's AUROC; the mean over seeds."""
    rows = run(study, monkeypatch).set_index(["run", "finding", "kind", "severity"])
    names = names_by_evaluation(study)
    assert sorted(set(rows.index.get_level_values("run"))) == names
    assert len(rows) == 2 * 2 * 2 * 2  # runs, findings, kinds, severities with 0
    tested = [f"home-id_test-{i}" for i in range(NUM)]
    store, truth = Store(study / "images/home"), np.arange(3 * NUM)[2 * NUM :] % 2
    for name, runs in ((names[1], ["a-seed1", "a-seed2"]), (names[0], ["b-seed1"])):
        for kind, severity in (("noise", 0), ("noise", 5), ("marker", 5)):
            scores = []
            for own in runs:
                model, _ = load_model(study / "models" / name / own)
                pixels = [
                    corrupt(store.read([2 * NUM + i])[0], kind, severity, image_key(1, image))
                    for i, image in enumerate(tested)
                ]
                with torch.no_grad():
                    unit = to_unit(torch.from_numpy(np.stack(pixels)), torch.device("cpu"), torch.contiguous_format)
                    scores.append(roc_auc_score(truth, model(unit)[:, 1].numpy()))
            row = rows.loc[name, "opacity", kind, severity]
            assert row["value"] == pytest.approx(np.mean(scores))
            assert (row["num_images"], row["num_patients"]) == (NUM, NUM)
            assert row["strength"] == CORRUPTIONS[kind].strengths[severity]
            assert row["ci_low"] < row["value"] < row["ci_high"]
            assert ("one run" in row["note"]) == (len(runs) == 1)
            change = row["value"] - rows.loc[name, "opacity", kind, 0]["value"]
            assert pd.isna(row["difference"]) if severity == 0 else row["difference"] == pytest.approx(change)


def test_without_labels_there_is_no_value_and_a_reason(study, monkeypatch):
    rows = run(study, monkeypatch, changes=LEAST)
    blank = rows[rows["finding"] == "effusion"]
    assert blank[["value", "ci_low", "difference", "difference_low"]].isna().all(axis=None)
    assert blank["note"].str.contains("undefined: no annotated image").all()
    assert (blank["num_images"] == 0).all()
    path = study / "labels/home/labels.parquet"
    write_table(Labels, read_table(Labels, path).assign(label=1), path)
    rows = run(study, monkeypatch, changes=LEAST)
    assert rows["value"].isna().all()
    assert rows.loc[rows["finding"] == "opacity", "note"].str.contains("undefined: one class").all()


def test_a_rerun_gives_the_same_bytes_whatever_the_batch_size(study, monkeypatch):
    run(study, monkeypatch)
    run(study, monkeypatch, out="again", compute={**tiny.COMPUTE, "batch_size": 3})
    assert (study / "stress/curves.parquet").read_bytes() == (study / "again/curves.parquet").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_the_same_in_any_batch_and_order(kind):
    images = tiny.Memory(tiny.images(np.arange(6) % 2))
    seen = Corrupted(images, (kind, 3), {i: image_key(1, f"i{i}") for i in range(6)})
    whole = seen.read(np.arange(6))
    assert not np.array_equal(whole, images.read(np.arange(6)))
    shuffled = np.array([4, 0, 5, 2])
    assert np.array_equal(seen.read(shuffled), whole[shuffled])
    assert np.array_equal(seen.read(np.array([3])), whole[[3]])


# --- known answers --------------------------------------------------------------------------------------------


class Corner(nn.Module):
    """Looks at the brightness of the top right fifth of the edge alone."""

    def features(self, images):
        size = images.shape[-1] // 5
        return images[:, :, :size, -size:].mean(dim=(1, 2, 3))[:, None]


def test_a_model_that_looks_at_a_marker_falls_with_the_marker_alone(study, monkeypatch):
    """Images of grain; the diseased ones wear the mark, as in a hospital whose ward films do."""
    truth = np.arange(3 * NUM) % 2
    pixels = np.random.default_rng(1).integers(20, 90, (3 * NUM, 1, 64, 64)).astype(np.uint8)
    marked = [corrupt(image, "marker", 5, 0) if label else image for image, label in zip(pixels, truth, strict=True)]
    write_store((image[0] for image in marked), np.arange(3 * NUM)[:, None], PlaneFormat(64, 8), study / "images/home")
    cards = [{"backbone": "b", "method": "m", "findings": ["opacity"]}] * 2
    monkeypatch.setattr(stress, "full_label_folders", lambda *_: [[study]])
    monkeypatch.setattr(stress, "load_together", lambda _: (Corner(), [(nn.Identity(), card) for card in cards]))
    everything = {"kinds": list(KINDS), "severities": [1, 3, 5]}
    rows = run(study, monkeypatch, changes=everything).set_index(["kind", "severity"])
    assert len(rows) == 6 * 4
    for kind in KINDS:
        assert rows.loc[(kind, 0), "value"] == 1
        if kind != "marker":
            assert (rows.loc[kind, "value"] > 0.95).all(), kind
    fallen = rows.loc[("marker", SEVERITIES)]
    assert fallen["value"] == pytest.approx(0.5, abs=0.25)
    assert -1 <= fallen["difference_low"] < fallen["difference_high"] < -0.1


def sample(num=60, runs=3, seed=0):
    """Labels, patients with two images each, and logits (runs, num) of some worth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num).astype(float)
    return labels, np.array([f"p{i // 2:02d}" for i in range(num)]), labels + rng.standard_normal((runs, num)) * 1.5


PARAMS = StressParams(seed=1, kinds=["blur"], severities=[1, 2], resamples=400)


def by_severity(labels, patients, logits):
    return {row["severity"]: row for row in curves("r", "f", labels, patients, logits, PARAMS)}


def test_differences_are_paired():
    """Logits that rise together keep every rank: exactly no difference. Unpaired, the interval would have a width."""
    labels, patients, logits = sample()
    logits += 3 * labels
    other = np.random.default_rng(9).standard_normal(logits.shape)
    rows = by_severity(labels, patients, {("", 0): logits, ("blur", 1): 2 * logits + 1, ("blur", 2): other})
    assert rows[1]["difference"] == 0
    assert np.isnan(rows[1]["difference_low"])
    assert "difference: no interval: no variation" in rows[1]["note"]
    assert rows[2]["difference_low"] < rows[2]["difference"] < rows[2]["difference_high"] < 0
    assert rows[0]["value"] - rows[0]["ci_low"] < 0.3


def test_the_interval_counts_patients_and_not_images():
    """Each image twice over, of the same patient, says nothing new."""
    labels, patients, logits = sample()
    once = by_severity(labels, patients, dict.fromkeys([("", 0), ("blur", 1), ("blur", 2)], logits))
    twice = by_severity(
        np.tile(labels, 2), np.tile(patients, 2), dict.fromkeys([("", 0), ("blur", 1), ("blur", 2)], np.tile(logits, 2))
    )
    for column in ("value", "ci_low", "ci_high", "num_patients"):
        assert twice[0][column] == pytest.approx(once[0][column])
    assert twice[0]["num_images"] == 2 * once[0]["num_images"]


def test_trainings_that_fall_unlike_widen_the_interval_of_the_difference():
    labels, patients, logits = sample(runs=2)
    noise = np.random.default_rng(5).standard_normal(logits.shape) * 3
    alike, unlike = np.stack([logits[0]] * 2), np.stack([logits[0], noise[1]])
    plain = np.stack([logits[0]] * 2)
    weak = logits[0] + noise[0] / 3
    same = by_severity(labels, patients, {("", 0): plain, ("blur", 1): np.stack([weak] * 2), ("blur", 2): alike})[1]
    apart = by_severity(labels, patients, {("", 0): plain, ("blur", 1): unlike, ("blur", 2): alike})[1]
    width = [row["difference_high"] - row["difference_low"] for row in (same, apart)]
    assert width[1] > 2 * width[0]


# --- who is drawn, and what is refused -------------------------------------------------------------------------


def rows_of(sizes):
    return pd.DataFrame(
        [{"image_id": f"{p}-{i}", "patient_id": p} for p, size in sizes.items() for i in range(size)]
    ).astype("string")


def test_patients_are_drawn_whole_and_stay_when_others_join():
    sizes = {f"p{n}": 1 + n % 3 for n in range(30)}
    few = draw_patients(rows_of(sizes), 20, seed=1)
    assert 17 < len(few) <= 20
    assert few["patient_id"].value_counts().to_dict() == {name: sizes[name] for name in set(few["patient_id"])}
    assert set(draw_patients(rows_of(sizes), 20, seed=2)["patient_id"]) != set(few["patient_id"])
    assert len(draw_patients(rows_of(sizes), 500, seed=1)) == sum(sizes.values())
    gone = next(name for name in sizes if name not in set(few["patient_id"]))
    without = {name: size for name, size in sizes.items() if name != gone}
    assert set(few["patient_id"]) <= set(draw_patients(rows_of(without), 20, seed=1)["patient_id"])
    assert len(draw_patients(rows_of({"p": 9}), 5, seed=1)) == 9  # one patient has more: all of them


def test_the_stage_keeps_to_max_images(study, monkeypatch):
    rows = run(study, monkeypatch, changes={**LEAST, "max_images": 11})
    assert set(rows.loc[rows["finding"] == "opacity", "num_images"]) == {11}


def test_nothing_to_stress_is_told(study, monkeypatch):
    path = study / "split/splits.parquet"
    splits = read_table(Splits, path)
    write_table(Splits, splits[splits["split"] != "id_test"], path)
    with pytest.raises(PipelineError, match=r"0 images of id_test, models of 1 trunks.*Raise split.id_test_fraction"):
        run(study, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"severities": [6]}, "stress.severities.0"),
        ({"severities": [1, 1]}, "stress.severities: each may stand there once"),
        ({"kinds": []}, "stress.kinds"),
        ({"kinds": ["fog"]}, "stress.kinds.0: Input should be 'noise', 'blur'"),
        ({"kindz": ["blur"]}, "did you mean 'kinds'"),
    ],
)
def test_senseless_params_are_refused(changes, text):
    with pytest.raises(ParamsError, match=text):
        parse(StressParams, {"seed": 1, **changes}, "stress")
