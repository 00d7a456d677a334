"""What a run leaves of its test rows and tables for the report: ``predictions.csv``, and a record of each table."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ulmfit_pipe.data.splits import labels_of_rows
from ulmfit_pipe.data.tables.row_streams import Chunk, open_writer
from ulmfit_pipe.data.text.text_facts import count_repeats, count_shared, look_at_texts
from ulmfit_pipe.storage.atomic import whole_file
from ulmfit_pipe.text.predict.columns import LABEL_SEPARATOR, SCORE_DIGITS
from ulmfit_pipe.text.predict.predictor import ScoredRows

TEXTS_AND_LABELS = ("text", "truth", "prediction")  # columns whose cells a spreadsheet must not take for formulas
LONGEST_TEXT = 2000  # characters of a text that are written
CHUNK_ROWS = 2048
BEFORE = {"validation": ("training",), "test": ("training", "validation")}  # tables that should share no text with it


def write_predictions(path: Path, table: Dataset, scored: ScoredRows, *, names: Sequence[str]) -> None:
    """Write the rows of a scored table as CSV: row, text, truth, prediction, score, and ``score_LABEL`` of each label.

    A cell that begins like a formula gets an apostrophe, as by ``ulmfit predict --escape_formulas true``.

    Args:
        path: The file; one that is there is replaced when the new one is complete.
        table: The rows, with their labels.
        scored: The answers to them.
        names: Names of the labels.
    """
    each = [] if scored.probabilities is None else list(names)
    columns = ["row", *TEXTS_AND_LABELS, "score", *(f"score_{name}" for name in each)]
    schema = pa.schema([(_as_utf8(name), pa.string()) for name in columns])
    with whole_file(path) as temporary:
        writer = open_writer(temporary, schema, suffix=".csv", escaped=TEXTS_AND_LABELS)
        with contextlib.closing(writer):
            for start in range(0, len(table), CHUNK_ROWS):
                rows = slice(start, min(start + CHUNK_ROWS, len(table)))
                writer.write(_chunk(table.select(range(rows.start, rows.stop)), rows, scored, names, columns))


def _chunk(part: Dataset, rows: slice, scored: ScoredRows, names: Sequence[str], columns: Sequence[str]) -> Chunk:
    given = [np.flatnonzero(row) for row in scored.answers[rows]] if scored.answers.ndim == 2 else scored.answers[rows]
    cells: list[list[str]] = [
        [str(number + 1) for number in range(rows.start, rows.stop)],
        [_as_utf8(text[:LONGEST_TEXT]) for text in part["text"]],
        [_joined(labels, names) for labels in labels_of_rows(part)],
        [_joined(np.atleast_1d(labels), names) for labels in given],
        [_shown(score) for score in scored.scores[rows]],
    ]
    if scored.probabilities is not None:
        cells += [[_shown(score) for score in column] for column in scored.probabilities[rows].T]
    return dict(zip(map(_as_utf8, columns), cells, strict=True))


def _joined(labels: Any, names: Sequence[str]) -> str:
    return _as_utf8(LABEL_SEPARATOR.join(names[label] for label in labels))


def _shown(score: float) -> str:
    return f"{score:.{SCORE_DIGITS}g}"


def _as_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def record_of(tables: Mapping[str, Dataset], *, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what ``metrics.json`` holds of each table.

    That is ``rows``, ``characters`` of a text, rows of each label, ``repeats`` (rows whose text is in an earlier row,
    word for word), and of tables that are only measured ``in_training`` and ``in_validation``: rows whose text is there
    too.
    """
    record: dict[str, dict[str, Any]] = {}
    facts = {name: look_at_texts(table) for name, table in tables.items()}
    for name, table in tables.items():
        middle, most = np.quantile(facts[name].lengths, [0.5, 0.95])
        record[name] = {
            "rows": len(table),
            "characters": {"median": float(middle), "95 %": float(most), "longest": max(facts[name].lengths)},
            "repeats": count_repeats(facts[name])[0],
        }
        for other in BEFORE.get(name, ()):
            if other in facts:
                record[name][f"in_{other}"] = count_shared(facts[name], facts[other])[0]
        if "label" in table.column_names:
            counts = Counter(int(label) for labels in labels_of_rows(table) for label in labels)
            record[name]["labels"] = {label: counts[number] for number, label in enumerate(names)}
    return record
