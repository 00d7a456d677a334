"""Temporary files of a run: its tables as they were read. They go when the run ends, not when the process does."""

import contextlib
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from datasets.fingerprint import get_temporary_cache_files_directory

from ulmfit_pipe.storage.temporary_files import naming, remove_left_overs, temporary_beside

_FOLDER: ContextVar[Path | None] = ContextVar("folder of the run's temporary files", default=None)


@contextlib.contextmanager
def run_files() -> Iterator[None]:
    """Open a folder for temporary files of the tables that are read in the block, deleted at its end.

    Folders left by killed runs are deleted too. A nested block shares the outer one's folder.

    Raises:
        OSError: The folder for temporary files cannot be written; the error names it.
    """
    if _FOLDER.get() is not None:
        yield
        return
    place = Path(tempfile.gettempdir()) / "ulmfit_pipe"
    remove_left_overs(place)
    with naming(place.parent), temporary_beside(place, folder=True, mode=0o700) as folder:
        token = _FOLDER.set(folder)
        try:
            yield
        finally:
            _FOLDER.reset(token)


def run_folder() -> Path:
    """Return where temporary tables go: the run's folder; outside of a run the one that `datasets` removes at exit."""
    return _FOLDER.get() or Path(get_temporary_cache_files_directory())
