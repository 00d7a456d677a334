"""Token ids kept from one run to the next: sealed files, found again by what they were made from.

A file is an Arrow stream and, behind it, a line of JSON: its key, its rows and the SHA-256 of the stream. One that is
damaged, exchanged or no file at all is made again, with a log line. The folder is bounded: what was not used for
longest goes first.
"""

import hashlib
import json
import logging
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import datasets
import pyarrow as pa

from ulmfit_pipe.console import in_one_line
from ulmfit_pipe.data.run_files import run_folder
from ulmfit_pipe.storage.temporary_files import naming, remove, remove_abandoned, temporary_beside

CACHE_SIZE = "ULMFIT_PIPE_TOKEN_CACHE_GIB"  # environment variable: most that the cache may hold; 0 keeps nothing
DEFAULT_GIB = 2.0  # twenty tables of the size of IMDb: 28 million tokens of 4 bytes are 0.1 GiB
TAIL = 1024  # bytes in which the line behind the stream is looked for
STREAM_BEGIN = b"\xff" * 4  # Arrow's mark before each message of a stream
STREAM_END = STREAM_BEGIN + bytes(4)
UNSEALED = "has no SHA-256"
COPIED_ROWS = 1024  # rows copied at once

logger = logging.getLogger(__name__)
_USED: set[Path] = set()  # by this process: never removed to make room


def token_cache_folder() -> Path:
    """Return where token ids are kept: below the cache of `datasets`, which HF_DATASETS_CACHE and HF_HOME move."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "ulmfit_pipe"


def cached_tokens(
    key: str, *, rows: int, make: Callable[[Path], datasets.Dataset], folder: Path | None
) -> datasets.Dataset:
    """Return a table of token ids from the cache, or make it and keep it there.

    Args:
        key: Fingerprint of the table: a digest of the texts and the tokenizer.
        rows: How many rows it has.
        make: Makes the table, with its files below the folder that it is given.
        folder: Where it is kept; None is `token_cache_folder`. A folder that cannot be written is logged, and the
            table goes to a temporary file.

    Raises:
        ValueError: The environment variable for the size of the cache is not a number of 0 or more.
        OSError: The temporary file cannot be written either; the error names it.
    """
    limit = _limit()
    if limit or folder is not None:
        place = folder or token_cache_folder()
        try:
            return _from_cache(place / f"tokens-{key}.arrow", key, rows=rows, make=make, limit=limit)
        except OSError as error:
            logger.warning(
                "token ids cannot be kept in %s (%s); they go to a temporary file, and the next run makes them again. "
                "HF_HOME or HF_DATASETS_CACHE names another folder",
                place,
                error.strerror or error,
            )
    path = run_folder() / f"tokens-{key}.arrow"
    with naming(path):
        _write(path, key, make)
    return datasets.Dataset.from_file(str(path))


def _limit() -> float:
    """Return how many bytes the cache may hold.

    Raises:
        ValueError: The environment variable is not a number of 0 or more.
    """
    text = os.environ.get(CACHE_SIZE) or str(DEFAULT_GIB)
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not size >= 0:
        raise ValueError(f"{CACHE_SIZE} must be a number of GiB, 0 or more, got {text!r}; the default is {DEFAULT_GIB}")
    return size * 2**30


def _from_cache(
    path: Path, key: str, *, rows: int, make: Callable[[Path], datasets.Dataset], limit: float
) -> datasets.Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    fault = _fault(path, key=key, rows=rows)
    if fault:
        kind = "of an older version" if fault == UNSEALED else "damaged"
        logger.warning("token cache %s, made again: %s %s", kind, path, fault)
    if fault is not None:
        if path.is_dir() and not path.is_symlink():  # a file cannot take its place
            path.rename(path.with_name(f"{path.name}.not-ours-{os.urandom(4).hex()}"))
        _write(path, key, make)
    else:
        os.utime(path)  # used just now
    _USED.add(path)
    table = datasets.Dataset.from_file(str(path))
    _make_room(path.parent, limit)
    return table


def _fault(path: Path, *, key: str, rows: int) -> str | None:
    """Return what is wrong with a file; None if it is complete, "" if it does not exist."""
    if path.is_symlink():
        return "is a link"
    if not path.exists():
        return ""
    if not path.is_file():
        return "is not a file"
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - TAIL)
        file.seek(start)
        stream, _, line = file.read().rstrip(b"\n").rpartition(b"\n")
        try:
            seal = json.loads(line)
            asked = (seal["key"], seal["rows"], seal["sha256"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return UNSEALED if _is_whole_stream(file) else "was cut short or altered"
        if asked[:2] != (key, rows):
            return "holds another table"
        file.seek(0)
        if asked[2] != _digest(file.fileno(), start + len(stream)):
            return "was altered: its SHA-256 differs"
    return _unreadable(path, rows)


def _unreadable(path: Path, rows: int) -> str | None:
    """Return what is the matter with a sealed file that holds no such table."""
    try:
        table = datasets.Dataset.from_file(str(path))
        table.data.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        return f"cannot be read: {in_one_line(error)[:200]}"
    if len(table) != rows or "input_ids" not in table.column_names:
        return f"holds {len(table):,} rows of {', '.join(table.column_names)[:80]}, {rows:,} of input_ids are asked for"
    return None


def _is_whole_stream(file: BinaryIO) -> bool:
    """Whether a file is an Arrow stream from its first mark to its last, with nothing behind it."""
    file.seek(0)
    begin = file.read(len(STREAM_BEGIN))
    if begin != STREAM_BEGIN:
        return False
    file.seek(max(0, file.seek(0, os.SEEK_END) - len(STREAM_END)))
    return file.read() == STREAM_END


def _digest(descriptor: int, size: int) -> str:
    digest = hashlib.sha256()
    while size and (block := os.read(descriptor, min(size, 1 << 22))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


def _write(path: Path, key: str, make: Callable[[Path], datasets.Dataset]) -> None:
    """Make a table and give it its name when it is whole; whoever else does so at the same time writes the same."""
    with temporary_beside(path, folder=True, mode=0o700) as scratch:
        table = make(scratch)
        new = scratch / "sealed"
        with naming(path), pa.OSFile(str(new), "wb") as file:
            with pa.ipc.new_stream(file, table.features.arrow_schema) as writer:
                for batch in _batches(table):
                    writer.write_table(batch)
        with naming(path), new.open("rb+") as file:
            digest = _digest(file.fileno(), new.stat().st_size)
            file.seek(0, os.SEEK_END)
            file.write(b"\n" + json.dumps({"key": key, "rows": len(table), "sha256": digest}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def _batches(table: datasets.Dataset) -> Iterator[pa.Table]:
    yield from table.with_format("arrow").iter(batch_size=COPIED_ROWS)


def _make_room(folder: Path, limit: float) -> None:
    """Remove what killed processes left, and the files that were not used for longest, until the rest fits."""
    for left in folder.glob(".tokens-*.tmp"):
        remove_abandoned(left)
    found = []
    for path in folder.glob("tokens-*.arrow"):
        try:
            facts = path.lstat()
        except FileNotFoundError:  # another process made room
            continue
        if stat.S_ISREG(facts.st_mode):
            found.append((path in _USED, facts.st_mtime, facts.st_size, path))
    total = sum(size for _, _, size, _ in found)
    for used, _, size, path in sorted(found):
        if used or total <= limit:
            return
        remove(path)
        total -= size
