"""Rows in, the same rows with more columns out: CSV, TSV, JSONL or Parquet, in chunks, types unchanged.

A source yields chunks of columns in a lossless form: CSV cells as strings, JSON values as their text in the file,
Parquet columns as Arrow arrays. A writer takes any of these forms. Within one kind of file values stay the same;
between kinds they keep their meaning, and a column that the other kind cannot hold is refused.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ulmfit_pipe.data.tables.readers import TableError, TextLines, after_space, open_plain

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of a cell that spreadsheets evaluate (OWASP, CSV injection)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
BUFFER = 1 << 20  # bytes read ahead of a column of Parquet; without it Arrow holds a whole row group
CHUNK_CHARACTERS = 16_000_000  # limit of a chunk's text: memory does not grow with long documents
_decode_value = json.JSONDecoder().raw_decode


class JsonText(str):
    """A JSON value as its text in the file, such as ``1.10``, which a float would not keep."""


Column: TypeAlias = (
    list[str] | list[JsonText | None] | pa.Array
)  # CSV cells; JSON values, None where a row lacks the name; Arrow
Chunk: TypeAlias = dict[str, Column]


class RowStream(Protocol):
    """A table whose rows can be read in chunks, any number of times."""

    def columns(self) -> list[str]:
        """Return the names of the columns, in order."""

    def schema(self) -> pa.Schema:
        """Return Arrow types that fit every row."""

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield chunks of at most this many rows, in order."""


class RowWriter(Protocol):
    """Takes chunks, all with the same columns."""

    def write(self, chunk: Mapping[str, Column]) -> None:
        """Add rows."""

    def close(self) -> None:
        """Finish the file."""


def check_suffix(path: Path) -> str:
    """Return a file's kind, in lower case.

    Raises:
        TableError: Files of this kind are not streamed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise TableError(f"{path}: unknown suffix {path.suffix!r}; rows are streamed from and to {', '.join(SUFFIXES)}")
    return suffix


def open_stream(path: Path, *, columns: Sequence[str] | None = None) -> RowStream:
    """Open a plain table (as `RowSource` has it) whose rows `open_rows` has checked.

    Args:
        path: The file.
        columns: Names of its columns, if known; finding those of JSONL takes a pass over the whole file.

    Raises:
        TableError: Its suffix is unknown.
    """
    suffix = check_suffix(path)
    if suffix == ".jsonl":
        return _JsonStream(path, columns)
    return _ParquetStream(path) if suffix == ".parquet" else _CsvStream(path)


def open_writer(path: Path, schema: pa.Schema, *, suffix: str, escaped: Collection[str] | None = None) -> RowWriter:
    """Start a file of one of the known kinds.

    Args:
        path: The file to write, whatever its name.
        schema: Names of the columns in order, and the types that Parquet gives them.
        suffix: The kind.
        escaped: In CSV and TSV, put an apostrophe before a cell that a spreadsheet would evaluate as a formula;
            numbers are left as they are except in the columns of these names. None leaves all cells unchanged.
    """
    if suffix == ".parquet":
        return _ParquetWriter(path, schema)
    if suffix == ".jsonl":
        return _JsonWriter(path)
    return _CsvWriter(path, schema.names, delimiter="\t" if suffix == ".tsv" else ",", escaped=escaped)


def column_values(column: Column) -> list[Any]:
    """Return the Python values of a column; None where a value is missing."""
    if isinstance(column, pa.Array):
        return column.to_pylist()
    return [None if value is None else json.loads(value) if isinstance(value, JsonText) else value for value in column]


# Reading


class _CsvStream:
    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, open_plain(path)

    def columns(self) -> list[str]:
        """Return the names of the header."""
        return self.rows.columns

    def schema(self) -> pa.Schema:
        """Return a schema of strings."""
        return pa.schema([(name, pa.string()) for name in self.columns()])

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield at most `rows` rows at a time, as strings; raise TableError at a bad row."""
        names = self.columns()
        for some in in_chunks(self.rows.read(names), rows, size=lambda row: sum(map(len, row))):
            yield {name: list(cells) for name, cells in zip(names, zip(*some, strict=True), strict=True)}


class _JsonStream:
    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self.path = path
        self._columns = None if columns is None else list(columns)

    def columns(self) -> list[str]:
        """Return every name of any row, in order of first appearance."""
        if self._columns is None:
            names: dict[str, None] = {}
            for row in self._rows():
                names.update(dict.fromkeys(row))
            self._columns = list(names)
        return self._columns

    def schema(self) -> pa.Schema:
        """Return types that fit every row, after a pass over the file; raise TableError if a column has none."""
        schema = pa.schema([])
        for chunk in self.chunks(1000):
            schema = unify_types(schema, self._schema_of(chunk), name=str(self.path))
        return schema

    def _schema_of(self, chunk: Chunk) -> pa.Schema:
        return pa.schema([(name, _to_arrow(name, column, None).type) for name, column in chunk.items()])

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield at most `rows` rows at a time, as JSON text; None where a row lacks a name."""
        names = self.columns()
        for some in in_chunks(self._rows(), rows, size=lambda row: sum(map(len, row.values()))):
            yield {name: [row.get(name) for row in some] for name in names}

    def _rows(self) -> Iterator[dict[str, JsonText]]:
        return (split_object(line) for line in TextLines(self.path) if line.strip())


def unify_types(one: pa.Schema, other: pa.Schema, *, name: str) -> pa.Schema:
    """Return Arrow types that hold the rows of both.

    Raises:
        TableError: A column has no common type.
    """
    try:
        return pa.unify_schemas([one, other], promote_options="permissive")
    except pa.ArrowException as error:
        raise TableError(f"{name}: {error}; Parquet needs one type per column, write .jsonl") from error


def split_object(line: str) -> dict[str, JsonText]:
    """Return a valid JSON object's names, each with the text of its value."""
    fields: dict[str, JsonText] = {}
    at = after_space(line, line.index("{") + 1)
    while line[at] != "}":
        name, end = _decode_value(line, at)
        start = after_space(line, line.index(":", end) + 1)
        _, end = _decode_value(line, start)
        fields[name] = JsonText(line[start:end])
        at = after_space(line, end)
        if line[at] == ",":
            at = after_space(line, at + 1)
    return fields


class _ParquetStream:
    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> list[str]:
        """Return the names in the file's schema."""
        return self.schema().names

    def schema(self) -> pa.Schema:
        """Return the file's schema."""
        return pq.read_schema(self.path)

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield at most `rows` rows at a time, as Arrow arrays; raise TableError if the file cannot be read."""
        try:
            file = pq.ParquetFile(self.path, buffer_size=BUFFER, pre_buffer=False)
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            widest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0)
            for batch in file.iter_batches(min(rows, max(1, int(CHUNK_CHARACTERS / max(widest, 1))))):
                yield dict(zip(batch.schema.names, batch.columns, strict=True))
        except (pa.ArrowException, OSError) as error:
            raise TableError(f"{self.path} cannot be read to its end (cut short?): {error}") from error


def read_chunks(source: Path, stream: RowStream, rows: int) -> Iterator[Chunk]:
    """Yield a table's chunks; a read error of the disk is raised as an error of this table, not of the output.

    Raises:
        TableError: The file cannot be read to its end.
    """
    try:
        yield from stream.chunks(rows)
    except OSError as error:
        raise TableError(f"{source} cannot be read to its end: {error.strerror or error}; was it moved?") from error


def in_chunks(rows: Iterator[Any], count: int, *, size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Yield lists of at most `count` rows, shorter where their text is long."""
    some: list[Any] = []
    held = 0
    for row in rows:
        some.append(row)
        held += size(row)
        if len(some) == count or held >= CHUNK_CHARACTERS:
            yield some
            some, held = [], 0
    if some:
        yield some


def one_table(sources: Sequence[Path], *, typed: bool) -> tuple[list[str], pa.Schema | None]:
    """Return the columns of several files that count as one table, and their types if they are asked for.

    Raises:
        TableError: Files other than JSONL have different columns or types, or there is no common type.
    """
    names = [open_stream(source).columns() for source in sources]
    union = list(dict.fromkeys(itertools.chain(*names)))
    schemas = [open_stream(source, columns=union).schema() for source in sources] if typed else [None] * len(sources)
    merged = schemas[0]
    for source, own, schema in zip(sources, names, schemas, strict=True):
        if check_suffix(source) == ".jsonl":
            merged = None if schema is None else unify_types(merged, schema, name=str(source))
        elif own != names[0] or schema != schemas[0]:
            raise TableError(
                f"{source} has other columns than {sources[0]}, or others in type or order ({', '.join(own)} and "
                f"{', '.join(union)}); files that count as one table need the same"
            )
    return union, merged


def in_parts(chunks: Iterable[Chunk], part_rows: int) -> Iterator[tuple[int, Chunk]]:
    """Split chunks at part boundaries, every `part_rows` rows; each comes with its part's first row number."""
    at = 0
    for chunk in chunks:
        start, rows = 0, len(next(iter(chunk.values())))
        while start < rows:
            end = min(rows, start + part_rows - at % part_rows)
            yield at - at % part_rows + 1, {name: column[start:end] for name, column in chunk.items()}
            at, start = at + end - start, end


# Writing


class _CsvWriter:
    """Quotes what needs it, also a lone carriage return, which Python's csv writer leaves unquoted."""

    def __init__(
        self, path: Path, names: Sequence[str], *, delimiter: str, escaped: Collection[str] | None = None
    ) -> None:
        self.delimiter, self.escaped = delimiter, escaped
        self.special = re.compile(f'[{delimiter}"\r\n]')
        self.file = path.open("w", encoding="utf-8", newline="")
        self._write_row(names if escaped is None else [escape_formula(name) for name in names])

    def write(self, chunk: Mapping[str, Column]) -> None:
        """Write rows as delimited lines, formulas escaped if asked for."""
        cells = [self._escaped(name, _to_cells(name, column)) for name, column in chunk.items()]
        for row in zip(*cells, strict=True):
            self._write_row(row)

    def _write_row(self, cells: Sequence[str]) -> None:
        self.file.write((self.delimiter.join(map(self._quoted, cells)) or '""') + "\n")  # a blank line is not a row

    def _escaped(self, name: str, cells: list[str]) -> list[str]:
        if self.escaped is None:
            return cells
        return [cell if name not in self.escaped and _is_number(cell) else escape_formula(cell) for cell in cells]

    def _quoted(self, cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if self.special.search(cell) else cell

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def escape_formula(cell: str) -> str:
    """Return a cell that spreadsheets do not evaluate: an apostrophe is put before one that begins like a formula."""
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class _JsonWriter:
    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, chunk: Mapping[str, Column]) -> None:
        """Write rows as JSON lines; a value of None leaves its name out."""
        names = [_json_string(name) for name in chunk]
        for row in zip(*itertools.starmap(_to_json, chunk.items()), strict=True):
            fields = (f"{name}: {text}" for name, text in zip(names, row, strict=True) if text is not None)
            self.file.write("{" + ", ".join(fields) + "}\n")

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class _ParquetWriter:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.writer = pq.ParquetWriter(path, schema)

    def write(self, chunk: Mapping[str, Column]) -> None:
        """Write rows as one batch, converted to the schema's types."""
        arrays = [_to_arrow(name, column, self.schema.field(name).type) for name, column in chunk.items()]
        self.writer.write_batch(pa.record_batch(arrays, schema=self.schema))

    def close(self) -> None:
        """Write the footer and close the file."""
        self.writer.close()


def _to_cells(name: str, column: Column) -> list[str]:
    """A column as CSV cells: text as it is, None empty, anything else as JSON writes it."""
    if not isinstance(column, pa.Array) and not any(isinstance(value, JsonText) for value in column):
        return ["" if value is None else value for value in column]
    texts = _arrow_texts(name, column) if isinstance(column, pa.Array) else column
    cells = []
    for text in texts:
        is_string = isinstance(text, JsonText) and text.startswith('"')
        cells.append("" if text is None or text == "null" else json.loads(text) if is_string else str(text))
    return cells


def _to_json(name: str, column: Column) -> list[str | None]:
    """A column as JSON values; None where the row has no such name."""
    if isinstance(column, pa.Array):
        return ["null" if text is None else text for text in _arrow_texts(name, column)]
    return [value if value is None or isinstance(value, JsonText) else _json_string(value) for value in column]


def _to_arrow(name: str, column: Column, kind: pa.DataType | None) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    try:
        return pa.array(column_values(column), type=kind)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise TableError(f"column {name!r} cannot be kept in Parquet ({error}); write .jsonl instead") from error


def _arrow_texts(name: str, array: pa.Array) -> list[JsonText | None]:
    """Each value of an Arrow array as JSON text, None where it is null."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _arrow_texts(name, array.dictionary_decode())
    if pa.types.is_nested(kind):
        values = array.to_pylist()
        return [None if v is None else JsonText(json.dumps(_plain(v), ensure_ascii=False)) for v in values]
    if pa.types.is_floating(kind):  # numpy writes the shortest text that reads back the same, for each width
        numbers = array.to_numpy(zero_copy_only=False)
        return [JsonText(number) if math.isfinite(number) else None for number in numbers]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        raise TableError(f"column {name!r} holds bytes, which only Parquet can keep; write .parquet")
    bare = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    try:
        texts = pc.cast(array, pa.string()).to_pylist()
    except pa.ArrowException as error:
        raise TableError(f"column {name!r} holds {kind}, which has no text form; write .parquet") from error
    return [None if text is None else JsonText(text if bare else _json_string(text)) for text in texts]


def _plain(value: Any) -> Any:
    """A nested Arrow value as what JSON knows: dates and decimals as text, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _json_string(text: str) -> str:
    """A JSON string; escaped only if UTF-8 cannot hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False)
