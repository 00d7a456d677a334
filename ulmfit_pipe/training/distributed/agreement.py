"""Do all processes do the same, and hold the same weights?

Before the first step they compare what they are about to do: settings, data, model. The weights are compared at every
phase boundary, bit for bit, by one small collective. Data parallelism never compares weights: it averages gradients and
trusts that the rest follows. Where it does not (a parameter unfrozen after wrapping, a callback that writes on one
process, a load that differs), processes drift apart without a word, and the next wrapping hides it by copying process
0's weights over the others'.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.storage.record_differences import as_json, differences
from ulmfit_pipe.training.distributed.processes import ProcessError, gather_bytes, why_others_ended
from ulmfit_pipe.training.resume.run_state import model_tensors

T = TypeVar("T")
CHUNK = 2**20  # words that are widened to 64 bits at a time
SPREAD = 0x9E3779B97F4A7C15 - 2**64  # 2**64 / golden ratio, odd, as a signed number: all positions' weights differ


class DisagreementError(UlmfitError, RuntimeError):
    """Processes that should hold the same weights do not; the message names the first tensor that differs."""


def find_alike(accelerator: Accelerator, find: Callable[[], T], describe: Callable[[T], dict[str, Any]]) -> T:
    """Let every process find something; raise on all of them unless all succeed and find the same.

    Args:
        accelerator: The processes; all of them make this call.
        find: Reads settings, data or models; it makes no collective call.
        describe: Gives what must be the same of what was found, as far as JSON can hold it.

    Raises:
        ProcessError: Another process failed, or found something else; what differs is named, with both values.
    """
    if accelerator.num_processes == 1:
        return find()
    found: Any = None
    said, error = dict[str, Any](), None
    try:
        found = find()
        said = {"found": as_json(describe(found))}
    except Exception as caught:  # whatever it is, the others must not wait for this process
        said, error = {"error": _described(caught)}, caught
    try:
        everyone = [json.loads(content) for content in gather_bytes(json.dumps(said).encode(), accelerator)]
    except RuntimeError as failed:
        if error is None and (why := why_others_ended(failed)):
            raise ProcessError(why) from failed
        raise error or failed from None
    if error is not None:
        raise error
    for rank, other in enumerate(everyone):
        if "error" in other:
            raise ProcessError(f"process {rank} stopped: {other['error']}")
    for rank, other in enumerate(everyone):
        places = ("on process 0", f"on process {rank}")
        if changed := differences(everyone[0]["found"], other["found"], places=places):
            raise ProcessError(
                f"process {rank} is not about to do what process 0 is; it differs in {', '.join(changed)}: start all "
                "processes with the same settings, data and model"
            )
    return found


def _described(error: Exception) -> str:
    """An error as other processes show it: its kind is named unless its words were written for users."""
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"


def check_agreement(model: nn.Module, accelerator: Accelerator, *, where: str) -> None:
    """Raise on every process unless all of them hold bit-identical parameters and buffers.

    Each process sums its bits, each position with a weight of its own, and the sums (8 bytes per tensor) are gathered.
    Sharded tensors are different parts on purpose and are left out. With one process nothing is done.

    Args:
        model: The bare model.
        accelerator: The processes.
        where: When this is, for the message: ``after phase 'last 1'``.

    Raises:
        DisagreementError: A tensor differs.
    """
    if accelerator.num_processes == 1:
        return
    tensors = {name: value for name, value in model_tensors(model).items() if not hasattr(value, "to_local")}
    if not tensors:
        return
    own = torch.stack([checksum(value).to(accelerator.device) for value in tensors.values()])  # (tensors,)
    every = accelerator.gather(own[None]).cpu()  # (processes, tensors)
    differs = (every != every[:1]).any(0)  # (tensors,)
    if not bool(differs.any()):
        return
    first = int(differs.nonzero()[0])
    others = (every[:, first] != every[0, first]).nonzero().flatten().tolist()
    raise DisagreementError(
        f"{where} the processes no longer hold the same weights: {list(tensors)[first]!r} is the first of "
        f"{int(differs.sum())} tensors (of {len(tensors)}) that differ; process {', '.join(map(str, others))} has "
        "another one than process 0. Training itself keeps them equal, so something changed it on one process only: "
        "look for code that runs on a part of the processes (a callback, is_main_process around a load). "
        "TrainingOptions(check_agreement=False) trains on without this check"
    )


@torch.no_grad()
def checksum(tensor: Tensor) -> Tensor:
    """Return a 64-bit sum over a tensor's bits, int64 (), on its device; one bit changed always changes it.

    Each word is multiplied by an odd number that depends on its position, so that order counts; sums wrap around.
    """
    plain = tensor.detach().contiguous().reshape(-1)
    total = torch.zeros((), dtype=torch.int64, device=plain.device)
    if not plain.numel():
        return total
    words = plain.view(torch.int32 if plain.element_size() % 4 == 0 else torch.uint8)
    for start in range(0, len(words), CHUNK):
        chunk = words[start : start + CHUNK].long()
        places = torch.arange(start, start + len(chunk), device=plain.device)
        total += (chunk * (places * SPREAD | 1)).sum()
    return total
