"""Writing files and folders atomically: they are complete or absent, whatever happens.

A file or folder is written under a temporary name, synced and renamed, so that a full disk or a killed process leaves
the previous one as it was. The formats are in `json_files` and `tensor_files`.
"""

import contextlib
import ctypes
import errno
import glob
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.storage.temporary_files import (
    FULL_DISK,
    hidden_name,
    no_place_for_a_file,
    remove,
    remove_left_overs,
    temporary_beside,
    write_advice,
)

INSIDE = "stage"  # what is written in a fixed folder has hidden names that begin so
WHOLE, FILLING = f".{INSIDE}.whole", f".{INSIDE}.filling"  # a new folder, whole; and while its files are moved
TRACKERS = "trackers"  # folder beside a stage's own, or in a fixed one; `tensorboard --logdir` takes what is in it
KEPT_INSIDE = ("lost+found", TRACKERS)  # not a stage's own: the disk's, and what the trackers write
COUNTING_FILES = ("stage.json", "learner.json")  # a folder without them is not finished
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
ATTEMPTS = 10  # at a name that several processes write at once


class CheckpointError(UlmfitError, ValueError):
    """A checkpoint cannot be read, or does not fit; the message names the file and what to do."""


class OutputError(UlmfitError, OSError, ValueError):
    """A result cannot be written; the message names the file."""

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.strerror)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside the path; the file replaces the path when the block ends without an error.

    What a killed process left of an earlier attempt is removed.

    Raises:
        OutputError: The path is a pipe or a device, or the disk is full or not writable; the old file is untouched.
    """
    if refusal := no_place_for_a_file(path):
        raise OutputError(errno.EINVAL, f"could not write: {refusal}")
    try:
        with _replacing(path) as temporary:
            yield temporary
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
    """Return whether an error is about a file beside a path; of those without a name, a disk that takes no more is."""
    if error.filename is None:
        return error.errno in (*FULL_DISK, errno.EROFS, errno.EFBIG)
    place = Path(os.fsdecode(error.filename))
    ours = place.name == path.name or place.name.startswith(f".{hidden_name(path.name)}.")
    return place in path.parents or (place.parent == path.parent and ours)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside the path, which is synced and replaces the path when the block ends."""
    _make_folder(path.parent)
    remove_left_overs(path)
    with temporary_beside(path) as temporary:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` that takes its place when the block ends without an error.

    What was at ``path`` stays whole until the very end; files of the old folder that the new one lacks are gone
    afterwards, unless the block copied them. A link stays a link: the folder it points to is written. A folder that
    cannot be renamed (`is_fixed`) gets the files one by one.

    Raises:
        CheckpointError: The path is a pipe or a device, or the disk is full or not writable; the old folder is
            untouched.
    """
    _refuse_streams(path)
    path = Path(path).resolve()
    recover_folder(path)
    place = path / INSIDE if is_fixed(path) else path
    temporary = place
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(place, kinds="tmp|old" if path.exists() else "tmp")
        with temporary_beside(place, folder=True) as temporary:
            yield temporary
            _sync_all(temporary)
            _take_place(temporary, path)
            _sync(path.parent)
    except CheckpointError as error:  # of a file in the temporary folder, whose name means nothing to the user
        raise CheckpointError(str(error).replace(str(temporary), str(path))) from error
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own error
        raise CheckpointError(not_saved(path, error)) from error


def _refuse_streams(path: Path | str) -> None:
    if refusal := no_place_for_a_file(path):
        raise CheckpointError(f"could not save: {refusal}")


def is_fixed(path: Path) -> bool:
    """Return whether a folder has to stay where it is: a mounted disk, or one whose parent is not writable."""
    if not path.is_dir():
        return False
    return os.path.ismount(path) or str(path) in _mount_points() or not os.access(path.parent, os.W_OK | os.X_OK)


def _mount_points() -> list[str]:
    """Return where disks are mounted, as far as the system shows it; `os.path.ismount` misses folders of one disk."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    return [re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines]


def progress_folder(output_dir: Path | str) -> Path:
    """Return the folder of a stage's checkpoints until it is finished: hidden beside it, or in a mounted folder."""
    path = Path(output_dir).resolve()
    name = f".{hidden_name(path.name)}.progress"
    return path / name if is_fixed(path) else path.with_name(name)


def contents_of(path: Path) -> list[str]:
    """Return the names in a folder, without what a mounted disk or this package keeps there."""
    return _own_contents(path) if is_fixed(path) else sorted(os.listdir(path))


def _own_contents(path: Path) -> list[str]:
    hidden = (f".{INSIDE}.", f".{hidden_name(path.name)}.progress")
    return [name for name in sorted(os.listdir(path)) if name not in KEPT_INSIDE and not name.startswith(hidden)]


def _take_place(temporary: Path, path: Path) -> None:
    """Give a whole temporary folder the name that counts."""
    if temporary.parent == path:
        _fill(temporary, path)
        return
    for attempt in range(ATTEMPTS):
        try:
            if not path.exists():
                temporary.rename(path)
            elif not _exchange(temporary, path):
                _rename_twice(temporary, path)
            return
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EXDEV) and path.is_dir():
                with temporary_beside(path / INSIDE, folder=True) as inside:
                    shutil.copytree(temporary, inside, dirs_exist_ok=True)
                    _sync_all(inside)
                    _fill(inside, path)
                return
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or attempt == ATTEMPTS - 1:
                raise  # else another process was faster, and its folder is replaced in turn


def _exchange(first: Path, second: Path) -> bool:
    """Swap the names of two folders, so that no reader finds neither; False where the system or the disk cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2  # of Linux
    except (AttributeError, OSError, TypeError):
        return False
    return renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


def _rename_twice(temporary: Path, path: Path) -> None:
    old = path.with_name(f".{hidden_name(path.name)}.{uuid.uuid4().hex[:8]}.old")
    try:
        path.rename(old)
        temporary.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        remove(old)


def _fill(temporary: Path, path: Path) -> None:
    """Move the files of a whole folder into the fixed folder that it is in."""
    remove(path / WHOLE)
    temporary.rename(path / WHOLE)
    _sync(path)
    _finish_filling(path)


def _finish_filling(path: Path) -> None:
    """Take the old files away, then move the new ones in; after a kill the next process continues where it was."""
    if (path / WHOLE).is_dir():
        for name in sorted(_own_contents(path), key=lambda name: name not in COUNTING_FILES):
            remove(path / name)
        remove(path / FILLING)
        (path / WHOLE).rename(path / FILLING)
    for name in sorted(os.listdir(path / FILLING), key=lambda name: name in COUNTING_FILES):
        (path / FILLING / name).replace(path / name)
    _sync(path)
    remove(path / FILLING)


def recover_folder(path: Path | str) -> None:
    """Finish what a process left that was killed at the very end of `atomic_folder`, if the disk is writable.

    The old folder, which it had renamed, gets its name back; a fixed folder gets the files that are still to be moved.
    """
    path = Path(path).resolve()
    with contextlib.suppress(OSError):
        if (path / WHOLE).is_dir() or (path / FILLING).is_dir():
            _finish_filling(path)
            return
        pattern = f".{glob.escape(hidden_name(path.name))}.*.old"
        left = sorted(path.parent.glob(pattern), key=lambda folder: folder.stat().st_mtime)
        if left and not path.exists():
            left[-1].rename(path)


def not_saved(path: Path, error: BaseException) -> str:
    """Return the message of an error on saving."""
    reason = getattr(error, "strerror", None) or error
    advice = write_advice(error, "output folder")
    return f"could not save to {path}: {reason}; what was there before is untouched. {advice}"


def write_atomic(path: Path | str, content: bytes) -> None:
    """Write a file so that either the old content or all of the new is there.

    Raises:
        CheckpointError: The path is a pipe or a device, or the disk is full or not writable; the old file is untouched.
    """
    _refuse_streams(path)
    path = Path(path)
    try:
        with _replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise CheckpointError(not_saved(path, error)) from error


def _sync_all(folder: Path) -> None:
    """Put a folder with all that is in it on the disk: names too, which must be there before the one that counts."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(_ordinary_mode())  # safetensors makes its files readable by their owner alone
        _sync(file)
    _sync(folder)


def _ordinary_mode() -> int:
    """Return the mode that a newly opened file gets here."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
