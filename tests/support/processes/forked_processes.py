"""Several processes of one run, forked from the test's own, so that they begin with all that it has imported.

Processes that torchrun starts import torch and transformers anew, which takes longer than all that toys train. That a
launcher starts them, and ends them, is for tests of its own to show: see stages/test_launches.py.
"""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState


def run_in_processes(work: Callable[[], Any], folder: Path, *, processes: int, seconds: float = 400) -> list[Any]:
    """Do the work in so many processes, which find one another as torchrun's do; return what each of them returned."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folder.mkdir(exist_ok=True)
    together = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = {rank: _forked(work, folder, rank, together) for rank in range(processes)}
    until, codes = time.monotonic() + seconds, {}
    try:
        while running and not any(codes.values()) and time.monotonic() < until:
            time.sleep(0.01)
            ended = {rank: os.waitpid(child, os.WNOHANG) for rank, child in running.items()}
            codes |= {rank: os.waitstatus_to_exitcode(status) for rank, (child, status) in ended.items() if child}
            running = {rank: child for rank, child in running.items() if rank not in codes}
    finally:
        for child in running.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    said = "\n".join((folder / f"said{rank}").read_text()[-4000:] for rank in range(processes))
    assert codes == dict.fromkeys(range(processes), 0), f"of {processes} processes ended {codes}:\n{said}"
    return [torch.load(folder / f"result{rank}.pt", weights_only=False) for rank in range(processes)]


def _forked(work: Callable[[], Any], folder: Path, rank: int, together: dict[str, Any]) -> int:
    """Fork a process that does the work and ends; return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with (folder / f"said{rank}").open("w", buffering=1) as said:
            sys.stdout = sys.stderr = said
            for number in (1, 2):  # of libraries that are not Python's
                os.dup2(said.fileno(), number)
            try:
                os.environ |= {
                    name: str(value) for name, value in (together | {"RANK": rank, "LOCAL_RANK": rank}).items()
                }
                torch.set_num_threads(1)
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()
                torch.save(work(), folder / f"result{rank}.pt")
                torch.distributed.barrier()  # so that none is missed by one that has still to end
                code = 0
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


@contextlib.contextmanager
def other_process(work: Callable[[Callable[[object], Any]], None]) -> Iterator[tuple[int, str]]:
    """Fork a process that does some work, says a word and waits to be killed; give its number and the word."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            work(lambda word: os.write(writing, str(word).encode()))
            time.sleep(600)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        word = os.read(reading, 100).decode()
        assert word, "the other process ended before it said a word"
        yield process, word
    finally:
        os.close(reading)
        kill(process)


def kill(process: int) -> None:
    """End a forked process, unless it was ended before."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(process, os.WNOHANG) == (0, 0):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
