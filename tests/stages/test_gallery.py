"""gallery: its tables and maps against the model by hand, and what it says where there is nothing to show."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy.special import expit

from pipeline.analysis.evaluation import EvaluateParams, evaluate
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, PlaneFormat, Store, write_store
from pipeline.params import ParamsError
from pipeline.stages import gallery
from pipeline.tables.contract import make_table, read_table, write_table
from pipeline.tables.evaluation import Thresholds
from pipeline.tables.gallery import REGIONS, CallCounts, Gallery, MapMeans, MapShares
from pipeline.tables.images import Images, Splits
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Runs
from pipeline.training.backbone import build
from pipeline.training.checkpoints import MODEL_CARD, load_model, save_model, trunk_digest
from pipeline.training.feed import to_unit
from pipeline.training.gradcam import NO_MAP, MapMaker

PER_SPLIT = 12
RUN = f"{tiny.BACKBONE}-scratch-seed1"
CHOSEN = {"backbone": tiny.BACKBONE, "method": "scratch", "seed": 1, "per_site": 2, "resamples": 100}
SIZE = 64
PLACED = {"resized_rows": SIZE, "resized_columns": 48, "pad_top": 0, "pad_left": 8}
TABLES = {"gallery": Gallery, "shares": MapShares, "means": MapMeans, "counts": CallCounts}


def predicted(folder, model):
    """Of one finding the model's own logits, of the other noise; two images a patient."""
    splits = read_table(Splits, folder / "split/splits.parquet")
    rows = []
    for site, part in splits[splits["split"] != "train"].groupby("site"):
        index = read_table(Images, folder / "images" / site / INDEX_FILE)[["image_id", "array_index"]]
        own = part.merge(index, on="image_id")
        pixels = torch.from_numpy(Store(folder / "images" / site).read(own["array_index"].to_numpy(np.int64)))
        with torch.no_grad():
            logits = model(to_unit(pixels, torch.device("cpu"), torch.contiguous_format)).double().numpy()
        for number, row in enumerate(own.to_dict("records")):
            for position, finding in enumerate(("effusion", "opacity")):
                label = (number + position) % 2 if finding == "opacity" or site == "home" else None
                rows.append(
                    {"image_id": row["image_id"], "finding": finding, "run": RUN, "protocol": "home", "draw": 0,
                     "backbone": tiny.BACKBONE, "method": "scratch", "seed": 1, "label_fraction": 1.0,
                     "adaptation": "none", "patient_id": f"{site}{row['split']}{number // 2}",
                     "study_id": f"{site}{row['split']}{number // 2}", "site": site, "split": row["split"],
                     "label": None if row["split"] == "target_adapt" else label, "logit": logits[number, position],
                     "probability": expit(logits[number, position])}
                )  # fmt: skip
    return make_table(Predictions, rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    tiny.write_sites(folder, per_split=PER_SPLIT)
    for site in ("home", "away"):
        path = folder / "images" / site / INDEX_FILE
        index = read_table(Images, path).assign(**PLACED)
        write_table(Images, index, path)
        pixels = tiny.images(np.arange(len(index)) % 2, SIZE, seed=len(site))
        write_store(pixels, np.arange(len(index))[:, None], PlaneFormat(SIZE, 8), path.parent)
    model = build(tiny.BACKBONE, 2, seed=5, state=dict(tiny.weights())).eval()
    card = {
        "run": RUN, "backbone": tiny.BACKBONE, "findings": ["effusion", "opacity"], "image_shape": [1, SIZE, SIZE],
        "hidden": None, "pooled": False, "input": model.input_spec, "trunk_sha256": trunk_digest(model),
    }  # fmt: skip
    home = folder / "models" / f"{tiny.BACKBONE}-scratch" / RUN
    save_model(model, card, home)
    predictions = predicted(folder, model)
    write_table(Predictions, predictions, folder / "predict/predictions.parquet")
    sha256 = json.loads((home / MODEL_CARD).read_text())["file_sha256"]
    run = {"run": RUN, "backbone": tiny.BACKBONE, "method": "scratch", "seed": 1, "label_fraction": 1.0}
    others = [{**run, "run": f"{RUN}-shots2-draw0", "shots": 2}, {**run, "run": "other", "label_fraction": 0.5}]
    write_table(Runs, [{**run, "model_sha256": sha256}, *others], folder / "predict/runs.parquet")
    result = evaluate(predictions, EvaluateParams(seed=1, resamples=100), ["home"], ["away"])
    write_table(Thresholds, result.thresholds, folder / "thresholds.parquet")
    result.metrics.to_parquet(folder / "metrics.parquet")
    return folder


@pytest.fixture
def study(made, tmp_path):
    return shutil.copytree(made, tmp_path / "study")


def run(study, monkeypatch, out="gallery", changes=(), **params):
    entry = {"shown": {**CHOSEN, **dict(changes)}}
    path = tiny.write_params(study / "params.yaml", gallery=entry, **params)
    folders = {name: study / name for name in ("images", "models", "predict")}
    tiny.call(
        monkeypatch, gallery, "--name", "shown", **folders,
        thresholds=study / "thresholds.parquet", out=study / out, params=path,
    )  # fmt: skip
    return {name: read_table(table, study / out / f"{name}.parquet") for name, table in TABLES.items()}


def test_shows_what_evaluation_judged_with_the_maps_of_that_model(study, monkeypatch):
    tables = run(study, monkeypatch)
    counts, shown = tables["counts"].set_index(["finding", "site", "kind"]), tables["gallery"]
    metrics = pd.read_parquet(study / "metrics.parquet")
    metrics = metrics[metrics["run"] == f"{tiny.BACKBONE}-scratch"].set_index(["finding", "group", "metric"])["value"]
    for site in ("home", "away"):
        called = counts.loc["opacity", site]["num_images"]
        for metric, right, wrong in (
            ("sensitivity", "true_positive", "false_negative"),
            ("specificity", "true_negative", "false_positive"),
        ):
            share = called[right] / (called[right] + called[wrong])
            assert share == pytest.approx(metrics["opacity", f"site={site}", metric])
    assert (counts.loc["effusion", "away"]["num_images"] == 0).all()
    assert (counts.loc["effusion", "away"]["note"] == "no annotated test image").all()
    assert set(shown["split"]) == {"id_test", "ood_test"}
    assert len(shown) > 8
    assert (shown.groupby(["finding", "site", "kind"])["rank"].max() <= 2).all()

    maps = np.load(study / "gallery/maps.npy")
    assert list(shown["array_index"]) == list(range(len(maps)))
    model, card = load_model(study / "models" / f"{tiny.BACKBONE}-scratch" / RUN)
    maker = MapMaker(model)
    every = tables["shares"].set_index(["finding", "image_id"])
    for row in shown.to_dict("records"):
        index = read_table(Images, study / "images" / row["site"] / INDEX_FILE).set_index("image_id")["array_index"]
        pixels = torch.from_numpy(Store(study / "images" / row["site"]).read([int(index[row["image_id"]])]))
        unit = to_unit(pixels, torch.device("cpu"), torch.contiguous_format)
        present = row["kind"].endswith("positive")
        assert present == (row["probability"] >= row["threshold"])
        expected = maker.maps(unit, card["findings"].index(row["finding"]), present=present).values[0]
        at = maps[row["array_index"]]
        assert at.max() == 255 or not expected.any()
        assert at == pytest.approx(255 * expected / max(expected.max(), 1e-30), abs=0.6)
        assert (row["map_rows"], row["map_columns"]) == (2, 2)
        if expected.any():
            outside = expected[:, :8].sum() + expected[:, -8:].sum()
            assert row["padding"] == pytest.approx(outside / expected.sum(), rel=1e-4)
        own = every.loc[row["finding"], row["image_id"]]
        assert [own[name] for name in REGIONS] == pytest.approx([row[name] for name in REGIONS], nan_ok=True)
        assert own["padding_area"] == pytest.approx(0.25)


def test_every_annotated_test_image_is_measured_up_to_the_limit(study, monkeypatch):
    tables = run(study, monkeypatch, changes={"findings": ["opacity"]})
    assert set(tables["shares"]["finding"]) == {"opacity"}
    assert len(tables["shares"]) == 2 * PER_SPLIT
    assert tables["shares"]["drawn"].all()
    few = run(study, monkeypatch, changes={"findings": ["opacity"], "max_images": 4})
    drawn = few["shares"][few["shares"]["drawn"]]
    assert (drawn.groupby("site").size() == 4).all()
    assert set(few["gallery"]["image_id"]) <= set(few["shares"]["image_id"])  # shown whether they are drawn or not
    assert few["gallery"].equals(tables["gallery"])
    assert few["means"].groupby("site")["num_images"].max().max() <= 4
    assert few["counts"].equals(tables["counts"])


def test_the_same_bytes_again(study, monkeypatch):
    for out in ("gallery", "again"):
        run(study, monkeypatch, out=out, changes={"findings": ["opacity"]})
    for path in (study / "gallery").iterdir():
        assert path.read_bytes() == (study / "again" / path.name).read_bytes()
    assert {path.name for path in (study / "again").iterdir()} == {f"{name}.parquet" for name in TABLES} | {"maps.npy"}


def test_an_architecture_without_a_map_is_shown_without(study, monkeypatch):
    monkeypatch.setattr(gallery, "has_map", lambda _: False)
    tables = run(study, monkeypatch)
    assert len(tables["gallery"]) > 8
    assert tables["gallery"]["array_index"].isna().all()
    assert (tables["gallery"]["note"] == NO_MAP).all()
    assert tables["means"]["value"].isna().all()
    assert NO_MAP in set(tables["means"]["note"])
    assert np.load(study / "gallery/maps.npy").shape == (0, SIZE, SIZE)


def change(study, **columns):
    path = study / "predict/predictions.parquet"
    frame = read_table(Predictions, path)
    write_table(Predictions, frame.assign(**{name: values(frame) for name, values in columns.items()}), path)


def test_a_site_without_mistakes(study, monkeypatch):
    threshold = read_table(Thresholds, study / "thresholds.parquet").set_index("finding")["threshold"]
    change(study, label=lambda frame: (frame["probability"] >= frame["finding"].map(threshold)).astype("Int8"))
    tables = run(study, monkeypatch)
    assert set(tables["gallery"]["kind"]) <= {"true_positive", "true_negative"}
    means = tables["means"].set_index("group")
    assert means.loc["mistakes", "value"].isna().all()
    assert (means.loc["mistakes", "note"] == "no such call").all()


def test_one_class_and_no_labels(study, monkeypatch):
    change(study, label=lambda frame: frame["label"].where(frame["site"] == "home"))
    tables = run(study, monkeypatch)
    assert set(tables["gallery"]["site"]) == {"home"}
    away = tables["means"][tables["means"]["site"] == "away"]
    assert len(away) > 0
    assert (away["note"] == "no annotated test image").all()
    assert away["value"].isna().all()
    change(study, label=lambda frame: frame["label"].where(frame["label"].isna(), 1))
    kinds = set(run(study, monkeypatch)["gallery"]["kind"])
    assert kinds <= {"true_positive", "false_negative"}


def test_without_a_threshold_nothing_is_called(study, monkeypatch):
    path = study / "thresholds.parquet"
    write_table(Thresholds, read_table(Thresholds, path).assign(threshold=None), path)
    tables = run(study, monkeypatch)
    assert tables["gallery"].empty
    assert tables["shares"].empty
    assert set(tables["counts"]["note"]) == set(tables["means"]["note"]) == {gallery.NO_THRESHOLD}


def test_labels_that_may_not_be_seen_change_nothing(study, monkeypatch):
    only = {"findings": ["opacity"]}
    before = run(study, monkeypatch, changes=only)
    change(study, label=lambda frame: frame["label"].where(~frame["split"].isin(["id_val", "target_adapt"]), 1))
    after = run(study, monkeypatch, changes=only)
    assert all(before[name].equals(after[name]) for name in TABLES)


def test_poisoned_pixels_change_the_map_and_not_what_is_shown(study, monkeypatch):
    before = run(study, monkeypatch)
    first = before["gallery"].iloc[0]
    index = read_table(Images, study / "images" / first["site"] / INDEX_FILE).set_index("image_id")["array_index"]
    path = study / "images" / first["site"] / "planes-0000-of-0001.npy"
    planes = np.load(path)
    planes[index[first["image_id"]]] = 255 - planes[index[first["image_id"]]].T
    np.save(path, planes)
    maps = np.load(study / "gallery/maps.npy")
    after = run(study, monkeypatch)
    assert after["gallery"]["image_id"].equals(before["gallery"]["image_id"])
    assert (np.load(study / "gallery/maps.npy")[1:] == maps[1:]).mean() > 0.9
    (study / "images" / first["site"] / "planes-0000-of-0001.npy").write_bytes(b"poison")
    with pytest.raises(PipelineError, match="damaged"):
        run(study, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method": "scratsh"}, r"gallery.shown.method: no training with all labels has 'scratsh'.*'scratch'"),
        ({"backbone": "shufflenet_v2_x0_6"}, "did you mean 'shufflenet_v2_x0_5'"),
        ({"seed": 12}, r"gallery.shown.seed: .* '12'; did you mean '1'"),
        ({"findings": ["opacty"]}, r"gallery.shown.findings: the model has no 'opacty'; did you mean 'opacity'"),
        ({"per_site": 0}, "gallery.shown.per_site"),
        ({"per_sites": 3}, "did you mean 'per_site'"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_name(study, monkeypatch, changes, text):
    with pytest.raises(ParamsError, match=text):
        run(study, monkeypatch, changes=changes)


def test_nothing_is_chosen_silently(study, monkeypatch):
    path = tiny.write_params(study / "params.yaml", gallery={"shown": {"backbone": tiny.BACKBONE, "seed": 1}})
    with pytest.raises(ParamsError, match=r"gallery.shown.method: required"):
        gallery.load_params(gallery.GalleryParams, "gallery.shown", path)


def test_a_model_that_did_not_predict_is_refused(study, monkeypatch):
    path = study / "predict/runs.parquet"
    write_table(Runs, read_table(Runs, path).assign(model_sha256="ab"), path)
    with pytest.raises(PipelineError, match="not the one that predicted"):
        run(study, monkeypatch)


def test_studies_are_called_as_evaluation_called_them(study, monkeypatch):
    tables = run(study, monkeypatch, evaluate={"resamples": 100, "seed": 1, "unit": "study"})
    assert tables["counts"].set_index(["finding", "site"]).loc[("opacity", "home"), "num_images"].sum() == PER_SPLIT / 2
