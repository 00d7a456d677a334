"""The columns that a prediction adds to a table's own: ``label``, ``score`` and, if asked for, every label's score."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from ulmfit_pipe.data.row_streams import FORMULA_STARTS, Chunk, RowWriter, column_values
from ulmfit_pipe.data.table_readers import TableError
from ulmfit_pipe.data.text_rules import join_fields
from ulmfit_pipe.stages.predict import Predictor

LABEL, SCORE = "label", "score"
GIVEN = "_given"  # an input column that is called like one of ours is kept under its name with this after it
LABEL_SEPARATOR = "|"  # between the labels of a multi-label row in CSV and TSV, which know no lists
SCORE_DIGITS = 6  # significant digits; the seventh of a float32 model depends on what stands in the same batch
Counts = Counter[str | None]  # how often each label was given, and None for rows without text


class PredictedColumns:
    """One table's columns with those of a prediction after them.

    Args:
        predictor: The model.
        columns: The table's columns.
        source: Its name, for messages.
        text_column: The columns of text.
        all_scores: Add a column for every label.
        suffix: The kind of file that is written.

    Attributes:
        renamed: Columns of the table that are called like one of ours, and what they are called in the output.

    Raises:
        TableError: The output would have two columns of one name.
        ValueError: A label holds the separator that CSV needs.
    """

    def __init__(
        self,
        predictor: Predictor,
        columns: Sequence[str],
        *,
        source: str,
        text_column: Sequence[str],
        all_scores: bool,
        suffix: str,
    ) -> None:
        self.predictor, self.source, self.suffix, self.text_column = predictor, source, suffix, text_column
        self._joined = predictor.multi_label and suffix in (".csv", ".tsv")
        self._scored = predictor.label_names if all_scores else []
        added = [LABEL, SCORE, *(f"{SCORE}_{name}" for name in self._scored)]
        self.renamed = {name: f"{name}{GIVEN}" for name in columns if name in added}
        self._names = [self.renamed.get(name, name) for name in columns]
        self._check_names([*self._names, *added])

    def _check_names(self, names: Sequence[str]) -> None:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise TableError(f"{self.source}: the output would have two columns {twice[0]!r}; rename the input's")
        if self._joined and any(LABEL_SEPARATOR in name for name in self.predictor.label_names):
            raise ValueError(
                f"a label holds {LABEL_SEPARATOR!r}, which parts the labels of a row in {self.suffix}; write .jsonl or "
                ".parquet"
            )

    def describe_renamed(self) -> list[str]:
        """Return a line for each column that is called like one of ours."""
        return [
            f"the input's column {old!r} is kept as {new!r}; {old!r} is the prediction"
            for old, new in self.renamed.items()
        ]

    def describe_formulas(self) -> list[str]:
        """Return a line if a label begins like a formula, and is written so that a spreadsheet would run it."""
        like_one = [name for name in self.predictor.label_names if name.startswith(FORMULA_STARTS)]
        if not like_one or self.suffix not in (".csv", ".tsv"):
            return []
        return [
            f"note: the label {like_one[0]!r} begins like a formula, which a spreadsheet would run; --escape_formulas "
            "true writes an apostrophe before it, and before such texts"
        ]

    @property
    def escaped(self) -> list[str]:
        """Names of the output's columns in which everything that begins like a formula is text: labels and texts."""
        return [LABEL, self.renamed.get(LABEL, LABEL), *(self.renamed.get(name, name) for name in self.text_column)]

    def schema(self, given: pa.Schema | None) -> pa.Schema:
        """Return the output's columns in order; their types count for Parquet only, which takes the table's own."""
        fields, metadata = [pa.field(name, pa.string()) for name in self._names], None
        if self.suffix == ".parquet" and given is not None:
            fields = [part.with_name(name) for part, name in zip(given, self._names, strict=True)]
            metadata = given.metadata
        added = self._added([], Counter())
        return pa.schema([*fields, *((name, column.type) for name, column in added.items())], metadata=metadata)

    def predict(self, chunk: Chunk, counts: Counts) -> Chunk:
        """Return rows with their predictions; the labels are counted."""
        columns = [column_values(chunk[name]) for name in self.text_column]
        texts = [
            None if is_empty(row) else join_fields([part or "" for part in row]) for row in zip(*columns, strict=True)
        ]
        return {**dict(zip(self._names, chunk.values(), strict=True)), **self._added(texts, counts)}

    def write(self, writer: RowWriter, chunk: Chunk) -> None:
        """Write rows.

        Raises:
            TableError: The kind of file cannot keep them.
        """
        try:
            writer.write(chunk)
        except UnicodeEncodeError as error:
            nearby = error.object[max(0, error.start - 20) : error.end + 20]
            raise TableError(
                f"{self.source}: half of a surrogate pair stands in {nearby!r}, which {self.suffix} cannot keep; "
                "remove it, or write .jsonl"
            ) from error

    def _added(self, texts: Sequence[str | None], counts: Counts) -> dict[str, pa.Array]:
        """Predict a chunk; return the new columns and count the labels."""
        found = iter(self.predictor.predict([text for text in texts if text is not None]))
        rows: list[dict[str, Any] | None] = [None if text is None else next(found) for text in texts]
        labels: list[Any] = [None if row is None else row["label"] for row in rows]
        for label in labels:
            counts.update(label if isinstance(label, list) else [label])
        kind = pa.list_(pa.string()) if self.predictor.multi_label and not self._joined else pa.string()
        if self._joined:
            labels = [None if label is None else LABEL_SEPARATOR.join(label) for label in labels]
        added: dict[str, pa.Array] = {LABEL: pa.array(labels, kind)}
        added[SCORE] = _score_column(None if row is None else row["score"] for row in rows)
        for name in self._scored:
            added[f"{SCORE}_{name}"] = _score_column(None if row is None else row["scores"][name] for row in rows)
        return added


def _score_column(values: Iterable[float | None]) -> pa.Array:
    rounded = [None if value is None else float(f"{value:.{SCORE_DIGITS}g}") for value in values]
    return pa.array(rounded, pa.float64())


# What a table must be


def check_row(values: Sequence[Any], number: int, *, name: str, columns: Sequence[str], skip_empty: bool) -> None:
    """Raise unless a row can be predicted.

    Args:
        values: Its texts.
        number: Its number in the table, from 1.
        name: The table's, for messages.
        columns: Names of the columns of text.
        skip_empty: A row without text may pass.

    Raises:
        TableError: A text is no string or cannot be encoded, or there is none.
    """
    for column, value in zip(columns, values, strict=True):
        _check_text(value, f"{name}, row {number} (header not counted), column {column!r}")
    if is_empty(values) and not skip_empty:
        raise TableError(
            f"{name}, row {number} (header not counted), column {', '.join(map(repr, columns))}: the text is "
            "empty; fill it in, delete the row, or set empty_text to skip for an empty label"
        )


def _check_text(value: Any, place: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TableError(f"{place}: the text must be a string, got {type(value).__name__} {repr(value)[:60]}")
    if "\0" in value:
        raise TableError(f"{place}: the text holds a NUL byte at character {value.index(chr(0))}; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TableError(f"{place}: character {error.start} is half of a surrogate pair; remove it") from error


def is_empty(fields: Sequence[str | None]) -> bool:
    """Whether a row has no text in any of its columns."""
    return not any(field and not field.isspace() for field in fields)
