"""Lock files, by which processes on one folder keep out of one another's way.

A lock is held while its file is open. The system closes that when the process ends, however it ends, so that no lock is
ever left behind. Where the system or the disk knows no locks (Windows, some shared disks), all goes on without.
"""

import contextlib
import functools
import os
import socket
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD: WeakSet[FileIO] = WeakSet()  # by this process


def lock(path: Path, *, wait: bool = False) -> FileIO | None:
    """Lock a file; closing it lets the lock go.

    Args:
        path: The file. It stays behind, with the name of the process that locked it last, unless that removes it.
        wait: Wait until whoever holds the lock lets it go.

    Returns:
        The open file, or None where it is locked already.
    """
    _close_in_forks()
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "a")
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


def _locked(file: FileIO, *, wait: bool) -> bool:
    """Lock an open file, and tell whether that succeeded; on a disk without locks it always does."""
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
    """Return which other process holds a lock, such as ``process 123 on host``, or None."""
    own = any(not file.closed and file.name == path for file in _HELD)
    if own or fcntl is None or not path.exists():
        return None
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may look at once
        except BlockingIOError:
            return file.read().decode() or "one that left no name"
    return None


@contextlib.contextmanager
def held(path: Path, *, wait: bool, say: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Hold a lock file for the block, and tell whether it is held.

    Args:
        path: The lock file.
        wait: Wait until the process that holds it lets it go; otherwise the block gets False.
        say: Told that there is something to wait for.
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
