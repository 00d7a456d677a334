"""Prediction in parts: several processes write a folder that holds all rows in order, and that a kill cannot undo.

Each process predicts its share of the parts that are not there yet, going straight to their rows. A part that is there
is whole, so the same command goes on where a killed one stopped, with any number of processes: what a part holds does
not depend on who makes it. The processes do not wait for one another while they predict; one that fails leaves word,
and the others stop.
"""

import contextlib
import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ulmfit_pipe.data.row_streams import RowStream, open_stream, open_writer
from ulmfit_pipe.data.table_readers import TableError
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.stages.document_reading import describe_cut
from ulmfit_pipe.stages.folder_lock import held, holder
from ulmfit_pipe.stages.in_step import ProcessError, describe, run_in_step
from ulmfit_pipe.stages.part_files import RECORDS, Part, PartFolder, join_parts
from ulmfit_pipe.stages.predict import Predictor
from ulmfit_pipe.stages.predict_columns import Counts, PredictedColumns
from ulmfit_pipe.stages.run_context import RunContext
from ulmfit_pipe.stages.shard_plan import MANIFEST, ShardPlanner, schema_of_text
from ulmfit_pipe.training.checkpoint import CheckpointError, read_json, write_json
from ulmfit_pipe.training.preemption import Preempted

if TYPE_CHECKING:
    from ulmfit_pipe.stages.predict_files import PredictFileSettings

POLL_SECONDS = 0.2  # between two looks at what the other processes have finished
WORD = "stopped-process-"  # beginning of the file that a process leaves when it fails
LOCK = "lock"  # beside the records


class ShardedJob:
    """One prediction in parts.

    Args:
        settings: Its settings; they have a folder of parts.
        sources: The input files, checked one by one.
        predictor: The model.
        context: Processes, and where news goes.

    Attributes:
        predicting: Seconds that all processes took for the parts that were not there.

    Raises:
        ValueError: Input or output files are of several kinds, or lie in the folder of parts.
    """

    def __init__(
        self, settings: "PredictFileSettings", sources: Sequence[Path], predictor: Predictor, context: RunContext
    ) -> None:
        self.settings, self.sources, self.predictor, self.context = settings, list(sources), predictor, context
        self.planner = ShardPlanner(settings, sources, context)
        self.folder = PartFolder(self.planner.folder)
        self.accelerator = context.accelerator
        self.manifest: dict[str, Any] = {}
        self.parts: list[Part] = []
        self.predicting = 0.0
        self._stream: tuple[int, RowStream] | None = None  # the last part's input, by its number

    def run(self, *, shown: bool) -> tuple[int, Counts, int]:
        """Predict the parts that are not there; return all rows, the counts of labels, and rows finished before.

        Raises:
            TableError: An input cannot be used, or changed while it was read.
            ArtifactError: The folder holds something else, or the parts of another prediction, or is being filled.
            ProcessError: Another process failed; it is named with its error.
            Preempted: The recipe was told to stop.
        """
        self.manifest, is_old = self.planner.plan()
        with contextlib.ExitStack() as until_the_end:
            run_in_step(self.accelerator, self._others_kept_out(until_the_end))
            return self._run(is_old, shown=shown)

    def _run(self, is_old: bool, *, shown: bool) -> tuple[int, Counts, int]:
        self.parts = [_part_of(entry) for entry in self.manifest["parts"]]
        self.columns = self._new_columns()
        run_in_step(self.accelerator, self._checked_parts(is_old))
        pending = self._agreed_missing()
        run_in_step(self.accelerator, self._opened(pending))
        if pending or not self.manifest["finished"]:
            began = time.perf_counter()
            with self._telling_others():
                self._predict(pending, shown=shown)
                self._finish()
            self.predicting = time.perf_counter() - began
        else:
            self.context.tell(f"every part is there already, in {self.folder.path}")
            self._clear_records()  # of a process that was killed as it finished
        cut, read = self.manifest["cut"]
        if line := describe_cut(cut, read, self.predictor.reading, what="texts to predict"):
            self.context.tell(line)
        counts: Counts = Counter(self.manifest["labels"])
        if self.manifest["skipped"]:
            counts[None] = self.manifest["skipped"]
        rows = self.manifest["rows"]
        return rows, counts, rows - sum(part.rows for part in pending)

    def join(self, target: Path) -> None:
        """Join the finished parts to one file, on the main process."""
        if self.accelerator.is_main_process:
            join_parts([self.folder.path / part.file for part in self.parts], target, suffix=self.planner.suffix)

    # ---- before the first row

    def _others_kept_out(self, until: contextlib.ExitStack) -> Generator[None, None, None]:
        """Lock the folder, on the main process."""
        yield from ()
        path = self.folder.path / RECORDS / LOCK
        if self.accelerator.is_main_process and not until.enter_context(held(path, wait=False)):
            raise ArtifactError(
                f"another process predicts into {self.folder.path} ({holder(path) or 'it has just ended'}); wait for "
                "it, or end it, then run the same command again"
            )

    def _new_columns(self) -> PredictedColumns:
        columns = PredictedColumns(
            self.predictor,
            self.manifest["columns"],
            source=str(self.sources[0]),
            text_column=self.settings.text_column,
            all_scores=self.settings.all_scores,
            suffix=self.planner.suffix,
        )
        for line in columns.describe_renamed():
            self.context.tell(line)
        return columns

    def _checked_parts(self, is_old: bool) -> Generator[None, None, None]:
        """Take away what is damaged among this process' share of the parts, and what an earlier start left behind."""
        if self.accelerator.is_main_process:
            self.folder.clear_leftovers()
            for file in self._words():
                file.unlink()
        if not is_old:
            return
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        known = list(zip(self.parts, self.manifest["parts"], strict=True))
        for part, entry in known[rank::world_size]:
            if self.folder.is_finished(part) and not self.folder.is_whole(part, entry):
                self.context.say(
                    f"{self.folder.path / part.file} is not the file that was written: it was cut short or altered, "
                    "and is made again"
                )
                self.folder.drop(part)
            yield

    def _opened(self, pending: Sequence[Part]) -> Generator[None, None, None]:
        """Write down what is planned, unless it is written already."""
        yield from ()
        reopened = self.manifest["finished"] and bool(pending)
        self.manifest["finished"] = self.manifest["finished"] and not pending
        path = self.folder.path / MANIFEST
        if self.accelerator.is_main_process and (reopened or not path.exists()):
            write_json(path, self.manifest)
        if len(pending) < len(self.parts) and pending:
            self.context.tell(f"{len(self.parts) - len(pending)} of {len(self.parts)} parts are there already")

    def _agreed_missing(self) -> list[Part]:
        """Return the parts that any process misses: a shared disk may show a change to one machine before another."""

        def listed() -> Generator[None, None, list[str]]:
            yield from ()
            return [part.file for part in self._missing()]

        found = run_in_step(self.accelerator, listed())
        missing = {file for files in found for file in files}
        return [part for part in self.parts if part.file in missing]

    def _missing(self) -> list[Part]:
        there = {file.name for file in self.folder.path.glob("*")}
        return [part for part in self.parts if part.file not in there]

    # ---- the rows

    def _predict(self, pending: Sequence[Part], *, shown: bool) -> None:
        """Predict this process' share."""
        own = pending[self.accelerator.process_index :: self.accelerator.num_processes]
        is_shown = shown and self.accelerator.is_main_process
        total = sum(part.rows for part in self.parts)
        bar = tqdm(total=total, desc="predicting", unit=" rows", disable=not is_shown, leave=False, dynamic_ncols=True)
        with bar:
            for part in own:
                done = total - sum(part.rows for part in self._missing()) if is_shown else 0  # of all processes
                bar.update(done - bar.n)
                self._predict_part(part)

    def _predict_part(self, part: Part) -> None:
        source, suffix = self.sources[part.input - 1], self.planner.suffix
        if self._stream is None or self._stream[0] != part.input:  # parts of one input read on where the last one ended
            self._stream = part.input, open_stream(source, columns=self.manifest["columns"])
        _, stream = self._stream
        schema = self.columns.schema(schema_of_text(self.manifest["schema"]))
        counts: Counts = Counter()
        cut, done, facts = self.predictor.cut_texts, 0, dict[str, Any]()
        with self.folder.writing(part, facts) as temporary:
            with contextlib.closing(open_writer(temporary, schema, suffix=suffix)) as writer:
                for chunk in stream.chunks(self.settings.chunk_rows, part.span):
                    self._stop_if_another_did()
                    done += len(next(iter(chunk.values())))
                    self.columns.write(writer, self.columns.predict(chunk, counts))
            if done != part.rows:
                raise TableError(f"{source} changed while it was read: {part.rows} rows, then {done}; run again")
            facts["skipped"] = counts.pop(None, 0)
            facts["labels"] = {name: counts[name] for name in self.predictor.label_names}
            facts["cut"] = [now - before for now, before in zip(self.predictor.cut_texts, cut, strict=True)]

    def _finish(self) -> None:
        """Wait for the other processes' parts; the main process then writes down that all are there."""
        while self._missing():
            self._stop_if_another_did()
            time.sleep(POLL_SECONDS)
        path = self.folder.path / MANIFEST
        if self.accelerator.is_main_process:
            parts = [{**entry, **self.folder.facts(_part_of(entry), entry)} for entry in self.manifest["parts"]]
            labels: Counter[str] = Counter()
            for entry in parts:
                labels.update(entry["labels"])
            totals = {
                "labels": {name: labels[name] for name in self.predictor.label_names},
                "skipped": sum(entry["skipped"] for entry in parts),
                "cut": [sum(entry["cut"][place] for entry in parts) for place in range(2)],
            }
            self.manifest = {**self.manifest, **totals, "finished": True, "parts": parts}
            write_json(path, self.manifest)
            self._clear_records()
        else:
            while not (found := read_json(path))["finished"]:
                self._stop_if_another_did()
                time.sleep(POLL_SECONDS)
            self.manifest = found

    def _clear_records(self) -> None:
        """Take the parts' records away, which the manifest holds now."""
        if self.accelerator.is_main_process:
            shutil.rmtree(self.folder.path / RECORDS, ignore_errors=True)

    # ---- what the processes tell one another

    @contextlib.contextmanager
    def _telling_others(self) -> Iterator[None]:
        """Leave word for the others if this process fails; being told to stop, say what is finished."""
        try:
            yield
        except ProcessError:
            raise
        except Preempted as stop:
            self._stop_if_another_did()  # it is why the launcher stops this one
            done = len(self.parts) - len(self._missing())
            raise Preempted(
                f"told to stop (SIGTERM); {done} of {len(self.parts)} parts are finished in {self.folder.path}; run "
                "the same command again to go on"
            ) from stop
        except Exception as error:
            with contextlib.suppress(CheckpointError):  # the disk may be full, which is the error itself
                write_json(
                    self.folder.path / RECORDS / f"{WORD}{self.accelerator.process_index}.json",
                    {"process": self.accelerator.process_index, "error": describe(error)},
                )
            raise

    def _words(self) -> list[Path]:
        return sorted((self.folder.path / RECORDS).glob(f"{WORD}*.json"), key=lambda file: file.stat().st_mtime)

    def _stop_if_another_did(self) -> None:
        for file in self._words():
            word = read_json(file)
            if word["process"] != self.accelerator.process_index:
                raise ProcessError(f"process {word['process']} stopped: {word['error']}")


def _part_of(entry: dict[str, Any]) -> Part:
    return Part(**{field.name: entry[field.name] for field in dataclasses.fields(Part)})
