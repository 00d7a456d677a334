"""Batch norm over the rows of all processes: many processes normalize by the statistics that one process would take.

While a model is prepared for several processes, every batch norm in training takes count, mean and variance over the
global batch. One collective brings the moments of all shares together, real counts and all, and one in the backward
pass the gradients of these moments; both work over gloo on a CPU, where torch's SyncBatchNorm refuses to run. Running
statistics come out bit-identical on all processes. With one process nothing is touched.

Source: Ioffe and Szegedy 2015; moments of parts are put together by the formula of Chan et al. 1979.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ulmfit_pipe.training.objectives import ClassificationObjective, Objective, SequenceObjective

MARK = "global_batch"  # attribute of a norm that is over all processes; heads ask for it before they count their rows


@dataclass
class GlobalBatch:
    """What all norms of a model know of the batch that is run.

    Attributes:
        counted: Whether this process's rows are of the batch; rows in place of an empty share are not.
    """

    counted: bool = True


@contextlib.contextmanager
def global_batch_norms(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Let every batch norm in training take its statistics over all processes, for the time of the block.

    Every process must then run the model equally often in training mode. Norms in evaluation mode, which frozen ones
    are, take their running statistics as ever.

    Args:
        model: The bare model.
        accelerator: The processes; with one, nothing is done.
    """
    norms = [] if accelerator.num_processes == 1 else batch_norms_of(model)
    batch = GlobalBatch()
    for norm in norms:
        setattr(norm, MARK, batch)
        norm.forward = partial(_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            for name in (MARK, "forward"):
                norm.__dict__.pop(name, None)


def batch_norms_of(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model; a SyncBatchNorm looks after itself."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
    ]


def accumulation_note(model: nn.Module, objective: Objective, accumulation_steps: int) -> str:
    """Return a line that says where accumulation is not the same as a larger batch, or nothing where it is.

    Args:
        model: The bare model.
        objective: What is minimized; AR and TAR over whole texts are means over a micro-batch's tokens, and a recurrent
            state makes micro-batches successive windows of the same rows.
        accumulation_steps: Micro-batches an optimizer step.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    reasons = []
    if names:
        shown = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        reasons.append(f"batch norm ({shown}) takes its statistics over one micro-batch")
    if isinstance(objective, ClassificationObjective) and (objective.alpha or objective.beta):
        reasons.append("AR and TAR are means over the tokens of one micro-batch")
    if isinstance(objective, SequenceObjective):
        reasons.append("micro-batches are successive windows of the same rows of text, which carry a state")
    if accumulation_steps == 1 or not reasons:
        return ""
    return (
        f"accumulation_steps {accumulation_steps}: {' and '.join(reasons)}, so this is close to, but not the same as, "
        f"a batch {accumulation_steps} times as large"
    )


@contextlib.contextmanager
def uncounted_rows(model: nn.Module) -> Iterator[None]:
    """Leave this process's rows out of all statistics; it still runs the collectives that the others wait for."""
    batches = [batch for module in model.modules() if (batch := getattr(module, MARK, None)) is not None]
    for batch in batches:
        batch.counted = False
    try:
        yield
    finally:
        for batch in batches:
            batch.counted = True


def _forward(norm: _BatchNorm, inputs: Tensor) -> Tensor:
    """Normalize as the norm's own class does, but by the moments of all processes' rows.

    Raises:
        ValueError: The global batch has a single value per feature, of which there is no variance.
    """
    if not norm.training:
        return type(norm).forward(norm, inputs)
    norm._check_input_dim(inputs)
    counted = getattr(norm, MARK).counted
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    count, mean, variance = _global_moments(wide.detach(), counted=counted)
    if count <= 1:
        raise ValueError(
            f"batch norm in training needs at least 2 rows in a batch over all processes, got {count:.0f}; use a "
            "larger batch size, or merge the last batch with its neighbour"
        )
    _update_running_statistics(norm, mean, variance * (count / (count - 1)))
    scale = torch.rsqrt(variance + norm.eps)
    output = _Normalize.apply(wide, mean.to(wide), scale.to(wide), count, counted)
    if norm.affine:
        output = output * _along_features(norm.weight, inputs) + _along_features(norm.bias, inputs)
    return output.to(inputs.dtype)


def _along_features(values: Tensor, like: Tensor) -> Tensor:
    """Give a tensor (features,) the axes of a tensor (rows, features, ...)."""
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


def _global_moments(inputs: Tensor, *, counted: bool) -> tuple[float, Tensor, Tensor]:
    """Return how many values a feature has over all processes, their mean and biased variance, float64 (features,)."""
    rows = inputs.transpose(0, 1).flatten(1)  # (features, values)
    features, count = rows.shape[0], rows.shape[1] if counted else 0
    own = rows.new_zeros(1 + 2 * features, dtype=torch.float64)
    if count:
        variance, mean = torch.var_mean(rows, dim=1, correction=0)
        own = torch.cat([own.new_full((1,), count), mean.double(), variance.double()])
    shares = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(shares, own)
    gathered = torch.stack(shares)  # (processes, 1 + 2 * features)
    counts = gathered[:, :1]
    means, variances = gathered[:, 1:].split(features, dim=1)
    total = counts.sum().clamp(min=1.0)
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    return float(counts.sum()), mean, variance


@torch.no_grad()
def _update_running_statistics(norm: _BatchNorm, mean: Tensor, unbiased: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    factor = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # a plain average over all batches
            factor = 1.0 / float(norm.num_batches_tracked)
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.mul_(1 - factor).add_(new.to(running), alpha=factor)


class _Normalize(torch.autograd.Function):
    """Subtract the global mean and divide by the global deviation, both of which depend on every process's rows."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, mean: Tensor, scale: Tensor, count: float, counted: bool) -> Tensor:
        """Normalize (rows, features, ...) by the global mean and 1 / deviation (features,)."""
        normalized = (inputs - _along_features(mean, inputs)) * _along_features(scale, inputs)
        ctx.save_for_backward(normalized, scale)
        ctx.count, ctx.counted = count, counted
        return normalized

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the inputs; the sums it needs are taken over all processes."""
        normalized, scale = ctx.saved_tensors
        axes = [axis for axis in range(gradient.ndim) if axis != 1]
        sums = torch.stack([gradient.sum(axes), (gradient * normalized).sum(axes)])  # (2, features)
        if not ctx.counted:
            sums = torch.zeros_like(sums)
        torch.distributed.all_reduce(sums)
        if ctx.counted:
            of_mean, of_deviation = (_along_features(values / ctx.count, gradient) for values in sums)
            gradient = gradient - of_mean - normalized * of_deviation
        return gradient * _along_features(scale, gradient), None, None, None, None
