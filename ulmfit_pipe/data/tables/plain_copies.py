"""Tables of any kind as files that can be streamed: prediction reads a table several times.

A plain table is taken as it is. Any other is copied once to a temporary file: a CSV-like one and Excel to CSV in UTF-8,
one with Arrow types to Parquet, the others to JSONL.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ulmfit_pipe.data.tables.column_names import shown_name
from ulmfit_pipe.data.tables.row_sources import RowSource
from ulmfit_pipe.data.tables.row_streams import Column, JsonText, in_chunks, open_writer
from ulmfit_pipe.data.tables.text_files import TableError

COPIED_ROWS = 256  # rows written at once


@dataclass(frozen=True)
class PlainTable:
    """A table, and the file to stream it from.

    Attributes:
        name: What the user calls it.
        path: The file itself, or its copy.
    """

    name: str
    path: Path


@contextlib.contextmanager
def plain_tables(opened: Sequence[RowSource]) -> Iterator[list[PlainTable]]:
    """Give a file for each table; copies are removed when the block ends.

    In errors of the block, the tables are named instead of their copies.

    Args:
        opened: The tables.

    Raises:
        TableError: One cannot be read to its end, or the disk is too full for its copy.
    """
    with contextlib.ExitStack() as until_the_end:
        tables = []
        for rows in opened:
            path = Path(rows.name)
            if not rows.plain:
                folder = until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="ulmfit_table_"))
                path = _copied(rows, Path(folder))
            tables.append(PlainTable(rows.name, path))
        try:
            yield tables
        except TableError as error:
            text = str(error)
            for table in tables:
                text = text.replace(str(table.path), table.name)
            raise TableError(text) from error


def _copied(rows: RowSource, folder: Path) -> Path:
    suffix = ".csv" if rows.untyped else ".jsonl" if rows.schema is None else ".parquet"
    path = folder / f"{Path(rows.name).name.replace(':', '_')}{suffix}"
    try:
        if rows.objects is not None:
            with path.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(rows.objects())
            return path
        schema = rows.schema or pa.schema([(name, pa.string()) for name in rows.columns])
        with contextlib.closing(open_writer(path, schema, suffix=suffix)) as writer:
            for piece in in_chunks(rows.read(rows.columns), COPIED_ROWS, size=_size):
                writer.write(_chunk(rows, piece))
    except OSError as error:
        raise TableError(
            f"{rows.name} could not be copied to {folder} ({error.strerror or error}); free some disk space there, or "
            "set TMPDIR to a folder with more"
        ) from error
    return path


def _size(row: Sequence[Any]) -> int:
    return sum(len(value) for value in row if isinstance(value, str))


def _chunk(rows: RowSource, piece: Sequence[Sequence[Any]]) -> Mapping[str, Column]:
    columns = zip(rows.columns, zip(*piece, strict=True), strict=True)
    if rows.untyped:
        return {name: list(cells) for name, cells in columns}
    if rows.schema is not None:
        return {name: pa.array(values, rows.schema.field(name).type) for name, values in columns}
    return {name: [_json_text(rows.name, name, value) for value in values] for name, values in columns}


def _json_text(table: str, column: str, value: Any) -> JsonText:
    try:
        return JsonText(json.dumps(value, ensure_ascii=False))
    except TypeError as error:
        raise TableError(
            f"{table}: column {shown_name(column)!r} holds {type(value).__name__}, which has no text form; leave it out"
        ) from error
