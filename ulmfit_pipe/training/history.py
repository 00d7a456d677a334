"""What a run of phases did, its table, and the best-checkpoint tracker."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ulmfit_pipe.reports.text_tables import Report, header_lines, table_line
from ulmfit_pipe.training.best_weights import BestWeights
from ulmfit_pipe.training.records import EpochRecord, Phase, StepRecord

if TYPE_CHECKING:
    from ulmfit_pipe.reports.plots import Picture


def _cell(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _header(metrics: Sequence[str]) -> tuple[str, ...]:
    return ("phase", "epoch", "train loss", *metrics, "items/s", "seconds")


def _row(record: EpochRecord, metrics: Sequence[str]) -> tuple[str, ...]:
    values = [_cell(record.metrics.get(name, math.nan)) for name in metrics]
    speed, seconds = f"{record.items_per_second:,.0f}", f"{record.seconds:.1f}"
    return (record.phase, str(record.epoch + 1), f"{record.train_loss:.4f}", *values, speed, seconds)


class EpochTable:
    """The table of a training while it runs: a line per epoch, its header above the first one.

    Args:
        phases: Names of all phases that may come, for the width of their column.
    """

    NARROWEST = 8  # characters of a column of numbers

    def __init__(self, phases: Sequence[str]) -> None:
        self.phases = phases
        self.metrics: list[str] | None = None

    def line(self, record: EpochRecord) -> str:
        """Return an epoch's row of the table; before the first one comes the header."""
        first = self.metrics is None
        if self.metrics is None:
            self.metrics = list(record.metrics)
        names = _header(self.metrics)
        longest = max(map(len, (*self.phases, record.phase, names[0])))
        widths = [longest, len(names[1]), *(max(len(name), self.NARROWEST) for name in names[2:])]
        line = table_line(_row(record, self.metrics), widths)
        return "\n".join([*header_lines(names, widths), line]) if first else line


@dataclass(repr=False)
class History:
    """What a run of phases did, epoch by epoch and step by step.

    Attributes:
        epochs: One record per epoch over all phases.
        steps: One record an optimizer step over all phases.
        best: The record whose weights were kept, or None without validation.
        earlier_seconds: Time that the training had taken before it was resumed, in this process not measured.
        groups: Names of the layer groups, input side first; each step has a learning rate for each.
    """

    epochs: list[EpochRecord] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    best: EpochRecord | None = None
    earlier_seconds: float = 0.0
    groups: tuple[str, ...] = ()

    def describe(self) -> Report:
        """Return a table with a row per epoch; the epoch whose weights were kept is marked."""
        names = list(dict.fromkeys(name for record in self.epochs for name in record.metrics))
        rows = [(*_row(record, names), "best" if record is self.best else "") for record in self.epochs]
        return Report.of([(*_header(names), ""), *rows])

    def plot_losses(self, path: Path | str | None = None) -> "Picture":
        """Draw the losses over the steps of all phases; saved as PNG where a path is given.

        Raises:
            ValueError: No step was taken.
        """
        from ulmfit_pipe.reports.plots import plot_losses  # drawing is loaded by who draws

        self._check_steps()
        epochs = [
            (end, record.train_loss, record.metrics.get("loss"))
            for end, record in zip(self._ends(), self.epochs, strict=True)
        ]
        return plot_losses([step.loss for step in self.steps], epochs, phases=self._phases(), path=path)

    def plot_schedule(self, path: Path | str | None = None) -> "Picture":
        """Draw the learning rate of each layer group over the steps, a gap where it was frozen; saved as PNG likewise.

        Raises:
            ValueError: No step was taken.
        """
        from ulmfit_pipe.reports.plots import plot_schedule  # drawing is loaded by who draws

        self._check_steps()
        columns = list(zip(*(step.lrs for step in self.steps), strict=True))
        names = self.groups or [f"group {place}" for place in range(len(columns))]
        return plot_schedule(dict(zip(names, columns, strict=True)), phases=self._phases(), path=path)

    def _check_steps(self) -> None:
        if not self.steps:
            raise ValueError("there is nothing to draw: no step was taken yet; call a fit first")

    def _ends(self) -> list[int]:
        """Return how many steps over all phases were taken by the end of each epoch."""
        ends, place = [], 0
        for record in self.epochs:
            start = place
            while place < len(self.steps) and self._in_epoch(place, start, record):
                place += 1
            ends.append(place)
        return ends

    def _in_epoch(self, place: int, start: int, record: EpochRecord) -> bool:
        """Whether a step belongs to the epoch that begins at `start`: steps count anew from each phase on."""
        counts_on = place == start or (record.step > 1 and self.steps[place].step >= self.steps[place - 1].step)
        return counts_on and self.steps[place].step < record.step

    def _phases(self) -> list[tuple[str, int]]:
        """Return name and first step of each phase that took steps; a phase that is fitted again counts again."""
        found: list[tuple[str, int]] = []
        before, start = None, 0
        for record, end in zip(self.epochs, self._ends(), strict=True):
            begins = before is None or record.phase != before.phase or record.epoch <= before.epoch
            if begins and end > start:
                found.append((record.phase, start))
            before, start = record, end
        return found

    def __repr__(self) -> str:
        """Return a short line, as a prompt or a notebook shows it: a long training has thousands of steps."""
        best = f", best: {self.best.phase}, epoch {self.best.epoch + 1}" if self.best is not None else ""
        return f"History({len(self.epochs)} epochs, {len(self.steps)} steps{best})"

    def _repr_html_(self) -> str:
        """Return the table of epochs for a notebook."""
        return self.describe()._repr_html_()


class BestTracker:
    """Best-checkpoint tracker: the history and the best weights over all phases, and early stopping of a phase.

    Args:
        model: The bare model.
        monitor: Validation metric that selects the best epoch.
        validates: Whether there is validation data.
        keeps: Whether the best weights will be used; they are copied only then.
    """

    def __init__(self, model: nn.Module, monitor: str, *, validates: bool, keeps: bool) -> None:
        self.model = model
        self.history = History()
        self.best = BestWeights(monitor)
        self.validates = validates
        self.keeps = keeps
        self.values: list[float] = []

    def start(self, phase: Phase) -> None:
        """Begin a phase, from the best weights so far if `Phase.from_best` asks for them."""
        if phase.from_best:
            self.best.restore(self.model)
        self.values = []

    def enter_start(self, record: EpochRecord) -> None:
        """Record the validation of the weights before the first phase; they may be the best."""
        self.history.epochs.append(record)
        if self.validates and self.keeps:
            self.best.offer(record, self.model)

    def after_epoch(self, record: EpochRecord, phase: Phase, on_epoch: Callable[[EpochRecord], None] | None) -> bool:
        """Record an epoch, and return whether its phase stops early (`Phase.patience`)."""
        self.history.epochs.append(record)
        if on_epoch is not None:
            on_epoch(record)
        if not self.validates:
            return False
        if self.keeps:
            self.best.offer(record, self.model)
        self.values.append(self.best.value(record))
        since_best = len(self.values) - 1 - self.values.index(max(self.values))
        return phase.patience is not None and since_best >= phase.patience

    def restore_best(self) -> None:
        """Put the best weights into the model, and record their epoch in the history."""
        if self.validates:
            self.best.restore(self.model)
            self.history.best = self.best.record
