"""Files that are complete or absent: written under another name beside their own, synced and renamed."""

import contextlib
import errno
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from ulmfit_pipe.stages.folder_lock import lock, remove_unless_locked


class OutputError(OSError, ValueError):
    """A result cannot be written; the message names the file."""

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.strerror)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside the path; the file takes the path's place when the block ends without an error.

    While it is written it is locked, so that what a killed process left is told from what another one is writing.

    Raises:
        OutputError: The disk is full or not writable; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    held = None
    try:
        remove_leftovers(path.parent, f".{glob.escape(path.name)}.????????.tmp")
        held = lock(temporary, wait=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Free some disk space or choose" if full else "Choose"
        raise OutputError(
            error.errno,
            f"could not write {path}: {error.strerror or error}; what was there before is untouched. {advice} "
            "another output file or folder, then run again",
        ) from error
    finally:
        if held is not None:
            held.close()
        with contextlib.suppress(OSError):  # of a disk that has become read-only; the first error is raised
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove the temporary files that killed processes left."""
    for left in folder.glob(pattern):
        remove_unless_locked(left)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
