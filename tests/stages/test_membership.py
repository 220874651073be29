"""membership: real models, trained by the stages before, one that learnt by heart and one that did not."""

import json

import numpy as np
import pytest
import tiny

from pipeline.errors import PipelineError
from pipeline.imaging.store import PlaneFormat, write_store
from pipeline.stages import features, finetune, gather, membership
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.images import Splits
from pipeline.tables.labels import Labels
from pipeline.tables.membership import MembershipAttacks, MembershipExposures

JOB = f"{tiny.BACKBONE}-linear_probe"
NUM = 40  # images of each split, a patient each
FINETUNE = {"seeds": [1, 2], "label_fractions": [0.5, 1.0], "draws": 2, "epochs": 1, "batch_size": 8}


METHODS = {"linear_probe": {"inverse_l2": [100.0]}, "full_finetune": {"learning_rate": 1e-3}}


def params(study, method="linear_probe", **changes):
    return tiny.write_params(
        study / "params.yaml",
        methods={method: METHODS[method]},
        finetune=changes.pop("finetune", FINETUNE),
        membership={"seed": 1, "resamples": 200, "false_positive_rates": [0.1]},
        **changes,
    )


def prepare(study, monkeypatch, brighter):
    """split to features, with images of noise; ``brighter``: by so much, where the label is 1."""
    tiny.write_sites(study, per_split=NUM)
    for site, count in (("home", 3 * NUM), ("away", 2 * NUM)):
        rng = np.random.default_rng(len(site))
        truth = rng.integers(0, 2, count)
        pixels = rng.integers(0, 120, (count, 32, 32)) + brighter * truth[:, None, None]
        write_store(pixels.astype(np.uint8), np.arange(count)[:, None], PlaneFormat(32, 8), study / "images" / site)
        path = study / "labels" / site / "labels.parquet"
        table = read_table(Labels, path)
        order = {name: i for i, name in enumerate(names_of(site))}
        write_table(Labels, table.assign(label=[int(truth[order[name]]) for name in table["image_id"]]), path)
    tiny.write_weights(study / "weights")
    folders = {name: study / name for name in ("split", "images", "labels")}
    tiny.call(monkeypatch, gather, **folders, out=study / "gather", params=params(study))
    tiny.call(
        monkeypatch, features, gather=study / "gather", weights=study / "weights", out=study / "features",
        params=params(study),
    )  # fmt: skip
    return study


def names_of(site):
    splits = {"home": ("train", "id_val", "id_test"), "away": ("target_adapt", "ood_test")}[site]
    return [f"{site}-{split}-{i}" for split in splits for i in range(NUM)]


def train(study, monkeypatch, **changes):
    path = params(study, **changes)
    method = changes.get("method", "linear_probe")
    folders = {name: study / name for name in ("gather", "features", "weights")}
    out = study / "models" / f"{tiny.BACKBONE}-{method}"
    tiny.call(monkeypatch, finetune, "--backbone", tiny.BACKBONE, "--method", method, **folders, out=out, params=path)


def run(study, monkeypatch, out="membership", **changes):
    path = params(study, **changes)
    folders = {name: study / name for name in ("gather", "split", "images", "labels", "models")}
    tiny.call(monkeypatch, membership, **folders, out=study / out, params=path)
    return (
        read_table(MembershipAttacks, study / out / "attacks.parquet").set_index(["run", "attack"]),
        read_table(MembershipExposures, study / out / "exposures.parquet").set_index(["run", "attack"]),
    )


@pytest.fixture(scope="module")
def by_heart(tmp_path_factory):
    """A probe of 1,024 features on 40 patients whose labels mean nothing."""
    study = tmp_path_factory.mktemp("by_heart")
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare(study, monkeypatch, brighter=0)
        train(study, monkeypatch)
        run(study, monkeypatch)
    return study


def tables(study):
    return (
        read_table(MembershipAttacks, study / "membership/attacks.parquet").set_index(["run", "attack"]),
        read_table(MembershipExposures, study / "membership/exposures.parquet").set_index(["run", "attack"]),
    )


def test_a_model_that_learnt_by_heart_is_found_out(by_heart):
    attacks, exposures = tables(by_heart)
    for name in ("loss", "modified_entropy", "calibrated"):
        row = attacks.loc[(JOB, name)]
        assert row["auroc"] > 0.75, name
        assert row["ci_low"] > 0.6, name
        assert row["control_low"] < 0.5 < row["control_high"], name
    # All members have about the margin that the fit gave them: few others are surer, so that no threshold on the loss
    # alone finds anybody at a low rate of errors.
    found = exposures.loc[f"{JOB}-seed1", "true_positive_rate"]
    assert found["loss"] == 0
    assert found["modified_entropy"] > 0.2


def test_who_is_a_member_hangs_on_the_run(by_heart):
    attacks, _ = tables(by_heart)
    half = attacks.loc[(f"{JOB}-seed1-labels50-draw0", "loss")]
    assert (half["num_members"], half["num_controls"], half["num_others"]) == (NUM // 2, NUM // 2, NUM)
    assert half["auroc"] > 0.8
    whole = attacks.loc[(f"{JOB}-seed2", "calibrated")]
    assert (whole["num_members"], whole["num_references"]) == (len(left_out_by_some(by_heart)), 4)


def left_out_by_some(study):
    """From the cards alone: the trainings with half of the labels had 20 patients each; all but those in both draws."""
    cards = [json.loads(path.read_text()) for path in sorted(study.glob("models/*/*labels50*/model.json"))]
    assert [card["num_train_patients"] for card in cards] == [NUM // 2] * 4
    data, _ = finetune.load_dataset(study / "gather")
    settings = finetune.FinetuneParams(**FINETUNE)
    had = [
        set(data.patients[finetune.restrict(data, finetune.Run("", "", 1, 0.5, draw), settings).train])
        for draw in (0, 1)
    ]
    return set(data.patients[data.train]) - (had[0] & had[1])


def test_a_model_that_has_learnt_what_holds_for_all_is_not(tmp_path, monkeypatch):
    """Images as bright as their label says, one pass of the whole network."""
    study = prepare(tmp_path, monkeypatch, brighter=120)
    single = {"seeds": [1], "epochs": 1, "batch_size": 8}
    train(study, monkeypatch, method="full_finetune", finetune=single)
    attacks, exposures = run(study, monkeypatch, method="full_finetune", finetune=single)
    for name in ("loss", "entropy", "modified_entropy"):
        row = attacks.loc[(f"{tiny.BACKBONE}-full_finetune-seed1", name)]
        assert row["ci_low"] < 0.5 < row["ci_high"], name
        assert abs(row["auroc"] - 0.5) < 0.12, name
    assert exposures["exposed_at_least"].fillna(0).max() == 0
    assert attacks["auroc"].xs("calibrated", level=1).isna().all()


def test_a_rerun_gives_the_same_bytes_whatever_the_batch_size(by_heart, monkeypatch):
    run(by_heart, monkeypatch, out="again", compute={**tiny.COMPUTE, "batch_size": 5})
    for name in ("attacks", "exposures"):
        made = [(by_heart / folder / f"{name}.parquet").read_bytes() for folder in ("membership", "again")]
        assert made[0] == made[1]


def test_no_patient_stands_in_the_outputs(by_heart):
    for path in (by_heart / "membership").iterdir():
        assert b"patient-home" not in path.read_bytes()


def test_models_of_other_gathered_images_are_refused(by_heart, monkeypatch):
    card = by_heart / "models" / JOB / f"{JOB}-seed1" / "model.json"
    kept = card.read_text()
    card.write_text(json.dumps({**json.loads(kept), "num_train_images": 39}))
    with pytest.raises(PipelineError, match=r"seed1 was trained on 39 images; here it would be 40"):
        run(by_heart, monkeypatch, out="refused")
    card.write_text(kept)


def test_nothing_to_audit_is_told(by_heart, monkeypatch):
    path = by_heart / "split/splits.parquet"
    splits = read_table(Splits, path)
    write_table(Splits, splits[splits["split"] != "id_test"], path)
    with pytest.raises(PipelineError, match=r"nothing to audit: 6 models, 0 images of id_test"):
        run(by_heart, monkeypatch, out="refused")
    write_table(Splits, splits, path)
