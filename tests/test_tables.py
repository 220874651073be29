"""Contracts hold on both ways, equal content gives equal bytes, and errors quote no cell."""

import hashlib

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tables as t

ROWS = [{"image_id": f"i{n}", "finding": "opacity", "label": [0, 1, None][n % 3]} for n in range(7)]
ALL = [cls for cls in vars(t).values() if isinstance(cls, type) and issubclass(cls, t.Table) and cls is not t.Table]


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.__name__)
def test_each_contract_is_coherent_and_takes_no_rows(table, tmp_path):
    assert set(table.key) | set(table.required) | set(table.vocabulary) <= set(table.columns)
    assert table.__doc__
    t.write_table(table, [], tmp_path / "x.parquet")
    assert list(t.read_table(table, tmp_path / "x.parquet").columns) == list(table.columns)


@given(st.permutations(ROWS))
def test_bytes_do_not_hang_on_order(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "labels.parquet"
    t.write_table(t.Labels, rows, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    t.write_table(t.Labels, ROWS, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_null_stays_null(tmp_path):
    t.write_table(t.Labels, ROWS, tmp_path / "x.parquet")
    labels = t.read_table(t.Labels, tmp_path / "x.parquet")["label"]
    assert labels.tolist()[:2] == [0, 1]
    assert labels.isna().sum() == 2
    assert str(labels.dtype) == "Int8"


NAME = "ZEBRAFELD"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"image_id": NAME, "finding": "a"}] * 2, "1 rows repeat a key"),
        ([{"image_id": None, "finding": "a"}], "Labels.image_id: 1 of 1 rows are null"),
        ([{"finding": "a"}], "Labels.image_id"),
        ([{"image_id": "i", "finding": "a", "label": NAME}], "Labels.label: not all values are int8"),
        ([{"image_id": "i", "finding": "a", "label": 300}], "Labels.label"),
        ([{"image_id": "i", "finding": "a", "label": 0.5}], "Labels.label"),
        ([{"image_id": "i", "finding": "a", "lable": 1}], r"unknown columns \['lable'\]"),
        ([{"image_id": 5, "finding": "a"}], "Labels.image_id"),
    ],
)
def test_broken_rows(rows, text):
    with pytest.raises(t.TableError, match=text) as raised:
        t.make_table(t.Labels, rows)
    assert NAME not in str(raised.value)


def test_closed_vocabulary():
    row = {"source_id": "s", "stage": "x", "site": "a", "outcome": "rejected", "reason": NAME}
    with pytest.raises(t.TableError, match="1 values outside") as raised:
        t.make_table(t.Exclusions, [row])
    assert NAME not in str(raised.value)


def test_bad_files_are_told(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(t.TableError, match="dvc repro"):
        t.read_table(t.Labels, path)
    path.write_bytes(b"no parquet")
    with pytest.raises(t.TableError, match="no Parquet"):
        t.read_table(t.Labels, path)
    pq.write_table(pa.table({"image_id": ["i"], "finding": ["f"], "label": [NAME], "status": ["given"]}), path)
    with pytest.raises(t.TableError, match="other types") as raised:
        t.read_table(t.Labels, path)
    assert NAME not in str(raised.value)
    pq.write_table(pa.table({"image_id": ["i"]}), path)
    with pytest.raises(t.TableError, match="expected"):
        t.read_table(t.Labels, path)


def test_key_is_checked_over_all_files(tmp_path):
    for name in "ab":
        t.write_table(t.Labels, ROWS, tmp_path / name)
    with pytest.raises(t.TableError, match="7 rows repeat"):
        t.read_tables(t.Labels, [tmp_path / "a", tmp_path / "b"])


def test_empty_frame_beside_a_full_one(tmp_path):
    t.write_table(t.Exclusions, [], tmp_path / "a")
    row = {"source_id": "s", "stage": "x", "site": "a", "outcome": "rejected", "reason": "truncated"}
    t.write_table(t.Exclusions, [row], tmp_path / "b")
    both = t.read_tables(t.Exclusions, [tmp_path / "a", tmp_path / "b"])
    assert len(both) == 1
    assert pd.isna(both["detail"][0])
