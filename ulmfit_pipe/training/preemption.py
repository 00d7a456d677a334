"""Being told to stop: SIGTERM, which clusters send before they take a machine away.

While a training that keeps checkpoints runs, the signal only sets a flag; the loop saves at the next step and raises
`Preempted`, which ends a program with exit code 75 ("try again later") unless it is caught.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command again, later, will do


class Preempted(SystemExit):
    """A training was told to stop; what it had done is saved. Uncaught it ends the program with exit code 75.

    Args:
        message: What was saved, and how to go on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.message = message

    def __str__(self) -> str:
        """Return the message."""
        return self.message


@contextlib.contextmanager
def noting_sigterm() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether SIGTERM came since the block began; until its end the signal does nothing else.

    A block that comes to its end all the same has not acted on it, so that it then does what it would have done.
    Outside the main thread, where Python takes no signals, it never came.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        """Remember that the signal came."""
        came.set()

    before = signal.signal(signal.SIGTERM, note) or signal.SIG_DFL
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
    if came.is_set():
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def sigterm_raises(message: str) -> Iterator[None]:
    """Let SIGTERM raise `Preempted` with a message, where no training is running that would save first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        """Raise where the program is."""
        raise Preempted(message)

    before = signal.signal(signal.SIGTERM, stop) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
