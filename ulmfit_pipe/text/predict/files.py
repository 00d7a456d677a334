"""Prediction of files: the same rows in the same order, with ``label`` and ``score`` beside them.

One file is read twice: once to check every row before the first prediction, once to predict, in chunks, so that its
size does not matter. The result takes its name only when it is whole. Several files, or several processes, write a
folder of parts instead (`predict_shards.py`).
"""

import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from ulmfit_pipe.console import in_one_line, on_terminal, reported, working
from ulmfit_pipe.data.tables.column_names import check_wanted
from ulmfit_pipe.data.tables.plain_copies import PlainTable, plain_tables
from ulmfit_pipe.data.tables.readers import RowSource, TableError, open_plain, open_rows
from ulmfit_pipe.data.tables.row_sources import reading_of
from ulmfit_pipe.data.tables.row_streams import check_suffix, open_stream, open_writer, read_chunks
from ulmfit_pipe.settings.checks import check_choices
from ulmfit_pipe.settings.prediction import PredictFileSettings
from ulmfit_pipe.stages.context import RunContext, context_of
from ulmfit_pipe.stages.model_folder import trusting_run
from ulmfit_pipe.storage.atomic import whole_file
from ulmfit_pipe.text.predict.columns import Counts, PredictedColumns, check_row
from ulmfit_pipe.text.predict.evaluation import with_cut
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.predict.shards import ShardedJob
from ulmfit_pipe.training.distributed.agreement import find_alike
from ulmfit_pipe.training.distributed.launch import share_of_work

logger = logging.getLogger(__name__)

SHOWN_LABELS = 12  # labels listed in the summary; of more the most frequent ones


@dataclass(frozen=True)
class PredictSummary:
    """What a prediction did.

    Attributes:
        rows: Rows written, those without text too.
        skipped: Rows without text, whose label is empty.
        seconds: Time of it all: loading the model, checking the rows, predicting and writing them.
        predicting: Time from the first row that was predicted to the last one written, by all processes.
        labels: How often each label was given, in the model's order.
        output_file: Path of the rows: a file, or a folder of parts.
        done_before: Rows among them that an earlier start had finished.
        abstained: Rows whose label is empty because its score is too low.
    """

    rows: int
    skipped: int
    seconds: float
    predicting: float
    labels: dict[str, int]
    output_file: Path
    done_before: int = 0
    abstained: int = 0

    def __str__(self) -> str:
        """The summary as a few lines of text."""
        given = [(name, count) for name, count in self.labels.items() if count]
        shown = given
        if len(given) > SHOWN_LABELS:
            shown = sorted(given, key=lambda pair: -pair[1])[: SHOWN_LABELS - 1]
        counts = ", ".join(f"{in_one_line(name)} {count:,}" for name, count in shown)
        if len(shown) < len(given):
            counts += f", and {len(given) - len(shown):,} more, down to {min(count for _, count in given):,}"
        empty = f", {self.skipped:,} of them without text" if self.skipped else ""
        before = f", {self.done_before:,} of them finished before" if self.done_before else ""
        left = f"; {self.abstained:,} rows left without one, their score is too low" if self.abstained else ""
        speed = (self.rows - self.done_before) / max(self.predicting, 1e-9)
        return (
            f"{self.rows:,} rows{empty}{before} in {self.seconds:.1f} s ({self.predicting:.2f} s predicting, "
            f"{speed:,.0f} per second)\nlabels: {counts or 'none'}{left}\nwritten to {in_one_line(self.output_file)}"
        )


@trusting_run
def predict_file(settings: PredictFileSettings, *, context: RunContext | None = None) -> PredictSummary:
    """Predict every row of a file, or of several, and write the rows with their labels and scores.

    Args:
        settings: Model, files and columns.
        context: Environment; made from the settings by default.

    Returns:
        Rows, seconds and how often each label was given; the same on every process.

    Raises:
        TableError: The input cannot be used; file, row (counted from 1, the header not counted) and column are named.
        ArtifactError: The model cannot be used, or the folder of parts holds something else.
        ValueError: Settings contradict one another, or another process failed or has other settings, model or data.
        OSError: The output cannot be written; a file that was there before is untouched.
        Preempted: The run was stopped by SIGTERM while it wrote parts; those that were finished are kept.
    """
    started = time.perf_counter()
    check_choices(settings)
    context = context or context_of(settings)
    settings = with_cut(settings, say=context.tell)
    shown = on_terminal() if context.progress is None else context.progress
    with share_of_work() as given:
        accelerator = context.accelerator
    share = given or (accelerator.process_index, accelerator.num_processes)
    context.tell_of_remote_code(settings)
    with contextlib.ExitStack() as copies:
        if settings.output_dir is not None:
            return _predict_parts(settings, context, copies, share=share, shown=shown, started=started)
        sources, target = _checked_paths(settings)
        place = _single_target(sources, target, processes=share[1])
        opened = [_opened(sources[0], settings)]
        (table,) = copies.enter_context(plain_tables(opened))
        _tell_notes(opened, context)
        predictor = _load(settings, accelerator)
        rows = _count_rows(_plain(table), settings, say=context.tell)
        began = time.perf_counter()
        counts = _predict_one(settings, table, place, predictor, context=context, total=rows, shown=shown)
    return _summary(
        context, predictor, rows, counts, place, seconds=(time.perf_counter() - started, time.perf_counter() - began)
    )


def _predict_parts(
    settings: PredictFileSettings,
    context: RunContext,
    copies: contextlib.ExitStack,
    *,
    share: tuple[int, int],
    shown: bool,
    started: float,
) -> PredictSummary:
    def look() -> ShardedJob:
        """Check and load all, on each process."""
        sources, _ = _checked_paths(settings)
        opened = [_opened(source, settings) for source in sources]
        tables = copies.enter_context(plain_tables(opened))
        _tell_notes(opened, context)
        predictor = _load(settings, context.accelerator)
        return ShardedJob(
            settings,
            tables,
            predictor,
            context,
            count_rows=lambda: [_count_rows(_plain(table), settings, say=context.tell) for table in tables],
            share=share,
        )

    job = find_alike(context.accelerator, look, lambda job: job.fingerprint)
    counts, place = job.run(shown=shown), Path(str(settings.output_dir))
    if settings.output_file is not None:
        place = Path(settings.output_file).resolve()
        if share[0] == 0:
            job.join(place)
    rows, seconds = sum(part.rows for part in job.parts), (time.perf_counter() - started, job.seconds)
    return _summary(context, job.predictor, rows, counts, place, seconds=seconds, done_before=job.done_before)


def _load(settings: PredictFileSettings, accelerator: Accelerator) -> Predictor:
    predictor = Predictor.load(settings.model, accelerator=accelerator)
    if settings.abstain_below is not None:
        predictor.check_abstention(settings.abstain_below)
    return predictor


def _plain(table: PlainTable) -> RowSource:
    """Open what is streamed, under the table's own name."""
    return dataclasses.replace(open_plain(table.path), name=table.name)


def _tell_notes(opened: Sequence[RowSource], context: RunContext) -> None:
    if context.accelerator.is_main_process:
        for note in [note for rows in opened for note in rows.notes]:
            logger.warning(note)


def _summary(
    context: RunContext,
    predictor: Predictor,
    rows: int,
    counts: Counts,
    place: Path,
    *,
    seconds: tuple[float, float],
    done_before: int = 0,
) -> PredictSummary:
    if counts[None]:
        context.tell(f"note: {counts[None]:,} of {rows:,} rows have no text; their label and score are empty")
    labels = {name: counts[name] for name in predictor.label_names}
    abstained = 0 if predictor.multi_label else rows - counts[None] - sum(labels.values())
    return PredictSummary(rows, counts[None], *seconds, labels, place, done_before, abstained)


def _predict_one(
    settings: PredictFileSettings,
    table: PlainTable,
    target: Path,
    predictor: Predictor,
    *,
    context: RunContext,
    total: int,
    shown: bool,
) -> Counts:
    """Predict and write all rows of one checked file; return how often each label was given."""
    stream, suffix = open_stream(table.path), check_suffix(target)
    columns = PredictedColumns(
        predictor,
        stream.columns(),
        source=table.name,
        text_column=settings.text_column,
        all_scores=settings.all_scores,
        suffix=suffix,
        abstain_below=settings.abstain_below,
    )
    for line in [*columns.describe_renamed(), *([] if settings.escape_formulas else columns.describe_formulas())]:
        context.tell(line)
    escaped = columns.escaped if settings.escape_formulas else None
    counts: Counts = Counter()
    done = 0
    bar = tqdm(total=total, desc="predicting", unit=" rows", disable=not shown, leave=False, dynamic_ncols=True)
    with bar, working("predicting", total=total, unit="rows") as work, whole_file(target) as temporary:
        schema = columns.schema(stream.schema() if suffix == ".parquet" else None)
        with contextlib.closing(open_writer(temporary, schema, suffix=suffix, escaped=escaped)) as writer:
            for chunk in read_chunks(table.path, stream, settings.chunk_rows):
                rows = len(next(iter(chunk.values())))
                columns.write(writer, columns.predict(chunk, counts))
                done += rows
                bar.update(rows)
                work.advance(rows)
        if done != total:
            raise TableError(f"{table.name} changed while it was read: {total} rows, then {done}; run again")
    if line := predictor.describe_cut():
        context.tell(line)
    return counts


def _checked_paths(settings: PredictFileSettings) -> tuple[list[str], Path | None]:
    """Return the paths of the tables to read, and of the one to write or None."""
    given = [settings.input_file] if isinstance(settings.input_file, str) else settings.input_file
    sources = [each for name in given for each in _fitting(str(name))]
    if not sources:
        raise ValueError("input_file is empty; name at least one file")
    for name in ("chunk_rows", "part_rows"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if not settings.text_column:
        raise ValueError("text_column is empty; name at least one column")
    if settings.output_file is None and settings.output_dir is None:
        raise ValueError("no output is named; give output_file, or output_dir for a folder of parts")
    return sources, None if settings.output_file is None else _checked_target(settings.output_file, sources)


def _checked_target(name: str, sources: Sequence[str]) -> Path:
    target = Path(name).resolve()
    check_suffix(target)
    if target.is_dir():
        raise ValueError(f"output_file {target} is a folder; give a file's name in it, or output_dir for parts")
    for source in sources:
        if target.exists() and Path(source).exists() and target.samefile(source):
            raise ValueError(
                f"output_file is the input file, {source}; give another name, the input is never overwritten"
            )
    return target


def _fitting(name: str) -> list[str]:
    """The name itself, or the files that fit a pattern, in the order of their names."""
    path = Path(name)
    if path.exists() or not any(mark in name for mark in "*?["):
        return [name]
    top = path.parent if path.parent.is_dir() else Path(path.anchor)  # a folder may have brackets in its own name
    found = sorted(top.glob(str(path.relative_to(top))))
    if not found:
        raise TableError(f"no file fits the pattern {name}")
    return [str(each) for each in found]


def _single_target(sources: Sequence[str], target: Path | None, *, processes: int) -> Path:
    """Return the file to write, or raise where only a folder of parts will do."""
    if processes > 1:
        raise ValueError(
            f"one file is written by one process, got {processes}; give output_dir, a folder of parts, and beside it "
            "output_file to have them joined, or start the recipe without accelerate launch"
        )
    if len(sources) > 1 or target is None:
        raise ValueError(
            f"{len(sources)} files are predicted into a folder of parts; give output_dir, and beside it output_file to "
            "have the parts joined"
        )
    return target


def _opened(source: str, settings: PredictFileSettings) -> RowSource:
    rows = open_rows(source, reading=reading_of(settings))
    check_wanted(rows, settings.text_column)
    return rows


def _count_rows(rows: RowSource, settings: PredictFileSettings, *, say: Callable[[str], None]) -> int:
    """Read the whole file once, refuse the first row that cannot be predicted, and count the rows."""
    number, numbers, columns, known = 0, 0, settings.text_column, len(rows.notes)
    for number, values in enumerate(
        reported(rows.read(columns), f"reading {in_one_line(rows.name)}", unit="rows"), start=1
    ):
        numbers += any(not isinstance(value, str) and value is not None and value == value for value in values)
        check_row(values, number, name=rows.name, columns=columns, skip_empty=settings.empty_text == "skip")
    if not number:
        raise TableError(f"{rows.name}: the table is empty, it has no rows to predict")
    for note in rows.notes[known:]:  # of its last row
        say(f"note: {note}")
    if numbers:
        say(
            f"note: {numbers:,} of {number:,} texts of {rows.name} are numbers and are taken as their text; is it the "
            "right column? text_column names the column of text"
        )
    return number
