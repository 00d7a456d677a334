"""Frozen groups run once per row, not once per epoch: what goes into the groups that train is kept, and trained from.

In a phase with frozen groups the first epoch runs the whole model and keeps, for every row, what crosses the boundary
(`prefix_boundary`); from the second epoch on frozen modules are left out. The first batches made of kept rows are
compared with what the whole model gives them; where that differs nothing is kept any longer and the reason is logged.
A phase keeps nothing for the next one, so that nothing can be out of date.

Source: the idea is fastai 0.7's ``precompute`` and AutoFreeze's caching (Liu et al. 2021).
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ulmfit_pipe.training.distributed.global_norms import batch_norms_of
from ulmfit_pipe.training.distributed.processes import is_filler, to_device
from ulmfit_pipe.training.distributed.sharding import wants_sharding
from ulmfit_pipe.training.frozen_cache.activation_store import ActivationStore, StoreFullError
from ulmfit_pipe.training.frozen_cache.prefix_boundary import Boundary, find_boundary, frozen_below, left_as_found
from ulmfit_pipe.training.frozen_cache.row_tensors import (
    ROW,
    Batch,
    PrefixError,
    about_equal,
    has_tokens,
    join_rows,
    picked,
    split_rows,
)
from ulmfit_pipe.training.layer_groups import LayerGroup
from ulmfit_pipe.training.objectives import Objective, ObjectiveOutput
from ulmfit_pipe.training.records import Batches, Phase, Task, TrainingOptions

GIB = 2**30
CHECKED = 4  # batches made of kept rows that are compared with the whole model, of the training and of other data
TRIAL_ROWS = 4  # of the batch that the boundary is found with

Trial = Callable[[Callable[[nn.Module], Any]], Any]  # runs a function of the bare model, which is left as it was found
RowName = tuple[bool, int]  # whether it is a row of the training data, and its number there


@dataclass
class CachedObjective:
    """An objective that leaves frozen groups out where it knows what they return for a batch's rows.

    Attributes:
        objective: The objective as it is.
        boundary: Where the model is split.
        frozen: Parameters of the frozen groups.
        trial: Runs a function of the bare model without gradients, and leaves the model as it was found.
        store: Where rows are kept.
        kept: Whether rows of the training data (True) and of the validation data (False) are.
        say: Receives the reason why rows are no longer kept.
        tokens: Whether a vector per token is kept; None before the first batch.
    """

    objective: Objective
    boundary: Boundary
    frozen: Sequence[Tensor]
    trial: Trial
    store: ActivationStore
    kept: dict[bool, bool]
    say: Callable[[str], None]
    tokens: bool | None = None
    unchecked: dict[bool, int] = field(default_factory=lambda: {True: CHECKED, False: CHECKED})

    def __post_init__(self) -> None:
        """Note how often the frozen weights were written to; torch counts that."""
        self._versions = [parameter._version for parameter in self.frozen]

    def count(self, batch: Batch) -> float:
        """Return the weight of the batch."""
        return self.objective.count(batch)

    def __call__(self, model: nn.Module, batch: Batch, carry: Any) -> ObjectiveOutput:
        """Run the model, or what of it is behind the boundary."""
        training = model.training
        if not self.kept[training] or ROW not in batch:
            return self.objective(model, batch, carry)
        rows, new = self._named(batch, training)
        output = None
        try:
            if [parameter._version for parameter in self.frozen] != self._versions:
                raise PrefixError("weights of frozen groups were changed from outside while the phase ran")
            if len(new) == len(rows):
                output, value = self._watched(model, batch)
                self._keep(batch, rows, value)
                return output
            if new:  # rows that another process had before, or that were in another batch
                self.trial(lambda bare: self._fill(bare, picked(batch, new), [rows[place] for place in new]))
            value = join_rows(self.store.get(rows), batch, tokens=bool(self.tokens))
            if self.unchecked[training]:
                self._check(batch, value)
                self.unchecked[training] -= 1
            return self._from_kept(model, batch, value)
        except (PrefixError, StoreFullError) as error:
            self._give_up(error)
        return self.objective(model, batch, carry) if output is None else output

    def keep_again(self, batch: Batch, *, training: bool) -> None:
        """Keep what is new of a batch that was run before, bit for bit as it was kept then; nothing else changes."""
        if not self.kept[training] or ROW not in batch:
            return
        rows, new = self._named(batch, training)
        whole = len(new) == len(rows)

        def fill(bare: nn.Module) -> None:
            with torch.set_grad_enabled(training and whole):  # as it was: torch may compute otherwise without
                self._fill(bare, batch if whole else picked(batch, new), [rows[place] for place in new])

        try:
            if new:
                self.trial(fill)
        except (PrefixError, StoreFullError) as error:
            self._give_up(error)

    def _named(self, batch: Batch, training: bool) -> tuple[list[RowName], list[int]]:
        """Return the names of a batch's rows, and the indices of those that are not kept."""
        rows = [(training, row) for row in batch[ROW].tolist()]
        return rows, [place for place, row in enumerate(rows) if row not in self.store.rows]

    def _watched(self, model: nn.Module, batch: Batch) -> tuple[ObjectiveOutput, Tensor]:
        """Run the whole model and return what crosses the boundary too; the model may read a batch in several calls."""
        seen: list[Tensor] = []

        def note(value: Tensor) -> Tensor:
            seen.append(value.detach().to("cpu", copy=True))  # a copy: a layer may write into its input
            return value

        with self.boundary.hooked(note):
            output = self.objective(model, batch, None)
        if not seen or len({value.shape[1:] for value in seen}) > 1:
            raise PrefixError(f"{self.boundary.name} was not called with the rows of a batch this time")
        return output, torch.cat(seen)

    def _keep(self, batch: Batch, rows: Sequence[RowName], value: Tensor) -> None:
        here = {name: tensor.cpu() for name, tensor in batch.items()}
        self.tokens = has_tokens(value, here) if self.tokens is None else self.tokens
        self.store.add(rows, split_rows(value, here, tokens=self.tokens))

    def _fill(self, model: nn.Module, batch: Batch, rows: Sequence[RowName]) -> None:
        """Keep rows that are not trained on now."""
        model.eval()
        self._keep(batch, rows, self._watched(model, batch)[1])

    def _from_kept(self, model: nn.Module, batch: Batch, value: Tensor) -> ObjectiveOutput:
        """Run what is behind the boundary; a batch that the model reads in several calls is served call by call."""
        done = 0

        def hand_out(like: Tensor) -> Tensor:
            nonlocal done
            start, done = done, done + len(like)
            if done > len(value):
                raise PrefixError(f"{self.boundary.name} was called with more than the {len(value)} rows of a batch")
            return value[start:done]

        with self.boundary.hooked(hand_out, left_out=True):
            output = self.objective(model, batch, None)
        if done < len(value):
            raise PrefixError(f"{self.boundary.name} was called with {done} of the {len(value)} rows of a batch")
        return output

    def _check(self, batch: Batch, value: Tensor) -> None:
        """Raise unless a batch made of kept rows gets what the whole model gives it, with the same dropout."""

        def still(model: nn.Module) -> nn.Module:
            """Keep batch norms from waiting for other processes, which have nothing to check now."""
            for norm in batch_norms_of(model):
                norm.eval()
            return model

        whole = self.trial(lambda model: self.objective(still(model), batch, None))
        from_kept = self.trial(lambda model: self._from_kept(still(model), batch, value))
        if not (about_equal(from_kept.logits, whole.logits) and about_equal(from_kept.loss_sum, whole.loss_sum)):
            raise PrefixError(
                "rows got other scores from what was kept than from the whole model, so they are not the same each "
                f"time, depend on their neighbours, or reach the output past {self.boundary.name}"
            )

    def _give_up(self, reason: Exception) -> None:
        self.kept = {True: False, False: False}
        self.store.close()
        self.say(f"cache_frozen: given up, frozen groups run in every epoch: {reason}")


@contextlib.contextmanager
def cached_prefix(
    model: nn.Module,
    groups: Sequence[LayerGroup],
    phase: Phase,
    task: Task,
    *,
    accelerator: Accelerator,
    options: TrainingOptions,
    say: Callable[[str], None] | None = None,
) -> Iterator[Task]:
    """Give a phase's task with frozen groups run once per row, where the options ask for it and it is the same.

    Every process keeps the rows that it was given itself; each runs a row once.

    Args:
        model: The bare model, frozen as the phase has it, on the accelerator's device.
        groups: Its layer groups.
        phase: The phase.
        task: Data and objective; training batches must declare that their rows are the same in every epoch
            (``fixed_rows``), for otherwise nothing is kept.
        accelerator: Device and precision.
        options: Hyperparameters of the loop.
        say: Receives a log line on whether rows are cached, and if not, why.
    """
    cached = None
    if options.cache_frozen and frozen_below(groups):
        cached = _cached(model, groups, phase, task, accelerator, options, say or (lambda _line: None))
    if cached is None:
        yield task
        return
    try:
        yield replace(task, objective=cached)
        if cached.store.rows:
            cached.say(f"cache_frozen: {len(cached.store.rows):,} rows were kept, {cached.store.describe()}")
    finally:
        cached.store.close()


def keep_again(task: Task, phase: Phase, *, upto: tuple[int, int], first_epoch: int, accelerator: Accelerator) -> None:
    """Keep the rows that a phase had kept when it was killed, so that it continues with exactly the same values.

    Args:
        task: The phase's task, as `cached_prefix` gives it; where it keeps nothing, nothing is done.
        phase: The phase.
        upto: The epoch that is resumed, and how many of its batches are done.
        first_epoch: Number that the phase's epoch 0 has for the data's order.
        accelerator: Where batches go.
    """
    cached, (present, done) = task.objective, upto
    if not isinstance(cached, CachedObjective):
        return
    for epoch in range(phase.start_epoch, present + 1):
        task.train_batches.set_epoch(first_epoch + epoch)
        trained = itertools.islice(task.train_batches, done if epoch == present else None)
        validated = task.valid_batches if epoch < present and task.valid_batches is not None else ()
        for batches, training in ((trained, True), (validated, False)):
            for batch in batches:
                if training or not is_filler(batch):  # an evaluation passes them over, a step runs and keeps them too
                    cached.keep_again(to_device(batch, accelerator), training=training)


def _cached(
    model: nn.Module,
    groups: Sequence[LayerGroup],
    phase: Phase,
    task: Task,
    accelerator: Accelerator,
    options: TrainingOptions,
    say: Callable[[str], None],
) -> CachedObjective | None:
    """Return the task's objective with cached rows, or None where caching is impossible; either is logged."""
    below = frozen_below(groups)

    def trial(run: Callable[[nn.Module], Any]) -> Any:
        with left_as_found(model), accelerator.autocast():
            return run(model)

    def find(model: nn.Module) -> Boundary:
        first = to_device(next(iter(task.train_batches)), accelerator)
        if ROW not in first:
            raise PrefixError(f"batches name no rows: they have {', '.join(sorted(first))} and no {ROW!r}")
        batch = picked(first, range(min(TRIAL_ROWS, len(first[ROW]))))
        return find_boundary(model, groups, lambda: task.objective(model, batch, None), options=options)

    try:
        _check_alone(accelerator, options)
        _check_worth(below, phase, task)
        boundary = trial(find)
    except PrefixError as error:
        say(f"cache_frozen: off in phase {phase.name!r}, frozen groups run in every epoch: {error}")
        return None
    names = ", ".join(group.name for group in below)
    say(f"cache_frozen: {names} run once per row; kept is what goes into {boundary.name}")
    store = ActivationStore(memory=int(options.cache_memory_gib * GIB))
    kept = {True: True, False: _fixed(task.valid_batches)}
    frozen = [parameter for group in below for _, parameter in group.parameters]
    return CachedObjective(task.objective, boundary, frozen, trial, store, kept, say)


def _fixed(batches: Batches | None) -> bool:
    return bool(getattr(batches, "fixed_rows", False))


def _check_alone(accelerator: Accelerator, options: TrainingOptions) -> None:
    """Raise where something else changes how the model's layers are run."""
    if options.gradient_checkpointing:
        raise PrefixError("gradient_checkpointing runs layers again, when what was kept is no longer put into them")
    if options.compile:
        raise PrefixError("the model is compiled (compile), and compiled code cannot leave its frozen part out")
    if wants_sharding(accelerator, options):
        raise PrefixError("the weights are sharded over the processes, which must run all layers equally often")


def _check_worth(below: Sequence[LayerGroup], phase: Phase, task: Task) -> None:
    """Raise where keeping rows would be wrong, or of no use."""
    if phase.epochs - phase.start_epoch < 2:
        raise PrefixError("it has one epoch, so nothing would be used again")
    if not _fixed(task.train_batches):
        raise PrefixError(
            "the training batches do not declare that their rows are the same in every epoch (fixed_rows), as they are "
            "not under augmentation"
        )
    moving = [group.name for group in below if group.num_trainable]
    if moving:
        raise PrefixError(
            f"norm layers of the frozen groups {', '.join(moving)} train (train_norm), so their output changes"
        )
