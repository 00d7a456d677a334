"""What may be wrong with a labelled table: repeated and near-empty texts, contradicting labels, likely label errors.

A likely label error is a row whose label a classifier that was made without the row does not give: logistic regression
on a frozen network's features, over stratified folds. The rows are ranked by how sure it is of another label.

Source: Northcutt, Jiang & Chuang 2021, Confident Learning (ranking by normalized margin).
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from ulmfit_pipe.console import in_one_line, print_line
from ulmfit_pipe.data.splits import labels_of_rows
from ulmfit_pipe.data.tables.row_streams import escape_formula
from ulmfit_pipe.data.text.text_facts import TextFacts, look_at_texts
from ulmfit_pipe.settings.tables import CheckDataSettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.storage.atomic import write_atomic
from ulmfit_pipe.text.classifier import build_classifier_learner
from ulmfit_pipe.text.head_probe import MOST_ROWS, find_head, fit_head_probe, training_features
from ulmfit_pipe.text.predict.columns import LABEL_SEPARATOR
from ulmfit_pipe.text.tables import columns_of, label_names_of, load_run_tables

FEW_LETTERS = 4  # letters and digits of a text, below which nothing can be known from it
NEAR = 0.85  # cosine of two texts' TF-IDF vectors over runs of 3 to 5 characters
MOST_COMPARED = 20_000  # texts that are compared with one another for near repeats: the time grows with their square
COMPARED_AT_ONCE = 500
SHOWN = 20  # rows listed on the terminal
SHOWN_TEXT = 80  # characters


@dataclass(frozen=True)
class Problem:
    """Something that may be wrong with one row.

    Attributes:
        table: "training" or "test".
        row: Number of the row, from 1; rows without text that were left out are not counted.
        problem: What it is.
        label: The row's labels as text, joined with |.
        suggestion: For a likely label error, the label that the classifier gives.
        score: For a likely label error its margin: how much surer the classifier is of the other label, 0 to 1.
        text: The text.
    """

    table: str
    row: int
    problem: str
    label: str
    suggestion: str
    score: float | None
    text: str


def check_data(settings: CheckDataSettings) -> list[Problem]:
    """Check labelled tables, print an account of them, and return the rows to look at, the likely errors first.

    Raises:
        TableError: A table cannot be read.
        ArtifactError: The model cannot classify texts.
    """
    tables = load_run_tables(
        settings.train_file,
        test_file=settings.test_file,
        validation_fraction=0.0,
        seed=settings.seed,
        **columns_of(settings),
    )
    names, several = label_names_of(tables.train)
    train = _Rows.of("training", tables.train, names)
    found: list[Problem] = []
    if settings.label_errors:
        found += _label_errors(train, settings, several=several)
    found += _odd_texts(train, known=())
    if tables.test is not None:
        found += _odd_texts(_Rows.of("test", tables.test, names), known=train.facts.alike)
    if settings.output_file is not None:
        write_atomic(settings.output_file, problems_csv(found).encode("utf-8-sig"))
    return found


def describe_problems(found: Sequence[Problem]) -> str:
    """Return the number of problems of each kind and the first of them, for a person."""
    counts: dict[str, int] = {}
    for each in found:
        kind = each.problem.split(" row ")[0]
        counts[kind] = counts.get(kind, 0) + 1
    listed = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
    lines = [f"rows to look at: {listed or 'none'}"]
    for each in found[:SHOWN]:
        label = f"{each.label} -> {each.suggestion} ({each.score:.2f})" if each.suggestion else each.label
        text = in_one_line(each.text[:SHOWN_TEXT])
        lines.append(f"  {each.table} row {each.row:,}: {each.problem}; {in_one_line(label)}: {text}")
    return "\n".join(lines)


def problems_csv(found: Sequence[Problem]) -> str:
    """Return the problems as CSV that a spreadsheet opens; cells that it would run as formulas begin with '."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["table", "row", "problem", "label", "suggestion", "score", "text"])
    for each in found:
        score = "" if each.score is None else f"{each.score:.4f}"
        label, suggestion, text = map(escape_formula, (each.label, each.suggestion, each.text))
        writer.writerow([each.table, each.row, each.problem, label, suggestion, score, text])
    return stream.getvalue()


def rank_label_errors(probabilities: NDArray[Any], given: NDArray[Any]) -> list[tuple[int, int, float]]:
    """Return the rows whose labels are contradicted, the clearest first.

    Args:
        probabilities: float (rows, num_labels), each row by a classifier made without it.
        given: int (rows,), or for several labels per row 0 and 1 (rows, num_labels).

    Returns:
        Row, the label that is likely (or likely wrong, for several labels), and the margin in (0, 1].
    """
    rows = np.arange(len(probabilities))
    if given.ndim == 2:
        against = np.abs(probabilities - given)
        other = against.argmax(1)
        margins = 2 * against[rows, other] - 1
    else:
        other = probabilities.argmax(1)
        margins = probabilities[rows, other] - probabilities[rows, given]
    order = np.argsort(-margins, kind="stable")
    return [(int(row), int(other[row]), float(margins[row])) for row in order if margins[row] > 0]


@dataclass(frozen=True)
class _Rows:
    """A table with what is looked up again and again: its texts, their facts, and its labels."""

    name: str
    table: Dataset
    texts: list[str]
    facts: TextFacts
    labels: list[list[int]]
    names: list[str]

    @classmethod
    def of(cls, name: str, table: Dataset, names: list[str]) -> "_Rows":
        """Look at a table once."""
        return cls(name, table, list(table["text"]), look_at_texts(table), labels_of_rows(table), names)

    def problem(self, row: int, problem: str, *, suggested: Sequence[int] = (), score: float | None = None) -> Problem:
        """Return a problem of one row, counted from 0."""
        label, suggestion = (
            LABEL_SEPARATOR.join(self.names[number] for number in numbers) for numbers in (self.labels[row], suggested)
        )
        if score is not None and not suggestion:
            suggestion = "no label"
        return Problem(self.name, row + 1, problem, label, suggestion, score, self.texts[row])


def _label_errors(rows: _Rows, settings: CheckDataSettings, *, several: bool) -> Iterator[Problem]:
    read = rows.table.select(range(min(len(rows.table), MOST_ROWS)))  # the first: more would be read in no order
    if len(read) < len(rows.table):
        print_line(f"label errors are looked for in the first {len(read):,} of {len(rows.table):,} rows")
    context = RunContext(seed=settings.seed)
    parts = build_classifier_learner(
        read, None, model=settings.model, settings=ClassifierSettings(keep="last"), context=context
    )
    head = find_head(parts.network, len(rows.names))
    features = training_features(parts.learner, head, context)
    probe = fit_head_probe(head, features, num_labels=len(rows.names), seed=settings.seed)
    if probe.held_out is None:
        print_line("label errors are not looked for: fewer than two labels have two rows or more")
        return
    for row, other, margin in rank_label_errors(probe.held_out, features.labels):
        suggested = sorted(set(rows.labels[row]) ^ {other}) if several else [other]
        yield rows.problem(row, "label is likely wrong", suggested=suggested, score=margin)


def _odd_texts(rows: _Rows, *, known: Sequence[int]) -> Iterator[Problem]:
    """Give repeats, contradictions, near repeats, texts of almost nothing, and texts that are known.

    Args:
        rows: The table.
        known: Hash values of the training texts, as `TextFacts.alike`, for another table.
    """
    trained = {text: row for row, text in enumerate(known)}
    first: dict[int, int] = {}
    for row, text in enumerate(rows.facts.alike):
        before = first.setdefault(text, row)
        if text in trained:
            yield rows.problem(row, f"is also training row {trained[text] + 1:,}")
        if before != row:
            same = rows.labels[before] == rows.labels[row]
            kind = "repeats row" if same else "has another label than the same text in row"
            yield rows.problem(row, f"{kind} {before + 1:,}")
        if sum(map(str.isalnum, rows.texts[row])) < FEW_LETTERS:
            yield rows.problem(row, "text is almost empty")
    for row, before in _near_repeats(rows.texts, rows.facts.alike):
        same = rows.labels[before] == rows.labels[row]
        kind = "nearly repeats row" if same else "has another label than the like text in row"
        yield rows.problem(row, f"{kind} {before + 1:,}")


def _near_repeats(texts: Sequence[str], alike: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give rows whose text is nearly that of an earlier row, with the most similar one, but for repeats."""
    texts = texts[:MOST_COMPARED]
    try:
        vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), dtype=np.float32).fit_transform(texts)
    except ValueError:  # no text has three characters
        return
    for start in range(0, len(texts), COMPARED_AT_ONCE):
        part = vectors[start : start + COMPARED_AT_ONCE]
        pairs = (part @ vectors[: start + COMPARED_AT_ONCE].T).tocoo()
        near: dict[int, tuple[float, int]] = {}
        for row, other, cosine in zip(pairs.row + start, pairs.col, pairs.data, strict=True):
            if cosine >= NEAR and other < row and alike[other] != alike[row]:
                near[int(row)] = max(near.get(int(row), (0.0, 0)), (float(cosine), int(other)))
        for row in sorted(near):
            yield row, near[row][1]
