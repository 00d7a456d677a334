"""A table of texts, from any usual file, as a ``datasets.Dataset`` with the columns ``text`` and ``label``.

Rows that would spoil training are refused by file, row and column; nothing is dropped or guessed. Rows are counted
from 1, the header not counted. Texts go to a temporary Arrow file while they are read, so memory stays bounded.
"""

import logging
import math
import os
import re
import uuid
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ulmfit_pipe.data.run_files import run_folder
from ulmfit_pipe.data.table_readers import RowSource, TableError, nearest, open_rows
from ulmfit_pipe.data.text_rules import join_fields
from ulmfit_pipe.temporary_files import naming

logger = logging.getLogger(__name__)

WRITE_ROWS = 256  # rows written at once
SHOWN_NAMES = 20  # label names listed in a message
_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][+-]?\d+)")


@dataclass(frozen=True)
class _Place:
    """Where a value stands, for messages."""

    file: str
    row: int
    column: str

    def error(self, what: str) -> TableError:
        return TableError(f"{self.file}, row {self.row} (header not counted), column {self.column!r}: {what}")


class _Labels:
    """Label names as they turn up, and each row's label as a number (numbers, in multi-label)."""

    def __init__(self, names: Sequence[str] | None, *, multi_label: bool, separator: str | None) -> None:
        self.fixed = list(names) if names is not None else None
        self.numbers: dict[str, int] = {name: number for number, name in enumerate(names or ())}
        self.multi_label = multi_label
        self.separator = separator
        self.single = array("q")
        self.several: list[list[int]] = []

    def add(self, value: Any, place: _Place, *, untyped: bool) -> None:
        """Check one row's label and keep it."""
        if self.multi_label:
            names = [_label_name(part, place, untyped=untyped) for part in self._parts(value, place)]
            self.several.append(sorted({self._number(name, place) for name in names}))
            return
        if isinstance(value, list | tuple):
            raise place.error(f"the label is a list, {value!r:.80}; set multi_label=True if a text may have several")
        self.single.append(self._number(_label_name(value, place, untyped=untyped), place))

    def _parts(self, value: Any, place: _Place) -> list[Any]:
        if value is None:
            raise place.error("there is no label; write an empty list for a text without any")
        if isinstance(value, list | tuple):
            return list(value)
        if isinstance(value, str) and self.separator:
            return [part.strip() for part in value.split(self.separator) if part.strip()]
        raise place.error(
            f"multi_label=True needs a list of labels, got {value!r:.80}; if labels are joined in one string, "
            "give label_separator"
        )

    def _number(self, name: str, place: _Place) -> int:
        if self.fixed is not None and name not in self.numbers:
            known = ", ".join(self.fixed[:SHOWN_NAMES]) + (", ..." if len(self.fixed) > SHOWN_NAMES else "")
            raise place.error(
                f"the label {name!r} is not among those that training knows ({known}); rename it, or train with it"
                f"{nearest(name, self.fixed)}"
            )
        return self.numbers.setdefault(name, len(self.numbers))

    def column(self) -> datasets.Dataset:
        """A one-column dataset ``label`` with the names in their final order."""
        seen = list(self.numbers)
        names = self.fixed if self.fixed is not None else sort_label_names(seen)
        final = {name: number for number, name in enumerate(names)}
        order = [final[name] for name in seen]
        feature: Any = datasets.ClassLabel(names=names)
        values: Any = [order[number] for number in self.single]
        if self.multi_label:
            feature = datasets.List(feature)
            values = [sorted(order[number] for number in row) for row in self.several]
        return datasets.Dataset.from_dict({"label": values}, features=datasets.Features({"label": feature}))


def load_table(
    source: str | Path | Sequence[str | Path],
    *,
    text_columns: Sequence[str] = ("text",),
    label_column: str | None = "label",
    label_names: Sequence[str] | None = None,
    multi_label: bool = False,
    label_separator: str | None = None,
    split: str | None = None,
    skip_blank: bool | None = None,
) -> datasets.Dataset:
    """Read and check a table.

    Args:
        source: A .csv, .tsv, .jsonl, .json or .parquet file, a folder saved by ``datasets``, a hub name, or a list
            of these, which are put one after the other.
        text_columns: The text. Several are joined as ``xxfld 1 ... xxfld 2 ...``; some of them may be empty.
        label_column: The label: a name, an integer or a bool. None for text without labels.
        label_names: The names that training knows, in order; any other is refused. None takes what is there, sorted
            (integers by value).
        multi_label: The label is a list, or a string of names joined by ``label_separator``; it may be empty.
        label_separator: What stands between the labels of one row.
        split: Which split of a saved ``DatasetDict`` or a hub dataset.
        skip_blank: Pass over rows without text instead of refusing them. None means only where there are no labels.

    Returns:
        ``text`` (string) and, unless ``label_column`` is None, ``label`` (ClassLabel, or a list of them).

    Raises:
        TableError: There is no such table, it cannot be read, or a row cannot be used; the message says which.
        ValueError: ``text_columns`` or ``source`` is empty, or settings contradict one another.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    sources = [os.path.expanduser(one) if isinstance(one, str | Path) else one for one in sources]
    columns = [text_columns] if isinstance(text_columns, str) else list(text_columns)
    _check_settings(sources, columns, label_column, multi_label=multi_label, label_separator=label_separator)
    labels = _Labels(label_names, multi_label=multi_label, separator=label_separator)
    wanted = columns if label_column is None else [*columns, label_column]
    skip = label_column is None if skip_blank is None else skip_blank

    def texts() -> Iterator[str]:
        for one in sources:
            rows = open_rows(one, split=split)
            _check_columns(rows, wanted)
            yield from _checked_texts(rows, columns, label_column, labels, skip_blank=skip)

    table = _write_texts(texts())
    if not len(table):
        raise TableError(f"{', '.join(map(str, sources))}: the table is empty, it has no rows to use")
    if label_column is None:
        return table
    return datasets.concatenate_datasets([table, labels.column()], axis=1)


def split_train_validation(dataset: datasets.Dataset, *, fraction: float = 0.1, seed: int = 0) -> datasets.DatasetDict:
    """Split off a validation set; every class gets its share. Multi-label and unlabelled rows are drawn plainly.

    Args:
        dataset: From :func:`load_table`.
        fraction: Share of the rows for validation, in (0, 1). At least one row per class is taken.
        seed: The same seed gives the same split.

    Returns:
        ``train`` and ``validation``.

    Raises:
        ValueError: ``fraction`` is out of range.
        TableError: A class has one row only, or there are too few rows.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1), got {fraction!r}; 0.1 is usual")
    if len(dataset) < 2:
        raise TableError(f"a table of {len(dataset)} row cannot be split; give a validation file, or more rows")
    held_out = max(1, round(fraction * len(dataset)))
    stratify = "label" if isinstance(dataset.features.get("label"), datasets.ClassLabel) else None
    if stratify:
        names, counts = dataset.features["label"].names, Counter(dataset["label"][:])
        for number, count in sorted(counts.items()):
            if count == 1:
                raise TableError(
                    f"the class {names[number]!r} has one row only, which cannot be both in training and in "
                    "validation; add rows, remove the class, or give a validation file"
                )
        held_out = max(held_out, len(counts))
        if len(dataset) - held_out < len(counts):
            raise TableError(
                f"{len(dataset)} rows of {len(counts)} classes are too few to hold out {held_out} for validation; "
                "add rows, take a smaller fraction, or give a validation file"
            )
    parts = dataset.train_test_split(test_size=held_out, seed=seed, stratify_by_column=stratify)
    return datasets.DatasetDict(train=parts["train"], validation=parts["test"])


def check_labels_for_training(dataset: datasets.Dataset) -> None:
    """Refuse a table that a classifier cannot learn from.

    Raises:
        TableError: All rows have one label, or (multi-label) no row has any.
    """
    if "label" not in dataset.column_names:
        raise TableError("the table has no labels; load it with label_column=")
    feature = dataset.features["label"]
    if not isinstance(feature, datasets.ClassLabel):
        if not any(len(row) for row in dataset["label"][:]):
            raise TableError(f"none of the {len(dataset)} rows has a label; multi-label training needs some")
        return
    seen = set(dataset["label"][:])
    if len(seen) < 2:
        name = feature.int2str(next(iter(seen)))
        raise TableError(f"all {len(dataset)} rows have the label {name!r}; a classifier needs at least two classes")


def sort_label_names(names: Iterable[str]) -> list[str]:
    """Label names in their standard order: by value if all are integers, else as strings."""
    names = list(names)
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _check_settings(
    sources: Sequence[Any],
    columns: Sequence[str],
    label_column: str | None,
    *,
    multi_label: bool,
    label_separator: str | None,
) -> None:
    if not sources:
        raise ValueError("source is an empty list; give at least one file")
    if not columns:
        raise ValueError("text_columns is empty; name at least one column")
    if label_column in columns:
        raise ValueError(f"the column {label_column!r} is named both as text and as label")
    if label_separator is not None and not multi_label:
        raise ValueError(f"label_separator={label_separator!r} needs multi_label=True")


def _check_columns(rows: RowSource, wanted: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(rows.columns).items() if count > 1]
    if repeated:
        raise TableError(f"{rows.name}: the column name {repeated[0]!r} stands twice; rename one of the columns")
    for name in wanted:
        if name not in rows.columns:
            hint = nearest(name, rows.columns)
            if len(rows.columns) == 1 and ";" in rows.columns[0]:
                hint = "; the header holds ';': save the file with commas"
            raise TableError(f"{rows.name}: there is no column {name!r}; there are {', '.join(rows.columns)}{hint}")


def _checked_texts(
    rows: RowSource, columns: Sequence[str], label_column: str | None, labels: _Labels, *, skip_blank: bool
) -> Iterator[str]:
    wanted = columns if label_column is None else [*columns, label_column]
    skipped = 0
    for number, values in enumerate(rows.read(wanted), start=1):
        fields = [
            _checked_field(value, _Place(rows.name, number, column))
            for value, column in zip(values, columns, strict=False)
        ]
        if not any(field and not field.isspace() for field in fields):
            if not skip_blank:
                what = "None" if all(value is None for value in values[: len(columns)]) else "empty or only spaces"
                raise _Place(rows.name, number, ", ".join(columns)).error(
                    f"the text is {what}; fill it in, delete the row, or set skip_blank=True"
                )
            skipped += 1
            continue
        if label_column is not None:
            labels.add(values[-1], _Place(rows.name, number, label_column), untyped=rows.untyped)
        yield join_fields(fields)
    if skipped:
        logger.info("%s: skipped %d rows without text", rows.name, skipped)


def _checked_field(value: Any, place: _Place) -> str:
    if value is None:
        return ""
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


def _label_name(value: Any, place: _Place, *, untyped: bool) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise place.error("there is no label; fill it in, or delete the row")
    if isinstance(value, float) or (untyped and _FLOAT.fullmatch(value.strip())):
        raise place.error(
            f"the label is the decimal number {value}; labels must be names or integers. Convert the column first, "
            f"for example in pandas: table[{place.column!r}] = table[{place.column!r}].astype(int)"
        )
    if not isinstance(value, str | int):
        raise place.error(f"the label must be a name or an integer, got {type(value).__name__} {value!r:.80}")
    name = str(value)
    if not name.strip():
        raise place.error("the label is empty or only spaces; fill it in, or delete the row")
    return name


def _write_texts(texts: Iterator[str]) -> datasets.Dataset:
    """Stream texts into a temporary Arrow file, which goes when the run ends, and map it into memory."""
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
