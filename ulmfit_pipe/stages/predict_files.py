"""Prediction of a file: the same rows in the same order, with ``label`` and ``score`` beside them.

The file is read twice: once to check every row before the first prediction, once to predict, in pieces, so that its
size does not matter. The result takes its name only when it is whole.
"""

import contextlib
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from tqdm import tqdm

from ulmfit_pipe.data.row_streams import Chunk, RowWriter, check_suffix, column_values, open_stream, open_writer
from ulmfit_pipe.data.table_readers import RowSource, TableError, nearest, open_rows
from ulmfit_pipe.data.text_rules import join_fields
from ulmfit_pipe.stages.predict import Predictor
from ulmfit_pipe.stages.run_context import Precision, RunContext

LABEL, SCORE = "label", "score"
GIVEN = "_given"  # an input column that is called like one of ours is kept under its name with this after it
LABEL_SEPARATOR = "|"  # between the labels of a multi-label row in CSV and TSV, which know no lists
SCORE_DIGITS = 6  # significant digits; the seventh of a float32 model depends on what stands in the same batch


@dataclass(frozen=True)
class PredictFileSettings:
    """Settings of a prediction.

    Attributes:
        model: Folder of a classifier; one that holds a backward classifier is averaged with it.
        input_file: CSV, TSV, JSONL or Parquet, told by its suffix; UTF-8.
        output_file: CSV, TSV, JSONL or Parquet, told by its suffix; an older one is replaced. It holds all rows
            and columns of the input in their order, then label and score (for multi-label a list and its lowest score;
            in CSV and TSV joined with |). An input column that is itself called label or score is kept as label_given
            or score_given.
        text_column: Column of text; several are joined with field marks, as in training.
        all_scores: Add a column score_LABEL for every label.
        empty_text: error names the first row without text before anything is predicted; skip leaves its label empty.
        chunk_rows: Rows held in memory at a time.
        mixed_precision: no, bf16, or fp16 (GPU only).
        progress: Show a progress bar; null decides by the terminal.
    """

    model: str
    input_file: str
    output_file: str
    text_column: list[str] = field(default_factory=lambda: ["text"])
    all_scores: bool = False
    empty_text: Literal["error", "skip"] = "error"
    chunk_rows: int = 2048
    mixed_precision: Precision = "no"
    progress: bool | None = None


@dataclass(frozen=True)
class PredictSummary:
    """What a prediction did.

    Attributes:
        rows: Rows written, those without text too.
        skipped: Rows without text, whose label is empty.
        seconds: Time for reading, predicting and writing.
        labels: How often each label was given, in the model's order.
        output_file: Where the rows lie.
    """

    rows: int
    skipped: int
    seconds: float
    labels: dict[str, int]
    output_file: Path

    def __str__(self) -> str:
        """The summary as a few lines of text."""
        counts = ", ".join(f"{name} {count:,}" for name, count in self.labels.items() if count)
        empty = f", {self.skipped:,} of them without text" if self.skipped else ""
        speed = self.rows / max(self.seconds, 1e-9)
        return (
            f"{self.rows:,} rows{empty} in {self.seconds:.1f} s ({speed:,.0f} a second)\n"
            f"labels: {counts or 'none'}\nwritten to {self.output_file}"
        )


def predict_file(settings: PredictFileSettings, *, context: RunContext | None = None) -> PredictSummary:
    """Predict every row of a file and write the rows with their labels and scores.

    Args:
        settings: Model, files and columns.
        context: Surroundings; made from the settings by default.

    Returns:
        Rows, seconds and how often each label was given.

    Raises:
        TableError: The input cannot be used; file, row (counted from 1, the header not counted) and column are named.
        ArtifactError: The model cannot be used.
        ValueError: Settings contradict one another.
        OSError: The output cannot be written; a file that was there before is untouched.
    """
    started = time.perf_counter()
    context = context or RunContext(mixed_precision=settings.mixed_precision, progress=settings.progress)
    source, target = _checked_paths(settings)
    rows = open_rows(source)
    _check_columns(rows, settings.text_column)
    predictor = Predictor.load(settings.model, accelerator=context.accelerator)
    if context.accelerator.num_processes > 1:
        raise ValueError(
            f"a file is predicted by one process, got {context.accelerator.num_processes}; "
            "start the recipe without accelerate launch"
        )
    total = _check_rows(rows, settings.text_column, skip_empty=settings.empty_text == "skip")
    job = _FileJob(settings, source, target, predictor)
    for old, new in job.renamed.items():
        context.tell(f"the input's column {old!r} is kept as {new!r}; {old!r} is the prediction")
    counts = job.run(total=total, shown=sys.stderr.isatty() if context.progress is None else context.progress)
    if line := predictor.describe_cut():
        context.tell(line)
    skipped = counts.pop(None, 0)
    labels = {name: counts[name] for name in predictor.label_names}
    return PredictSummary(total, skipped, time.perf_counter() - started, labels, target)


class _FileJob:
    """One checked file on its way through one model."""

    def __init__(self, settings: PredictFileSettings, source: Path, target: Path, predictor: Predictor) -> None:
        self.settings, self.source, self.target, self.predictor = settings, source, target, predictor
        self.suffix = check_suffix(target)
        self.joined = predictor.multi_label and self.suffix in (".csv", ".tsv")
        self.stream = open_stream(source)
        self.scored = predictor.label_names if settings.all_scores else []
        added = [LABEL, SCORE, *(f"{SCORE}_{name}" for name in self.scored)]
        columns = self.stream.columns()
        self.renamed = {name: f"{name}{GIVEN}" for name in columns if name in added}
        self.names = [self.renamed.get(name, name) for name in columns]
        self._check_names([*self.names, *added])

    def _check_names(self, names: Sequence[str]) -> None:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise TableError(f"{self.source}: the output would have two columns {twice[0]!r}; rename the input's")
        if self.joined and any(LABEL_SEPARATOR in name for name in self.predictor.label_names):
            raise ValueError(
                f"a label holds {LABEL_SEPARATOR!r}, which parts the labels of a row in {self.suffix}; write .jsonl or "
                ".parquet"
            )

    def run(self, *, total: int, shown: bool) -> Counter[str | None]:
        """Predict and write all rows; return how often each label was given, and None for rows without text."""
        counts: Counter[str | None] = Counter()
        done = 0
        bar = tqdm(total=total, desc="predicting", unit=" rows", disable=not shown, leave=False, dynamic_ncols=True)
        with bar, _whole_file(self.target) as temporary:
            with contextlib.closing(open_writer(temporary, self._schema(), suffix=self.suffix)) as writer:
                for chunk in self.stream.chunks(self.settings.chunk_rows):
                    texts = self._texts(chunk)
                    added = self._added(texts, counts)
                    self._write(writer, {**dict(zip(self.names, chunk.values(), strict=True)), **added})
                    done += len(texts)
                    bar.update(len(texts))
            if done != total:
                raise TableError(f"{self.source} changed while it was read: {total} rows, then {done}; run again")
        return counts

    def _write(self, writer: RowWriter, chunk: Chunk) -> None:
        try:
            writer.write(chunk)
        except UnicodeEncodeError as error:
            nearby = error.object[max(0, error.start - 20) : error.end + 20]
            raise TableError(
                f"{self.source}: half of a surrogate pair stands in {nearby!r}, which {self.suffix} cannot keep; "
                "remove it, or write .jsonl"
            ) from error

    def _schema(self) -> pa.Schema:
        """Columns of the output in order; their types count for Parquet only."""
        fields = [pa.field(name, pa.string()) for name in self.names]
        metadata = None
        if self.suffix == ".parquet":
            schema = self.stream.schema()
            fields, metadata = (
                [part.with_name(name) for part, name in zip(schema, self.names, strict=True)],
                schema.metadata,
            )
        added = self._added([], Counter())
        return pa.schema([*fields, *((name, column.type) for name, column in added.items())], metadata=metadata)

    def _texts(self, chunk: Chunk) -> list[str | None]:
        columns = [column_values(chunk[name]) for name in self.settings.text_column]
        fields = zip(*columns, strict=True)
        return [None if _is_empty(row) else join_fields([part or "" for part in row]) for row in fields]

    def _added(self, texts: Sequence[str | None], counts: Counter[str | None]) -> dict[str, pa.Array]:
        """Predict a chunk; return the new columns and count the labels."""
        found = iter(self.predictor.predict([text for text in texts if text is not None]))
        rows: list[dict[str, Any] | None] = [None if text is None else next(found) for text in texts]
        labels: list[Any] = [None if row is None else row["label"] for row in rows]
        for label in labels:
            counts.update(label if isinstance(label, list) else [label])
        kind = pa.list_(pa.string()) if self.predictor.multi_label and not self.joined else pa.string()
        if self.joined:
            labels = [None if label is None else LABEL_SEPARATOR.join(label) for label in labels]
        added: dict[str, pa.Array] = {LABEL: pa.array(labels, kind)}
        added[SCORE] = _score_column(None if row is None else row["score"] for row in rows)
        for name in self.scored:
            added[f"{SCORE}_{name}"] = _score_column(None if row is None else row["scores"][name] for row in rows)
        return added


def _score_column(values: Iterable[float | None]) -> pa.Array:
    rounded = [None if value is None else float(f"{value:.{SCORE_DIGITS}g}") for value in values]
    return pa.array(rounded, pa.float64())


def _checked_paths(settings: PredictFileSettings) -> tuple[Path, Path]:
    source, target = Path(settings.input_file), Path(settings.output_file).resolve()
    check_suffix(source)
    check_suffix(target)
    if settings.chunk_rows < 1:
        raise ValueError(f"chunk_rows must be 1 or more, got {settings.chunk_rows}")
    if not settings.text_column:
        raise ValueError("text_column is empty; name at least one column")
    if target.is_dir():
        raise ValueError(f"output_file {target} is a folder; give a file's name in it")
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"output_file is the input file, {source}; give another name, the input is never overwritten")
    return source, target


def _check_columns(rows: RowSource, wanted: Sequence[str]) -> None:
    twice = [name for name, count in Counter(rows.columns).items() if count > 1]
    if twice:
        raise TableError(f"{rows.name}: the column name {twice[0]!r} stands twice; rename one of the columns")
    for name in wanted:
        if name not in rows.columns:
            raise TableError(
                f"{rows.name}: there is no column {name!r}; there are {', '.join(rows.columns)}"
                f"{nearest(name, rows.columns)}; --text_column names the column of text"
            )


def _check_rows(rows: RowSource, columns: Sequence[str], *, skip_empty: bool) -> int:
    """Read the whole file once, refuse the first row that cannot be predicted, and count the rows."""
    number = 0
    for number, values in enumerate(rows.read(columns), start=1):
        for name, value in zip(columns, values, strict=True):
            _check_text(value, f"{rows.name}, row {number} (header not counted), column {name!r}")
        if _is_empty(values) and not skip_empty:
            raise TableError(
                f"{rows.name}, row {number} (header not counted), column {', '.join(map(repr, columns))}: the text is "
                "empty; fill it in, delete the row, or set empty_text to skip for an empty label"
            )
    if not number:
        raise TableError(f"{rows.name}: the table is empty, it has no rows to predict")
    return number


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


def _is_empty(fields: Sequence[str | None]) -> bool:
    return not any(field and not field.isspace() for field in fields)


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside the path; the file takes the path's place when the block ends without an error.

    Raises:
        OSError: The disk is full or not writable; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {path}: {error.strerror or error}; what was there before is untouched. Free some disk "
            "space or choose another output file, then run again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
