"""How many processes a launcher was asked for, and whether it started them.

Two traps are caught here. `accelerate launch --cpu --num_processes 2` (accelerate 1.15) starts one process and says
nothing. And under torchrun on a machine without a GPU a plain `Accelerator()` makes every process a run of its own, all
of them the main one, writing into the same folder. What works on CPUs and GPUs alike: ``torchrun --nproc_per_node 2
RECIPE ...``, and ``accelerate launch --multi_gpu --num_processes 2 RECIPE ...``, which starts all processes even where
there is no GPU.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch.distributed import distributed_c10d

from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.training.compute.precision import check_precision, cpu_precision, refuse_silent_float32
from ulmfit_pipe.training.distributed.processes import settle_at_exit

RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # torchrun's, and MPI's
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
SECONDS_TO_COME = 60.0  # that the first process waits for the last: they are started together, and import the same
SECONDS_TO_ANSWER = 600.0  # that a process waits for another one's step; NCCL's own limit, gloo's is 1,800
OWN_LIMIT = "ULMFIT_PIPE_TIMEOUT"  # environment variable: other seconds, for both
OF_ACCELERATE_LAUNCH = "ACCELERATE_MIXED_PRECISION"  # environment variable that each of its launchers sets
OF_FSDP = "ACCELERATE_USE_FSDP"  # set to true where its configuration asks for FSDP
OF_SEVERAL = "MASTER_ADDR"  # and this one where more than one process was asked for
ADVICE = "torchrun --nproc_per_node {count} RECIPE.py ... starts {count} on this machine, on CPUs too"


class LaunchError(UlmfitError, ValueError):
    """The launcher's processes cannot train together; the message gives the command that starts them."""


def new_accelerator(*, say: Callable[[str], None] | None = None, **options: Any) -> Accelerator:
    """Make an `Accelerator` that has all processes the launcher started, on CPUs too.

    Args:
        say: Receives, on the main process, log lines on what the launcher asked for and does not get.
        **options: As `Accelerator` takes them.

    Raises:
        LaunchError: The launcher started several processes, and they did not find one another.
        ValueError: The machine cannot compute in the precision asked for.
    """
    started = started_processes()
    asked = options.get("mixed_precision") or os.environ.get(OF_ACCELERATE_LAUNCH) or "no"
    check_precision(asked)
    precision, precision_line = cpu_precision(asked) if options.get("cpu") or not _has_device() else (asked, "")
    if precision != asked:
        options["mixed_precision"] = precision
    if started > 1 and not _has_gpu():
        options["cpu"] = True  # without it accelerate 1.15 makes each process a run of its own
    _part_from_earlier(options.get("mixed_precision"))
    accelerator = _connected(started, options) if started > 1 else Accelerator(**options)
    if started > 1 and accelerator.num_processes == 1:
        raise LaunchError(
            f"the launcher started {started} processes, but each of them would train alone and write into the same "
            f"folder; {ADVICE.format(count=started)}"
        )
    settle_at_exit(accelerator)
    refuse_silent_float32(accelerator)
    if say is not None and accelerator.is_main_process:
        other = precision_line or _other_precision(accelerator)
        for line in (missing_processes(), other, _unsharded(accelerator)):
            if line:
                say(line)
    return accelerator


def _connected(started: int, options: dict[str, Any]) -> Accelerator:
    """Make an accelerator whose processes wait for one another, but not for ever."""
    if OF_SEVERAL not in os.environ:
        raise LaunchError(
            f"the environment says that {started} processes were started, but not where they find one another "
            f"({OF_SEVERAL} is not set); {ADVICE.format(count=started)}"
        )
    seconds = [float(os.environ.get(OWN_LIMIT) or default) for default in (SECONDS_TO_COME, SECONDS_TO_ANSWER)]
    handlers = [*options.pop("kwargs_handlers", ()), InitProcessGroupKwargs(timeout=timedelta(seconds=seconds[0]))]
    try:
        accelerator = Accelerator(**options, kwargs_handlers=handlers)
    except torch.distributed.DistError as error:
        raise LaunchError(
            f"{started} processes were started, and not all of them came to {os.environ[OF_SEVERAL]} within "
            f"{seconds[0]:g} seconds ({str(error).splitlines()[0]}); look at the output of the others"
        ) from error
    if torch.distributed.is_initialized():
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds[1]))
    return accelerator


@contextlib.contextmanager
def share_of_work() -> Iterator[tuple[int, int] | None]:
    """Yield a process's rank and the world size if they were started without an address; for work without steps.

    Within the block such a process is a single one to Accelerate. With a launcher's address the block gets None.

    Raises:
        LaunchError: The rank is missing or out of range.
    """
    count = started_processes()
    if count == 1 or OF_SEVERAL in os.environ:
        yield None
        return
    given = next((os.environ[name] for name in RANKS if name in os.environ), "")
    if not given.isdigit() or int(given) >= count:
        raise LaunchError(
            f"the environment says that {count} processes were started, so RANK must be 0 to {count - 1}, got {given!r}"
        )
    hidden = {name: os.environ.pop(name) for name in (*RANKS, *WORLD_SIZES, "LOCAL_RANK") if name in os.environ}
    try:
        yield int(given), count
    finally:
        os.environ.update(hidden)


def _part_from_earlier(precision: str | None) -> None:
    """Let an accelerator of another precision than the last one's have a state of its own.

    Accelerate has one state for the whole process, which keeps the precision of the first. It gets a new one here
    instead of an empty one, so that accelerators made earlier (a predictor's) keep theirs.
    """
    state = AcceleratorState._shared_state
    if precision is not None and isinstance(state, dict) and state.get("_mixed_precision", precision) != precision:
        AcceleratorState._shared_state = {}


def _other_precision(accelerator: Accelerator) -> str:
    asked = os.environ.get(OF_ACCELERATE_LAUNCH, "no")
    if asked in ("no", accelerator.mixed_precision):
        return ""
    return (
        f"accelerate launch was asked for mixed_precision {asked!r}, this run for {accelerator.mixed_precision!r}, "
        f"which counts; to change it give the recipe --mixed_precision {asked}"
    )


def _unsharded(accelerator: Accelerator) -> str:
    if os.environ.get(OF_FSDP, "").lower() != "true" or accelerator.distributed_type == DistributedType.FSDP:
        return ""
    return (
        "accelerate launch was asked for FSDP, which Accelerate has on several GPUs only: every process keeps the "
        "whole model. The result is the same"
    )


def _has_device() -> bool:
    return torch.accelerator.is_available()


def _has_gpu() -> bool:
    device = torch.accelerator.current_accelerator() if _has_device() else None
    return device is not None and device.type != "mps"  # Apple's has one process only


def started_processes() -> int:
    """Return how many processes the launcher started, by its environment variables; 1 without a launcher."""
    for name in WORLD_SIZES:
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return 1


def missing_processes() -> str:
    """Return a log line if accelerate was asked for several processes and started one, else an empty one."""
    if any(name in os.environ for name in (*WORLD_SIZES, "LOCAL_RANK")):
        return ""
    if OF_ACCELERATE_LAUNCH not in os.environ or OF_SEVERAL not in os.environ:
        return ""
    asked = _asked_of_accelerate()
    if asked == 1:  # the address is the user's own
        return ""
    return (
        f"accelerate launch was asked for {asked or 'several'} processes and started one, as its version 1.15 does "
        f"with --cpu. Continuing with one: it reaches the same result, in more time. {ADVICE.format(count=asked or 2)}"
    )


def _asked_of_accelerate() -> int | None:
    """Read the number off the command line of the process that started this one, where the system shows it."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    found = re.search(r"--num[_-]processes[= ](\d+)", " ".join(words))
    return int(found[1]) if found else None


def part_random_streams(accelerator: Accelerator) -> None:
    """Let each process draw its own dropout masks from here on; with one process nothing is drawn or changed.

    A stage seeds all processes alike, for the weights it starts from. Were it left so, row k of every process would
    get the same masks.
    """
    if accelerator.num_processes > 1:
        seed = int(torch.randint(2**62, ()))  # the same on all, after the same draws
        torch.manual_seed((seed + accelerator.process_index) % 2**63)
