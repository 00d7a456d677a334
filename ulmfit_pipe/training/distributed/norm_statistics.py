"""Batch-norm statistics recomputed over all training data, once a model has stopped changing.

While a model trains, the running statistics follow the last few batches, see activations under dropout, and lag behind
weights that still move. With few steps they are far from those of the finished model. One pass without dropout gives
the statistics of the weights that are kept. The same is done after weight averaging (Izmailov et al. 2018).
"""

import contextlib
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ulmfit_pipe.training.distributed.global_norms import global_batch_norms, uncounted_rows
from ulmfit_pipe.training.distributed.processes import is_filler, reduce_sum, to_device
from ulmfit_pipe.training.records import Batches, Objective


class _Moments:
    """Count, sum and sum of squares per feature of all that enters a batch norm, in float64."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.totals = torch.zeros(2 * norm.num_features + 1, dtype=torch.float64)
        self.counted = True  # False for dummy rows of an empty share

    def add(self, _norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Add a norm's input, float (batch, features, ...); a forward pre-hook."""
        if not self.counted:
            return
        rows = inputs[0].detach().transpose(1, -1).flatten(0, -2).double().cpu()  # (rows, features)
        self.totals += torch.cat([rows.sum(0), rows.square().sum(0), rows.new_full((1,), len(rows))])

    def mean_and_variance(self, totals: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and unbiased variance, float64 (features,), of the totals of all processes."""
        (total, squares), count = totals[:-1].chunk(2), totals[-1]
        mean = total / count
        biased = (squares / count - mean.square()).clamp(min=0.0)
        return mean, biased * count / (count - 1).clamp(min=1.0)  # running_var is unbiased in torch


def recompute_norm_statistics(
    model: nn.Module, batches: Batches, objective: Objective, accelerator: Accelerator
) -> list[str]:
    """Set the running mean and variance of every batch norm to those of the training data; weights stay.

    The pass is without dropout and without gradients; batch norms normalize by their (global) batch meanwhile, so that
    a norm behind another does not see its old statistics. Over N processes the counts are summed.

    Args:
        model: The model on any device; it ends in evaluation mode.
        batches: Training batches.
        objective: How the model is run on a batch.
        accelerator: Device, precision and processes.

    Returns:
        Names of the norms whose statistics were set; empty where the model has none.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }
    if not norms:
        return []
    model.to(accelerator.device)
    model.eval()
    moments = {name: _Moments(norm) for name, norm in norms.items()}
    hooks = [norm.register_forward_pre_hook(moments[name].add) for name, norm in norms.items()]
    kept = {name: (norm.momentum, norm.num_batches_tracked) for name, norm in norms.items()}
    try:
        for norm in norms.values():
            norm.train()
            norm.momentum, norm.num_batches_tracked = 0.0, None  # the pass itself moves nothing
        carry = None
        with torch.no_grad(), accelerator.autocast(), global_batch_norms(model, accelerator):
            for batch in batches:
                for moment in moments.values():
                    moment.counted = not is_filler(batch)
                with contextlib.nullcontext() if not is_filler(batch) else uncounted_rows(model):
                    carry = objective(model, to_device(batch, accelerator), carry).carry
    finally:
        for hook in hooks:
            hook.remove()
        for name, norm in norms.items():
            norm.momentum, norm.num_batches_tracked = kept[name]
            norm.eval()
    for name, norm in norms.items():
        mean, variance = moments[name].mean_and_variance(reduce_sum(accelerator)(moments[name].totals))
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(variance)
    return list(norms)
