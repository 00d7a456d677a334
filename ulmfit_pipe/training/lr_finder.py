"""The learning-rate finder: a client of the loop that leaves no trace.

The rate grows exponentially from batch to batch; the smoothed loss is recorded until it diverges. Weights, random
state, data order, training flags, gradients and the loss scale of fp16 are put back bit for bit, also when the sweep
raises.

Source: Smith 2017, section 3.3; the sweep and the four suggestions are fastai 2.8's.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from ulmfit_pipe.training.compute.wrapping import prepared
from ulmfit_pipe.training.distributed.sharding import phase_model
from ulmfit_pipe.training.layer_groups import LayerGroup, set_trainable, train_flags_kept, train_mode, trainable_indices
from ulmfit_pipe.training.logs.progress_bar import progress_bar
from ulmfit_pipe.training.loop import NonFiniteLossError, train_step, windows_of
from ulmfit_pipe.training.lr_suggestions import Advice, advise, smooth_losses, suggest, usable_part
from ulmfit_pipe.training.objectives import Batch
from ulmfit_pipe.training.optim import build_optimizer
from ulmfit_pipe.training.records import Batches, Task, TrainingOptions
from ulmfit_pipe.training.resume.run_state import random_kept
from ulmfit_pipe.training.run import Run
from ulmfit_pipe.training.schedules import exponential_sweep

if TYPE_CHECKING:
    from ulmfit_pipe.reports.plots import Picture

DIVERGED = 4.0  # the sweep ends where the smoothed loss exceeds this many times its best, fastai 2.8 schedule.py
SHORTEST_SWEEP = 6  # fastai 2.8 floors num_it to this


@dataclass(frozen=True, repr=False)
class LRFinderResult:
    """A finished sweep.

    Attributes:
        lrs: Learning rate of each step.
        losses: Smoothed loss at each step.
        suggestions: Learning rates by rule: ``valley``, ``slide``, ``minimum``, ``steep``.
        trained: Names of the layer groups that the sweep trained.
        advice: Which suggestion to take, why, and whether the curve is to be believed; None where nobody judged it.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    suggestions: dict[str, float] = field(default_factory=dict)
    trained: tuple[str, ...] = ()
    advice: Advice | None = None

    @property
    def valley(self) -> float:
        """The suggestion that fastai shows by default."""
        return self.suggestions["valley"]

    @property
    def taken(self) -> float:
        """The suggestion that the advice takes, or valley."""
        return self.valley if self.advice is None else self.suggestions[self.advice.name]

    def plot(self, path: Path | str | None = None) -> "Picture":
        """Draw the curve and the suggestions, and save it as a picture where a path is given."""
        from ulmfit_pipe.reports.plots import plot_lr_find  # drawing is loaded by who draws

        return plot_lr_find(list(self.lrs), list(self.losses), self.suggestions, path=path)

    def __repr__(self) -> str:
        """Return a short line: the curve has a hundred points."""
        return f"LRFinderResult({len(self.lrs)} rates, {self.describe()})"

    def _repr_png_(self) -> bytes:
        """Return the curve as a picture for a notebook."""
        return self.plot()._repr_png_()

    def describe(self) -> str:
        """Return the suggestions in one line."""
        found = ", ".join(f"{name} {lr:.2e}" for name, lr in self.suggestions.items())
        return "; ".join([f"suggested learning rates for {', '.join(self.trained)}: {found}", *self.advice_lines()])

    def advice_lines(self) -> list[str]:
        """Return which suggestion to take and why, and a warning for each reason not to believe the curve."""
        if self.advice is None:
            return []
        doubts = [f"warning: {doubt}" for doubt in self.advice.doubts]
        return [f"take {self.advice.name} {self.taken:.2e}: {self.advice.why}", *doubts]


def lr_find(
    model: nn.Module,
    groups: Sequence[LayerGroup],
    task: Task,
    *,
    accelerator: Accelerator,
    options: TrainingOptions,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_steps: int = 100,
    sweep_groups: Sequence[int] | None = None,
) -> LRFinderResult:
    """Sweep the learning rate over the groups that train now, and suggest rates.

    Args:
        model: The bare model.
        groups: Its layer groups, frozen as they shall be for the sweep.
        task: Data and objective; validation is not run.
        accelerator: Device, precision and processes; all processes stop together.
        options: Hyperparameters of the loop.
        start_lr: First learning rate.
        end_lr: Learning rate that the last step approaches.
        num_steps: Steps of a sweep that does not diverge.
        sweep_groups: Sweep these groups only, with the others frozen for the time of the sweep.

    Returns:
        The curve and its suggestions.

    Raises:
        ValueError: The range or number of steps is out of bounds, or the curve is too short for a suggestion.
    """
    if not 0 < start_lr < end_lr:
        raise ValueError(f"lr_find needs 0 < start_lr < end_lr, got {start_lr!r} and {end_lr!r}; 1e-7 and 10 are usual")
    num_steps = max(SHORTEST_SWEEP, int(num_steps))
    chosen = trainable_indices(groups) if sweep_groups is None else tuple(sweep_groups)
    with restored(model, groups), _loss_scale_kept(accelerator):
        set_trainable(groups, chosen, train_norm=options.train_norm)
        trained = tuple(group.name for group in groups if not group.frozen)
        lrs, losses = _sweep(
            model,
            groups,
            task,
            accelerator=accelerator,
            options=options,
            bounds=(start_lr, end_lr),
            num_steps=num_steps,
        )
    curve = usable_part(lrs, losses, num_it=num_steps)
    suggestions = suggest(*curve)
    return LRFinderResult(tuple(lrs), tuple(losses), suggestions, trained, advise(*curve, suggestions))


def _sweep(
    model: nn.Module,
    groups: Sequence[LayerGroup],
    task: Task,
    *,
    accelerator: Accelerator,
    options: TrainingOptions,
    bounds: tuple[float, float],
    num_steps: int,
) -> tuple[list[float], list[float]]:
    lrs: list[float] = []
    losses: list[float] = []
    raw: list[float] = []
    shown = {"accelerator": accelerator, "progress": options.progress}
    options = replace(options, compile=False)  # a minute of compiling for a hundred steps
    with (
        phase_model(model, groups, accelerator, options) as own,
        prepared(own.model, _optimizer(own.groups, options), accelerator, options) as (wrapped, wrapped_optimizer),
        progress_bar(num_steps, "learning-rate finder", **shown) as advance,
    ):
        run = Run(wrapped, own.groups, wrapped_optimizer, task.objective, accelerator, options)
        train_mode(wrapped, own.groups, train_norm=options.train_norm, frozen_dropout=options.frozen_dropout)
        for window, carry in _endless(run, task.train_batches, num_steps):
            lr = exponential_sweep(run.step, num_steps, start_lr=bounds[0], end_lr=bounds[1])
            for parameter_group in run.optimizer.param_groups:
                parameter_group["lr"] = lr
            try:
                loss, _, carry.state = train_step(run, window, carry.state)
            except NonFiniteLossError:
                break
            run.step += 1
            lrs.append(lr)
            advance(f"loss {loss:.4f} lr {lr:.1e}")
            raw.append(loss)
            losses = smooth_losses(raw)
            if losses[-1] > DIVERGED * min(losses):
                break
    return lrs, losses


def _optimizer(groups: Sequence[LayerGroup], options: TrainingOptions) -> torch.optim.Optimizer:
    return build_optimizer(
        groups,
        [1.0] * len(groups),
        weight_decay=options.weight_decay,
        betas=options.betas,
        eps=options.eps,
        decoupled=options.decoupled,
    )


@dataclass
class _Carry:
    state: Any = None


def _endless(run: Run, batches: Batches, num_steps: int) -> Iterator[tuple[list[Batch], _Carry]]:
    """Yield windows of batches over as many epochs as needed; each epoch starts with a fresh recurrent state."""
    batches = copy.copy(batches)  # `set_epoch` on the copy leaves the order of the caller's as it is
    done, epoch = 0, 0
    while done < num_steps:
        batches.set_epoch(epoch)
        carry = _Carry()
        before = done
        for window in windows_of(batches, run.options.accumulation_steps):
            if done >= num_steps:
                return
            yield window, carry
            done += 1
        if done == before:
            raise ValueError("there is no batch to sweep over; give more rows or a smaller batch size")
        epoch += 1


@contextlib.contextmanager
def restored(model: nn.Module, groups: Sequence[LayerGroup]) -> Iterator[None]:
    """Restore weights, buffers, gradients, freeze state, training flags and random state after the block.

    The block starts without gradients. Buffers are kept one by one, since a state dict leaves some of them out.
    """
    device = next(model.parameters()).device
    parameters = [parameter for group in groups for _, parameter in group.parameters]
    kept = [(p, p.detach().clone(), p.requires_grad, p.grad) for p in parameters]
    buffers = [(m, name, b, b.clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    for parameter in parameters:
        parameter.grad = None
    try:
        with train_flags_kept(model), random_kept(device):
            yield
    finally:
        model.to(device)
        with torch.no_grad():
            for parameter, weights, requires_grad, gradient in kept:
                parameter.copy_(weights)
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
            for module, name, buffer, values in buffers:
                module._buffers[name] = buffer.copy_(values)


@contextlib.contextmanager
def _loss_scale_kept(accelerator: Accelerator) -> Iterator[None]:
    """Put back what fp16 scales losses by: a sweep overflows on purpose, and each overflow halves it."""
    scaler = accelerator.scaler
    state = {} if scaler is None else scaler.state_dict()
    try:
        yield
    finally:
        if scaler is not None and state:  # a scaler that is switched off has none
            scaler.load_state_dict(state)
