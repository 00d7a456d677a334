"""The training loop: a step, an epoch, an evaluation, and the whole of one phase.

One phase is one prepare (`wrapping`): what is frozen changes between phases only. Losses are summed and divided once
by the count over all processes and micro-batches, so that 1 and N processes take the same step.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ulmfit_pipe.console import reported
from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.training.compute.wrapping import prepared
from ulmfit_pipe.training.distributed.agreement import check_agreement
from ulmfit_pipe.training.distributed.global_norms import uncounted_rows
from ulmfit_pipe.training.distributed.processes import is_filler, reduce_sum, time_used, to_device
from ulmfit_pipe.training.distributed.sharding import AfterEpoch, brought_together, phase_model, whole_norm
from ulmfit_pipe.training.frozen_cache.frozen_prefix import cached_prefix, keep_again
from ulmfit_pipe.training.layer_groups import LayerGroup, set_trainable, train_mode
from ulmfit_pipe.training.logs.progress_bar import progress_bar, size_of, unit_of
from ulmfit_pipe.training.objectives import Batch, Objective, ObjectiveOutput
from ulmfit_pipe.training.optim import build_optimizer, set_schedule_point
from ulmfit_pipe.training.records import (
    Batches,
    EpochRecord,
    EpochState,
    Metric,
    Phase,
    StepRecord,
    Task,
    TrainingOptions,
)
from ulmfit_pipe.training.run import Observer, Position, Run
from ulmfit_pipe.training.schedules import Schedule


class NonFiniteLossError(UlmfitError, RuntimeError):
    """The loss became NaN or infinite; the message names the step, the learning rates and what to try."""


def share_running_statistics(run: Run) -> None:
    """Give every process the main process's running statistics; each has seen its own share of the data."""
    if run.accelerator.num_processes > 1:
        for buffer in run.running_statistics:
            torch.distributed.broadcast(buffer, src=0)


def train_step(run: Run, window: Sequence[Batch], carry: Any) -> tuple[float, float, Any]:
    """Take one optimizer step over a window of micro-batches.

    Args:
        run: The phase's run; its learning rates are set already.
        window: The micro-batches of the step, on any device.
        carry: Recurrent state from the batch before, or None.

    Returns:
        The mean loss over the step's items on all processes, their count, and the state for the next step.

    Raises:
        NonFiniteLossError: The loss (or, with clipping, the gradient) is NaN or infinite on any process.
        ValueError: Nothing in the window counts.
    """
    accelerator = run.accelerator
    reduce = reduce_sum(accelerator)
    statistics = [buffer.clone() for buffer in run.running_statistics]
    counts = [0.0 if is_filler(batch) else run.objective.count(batch) for batch in window]
    total = float(reduce(torch.tensor([sum(counts)], dtype=torch.float64)))
    if not total > 0:
        raise ValueError(f"the batches of step {run.step} hold nothing that counts (weight {total}); drop them")
    losses: list[Tensor] = []
    for index, (batch, count) in enumerate(zip(window, counts, strict=True)):
        last = index == len(window) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
            # data parallelism averages gradients over processes; the count is over all of them
            loss, carry = _backward(run, batch, carry, count=count, scale=accelerator.num_processes / total)
        losses.append(loss)
    # read back once per step, after all micro-batches are on their way
    loss_sum = torch.tensor([sum(float(loss) for loss in losses)], dtype=torch.float64)
    mean_loss = float(reduce(loss_sum)) / total
    if not math.isfinite(mean_loss):
        _stop(run, f"the loss became {mean_loss}", statistics)
    for observer in run.observers:
        observer.before_update(run)
    if run.options.max_grad_norm is not None:
        norm = whole_norm(accelerator.clip_grad_norm_(run.model.parameters(), run.options.max_grad_norm))
        if not math.isfinite(norm) and accelerator.scaler is None:  # a scaler skips such a step by itself
            _stop(run, f"the gradient's norm became {norm}", statistics)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return mean_loss, total, carry


def _backward(run: Run, batch: Batch, carry: Any, *, count: float, scale: float) -> tuple[Tensor, Any]:
    """Add a micro-batch's gradients, and return its summed loss and the state for the next one."""
    filler = is_filler(batch)
    with uncounted_rows(run.model) if filler else contextlib.nullcontext():
        output = run.objective(run.model, to_device(batch, run.accelerator), carry)
        loss_sum = output.loss_sum * 0.0 if filler else output.loss_sum
        penalty = _weighed_penalty(output, count, run.accelerator, counted=not filler)
        run.accelerator.backward((loss_sum if penalty is None else loss_sum + penalty) * scale)
    return loss_sum.detach(), output.carry


def _weighed_penalty(
    output: ObjectiveOutput, count: float, accelerator: Accelerator, *, counted: bool
) -> Tensor | None:
    """Return a micro-batch's penalty times its weight, such that the processes' sum is the global batch's."""
    if output.penalty is None or accelerator.num_processes == 1 or not output.penalty_parts:
        return None if output.penalty is None else output.penalty * count
    positions = [float(number) * counted for _, number in output.penalty_parts]
    own = torch.tensor([count, *positions], dtype=torch.float64)
    total = reduce_sum(accelerator)(own)
    shares = (total[0] * own[1:] / total[1:].clamp(min=1.0)).tolist()
    return torch.stack([term * share for (term, _), share in zip(output.penalty_parts, shares, strict=True)]).sum()


def _stop(run: Run, what: str, statistics: Sequence[Tensor]) -> NoReturn:
    """Drop the gradients, put back the running statistics of the norm layers, and raise."""
    run.optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(run.running_statistics, statistics, strict=True):
        buffer.copy_(before)
    raise NonFiniteLossError(_non_finite_message(run, what))


def _non_finite_message(run: Run, what: str) -> str:
    rates = ", ".join(f"{group.name} {lr:.2e}" for group, lr in zip(run.groups, run.current_lrs(), strict=True) if lr)
    whole = all(bool(parameter.isfinite().all()) for parameter in run.model.parameters())
    kept = "The weights of the step before are kept" if whole else "The weights are damaged too: load the last save"
    return (
        f"{what} at step {run.step} with learning rates: {rates}. {kept}. Try "
        "a learning rate 3 to 10 times lower (lr_find shows where it diverges), max_grad_norm=1.0, "
        "or mixed_precision='no' if it was on"
    )


def train_epoch(
    run: Run,
    batches: Batches,
    schedule: Schedule,
    *,
    total_steps: int,
    description: str,
    position: Position,
) -> tuple[float, float]:
    """Train over the batches of one epoch.

    The schedule is sampled before each step at ``step / total_steps``, as fastai does. Where a deadline will end the
    phase early, the schedule follows the clock instead, so that the rate still comes down.

    Args:
        run: The phase's run.
        batches: The data, set to the epoch.
        schedule: The phase's curve.
        total_steps: Steps that it spans.
        description: Text of the progress bar.
        position: The epoch within the phase, and how much of it was trained on before.

    Returns:
        Mean loss over the epoch's items, and items per second over all processes.
    """
    state = position.state
    train_mode(run.model, run.groups, train_norm=run.options.train_norm, frozen_dropout=run.options.frozen_dropout)
    started = time.perf_counter() - state.seconds
    size = run.options.accumulation_steps
    rest = batches_from(batches, state.batch)
    for observer in run.observers:
        observer.before_batches()
    shown = {"accelerator": run.accelerator, "progress": run.options.progress, "done": state.batch // size}
    with progress_bar(math.ceil(len(batches) / size), description, **shown) as advance:
        for window in windows_of(rest, size):
            used = time_used(run.accelerator, run.options, started=run.started)
            if used >= 1:
                break
            point = max(run.step, int(used * total_steps))
            set_schedule_point(
                run.optimizer, schedule.factor(point, total_steps), schedule.momentum(point, total_steps)
            )
            loss, step_count, state.carry = train_step(run, window, state.carry)
            _note_step(run, window, state, loss=loss, count=step_count)
            state.seconds, lrs = time.perf_counter() - started, run.steps[-1].lrs
            speed = f"{state.items * run.accelerator.num_processes / state.seconds:,.0f} {run.unit}/s"
            advance(f"loss {loss:.4f} lr {lrs[0]:.1e}..{lrs[-1]:.1e} {speed}")
            for observer in run.observers:
                observer.after_step(run, position)
    share_running_statistics(run)
    total_items = float(reduce_sum(run.accelerator)(torch.tensor([state.items], dtype=torch.float64)))
    seconds = max(time.perf_counter() - started, 1e-9)
    return (state.loss_sum / state.count if state.count else math.nan), total_items / seconds


def _note_step(run: Run, window: Sequence[Batch], state: EpochState, *, loss: float, count: float) -> None:
    """Enter a step into the run's records and the sums of its epoch."""
    run.steps.append(StepRecord(run.step, loss, run.current_lrs()))
    # a step that mixed precision skipped for an overflow does not move the schedule
    run.step += 0 if run.accelerator.optimizer_step_was_skipped else 1
    run.unit = unit_of(window[0])
    state.batch += len(window)
    state.loss_sum, state.count = state.loss_sum + loss * count, state.count + count
    state.items += sum(size_of(batch) for batch in window if not is_filler(batch))


def evaluate(
    model: nn.Module, batches: Batches, objective: Objective, metric: Metric, accelerator: Accelerator
) -> dict[str, float]:
    """Run a model over all batches and return the metric's values, the same on every process.

    A data-parallel model is run bare: no gradients are synchronized, nor the processes. The model is
    left in evaluation mode.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    model.eval()
    carry = None
    with torch.no_grad(), accelerator.autocast(), brought_together(model):
        for batch in reported(batches, "scoring", total=len(batches), unit="batches"):
            if is_filler(batch):
                continue
            output = objective(model, to_device(batch, accelerator), carry)
            carry = output.carry
            # counted where the batch came from: the device is not waited for
            metric.update(output.logits, output.labels, output.loss_sum, objective.count(batch))
    return metric.compute(reduce_sum(accelerator))


def fit(
    model: nn.Module,
    groups: Sequence[LayerGroup],
    phase: Phase,
    task: Task,
    *,
    accelerator: Accelerator,
    options: TrainingOptions,
    first_epoch: int = 0,
    on_epoch: AfterEpoch = None,
    say: Callable[[str], None] | None = None,
    observers: Sequence[Observer] = (),
) -> tuple[list[EpochRecord], list[StepRecord]]:
    """Train one phase: freeze, build the optimizer, prepare once, run the epochs, unwrap.

    Args:
        model: The bare model, on any device; it ends in evaluation mode on the accelerator's, or where its weights are
            trained sharded (`sharding`) on the CPU.
        groups: Its layer groups.
        phase: What to train, how fast and for how long.
        task: Data and objective.
        accelerator: Device, precision and processes.
        options: Hyperparameters of the loop.
        first_epoch: Number that the phase's epoch 0 has for the data's order (also if `start_epoch` skips it).
        on_epoch: Called after every epoch on every process; True ends the phase.
        say: Receives a log line on whether `TrainingOptions.cache_frozen` takes effect.
        observers: Log, checkpoints, or anything else that follows the run; see `Observer`.

    Returns:
        One record for each epoch that ended in this call, and one for each step.
    """
    set_trainable(groups, phase.trainable, train_norm=options.train_norm)
    steps = count_steps(task.train_batches, phase.epochs, options.accumulation_steps, first_epoch=first_epoch)
    with phase_model(model, groups, accelerator, options) as own:
        optimizer = build_optimizer(
            own.groups,
            phase.lrs,
            weight_decay=options.weight_decay,
            betas=options.betas,
            eps=options.eps,
            decoupled=options.decoupled,
        )
        optimizer.zero_grad(set_to_none=True)  # whatever gradients were left on the model
        with (
            prepared(own.model, optimizer, accelerator, options) as (wrapped, wrapped_optimizer),
            cached_prefix(model, groups, phase, task, accelerator=accelerator, options=options, say=say) as task,
        ):
            run = Run(wrapped, own.groups, wrapped_optimizer, task.objective, accelerator, options, observers)
            after = own.after(on_epoch)
            records = _fit_epochs(run, phase, task, steps=steps, first_epoch=first_epoch, on_epoch=after)
    model.eval()
    if options.check_agreement:
        check_agreement(model, accelerator, where=f"after phase {phase.name!r}")
    return records, run.steps


def _fit_epochs(
    run: Run, phase: Phase, task: Task, *, steps: Sequence[int], first_epoch: int, on_epoch: AfterEpoch
) -> list[EpochRecord]:
    """Train the epochs of a phase, or what a checkpoint has left of them."""
    run.step = sum(steps[: phase.start_epoch])
    position = Position(phase.start_epoch, EpochState(), steps)
    for observer in reversed(run.observers):
        observer.enter_phase(run, phase, position)
    resumed_at = (position.epoch, position.state.batch)
    if resumed_at != (phase.start_epoch, 0):
        keep_again(task, phase, upto=resumed_at, first_epoch=first_epoch, accelerator=run.accelerator)
    records: list[EpochRecord] = []
    for epoch in range(position.epoch, phase.epochs):
        position.epoch = epoch
        task.train_batches.set_epoch(first_epoch + epoch)
        records.append(_fit_epoch(run, phase, task, position=position, total_steps=sum(steps)))
        position.state = EpochState()
        ended = on_epoch is not None and on_epoch(records[-1])
        ended = ended or epoch + 1 == phase.epochs or time_used(run.accelerator, run.options, started=run.started) >= 1
        for observer in run.observers:
            observer.after_epoch(run, position, records[-1], ended=ended)
        if ended:
            break
    return records


def _fit_epoch(run: Run, phase: Phase, task: Task, *, position: Position, total_steps: int) -> EpochRecord:
    epoch, state = position.epoch, position.state
    started = time.perf_counter() - state.seconds
    loss, speed = train_epoch(
        run,
        task.train_batches,
        phase.schedule,
        total_steps=total_steps,
        description=f"{phase.name} {epoch + 1}/{phase.epochs}",
        position=position,
    )
    metrics: dict[str, float] = {}
    if task.valid_batches is not None and task.new_metric is not None:
        metrics = evaluate(run.model, task.valid_batches, task.objective, task.new_metric(), run.accelerator)
    seconds = time.perf_counter() - started
    lrs = run.steps[-1].lrs if run.steps else run.current_lrs()
    cut = state.batch < len(task.train_batches)
    return EpochRecord(phase.name, epoch, run.step, total_steps, loss, metrics, lrs, seconds, speed, cut_short=cut)


def windows_of(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Group micro-batches into windows of ``size``; the last may be smaller."""
    iterator = iter(batches)
    while window := list(itertools.islice(iterator, size)):
        yield window


def count_steps(batches: Batches, epochs: int, accumulation_steps: int, *, first_epoch: int = 0) -> list[int]:
    """Return the number of optimizer steps of each epoch (their number of batches may differ)."""
    counts = []
    for epoch in range(first_epoch, first_epoch + epochs):
        batches.set_epoch(epoch)
        counts.append(math.ceil(len(batches) / accumulation_steps))
    if not counts or min(counts) < 1:
        where = f"epoch {first_epoch + counts.index(0)} (counted from 0)" if counts else f"a phase of {epochs} epochs"
        raise ValueError(f"{where} has no batch to train on; give more rows or a smaller batch size")
    return counts


def batches_from(batches: Batches, first: int) -> Iterator[Batch]:
    """Iterate over the batches of the current epoch from a certain one on.

    Earlier batches are skipped, or not built if the batches have ``from_batch``.
    """
    begin = getattr(batches, "from_batch", None)
    if begin is not None:
        return iter(begin(first))
    iterator = iter(batches)
    for _ in itertools.islice(iterator, first):
        pass
    return iterator
