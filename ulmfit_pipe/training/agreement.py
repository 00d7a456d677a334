"""Do all processes hold the same weights? Asked at every phase boundary, bit for bit, by one small collective.

Data parallelism never compares weights: it averages gradients and trusts that the rest follows. Where it does not (a
parameter thawed after wrapping, a callback that writes on one process, a load that differs), processes drift apart
without a word, and the next wrapping hides it by copying process 0's weights over the others'.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

CHUNK = 2**20  # words that are widened to 64 bits at a time
SPREAD = 0x9E3779B97F4A7C15 - 2**64  # 2**64 / golden ratio, odd, as a signed number: no two places weigh the same


class DisagreementError(RuntimeError):
    """Processes that should hold the same weights do not; the message names the first tensor that differs."""


def check_agreement(model: nn.Module, accelerator: Accelerator, *, where: str) -> None:
    """Raise on every process unless all of them hold bit-identical parameters and buffers.

    Each process sums its bits, each place with a weight of its own, and the sums (8 bytes a tensor) are gathered.
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
    tensors = {name: value for name, value in _tensors_of(model).items() if not hasattr(value, "to_local")}
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


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def checksum(tensor: Tensor) -> Tensor:
    """Return a 64-bit sum over a tensor's bits, int64 (), on its device; one bit changed always changes it.

    Each word is multiplied by an odd number that belongs to its place, so that order counts; sums wrap around.
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
