"""Files that are whole or absent: the output of a prediction, its parts, and the parts joined to one.

A part's name holds its rows, counted from 1 over all inputs, so that parts in the order of their names are the rows in
their order. It takes its name when it is whole, and after its record (rows, digest, labels) was written: a part that is
there is finished.
"""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ulmfit_pipe.data.row_streams import RowSpan, open_writer
from ulmfit_pipe.data.table_readers import open_plain
from ulmfit_pipe.training.checkpoint import CheckpointError, read_json, write_json

PREFIX = "part-"
RECORDS = ".records"  # folder of what is known of the finished parts, until the manifest holds it
DIGITS = 9  # of a row's number in a part's name; more where there are more rows
BLOCK = 1 << 22  # bytes read at once for a digest


@dataclass(frozen=True)
class Part:
    """Some rows of one input, and the file that their predictions go to.

    Attributes:
        file: Name of the file.
        first_row: Number of its first row, from 1, over all inputs.
        rows: How many there are.
        input: Which input they come from, from 1.
        input_row: Number of its first row in that input, from 1.
        offset: The byte of the input at which that row begins; 0 is its top.
    """

    file: str
    first_row: int
    rows: int
    input: int
    input_row: int
    offset: int

    @property
    def span(self) -> RowSpan:
        """The rows in their input."""
        return RowSpan(self.input_row - 1, self.rows, self.offset)


def plan_parts(tables: Sequence[tuple[int, Sequence[int], int]], *, part_rows: int, suffix: str) -> list[Part]:
    """Cut tables into parts of equal size; the last of each table may be smaller.

    Args:
        tables: Of each its rows, the bytes at which rows 0, every, 2 * every, ... begin, and every.
        part_rows: Rows of a part, a multiple of every.
        suffix: The kind of file that is written.
    """
    digits = max(DIGITS, len(str(sum(rows for rows, _, _ in tables))))
    parts: list[Part] = []
    before = 0
    for number, (rows, marks, every) in enumerate(tables, start=1):
        for start in range(0, rows, part_rows):
            first, count = before + start + 1, min(part_rows, rows - start)
            name = f"{PREFIX}{first:0{digits}d}-{first + count - 1:0{digits}d}{suffix}"
            parts.append(Part(name, first, count, number, start + 1, marks[start // every]))
        before += rows
    return parts


class PartFolder:
    """A folder of parts on the disk.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_finished(self, part: Part) -> bool:
        """Whether a part is there."""
        return (self.path / part.file).is_file()

    def record_path(self, part: Part) -> Path:
        """Return where a part's record lies."""
        return self.path / RECORDS / f"{part.file}.json"

    def facts(self, part: Part, entry: dict[str, Any]) -> dict[str, Any]:
        """Return size, digest and labels of a finished part: its record, or what the manifest's entry says of it.

        Raises:
            CheckpointError: There is neither, or the record was cut short.
        """
        path = self.record_path(part)
        return entry if "sha256" in entry and not path.exists() else read_json(path)

    def is_whole(self, part: Part, entry: dict[str, Any]) -> bool:
        """Whether a part that is there is the file that was written, by its size and digest.

        Args:
            part: A finished part.
            entry: Its entry in the manifest.
        """
        path = self.path / part.file
        try:
            facts = self.facts(part, entry)
        except CheckpointError:
            return False
        return path.stat().st_size == facts["bytes"] and digest_of_file(path) == facts["sha256"]

    def drop(self, part: Part) -> None:
        """Remove a part, so that it is made again."""
        (self.path / part.file).unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self, part: Part, facts: dict[str, Any]) -> Iterator[Path]:
        """Give a temporary file that becomes the part when the block ends without an error.

        Args:
            part: The part.
            facts: What to record of it beside its size and digest; the block may still fill it.
        """
        path = self.path / part.file
        with whole_file(path) as temporary:
            yield temporary
            found = {"bytes": temporary.stat().st_size, "sha256": digest_of_file(temporary)}
            write_json(self.record_path(part), {**found, **facts})

    def clear_leftovers(self) -> None:
        """Remove what processes that were killed left half-written."""
        for folder in (self.path, self.path / RECORDS):
            for file in folder.glob(".*.tmp"):
                file.unlink(missing_ok=True)


def digest_of_file(path: Path) -> str:
    """Return a file's SHA-256."""
    for _ in (steps := DigestSteps(path)):
        pass
    return steps.sha256


class DigestSteps:
    """A file's SHA-256, found block by block, so that whoever computes it can look up in between."""

    def __init__(self, path: Path) -> None:
        self.path, self.sha256 = path, ""

    def __iter__(self) -> Iterator[None]:
        """Read the file; afterwards `sha256` is known."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                yield
        self.sha256 = digest.hexdigest()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
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
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {path}: {error.strerror or error}; what was there before is untouched. Free some disk "
            "space or choose another output file, then run again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def join_parts(parts: Sequence[Path], target: Path, *, suffix: str) -> None:
    """Join parts to one file with their rows in the order given; the parts stay.

    Args:
        parts: Files of one kind with the same columns.
        target: The file.
        suffix: Their kind.

    Raises:
        OSError: The file cannot be written; one that was there before is untouched.
    """
    with whole_file(target) as temporary:
        if suffix == ".parquet":
            _join_parquet(parts, temporary)
        else:
            _join_text(parts, temporary, header=b"" if suffix == ".jsonl" else _header(parts[0], temporary, suffix))


def _join_parquet(parts: Sequence[Path], target: Path) -> None:
    with pq.ParquetWriter(target, pq.read_schema(parts[0])) as writer:
        for path in parts:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(group))


def _join_text(parts: Sequence[Path], target: Path, *, header: bytes) -> None:
    with target.open("wb") as joined:
        joined.write(header)
        for path in parts:
            with path.open("rb") as file:
                file.seek(len(header))
                shutil.copyfileobj(file, joined, BLOCK)


def _header(part: Path, scratch: Path, suffix: str) -> bytes:
    """The bytes of a CSV part's header, which may go over several lines, as the writer writes it."""
    columns = open_plain(part).columns
    with contextlib.closing(open_writer(scratch, pa.schema([(name, pa.string()) for name in columns]), suffix=suffix)):
        pass
    return scratch.read_bytes()
