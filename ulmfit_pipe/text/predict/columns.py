"""The columns that a prediction adds to a table's own: ``label``, ``score`` and, if asked for, every label's score.

Labels are written in the type that training had, or, where the table brings labels of its own, in the type of these:
so ``label == label_given`` is whether a prediction is right, in every kind of file.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from ulmfit_pipe.data.labels import BOOLS, INTEGERS, Place, can_be, is_blank, typed_label
from ulmfit_pipe.data.tables.readers import TableError
from ulmfit_pipe.data.tables.row_streams import FORMULA_STARTS, Chunk, Column, JsonText, RowWriter, column_values
from ulmfit_pipe.data.tables.tables import text_of
from ulmfit_pipe.data.text.text_rules import join_fields
from ulmfit_pipe.text.predict.predictor import Predictor, without_unsure

LABEL, SCORE = "label", "score"
GIVEN = "_given"  # an input column that is called like one of ours is kept under its name with this after it
LABEL_SEPARATOR = "|"  # between the labels of a multi-label row in CSV and TSV, which know no lists
SCORE_DIGITS = 6  # significant digits; the seventh of a float32 model depends on what is in the same batch
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
        abstain_below: Score below which a row gets no label, or None.

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
        abstain_below: float | None = None,
    ) -> None:
        self._abstain_below = abstain_below
        self.predictor, self.source, self.suffix, self.text_column = predictor, source, suffix, text_column
        self._joined = predictor.multi_label and suffix in (".csv", ".tsv")
        self._scored = predictor.label_names if all_scores else []
        self._kind: str | None = predictor.label_type  # the type that labels are written in
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
        own = None if given is None or LABEL not in given.names else given.field(LABEL).type
        self._kind = self._label_kind(own)
        added = self._added([], Counter(), self._kind)
        return pa.schema([*fields, *((name, column.type) for name, column in added.items())], metadata=metadata)

    def predict(self, chunk: Chunk, counts: Counts) -> Chunk:
        """Return a chunk of rows with columns of predictions; add the predicted labels to `counts`."""
        columns = [[_text_of(value) for value in column_values(chunk[name])] for name in self.text_column]
        texts = [None if is_empty(row) else join_fields(row) for row in zip(*columns, strict=True)]
        given = chunk.get(LABEL)
        kept = dict(zip(self._names, chunk.values(), strict=True))
        if self._joined and given is not None:
            kept[self.renamed[LABEL]] = _joined_lists(given)
        if self.suffix != ".parquet":  # which has one type for all rows, that of the schema
            self._kind = self._label_kind(None if given is None else _type_of(given))
        return {**kept, **self._added(texts, counts, self._kind)}

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
                f"{self.source}: half of a surrogate pair is in {nearby!r}, which {self.suffix} cannot keep; "
                "remove it, or write .jsonl"
            ) from error

    def _label_kind(self, given: pa.DataType | None) -> str | None:
        """Return the type to write labels in: that of the table's own, where they have one that ours fit."""
        if given is not None and (pa.types.is_list(given) or pa.types.is_large_list(given)):
            given = given.value_type
        own = self.predictor.label_type
        if given is None or pa.types.is_null(given):
            return own
        if pa.types.is_dictionary(given):
            given = given.value_type
        if pa.types.is_string(given) or pa.types.is_large_string(given):
            return None
        for kind, holds in ((INTEGERS, pa.types.is_integer), (BOOLS, pa.types.is_boolean)):
            if holds(given):
                return kind if can_be(self.predictor.label_names, kind) else own
        return own

    def _added(self, texts: Sequence[str | None], counts: Counts, kind: str | None) -> dict[str, pa.Array]:
        """Predict a chunk; return the new columns and count the labels."""
        given = [text for text in texts if text is not None]
        found = iter(without_unsure(self.predictor.predict(given), self._abstain_below))
        rows: list[dict[str, Any] | None] = [None if text is None else next(found) for text in texts]
        names: list[Any] = [None if row is None else _names_of(row["label"]) for row in rows]
        for row, name in zip(rows, names, strict=True):
            if row is None or name is not None:  # a row with a text and no label is counted by what is left over
                counts.update(name if isinstance(name, list) else [name])
        added: dict[str, pa.Array] = {LABEL: self._label_column(names, kind)}
        added[SCORE] = _score_column(None if row is None else row["score"] for row in rows)
        for name, label in zip(self._scored, self.predictor.labels, strict=False):
            column = _score_column(None if row is None else row["scores"][label] for row in rows)
            added[f"{SCORE}_{name}"] = column
        return added

    def _label_column(self, names: Sequence[Any], kind: str | None) -> pa.Array:
        """Return labels, one or several a row, in the type asked for; in CSV and TSV several joined in one text."""
        if self._joined:
            return pa.array([None if row is None else LABEL_SEPARATOR.join(row) for row in names], pa.string())
        one = {INTEGERS: pa.int64(), BOOLS: pa.bool_()}.get(kind or "", pa.string())
        if not self.predictor.multi_label:
            return pa.array([None if name is None else typed_label(name, kind) for name in names], one)
        lists = [None if row is None else [typed_label(name, kind) for name in row] for row in names]
        return pa.array(lists, pa.list_(one))


def _names_of(label: Any) -> Any:
    if isinstance(label, list):
        return [str(one) for one in label]
    return None if label is None else str(label)


def _type_of(column: Column) -> pa.DataType | None:
    """Return the type of a table's labels: text in CSV; in JSON that of the first that is there."""
    if isinstance(column, pa.Array):
        return column.type
    for value in column:
        if value is not None and not isinstance(value, JsonText):
            return pa.string()
        found = None if value is None else json.loads(value)
        if found is not None and found != []:
            try:
                return pa.scalar(found).type
            except (pa.ArrowException, OverflowError):
                return None
    return None


def _joined_lists(column: Column) -> Column:
    """Return lists of labels joined as predictions are; what is not a list of names stays as it is."""
    values = column_values(column)
    if not any(isinstance(value, list) for value in values):
        return column
    return [
        LABEL_SEPARATOR.join(map(str, value))
        if isinstance(value, list) and all(isinstance(one, str | int) for one in value)
        else ""
        if value is None
        else str(value)
        for value in values
    ]


def _text_of(value: Any) -> str:
    """Return a cell's text, as training reads it: a number counts as its text, a missing value as none."""
    return "" if value is None or value != value else str(value)


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
        TableError: A text is missing, is not a string or cannot be encoded.
    """
    texts = [text_of(value, Place(name, number, column)) for column, value in zip(columns, values, strict=True)]
    if is_empty(texts) and not skip_empty:
        raise TableError(
            f"{name}, row {number} (header not counted), column {', '.join(map(repr, columns))}: the text is "
            "empty; fill it in, delete the row, or set empty_text to skip for an empty label"
        )


def is_empty(fields: Sequence[str | None]) -> bool:
    """Whether a row has no text in any of its columns."""
    return all(field is None or is_blank(field) for field in fields)
