"""The contracts of all tables, one class each, and the only code that reads and writes Parquet.

A table is checked on both ways: columns, types, closed vocabularies, nulls in the key, duplicate keys. Rows
are sorted by key before writing, so that equal content gives equal bytes whatever order it was made in.
Written with the same pyarrow, Parquet holds no clock and no path.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError


class TableError(PipelineError, ValueError):
    """A table does not keep its contract; the text names table, column and constraint, and no cell's value."""


class Table:
    """A contract: column names with types in order, the key, and closed vocabularies."""

    columns: ClassVar[Mapping[str, pa.DataType]]
    key: ClassVar[tuple[str, ...]]
    vocabulary: ClassVar[Mapping[str, frozenset[str]]] = {}
    required: ClassVar[tuple[str, ...]] = ()  # not null, beside the key


def make_table(table: type[Table], rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Rows as a frame that keeps ``table``'s contract, sorted by key; columns that rows lack are null.

    Raises:
        TableError: a column too many, a value of the wrong type or outside its vocabulary, a null or a
            duplicate in the key.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    surplus = sorted(set(map(str, frame.columns)) - set(table.columns))
    if surplus:
        raise TableError(f"{table.__name__}: unknown columns {surplus}; expected {list(table.columns)}")
    return _check(table, _to_arrow(table, frame.reindex(columns=list(table.columns)))).to_pandas(
        types_mapper=_DTYPES.get
    )


def write_table(table: type[Table], rows: Iterable[Mapping[str, Any]] | pd.DataFrame | pa.Table, path: Path) -> None:
    """Check, sort by key and write as Parquet; see ``make_table`` for the errors."""
    data = _check(table, rows) if isinstance(rows, pa.Table) else _to_arrow(table, make_table(table, rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    # One chunk a column: how the rows came in batches does not reach the bytes.
    pq.write_table(data.combine_chunks(), path, compression="zstd")


class RowWriter:
    """Rows of one table, given one by one and held as Arrow columns: a tenth of the memory of dicts."""

    _BATCH = 512

    def __init__(self, table: type[Table]) -> None:
        self._table = table
        self._rows: list[Mapping[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take rows; columns that they lack are null."""
        self._rows.extend(rows)
        if len(self._rows) >= self._BATCH:
            self._flush()

    def finish(self) -> pa.Table:
        """All rows, in the order given; unchecked but for their types: ``write_table`` checks.

        Raises:
            TableError: a column too many, or a value of the wrong type.
        """
        self._flush()
        return pa.Table.from_batches(self._batches, schema=_schema(self._table))

    def _flush(self) -> None:
        surplus = sorted({name for row in self._rows for name in row} - set(self._table.columns))
        if surplus:
            raise TableError(f"{self._table.__name__}: unknown columns {surplus}; expected {list(self._table.columns)}")
        try:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=_schema(self._table)))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            raise TableError(f"{self._table.__name__}: not all values are of their columns' types") from None
        self._rows = []


def read_table(table: type[Table], path: Path) -> pd.DataFrame:
    """Read and check; nullable dtypes (Int64, boolean, string), so that null never turns into 0 or NaN text.

    Raises:
        TableError: the file is not there, or does not keep the contract.
    """
    if not path.is_file():
        raise TableError(f"{table.__name__}: {path} is not there; `dvc repro` makes it")
    try:
        raw = pq.read_table(path)
    except pa.ArrowInvalid:
        raise TableError(f"{table.__name__}: {path} is no Parquet file; `dvc repro` makes it") from None
    if raw.schema.names != list(table.columns):
        raise TableError(f"{table.__name__}: {path} has columns {raw.schema.names}, expected {list(table.columns)}")
    try:
        data = raw.cast(_schema(table))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # its text quotes cells
        raise TableError(f"{table.__name__}: {path} has columns of other types than expected") from None
    return _check(table, data).to_pandas(types_mapper=_DTYPES.get)


def read_tables(table: type[Table], paths: Iterable[Path]) -> pd.DataFrame:
    """Several files of one contract as one frame, the key checked over all of them."""
    frames = [read_table(table, path) for path in paths]
    return make_table(table, pd.concat(frames, ignore_index=True) if frames else [])


def plain_text(frame: pd.DataFrame) -> pd.DataFrame:
    """With texts as Python objects: in pandas 3.1 ``isin`` of 400,000 Arrow strings takes 10 s, of objects 0.1 s."""
    return frame.astype(dict.fromkeys(frame.select_dtypes("string").columns, object))


# pandas' own nullable types, but for floats: there null and NaN are one thing, and NumPy's are what the
# numeric code wants.
_DTYPES = {
    pa.string(): pd.StringDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


def _schema(table: type[Table]) -> pa.Schema:
    return pa.schema(list(table.columns.items()))


def _to_arrow(table: type[Table], frame: pd.DataFrame) -> pa.Table:
    columns = []
    for name, dtype in table.columns.items():
        try:
            columns.append(pa.Array.from_pandas(frame[name], type=dtype))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            raise TableError(f"{table.__name__}.{name}: not all values are {dtype}") from None
    return pa.Table.from_arrays(
        [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns],
        schema=_schema(table),
    )


def _check(table: type[Table], data: pa.Table) -> pa.Table:
    for name in (*table.key, *table.required):
        if data.column(name).null_count:
            raise TableError(f"{table.__name__}.{name}: {data.column(name).null_count} of {len(data)} rows are null")
    for name, allowed in table.vocabulary.items():
        seen = {value for value in data.column(name).unique().to_pylist() if value is not None}
        if seen - allowed:
            raise TableError(f"{table.__name__}.{name}: {len(seen - allowed)} values outside {sorted(allowed)}")
    data = data.sort_by([(name, "ascending") for name in table.key])
    keys = data.select(list(table.key)).to_pandas()
    if keys.duplicated().any():
        raise TableError(f"{table.__name__}: {int(keys.duplicated().sum())} rows repeat a key {table.key}")
    return data
