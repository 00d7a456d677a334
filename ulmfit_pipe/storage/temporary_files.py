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
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LONGEST_NAME = 255  # bytes; of ext4, xfs, btrfs, NTFS and APFS
ADDED = len("..12345678.tmp")  # bytes that a temporary name has more than the name it stands for
ABANDONED = 86_400.0  # seconds: where a disk knows no locks, what is older is of a process that is gone
STREAMS = re.compile(r"/dev/(std(in|out|err)$|fd(/|$))|/proc/(self|\d+)(/|$)")
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


def folder_of_owner(owner: Any) -> tuple[str, "weakref.finalize[..., Any]"]:
    """Make a temporary folder that is removed with its owner, at the latest when Python ends.

    Args:
        owner: Any object.

    Returns:
        The folder, and what removes it when it is called.
    """
    folder = tempfile.mkdtemp(prefix="ulmfit_pipe_")
    return folder, weakref.finalize(owner, _remove_own, folder, os.getpid())


def _remove_own(folder: str, process: int) -> None:
    """Remove a folder, unless this is a fork of the process that made it."""
    if os.getpid() == process:
        remove(Path(folder))


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


def no_place_for_a_file(path: Path | str) -> str:
    """Return why nothing can be written under a path and renamed, where it is a pipe, a device or a stream; else ''."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = 0
    kinds = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}
    kind = next((name for test, name in kinds.items() if test(mode)), "")
    if STREAMS.match(os.path.abspath(path)):  # also where the shell lets it lead to a file
        kind = "a stream of this process"
    if not kind:
        return ""
    return f"{path} is {kind}; what is written is complete or absent, which needs a file or folder: give a name for one"


def remove(path: Path) -> None:
    """Remove a file or folder where that is possible; a disk that is read-only by now must not hide an error."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _lock(path: Path, *, wait: bool) -> int | None:
    """Lock a file or folder and return the descriptor that holds the lock; None where the disk has no locks.

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


def write_advice(error: BaseException, what: str | None, *, again: str = "run again") -> str:
    """Return what is wrong with a disk that refused, and what to do about it, as one sentence without its full stop.

    Args:
        error: What came.
        what: What can be chosen anew, such as ``output folder``; None where that would not help.
        again: What to do afterwards.
    """
    cause, cure = DISK_ADVICE.get(number_of(error) or 0, ("The disk failed", "look after it"))
    other = "" if what is None else f" or choose another {what}"
    return f"{cause}: {cure}{other}, then {again}"


def number_of(error: BaseException | None) -> int | None:
    """Return the system's number of an error, also of one that another library or an error of ours was raised from."""
    while error is not None:
        if (number := getattr(error, "errno", None)) is not None:
            return int(number)
        if found := re.search(r"\(os error (\d+)\)", str(error)):  # of Rust: safetensors, tokenizers
            return int(found[1])
        if "no space left" in str(error).lower():
            return errno.ENOSPC
        error = error.__cause__
    return None


_NO_PERMISSION = ("This account has no permission there", "change the permissions (chmod, chown)")
DISK_ADVICE = {  # what is wrong, and what to do
    errno.ENOSPC: ("The disk is full", "free some space"),
    errno.EDQUOT: ("The disk quota of this account is used up", "delete files of yours, have it raised"),
    errno.EROFS: ("The disk is read-only", "make it writable"),
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EMFILE: ("This process has too many files open", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("This machine has too many files open", "end other programs"),
    errno.EFBIG: ("The file is larger than the disk or a limit allows", "raise the limit (ulimit -f)"),
    errno.EIO: ("The disk reports a fault", "check it"),
    errno.ENAMETOOLONG: ("The name is too long for the disk", "take a shorter one"),
    errno.ENOENT: ("A folder of the path is not there", "make it"),
    errno.ENOTDIR: ("A part of the path is a file, not a folder", "rename it"),
    errno.EISDIR: ("A folder has that name", "rename it"),
    errno.EEXIST: ("Something else has that name", "rename it"),
    errno.ENOTEMPTY: ("Another process writes there too", "end it"),
    errno.EBUSY: ("Something else is using it", "end that"),
    errno.ELOOP: ("Links of the path lead in a circle", "correct them"),
}
