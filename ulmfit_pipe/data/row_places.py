"""One reading of a whole table before its rows are shared out: every row is checked, and where rows begin is noted.

Whoever gets rows 70,000 to 71,000 of a CSV file can then go straight to their byte, instead of reading what comes
before. Memory does not grow with the file.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ulmfit_pipe.data.row_streams import check_suffix, open_stream
from ulmfit_pipe.data.table_readers import RowSource, TextLines, json_objects, open_plain

PAUSE_ROWS = 256  # rows between two pauses of a reading
Row = tuple[Any, ...]


@dataclass(frozen=True)
class RowPlaces:
    """What one reading of a table found.

    Attributes:
        rows: How many there are.
        columns: Every name, in the order in which they turn up.
        every: Rows between two marks.
        marks: The byte at which rows 0, every, 2 * every, ... begin, 0 for the top of the file; all 0 for Parquet,
            whose rows are found by their number.
        schema: Arrow types that hold every row; None where they were not asked for.
    """

    rows: int
    columns: list[str]
    every: int
    marks: list[int]
    schema: pa.Schema | None = None


def find_rows(
    path: Path, *, columns: Sequence[str], every: int, check: Callable[[Row, int], None], typed: bool = False
) -> Generator[None, None, RowPlaces]:
    """Read a table once; a generator that pauses now and then, and returns what was found.

    Args:
        path: CSV, TSV, JSONL or Parquet, plain as `RowSource` has it.
        columns: The columns that are checked.
        every: Rows between two marks.
        check: Takes the values of a row and its number, counted from 1; raises what is wrong with it.
        typed: Find the Arrow types too; those of JSON take another reading.

    Raises:
        TableError: The file cannot be read, or a row is no row.
    """
    source = open_plain(path)
    names: dict[str, None] = dict.fromkeys(source.columns)
    lines = TextLines(path)
    marks, number = [0], 0
    for number, values in enumerate(_rows(source, columns, lines, names), start=1):
        check(values, number)
        if number % every == 0:
            marks.append(lines.offset)
        if number % PAUSE_ROWS == 0:
            yield
    schema = None
    for so_far in open_stream(path, columns=list(names)).schemas() if typed else ():
        schema = so_far
        yield
    return RowPlaces(number, list(names), every, marks[: -(-number // every)], schema)


def _rows(source: RowSource, columns: Sequence[str], lines: TextLines, names: dict[str, None]) -> Iterator[Row]:
    if source.read_lines is None:  # Parquet
        return source.read(columns)
    return (
        _json_rows(lines, columns, names) if check_suffix(lines.path) == ".jsonl" else source.read_lines(columns, lines)
    )


def _json_rows(lines: TextLines, columns: Sequence[str], names: dict[str, None]) -> Iterator[Row]:
    """Rows of JSONL; their names are added to those known."""
    for row in json_objects(lines, lines.path):
        names.update(dict.fromkeys(row))
        yield tuple(row.get(column) for column in columns)
