"""How a program of this package starts and ends: a mistake of its user ends in one line and exit code 2."""

import contextlib
import errno
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ulmfit_pipe.console import VisibleStream, in_one_line, open_missing_streams
from ulmfit_pipe.settings.values import cut_middle
from ulmfit_pipe.storage.temporary_files import DISK_ADVICE, FULL_DISK, write_advice
from ulmfit_pipe.training.resume.preemption import EXIT_PREEMPTED, Preempted, sigterm_raises, sigterm_when_launcher_ends

PACKAGE = Path(__file__).parent
SHOW_TRACEBACK = "ULMFIT_PIPE_TRACEBACK"  # environment variable: anything but empty or 0 shows where it came from
ALMOST_FULL = 1 << 20  # bytes
AGAIN = "run the same command again, with --resume true where the recipe has it"
KEPT = "stages that had finished are kept"
STOPPED = f"stopped by SIGTERM; {AGAIN}; {KEPT}"
VERBOSITY = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")  # environment variables of libraries
TO_PROGRAMMERS = (FutureWarning, DeprecationWarning, PendingDeprecationWarning, UserWarning)
SECONDS_FOR_LAUNCHER = 5.0
LONGEST_LINE = 600  # characters of an error, whatever file, column or label it quotes
USER_ERROR, INTERRUPTED = 2, 130  # exit codes: of argparse, and of a shell whose program got SIGINT


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe's main function; a mistake in settings, tables or models is one line of output.

    What this package refuses by a `ValueError` (all its errors about tables, settings, models and checkpoints are), a
    loss that became NaN, and a disk that fails are reported so. Anything else is a fault of the program and keeps
    its traceback. Of several processes only process 0 prints, and the first that fails; the others end too, since
    they would wait for it for ever.

    Args:
        main: The recipe; it reads `sys.argv`.

    Raises:
        SystemExit: Code 2 after a mistake, 75 after SIGTERM (what was being trained is saved), 130 after Ctrl-C.
    """
    open_missing_streams()
    try:
        with sigterm_raises(STOPPED), _one_process_prints(), _libraries_quiet():
            sigterm_when_launcher_ends()
            main()
    except Preempted as stop:
        _end(stop.message, EXIT_PREEMPTED)
    except KeyboardInterrupt:
        _end(f"stopped; {AGAIN}; {KEPT}", INTERRUPTED)
    except Exception as error:
        several = os.environ.get("WORLD_SIZE", "1") != "1"
        if several:
            _end_after_the_other(error)
        _tell_launcher(error)
        message = _told_in_one_line(error)
        if several:
            _leave_word(message or f"{type(error).__name__}: {error}")
        if message is None or os.environ.get(SHOW_TRACEBACK, "") not in ("", "0"):
            raise
        _end(f"error: {message}", USER_ERROR)


@contextlib.contextmanager
def _one_process_prints() -> Iterator[None]:
    """Drop what processes other than the first print: the same once more. Errors, on the other stream, stay.

    What the first prints is shown whatever the console can show.
    """
    if os.environ.get("RANK", "0") == "0":
        with contextlib.redirect_stdout(VisibleStream(sys.stdout)):
            yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _libraries_quiet() -> Iterator[None]:
    """Keep warnings and notes of other libraries off the terminal: whoever runs a command cannot act on them.

    Dropped are warnings to programmers (of a future or deprecated use, of use) that come from no file of this package;
    transformers, datasets and the hub's client print errors alone. Python's `-W` and PYTHONWARNINGS show the warnings
    again, the libraries' own variables the notes.
    """
    quiet = {name: "error" for name in VERBOSITY if name not in os.environ}
    os.environ.update(quiet)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.showwarning = _without_libraries(warnings.showwarning)
        try:
            yield
        finally:
            for name in quiet:
                os.environ.pop(name, None)


def _without_libraries(show: Callable[..., None]) -> Callable[..., None]:
    """Return a `warnings.showwarning` that drops what other libraries tell programmers."""

    def show_ours(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        """Show a warning, unless it is another library's."""
        if not issubclass(category, TO_PROGRAMMERS) or Path(filename).is_relative_to(PACKAGE):
            show(message, category, filename, *rest)

    return show_ours


def _end(message: str, code: int) -> NoReturn:
    if code != EXIT_PREEMPTED or os.environ.get("RANK", "0") == "0":  # all processes are asked to stop; one prints it
        _complain(f"{_which_process()}{message}")
    raise SystemExit(code) from None


def _complain(message: str) -> None:
    """Write a line in one call: with PYTHONUNBUFFERED set, print's two calls would mix with another process's."""
    with contextlib.suppress(ValueError, OSError):  # a console that was closed meanwhile
        line = cut_middle(f"{Path(sys.argv[0]).name}: {in_one_line(message)}", LONGEST_LINE)
        VisibleStream(sys.stderr).write(f"{line}\n")


def _which_process() -> str:
    """Return a word on which process speaks, where it is not the first of several."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank} of {os.environ.get('WORLD_SIZE', '?')}: "


def _end_after_the_other(error: Exception) -> None:
    """End without a traceback where an error only means that a process this one waited for is gone or silent.

    Not before the launcher has seen which process was the first to end.
    """
    from ulmfit_pipe.training.distributed.processes import (
        why_others_ended,  # loads torch, which one process may end without
    )

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # that is how torchrun ends the processes that are left
    why = why_others_ended(error)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if why else before or signal.SIG_DFL)
    if why:
        _complain(f"process {os.environ.get('RANK', '?')} ends, since {why}")
        time.sleep(SECONDS_FOR_LAUNCHER)
        raise SystemExit(1) from None


def _leave_word(message: str) -> None:
    from ulmfit_pipe.training.distributed.processes import leave_word

    leave_word(message)


def _tell_launcher(error: Exception) -> None:
    """Give torchrun the error, which it shows as the cause when it has stopped all processes; elsewhere do nothing."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _told_in_one_line(error: Exception) -> str | None:
    """Return the message of an error that a user can act on, or None."""
    if isinstance(error, OSError) and error.errno is not None:
        return _words_of_disk(error)
    if isinstance(error, ValueError) or type(error).__name__ == "NonFiniteLossError":
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if raised_in.is_relative_to(PACKAGE) or raised_in.name == Path(sys.argv[0]).name:
            return " ".join(str(error).split())
    return None


def _words_of_disk(error: OSError) -> str:
    """Return the message on a disk, path or number that fails: which file, why, what to do."""
    if error.filename is None and "could not" in str(error):  # ours, with all the words
        return f"{error.strerror or error}; {KEPT}"
    if error.errno in FULL_DISK:
        what = "disk is full" if error.errno == errno.ENOSPC else "disk quota of this account is used up"
        places = "" if error.filename else _full_places()
        return f"the {what} ({error}{places}); free some space, then {AGAIN}; {KEPT}"
    if error.filename is None:  # a stream's, or of too many open files
        advice = f". {write_advice(error, None, again=AGAIN)}" if error.errno in DISK_ADVICE else ""
        return f"{error.strerror or error}{advice}; {KEPT}"
    names = " -> ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{names} cannot be used: {error.strerror}. {write_advice(error, 'path')}; {KEPT}"


def _full_places() -> str:
    """Name the places that a run writes to and that have no room, for an error that does not."""
    places = {"TMPDIR": tempfile.gettempdir(), "the cache": os.path.expanduser("~"), "this folder": os.getcwd()}
    full = [f"{name} {place}" for name, place in places.items() if _free_bytes(place) < ALMOST_FULL]
    return f"; there is no room in {', '.join(full)}" if full else ""


def _free_bytes(place: str) -> float:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(place).free
    return math.inf
