"""Prediction in parts: processes write a folder that holds all rows in order, and that a kill cannot undo.

Which rows a part holds follows from the input alone, and its name shows it, counted from 1 over all inputs. A process
makes its share of the parts that are missing, then those that the others have not made. What is made twice is the same
byte for byte. A part counts as finished after its record (a small file with its rows, digest and labels) and its digest
were checked, whoever made it.
"""

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ulmfit_pipe.console import working
from ulmfit_pipe.data.tables.plain_copies import PlainTable
from ulmfit_pipe.data.tables.readers import TableError
from ulmfit_pipe.data.tables.row_streams import (
    Chunk,
    check_suffix,
    in_parts,
    one_table,
    open_stream,
    open_writer,
    read_chunks,
)
from ulmfit_pipe.settings.prediction import PredictFileSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, model_identity
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.storage.atomic import whole_file
from ulmfit_pipe.storage.digests import digest_of_file
from ulmfit_pipe.storage.record_differences import as_json, differences
from ulmfit_pipe.storage.temporary_files import remove_abandoned
from ulmfit_pipe.storage.versions import library_versions
from ulmfit_pipe.text.predict.columns import Counts, PredictedColumns
from ulmfit_pipe.text.predict.predictor import BACKWARD, Predictor
from ulmfit_pipe.text.truncation import describe_cut
from ulmfit_pipe.training.resume.preemption import Preempted

MANIFEST, RECORDS = "manifest.json", ".records"
KIND = {"kind": "prediction in parts", "format": 2}
PART_ROWS = 1024  # rows of a part: minutes of work at most, and enough for batches of like lengths
MOST_PARTS = 1000  # of an input of many rows; its parts are larger
DIGITS = 9  # of a row's number in a part's name; more where there are more rows
COUNTED = ("part_rows", "text_column", "all_scores", "escape_formulas", "empty_text", "chunk_rows")  # settings
POLL_SECONDS = 0.2  # between two looks at what the other processes have finished
LEAST_PATIENCE = 5.0  # seconds that the last parts of others are waited for; or what one took here


@dataclass(frozen=True)
class Part:
    """Some rows of one input, and the file that their predictions go to; rows and inputs are counted from 1."""

    file: str
    first_row: int
    rows: int
    input: int
    input_row: int


def plan_parts(rows_of_inputs: Sequence[int], *, part_rows: int, suffix: str) -> list[Part]:
    """Split tables into parts of this many rows; the last of each table may be smaller."""
    digits = max(DIGITS, len(str(sum(rows_of_inputs))))
    parts, first = list[Part](), 1
    for number, table_rows in enumerate(rows_of_inputs, start=1):
        for start in range(0, table_rows, part_rows):
            rows = min(part_rows, table_rows - start)
            name = f"part-{first:0{digits}d}-{first + rows - 1:0{digits}d}{suffix}"
            parts.append(Part(name, first, rows, number, start + 1))
            first += rows
    return parts


class ShardedJob:
    """One prediction in parts; making it checks the inputs and the folder, and predicts nothing.

    The settings have a folder of parts; the share is this process's number, from 0, and how many there are.

    Raises:
        ValueError: Input or output files are of several kinds, or are in the folder of parts.
        TableError: An input cannot be used.
        ArtifactError: The folder holds something else, or the parts of another prediction.
    """

    def __init__(
        self,
        settings: "PredictFileSettings",
        tables: Sequence[PlainTable],
        predictor: Predictor,
        context: RunContext,
        *,
        count_rows: Callable[[], list[int]],
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.settings, self.predictor, self.context, self.share = settings, predictor, context, share
        self.inputs, self.sources = [table.name for table in tables], [table.path for table in tables]
        self.folder, self.seconds = Path(str(settings.output_dir)), 0.0
        self.suffix = _suffix_of_parts(self.sources, self.folder, settings)
        self._states = list(map(_state_of, self.sources))
        self.identity = self._identity()
        there = self._manifest()
        rows = count_rows()
        self.names, given = one_table(self.sources, typed=self.suffix == ".parquet")
        self.columns = PredictedColumns(
            predictor,
            self.names,
            source=self.inputs[0],
            text_column=settings.text_column,
            all_scores=settings.all_scores,
            suffix=self.suffix,
            abstain_below=settings.abstain_below,
        )
        self._schema = self.columns.schema(given)
        escaped = self.columns.escaped if settings.escape_formulas else None
        self._open_writer = partial(open_writer, schema=self._schema, suffix=self.suffix, escaped=escaped)
        self.part_rows = settings.part_rows or PART_ROWS * max(1, -(-sum(rows) // (MOST_PARTS * PART_ROWS)))
        self.parts = plan_parts(rows, part_rows=self.part_rows, suffix=self.suffix)
        self.versions = library_versions() if there is None else there["versions"]
        self._finished: dict[str, dict[str, Any]] = {}  # the record of each part that was found finished
        self.pending = self._missing()
        self.done_before = sum(rows) - sum(part.rows for part in self.pending)
        self.fingerprint = {**self.identity, "output_dir": str(self.folder), "its manifest is there": there is not None}

    def run(self, *, shown: bool) -> Counts:
        """Predict the parts that are missing; return how often each label was given, in all of them.

        Raises:
            TableError: An input changed while it was read.
            ArtifactError: The folder was given to another prediction.
            Preempted: The run was stopped by SIGTERM.
        """
        self._describe_start()
        began, (rank, world_size) = time.perf_counter(), self.share
        own = self.pending[rank::world_size]
        try:
            self._make(own, shown=shown and rank == 0)
            patience = max(LEAST_PATIENCE, (time.perf_counter() - began) / max(1, len(own)))
            while missing := self._missing():  # where there are few, others may be at each of them
                if len(missing) >= world_size or not self._others_finish_one(missing, patience):
                    self._make(missing[len(missing) // 2 :])  # others would come to these last
        except Preempted as stop:
            raise Preempted(
                f"stopped by SIGTERM; {len(self.parts) - len(self._missing())} of {len(self.parts)} parts are "
                f"finished in {self.folder}; run the same command again to continue"
            ) from stop
        self.seconds = time.perf_counter() - began if self.pending else 0.0
        return self._finish()

    def _describe_start(self) -> None:
        formulas = [] if self.settings.escape_formulas else self.columns.describe_formulas()
        for line in [*self.columns.describe_renamed(), *formulas]:
            self.context.tell(line)
        for path in [self.folder / part.file for part in self.pending]:
            if path.exists():
                self.context.tell(f"{path} was cut short or altered since it was written; it is made again")
        if changed := differences(self.versions, library_versions()):
            self.context.tell(
                f"the parts that are there are of other versions, {', '.join(changed)}: the last digits "
                "of the scores may differ from part to part"
            )
        if not self.pending:
            self.context.tell(f"every part is there already, in {self.folder}")
        elif self.done_before:
            self.context.tell(f"{len(self._finished)} of {len(self.parts)} parts are there already")

    def _make(self, parts: Sequence[Part], *, shown: bool = False) -> None:
        """Make parts, in their order; each input is read once, from its top."""
        total = sum(part.rows for part in self.parts)
        done = total - sum(part.rows for part in self._missing())
        with (
            tqdm(
                total=total, desc="predicting", unit=" rows", disable=not shown, leave=False, dynamic_ncols=True
            ) as bar,
            working("predicting", total=total, unit="rows", done=done) as work,
        ):
            for number, group in itertools.groupby(parts, key=lambda part: part.input):
                wanted, source = {part.input_row: part for part in group}, self.sources[number - 1]
                chunks = read_chunks(source, open_stream(source, columns=self.names), self.settings.chunk_rows)
                split = in_parts(chunks, self.part_rows)
                for first, pieces in itertools.groupby(split, key=lambda piece: piece[0]):
                    if (part := wanted.pop(first, None)) is not None and not self._is_finished(part):
                        self._write(part, (rows for _, rows in pieces))
                        work.advance(part.rows)
                    if shown:
                        bar.update(total - sum(part.rows for part in self._missing()) - bar.n)
                    if not wanted:
                        break
                if wanted:
                    raise _changed(source)

    def _write(self, part: Part, chunks: Iterable[Chunk]) -> None:
        """Predict a part, and write it and its record."""
        if self._manifest() is None:
            self._write_manifest()
        counts: Counts = Counter()
        cut, done = self.predictor.cut_texts, 0
        if (self.folder / part.file).is_fifo():  # whole_file writes no pipe, and the part's name is ours
            (self.folder / part.file).unlink()
        with whole_file(self.folder / part.file) as temporary:
            with closing(self._open_writer(temporary)) as writer:
                for chunk in chunks:
                    done += len(next(iter(chunk.values())))
                    self.columns.write(writer, self.columns.predict(chunk, counts))
            if done != part.rows or self._states != list(map(_state_of, self.sources)):
                raise _changed(self.sources[part.input - 1])
            facts = {
                "bytes": temporary.stat().st_size,
                "sha256": digest_of_file(temporary),
                "skipped": counts.pop(None, 0),
                "labels": {name: counts[name] for name in self.predictor.label_names},
                "cut": [now - before for now, before in zip(self.predictor.cut_texts, cut, strict=True)],
            }
            with whole_file(self._record_of(part)) as record:
                record.write_text(json.dumps({**facts, "seal": self._seal(part, facts)}, indent=2))

    def _others_finish_one(self, missing: Sequence[Part], seconds: float) -> bool:
        """Wait until another process has finished one of some parts; return whether it did so in time."""
        until = time.monotonic() + seconds
        while not (is_finished := any(map(self._is_finished, missing))) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return is_finished

    def _manifest(self) -> dict[str, Any] | None:
        """Return the manifest of this prediction; None where there is no such folder yet, or nothing in it."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ArtifactError(f"output_dir {self.folder} is a file; choose another folder")
        for name in (MANIFEST, RECORDS):
            if (self.folder / name).is_symlink():
                raise ArtifactError(
                    f"{self.folder / name} is a link, and nothing is written through one; remove it, or choose "
                    "another output_dir"
                )
        # Listed before it is read: the manifest comes first of all files, perhaps from another process at this moment.
        there = list(self.folder.iterdir()) if self.folder.exists() else []
        found = _json_in(self.folder / MANIFEST)
        if isinstance(found, dict) and found.get("kind") == KIND["kind"]:
            self._refuse_other(found)
            return found
        if any(file.suffix != ".tmp" and file.name != RECORDS for file in there):
            raise ArtifactError(
                f"{self.folder} holds files that are not of a prediction, or its {MANIFEST} is damaged; choose another "
                "output_dir or remove it"
            )
        return None

    def _identity(self) -> dict[str, Any]:
        """Return all that the parts depend on."""
        model, settings = Path(self.settings.model), {name: getattr(self.settings, name) for name in COUNTED}
        if self.settings.abstain_below is not None:  # parts of before there was this setting can be continued
            settings["abstain_below"] = self.settings.abstain_below
        settings |= {"part_format": self.suffix[1:], "mixed_precision": self.context.mixed_precision}
        inputs: dict[str, Any] = {"number": len(self.sources)}
        for number, source in enumerate(self.sources, start=1):
            inputs[str(number)] = {"bytes": source.stat().st_size, "sha256": digest_of_file(source)}
        backward = model_identity(model / BACKWARD) if (model / BACKWARD).is_dir() else None
        found = {"settings": settings, "model": model_identity(model), "backward model": backward, "inputs": inputs}
        return as_json(found)

    def _refuse_other(self, there: dict[str, Any]) -> None:
        advice = "Choose another output_dir, or remove this one to predict anew"
        if there.get("format") != KIND["format"] or not isinstance(there.get("versions"), dict):
            raise ArtifactError(
                f"{self.folder} holds the parts of another version of ulmfit_pipe, which cannot be continued. {advice}"
            )
        if not isinstance(there.get("identity"), dict):
            raise ArtifactError(
                f"{self.folder / MANIFEST} does not record the model, settings and input of its parts (no "
                f"'identity' in it): it was damaged or altered. {advice}"
            )
        changed = differences(there["identity"], self.identity)
        for number, source in enumerate(self.inputs, start=1):
            changed = [line.replace(f"inputs.{number}.", f"{source}: ") for line in changed]
        if changed:
            raise ArtifactError(
                f"{self.folder} holds the parts of another prediction; it differs in {', '.join(changed)}. {advice}"
            )

    def _record_of(self, part: Part) -> Path:
        return self.folder / RECORDS / f"{part.file}.json"

    def _seal(self, part: Part, facts: dict[str, Any]) -> str:
        content = json.dumps([KIND, self.identity, asdict(part), facts], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _is_finished(self, part: Part) -> bool:
        """Whether a part is there and is the file that was written; its record is then in `_finished`."""
        path, known = self.folder / part.file, self._finished
        if not path.is_file() or path.is_symlink():
            known.pop(part.file, None)
        elif part.file not in known and isinstance(facts := _json_in(self._record_of(part)), dict):
            seal = facts.pop("seal", None)
            if seal == self._seal(part, facts) and digest_of_file(path) == facts["sha256"]:
                known[part.file] = facts
        return part.file in known

    def _missing(self) -> list[Part]:
        return [part for part in self.parts if not self._is_finished(part)]

    def _write_manifest(self, **found: Any) -> None:
        facts = self._finished if found else {}
        record = {
            **KIND,
            "finished": bool(found),
            "rows": sum(part.rows for part in self.parts),
            "columns": self.names,
            "inputs": self.inputs,
            "identity": self.identity,
            "versions": self.versions,
            **found,
            "parts": [{**asdict(part), **facts.get(part.file, {})} for part in self.parts],
        }
        if as_json(record) != _json_in(self.folder / MANIFEST):
            with whole_file(self.folder / MANIFEST) as temporary:
                temporary.write_text(json.dumps(record, indent=2) + "\n")

    def _finish(self) -> Counts:
        """Write the manifest of all parts, and return their counts of labels; None stands for rows without text."""
        facts, counts = [self._finished[part.file] for part in self.parts], Counter[str | None]()
        for one in facts:
            counts.update(one["labels"])
        labels = {name: counts[name] for name in self.predictor.label_names}
        cut, read = (sum(one["cut"][place] for one in facts) for place in range(2))
        counts[None] = sum(one["skipped"] for one in facts)
        self._write_manifest(labels=labels, skipped=counts[None], cut=[cut, read])
        for folder in (self.folder, self.folder / RECORDS):
            for left in folder.glob(".*.tmp"):
                remove_abandoned(left)
        if line := describe_cut(cut, read, self.predictor.reading, what="texts to predict"):
            self.context.tell(line)
        return counts

    def join(self, target: Path) -> None:
        """Join the finished parts to one file; they stay."""
        with whole_file(target) as temporary, closing(self._open_writer(temporary)) as writer:
            for part in self.parts:
                stream = open_stream(self.folder / part.file, columns=self._schema.names)
                for chunk in stream.chunks(self.settings.chunk_rows):
                    writer.write(chunk)


def _suffix_of_parts(sources: Sequence[Path], folder: Path, settings: "PredictFileSettings") -> str:
    kinds = sorted({check_suffix(source) for source in sources})
    if len(kinds) > 1:
        raise ValueError(f"the input files are of several kinds, {', '.join(kinds)}; predict each kind by itself")
    inside = [source for source in sources if source.resolve().parent == folder.resolve()]
    if inside:
        raise ValueError(f"the input {inside[0]} is in output_dir; choose another folder for the parts")
    asked, file = settings.part_format, settings.output_file
    wanted = None if file is None else check_suffix(Path(file))
    if asked is not None and wanted not in (None, f".{asked}"):
        raise ValueError(f"parts of part_format {asked} cannot be joined to {file}; leave part_format out")
    return f".{asked}" if asked is not None else wanted or kinds[0]


def _changed(source: Path) -> TableError:
    return TableError(f"{source}, or another input, changed while it was read; run again")


def _state_of(source: Path) -> tuple[int, int]:
    try:
        return source.stat().st_size, source.stat().st_mtime_ns
    except OSError as error:
        raise TableError(f"{source} cannot be read: {error.strerror}; was it moved or deleted?") from error


def _json_in(path: Path) -> Any:
    """Return a JSON file's content; None if it does not exist, is damaged, or is a link."""
    try:
        return json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
    except (ValueError, OSError, RecursionError):
        return None
