"""Files that are complete or absent: written under another name beside their own, synced and renamed."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ulmfit_pipe.temporary_files import (
    FULL_DISK,
    hidden_name,
    no_place_for_a_file,
    remove_left_overs,
    temporary_beside,
    write_advice,
)


class OutputError(OSError, ValueError):
    """A result cannot be written; the message names the file."""

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.strerror)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside the path; the file takes the path's place when the block ends without an error.

    What a killed process left of an earlier attempt is removed.

    Raises:
        OutputError: The path is a pipe or a device, or the disk is full or not writable; the old file is untouched.
    """
    if refusal := no_place_for_a_file(path):
        raise OutputError(errno.EINVAL, f"could not write: {refusal}")
    try:
        _make_folder(path.parent)
        remove_left_overs(path)
        with temporary_beside(path) as temporary:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    except OSError as error:
        if not _is_of_writing(error, path):  # an input that was removed while it was read, for example
            raise
        raise OutputError(
            error.errno,
            f"could not write {path}: {error.strerror or error}; what was there before is untouched. "
            f"{write_advice(error, 'output file or folder')}",
        ) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # Python's word for a file in the folder's place
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def _is_of_writing(error: OSError, path: Path) -> bool:
    """Tell whether an error is about a file beside a path; of those without a name, a disk that takes no more is."""
    if error.filename is None:
        return error.errno in (*FULL_DISK, errno.EROFS, errno.EFBIG)
    place = Path(os.fsdecode(error.filename))
    ours = place.name == path.name or place.name.startswith(f".{hidden_name(path.name)}.")
    return place in path.parents or (place.parent == path.parent and ours)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
