"""Work that processes share out before they part: each does its piece, all learn what came of it, and of an error."""

import json
import time
from collections.abc import Generator
from typing import Any

from accelerate import Accelerator

from ulmfit_pipe.training.processes import gather_bytes

BEAT_SECONDS = 20.0  # processes meet so often, far below the minutes after which the backends give up waiting


class ProcessError(ValueError):
    """Another process failed; the message holds its error."""


def run_in_step(accelerator: Accelerator, work: Generator[None, None, Any]) -> list[Any]:
    """Run every process' piece of work to its end.

    Args:
        accelerator: The processes.
        work: This process' piece; it yields now and then, and returns something that JSON can hold.

    Returns:
        What the pieces returned, in the order of the processes, on every process.

    Raises:
        ProcessError: A piece failed on another process; on that one its own error is raised.
    """
    finished, result, error = False, None, None
    while True:
        beat = time.monotonic() + BEAT_SECONDS
        while not finished and time.monotonic() < beat:
            try:
                next(work)
            except StopIteration as end:
                finished, result = True, end.value
            except Exception as caught:  # whatever it is, the others must not wait for this process
                finished, error = True, caught
        said = {"finished": finished, "error": None if error is None else describe(error)}
        states = [json.loads(content) for content in gather_bytes(json.dumps(said).encode(), accelerator)]
        if error is not None:
            raise error
        for rank, state in enumerate(states):
            if state["error"] is not None:
                raise ProcessError(f"process {rank} stopped: {state['error']}")
        if all(state["finished"] for state in states):
            return [json.loads(content) for content in gather_bytes(json.dumps(result).encode(), accelerator)]


def meet(accelerator: Accelerator) -> None:
    """Wait until every process has come here."""
    run_in_step(accelerator, _nothing())


def describe(error: Exception) -> str:
    """An error as other processes tell it: its kind is named unless its words were written for users."""
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"


def _nothing() -> Generator[None, None, None]:
    yield from ()
