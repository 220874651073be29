import numpy as np
import pytest
import tiny

from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, PlaneFormat, write_store
from pipeline.stages import embed
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.diagnosis import Embedded
from pipeline.tables.images import Images, Splits
from pipeline.training.backbone import build
from pipeline.training.feed import to_unit


@pytest.fixture
def folder(tmp_path):
    tiny.write_sites(tmp_path)
    tiny.write_weights(tmp_path / "weights")
    tiny.write_params(tmp_path / "params.yaml")
    return tmp_path


def run(folder, monkeypatch):
    paths = {name: folder / name for name in ("split", "images", "weights")}
    tiny.call(monkeypatch, embed, **paths, out=folder / "embed", params=folder / "params.yaml")
    return np.load(folder / "embed/features.npy"), read_table(Embedded, folder / "embed/index.parquet")


def test_all_images_of_all_splits_by_the_frozen_backbone(folder, monkeypatch):
    import torch

    splits = read_table(Splits, folder / "split/splits.parquet")
    write_table(Splits, splits[splits["image_id"] != "home-id_val-2"], folder / "split/splits.parquet")
    features, index = run(folder, monkeypatch)
    assert set(index["image_id"]) == set(splits["image_id"]) - {"home-id_val-2"}
    assert sorted(index["row"]) == list(range(29)) == list(range(len(features)))
    assert set(index["split"]) == {"train", "id_val", "id_test", "target_adapt", "ood_test"}
    model = build(tiny.BACKBONE, 1, seed=0, state=tiny.weights(), image_shape=(1, 32, 32)).eval()
    for name in ("home-id_test-3", "away-ood_test-5"):
        site = name.split("-")[0]
        at = read_table(Images, folder / "images" / site / INDEX_FILE).set_index("image_id").loc[name, "array_index"]
        pixels = torch.from_numpy(np.load(folder / "images" / site / "planes-0000-of-0001.npy")[[at]][:, None])
        with torch.no_grad():
            expected = model.features(to_unit(pixels, torch.device("cpu"), torch.contiguous_format)).numpy()[0]
        row = index.set_index("image_id").loc[name, "row"]
        assert features[row] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_no_label_is_read_and_the_same_bytes_again(folder, monkeypatch):
    run(folder, monkeypatch)
    before = {path.name: path.read_bytes() for path in (folder / "embed").iterdir()}
    for path in (folder / "labels").rglob("*.parquet"):
        path.unlink()
    run(folder, monkeypatch)
    assert {path.name: path.read_bytes() for path in (folder / "embed").iterdir()} == before


def test_sites_of_other_shapes_are_refused(folder, monkeypatch):
    write_store(tiny.images(np.zeros(12), 16), np.arange(12)[:, None], PlaneFormat(16, 8), folder / "images/away")
    with pytest.raises(PipelineError, match="differ in shape"):
        run(folder, monkeypatch)
