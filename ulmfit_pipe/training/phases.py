"""The named unfreezing plans, and running one plan with best weights kept over all its phases.

A plan is a list of phases made before any training, so that it can be read, drawn and checked first.

Sources: gradual unfreezing, Howard & Ruder 2018, section 3.3; chain-thaw, Felbo et al. 2017; LP-FT, Kumar et al. 2022.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

from accelerate import Accelerator
from torch import nn

from ulmfit_pipe.reports.text_tables import Report
from ulmfit_pipe.training.distributed.processes import time_used
from ulmfit_pipe.training.history import BestTracker, History
from ulmfit_pipe.training.layer_groups import LayerGroup, norm_parameter_names
from ulmfit_pipe.training.logs.events import run_log
from ulmfit_pipe.training.loop import fit
from ulmfit_pipe.training.optim import LR_DECAY, discriminative_lrs
from ulmfit_pipe.training.records import EpochRecord, Phase, Task, TrainingOptions
from ulmfit_pipe.training.resume.checkpoint_manager import CheckpointManager
from ulmfit_pipe.training.resume.checks import can_keep
from ulmfit_pipe.training.resume.preemption import noting_sigterm
from ulmfit_pipe.training.schedules import Schedule


def full(
    num_groups: int, *, lr: float, epochs: int = 1, decay: float = LR_DECAY, schedule: Schedule | None = None
) -> list[Phase]:
    """Train all groups at once, with discriminative rates (``decay=1`` for equal ones)."""
    return [_phase("full", range(num_groups), num_groups, lr, epochs, decay, schedule)]


def head_only(
    num_groups: int,
    *,
    lr: float,
    epochs: int = 1,
    schedule: Schedule | None = None,
    patience: int | None = None,
) -> list[Phase]:
    """Train the last group only: the head over a fixed encoder."""
    return [_phase("head only", [num_groups - 1], num_groups, lr, epochs, 1.0, schedule, patience=patience)]


def gradual_unfreezing(
    num_groups: int,
    *,
    lr: float,
    epochs_per_phase: int = 1,
    final_epochs: int = 1,
    decay: float = LR_DECAY,
    schedule: Schedule | None = None,
    patience: int | None = None,
) -> list[Phase]:
    """Unfreeze the last group first, one more each phase, and end with all of them.

    Args:
        num_groups: Layer groups of the model.
        lr: Learning rate of the last group.
        epochs_per_phase: Epochs of each phase that leaves something frozen.
        final_epochs: Epochs of the last phase, with every group trained.
        decay: Ratio of the learning rates of neighbouring groups.
        schedule: Curve of each phase; slanted triangular by default.
        patience: Early stop of the last phase, in epochs.

    Source: Howard & Ruder 2018, section 3.3.
    """
    phases = [
        _phase(
            f"last {count}",
            range(num_groups - count, num_groups),
            num_groups,
            lr,
            epochs_per_phase,
            decay,
            schedule,
        )
        for count in range(1, num_groups)
    ]
    last = _phase("all", range(num_groups), num_groups, lr, final_epochs, decay, schedule, patience=patience)
    return [*phases, last]


def chain_thaw(
    num_groups: int,
    *,
    lr: float,
    epochs_per_phase: int = 1,
    final_epochs: int = 1,
    schedule: Schedule | None = None,
    patience: int | None = None,
) -> list[Phase]:
    """Train the head, then each group alone from the first to the last, then all together.

    Source: Felbo et al. 2017 (DeepMoji), section 3.3.
    """
    order = [num_groups - 1, *range(num_groups - 1)]
    phases = [_phase(f"only {index}", [index], num_groups, lr, epochs_per_phase, 1.0, schedule) for index in order]
    last = _phase("all", range(num_groups), num_groups, lr, final_epochs, 1.0, schedule, patience=patience)
    return [*phases, last]


def linear_probe_then_fine_tune(
    num_groups: int,
    *,
    head_lr: float,
    lr: float,
    max_head_epochs: int = 20,
    patience: int = 2,
    epochs: int = 1,
    decay: float = 1.0,
    schedule: Schedule | None = None,
) -> list[Phase]:
    """Train the head to convergence at a constant rate, then everything from the best head on (LP-FT).

    Args:
        num_groups: Layer groups of the model.
        head_lr: Learning rate of the head alone.
        lr: Learning rate of the last group when all train.
        max_head_epochs: Bound on the head's epochs.
        patience: Epochs without a better validation value after which the head has converged.
        epochs: Epochs with all groups.
        decay: Ratio of neighbouring groups' rates when all train.
        schedule: Curve of the second phase.

    Source: Kumar et al. 2022.
    """
    head = _phase(
        "head",
        [num_groups - 1],
        num_groups,
        head_lr,
        max_head_epochs,
        1.0,
        Schedule.constant(),
        patience=patience,
    )
    rest = _phase("all", range(num_groups), num_groups, lr, epochs, decay, schedule, from_best=True)
    return [head, rest]


def _phase(
    name: str,
    trainable: Iterable[int],
    num_groups: int,
    lr: float,
    epochs: int,
    decay: float,
    schedule: Schedule | None,
    *,
    patience: int | None = None,
    from_best: bool = False,
) -> Phase:
    if num_groups < 2 and name != "full":
        raise ValueError(f"an unfreezing plan needs at least 2 layer groups, got {num_groups!r}; use full() for one")
    return Phase(
        name=name,
        trainable=tuple(trainable),
        lrs=tuple(discriminative_lrs(lr, num_groups, decay=decay)),
        schedule=schedule or Schedule.slanted_triangular(),
        epochs=epochs,
        patience=patience,
        from_best=from_best,
    )


def trainable_parameters(groups: Sequence[LayerGroup], trainable: Iterable[int], *, train_norm: bool = False) -> int:
    """Count the scalars a phase trains, without touching the model."""
    chosen = set(trainable)
    total = 0
    for group in groups:
        norms = norm_parameter_names(group) if train_norm else frozenset()
        total += sum(p.numel() for name, p in group.parameters if group.index in chosen or name in norms)
    return total


@dataclass(frozen=True)
class Plan:
    """Phases for a certain model, to be read before they run.

    Attributes:
        phases: The phases in order.
        groups: Layer groups of the model they are for.
        train_norm: Whether norm layers of frozen groups train.
    """

    phases: tuple[Phase, ...]
    groups: tuple[LayerGroup, ...]
    train_norm: bool = False

    def __post_init__(self) -> None:
        """Check that the phases fit the groups, and that their names are unique."""
        if not self.phases:
            raise ValueError("a plan needs at least one phase, got none")
        named = [phase.name for phase in self.phases]
        if len(set(named)) < len(named):
            raise ValueError(f"phases of a plan need different names, got {named}")
        for phase in self.phases:
            if len(phase.lrs) != len(self.groups) or not set(phase.trainable) <= set(range(len(self.groups))):
                raise ValueError(
                    f"phase {phase.name!r} is made for {len(phase.lrs)} layer groups, the model has "
                    f"{len(self.groups)} ({', '.join(group.name for group in self.groups)}): give it one learning "
                    "rate for each"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the phases and the sizes of the layer groups as plain values, the fingerprint of a plan."""
        return {
            "phases": [{**asdict(phase), "schedule": phase.schedule.to_dict()} for phase in self.phases],
            "groups": [{"name": group.name, "parameters": group.num_parameters} for group in self.groups],
        }

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return self.describe()._repr_html_()

    def describe(self) -> Report:
        """Return a table: phase, trainable groups, learning rate per group, schedule, epochs, parameters trained."""
        rows = [("phase", "trains", "learning rates", "schedule", "epochs", "parameters")]
        total = sum(group.num_parameters for group in self.groups)
        for number, phase in enumerate(self.phases, start=1):
            names = [self.groups[index].name for index in phase.trainable]
            rates = ", ".join(
                f"{phase.lrs[group.index]:.2e}" if group.index in phase.trainable else "-" for group in self.groups
            )
            moved = trainable_parameters(self.groups, phase.trainable, train_norm=self.train_norm)
            epochs = str(phase.epochs) if phase.patience is None else f"<= {phase.epochs}"
            rows.append(
                (
                    f"{number} {phase.name}",
                    " ".join(names),
                    rates,
                    phase.schedule.describe(),
                    epochs,
                    f"{moved:,} of {total:,}",
                )
            )
        norms = self.train_norm and any(norm_parameter_names(group) for group in self.groups[:-1])
        return Report.of(rows, *(["norm layers of frozen groups train too (train_norm)"] if norms else []))


def run_phases(
    model: nn.Module,
    plan: Plan,
    task: Task,
    *,
    accelerator: Accelerator,
    options: TrainingOptions,
    monitor: str = "loss",
    keep_best: bool = True,
    first_epoch: int = 0,
    first_step: int = 0,
    start: EpochRecord | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> History:
    """Run the phases of a plan one after another; best weights are chosen over all of them.

    Args:
        model: The bare model.
        plan: Phases and layer groups.
        task: Data and objective.
        accelerator: Device, precision and processes.
        options: Hyperparameters of the loop.
        monitor: Validation metric that selects the best epoch.
        keep_best: End with the best epoch's weights (needs validation data).
        first_epoch: Index of the first epoch, for the data's order.
        first_step: Index of the first step, for `TrainingOptions.trackers`.
        start: Validation record of the initial weights, or None; the first record of the history.
        on_epoch: Called after every epoch.
        say: Receives a log line on whether `TrainingOptions.cache_frozen` takes effect.

    Returns:
        The history of all phases, also of those before the checkpoint that was resumed.
    """
    tracker = BestTracker(
        model,
        monitor,
        validates=task.valid_batches is not None and task.new_metric is not None,
        keeps=keep_best or any(phase.from_best for phase in plan.phases),
    )
    facts = {"monitor": monitor, "keep_best": keep_best, "first_epoch": first_epoch}
    with (
        _checkpoint_manager(model, plan, tracker, accelerator, options, facts, say) as saver,
        run_log(options, accelerator, plan.phases, tracker.history, first=(first_step, first_epoch)) as log,
    ):
        if start is not None and not tracker.history.epochs:
            tracker.enter_start(start)
        for record in tracker.history.epochs if on_epoch is not None else ():
            on_epoch(record)  # type: ignore[misc]
        if log is not None and (saver is None or not saver.inside_phase):
            log.begin()  # otherwise the phase begins it, as it knows its steps
        for number in takewhile(lambda _: time_used(accelerator, options) < 1, range(len(plan.phases))):
            if saver is None or number >= saver.phase:
                numbers: dict[str, Any] = {"first_epoch": first_epoch, "on_epoch": on_epoch, "options": options}
                observers = tuple(one for one in (log, saver) if one is not None)
                others: dict[str, Any] = {"task": task, "accelerator": accelerator, "say": say, "observers": observers}
                _run_phase(tracker, plan, number, begun=saver is not None and saver.inside_phase, **numbers, **others)
    if keep_best:
        tracker.restore_best()
    return tracker.history


def _run_phase(
    tracker: BestTracker,
    plan: Plan,
    number: int,
    *,
    options: TrainingOptions,
    first_epoch: int,
    on_epoch: Callable[[EpochRecord], None] | None,
    begun: bool,
    **others: Any,
) -> None:
    """Run one phase of a plan, or the rest of it if a checkpoint is inside it."""
    phase = plan.phases[number]
    tracker.history.groups = tuple(group.name for group in plan.groups)
    if not begun:
        tracker.start(phase)
    before = sum(record.phase != phase.name for record in tracker.history.epochs)
    _, steps = fit(
        tracker.model,
        plan.groups,
        phase,
        options=replace(options, deadline=_phase_deadline(options.deadline, plan.phases[number:])),
        first_epoch=max(0, first_epoch + before - phase.start_epoch),
        on_epoch=partial(tracker.after_epoch, phase=phase, on_epoch=on_epoch),
        **others,
    )
    tracker.history.steps.extend(steps)


@contextlib.contextmanager
def _checkpoint_manager(
    model: nn.Module,
    plan: Plan,
    tracker: BestTracker,
    accelerator: Accelerator,
    options: TrainingOptions,
    facts: dict[str, Any],
    say: Callable[[str], None] | None,
) -> Iterator[CheckpointManager | None]:
    """Yield the manager that restores and saves the run, with SIGTERM handled; None if no checkpoints are wanted."""
    say = say or (lambda _line: None)
    kept = options.checkpoints
    if kept is None or not can_keep(accelerator, resume=kept.resume, say=say):
        yield None
        return
    with noting_sigterm() as stop_asked:
        saver = CheckpointManager(
            kept,
            model,
            accelerator,
            tracker,
            plan={**plan.to_dict(), **facts, "options": options.to_dict(), "precision": accelerator.mixed_precision},
            stop_asked=stop_asked,
            say=say,
        )
        tracker.history.earlier_seconds = saver.earlier_seconds
        yield saver


def _phase_deadline(deadline: float | None, phases: Sequence[Phase]) -> float | None:
    """Return the deadline of the first remaining phase: its share, by epochs, of the time left."""
    if deadline is None:
        return None
    now = time.monotonic()
    return now + (deadline - now) * phases[0].epochs / sum(phase.epochs for phase in phases)
