"""What the processes of one training exchange (sums, bytes, the time that is left), and how they end."""

import atexit
import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed import distributed_c10d

from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.training.objectives import Batch
from ulmfit_pipe.training.records import TrainingOptions

OTHER_GONE = re.compile(r"Connection (closed|reset) by peer|Broken pipe|ncclRemoteError")  # gloo's words and NCCL's
OTHER_SILENT = re.compile(r"Timed out waiting \d+ms|collective operation timeout")  # the same
MILLISECONDS = re.compile(r"Timed out waiting (\d+)ms|Timeout\(ms\)=(\d+)")
SECONDS_TO_ANSWER = 5.0  # within which processes that wait for the same one report it
POLL_SECONDS = 0.5
STOPPED, WAITING = "ulmfit_pipe/stopped/", "ulmfit_pipe/waiting/"  # keys of the processes' store
EXIT_PAUSE = 0.25  # seconds; far more than a thread that is ready to run waits for a core


class ProcessError(UlmfitError, ValueError):
    """Another process failed, is gone, or is about to do something else; the message names it."""


def reduce_sum(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """Return a function that sums a tensor over the processes."""

    def reduce(values: Tensor) -> Tensor:
        """Return the sum over the processes, on the device of the values."""
        if accelerator.num_processes == 1:
            return values
        # gloo and NCCL both add float64, but not every device holds it
        on_device = values.to(accelerator.device, non_blocking=True)
        return accelerator.reduce(on_device, reduction="sum").to(values.device)

    return reduce


def gather_bytes(content: bytes, accelerator: Accelerator) -> list[bytes]:
    """Return the bytes that each process gives, in the order of their ranks, on every process."""
    if accelerator.num_processes == 1:
        return [content]
    sizes = accelerator.gather(torch.tensor([len(content)], device=accelerator.device)).tolist()
    padded = torch.zeros(1, max(1, *sizes), dtype=torch.uint8)
    padded[0, : len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else padded[0, :0]
    rows = accelerator.gather(padded.to(accelerator.device)).cpu()  # (processes, longest)
    return [row[:size].numpy().tobytes() for row, size in zip(rows, sizes, strict=True)]


def time_used(accelerator: Accelerator, options: TrainingOptions, *, started: float = 0.0) -> float:
    """Return how much of the time until the deadline is used, from 0; 1 and more is over. The same on all processes.

    Args:
        accelerator: The processes.
        options: Holds the deadline; without one nothing is ever used.
        started: ``time.monotonic()`` at which the time began.
    """
    if options.deadline is None:
        return 0.0
    whole = max(options.deadline - started, 1e-9)
    used = torch.tensor([(time.monotonic() - started) / whole], dtype=torch.float64)
    return float(reduce_sum(accelerator)(used)) / accelerator.num_processes


def to_device(batch: Batch, accelerator: Accelerator) -> dict[str, Tensor]:
    """Move a batch to the process's device."""
    return {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}


def is_filler(batch: Batch) -> bool:
    """Return whether a batch is a dummy batch for a process's empty share, which counts for nothing."""
    return bool(getattr(batch, "filler", False))


def settle_at_exit(accelerator: Accelerator) -> None:
    """Have each of several processes pause for a moment before Python shuts down; calling it again changes nothing.

    A thread of gloo, torch's transport between CPUs, that lets go of its last tensor while the interpreter shuts down
    ends the process by SIGABRT, and the launcher calls a run failed that is over and saved (torch 2.13: 3 of about 120
    runs on an overloaded machine). Where DistributedDataParallel was used these threads outlive
    `destroy_process_group`.
    """
    if accelerator.num_processes > 1:
        _pause_at_exit()


@functools.cache
def _pause_at_exit() -> None:
    atexit.register(time.sleep, EXIT_PAUSE)


def leave_word(message: str) -> None:
    """Leave word for the other processes of why this one ends; one that is alone leaves none."""
    with contextlib.suppress(Exception):  # the store may be gone, with the process that keeps it
        if (store := _store()) is not None:
            store.set(f"{STOPPED}{torch.distributed.get_rank()}", message)


def why_others_ended(error: Exception) -> str:
    """Return which other processes a failed collective call was waiting for, and why they ended if they reported it.

    Every process that waits reports it in the store; those that do not within some seconds are gone, or silent.

    Returns:
        Such as ``process 1 stopped: there is no file x``; empty where the error is another one.
    """
    words = str(error)
    if not isinstance(error, RuntimeError) or not (OTHER_GONE.search(words) or OTHER_SILENT.search(words)):
        return ""
    if _store() is None:
        return ""
    gone = "is gone" if OTHER_GONE.search(words) else _silence(words)
    found = [f"process 0 {gone}"]  # it keeps the store, where no launcher does; without it no answer comes
    asking = threading.Thread(target=lambda: found.append(_ask_store(gone)), daemon=True)
    asking.start()
    asking.join(2 * SECONDS_TO_ANSWER)
    return found[-1]


def _silence(words: str) -> str:
    """Return the message on a process that a collective call waited for in vain, with how long it waited."""
    waited = next((int(one) for found in MILLISECONDS.finditer(words) for one in found.groups() if one), None)
    within = "" if waited is None else f" within {waited / 1000:g} seconds (ULMFIT_PIPE_TIMEOUT sets how many)"
    return f"does not answer{within}: it is stopped, or hangs"


def _ask_store(gone: str) -> str:
    """Return what the store knows of the processes that are `gone`, which is how to call them."""
    with contextlib.suppress(RuntimeError):  # the store is gone
        store, rank, world_size = _store(), torch.distributed.get_rank(), torch.distributed.get_world_size()
        store.set(f"{WAITING}{rank}", "")
        until = time.monotonic() + SECONDS_TO_ANSWER
        while time.monotonic() < until:
            for other in range(world_size):
                if store.check([f"{STOPPED}{other}"]):
                    return f"process {other} stopped: {store.get(f'{STOPPED}{other}').decode()}"
            time.sleep(POLL_SECONDS)
        silent = [str(other) for other in range(world_size) if not store.check([f"{WAITING}{other}"])]
        return f"process {', '.join(silent)} {gone}" if silent else ""
    return f"process 0 {gone}"


def _store() -> Any:
    """Return the store by which the processes found one another, or None."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    store = distributed_c10d._get_default_store()
    store.set_timeout(timedelta(seconds=SECONDS_TO_ANSWER))
    return store
