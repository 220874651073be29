"""The stage over two sites: what it writes, the same bytes whatever the batches, and whose images it tells."""

from importlib.metadata import version

import cv2
import numpy as np
import pytest
import tiny

from pipeline.imaging.store import INDEX_FILE
from pipeline.params import ParamsError
from pipeline.stages import quality
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.files import Instances
from pipeline.tables.images import Images, Splits
from pipeline.tables.quality import Balance, GreyHistograms, OutlierCounts, Outliers, QualityScores, TableOne

TABLES = {
    "table_one": TableOne,
    "balance": Balance,
    "histograms": GreyHistograms,
    "outliers": Outliers,
    "outlier_counts": OutlierCounts,
    "scores": QualityScores,
}
VERSIONS = {name: version(name) for name in ("numpy", "opencv-python-headless")}


@pytest.fixture
def folder(tmp_path):
    """Two sites as the stages before leave them; the last image of each has no place in a split."""
    tiny.write_sites(tmp_path, per_split=12)
    splits = read_table(Splits, tmp_path / "split/splits.parquet")
    for site, rows in splits.groupby("site"):
        index = read_table(Images, tmp_path / "images" / site / INDEX_FILE)
        placed = index.assign(resized_rows=32, resized_columns=32, pad_top=0, pad_left=0)
        write_table(Images, placed, tmp_path / "images" / site / INDEX_FILE)
        common = {"site": site, "source_id": "s", "frame": 0, "rows": 32, "columns": 32, "source_hmac": "h", "sex": "F"}
        instances = rows[["image_id", "patient_id"]].assign(study_id=rows["image_id"], **common)
        write_table(Instances, instances, tmp_path / "ingest" / site / "instances.parquet")
    last = splits.groupby("site")["image_id"].max()
    write_table(Splits, splits[~splits["image_id"].isin(last)], tmp_path / "split/splits.parquet")
    return tmp_path


def run(folder, monkeypatch, **params):
    path = tiny.write_params(folder / "params.yaml", quality=params, versions=VERSIONS)
    folders = {name: folder / name for name in ("ingest", "images", "labels", "split")}
    tiny.call(monkeypatch, quality, **folders, out=folder / "quality", params=path)
    return folder / "quality"


def test_writes_tables_and_sheets_of_the_images_that_are_used(folder, monkeypatch):
    out = run(folder, monkeypatch, tiles=8)
    tables = {name: read_table(contract, out / f"{name}.parquet") for name, contract in TABLES.items()}
    splits = read_table(Splits, folder / "split/splits.parquet")
    total = tables["table_one"][tables["table_one"]["variable"] == "total"]
    assert total["num_images"].sum() == len(splits) == 58
    assert total["num_patients"].sum() == splits["patient_id"].nunique()
    counts = tables["outlier_counts"].set_index(["site", "kind"])["num_judged"]
    assert counts["home", "unusual"] == 35
    assert counts["away", "unusual"] == 0  # 23 images are too few to say what is usual
    assert set(tables["histograms"]["site"]) == {"home", "away"}
    assert set(tables["balance"]["site"]) == {"away"}
    for site in ("home", "away"):
        sheet = cv2.imread(str(out / "sheets" / f"{site}.png"), cv2.IMREAD_UNCHANGED)
        assert sheet.shape == (130, 8 * 130)
        assert all(sheet[:128, 130 * n : 130 * n + 128].std() > 10 for n in range(8))
    # `withdraw` judges an output with rows by its rows: each image that went in must have one.
    assert set(tables["scores"]["image_id"]) == set(splits["image_id"])


def test_the_same_bytes_whatever_the_batches(folder, monkeypatch):
    out = run(folder, monkeypatch)
    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(quality, "_BATCH", 3)
    run(folder, monkeypatch)
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_pixels_are_taken_by_index_not_by_row(folder, monkeypatch):
    out = run(folder, monkeypatch)
    index = read_table(Images, folder / "images/home" / INDEX_FILE).set_index("image_id")["array_index"]
    scores = read_table(QualityScores, out / "scores.parquet").set_index("image_id")["blank"]
    store = np.load(folder / "images/home/planes-0000-of-0001.npy")
    for name in index.index[:5]:
        low, high = np.quantile(store[index[name]], (0.05, 0.95), method="inverted_cdf").astype(float)
        assert scores[name] == pytest.approx((high - low) / 255)


def test_a_misspelt_threshold_is_refused(folder, monkeypatch):
    with pytest.raises(ParamsError, match="did you mean 'blank_spread'"):
        run(folder, monkeypatch, blank_spred=0.1)
