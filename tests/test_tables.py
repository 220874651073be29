"""Contracts hold on both ways, equal content gives equal bytes, and errors quote no cell."""

import hashlib
from importlib import import_module
from pkgutil import iter_modules

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.tables
from pipeline.tables import contract
from pipeline.tables.files import Exclusions
from pipeline.tables.labels import Labels

ROWS = [{"image_id": f"i{n}", "finding": "opacity", "label": [0, 1, None][n % 3]} for n in range(7)]
MODULES = [import_module(f"pipeline.tables.{found.name}") for found in iter_modules(pipeline.tables.__path__)]
ALL = [
    cls
    for module in MODULES
    for cls in vars(module).values()
    if isinstance(cls, type)
    and issubclass(cls, contract.Table)
    and cls is not contract.Table
    and cls.__module__ == module.__name__
]


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.__name__)
def test_each_contract_is_coherent_and_takes_no_rows(table, tmp_path):
    assert set(table.key) | set(table.required) | set(table.vocabulary) <= set(table.columns)
    assert table.__doc__
    contract.write_table(table, [], tmp_path / "x.parquet")
    assert list(contract.read_table(table, tmp_path / "x.parquet").columns) == list(table.columns)


@given(st.permutations(ROWS))
def test_bytes_do_not_hang_on_order(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "labels.parquet"
    contract.write_table(Labels, rows, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    contract.write_table(Labels, ROWS, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_null_stays_null(tmp_path):
    contract.write_table(Labels, ROWS, tmp_path / "x.parquet")
    labels = contract.read_table(Labels, tmp_path / "x.parquet")["label"]
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
    with pytest.raises(contract.TableError, match=text) as raised:
        contract.make_table(Labels, rows)
    assert NAME not in str(raised.value)


def test_closed_vocabulary():
    row = {"source_id": "s", "stage": "x", "site": "a", "outcome": "rejected", "reason": NAME}
    with pytest.raises(contract.TableError, match="1 values outside") as raised:
        contract.make_table(Exclusions, [row])
    assert NAME not in str(raised.value)


def test_bad_files_are_told(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(contract.TableError, match="dvc repro"):
        contract.read_table(Labels, path)
    path.write_bytes(b"no parquet")
    with pytest.raises(contract.TableError, match="no Parquet"):
        contract.read_table(Labels, path)
    pq.write_table(pa.table({"image_id": ["i"], "finding": ["f"], "label": [NAME], "status": ["given"]}), path)
    with pytest.raises(contract.TableError, match="other types") as raised:
        contract.read_table(Labels, path)
    assert NAME not in str(raised.value)
    pq.write_table(pa.table({"image_id": ["i"]}), path)
    with pytest.raises(contract.TableError, match="expected"):
        contract.read_table(Labels, path)


def test_key_is_checked_over_all_files(tmp_path):
    for name in "ab":
        contract.write_table(Labels, ROWS, tmp_path / name)
    with pytest.raises(contract.TableError, match="7 rows repeat"):
        contract.read_tables(Labels, [tmp_path / "a", tmp_path / "b"])


def test_empty_frame_beside_a_full_one(tmp_path):
    contract.write_table(Exclusions, [], tmp_path / "a")
    row = {"source_id": "s", "stage": "x", "site": "a", "outcome": "rejected", "reason": "truncated"}
    contract.write_table(Exclusions, [row], tmp_path / "b")
    both = contract.read_tables(Exclusions, [tmp_path / "a", tmp_path / "b"])
    assert len(both) == 1
    assert pd.isna(both["detail"][0])
