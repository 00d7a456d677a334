"""Lock files, by which processes on one folder keep out of one another's way.

A lock is held while its file is open. The system closes that when the process ends, however it ends, so that no lock is
ever left behind. Where the system or the disk has no locks (Windows, some shared disks), none is taken.
"""

import contextlib
import errno
import functools
import os
import socket
import stat
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from weakref import WeakSet

from ulmfit_pipe.storage.atomic import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

OUR_FOLDERS = (".records", ".progress")  # ends of the names of hidden folders that hold locks
_HELD: WeakSet[FileIO] = WeakSet()  # by this process


def lock(path: Path, *, wait: bool = False) -> FileIO | None:
    """Lock a file; closing it lets the lock go.

    Args:
        path: The file. It stays behind, with the name of the process that locked it last, unless that removes it.
        wait: Wait until whoever holds the lock lets it go.

    Returns:
        The open file, or None where it is locked already.

    Raises:
        CheckpointError: Something else is there than a file of its own: a link, a pipe, a folder.
    """
    _close_in_forks()
    while True:
        refuse_link(path.parent, only_ours=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _opened(path, "a")
        if not _locked(file, wait=wait):
            file.close()
            return None
        if _is_at(file, path):
            break
        file.close()  # whoever held it was done, and has taken the file away
    _HELD.add(file)
    with contextlib.suppress(OSError):  # on a full disk it is a lock without a name
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def refuse_link(path: Path, *, only_ours: bool = False) -> None:
    """Raise if a hidden folder or file of ours is a link: what is written through it would land elsewhere.

    Args:
        path: The folder or file.
        only_ours: Leave folders alone that a user may have named and linked.

    Raises:
        CheckpointError: It is.
    """
    if path.is_symlink() and (not only_ours or path.name.endswith(OUR_FOLDERS)):
        raise CheckpointError(
            f"{path} is a link to {os.readlink(path)}; a run writes there itself and follows no link: remove it, or "
            "choose another output folder"
        )


def _opened(path: Path, mode: str) -> FileIO:
    """Open a lock file without following a link or waiting for a pipe's other end.

    Raises:
        CheckpointError: It is not a regular file with one name, so that another's content would be overwritten.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)

    refuse_link(path)
    try:
        file = FileIO(path, mode, opener=opener)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise CheckpointError(_no_lock_file(path)) from error
        raise
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        file.close()
        raise CheckpointError(_no_lock_file(path))
    return file


def _no_lock_file(path: Path) -> str:
    return (
        f"{path} is not a lock file but a link, a pipe, a device or a folder, so it is left alone; remove it, or "
        "choose another output folder"
    )


def _locked(file: FileIO, *, wait: bool) -> bool:
    """Lock an open file, and return whether that succeeded; on a disk without locks it always does."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@functools.cache
def _close_in_forks() -> None:
    """Let no forked process (a worker that reads data) hold this one's locks: it may outlive it by seconds."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    for file in list(_HELD):
        file.close()


def holder(path: Path) -> str | None:
    """Return which other process holds a lock, such as ``process 123 on host``, or None.

    Raises:
        CheckpointError: As `lock`.
    """
    own = any(not file.closed and file.name == path for file in _HELD)
    if own or fcntl is None or not os.path.lexists(path):
        return None
    with contextlib.suppress(OSError), _opened(path, "r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may look at once
        except BlockingIOError:
            return file.read().decode(errors="replace") or "one that left no name"
    return None


@contextlib.contextmanager
def held(path: Path, *, wait: bool, say: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Hold a lock file for the block, and yield whether it is held.

    Args:
        path: The lock file.
        wait: Wait until the process that holds it lets it go; otherwise the block gets False.
        say: Receives a log line if there is a lock to wait for.
    """
    file = lock(path)
    if file is None and wait:
        if say is not None:
            say(f"another process holds {path}; waiting for it")
        file = lock(path, wait=True)
    if file is None:
        yield False
        return
    with file:
        yield True
