"""Open a table, whatever holds it, as rows; training and prediction both come through `open_rows`.

CSV-like tables with any delimiter, quotes and encoding, packed or not; JSONL and JSON; Parquet, Arrow, Excel, SQLite; a
folder of texts per class; a folder that ``datasets`` saved; a hub name. Every reader streams, so that a table may be
larger than memory (.json alone is read whole).
"""

import contextlib
import csv
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ulmfit_pipe.data.tables.binary_tables import BATCH_ROWS, open_arrow, open_excel, open_parquet, open_sqlite
from ulmfit_pipe.data.tables.column_names import nearest
from ulmfit_pipe.data.tables.formats import TextFormat, find_format
from ulmfit_pipe.data.tables.row_sources import IN_MEMORY, RowSource, TableReading, unique_names
from ulmfit_pipe.data.tables.saved_datasets import is_hub_name, open_hub, open_saved, was_saved
from ulmfit_pipe.data.tables.text_files import TableError, TextFile, TextLines, find_text_file, unpacked_name
from ulmfit_pipe.data.tables.text_folders import open_text_folder

__all__ = ["BATCH_ROWS", "RowSource", "TableError", "TextLines", "nearest", "open_plain", "open_rows"]

_DELIMITED = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t", "": "\t"}  # suffix -> its usual delimiter
_JSON_LINES = (".jsonl", ".ndjson")
KNOWN_SUFFIXES = (
    ".csv",
    ".tsv",
    ".jsonl",
    ".json",
    ".parquet",
    ".arrow",
    ".feather",
    ".xlsx",
    ".db",
    ".sqlite",
    ".txt",
)
_BINARY = ((b"PAR1", ".parquet"), (b"ARROW1", ".arrow"), (b"SQLite format 3\0", ".db"))
_BETWEEN_QUOTES = re.compile(r'"[^"]*"([^"\r\n,])"')
_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_NUMBERS = ("0", "1")  # of rows that are numbered
_OLD_EXCEL = b"\xd0\xcf\x11\xe0"
TORN = "--skip_torn_end true leaves it out"


def open_rows(
    source: str | Path,
    *,
    split: str | None = None,
    usual_splits: Sequence[str] = (),
    reading: TableReading | None = None,
) -> RowSource:
    """Open one table.

    Args:
        source: A file; a folder that ``datasets`` saved, or that holds a folder of texts per class; a hub name (only if
            the path does not exist). ``NAME:PART`` is a split of a dataset or folder, table of a database, or sheet.
        split: The same part, as an argument of its own.
        usual_splits: Names of splits; the first that exists is read where there are several and none is named.
        reading: How tables of text are read; None detects it.

    Raises:
        TableError: The source does not exist, cannot be read, or is of an unknown kind.
    """
    if not str(source).strip():
        raise TableError(f"the name of a table is empty, got {str(source)!r:.60}; give a file, a folder or a dataset")
    if str(source).startswith(IN_MEMORY):
        raise TableError(
            f"{source} was a table in memory, which settings cannot hold; give it to TextPipeline.fit again, or save "
            "it in a file and give that as --train_file (--test_file, ...)"
        )
    if "://" in str(source):
        raise TableError(f"{source} is an address and not a file; download the file first")
    path, named = _path_and_part(str(source))
    split = split if named is None else named
    options = (reading or TableReading()).checked()
    try:
        if path.is_dir():
            return _open_folder(path, split, usual_splits, options)
        if path.exists():
            return _open_file(path, split, options)
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.suffix.lower() not in KNOWN_SUFFIXES and not path.is_absolute() and is_hub_name(str(path)):
        return open_hub(str(path), split, usual_splits)
    if any(mark in str(path) for mark in "*?["):
        raise TableError(
            f"there is no file {path}; a pattern is expanded by the shell: leave out its quotes, or list the files"
        )
    raise TableError(f"there is no file {path}; {_neighbours(path)}")


def _path_and_part(source: str) -> tuple[Path, str | None]:
    """Return an existing path, or the path before the last colon and the part after it; a drive letter is none."""
    try:
        is_there = Path(source).exists()
    except OSError as error:
        raise TableError(f"{source[:200]!r} cannot be the name of a file: {error.strerror}") from error
    name, colon, part = source.rpartition(":")
    if is_there or not colon or len(name) < 2 or not part or "/" in part or "\\" in part:
        return Path(source), None
    return Path(name), part


def open_plain(path: Path) -> RowSource:
    """Open a UTF-8 file of the kind of its suffix (CSV, TSV, JSONL or Parquet) without detecting its format."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return open_parquet(path)
    if suffix == ".jsonl":
        return _open_json_lines(path, TextFile(path, None, "utf-8-sig"), TableReading())
    return _delimited(TextFile(path, None, "utf-8-sig"), TextFormat(_DELIMITED[suffix]), TableReading(), plain=True)


def _open_file(path: Path, part: str | None, reading: TableReading) -> RowSource:
    if not path.is_file():
        raise TableError(
            f"{path} is not a regular file but a pipe, a device or a socket; save its content in a file first"
        )
    with path.open("rb") as file:
        head = file.read(16)
    suffix = _kind_of(path, head)
    if suffix in (".db", ".sqlite", ".sqlite3"):
        return open_sqlite(path, part)
    if suffix == ".xlsx":
        return open_excel(path, part, reading)
    if part is not None:
        raise TableError(f"{path} is one table and has no part {part!r}; leave out what follows the colon")
    if suffix == ".parquet":
        return open_parquet(path)
    if suffix in (".arrow", ".feather"):
        return open_arrow(path)
    return _open_text(path, suffix, reading)


def _kind_of(path: Path, head: bytes) -> str:
    """Return the suffix of a file's kind: by its first bytes, otherwise its own without that of a compression."""
    if head.startswith(_OLD_EXCEL):
        raise TableError(f"{path} is an Excel file of the old kind (.xls); save it as .xlsx or CSV")
    if head.startswith(b"FEA1"):
        raise TableError(
            f"{path} is a Feather file of version 1; save it in pandas as Parquet: read_feather(...).to_parquet(...)"
        )
    for begin, suffix in _BINARY:
        if head.startswith(begin):
            return suffix
    if path.suffix.lower() in (".xlsx", ".xlsm"):
        return ".xlsx"
    return Path(unpacked_name(path)).suffix.lower()


def _open_text(path: Path, suffix: str, reading: TableReading) -> RowSource:
    if suffix not in (*_DELIMITED, *_JSON_LINES, ".json"):
        raise TableError(
            f"{path}: unknown extension {suffix!r}; known are {', '.join(KNOWN_SUFFIXES)}, those of text also packed "
            "as .gz, .bz2, .xz, .zst or .zip"
        )
    file = find_text_file(path, reading.encoding)
    if suffix == "" and next(file.lines(), "").lstrip("\ufeff \t")[:1] in ("{", "["):
        suffix = ".json"
    if suffix == ".json":
        return _open_json(path, file, reading)
    if suffix in _JSON_LINES:
        return _open_json_lines(path, file, reading)
    table_format = find_format(file, usual=_DELIMITED[suffix], reading=reading)
    is_usual = table_format == TextFormat(_DELIMITED[suffix], notes=table_format.notes)
    plain = suffix in (".csv", ".tsv") and path.suffix.lower() == suffix and file.is_plain_utf8 and is_usual
    return _delimited(file, table_format, reading, plain=plain and reading == TableReading())


# CSV and its relatives


def _delimited(file: TextFile, table_format: TextFormat, reading: TableReading, *, plain: bool) -> RowSource:
    """Open a CSV-like table whose format is known."""
    path, notes = file.path, [*file.notes, *table_format.notes]
    try:
        first = next(table_format.records(TextLines(path) if plain else file.lines()), None)
    except csv.Error as error:
        between = _BETWEEN_QUOTES.match(next(iter(file.lines()), ""))
        named = "space" if between and between[1] == " " else repr(between[1]) if between else ""
        hint = f"--delimiter {named} takes what is between its names" if named else "look for an unmatched quote"
        raise TableError(f"{path}, the header is not valid CSV: {error}; {hint}") from error
    if first is None:
        raise TableError(f"{path} is empty: it has no header and no rows")
    if len(first) == 1:
        notes.extend(_blank_lines(file, table_format))
    header = first if table_format.has_header else [""] * len(first)
    columns, repeated = unique_names(header)
    places = {name: place for place, name in enumerate(columns)}

    def read(names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        lines = TextLines(path) if plain else file.lines()
        chosen = [places[name] for name in names]
        checked = _CheckedRecords(path, table_format, len(columns), reading, notes)
        for row in checked.rows(lines, skips_header=table_format.has_header):
            yield tuple([row[place] for place in chosen])

    return RowSource(str(path), columns, read, True, repeated=repeated, notes=notes, plain=plain)


def _blank_lines(file: TextFile, table_format: TextFormat) -> Iterator[str]:
    """Yield a note where a table of one column has blank lines between its rows, which might be empty texts."""
    blank = between = 0
    with contextlib.suppress(csv.Error):  # the row is named when it is read
        for row in table_format.records_and_blanks(file.lines()):
            blank, between = (0, between + blank) if row else (blank + 1, between)
    if between:
        yield f'{file.path}: {between:,} blank lines between the rows were passed over; write "" for an empty text'


class _CheckedRecords:
    """Rows of a CSV-like table, all with the header's fields; errors name a row by its number and line."""

    def __init__(
        self, path: Path, table_format: TextFormat, width: int, reading: TableReading, notes: list[str]
    ) -> None:
        self.path, self.format, self.width, self.reading, self.notes = path, table_format, width, reading, notes
        self.line = ""  # the line that was read last
        self.lines = 0  # read so far
        self.place = ""  # position of the current row
        self.ends_empty = False  # an earlier row has an empty last field

    def _watched(self, lines: Iterable[str]) -> Iterator[str]:
        for self.line in lines:
            self.lines += 1
            yield self.line

    def rows(self, lines: Iterable[str], *, skips_header: bool) -> Iterator[list[str]]:
        """Yield the rows."""
        number = 0 if skips_header else 1
        records = self.format.records(self._watched(lines))
        if skips_header:
            next(records, None)
            number = 1
        while True:
            self.place = f"line {self.lines + 1:,}"
            if isinstance(lines, TextLines):
                self.place += f", byte {lines.offset:,}"
            try:
                row = next(records, None)
            except csv.Error as error:
                self._refuse(number, f"is not valid CSV: {error}", is_torn="unexpected end" in str(error))
                return
            if row is None:
                return
            if number == 1 and len(row) == self.width + 1 and (row[0] in _FIRST_NUMBERS or not row[-1]):
                raise TableError(
                    f"{self.path}: each row seems to have one field more than the header, a number before the others "
                    "(as R writes it, without row.names=FALSE) or nothing after them; add a name for it to the header"
                )
            if len(row) != self.width:
                is_last = self.line.rstrip("\r\n") == self.line and len(row) < self.width
                self._refuse(
                    number, f"has {len(row):,} fields, the header has {self.width:,}", is_torn=is_last, fields=True
                )
                return
            if not row[-1] and self.width > 1 and self.line.rstrip("\r\n") == self.line and not self.ends_empty:
                if self.reading.skip_torn_end:
                    self._refuse(number, "ends with an empty field", is_torn=True)
                    return
                self.notes.append(
                    f"{self.path}, row {number} (header not counted), the last, ends with an empty field and without a "
                    f"line end, as where a file is cut short; {TORN}"
                )
            self.ends_empty = self.ends_empty or not row[-1]
            yield row
            number += 1

    def _refuse(self, number: int, what: str, *, is_torn: bool, fields: bool = False) -> None:
        """Raise, unless the row is a truncated last one that the user leaves out."""
        place = f"{self.path}, row {number} (header not counted)"
        if is_torn and self.reading.skip_torn_end:
            self.notes.append(f"{place} is cut short at the end of the file ({self.place}) and was left out")
            return
        if is_torn and fields:
            raise TableError(f"{place}, {self.place}, {what}: the file seems to be cut short; {TORN}")
        if is_torn:
            raise TableError(
                f"{place}, {self.place}, {what}; look for an unmatched quote, --quote none if quotes belong to the "
                f"text, or {TORN} if the file was cut short"
            )
        if fields:
            raise TableError(
                f"{place} {what}; put a field that holds {self.format.delimiter!r} or a line break between double "
                f'quotes, and write " as "" ({self.place})'
            )
        raise TableError(
            f"{place}, {self.place}, {what}; look for an unmatched quote, or --quote none if quotes belong to the text"
        )


# JSON


def _open_json_lines(path: Path, file: TextFile, reading: TableReading) -> RowSource:
    plain = file.is_plain_utf8 and path.suffix.lower() == ".jsonl" and reading == TableReading()
    notes = list(file.notes)

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        return _json_rows(TextLines(path) if plain else file.lines(), path, reading=reading, notes=notes)

    first = next(rows(), None)
    if first is None:
        raise TableError(f"{path} is empty: it has no rows")

    def objects() -> Iterator[str]:
        return (line.strip("\ufeff\r\n") + "\n" for line, _ in rows())

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        return (tuple([row.get(column) for column in columns]) for _, row in rows())

    return RowSource(
        str(path),
        list(first[1]),
        read,
        notes=notes,
        plain=plain,
        objects=objects,
    )


def _json_rows(
    lines: Iterable[str], path: Path, *, reading: TableReading, notes: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield lines and their objects; a truncated last line raises, or is left out if `reading` allows it."""
    number = 0
    for line_number, line in enumerate(lines, start=1):
        if line.strip():
            number += 1
            try:
                value = _decoded(line)
            except _JsonError as error:
                where = f"line {line_number:,}"
                if isinstance(lines, TextLines):
                    where += f", byte {lines.offset - len(line.encode()):,}"
                is_torn = line.rstrip("\r\n") == line
                if is_torn and reading.skip_torn_end:
                    notes.append(f"{path}, row {number} is cut short at the end of the file ({where}) and was left out")
                    return
                hint = f" ({where}); if the file was cut short, {TORN}" if is_torn else ""
                if number == 1 and line.lstrip("\ufeff \t").startswith("["):
                    hint = "; if the file holds one JSON list, give it a name that ends in .json"
                raise TableError(f"{path}, row {number} is not a JSON object on one line: {error}{hint}") from error
            yield line, _checked_object(value, path, number)


class _JsonError(Exception):
    """Text that is not JSON, or that Python's parser refuses."""


def _decoded(text: str) -> Any:
    with _json_errors():
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique_keys)


def _list_items(text: str) -> Iterator[Any]:
    """The items of a JSON list, one after the other, so that a bad one is named by its number."""
    decode = json.JSONDecoder(object_pairs_hook=_unique_keys).raw_decode
    at, number = after_space(text, 1), 0
    while text[at : at + 1] != "]" or number:
        number += 1
        with _json_errors(f"row {number}: "):
            value, at = decode(text, at)
        yield value
        at = after_space(text, at)
        if text[at:] == "]":
            return
        if text[at : at + 1] != ",":
            raise _JsonError(f"after row {number} there is neither ',' nor the end of the list; was it cut short?")
        at = after_space(text, at + 1)


def after_space(text: str, at: int) -> int:
    """Return where JSON goes on behind the white space at a position."""
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it always matches


@contextlib.contextmanager
def _json_errors(where: str = "") -> Iterator[None]:
    """Turn what Python's reader raises into one error."""
    try:
        yield
    except RecursionError as error:
        raise _JsonError(f"{where}its brackets are nested too deep") from error
    except json.JSONDecodeError as error:
        raise _JsonError(where + str(error)) from error
    except ValueError as error:  # Python reads no integer of more than 4,300 digits
        raise _JsonError(f"{where}it holds a number that is too long ({str(error).partition(';')[0]})") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _JsonError(f"the name {twice!r:.80} is there twice")
    return row


def _checked_object(value: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        hint = "; if the file holds one JSON list, give it a name that ends in .json" if isinstance(value, list) else ""
        raise TableError(
            f"{path}, row {number} must be a JSON object of column names and values, got {value!r:.80}{hint}"
        )
    return value


def _holds_a_table(value: Any) -> bool:
    """Whether a value of JSON holds rows, or a column as pandas writes it."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict | list) for each in value))


def _open_json(path: Path, file: TextFile, reading: TableReading) -> RowSource:
    text = "".join(file.lines()).strip("\ufeff \t\r\n")
    try:
        values = list(_list_items(text)) if text.startswith("[") else [_decoded(text)]
    except _JsonError as error:
        if not text.startswith("[") and isinstance(error.__cause__, json.JSONDecodeError):
            return _open_json_lines(path, file, reading)
        raise TableError(f"{path} cannot be read as JSON: {error}") from error
    rows = [_checked_object(value, path, number) for number, value in enumerate(values, start=1)]
    if len(rows) == 1 and any(map(_holds_a_table, rows[0].values())):
        raise TableError(
            f"{path} is one JSON object that holds a table; write the rows as a list of objects, one per row (in "
            "pandas: to_json(..., orient='records'))"
        )
    if not rows:
        raise TableError(f"{path} is empty: it has no rows")

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        return (tuple([row.get(column) for column in columns]) for row in rows)

    names = dict.fromkeys(name for row in rows for name in row)

    def objects() -> Iterator[str]:
        return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    return RowSource(str(path), list(names), read, notes=list(file.notes), objects=objects)


# Folders


def _open_folder(path: Path, split: str | None, usual_splits: Sequence[str], reading: TableReading) -> RowSource:
    if was_saved(path):
        return open_saved(path, split, usual_splits)
    if path.anchor and path == Path(path.anchor):  # what "$UNSET/" expands to
        raise TableError(f"{path} is the whole disk and not a table; give a file, or a folder of texts")
    return open_text_folder(path, split, usual_splits, encoding=reading.encoding, tables=_tables_in(path))


def _tables_in(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.suffix.lower() in KNOWN_SUFFIXES and entry.suffix != ".txt"
    )


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    names = sorted(entry.name for entry in path.parent.iterdir())
    tables = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or _tables_in(path.parent)[:5]
    if not tables:
        return f"the folder {path.parent} holds no table"
    return f"the folder {path.parent} holds {', '.join(tables)}"
