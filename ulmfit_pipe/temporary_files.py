"""Temporary files and folders beside what they become, what killed processes left of them, and disks that refuse.

Whoever writes a temporary file or folder holds a lock on it, which the system lets go when the process ends, however
it ends. So the next writer of the same name removes what a killed one left, and nothing that is still being written.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LONGEST_NAME = 255  # bytes; of ext4, xfs, btrfs, NTFS and APFS
ADDED = len("..12345678.tmp")  # bytes that a temporary name has more than the name it stands for
ABANDONED = 86_400.0  # seconds: where a disk knows no locks, what is older is of a process that is gone
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def hidden_name(name: str) -> str:
    """Return a name as hidden names hold it: itself, or a digest where the disk could not hold the longer one."""
    if len(os.fsencode(name)) + ADDED <= LONGEST_NAME:
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


@contextlib.contextmanager
def temporary_beside(path: Path, *, folder: bool = False, mode: int = 0o777) -> Iterator[Path]:
    """Give a new, empty file beside a path, locked for the block; afterwards it is gone, unless it was renamed.

    Args:
        path: What it is to become.
        folder: Give a folder instead of a file.
        mode: Who may read and write the folder, as far as the process lets others at all.

    Raises:
        OSError: It cannot be made there.
    """
    while True:
        temporary = path.with_name(f".{hidden_name(path.name)}.{uuid.uuid4().hex[:8]}.tmp")
        if folder:
            temporary.mkdir(mode)
        else:
            temporary.touch(exist_ok=False)
        lock = _lock(temporary, wait=True)
        if temporary.exists():  # else another process took it for a left-over before it was locked
            break
        _let_go(lock)
    try:
        yield temporary
    finally:
        _let_go(lock)
        remove(temporary)


def remove_left_overs(path: Path, *, kinds: str = "tmp") -> None:
    """Remove the temporary files and folders of a name that processes left which were killed.

    Args:
        path: The name that they were to take.
        kinds: Ends of their names, as a regular expression: ``tmp``, or ``tmp|old``.
    """
    name = re.compile(rf"\.{re.escape(hidden_name(path.name))}\.[0-9a-f]{{8}}\.({kinds})")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in [entry for entry in entries if name.fullmatch(entry.name)]:
            remove_abandoned(Path(entry.path))


def remove_abandoned(path: Path) -> None:
    """Remove a temporary file or folder unless a living process holds it; links and pipes are nobody's left-overs."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            return
        try:
            lock = _lock(path, wait=False)
        except BlockingIOError:
            return
        if lock is not None or time.time() - found.st_mtime > ABANDONED:
            remove(path)
        _let_go(lock)


def remove(path: Path) -> None:
    """Remove a file or folder where that is possible; a disk that is read-only by now must not hide an error."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _lock(path: Path, *, wait: bool) -> int | None:
    """Lock a file or folder and return the descriptor that holds the lock; None where the disk knows none.

    Raises:
        BlockingIOError: Another process holds it.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a network disk, which locks files that are open for writing only
        os.close(descriptor)
        return None
    return descriptor


def _let_go(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Let an error of a disk name its file: that of a write to an open file names none.

    Raises:
        OSError: As it came, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_advice(error: BaseException, what: str) -> str:
    """Return what to do about a disk that refused to write.

    Args:
        error: What came.
        what: What can be chosen anew, such as ``output folder``.
    """
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"It is not writable: choose another {what}, or make it writable, then run again"
    if number == errno.ENAMETOOLONG:
        return f"Choose an {what} with a shorter name, then run again"
    if number in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.EISDIR, errno.ELOOP):
        return f"A part of its path is a file or not there: choose another {what}, then run again"
    return f"Free some disk space or choose another {what}, then run again"
