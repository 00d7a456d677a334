"""`ulmfit label-next`: which rows of an unlabelled table to label next, and what their labels would buy.

The classifier reads the pool once; uncertain rows that are spread out over its features are named, repeats left out.
What labels buy is measured on the training rows with the network that the classifier started from: its own has seen
their labels, and would look too good.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from ulmfit_pipe.console import in_one_line
from ulmfit_pipe.data.labels import Place, is_blank
from ulmfit_pipe.data.tables.column_names import check_wanted
from ulmfit_pipe.data.tables.readers import open_rows
from ulmfit_pipe.data.tables.row_sources import RowSource, reading_of
from ulmfit_pipe.data.tables.row_streams import escape_formula
from ulmfit_pipe.data.tables.tables import TableError, text_of
from ulmfit_pipe.data.text.text_facts import look_at_texts
from ulmfit_pipe.data.text.text_rules import join_fields
from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.settings.prediction import LabelNextSettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import find_model
from ulmfit_pipe.stages.classifier_labels import is_text_classifier
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.storage.atomic import write_atomic
from ulmfit_pipe.text.classifier import build_classifier_learner
from ulmfit_pipe.text.head_probe import MOST_ROWS, find_head, frozen_features, training_features
from ulmfit_pipe.text.labelling.learning_curve import CurveError, LearningCurve, measure_curve
from ulmfit_pipe.text.labelling.selection import choose_rows, uncertainty
from ulmfit_pipe.text.predict.columns import LABEL_SEPARATOR
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.tables import columns_of, load_run_tables
from ulmfit_pipe.text.updating.rows import LabelSet, labels_of_classifier, remembered_rows, remembered_settings

SHOWN, SHOWN_TEXT = 10, 80  # rows on the terminal, and characters of each


@dataclass(frozen=True)
class RowToLabel:
    """One row to label.

    Attributes:
        table: The pool's file.
        row: Number of the row in it, from 1, the header not counted.
        text: The text.
        score: How uncertain the classifier is, 0 to 1: 1 where two labels are equally likely.
        suggestion: The label that it gives, several joined with |.
    """

    table: str
    row: int
    text: str
    score: float
    suggestion: str


@dataclass(frozen=True)
class LabelNext:
    """Which rows to label next, and what it would buy.

    Attributes:
        rows: The rows, the most uncertain first.
        curve: What their labels would buy, or None where that is not known.
        notes: What was left out, and why the curve is not known.
    """

    rows: list[RowToLabel]
    curve: LearningCurve | None
    notes: list[str]

    def __str__(self) -> str:
        """The first rows, the notes and the curve, for a person."""
        lines = [
            f"  {in_one_line(Path(each.table).name)} row {each.row:,}: {in_one_line(each.suggestion) or 'no label'} "
            f"({each.score:.2f}): {in_one_line(each.text[:SHOWN_TEXT])}"
            for each in self.rows[:SHOWN]
        ]
        curve = [] if self.curve is None else [str(self.curve)]
        return "\n".join([f"rows to label next: {len(self.rows):,}", *lines, *self.notes, *curve])


@dataclass(frozen=True)
class _Pool:
    """Texts without labels, with the table and the row of each."""

    texts: list[str]
    places: list[tuple[str, int]]

    def of(self, rows: Sequence[int]) -> "_Pool":
        """Return some of the rows."""
        return _Pool([self.texts[row] for row in rows], [self.places[row] for row in rows])


def label_next(settings: LabelNextSettings, *, pool: Any = None, predictor: Predictor | None = None) -> LabelNext:
    """Choose the rows of a pool to label next, and write them as CSV where an output file is named.

    Args:
        settings: Settings.
        pool: The pool where it is no file, as `TextPipeline.label_next` opens it.
        predictor: The classifier where it is loaded already.

    Raises:
        ArtifactError: The model is not a classifier.
        TableError: The pool has no row that could be labelled, or fewer than are wanted; a table cannot be read.
        ValueError: The output file is there already.
    """
    _refuse_output(settings.output_file)
    predictor = predictor or Predictor.load(settings.model, trust_remote_code=settings.trust_remote_code)
    found = _read_pool([pool] if pool is not None else settings.pool, settings)
    train, why = _training_rows(settings)
    notes = [] if train is not None else [f"note: texts of the training table are not left out: {why}"]
    found = _without_repeats(found, train, settings, notes)
    features, probabilities = _read_by_classifier(predictor, found.texts)
    several = predictor.multi_label
    chosen = choose_rows(
        features, probabilities, n=settings.n, strategy=settings.strategy, seed=settings.seed, several=several
    )
    unsure = uncertainty(probabilities, several=several)
    rows = [
        RowToLabel(*found.places[row], found.texts[row], float(unsure[row]), _suggested(predictor, probabilities[row]))
        for row in chosen
    ]
    curve = _curve(train, settings, predictor, notes) if settings.curve else None
    if settings.output_file is not None:
        write_atomic(settings.output_file, rows_csv(rows).encode("utf-8-sig"))
    return LabelNext(rows, curve, notes)


def rows_csv(rows: Sequence[RowToLabel]) -> str:
    """Return the rows as CSV with an empty column label; cells that a spreadsheet would run begin with '."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["table", "row", "text", "label", "suggestion", "score"])
    for each in rows:
        table, text, suggestion = map(escape_formula, (each.table, each.text, each.suggestion))
        writer.writerow([table, each.row, text, "", suggestion, f"{each.score:.4f}"])
    return stream.getvalue()


def _refuse_output(output: str | None) -> None:
    if output is not None and Path(output).exists():
        raise ValueError(
            f"output_file {output} is there already and may hold labels that somebody has written; move it, or name "
            "another file"
        )


def _read_pool(sources: Sequence[str | RowSource], settings: LabelNextSettings) -> _Pool:
    """Read the pool; rows without text are left out, and the others keep their numbers.

    Raises:
        TableError: There is no row with text.
    """
    found = list(_pool_rows(sources, settings))
    names = ", ".join(each.name if isinstance(each, RowSource) else each for each in sources)
    if not found:
        raise TableError(f"the pool {names} is empty, it has no row with text; give a table of texts to choose from")
    return _Pool([text for text, _, _ in found], [(table, row) for _, table, row in found])


def _pool_rows(sources: Sequence[str | RowSource], settings: LabelNextSettings) -> Iterator[tuple[str, str, int]]:
    """Give text, table and number of each row with text."""
    columns = settings.text_column
    for source in sources:
        rows = source if isinstance(source, RowSource) else open_rows(source, reading=reading_of(settings))
        check_wanted(rows, columns)
        name = rows.name if isinstance(source, RowSource) else source
        for number, values in enumerate(rows.read(columns), start=1):
            places = [Place(rows.name, number, column, bool(rows.in_memory)) for column in columns]
            fields = [text_of(value, place) for value, place in zip(values, places, strict=True)]
            if not all(map(is_blank, fields)):
                yield join_fields(fields), name, number


def _training_rows(settings: LabelNextSettings) -> tuple[Dataset | None, str]:
    """Return the labelled rows, or None and why they are not known."""
    model = find_model(settings.model)
    known = labels_of_classifier(model)
    if settings.train_file is not None:
        return load_run_tables(
            settings.train_file, validation_fraction=0.0, seed=settings.seed, **columns_of(settings)
        ).train, ""
    try:
        return remembered_rows(Path(model.location), known).train, ""
    except (TableError, ValueError, OSError) as error:
        return None, f"{error}; name it with --train_file"


def _without_repeats(pool: _Pool, train: Dataset | None, settings: LabelNextSettings, notes: list[str]) -> _Pool:
    """Leave out texts that are in the training table or come again; of many, take as many as a probe reads.

    Raises:
        TableError: None or fewer than are wanted remain.
    """
    trained = set() if train is None else set(look_at_texts(train).alike)
    seen: set[int] = set()
    kept: list[int] = []
    known = 0
    for row, text in enumerate(look_at_texts(Dataset.from_dict({"text": pool.texts})).alike):
        known += text in trained
        if text not in trained and text not in seen:
            seen.add(text)
            kept.append(row)
    total = len(pool.texts)
    if not kept:
        raise TableError(
            f"all {total:,} texts of the pool are in the training table, so they have labels; give texts without"
        )
    left = f"left out: {known:,} that the training table has, {total - known - len(kept):,} repeats"
    if settings.n > len(kept):
        raise TableError(
            f"n {settings.n:,} is more than the {len(kept):,} rows of the pool that can be labelled ({total:,}; "
            f"{left}); give a lower n, or more rows"
        )
    if len(kept) < total:
        notes.append(f"pool: {total:,} texts; {left}")
    if len(kept) > MOST_ROWS:
        notes.append(f"pool: {MOST_ROWS:,} of {len(kept):,} texts were read, chosen at random")
        drawn = np.random.default_rng(settings.seed).choice(len(kept), MOST_ROWS, replace=False)
        kept = [kept[row] for row in sorted(drawn)]
    return pool.of(kept)


@torch.no_grad()
def _read_by_classifier(predictor: Predictor, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what goes into the heads for each text, and the probabilities that come out, each text read once."""
    nothing: Any = [[] if predictor.multi_label else 0] * len(texts)
    features = LabelSet(predictor.label_names, predictor.multi_label, None).features()
    encoded = predictor.tokenize(Dataset.from_dict({"text": list(texts), "label": nothing}, features=features))
    values: list[NDArray[Any]] = []
    total = np.zeros((len(texts), len(predictor.label_names)))
    for reader, model in zip(predictor.readers, predictor.models, strict=True):
        head = find_head(model, len(predictor.label_names))
        found = frozen_features(reader, head, predictor.batches(encoded), accelerator=predictor.accelerator)
        device = next(head.parameters()).device
        logits = head(torch.from_numpy(found.values).to(device)).float().cpu().double()
        total += (logits.sigmoid() if predictor.multi_label else logits.softmax(-1)).numpy()
        values.append(found.values)
    return np.concatenate(values, axis=1), total / len(values)


def _suggested(predictor: Predictor, probabilities: NDArray[Any]) -> str:
    if not predictor.multi_label:
        return predictor.label_names[int(probabilities.argmax())]
    given = zip(predictor.label_names, probabilities, predictor.thresholds, strict=True)
    return LABEL_SEPARATOR.join(name for name, value, threshold in given if value >= threshold)


def _curve(
    train: Dataset | None, settings: LabelNextSettings, predictor: Predictor, notes: list[str]
) -> LearningCurve | None:
    """Return what further labels would buy, or None with a note on why that is not known."""
    try:
        if train is None:
            raise CurveError("the training rows are not known")
        start = _starting_model(Path(find_model(settings.model).location))
        read = train.shuffle(seed=settings.seed).select(range(min(len(train), MOST_ROWS)))
        context = RunContext(seed=settings.seed)
        how = ClassifierSettings(keep="last")
        parts = build_classifier_learner(read, None, model=start, settings=how, context=context)
        head = find_head(parts.network, len(parts.label_names))
        return measure_curve(training_features(parts.learner, head, context), more=settings.n, seed=settings.seed)
    except (UlmfitError, ValueError, OSError) as error:
        notes.append(f"what {settings.n:,} more labels would buy is not known: {error}")
        return None


def _starting_model(folder: Path) -> str:
    """Return the model that a classifier was trained from, which has not seen the labels.

    Raises:
        CurveError: There is none at hand.
    """
    start = getattr(remembered_settings(folder), "model", None)
    if start is None:
        raise CurveError("the classifier was trained from scratch, so there are no features that know no labels")
    if is_text_classifier(find_model(start).loaded):
        raise CurveError(f"{start}, which it was trained from, is a classifier that has seen labels already")
    return str(start)
