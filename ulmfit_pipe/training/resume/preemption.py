"""Preemption: SIGTERM, which clusters send before they take a machine away.

While a training that keeps checkpoints runs, the signal only sets a flag; the loop saves at the next step and raises
`Preempted`, which ends a program with exit code 75 ("try again later") unless it is caught.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command again, later, will do
PR_SET_PDEATHSIG = 1  # of linux/prctl.h: the signal that a process gets when the one that started it ends
LAUNCHERS = {  # a word of the command lines of torchrun and accelerate launch, as commands and after python -m
    *("torchrun", "torch.distributed.run", "torch.distributed.launch"),
    *("accelerate", "accelerate-launch", "accelerate.commands.launch", "accelerate.commands.accelerate_cli"),
}


class Preempted(SystemExit):
    """A training was stopped by SIGTERM; what it had done is saved. Uncaught it ends the program with exit code 75.

    Args:
        message: What was saved, and how to continue.
    """

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.message = message

    def __str__(self) -> str:
        """Return the message."""
        return self.message


@contextlib.contextmanager
def noting_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM came since the block began; until its end nothing else handles it.

    A block that comes to its end all the same has not acted on it, so that it then does what it would have done.
    Outside the main thread, where Python takes no signals, it never came.
    """
    came = False  # no threading.Event: its lock would hang where a second signal comes while the first one is noted
    if threading.current_thread() is not threading.main_thread():
        yield lambda: came
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        """Remember that the signal came."""
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, note) or signal.SIG_DFL
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)
    if came:
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


def sigterm_when_launcher_ends() -> None:
    """Have SIGTERM come when the torchrun or accelerate launch that started this process ends, however it ends.

    Otherwise this process would train on alone after the launcher was killed; `accelerate launch` of one process does
    not even hand a SIGTERM on. It does nothing where something else started the process (a shell that sets ``RANK`` may
    end before its jobs), and on other systems than Linux.
    """
    launcher = os.getppid()
    if sys.platform != "linux" or not _is_launcher(launcher):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != launcher:  # it ended just before
        signal.raise_signal(signal.SIGTERM)


def _is_launcher(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
    except OSError:  # it has ended, or is outside of this container
        return False
    return not LAUNCHERS.isdisjoint(Path(word).name for word in words)
