"""Tables that a program has in memory, opened as rows: data frames, Arrow tables, datasets, texts with labels.

Cells are read as they are, a chunk of rows at a time, so that a bad one is named by row and column as in a file. No
table is copied, and the index of a data frame is never read.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa

from ulmfit_pipe.data.labels import can_be, typed_label
from ulmfit_pipe.data.tables.row_sources import RowSource, unique_names
from ulmfit_pipe.data.tables.saved_datasets import open_dataset
from ulmfit_pipe.data.tables.text_files import TableError

CHUNK_ROWS = 4096  # rows of which the cells become Python's values at once


def open_memory_table(table: Any, name: str) -> RowSource | None:
    """Open a table in memory, or return None where it is not one.

    A pandas DataFrame, a `datasets.Dataset`, and whatever gives its columns through Arrow's PyCapsule interface
    (polars, pyarrow, DuckDB, ...) or the dataframe interchange protocol.

    Args:
        table: What may be a table.
        name: What messages call it.

    Raises:
        TableError: It is a dataset with a transform.
    """
    pandas = sys.modules.get("pandas")  # who has a DataFrame has imported it
    if pandas is not None and isinstance(table, pandas.DataFrame):
        names, columns = list(table.columns), [table.iloc[:, place] for place in range(table.shape[1])]
        return _open_columns(name, names, columns, what=_sized("DataFrame", len(table)))
    if isinstance(table, datasets.Dataset):
        return _open_dataset(name, table)
    if hasattr(table, "__arrow_c_stream__"):
        return _open_stream(name, table)
    if hasattr(table, "__dataframe__"):
        from pyarrow.interchange import from_dataframe

        return _open_arrow(name, from_dataframe(table), kind=type(table).__name__)
    return None


def open_memory_columns(columns: Mapping[str, Any], name: str, *, kind: str) -> RowSource:
    """Open columns of one length: lists, Series, arrays.

    Args:
        columns: The values by the column's name.
        name: What messages call the table.
        kind: What they were given as, for the record.
    """
    values = list(columns.values())
    return _open_columns(name, list(columns), values, what=_sized(kind, len(values[0])))


def listed(column: Any) -> Sequence[Any]:
    """Return a column as something with a length, whose slices have the values: anything else than that as a list."""
    if hasattr(column, "to_pylist"):  # of Arrow, whose items are not Python's
        return column.to_pylist()
    return column if hasattr(column, "tolist") or isinstance(column, list | tuple) else list(column)


def _sized(kind: str, rows: int) -> str:
    return f"{kind} of {rows:,} rows"


def _open_columns(name: str, names: Sequence[Any], columns: Sequence[Any], *, what: str) -> RowSource:
    own_names, repeated = unique_names([str(each) for each in names])
    places = {own: place for place, own in enumerate(own_names)}

    def read(wanted: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        chosen = [columns[places[one]] for one in wanted]
        for start in range(0, len(chosen[0]) if chosen else 0, CHUNK_ROWS):
            yield from zip(*(_cells(column, start) for column in chosen), strict=True)

    return RowSource(name, own_names, read, repeated=repeated, in_memory=what)


def _cells(column: Any, start: int) -> list[Any]:
    """Return a chunk of a column as Python's values, missing ones as None, or as NaN where they are that."""
    part = getattr(column, "iloc", column)[start : start + CHUNK_ROWS]
    values = part.tolist() if hasattr(part, "tolist") else list(part)
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return values
    return [None if value is pandas.NA or value is pandas.NaT else value for value in values]


def _open_dataset(name: str, table: datasets.Dataset) -> RowSource:
    """Open a dataset; labels of `load_table` that were integers or bools are those again.

    Raises:
        TableError: Its rows are made by a function as they are read.
    """
    if table.format["type"] == "custom":
        raise TableError(
            f"{name} is a Dataset with a transform, applied only where rows are looked at; write data.map(...) "
            "with a function for it, or data.with_format(None) to have it left out"
        )
    source = open_dataset(name, table)
    kinds = {column: kind for column, feature in table.features.items() if (kind := _given_type(feature))}

    def read(wanted: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for row in source.read(wanted):
            yield tuple(_typed(value, kinds.get(column)) for column, value in zip(wanted, row, strict=True))

    return RowSource(name, source.columns, read if kinds else source.read, in_memory=_sized("Dataset", len(table)))


def _given_type(feature: Any) -> str | None:
    """Return the type, other than text, that a column of class labels was given in, or None."""
    inner = getattr(feature, "feature", feature)
    found = isinstance(inner, datasets.ClassLabel) and can_be(inner.names, inner.id)
    return inner.id if found else None


def _typed(value: Any, kind: str | None) -> Any:
    if kind is None or value is None:
        return value
    return [typed_label(each, kind) for each in value] if isinstance(value, list) else typed_label(value, kind)


def _open_stream(name: str, table: Any) -> RowSource | None:
    try:
        reader = pa.RecordBatchReader.from_stream(table)
    except (pa.ArrowException, TypeError):  # a column also has such a stream
        return None
    return _open_arrow(name, reader.read_all(), kind=type(table).__name__)


def _open_arrow(name: str, table: pa.Table, *, kind: str) -> RowSource:
    names, repeated = unique_names(table.column_names)
    places = {own: place for place, own in enumerate(names)}

    def read(wanted: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        part = table.select([places[one] for one in wanted])
        for batch in part.to_batches(max_chunksize=CHUNK_ROWS):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    return RowSource(name, names, read, repeated=repeated, in_memory=_sized(kind, table.num_rows))
