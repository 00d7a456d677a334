"""How a recipe ends when something is wrong with what it was given: one line that says what, and exit code 2."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from ulmfit_pipe.training.preemption import EXIT_PREEMPTED, Preempted, sigterm_raises

PACKAGE = Path(__file__).parents[1]
SHOW_TRACEBACK = "ULMFIT_PIPE_TRACEBACK"  # environment variable: anything but empty or 0 shows where it came from
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
STOPPED = "told to stop (SIGTERM); run the same command again, stages that had finished are kept"
USER_ERROR, INTERRUPTED = 2, 130  # exit codes: of argparse, and of a shell whose program got SIGINT


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe's main function; a mistake in settings, tables or models is told in one line.

    What this package refuses by a `ValueError` (all its errors about tables, settings, models and checkpoints are), a
    loss that became NaN, and a full disk are told so. Anything else is a fault of the program and keeps its traceback.

    Args:
        main: The recipe; it reads `sys.argv`.

    Raises:
        SystemExit: Code 2 after a mistake, 75 after SIGTERM (what was being trained is saved), 130 after Ctrl-C.
    """
    try:
        with sigterm_raises(STOPPED):
            main()
    except Preempted as stop:
        _end(stop.message, EXIT_PREEMPTED)
    except KeyboardInterrupt:
        _end("stopped; run the same command again, stages that had finished are kept", INTERRUPTED)
    except Exception as error:
        message = _told_in_one_line(error)
        if message is None or os.environ.get(SHOW_TRACEBACK, "") not in ("", "0"):
            raise
        _end(f"error: {message}", USER_ERROR)


def _end(message: str, code: int) -> None:
    if code != EXIT_PREEMPTED or os.environ.get("RANK", "0") == "0":  # all processes are told to stop; one says so
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(code) from None


def _told_in_one_line(error: Exception) -> str | None:
    """Return the message of an error that a user can act on, or None."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return f"the disk is full ({error}); the stages that had finished are kept: free some space and run again"
    if isinstance(error, ValueError) or type(error).__name__ == "NonFiniteLossError":
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if raised_in.is_relative_to(PACKAGE) or raised_in.name == Path(sys.argv[0]).name:
            return " ".join(str(error).split())
    return None
