"""A table of texts, from any usual file, as a ``datasets.Dataset`` with the columns ``text`` and ``label``.

Rows that would spoil training are refused by file, row and column; nothing is dropped or guessed. Rows are counted
from 1, the header not counted. Texts go to a temporary Arrow file while they are read, so memory stays bounded.
"""

import logging
import math
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from ulmfit_pipe.console import Work, in_one_line, working
from ulmfit_pipe.data.labels import LabelColumn, Place, is_blank
from ulmfit_pipe.data.run_files import run_folder
from ulmfit_pipe.data.tables.column_names import check_wanted
from ulmfit_pipe.data.tables.memory_tables import open_memory_table
from ulmfit_pipe.data.tables.readers import TableError, open_rows
from ulmfit_pipe.data.tables.row_sources import RowSource, TableReading
from ulmfit_pipe.data.text.text_rules import join_fields
from ulmfit_pipe.storage.temporary_files import naming

logger = logging.getLogger(__name__)

WRITE_ROWS = 256  # rows written at once
SHOWN_COLUMNS = 8  # names of columns that a message lists


@dataclass
class FileFacts:
    """Facts about one file of a table, recorded while it is read.

    Attributes:
        name: The file.
        rows: Number of rows used.
        blank: Number of rows skipped because they have no text.
        numbers: Number of texts that are numbers in the file.
    """

    name: str
    rows: int = 0
    blank: int = 0
    numbers: int = 0


def load_table(
    source: Any,
    *,
    text_columns: Sequence[str] = ("text",),
    label_column: str | Sequence[str] | None = "label",
    label_names: Sequence[str] | None = None,
    multi_label: bool = False,
    label_separator: str | None = None,
    label_mapping: Mapping[str, str] | None = None,
    label_threshold: float | None = None,
    split: str | None = None,
    skip_blank: bool | None = None,
    facts: list[FileFacts] | None = None,
    usual_splits: Sequence[str] = (),
    reading: TableReading | None = None,
    say: Callable[[str], None] = logger.warning,
) -> datasets.Dataset:
    """Read and check a table.

    Args:
        source: A file (docs/tables.md lists the kinds), a folder saved by ``datasets`` or of texts per class, a hub
            name; or a DataFrame, Arrow table or `datasets.Dataset`. Of a list of these, the rows are concatenated.
        text_columns: The text; a number counts as its text. Several are joined as ``xxfld 1 ... xxfld 2 ...``.
        label_column: The label: a name, an integer or a bool; spaces and invisible characters are stripped from names.
            Several columns are one label each (multi-label), given where the column holds 1 or true. None for text
            without labels.
        label_names: The label names of training, in order; any other is refused. None takes the names found, sorted.
        multi_label: The label is a list (also as text), or names joined by ``label_separator``; it may be empty.
        label_separator: Separator between the labels of one row.
        label_mapping: The name of each value, from `read_label_names`; of several columns that of each column.
        label_threshold: For several columns of votes or shares: the number from which a label counts as given.
        split: Which split of a saved ``DatasetDict`` or a hub dataset.
        skip_blank: Skip rows without text instead of raising. None skips them only where there are no labels.
        usual_splits: Names of splits; the first that exists is read where a source has several and none is named.
        reading: How tables of text are read; None detects it.
        say: Called with log lines on how a source was read.
        facts: List that receives one entry per file.

    Returns:
        ``text`` and, with labels, ``label`` (ClassLabel, or a list of them; ``id`` "int" or "bool" where they are).

    Raises:
        TypeError: It is neither a name nor a table.
        TableError: The table does not exist or cannot be read, or a row cannot be used; the message names it.
        ValueError: Settings contradict one another or are empty.
    """
    sources = _named(source)
    columns = [text_columns] if isinstance(text_columns, str) else list(text_columns)
    label_columns = _listed(label_column)
    several = len(label_columns) > 1
    _check_settings(sources, columns, label_columns)
    _check_label_settings(several, multi_label, label_separator, label_threshold)
    mapping = None if several else label_mapping
    if several:
        label_names = [(label_mapping or {}).get(name, name) for name in label_columns]
    labels = LabelColumn(label_names, multi_label=multi_label or several, separator=label_separator, mapping=mapping)
    skip = not label_columns if skip_blank is None else skip_blank
    reader = _RowReader(columns, label_columns, labels, threshold=label_threshold, skip_blank=skip)
    open_one = partial(open_rows, split=split, usual_splits=usual_splits, reading=reading)
    return _read_table(sources, reader, open_one, facts=[] if facts is None else facts, say=say)


def _read_table(
    sources: Sequence[str | Path | RowSource],
    reader: "_RowReader",
    open_one: Callable[[str | Path], RowSource],
    *,
    facts: list[FileFacts],
    say: Callable[[str], None],
) -> datasets.Dataset:
    def texts(work: Work) -> Iterator[str]:
        for one in sources:
            rows = one if isinstance(one, RowSource) else open_one(one)
            check_wanted(rows, reader.columns, reader.label_columns)
            facts.append(FileFacts(rows.name))
            opened = len(rows.notes)
            try:
                for text in reader.texts(rows, facts[-1]):
                    work.advance()
                    yield text
            except TableError as error:
                if len(rows.notes) > opened:  # about a truncated last row
                    raise TableError(f"{error} ({rows.notes[-1]})") from error
                raise
            for note in rows.notes:
                say(note)

    names = ", ".join(each.name if isinstance(each, RowSource) else str(each) for each in sources)
    with working(f"reading {in_one_line(names)}", unit="rows") as work:
        table = _write_texts(texts(work))
    if not len(table):
        raise TableError(f"{names}: the table is empty, it has no rows to use")
    if not reader.label_columns:
        return table
    return datasets.concatenate_datasets([table, reader.labels.column()], axis=1)


def check_table(
    table: Any, *, what: str, columns: Sequence[str] = ("text",), loading: str = 'load_table("train.csv")'
) -> None:
    """Raise unless something is a table as `load_table` or `load_images` gives it.

    Args:
        table: What a caller gave.
        what: What it was given as, for the message: ``train of train_classifier``.
        columns: Columns that it needs. ``label`` must be a ClassLabel, or for multi-label a list of them.
        loading: The call that gives such a table, for the message.

    Raises:
        TypeError: It is something else, a column is missing, or the labels have no names.
    """
    having = f" with {' and '.join(map(repr, columns))}" if columns else ""
    takes = f"{what} must be a datasets.Dataset{having}, as {loading.partition('(')[0]} gives it"
    if not isinstance(table, datasets.Dataset):
        raise TypeError(f"{takes}, got {type(table).__name__}; {_table_advice(table, loading)}")
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        there = ", ".join(map(repr, table.column_names[:SHOWN_COLUMNS])) or "none"
        raise TypeError(
            f"{takes}, got the columns {there}; rename one: table.rename_column(name, {missing[0]!r}), or load it "
            f"with {loading}"
        )
    label = table.features["label"] if "label" in columns else None
    if "label" in columns and not hasattr(getattr(label, "feature", label), "names"):
        raise TypeError(
            f"{takes}, got labels without names ({str(label)!s:.80}); write "
            f'table.class_encode_column("label"), or load it with {loading}'
        )


def _table_advice(given: Any, loading: str) -> str:
    if isinstance(given, datasets.DatasetDict):
        return f"give one of its parts: data[{next(iter(given), 'train')!r}]"
    if isinstance(given, str | os.PathLike):
        return f"load it first: {loading.partition('(')[0]}({os.fspath(given)!r:.80})"
    if hasattr(given, "to_csv") and loading.startswith("load_table("):
        return "load it first: load_table(df)"
    if hasattr(given, "to_csv"):
        return f'write it to a file and load that: df.to_csv("train.csv", index=False), then {loading}'
    return f"load one with {loading}"


def _named(source: Any) -> list[Any]:
    """Return the names of tables as a list, ``~`` replaced; a table in memory as its rows."""
    return [_named_one(one) for one in (source if isinstance(source, list | tuple) else [source])]


def _named_one(source: Any) -> Any:
    if isinstance(source, str | Path):
        return os.path.expanduser(source)
    rows = source if isinstance(source, RowSource) else open_memory_table(source, "the table")
    if rows is None:
        raise TypeError(
            f"load_table takes a file, a DataFrame, a Dataset or a list of these, got {type(source).__name__}; write "
            "pandas.DataFrame(...) around columns"
        )
    return rows


def _listed(names: str | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _check_settings(sources: Sequence[Any], columns: Sequence[str], label_columns: Sequence[str]) -> None:
    if not sources:
        raise ValueError("source is an empty list; give at least one file")
    if not columns:
        raise ValueError("text_columns is empty; name at least one column")
    for name in label_columns:
        if name in columns:
            raise ValueError(f"the column {name!r} is named both as text and as label")
    twice = [name for name, count in Counter(label_columns).items() if count > 1]
    if twice:
        raise ValueError(f"label_column names {twice[0]!r} twice; name each column once")


def _check_label_settings(
    several: bool, multi_label: bool, label_separator: str | None, threshold: float | None
) -> None:
    if label_separator is not None and several:
        raise ValueError(
            f"label_separator={label_separator!r} splits the cells of one column; several label columns hold 0 and 1"
        )
    if label_separator is not None and not multi_label:
        raise ValueError(f"label_separator={label_separator!r} needs multi_label=True")
    if threshold is not None and not several:
        raise ValueError(f"label_threshold={threshold!r} is for several label columns of numbers; leave it out for one")


class _RowReader:
    """Checks the rows of a table; yields their texts and stores their labels."""

    def __init__(
        self,
        columns: Sequence[str],
        label_columns: Sequence[str],
        labels: LabelColumn,
        *,
        threshold: float | None,
        skip_blank: bool,
    ) -> None:
        self.columns, self.label_columns, self.labels = columns, label_columns, labels
        self.threshold, self.skip_blank = threshold, skip_blank

    def texts(self, rows: RowSource, facts: FileFacts) -> Iterator[str]:
        """Yield the text of each row that is used."""
        width, memory = len(self.columns), bool(rows.in_memory)
        for number, values in enumerate(rows.read([*self.columns, *self.label_columns]), start=1):
            name = f"{rows.name}, file {rows.files[number - 1]}" if rows.files else rows.name
            fields = [
                text_of(value, Place(name, number, column, memory))
                for value, column in zip(values[:width], self.columns, strict=True)
            ]
            if all(map(is_blank, fields)):
                self._pass_over(values[:width], Place(name, number, ", ".join(self.columns), memory))
                facts.blank += 1
                continue
            facts.numbers += any(not isinstance(value, str) and value is not None for value in values[:width])
            facts.rows += 1
            if self.label_columns:
                self._keep_label(values[width:], rows, number)
            yield join_fields(fields)
        if facts.blank:
            logger.info("%s: skipped %d rows without text", rows.name, facts.blank)

    def _pass_over(self, values: Sequence[Any], place: Place) -> None:
        if self.skip_blank:
            return
        what = "None" if all(value is None for value in values) else "empty or only spaces"
        raise place.error(
            f"the text is {what}; fill it in, delete the row, or set skip_blank=True (of a run: empty_text to skip), "
            "which leaves such rows out"
        )

    def _keep_label(self, values: Sequence[Any], rows: RowSource, number: int) -> None:
        places = [Place(rows.name, number, column, bool(rows.in_memory)) for column in self.label_columns]
        if len(places) == 1:
            self.labels.add(values[0], places[0], untyped=rows.untyped)
        else:
            self.labels.add_columns(values, places, threshold=self.threshold)


def text_of(value: Any, place: Place) -> str:
    """Return a cell's text; a number counts as its text, and a missing value as "".

    Raises:
        TableError: The value is not a text, or cannot be stored as UTF-8.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int | float | Decimal):
        return str(value)
    if not isinstance(value, str):
        raise place.error(f"the text must be a string, got {type(value).__name__} {value!r:.80}")
    if "\0" in value:
        raise place.error(
            f"the text holds a NUL byte at character {value.index(chr(0))}; remove it, for example with tr -d '\\000'"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise place.error(f"character {error.start} of the text is half of a surrogate pair; remove it") from error
    return value


def _write_texts(texts: Iterator[str]) -> datasets.Dataset:
    """Stream texts into a temporary Arrow file, deleted when the run ends, and map it into memory."""
    path = run_folder() / f"table-{uuid.uuid4().hex}.arrow"
    schema = datasets.Features({"text": datasets.Value("string")}).arrow_schema
    batch: list[str] = []
    with naming(path), pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for text in texts:
            batch.append(text)
            if len(batch) == WRITE_ROWS:
                writer.write_batch(pa.record_batch([pa.array(batch, pa.string())], schema=schema))
                batch = []
        if batch:
            writer.write_batch(pa.record_batch([pa.array(batch, pa.string())], schema=schema))
    return datasets.Dataset.from_file(str(path))
