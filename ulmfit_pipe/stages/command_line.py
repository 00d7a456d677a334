"""How a recipe ends when something is wrong with what it was given: one line that says what, and exit code 2."""

import contextlib
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from ulmfit_pipe.training.preemption import EXIT_PREEMPTED, Preempted, sigterm_raises, sigterm_when_launcher_ends
from ulmfit_pipe.training.processes import leave_word, why_others_ended

PACKAGE = Path(__file__).parents[1]
SHOW_TRACEBACK = "ULMFIT_PIPE_TRACEBACK"  # environment variable: anything but empty or 0 shows where it came from
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
AGAIN = "run the same command again, with --resume true where the recipe has it"
KEPT = "stages that had finished are kept"
STOPPED = f"told to stop (SIGTERM); {AGAIN}; {KEPT}"
SECONDS_FOR_LAUNCHER = 5.0
USER_ERROR, INTERRUPTED = 2, 130  # exit codes: of argparse, and of a shell whose program got SIGINT


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe's main function; a mistake in settings, tables or models is told in one line.

    What this package refuses by a `ValueError` (all its errors about tables, settings, models and checkpoints are), a
    loss that became NaN, and a full disk are told so. Anything else is a fault of the program and keeps its traceback.
    Of several processes only process 0 prints, and the first that fails says why; the others end too, since they would
    wait for it for ever.

    Args:
        main: The recipe; it reads `sys.argv`.

    Raises:
        SystemExit: Code 2 after a mistake, 75 after SIGTERM (what was being trained is saved), 130 after Ctrl-C.
    """
    try:
        with sigterm_raises(STOPPED), _one_process_prints():
            sigterm_when_launcher_ends()
            main()
    except Preempted as stop:
        _end(stop.message, EXIT_PREEMPTED)
    except KeyboardInterrupt:
        _end(f"stopped; {AGAIN}; {KEPT}", INTERRUPTED)
    except Exception as error:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            _end_after_the_other(error)
        _tell_launcher(error)
        message = _told_in_one_line(error)
        leave_word(message or f"{type(error).__name__}: {error}")
        if message is None or os.environ.get(SHOW_TRACEBACK, "") not in ("", "0"):
            raise
        _end(f"error: {message}", USER_ERROR)


@contextlib.contextmanager
def _one_process_prints() -> Iterator[None]:
    """Drop what processes other than the first print: the same once more. Errors, on the other stream, stay."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _end(message: str, code: int) -> NoReturn:
    if code != EXIT_PREEMPTED or os.environ.get("RANK", "0") == "0":  # all processes are told to stop; one says so
        _complain(f"{_which_process()}{message}")
    raise SystemExit(code) from None


def _complain(message: str) -> None:
    """Write a line in one piece: with PYTHONUNBUFFERED set, print's two would mix with another process's."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")


def _which_process() -> str:
    """Return a word on which process speaks, where it is not the first of several."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank} of {os.environ.get('WORLD_SIZE', '?')}: "


def _end_after_the_other(error: Exception) -> None:
    """End without a traceback where an error only says that a process this one waited for is gone, or is silent.

    Not before the launcher has seen which process was the first to end.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # that is how torchrun ends the processes that are left
    why = why_others_ended(error)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if why else before or signal.SIG_DFL)
    if why:
        _complain(f"process {os.environ.get('RANK', '?')} ends, since {why}")
        time.sleep(SECONDS_FOR_LAUNCHER)
        raise SystemExit(1) from None


def _tell_launcher(error: Exception) -> None:
    """Give torchrun the error, which it shows as the cause when it has stopped all processes; elsewhere do nothing."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _told_in_one_line(error: Exception) -> str | None:
    """Return the message of an error that a user can act on, or None."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return f"the disk is full ({error}); free some space, then {AGAIN}; {KEPT}"
    if isinstance(error, ValueError) or type(error).__name__ == "NonFiniteLossError":
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if raised_in.is_relative_to(PACKAGE) or raised_in.name == Path(sys.argv[0]).name:
            return " ".join(str(error).split())
    return None
