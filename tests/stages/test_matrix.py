"""matrix and matrix_scores: known answers where hospitals contradict each other, equal budgets, who is looked at."""

import hashlib

import numpy as np
import pytest
import tiny
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from stages import hospitals
from stages.hospitals import name_of, relabel, write_hospitals

from pipeline.errors import PipelineError
from pipeline.params import ParamsError, parse
from pipeline.stages import matrix, matrix_scores
from pipeline.stages.matrix import MatrixParams
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.diagnosis import Embedded
from pipeline.tables.images import Splits
from pipeline.tables.labels import Labels
from pipeline.tables.matrix import MatrixPredictions, MatrixRows, MatrixScores
from pipeline.training.equalise import Budget, Sides, budget, draw, shortage

RUN = tiny.BACKBONE
SITES = ("north", "south", "west")
SECTION = {"backbones": [RUN], "seeds": [1, 2], "linear_probe": {"inverse_l2": [0.01, 1.0]}, "least_patients": 2}
SIDES = {"train": 24, "val": 4, "test": 24}


def embed(root, seed=0):
    """Features as a backbone might give them: left and right brightness, and noise. No label goes in."""
    rng = np.random.default_rng(seed)
    splits = read_table(Splits, root / "split/splits.parquet")
    look = {"north": hospitals.NORTH, "south": hospitals.SOUTH, "west": hospitals.NORTH}
    truth = {name_of(site, "image", side, i): i % 2 for site in look for side in SIDES for i in range(SIDES[side])}
    rows, features = [], []
    for row, image in enumerate(splits.to_dict("records")):
        left, right = look[image["site"]][truth[image["image_id"]]]
        features.append([left + rng.normal(0, 30), right + rng.normal(0, 30), *rng.normal(0, 1, 3)])
        rows.append({name: image[name] for name in ("image_id", "patient_id", "site", "split")} | {"row": row})
    write_table(Embedded, rows, root / "embed/index.parquet")
    np.save(root / "embed/features.npy", np.array(features, np.float32))


def study(root):
    looks = {"north": hospitals.NORTH, "south": hospitals.SOUTH, "west": hospitals.NORTH}
    write_hospitals(root, looks, sides=SIDES)
    embed(root)
    tiny.write_weights(root / "weights")
    return root


def stage(root, monkeypatch, out="matrix", section=SECTION, **params):
    path = tiny.write_params(
        root / "params.yaml", split={"seed": 1, "source": ["north"], "target": ["south", "west"]},
        privacy=hospitals.PRIVACY, matrix=section, **params,
    )  # fmt: skip
    folders = {name: root / name for name in ("split", "images", "labels", "weights", "embed")}
    tiny.call(
        monkeypatch, matrix, "--backbone", RUN, **folders, ledger=root / "splits.csv", out=root / out, params=path
    )
    return root / out


def score(root, monkeypatch, folder="matrix"):
    params = root / "params.yaml"
    tiny.call(
        monkeypatch, matrix_scores, matrix=root / folder, labels=root / "labels", out=root / "scores", params=params
    )
    rows = read_table(MatrixScores, root / "scores/scores.parquet")
    return rows.set_index(["method", "protocol", "row", "site"])


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def small(tmp_path):
    return study(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = study(tmp_path_factory.mktemp("done"))
    with pytest.MonkeyPatch.context() as patch:
        stage(root, patch)
        return root, score(root, patch)


def test_who_looks_alike_transfers_and_who_contradicts_does_not(done):
    """North and west mean the same by what is bright on the left; in the south it is the other way round."""
    _, found = done
    own = found.loc[("linear_probe", "single_source")]
    assert len(own) == 9
    for row in SITES:
        for site in SITES:
            cell = own.loc[(row, site)]
            alike = (row == "south") == (site == "south")
            assert cell["value"] > 0.9 if alike else cell["value"] < 0.6, (row, site)
            assert cell["in_distribution"] == (row == site)
            assert (cell["num_patients"], cell["num_runs"]) == (24, 2)
            if row == site:
                assert np.isnan(cell["difference"])
            else:
                assert cell["difference"] == pytest.approx(own.loc[(site, site), "value"] - cell["value"])
    assert own.loc[("north", "south"), "difference_low"] > 0.2
    assert abs(own.loc[("north", "west"), "difference"]) < 0.1
    left_out = found.loc[("linear_probe", "leave_one_out")]
    assert list(left_out.index) == [(site, site) for site in SITES]
    assert not left_out["in_distribution"].any()
    south = left_out.loc[("south", "south")]
    assert south["value"] < 0.5
    assert south["difference"] == pytest.approx(own.loc[("south", "south"), "value"] - south["value"])


def test_a_cell_is_scikit_learns(done):
    root, found = done
    rows = read_table(MatrixRows, root / "matrix/rows.parquet")
    rows = rows[(rows["protocol"] == "single_source") & (rows["row"] == "west")].set_index("seed")
    index = read_table(Embedded, root / "embed/index.parquet").set_index("image_id")["row"]
    features = np.load(root / "embed/features.npy").astype(np.float64)
    truth = read_table(Labels, root / "labels/north/labels.parquet").set_index("image_id")["label"]
    values = []
    train = [name_of("west", "image", "train", i) for i in range(24)]  # twelve of each class: all of them
    inputs = features[index.loc[train].to_numpy(int)]
    for seed in (1, 2):
        scaler = StandardScaler().fit(inputs)
        model = LogisticRegression(C=rows.loc[seed, "choice"], tol=1e-8, max_iter=5000)
        model.fit(scaler.transform(inputs), np.arange(24) % 2)
        test = [name_of("north", "image", "test", i) for i in range(24)]
        logits = model.decision_function(scaler.transform(features[index.loc[test].to_numpy(int)]))
        values.append(roc_auc_score(truth.loc[test].astype(int), logits))
    assert found.loc[("linear_probe", "single_source", "west", "north"), "value"] == pytest.approx(np.mean(values))


def test_poisoned_test_labels_change_no_prediction(small, monkeypatch):
    before = digests(stage(small, monkeypatch, "before"))
    relabel(small, SITES, ["test"], lambda label: 1 - label)
    assert digests(stage(small, monkeypatch, "after")) == before
    flipped = score(small, monkeypatch, "after")
    assert flipped.loc[("linear_probe", "single_source", "north", "north"), "value"] < 0.1
    relabel(small, ["south"], ["train"], lambda label: 1 - label)
    assert digests(stage(small, monkeypatch, "other")) != before


def test_rows_have_as_many_patients_as_the_poorest(small, monkeypatch):
    relabel(small, ["south"], ["train"], lambda label: label.mask(np.arange(len(label)) < 9))
    out = stage(small, monkeypatch)
    rows = read_table(MatrixRows, out / "rows.parquet")
    left = read_table(Labels, small / "labels/south/labels.parquet").set_index("image_id")["label"]
    train = left.reindex([name_of("south", "image", "train", i) for i in range(24)]).dropna()
    least = int(min((train == 1).sum(), (train == 0).sum()))
    single = rows[rows["protocol"] == "single_source"]
    assert set(single["num_patients_per_class"]) == {least}
    assert set(single["num_train_patients"]) == {2 * least}
    assert set(single["num_val_patients"]) == {4}
    pooled = rows[rows["protocol"] == "leave_one_out"]
    assert set(pooled["num_train_patients"]) == {2 * int(pooled["num_patients_per_class"].iloc[0])}
    every = stage(small, monkeypatch, "all", {**SECTION, "equalised": False})
    rows = read_table(MatrixRows, every / "rows.parquet")
    single = rows[rows["protocol"] == "single_source"].set_index(["row", "seed"])
    assert single["num_patients_per_class"].isna().all()
    assert single.loc[("north", 1), "num_train_patients"] == 24
    assert single.loc[("south", 1), "num_train_patients"] == len(train)


def test_a_hospital_that_cannot_train_is_a_row_without_values_and_says_why(small, monkeypatch):
    relabel(small, ["west"], ["train"], lambda label: label * 0)
    relabel(small, ["south"], ["test"], lambda label: label * 0)
    stage(small, monkeypatch)
    found = score(small, monkeypatch)
    own = found.loc[("linear_probe", "single_source")]
    west = own.loc["west"]
    assert west["value"].isna().all()
    assert set(west["note"]) == {"too few labelled patients: 0 with the finding, 2 are needed"}
    assert own.loc[("north", "north"), "value"] > 0.9
    assert np.isnan(own.loc[("north", "south"), "value"])
    assert own.loc[("north", "south"), "note"] == "one class only (positives: 0)"
    cell = own.loc[("north", "west")]
    assert cell["value"] > 0.9
    assert np.isnan(cell["difference"])
    assert "no difference: no model was trained on the tested hospital alone" in cell["note"]


def test_fine_tuning_where_it_is_asked_for(small, monkeypatch):
    """One epoch, to see that it comes to the tables; and a killed job trains nothing twice."""
    still = {"rotation_degrees": 0.0, "translation": 0.0, "scale": 0.0, "contrast": 0.0}
    section = {
        **SECTION, "seeds": [1], "protocols": ["leave_one_out"],
        "full_finetune": {"learning_rate": 1e-3, "loop": {"augment": still}},
    }  # fmt: skip
    whole = stage(small, monkeypatch, section=section)
    found = score(small, monkeypatch)
    tuned = found.loc[("full_finetune", "leave_one_out")]
    assert list(tuned.index) == [(site, site) for site in SITES]
    assert tuned["value"].between(0, 1).all()
    assert tuned["note"].str.contains("no difference: no model was trained on the tested hospital alone").all()
    trained = []
    real = matrix.Finetunings._train

    def train(self, fit):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(fit.row)
        return real(self, fit)

    monkeypatch.setattr(matrix.Finetunings, "_train", train)
    with pytest.raises(KeyboardInterrupt):
        stage(small, monkeypatch, "again", section=section)
    monkeypatch.setattr(matrix.Finetunings, "_train", lambda self, fit: trained.append(fit.row) or real(self, fit))
    assert digests(stage(small, monkeypatch, "again", section=section)) == digests(whole)
    assert trained == list(SITES)
    assert not list((small / ".checkpoints/matrix").glob("*/*"))


def test_predictions_are_of_test_images_and_carry_no_label(done):
    root, _ = done
    rows = read_table(MatrixPredictions, root / "matrix/predictions.parquet")
    assert "label" not in rows
    assert set(rows["split"]) == {"id_test", "ood_test"}
    single = rows[rows["protocol"] == "single_source"]
    assert len(single) == 3 * 2 * 3 * 24
    left_out = rows[rows["protocol"] == "leave_one_out"]
    assert (left_out["row"] == left_out["site"]).all()


def test_features_of_other_images_are_refused(small, monkeypatch):
    index = read_table(Embedded, small / "embed/index.parquet")
    write_table(Embedded, index.iloc[1:], small / "embed/index.parquet")
    with pytest.raises(PipelineError, match="not all images have features"):
        stage(small, monkeypatch)


# --- budgets ---------------------------------------------------------------------------------------------------


def test_draws_are_whole_patients_of_both_classes_and_nested():
    labels = (np.arange(80) % 4 == 0).astype(np.float32)
    patients = np.array([f"p{index // 2:02d}" for index in range(80)])
    sides = Sides(np.arange(60), np.arange(60, 80))
    assert shortage(labels, patients, sides, 15) == ""
    assert shortage(labels, patients, sides, 16) == "too few labelled patients: 15 with the finding, 16 are needed"
    assert "no labelled patient to select on" in shortage(labels, patients, Sides(sides.train, sides.val[:0]), 1)
    found = budget(labels, patients, {"a": sides, "b": Sides(np.arange(40), np.arange(70, 80))}, equalised=True)
    assert found == Budget(10, 5)
    sick = set(patients[labels == 1])
    drawn = {n: draw(labels, patients, sides, Budget(n, 5), seed=3) for n in (2, 9)}
    for number, own in drawn.items():
        chosen = set(patients[own.train])
        assert len(chosen & sick) == len(chosen - sick) == number
        assert set(own.train) == {i for i in range(60) if patients[i] in chosen}
        assert len(set(patients[own.val])) == 5
    assert set(drawn[2].train) < set(drawn[9].train)
    assert set(draw(labels, patients, sides, Budget(2, 5), seed=4).train) != set(drawn[2].train)
    assert draw(labels, patients, sides, Budget(None, None), seed=3) == sides


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seeds": [1, 1]}, "matrix.seeds: each may stand there once"),
        ({"protocols": []}, "matrix.protocols"),
        ({"protocols": ["leave_two_out"]}, "matrix.protocols.0"),
        ({"linear_probe": {"inverse_l3": [1]}}, "did you mean 'inverse_l2'"),
        ({"least_patients": 0}, "matrix.least_patients"),
    ],
)
def test_senseless_params_are_refused(changes, text):
    with pytest.raises(ParamsError, match=text):
        parse(MatrixParams, {**SECTION, **changes}, "matrix")
