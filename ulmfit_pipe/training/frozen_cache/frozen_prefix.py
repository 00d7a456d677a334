"""Frozen groups run once a row, not once an epoch: what they give out is kept where they end, and trained from.

In a phase with frozen groups the first epoch runs the whole model and keeps, for every row, what goes into the groups
that train; from the second epoch on frozen modules are left out and their place is taken by what was kept. Weights come
out the same up to rounding, which is proved before use (`prefix_boundary`); where it cannot be, nothing is kept and the
reason is said. A phase keeps nothing for the next one, so that nothing can be out of date.

Source: the idea is fastai 0.7's ``precompute`` and AutoFreeze's caching (Liu et al. 2021).
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ulmfit_pipe.training.distributed.global_norms import batch_norms_of
from ulmfit_pipe.training.distributed.processes import to_device
from ulmfit_pipe.training.distributed.sharding import wants_pieces
from ulmfit_pipe.training.frozen_cache.activation_store import ActivationStore, StoreFullError
from ulmfit_pipe.training.frozen_cache.batch_rows import ROW, Batch, PrefixError, about_equal, is_filler, picked
from ulmfit_pipe.training.frozen_cache.prefix_boundary import Cut, find_cut, frozen_below, left_as_found
from ulmfit_pipe.training.frozen_cache.tensor_trees import Place
from ulmfit_pipe.training.layer_groups import LayerGroup
from ulmfit_pipe.training.objectives import Objective, ObjectiveOutput
from ulmfit_pipe.training.records import Batches, Phase, Task, TrainingOptions

GIB = 2**30


Trial = Callable[[Callable[[nn.Module], Any]], Any]  # runs a function of the bare model, which is left as it was found
Pieces = dict[tuple[str, Place], list[Tensor]]  # by part and place: what crossed, call by call
Values = dict[tuple[str, Place], Tensor]  # the same for a whole batch
RowName = tuple[bool, int]  # whether it is a row of the training data, and its number there


class CachedObjective:
    """An objective that leaves frozen groups out where it knows what they give for a batch's rows.

    Args:
        objective: The objective as it is.
        cut: Where the model is cut.
        frozen: Parameters of the frozen groups.
        trial: Runs a function of the bare model without gradients, and leaves the model as it was found.
        store: Where rows are kept.
        kept: Whether rows of the training data (True) and of the validation data (False) are.
        say: Told why rows are no longer kept.
    """

    def __init__(
        self,
        objective: Objective,
        cut: Cut,
        frozen: Sequence[Tensor],
        trial: Trial,
        store: ActivationStore,
        *,
        kept: dict[bool, bool],
        say: Callable[[str], None],
    ) -> None:
        self.objective = objective
        self.cut = cut
        self.frozen = frozen
        self.trial = trial
        self.store = store
        self.kept = kept
        self.say = say
        self.checked = {True: False, False: False}
        self._versions = self._frozen_versions()

    def count(self, batch: Batch) -> float:
        """Return the weight of the batch."""
        return self.objective.count(batch)

    def __call__(self, model: nn.Module, batch: Batch, carry: Any) -> ObjectiveOutput:
        """Run the model, or what of it is behind the boundary."""
        training = model.training
        if not self.kept[training] or ROW not in batch:
            return self.objective(model, batch, carry)
        rows = [(training, row) for row in batch[ROW].tolist()]
        new = [place for place, row in enumerate(rows) if row not in self.store]
        output = None
        try:
            self._refuse_changed_weights()
            if len(new) == len(rows):
                output, seen = self._watched(model, batch)
                self._keep(batch, rows, seen)
                return output
            if new:  # rows that another process had before, or that stood in another batch
                self.trial(lambda bare: self._fill(bare, picked(batch, new), [rows[place] for place in new]))
            values = self._joined(batch, rows)
            if not self.checked[training]:
                self._check(batch, values)
                self.checked[training] = True
        except (PrefixError, StoreFullError) as error:
            self._give_up(error)
            return self.objective(model, batch, carry) if output is None else output
        return self._from_kept(model, batch, values)

    def keep_again(self, batch: Batch, *, training: bool) -> None:
        """Keep what is new of a batch that was run before, bit for bit as it was kept then; nothing else changes."""
        if not self.kept[training] or ROW not in batch:
            return
        rows = [(training, row) for row in batch[ROW].tolist()]
        new = [place for place, row in enumerate(rows) if row not in self.store]
        if not new:
            return
        whole = len(new) == len(rows)

        def fill(bare: nn.Module) -> None:
            with torch.set_grad_enabled(training and whole):  # as it was: torch may compute otherwise without
                self._fill(bare, batch if whole else picked(batch, new), [rows[place] for place in new])

        try:
            self.trial(fill)
        except (PrefixError, StoreFullError) as error:
            self._give_up(error)

    def _watched(self, model: nn.Module, batch: Batch) -> tuple[ObjectiveOutput, Pieces]:
        """Run the whole model and note what crosses the boundary; a batch may be read in pieces."""
        seen: Pieces = {(crossing.part, crossing.place): [] for crossing in self.cut.crossings}

        def tap(part: str, place: Place, _call: int, value: Tensor) -> Tensor:
            if (part, place) in seen:  # a copy: a layer may write into its input
                seen[part, place].append(value.detach().to("cpu", copy=True))
            return value

        with self.cut.tapped(tap):
            return self.objective(model, batch, None), seen

    def _keep(self, batch: Batch, rows: Sequence[RowName], seen: Pieces) -> None:
        here = {name: value.cpu() for name, value in batch.items()}
        columns = []
        for crossing in self.cut.crossings:
            pieces = seen[crossing.part, crossing.place]
            if not pieces:
                raise PrefixError(f"{crossing} was not given this time")
            columns.append(crossing.axes.split(torch.cat(pieces, dim=crossing.axes.row), here))
        self.store.add(rows, columns)

    def _fill(self, model: nn.Module, batch: Batch, rows: Sequence[RowName]) -> None:
        """Keep rows that are not trained on now."""
        model.eval()
        self._keep(batch, rows, self._watched(model, batch)[1])

    def _joined(self, batch: Batch, rows: Sequence[RowName]) -> Values:
        return {
            (crossing.part, crossing.place): crossing.axes.join(self.store.get(rows, kind), batch)
            for kind, crossing in enumerate(self.cut.crossings)
        }

    def _from_kept(self, model: nn.Module, batch: Batch, values: Values) -> ObjectiveOutput:
        """Run what is behind the boundary; a batch that the model reads in pieces is handed out piece by piece."""
        axes = {(crossing.part, crossing.place): crossing.axes.row for crossing in self.cut.crossings}
        handed_out = dict.fromkeys(values, 0)

        def tap(part: str, place: Place, _call: int, value: Tensor) -> Tensor:
            key = (part, place)
            if key not in values:
                return value
            start, count = handed_out[key], value.shape[axes[key]]
            handed_out[key] += count
            return values[key].narrow(axes[key], start, count)

        with self.cut.tapped(tap, left_out=True):
            return self.objective(model, batch, None)

    def _check(self, batch: Batch, values: Values) -> None:
        """Raise unless the first batch made of kept rows gets what the whole model gives it.

        Frozen parts run as they do in training. What is behind them does not: a batch norm would take its statistics
        over all processes (`global_norms`), and wait for those that have nothing to check now.
        """

        def still(model: nn.Module) -> nn.Module:
            """Let nothing draw dropout, take statistics, or wait for other processes."""
            for part in (*self.cut.later.values(), *batch_norms_of(model)):
                part.eval()
            return model

        whole = self.trial(lambda model: self.objective(still(model), batch, None))
        from_kept = self.trial(lambda model: self._from_kept(still(model), batch, values))
        if not (about_equal(from_kept.logits, whole.logits) and about_equal(from_kept.loss_sum, whole.loss_sum)):
            raise PrefixError(
                "rows got other scores from what was kept than from the whole model, so they are not the same each "
                "time, or depend on their neighbours"
            )

    def _refuse_changed_weights(self) -> None:
        if self._frozen_versions() != self._versions:
            raise PrefixError("weights of frozen groups were changed from outside while the phase ran")

    def _frozen_versions(self) -> list[int]:
        return [parameter._version for parameter in self.frozen]  # torch counts what writes into a tensor

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
    """Give a phase's task with frozen groups run once a row, where the options ask for it and it is the same.

    Every process keeps the rows that it was given itself; each runs a row once.

    Args:
        model: The bare model, frozen as the phase has it, on the accelerator's device.
        groups: Its layer groups.
        phase: The phase.
        task: Data and objective; training batches must say that their rows are the same in every epoch
            (``fixed_rows``), for otherwise nothing is kept.
        accelerator: Device and precision.
        options: Numbers of the loop.
        say: Told whether rows are kept, and if not, why.
    """
    cached = None
    if options.cache_frozen and frozen_below(groups):
        cached = _cached(model, groups, phase, task, accelerator, options, say or (lambda _line: None))
    if cached is None:
        yield task
        return
    try:
        yield replace(task, objective=cached)
        if len(cached.store):
            cached.say(f"cache_frozen: {len(cached.store):,} rows were kept, {cached.store.describe()}")
    finally:
        cached.store.close()


def keep_again(task: Task, phase: Phase, *, upto: tuple[int, int], first_epoch: int, accelerator: Accelerator) -> None:
    """Keep the rows that a phase had kept when it was killed, so that it goes on with the very same numbers.

    Args:
        task: The phase's task, as `cached_prefix` gives it; where it keeps nothing, nothing is done.
        phase: The phase.
        upto: The epoch that is gone on with, and how many of its batches are done.
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
    """Return the task's objective with rows kept, or None where they cannot be; either is said."""
    below = frozen_below(groups)

    def trial(run: Callable[[nn.Module], Any]) -> Any:
        with left_as_found(model), accelerator.autocast():
            return run(model)

    def find(model: nn.Module) -> Cut:
        first = next(iter(task.train_batches))
        batch = {name: value.to(accelerator.device) for name, value in first.items()}
        return find_cut(model, groups, batch, lambda rows: task.objective(model, rows, None), options=options)

    try:
        _check_alone(accelerator, options)
        _check_worth(below, phase, task)
        cut = trial(find)
    except PrefixError as error:
        say(f"cache_frozen: off in phase {phase.name!r}, frozen groups run in every epoch: {error}")
        return None
    names = ", ".join(group.name for group in below)
    say(f"cache_frozen: {names} run once a row; kept is what goes into {', '.join(map(str, cut.crossings))}")
    store = ActivationStore(memory=int(options.cache_memory_gib * GIB))
    kept = {True: True, False: _fixed(task.valid_batches)}
    frozen = [parameter for group in below for _, parameter in group.parameters]
    return CachedObjective(task.objective, cut, frozen, trial, store, kept=kept, say=say)


def _fixed(batches: Batches | None) -> bool:
    return bool(getattr(batches, "fixed_rows", False))


def _check_alone(accelerator: Accelerator, options: TrainingOptions) -> None:
    """Raise where something else changes how the model's layers are run."""
    if options.gradient_checkpointing:
        raise PrefixError("gradient_checkpointing runs layers again, when what was kept is no longer put into them")
    if options.compile:
        raise PrefixError("the model is compiled (compile), and compiled code cannot leave its frozen part out")
    if wants_pieces(accelerator, options):
        raise PrefixError("the weights lie in pieces on the processes, which must run all layers equally often")


def _check_worth(below: Sequence[LayerGroup], phase: Phase, task: Task) -> None:
    """Raise where keeping rows would be wrong, or of no use."""
    if phase.epochs - phase.start_epoch < 2:
        raise PrefixError("it has one epoch, so nothing would be used again")
    if not _fixed(task.train_batches):
        raise PrefixError(
            "the training batches do not say that their rows are the same in every epoch (fixed_rows), as they are "
            "not under augmentation"
        )
    moving = [group.name for group in below if group.num_trainable]
    if moving:
        raise PrefixError(
            f"norm layers of the frozen groups {', '.join(moving)} train (train_norm), so what these give out changes"
        )
