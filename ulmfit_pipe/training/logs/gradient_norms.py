"""The gradient's L2 norm by layer group: with loss scaling taken off, and before clipping."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ulmfit_pipe.training.distributed.processes import reduce_sum
from ulmfit_pipe.training.layer_groups import LayerGroup


def gradient_norms(optimizer: Any, groups: Sequence[LayerGroup], accelerator: Accelerator) -> dict[str, float]:
    """Return the norm over all groups (``grad_norm``) and of each that has a gradient (``grad_norm/GROUP``).

    Call it on every process between the backward pass and clipping. The device is waited for once. Plain data
    parallelism has averaged the gradients by then; those that lie in pieces on the processes (torch's ``fully_shard``)
    cost one sum over them.

    Args:
        optimizer: The phase's; its parameter groups say of which layer group they are.
        groups: The layer groups.
        accelerator: The processes, and the loss scaling.
    """
    parameters: list[list[Tensor]] = [[] for _ in groups]
    for parameter_group in optimizer.param_groups:
        parameters[parameter_group["layer_group"]].extend(parameter_group["params"])
    gradients = [[one.grad for one in own if one.grad is not None] for own in parameters]
    device = accelerator.device
    whole = [_norm([one for one in own if not _in_pieces(one)], device) for own in gradients]
    pieces = [_norm([_own_piece(one) for one in own if _in_pieces(one)], device) for own in gradients]
    squares = torch.stack([*whole, *pieces]).cpu().double().square().reshape(2, len(groups))
    of_pieces = torch.cat([squares[1], torch.tensor([float(len(own)) for own in gradients], dtype=torch.float64)])
    if any(_in_pieces(one) for own in parameters for one in own):  # the same on all processes
        of_pieces = reduce_sum(accelerator)(of_pieces)
    scale = 1.0 if accelerator.scaler is None else float(accelerator.scaler.get_scale())
    total = (squares[0] + of_pieces[: len(groups)]).tolist()
    norms = {
        f"grad_norm/{group.name}": math.sqrt(total[group.index]) / scale
        for group, count in zip(groups, of_pieces[len(groups) :].tolist(), strict=True)
        if count > 0
    }
    return {"grad_norm": math.sqrt(sum(total)) / scale, **norms}


def _norm(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the norm of all together on the device, where torch would leave that of none on the CPU."""
    return torch.nn.utils.get_total_norm(tensors).to(device) if tensors else torch.zeros((), device=device)


def _in_pieces(tensor: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # it takes half a second to load: who has such tensors did
    return module is not None and isinstance(tensor, module.DTensor)


def _own_piece(gradient: Any) -> Tensor:
    """Return this process' piece, smaller where others hold the same: all squares then add up to the whole's."""
    sizes = [gradient.device_mesh.size(axis) for axis, one in enumerate(gradient.placements) if one.is_replicate()]
    return gradient.to_local() / math.sqrt(math.prod(sizes))
