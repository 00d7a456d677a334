"""Open a table, whatever holds it, as rows: CSV, TSV, JSONL, JSON, Parquet, a ``datasets`` folder, a hub name.

Every reader streams, so that a table may be larger than memory (.json alone is read whole).
"""

import codecs
import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, is_offline_mode

BATCH_ROWS = 256  # rows read at once from Parquet and Arrow
HUB_TIMEOUT = 5.0  # seconds to find out whether the hub answers
LONGEST_FIELD = 2**31 - 1  # characters in a CSV field; Python's own limit of 131,072 refuses long documents
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class TableError(ValueError):
    """A table that cannot be used as it is. The message names file, row and column.

    Rows are counted from 1; the header is not counted.
    """


@dataclass(frozen=True)
class RowSource:
    """One opened table.

    Attributes:
        name: File, folder or hub name, for messages.
        columns: Column names in order.
        read: Takes names of columns, gives one tuple of their values per row. A missing value is None.
        untyped: Every value is a string, as in CSV.
        read_lines: The same from some place in the file on; only where rows are lines of text: CSV, TSV, JSONL.
    """

    name: str
    columns: list[str]
    read: Callable[[Sequence[str]], Iterator[tuple[Any, ...]]]
    untyped: bool = False
    read_lines: "Callable[[Sequence[str], TextLines], Iterator[tuple[Any, ...]]] | None" = None


class TextLines:
    """The lines of a UTF-8 file with their own line ends, from some byte on.

    Args:
        path: The file.
        offset: The byte at which a line begins; 0 passes over a byte order mark.

    Attributes:
        path: The file.
        offset: The byte at which the next line begins.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset = path, offset

    def __iter__(self) -> Iterator[str]:
        """Yield the lines."""
        with self.path.open("rb") as raw:
            if self.offset == 0 and raw.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                self.offset = len(codecs.BOM_UTF8)
            raw.seek(self.offset)
            with io.TextIOWrapper(raw, encoding="utf-8", newline="") as file:
                for line in file:
                    self.offset += len(line.encode())  # exact: UTF-8 has one spelling for a character
                    yield line


def open_rows(source: str | Path, *, split: str | None = None) -> RowSource:
    """Open one table.

    Args:
        source: A file, a folder that ``datasets`` saved, or a hub name (only if there is no such path).
        split: Which split of a saved ``DatasetDict`` or a hub dataset.

    Raises:
        TableError: Nothing is there, it cannot be read, or the extension is unknown.
    """
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, split)
    extension = path.suffix.lower()
    if path.exists():
        if extension not in _OPENERS:
            raise TableError(f"{path}: unknown extension {extension!r}; known are {', '.join(_OPENERS)}")
        return _OPENERS[extension](path)
    if extension not in _OPENERS and not path.is_absolute() and _HUB_NAME.fullmatch(str(source)):
        return _open_hub(str(source), split)
    raise TableError(f"there is no file {path}; {_neighbours(path)}")


def nearest(name: str, names: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` if a name is close, else nothing."""
    close = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.lower() == name.lower()]
    return f"; did you mean {close[0]!r}?" if close else ""


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    names = sorted(entry.name for entry in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    tables = close or [name for name in names if Path(name).suffix.lower() in _OPENERS][:5]
    if not tables:
        return f"the folder {path.parent} holds no table"
    return f"the folder {path.parent} holds {', '.join(tables)}"


def _open_csv(path: Path) -> RowSource:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    header = next(_csv_rows(TextLines(path), delimiter), None)
    if header is None:
        raise TableError(f"{path} is empty: it has no header and no rows")

    def read_lines(columns: Sequence[str], lines: TextLines) -> Iterator[tuple[Any, ...]]:
        places = [header.index(column) for column in columns]
        has_header = lines.offset == 0
        rows = _csv_rows(lines, delimiter)
        if has_header:
            next(rows, None)
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header):
                raise TableError(
                    f"{path}, row {number} (header not counted) has {len(row)} fields, the header has {len(header)}; "
                    f'put a field that holds {delimiter!r} or a line break between double quotes, and write " as ""'
                )
            yield tuple(row[place] for place in places)

    return RowSource(str(path), header, _from_the_top(path, read_lines), untyped=True, read_lines=read_lines)


def _from_the_top(
    path: Path, read_lines: Callable[[Sequence[str], TextLines], Iterator[tuple[Any, ...]]]
) -> Callable[[Sequence[str]], Iterator[tuple[Any, ...]]]:
    return lambda columns: read_lines(columns, TextLines(path))


def _csv_rows(lines: TextLines, delimiter: str) -> Iterator[list[str]]:
    """Rows of a CSV file, the header first; blank lines are passed over."""
    csv.field_size_limit(LONGEST_FIELD)
    count = 0
    try:
        for row in csv.reader(lines, delimiter=delimiter, strict=True):
            if row:
                yield row
                count += 1
    except UnicodeDecodeError as error:
        raise _not_utf8(lines.path) from error
    except csv.Error as error:
        where = f"row {count} (header not counted)" if count else "the header"
        raise TableError(f"{lines.path}, {where} is not valid CSV: {error}; look for an unmatched quote") from error


def _not_utf8(path: Path) -> TableError:
    """Where a file stops being UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 20)
            pending = len(decoder.getstate()[0])  # bytes of a character that the last block began
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                bad = offset - pending + error.start
                line += block.count(b"\n", 0, max(0, error.start - pending))
                return TableError(
                    f"{path} is not UTF-8: byte {bad} (line {line}) cannot be read; convert it first, for example with "
                    f"iconv -f WINDOWS-1252 -t UTF-8"
                )
            if not block:
                return TableError(f"{path} is not UTF-8")
            offset += len(block)
            line += block.count(b"\n")


def _open_json_lines(path: Path) -> RowSource:
    first = next(json_objects(TextLines(path)), None)
    if first is None:
        raise TableError(f"{path} is empty: it has no rows")

    def read_lines(columns: Sequence[str], lines: TextLines) -> Iterator[tuple[Any, ...]]:
        for row in json_objects(lines):
            yield tuple(row.get(column) for column in columns)

    return RowSource(str(path), list(first), _from_the_top(path, read_lines), read_lines=read_lines)


def json_objects(lines: TextLines) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, one a line; blank lines are passed over.

    Raises:
        TableError: A line holds something else, or is not UTF-8.
    """
    number = 0
    try:
        for line in lines:
            if line.strip():
                number += 1
                yield _checked_object(json.loads(line, object_pairs_hook=_unique_keys), lines.path, number)
    except UnicodeDecodeError as error:
        raise _not_utf8(lines.path) from error
    except (json.JSONDecodeError, _RepeatedKey) as error:
        raise TableError(f"{lines.path}, row {number} is not a JSON object on one line: {error}") from error


class _RepeatedKey(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(f"the name {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return row


def _checked_object(value: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TableError(f"{path}, row {number} must be a JSON object of column names and values, got {value!r:.80}")
    return value


def _open_json(path: Path) -> RowSource:
    with path.open(encoding="utf-8-sig") as file:
        try:
            content = json.load(file, object_pairs_hook=_unique_keys)
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error
        except (json.JSONDecodeError, _RepeatedKey):
            return _open_json_lines(path)
    if not isinstance(content, list):
        content = [content]
    rows = [_checked_object(value, path, number) for number, value in enumerate(content, start=1)]
    if not rows:
        raise TableError(f"{path} is empty: it has no rows")

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        return (tuple(row.get(column) for column in columns) for row in rows)

    return RowSource(str(path), list(rows[0]), read)


def _open_parquet(path: Path) -> RowSource:
    try:
        columns = pq.ParquetFile(path).schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path} is not a readable Parquet file (cut short?): {error}") from error

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        try:
            for batch in pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False).iter_batches(
                BATCH_ROWS, columns=list(columns)
            ):
                yield from zip(*(batch.column(column).to_pylist() for column in columns), strict=True)
        except (pa.ArrowException, OSError) as error:
            raise TableError(f"{path} cannot be read to its end (cut short?): {error}") from error
        except UnicodeDecodeError as error:
            raise TableError(f"{path} holds text that is not UTF-8: {error}") from error

    return RowSource(str(path), columns, read)


_OPENERS: dict[str, Callable[[Path], RowSource]] = {
    ".csv": _open_csv,
    ".tsv": _open_csv,
    ".jsonl": _open_json_lines,
    ".json": _open_json,
    ".parquet": _open_parquet,
}


def _open_folder(path: Path, split: str | None) -> RowSource:
    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, pa.ArrowException) as error:
        raise TableError(
            f"the folder {path} was not saved by datasets (save_to_disk); give a file in it instead, or a list of files"
        ) from error
    return _open_dataset(str(path), loaded, split)


def _open_hub(name: str, split: str | None) -> RowSource:
    advice = (
        f"there is no file or folder {name!r}, so it was tried as a dataset on the Hugging Face hub; "
        "to use your own table give the path of a .csv, .tsv, .jsonl, .json or .parquet file, "
        "or of a folder saved by datasets"
    )
    try:
        if not is_offline_mode():  # a quick question first: downloads retry for minutes
            HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
        loaded = datasets.load_dataset(name)
    except Exception as error:  # every layer below raises its own kind when the network is missing
        reason = "HF_HUB_OFFLINE is set and it is not in the cache" if is_offline_mode() else _first_line(error)
        raise TableError(f"{advice}. The hub could not give it: {reason}") from error
    return _open_dataset(name, loaded, split)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _open_dataset(name: str, loaded: datasets.Dataset | datasets.DatasetDict, split: str | None) -> RowSource:
    if isinstance(loaded, datasets.DatasetDict):
        splits = list(loaded)
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in loaded:
            raise TableError(f"{name} has the splits {', '.join(splits)}; say which with split=, got {split!r}")
        loaded = loaded[split]

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        decode = [_label_decoder(loaded.features[column]) for column in columns]
        for batch in loaded.select_columns(list(columns)).with_format(None).iter(BATCH_ROWS):
            for values in zip(*(batch[column] for column in columns), strict=True):
                yield tuple(turn(value) for turn, value in zip(decode, values, strict=True))

    return RowSource(name, list(loaded.column_names), read)


def _label_decoder(feature: Any) -> Callable[[Any], Any]:
    """ClassLabel numbers back to their names; -1, the mark for an unknown label, to None."""
    inner = getattr(feature, "feature", None)
    if isinstance(feature, datasets.ClassLabel):
        return lambda value: None if value is None or value < 0 else feature.int2str(value)
    if isinstance(inner, datasets.ClassLabel):
        return lambda values: None if values is None else [inner.int2str(value) for value in values]
    return lambda value: value
