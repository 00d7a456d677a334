"""The run of one phase: what a step needs, where it is, and who observes it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from accelerate import Accelerator
from torch import nn

from ulmfit_pipe.training.layer_groups import LayerGroup, is_norm
from ulmfit_pipe.training.objectives import Objective
from ulmfit_pipe.training.records import EpochRecord, EpochState, Phase, StepRecord, TrainingOptions


@dataclass
class Position:
    """Where in its phase a run is.

    Attributes:
        epoch: The present epoch, counted in the phase.
        state: How much of it is done.
        steps: Optimizer steps of each of the phase's epochs.
    """

    epoch: int
    state: EpochState
    steps: Sequence[int]


@dataclass
class Run:
    """Everything a step needs: the wrapped model and optimizer of one phase; what is frozen is settled by then."""

    model: nn.Module
    groups: Sequence[LayerGroup]
    optimizer: Any
    objective: Objective
    accelerator: Accelerator
    options: TrainingOptions
    observers: "Sequence[Observer]" = ()
    steps: list[StepRecord] = field(default_factory=list)
    step: int = 0
    unit: str = "rows"  # what the batches count as items
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Find once what no step changes."""
        self.frozen = tuple(group.frozen for group in self.groups)
        self.running_statistics = [
            buffer for module in self.model.modules() if is_norm(module) for buffer in module.buffers(recurse=False)
        ]

    def current_lrs(self) -> tuple[float, ...]:
        """Return the learning rate of each layer group, 0 where it is frozen."""
        rates = {group["layer_group"]: float(group["lr"]) for group in self.optimizer.param_groups}
        return tuple(0.0 if frozen else rates[index] for index, frozen in enumerate(self.frozen))


class Observer(Protocol):
    """Observes the run of a phase, on every process: the log of its metrics, the checkpoints it is resumed from."""

    def enter_phase(self, run: Run, phase: Phase, position: Position) -> None:
        """Begin with a phase; the last observer is asked first, so that the others see where it put the run."""
        ...

    def before_batches(self) -> None:
        """Note that an epoch trains from here on; batches that were trained on before have been skipped."""
        ...

    def before_update(self, run: Run) -> None:
        """Look at the gradients of a step, between backward pass and clipping."""
        ...

    def after_step(self, run: Run, position: Position) -> None:
        """Note a step, whose record is the last among the run's steps."""
        ...

    def after_epoch(self, run: Run, position: Position, record: EpochRecord, *, ended: bool) -> None:
        """Note an epoch that was trained and validated, and whether it was the phase's last."""
        ...
