"""continual and forgetting: known answers where hospitals contradict each other, who trains, which labels are read."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import tiny
from stages import hospitals
from stages.hospitals import name_of, relabel, write_hospitals

from pipeline.errors import PipelineError
from pipeline.labelled import read_labelled
from pipeline.ledger import read_ledger
from pipeline.params import ParamsError, parse
from pipeline.splits import SplitParams
from pipeline.stages import continual, forgetting
from pipeline.stages.continual import ContinualParams, Step, steps_of, who_trains
from pipeline.tables.continual import ContinualMeasures, ContinualPredictions, ContinualScores, ContinualSteps
from pipeline.tables.contract import read_table
from pipeline.tables.training import Curves
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.rehearsal import ReplayParams, kept_patients

RUN = tiny.BACKBONE
STILL = {"rotation_degrees": 0.0, "translation": 0.0, "scale": 0.0, "contrast": 0.0}
SECTION = {
    "backbones": [RUN],
    "sequence": ["north", "south"],
    "learning_rate": 1e-2,
    "seeds": [1],
    "replay": {"patients_per_class": 4},
    "loop": {"epochs": 5},
}
SHORT = {**SECTION, "strategies": ["naive"], "loop": {"epochs": 2}}
del SHORT["replay"]


def stage(root, monkeypatch, out="continual", section=SECTION, **params):
    path = tiny.write_params(
        root / "params.yaml",
        split={"seed": 1, "source": ["north"], "target": ["south"]},
        privacy=hospitals.PRIVACY,
        continual=section,
        **{"finetune": {"seeds": [9], "epochs": 1, "batch_size": 8, "augment": STILL}, **params},
    )
    folders = {name: root / name for name in ("split", "images", "labels", "weights")}
    ledger = root / "splits.csv"
    tiny.call(monkeypatch, continual, "--backbone", RUN, **folders, ledger=ledger, out=root / out, params=path)
    return root / out


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def study(root, sides=None):
    write_hospitals(root, {"north": hospitals.NORTH, "south": hospitals.SOUTH}, sides=sides)
    tiny.write_weights(root / "weights")
    return root


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two hospitals of which the second contradicts the first, learnt by each strategy."""
    root = study(tmp_path_factory.mktemp("done"))
    with pytest.MonkeyPatch.context() as patch:
        stage(root, patch)
        folders = {"continual": root / "continual", "labels": root / "labels"}
        tiny.call(patch, forgetting, **folders, out=root / "forgetting", params=root / "params.yaml")
    return root


@pytest.fixture
def small(tmp_path):
    return study(tmp_path, {"train": 8, "val": 2, "test": 4})


def test_naive_loses_replay_keeps_and_joint_knows_both(done):
    """What is bright on the left means the finding in one hospital and its absence in the other."""
    scores = read_table(ContinualScores, done / "forgetting/scores.parquet").set_index(["run", "step", "site"])
    final = {name: [scores.loc[(f"{RUN}-{name}", 1, site), "value"] for site in ("north", "south")]
             for name in ("naive", "replay", "joint")}  # fmt: skip
    assert scores.loc[(f"{RUN}-naive", 0, "north"), "value"] > 0.9
    assert final["naive"][0] < 0.4
    assert final["naive"][1] > 0.9
    assert min(final["replay"]) > 0.85
    assert min(final["joint"]) > 0.9
    measured = read_table(ContinualMeasures, done / "forgetting/measures.parquet").set_index(["run", "measure", "site"])
    lost = measured.loc[(f"{RUN}-naive", "forgetting", "")]
    assert lost["value"] > 0.5
    assert lost["ci_low"] > 0.2
    kept = measured.loc[(f"{RUN}-replay", "forgetting", "")]
    assert kept["value"] < 0.1
    assert kept["difference_high"] < -0.2
    assert measured.loc[(f"{RUN}-joint", "final_auroc", ""), "difference_low"] > 0.1


def test_who_trained_is_told(done):
    steps = read_table(ContinualSteps, done / "continual/steps.parquet").set_index(["run", "step"])
    assert len(steps) == 6
    first = steps.xs(0, level="step")
    assert len(set(first["model_sha256"])) == 1  # one training for all strategies
    assert set(first["site"] + first["role"]) == {"northsource"}
    columns = ["site", "role", "num_train_patients", "num_train_images", "num_earlier_patients", "num_val_patients"]
    told = {run.split("-")[-2]: steps.loc[(run, 1), columns].tolist() for run in steps.index.get_level_values("run")}
    assert told == {
        "naive": ["south", "target", 24, 24, 0, 8],
        "replay": ["south", "target", 32, 32, 8, 16],
        "joint": ["south", "target", 48, 48, 24, 16],
    }
    curves = read_table(Curves, done / "continual/curves.parquet")
    assert curves.groupby("run")["epoch"].count().tolist() == [5] * 4  # loop departs from finetune
    assert not list((done / ".checkpoints/continual").glob("*/*"))  # nothing is left of the work


def test_every_test_image_is_scored_after_every_step_and_nobody_else(done):
    rows = read_table(ContinualPredictions, done / "continual/predictions.parquet")
    tested = {name_of(site, "image", "test", index) for site in ("north", "south") for index in range(24)}
    for _, part in rows.groupby(["run", "step"]):
        assert set(part["image_id"]) == tested
    assert "label" not in rows


def test_poisoned_test_labels_change_no_model(done, small, monkeypatch):
    before = digests(stage(small, monkeypatch, "before", SHORT))
    relabel(small, ["north", "south"], ["test"], lambda label: 1 - label)
    assert digests(stage(small, monkeypatch, "after", SHORT)) == before
    relabel(small, ["south"], ["train"], lambda label: 1 - label)  # and those of a target that joins do
    assert digests(stage(small, monkeypatch, "other", SHORT)) != before


def test_a_job_that_was_killed_ends_in_the_same_bytes(small, monkeypatch):
    """Stopped in the middle of the second training; what was whole is not trained again."""
    whole = digests(stage(small, monkeypatch, "whole", SHORT))
    trained = []
    real = Checkpoint.save

    def save(self, state):
        real(self, state)
        trained.append(self.path.parent.name)
        if len(trained) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", save)
    monkeypatch.setattr(Checkpoint, "due", lambda _: True)
    with pytest.raises(KeyboardInterrupt):
        stage(small, monkeypatch, "again", SHORT)
    assert not (small / "again").exists()
    assert trained[-1] == "naive-seed1-step1.phases"
    assert digests(stage(small, monkeypatch, "again", SHORT)) == whole
    assert set(trained[5:]) == {"naive-seed1-step1.phases"}


# --- who trains ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    looks = dict.fromkeys(("north", "south", "west"), hospitals.NORTH)
    write_hospitals(root, looks, sides={"train": 8, "val": 4, "test": 4})
    split = SplitParams(seed=1, source=["north"], target=["south", "west"])
    ledger = read_ledger(root / "splits.csv", hospitals.KEY)
    return read_labelled(root / "split", ledger, root / "images", root / "labels", split, list(looks))


THREE = ContinualParams(
    backbones=["net"], sequence=["north", "south", "west"], learning_rate=0.1, seeds=[1, 2],
    replay=ReplayParams(patients_per_class=2),
)  # fmt: skip


def test_labelled_images_are_those_of_their_names(labelled):
    """No test patient; a target's sides are the ledger's; pixels, labels and names belong together."""
    named = {
        name_of(site, "image", side, index): (site, side, index % 2)
        for site in ("north", "south", "west")
        for side, count in (("train", 8), ("val", 4))
        for index in range(count)
    }
    assert len(labelled.image_ids) == len(named) == len(labelled.images)
    bright = labelled.images.read(np.arange(36))[:, 0, :, :16].mean(axis=(1, 2)) > 100
    for name, site, side, label, left in zip(
        labelled.image_ids, labelled.sites, labelled.sides, labelled.labels[:, 0], bright, strict=True
    ):
        assert named[name] == (site, side, label)
        assert left == label
    shuffled = np.array([35, 0, 20, 1, 13])
    np.testing.assert_array_equal(labelled.images.read(shuffled), labelled.images.read(np.arange(36))[shuffled])
    assert labelled.images.shape == (36, 1, 32, 32)


def test_each_strategy_has_its_patients(labelled):
    def sites(strategy, number):
        who = who_trains(labelled, Step(strategy, 1, number, "", None), THREE)
        return {side: pd.Series(labelled.sites[index]).value_counts().to_dict() for side, index in who.items()}

    assert sites("naive", 2) == {"train": {"west": 8}, "val": {"west": 4}}
    everybody = {side: dict.fromkeys(("north", "south", "west"), n) for side, n in (("train", 8), ("val", 4))}
    assert sites("joint", 2) == everybody
    assert sites("replay", 2)["train"] == {"west": 8, "north": 4, "south": 4}
    assert sites("replay", 1)["val"] == {"south": 4, "north": 4}  # two of each class is all there are
    assert sites("replay", 0) == {"train": {"north": 8}, "val": {"north": 4}}


def test_steps_go_on_from_where_they_should():
    steps = {step.folder: step for step in steps_of(THREE)}
    assert len(steps) == 2 * (1 + 3 * 2)
    assert {name: step.after for name, step in steps.items() if step.seed == 2} == {
        "seed2-step0": None,
        "naive-seed2-step1": "seed2-step0",
        "naive-seed2-step2": "naive-seed2-step1",
        "replay-seed2-step1": "seed2-step0",
        "replay-seed2-step2": "replay-seed2-step1",
        "joint-seed2-step1": None,
        "joint-seed2-step2": None,
    }


def test_the_buffer_is_bounded_nested_and_drawn():
    labels = (np.arange(60) % 3 == 0).astype(np.float32)[:, None]
    patients = np.array([f"p{index // 2:02d}" for index in range(60)])
    positive = {p for p, y in zip(patients, labels[:, 0], strict=True) if y}
    kept = {n: set(kept_patients(labels, patients, ReplayParams(patients_per_class=n), 1)) for n in (2, 5, 100)}
    assert kept[2] < kept[5] < kept[100] == set(patients)
    assert len(kept[2] & positive) == len(kept[2] - positive) == 2
    assert set(kept_patients(labels, patients, ReplayParams(patients_per_class=2), 2)) != kept[2]
    assert len(kept_patients(labels, patients, ReplayParams(fraction=0.2), 1)) == 6
    assert len(kept_patients(labels, patients, ReplayParams(fraction=0.001), 1)) == 1
    assert kept_patients(labels[:0], patients[:0], ReplayParams(patients_per_class=2), 1) == []


# --- what is refused -------------------------------------------------------------------------------------------


def test_a_hospital_that_cannot_be_learnt_is_told_before_anything_is_trained(small, monkeypatch):
    relabel(small, ["south"], ["train"], lambda label: label * 0)
    with pytest.raises(PipelineError, match="south cannot join: of its labelled images 0 with and 8 without 'opacity'"):
        stage(small, monkeypatch)
    relabel(small, ["south"], ["val"], lambda label: pd.Series(pd.NA, label.index, dtype="Int8"))
    relabel(small, ["south"], ["train"], lambda label: pd.Series([0, 1] * 4, label.index, dtype="Int8"))
    with pytest.raises(PipelineError, match="4 with and 4 without 'opacity' train, 0 select"):
        stage(small, monkeypatch)


def test_a_ledger_without_the_patient_is_refused(small, monkeypatch):
    lines = (small / "splits.csv").read_text().splitlines(keepends=True)
    gone = name_of("south", "patient", "train", 0)
    (small / "splits.csv").write_text("".join(line for line in lines if not line.startswith(gone)))
    with pytest.raises(PipelineError, match=r"patients of 1 images of target_adapt no side"):
        stage(small, monkeypatch)


def test_unknown_hospitals_and_another_networks_weights_are_refused(small, monkeypatch):
    with pytest.raises(ParamsError, match="unknown site 'sout'; did you mean 'south'"):
        stage(small, monkeypatch, section={**SECTION, "sequence": ["north", "sout"]})
    tiny.write_weights(small / "weights", "mobilenet_v3_small")
    with pytest.raises(PipelineError, match=f"holds weights of mobilenet_v3_small, not of {RUN}"):
        stage(small, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sequence": ["north"]}, "continual.sequence"),
        ({"sequence": ["north", "north"]}, "continual.sequence: each may stand there once"),
        ({"strategies": ["naive"]}, "give both or neither"),
        ({"replay": None}, "give both or neither"),
        ({"replay": {"patients_per_class": 2, "fraction": 0.1}}, "give either patients_per_class or fraction"),
        ({"replay": {}}, "give either patients_per_class or fraction"),
        ({"strategies": ["naif"]}, "continual.strategies.0"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
    ],
)
def test_senseless_params_are_refused(changes, text):
    with pytest.raises(ParamsError, match=text):
        parse(ContinualParams, {**SECTION, **changes}, "continual")


def test_a_misspelt_setting_of_the_loop_is_told(small, monkeypatch):
    with pytest.raises(ParamsError, match=r"continual.loop.epoch: unknown key; did you mean 'epochs'"):
        stage(small, monkeypatch, section={**SECTION, "loop": {"epoch": 1}})
