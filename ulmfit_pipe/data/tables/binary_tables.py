"""Tables in files that are not text: Parquet, Arrow (Feather), Excel and SQLite."""

import contextlib
import datetime
import itertools
import sqlite3
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ulmfit_pipe.data.tables.row_sources import RowSource, TableReading, unique_names
from ulmfit_pipe.data.tables.text_files import TableError

BATCH_ROWS = 256  # rows read at once from Parquet and Arrow
SHOWN_PARTS = 10  # sheets or tables listed in a message


def open_parquet(path: Path) -> RowSource:
    """Open a Parquet file.

    Raises:
        TableError: It cannot be read.
    """
    try:
        schema = pq.ParquetFile(path).schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path} is not a readable Parquet file (cut short?): {error}") from error

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        with _read_errors(path):
            for batch in pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False).iter_batches(
                BATCH_ROWS, columns=list(columns)
            ):
                yield from zip(*(batch.column(column).to_pylist() for column in columns), strict=True)

    twice = frozenset(name for name in schema.names if len(schema.get_all_field_indices(name)) > 1)
    return RowSource(str(path), schema.names, read, repeated=twice, plain=path.suffix.lower() == ".parquet")


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path} cannot be read to its end (cut short?): {error}") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path} holds text that is not UTF-8: {error}") from error


def open_arrow(path: Path) -> RowSource:
    """Open an Arrow file or stream, such as Feather or one that ``datasets`` wrote.

    Raises:
        TableError: It cannot be read.
    """

    def batches() -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        source = pa.memory_map(str(path))
        try:
            file = pa.ipc.open_file(source)
            return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            return stream.schema, iter(stream)

    try:
        schema = batches()[0]
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path} is not a readable Arrow file (cut short?): {error}") from error
    decoders = {name: label_decoder(feature) for name, feature in datasets.Features.from_arrow_schema(schema).items()}

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        decode = [decoders[column] for column in columns]
        with _read_errors(path):
            for whole in batches()[1]:
                for start in range(0, whole.num_rows, BATCH_ROWS):
                    batch = whole.slice(start, BATCH_ROWS)
                    for values in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
                        yield tuple([turn(value) for turn, value in zip(decode, values, strict=True)])

    twice = frozenset(name for name in schema.names if len(schema.get_all_field_indices(name)) > 1)
    return RowSource(str(path), schema.names, read, repeated=twice, schema=named_labels(schema))


def label_decoder(feature: Any) -> Callable[[Any], Any]:
    """Return a function that turns ClassLabel ids into their names, and -1, the id of an unknown label, into None."""
    inner = getattr(feature, "feature", None)
    if isinstance(feature, datasets.ClassLabel):
        return lambda value: None if value is None or value < 0 else feature.int2str(value)
    if isinstance(inner, datasets.ClassLabel):
        return lambda values: None if values is None else [inner.int2str(value) for value in values]
    return lambda value: value


def named_labels(schema: pa.Schema) -> pa.Schema:
    """Return the Arrow schema of a table whose class ids are turned into their names."""
    fields = []
    for field, feature in zip(schema, datasets.Features.from_arrow_schema(schema).values(), strict=True):
        is_list = isinstance(getattr(feature, "feature", None), datasets.ClassLabel)
        if isinstance(feature, datasets.ClassLabel) or is_list:
            field = pa.field(field.name, pa.list_(pa.string()) if is_list else pa.string())
        fields.append(field)
    return pa.schema(fields)


# Excel


def open_excel(path: Path, sheet: str | None, reading: TableReading) -> RowSource:
    """Open one sheet of an Excel file, the named one or the first; numbers and dates are read as text.

    Raises:
        TableError: openpyxl is not installed, the file cannot be read, or the sheet does not exist.
    """
    notes: list[str] = []
    first = next(_sheet_rows(path, sheet, notes), None)
    if first is None:
        raise TableError(f"{path} is empty: it has no header and no rows")
    width = max((at for at, value in enumerate(first, start=1) if value), default=0)
    if not reading.no_header and not width:
        raise TableError(f"{path}: the first row is empty; it must name the columns, or set --no_header true")
    names, repeated = unique_names([""] * len(first) if reading.no_header else first[:width])
    places = {name: place for place, name in enumerate(names)}

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        chosen = [places[column] for column in columns]
        blank = between = 0
        for row in itertools.islice(_sheet_rows(path, sheet), 0 if reading.no_header else 1, None):
            if not any(row):
                blank += 1
                continue
            blank, between = 0, between + blank
            yield tuple([row[place] if place < len(row) else "" for place in chosen])
        if between:
            notes.append(f"{path}: {between:,} blank rows between the others were passed over")

    return RowSource(str(path), names, read, untyped=True, repeated=repeated, notes=notes)


def _sheet_rows(path: Path, sheet: str | None, notes: list[str] | None = None) -> Iterator[list[str]]:
    """Yield a sheet's rows as text, without empty rows at its top."""
    try:
        import openpyxl
    except ImportError as error:
        raise TableError(
            f"{path}: Excel files need openpyxl, which is not installed: pip install 'ulmfit_pipe[excel]', or save the "
            "sheet as CSV"
        ) from error
    try:
        with contextlib.closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as book:
            names = book.sheetnames
            if sheet is None and len(names) > 1 and notes is not None:
                notes.append(f"{path}: of {len(names)} sheets {names[0]!r} is read; {path}:SHEET takes another")
            page = book.worksheets[0] if sheet is None else book[sheet]
            page.reset_dimensions()  # the size that the file records is often wrong
            rows = ([_cell_text(value) for value in row] for row in page.iter_rows(values_only=True))
            yield from itertools.dropwhile(lambda row: not any(row), rows)
    except (KeyError, ValueError, TypeError, IndexError, SyntaxError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if sheet is not None and isinstance(error, KeyError) and sheet in str(error):
            raise TableError(
                f"{path} has no sheet {sheet!r:.80}; there are {', '.join(names[:SHOWN_PARTS])}"
            ) from error
        raise TableError(f"{path} is not a readable Excel file (cut short?): {str(error)[:200]}") from error


def _cell_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # Excel stores integers as floats
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


# SQLite


def open_sqlite(path: Path, table: str | None) -> RowSource:
    """Open one table or view of an SQLite database, the named one or the only one.

    Raises:
        TableError: It cannot be read, or the table is not there or not named.
    """
    with _database(path) as database:
        found = database.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY name"
        )
        tables = [name for (name,) in found]
        if table is None and len(tables) == 1:
            table = tables[0]
        if table not in tables:
            shown = ", ".join(tables[:SHOWN_PARTS]) or "none"
            raise TableError(
                f"{path} is a database with the tables {shown}; name one after a colon, such as {path}:"
                f"{tables[0] if tables else 'TABLE'}" + ("" if table is None else f", got {table!r:.80}")
            )
        names = [each[0] for each in database.execute(f"SELECT * FROM {_quoted(str(table))} LIMIT 0").description]

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        with _database(path) as database:
            yield from database.execute(f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(str(table))}")

    return RowSource(f"{path}:{table}", names, read)


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        address = f"file:{urllib.parse.quote(str(path.resolve()))}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            yield database
    except sqlite3.Error as error:
        raise TableError(f"{path} is not a readable SQLite database: {error}") from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
