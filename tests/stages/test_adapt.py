"""adapt: each remedy on its own rows alone, no test label before the end, and whom it may not be fitted on."""

import shutil

import numpy as np
import pandas as pd
import pytest
import tiny

from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.stages import adapt, finetune, predict
from pipeline.stages.adapt import load_remedy, replace_logits
from pipeline.tables.adaptation import Remedies
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.images import Splits
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Curves, Samples
from pipeline.training.backbone import build
from pipeline.training.checkpoints import save_model, trunk_digest

BASE = "full_finetune"
REMEDIES = {
    "label_shift": {"base": BASE, "resamples": 100},
    "prevalence": {"base": BASE, "stated": {"away": {"opacity": 0.1}}},
    "temperature": {"base": BASE, "labelled_images": 4},
    "histogram_matching": {"base": BASE},
    "adabn": {"base": BASE, "guard": "off", "min_images": 2, "resamples": 100},
    "coral": {"learning_rate": 1e-3},
    "dann": {"learning_rate": 1e-3, "hidden": 8},
    "group_dro": {"learning_rate": 1e-3},
}
ON_LOGITS = ["label_shift", "prevalence", "temperature"]
UNTRAINED = [*ON_LOGITS, "histogram_matching", "adabn"]
# Both train alike, one of them in the short run.
SITE_SPECIFIC = [*UNTRAINED, "coral", pytest.param("dann", marks=pytest.mark.slow)]
# Where training adds nothing to what is tested but its time.
MOSTLY_UNTRAINED = [*UNTRAINED, *(pytest.param(name, marks=pytest.mark.slow) for name in ("coral", "dann"))]
RUN = f"{tiny.BACKBONE}-{BASE}-seed1"


def write_models(root):
    """One model of the base method, untrained."""
    model = build(tiny.BACKBONE, 1, seed=1, state=tiny.weights())
    card = {
        "run": RUN, "backbone": tiny.BACKBONE, "method": BASE, "seed": 1, "label_fraction": 1.0, "draw": 0,
        "shots": None, "findings": ["opacity"], "image_shape": [1, 32, 32], "hidden": None, "pooled": False,
        "input": model.input_spec, "initialisation": "file", "weights_name": "W", "weights_sha256": "ff",
        "num_train_images": 6, "num_train_patients": 6, "num_parameters": 4, "trials": 1, "train_tflop": 0.1,
    }  # fmt: skip
    job = root / "models" / f"{tiny.BACKBONE}-{BASE}"
    save_model(model, {**card, "trunk_sha256": trunk_digest(model)}, job / RUN)
    write_table(Curves, [{"run": RUN, "epoch": 0, "phase": "finetune", "kept": True}], job / "curves.parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """home and away; predictions with a separation that an untrained model has not."""
    root = tmp_path_factory.mktemp("whole")
    tiny.write_sites(root)
    tiny.write_gather(root / "gather", 24)
    tiny.write_weights(root / "weights")
    write_models(root)
    same_names(root)
    path = tiny.write_params(root / "params.yaml", methods={BASE: tiny.METHODS[BASE]})
    folders = {name: root / name for name in ("split", "images", "labels", "models")}
    with pytest.MonkeyPatch.context() as patch:
        tiny.call(patch, predict, **folders, out=root / "predict", params=path)
    separate(root)
    return root


@pytest.fixture
def study(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "study")


def same_names(root):
    """home's id_val images as gathered, so that their labels are found."""
    splits = read_table(Splits, root / "split/splits.parquet")
    labels = read_table(Labels, root / "labels/home/labels.parquet").set_index("image_id")
    samples = read_table(Samples, root / "gather/samples.parquet")
    names = splits.loc[splits["split"] == "id_val", "image_id"].tolist()
    gathered = samples.loc[samples["split"] == "id_val", "image_id"].tolist()[: len(names)]
    rename = dict(zip(gathered, names, strict=True))
    write_table(Samples, samples.assign(image_id=samples["image_id"].replace(rename)), root / "gather/samples.parquet")
    known = read_table(Labels, root / "gather/labels.parquet")
    known["image_id"] = known["image_id"].replace(rename)
    here = known["image_id"].isin(names)
    known.loc[here, "label"] = labels.loc[known.loc[here, "image_id"], "label"].to_numpy()
    write_table(Labels, known, root / "gather/labels.parquet")


def separate(root):
    path = root / "predict/predictions.parquet"
    rows = read_table(Predictions, path)
    noise = np.random.default_rng(0).normal(0, 1.5, len(rows))
    label = rows["image_id"].str.rpartition("-")[2].astype(int) % 2
    logit = 2.0 * (label.to_numpy(float) - 0.5) + noise
    write_table(Predictions, rows.assign(logit=logit, probability=1 / (1 + np.exp(-logit))), path)


def call(study, monkeypatch, remedy, out="adapt", remedies=REMEDIES, **params):
    path = tiny.write_params(
        study / "params.yaml", methods={BASE: tiny.METHODS[BASE]}, remedies={remedy: remedies[remedy]}, **params
    )
    folders = {name: study / name for name in ("images", "labels", "gather", "weights", "models", "predict")}
    options = ("--backbone", tiny.BACKBONE, "--remedy", remedy)
    tiny.call(monkeypatch, adapt, *options, **folders, out=study / out, params=path)
    rows = read_table(Predictions, study / out / "predictions.parquet")
    return rows.set_index("image_id"), read_table(Remedies, study / out / "remedies.parquet")


def plain(study):
    rows = read_table(Predictions, study / "predict/predictions.parquet")
    return rows[rows["split"] != "target_adapt"].set_index("image_id")


def two_sources(study):
    """Half of the gathered images are of another source site, of which nothing is tested."""
    path = study / "gather/samples.parquet"
    samples = read_table(Samples, path)
    write_table(Samples, samples.assign(site=np.where(np.arange(len(samples)) % 3, "home", "second")), path)


@pytest.mark.parametrize("remedy", SITE_SPECIFIC)
def test_the_targets_test_images_alone_change_and_twice_alike(study, monkeypatch, remedy):
    rows, told = call(study, monkeypatch, remedy)
    before = plain(study)
    assert set(rows["run"]) == {f"{RUN}-adapt_{remedy}"}
    assert set(rows["adaptation"]) == {remedy}
    assert set(rows["method"]) == {BASE}
    same = rows["logit"] == before["logit"].reindex(rows.index)
    assert set(rows["split"]) == {"id_val", "id_test", "ood_test"}
    assert same[rows["site"] == "home"].all()
    assert not same[rows["site"] == "away"].any()
    assert rows["label"].equals(before["label"].reindex(rows.index))
    np.testing.assert_allclose(rows["probability"], 1 / (1 + np.exp(-rows["logit"])), rtol=1e-12)
    assert told[["site", "finding", "decision", "num_adapt_images"]].to_numpy().tolist() == [
        ["away", "opacity", "applied", 6]
    ]
    assert (told["selection"].fillna("none") == "source validation").all() == (remedy in ("coral", "dann"))
    call(study, monkeypatch, remedy, "again")  # and the same bytes
    for name in ("predictions", "remedies"):
        file = f"{name}.parquet"
        assert (study / "adapt" / file).read_bytes() == (study / "again" / file).read_bytes()


@pytest.mark.parametrize("remedy", MOSTLY_UNTRAINED)
def test_poisoned_labels_of_the_target_change_no_logit(study, monkeypatch, remedy):
    """Those of ood_test none of any remedy; those of target_adapt a few-label remedy's alone."""
    rows, told = call(study, monkeypatch, remedy)
    path = study / "labels/away/labels.parquet"
    labels = read_table(Labels, path)
    predictions = read_table(Predictions, study / "predict/predictions.parquet")
    predictions = predictions.assign(label=1 - predictions["label"])
    write_table(Predictions, predictions, study / "predict/predictions.parquet")
    poisoned = labels["image_id"].str.contains("ood_test" if remedy == "temperature" else "away")
    write_table(Labels, labels.assign(label=labels["label"].where(~poisoned, 1 - labels["label"])), path)
    after, said = call(study, monkeypatch, remedy)
    assert after["logit"].equals(rows["logit"])
    assert said.equals(told)
    assert not after["label"].equals(rows["label"])
    if remedy == "temperature":  # what it may see does change it
        write_table(Labels, labels.assign(label=1 - labels["label"]), path)
        assert not call(study, monkeypatch, remedy)[1].equals(told)


def test_what_was_estimated_is_what_was_applied(study, monkeypatch):
    for remedy in ON_LOGITS:
        rows, told = call(study, monkeypatch, remedy)
        before, row = plain(study), told.iloc[0]
        own = rows[rows["site"] == "away"]
        np.testing.assert_allclose(own["logit"], row["slope"] * before.loc[own.index, "logit"] + row["intercept"])


def test_group_dro_changes_all_sites_and_needs_two_sources(study, monkeypatch):
    with pytest.raises(PipelineError, match="1 source site"):
        call(study, monkeypatch, "group_dro")
    two_sources(study)
    rows, told = call(study, monkeypatch, "group_dro")
    assert not (rows["logit"] == plain(study)["logit"].reindex(rows.index)).any()
    assert told["site"].tolist() == ["away", "home"]
    assert set(told["selection"]) == {"source validation"}
    assert told["note"].str.contains("second opacity 1").all()


def without_adapt(study, keep):
    """The target's target_adapt cut to so many images, in the tables that a stage before writes."""
    path = study / "predict/predictions.parquet"
    rows = read_table(Predictions, path)
    names = sorted(rows.loc[rows["split"] == "target_adapt", "image_id"])[keep:]
    write_table(Predictions, rows[~rows["image_id"].isin(names)], path)


@pytest.mark.parametrize("remedy", MOSTLY_UNTRAINED)
def test_a_target_without_images_to_adapt_to_keeps_the_plain_predictions(study, monkeypatch, remedy):
    without_adapt(study, 0)
    rows, told = call(study, monkeypatch, remedy)
    assert (rows["logit"] == plain(study)["logit"].reindex(rows.index)).all()
    assert told["decision"].tolist() == ["refused"]
    assert told["note"].tolist() == ["no image in target_adapt"]


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("remedy", SITE_SPECIFIC)
def test_a_target_of_few_images_does_not_end_the_stage(study, monkeypatch, remedy, keep):
    without_adapt(study, keep)
    rows, told = call(study, monkeypatch, remedy)
    assert np.isfinite(rows["logit"]).all()
    assert told["num_adapt_images"].tolist() == [keep]
    assert (told["decision"].tolist() == ["refused"]) == (
        rows["logit"].equals(plain(study)["logit"].reindex(rows.index))
    )


@pytest.mark.slow
def test_training_is_plain_fine_tuning_where_the_penalty_is_nearly_nothing(study, monkeypatch):
    """The twin of a training remedy is full_finetune by `finetune`, to its logits; batch-norm frozen, as the target's
    images would move its statistics."""
    shared = {"finetune": {"seeds": [1], "epochs": 1, "batch_size": 8, "batch_norm": "frozen"}}
    path = tiny.write_params(study / "params.yaml", methods={BASE: tiny.METHODS[BASE]}, **shared)
    np.save(tiny_features(study) / "features.npy", np.zeros((24, 1), np.float32))
    job = study / "models" / f"{tiny.BACKBONE}-{BASE}"
    options = ("--backbone", tiny.BACKBONE, "--method", BASE)
    folders = {"gather": study / "gather", "features": study / "features", "weights": study / "weights"}
    tiny.call(monkeypatch, finetune, *options, **folders, out=job, params=path)
    folders = {name: study / name for name in ("split", "images", "labels", "models")}
    tiny.call(monkeypatch, predict, **folders, out=study / "predict", params=path)
    tiny_weight = {"coral": {"learning_rate": tiny.METHODS[BASE]["learning_rate"], "weight": 1e-12}}
    rows, _ = call(study, monkeypatch, "coral", remedies=tiny_weight, **shared)
    own = rows[rows["site"] == "away"]
    np.testing.assert_allclose(own["logit"], plain(study).loc[own.index, "logit"], atol=1e-4)


def tiny_features(study):
    (study / "features").mkdir()
    return study / "features"


def test_replaced_logits_go_to_their_own_image_and_finding():
    rows = pd.DataFrame({"image_id": ["b", "a", "a", "c"], "finding": ["x", "x", "y", "x"], "logit": [0.0, 1, 2, 3]})
    found = replace_logits(rows, np.array(["a", "b"]), ["x", "y"], np.array([[10.0, 11.0], [12.0, 13.0]]))
    assert found["logit"].tolist() == [12.0, 10.0, 11.0, 3.0]


def test_names_that_are_not_there_are_told_in_words(study, monkeypatch):
    with pytest.raises(ParamsError, match="unknown remedy 'label_shfit'; did you mean 'label_shift'"):
        load_remedy("label_shfit")
    with pytest.raises(ParamsError, match="unknown remedy"):
        load_remedy("interface")
    wrong = {"adabn": {"base": "full_finetun"}}
    with pytest.raises(ParamsError, match=r"adabn\.base: no method.*did you mean 'full_finetune'"):
        call(study, monkeypatch, "adabn", remedies=wrong)
    with pytest.raises(ParamsError, match=r"remedies\.coral\.base"):
        call(study, monkeypatch, "coral", remedies={"coral": {"learning_rate": 1e-3, "base": "scratch"}})
    path = study / "predict/predictions.parquet"
    write_table(Predictions, read_table(Predictions, path).assign(label_fraction=0.5), path)
    with pytest.raises(PipelineError, match=r"put 1\.0 among finetune\.label_fractions"):
        call(study, monkeypatch, "label_shift")


def test_each_remedy_has_params_and_one_function():
    for name in REMEDIES:
        module = load_remedy(name)
        kinds = [kind for kind in ("recalibrate", "adapt", "align", "fit") if hasattr(module, kind)]
        assert len(kinds) == 1
        assert "base" in module.Params.model_fields
