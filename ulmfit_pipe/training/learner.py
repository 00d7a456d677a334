"""Learner: the object people know from fastai, a thin face over the functions of this folder.

It holds a model, its layer groups and its data; each ``fit*`` logs what it is about to train, and ``save`` keeps what
fastai loses: which groups were frozen and the position in the schedule.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from ulmfit_pipe.console import print_line, send
from ulmfit_pipe.reports.text_tables import Report
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.training import layer_groups as grouping
from ulmfit_pipe.training import lr_finder
from ulmfit_pipe.training.distributed.agreement import find_alike
from ulmfit_pipe.training.distributed.global_norms import accumulation_note
from ulmfit_pipe.training.distributed.launch import new_accelerator, part_random_streams
from ulmfit_pipe.training.distributed.norm_statistics import recompute_norm_statistics
from ulmfit_pipe.training.distributed.processes import reduce_sum
from ulmfit_pipe.training.history import EpochTable, History
from ulmfit_pipe.training.layer_groups import LayerGroup
from ulmfit_pipe.training.logs.model_summary import summarize
from ulmfit_pipe.training.logs.weight_changes import WeightChanges, copy_weights, weight_changes
from ulmfit_pipe.training.loop import evaluate
from ulmfit_pipe.training.optim import LearningRates, spread_lrs
from ulmfit_pipe.training.phases import Plan, run_phases
from ulmfit_pipe.training.records import Batches, EpochRecord, Phase, Task, TrainingOptions
from ulmfit_pipe.training.resume import saved_learner
from ulmfit_pipe.training.schedules import Schedule

if TYPE_CHECKING:
    from ulmfit_pipe.reports.plots import Picture

OF_ONE_RUN = ("deadline", "checkpoints", "trackers", "log_every")  # options that are not part of what a learner is


class Learner:
    """A model, its layer groups, its data, and what has been trained so far.

    Args:
        model: Any module whose output fits the task's objective.
        groups: Its layer groups, from `split_layer_groups`.
        task: Training data, objective, and validation data with its metric if there is any.
        options: Hyperparameters of the loop that hold for every fit.
        accelerator: Device, precision and processes; made when first needed if None.
        lr: Learning rate where a fit names none.
        monitor: Validation metric that selects the best epoch.
        pretrained: Start frozen up to the head, as a pretrained model should; False starts with all groups trained.
        say: Receives each line about what is frozen, loaded or about to train.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[LayerGroup],
        task: Task,
        *,
        options: TrainingOptions | None = None,
        accelerator: Accelerator | None = None,
        lr: float = 1e-3,
        monitor: str = "loss",
        pretrained: bool = True,
        say: Callable[[str], None] = print_line,
    ) -> None:
        self.model = model
        self.layer_groups = list(groups)
        self.task = task
        self.options = options or TrainingOptions()
        self.lr = lr
        self.monitor = monitor
        self.history = History(groups=tuple(self.names))
        self.position: dict[str, Any] | None = None
        self.epochs_done = 0
        self._accelerator = accelerator
        self._say = say
        self._snapshot: dict[str, torch.Tensor] | None = None
        if pretrained and len(self.layer_groups) > 1:
            grouping.freeze(self.layer_groups, train_norm=self.options.train_norm)
        else:
            grouping.unfreeze(self.layer_groups)

    @property
    def accelerator(self) -> Accelerator:
        """Device, precision and processes."""
        if self._accelerator is None:
            self._accelerator = new_accelerator()
        return self._accelerator

    @property
    def names(self) -> list[str]:
        """Names of the layer groups, input side first."""
        return [group.name for group in self.layer_groups]

    def say(self, line: str) -> None:
        """Log a line on the main process."""
        if self._accelerator is None:
            main = os.environ.get("RANK", "0") == "0"  # torchrun's word, before there is an accelerator to ask
        else:
            main = self._accelerator.is_main_process
        if main:
            self._say(line)

    # ---- what is frozen

    def freeze(self) -> None:
        """Freeze every group but the last, and log it."""
        grouping.freeze(self.layer_groups, train_norm=self.options.train_norm)
        self.say(self.describe_frozen())

    def freeze_to(self, n: int) -> None:
        """Freeze the groups before ``n``; ``-2`` trains the last two. Out of range raises."""
        grouping.freeze_to(self.layer_groups, n, train_norm=self.options.train_norm)
        self.say(self.describe_frozen())

    def unfreeze(self) -> None:
        """Train every group, and log it."""
        grouping.unfreeze(self.layer_groups)
        self.say(self.describe_frozen())

    def describe_frozen(self) -> str:
        """Return one line: what is frozen, what trains, how many parameters."""
        return grouping.describe_frozen(self.layer_groups)

    def freeze_map(self) -> dict[str, bool]:
        """Map each parameter's name to whether it is frozen."""
        return grouping.freeze_map(self.layer_groups)

    def summary(self, lr: LearningRates | None = None) -> Report:
        """Return a table per group and layer: output shape, parameters, trainable or frozen, learning rate.

        Args:
            lr: The learning rate to show, as given to a fit; the learner's own by default.
        """
        lrs = spread_lrs(self.lr if lr is None else lr, self.names)
        return summarize(self.model, self.layer_groups, self.task, self.accelerator, lrs=lrs)

    # ---- how far the weights move

    def snapshot(self) -> None:
        """Keep a copy of the weights as they are, for `weight_changes`; it takes their memory once more, on the CPU."""
        self._snapshot = copy_weights(self.model)

    def weight_changes(self) -> WeightChanges:
        """Return how far each layer group and each tensor has moved since the last `snapshot`.

        Raises:
            ValueError: No snapshot was taken.
        """
        if self._snapshot is None:
            raise ValueError("there is nothing to compare with: call snapshot() before training, then weight_changes()")
        return weight_changes(self._snapshot, self.model.state_dict(), self.layer_groups)

    # ---- pictures of the training so far

    def plot_losses(self, path: Path | str | None = None) -> "Picture":
        """Draw training and validation losses over all fits; see `History.plot_losses`."""
        return self.history.plot_losses(path)

    def plot_schedule(self, path: Path | str | None = None) -> "Picture":
        """Draw the learning rate of each layer group over all fits; see `History.plot_schedule`."""
        return self.history.plot_schedule(path)

    # ---- training

    def lr_find(self, **settings: Any) -> lr_finder.LRFinderResult:
        """Sweep the learning rate over the groups that train now; nothing is changed by it.

        Args:
            **settings: ``start_lr``, ``end_lr``, ``num_steps``, ``sweep_groups`` of `lr_finder.lr_find`.
        """
        result = lr_finder.lr_find(
            self.model,
            self.layer_groups,
            self.task,
            accelerator=self.accelerator,
            options=self.options,
            **settings,
        )
        self.say(result.describe())
        return result

    def fit_one_cycle(
        self, epochs: int, lr: LearningRates | None = None, *, start_epoch: int = 0, **curve: Any
    ) -> History:
        """Train the groups that are not frozen with a one-cycle schedule.

        Args:
            epochs: Epochs the cycle spans.
            lr: Peak rates: a number, ``slice(lo, hi)``, ``slice(hi)``, a list or a mapping by group name.
            start_epoch: Continue at this epoch of the cycle instead of its start.
            **curve: ``pct_start``, ``div``, ``div_final``, ``moms`` of `schedules.one_cycle`.

        Raises:
            TypeError: The rate is given under another library's name for it.
        """
        for name in ("max_lr", "lr_max"):
            if name in curve:
                raise TypeError(
                    f"the peak rate is called lr here, not {name}: fit_one_cycle({epochs}, {curve[name]!r})"
                )
        return self._fit("one-cycle", epochs, lr, Schedule.one_cycle(**curve), start_epoch)

    def fit_slanted_triangular(
        self, epochs: int, lr: LearningRates | None = None, *, start_epoch: int = 0, **curve: Any
    ) -> History:
        """Train the groups that are not frozen with the paper's slanted triangle (``cut_frac``, ``ratio``)."""
        return self._fit("slanted triangular", epochs, lr, Schedule.slanted_triangular(**curve), start_epoch)

    def fit_flat_cosine(
        self, epochs: int, lr: LearningRates | None = None, *, start_epoch: int = 0, **curve: Any
    ) -> History:
        """Train the groups that are not frozen at a flat rate that falls as a cosine at the end."""
        return self._fit("flat-cosine", epochs, lr, Schedule.flat_cosine(**curve), start_epoch)

    def fit(self, epochs: int, lr: LearningRates | None = None) -> History:
        """Train the groups that are not frozen at a constant rate."""
        return self._fit("constant", epochs, lr, Schedule.constant(), 0)

    def fine_tune(self, epochs: int, base_lr: float = 2e-3, *, freeze_epochs: int = 1) -> History:
        """Train the head alone, then everything at lower rates: fastai's ``fine_tune``.

        Unlike fastai's it ends with the best epoch's weights, where there is validation data.

        Raises:
            ValueError: The model has one layer group only, so that nothing can be frozen below the head.

        Source: fastai 2.8 callback/schedule.py, ``Learner.fine_tune``.
        """
        grouping.freeze(self.layer_groups, train_norm=self.options.train_norm)
        head = spread_lrs(slice(base_lr), self.names)
        rest = spread_lrs(slice(base_lr / 200, base_lr / 2), self.names)
        last = len(self.names) - 1
        phases = [
            Phase("head", (last,), tuple(head), Schedule.one_cycle(pct_start=0.99), epochs=freeze_epochs),
            Phase(
                "all", tuple(range(last + 1)), tuple(rest), Schedule.one_cycle(pct_start=0.3, div=5.0), epochs=epochs
            ),
        ]
        return self.fit_plan(phases)

    def plan(self, phases: Sequence[Phase]) -> Plan:
        """Bind phases to this model, so that they can be described before they run."""
        return Plan(tuple(phases), tuple(self.layer_groups), train_norm=self.options.train_norm)

    def fit_plan(
        self, plan: Plan | Sequence[Phase], *, keep_best: bool = True, start: EpochRecord | None = None
    ) -> History:
        """Show the plan's table, then run its phases; the best weights over all phases are kept.

        Args:
            plan: A plan, or phases for this model.
            keep_best: End with the best epoch's weights instead of the last ones; needs validation data.
            start: Validation record of the initial weights; they then count as an epoch that may be the best.
        """
        plan = plan if isinstance(plan, Plan) else self.plan(plan)
        self.say(str(plan.describe()))
        return self._run(plan, keep_best=keep_best, start=start)

    def _fit(self, name: str, epochs: int, lr: LearningRates | None, schedule: Schedule, start_epoch: int) -> History:
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"epochs must be a whole number of 1 or more, got {epochs!r}")
        trainable = grouping.trainable_indices(self.layer_groups)
        lrs = tuple(spread_lrs(self.lr if lr is None else lr, self.names))
        phase = Phase(name, trainable, lrs, schedule, epochs=epochs, start_epoch=start_epoch)
        shown = ", ".join(f"{self.names[index]} {lrs[index]:.2e}" for index in trainable)
        span = f"{epochs} epoch{'s' if epochs > 1 else ''}"
        if start_epoch:
            span += f" (from epoch {start_epoch + 1} on)"
        self.say(f"{self.describe_frozen()}\n{span} of {schedule.describe()}; peak rates: {shown}")
        return self._run(self.plan([phase]), keep_best=False)

    def _run(self, plan: Plan, *, keep_best: bool, start: EpochRecord | None = None) -> History:
        table = EpochTable([phase.name for phase in plan.phases])

        def remember(record: EpochRecord) -> None:
            if not send("epoch", {**asdict(record), "epoch": record.epoch + 1}):  # counted from 1, as in the log
                self.say(table.line(record))
            self.epochs_done += 1
            phase = next((phase for phase in plan.phases if phase.name == record.phase), None)
            if phase is None:  # the start
                return
            self.position = {
                "phase": record.phase,
                "epoch": record.epoch + 1,
                "epochs": phase.epochs,
                "step": record.step,
                "total_steps": record.total_steps,
                "schedule": phase.schedule.to_dict(),
                "lrs": list(phase.lrs),
            }

        shapes = {name: list(value.shape) for name, value in self.model.named_parameters()}
        numbers = {"phases": [asdict(phase) for phase in plan.phases], "parameters": shapes}
        find_alike(self.accelerator, lambda: numbers, lambda found: found)
        part_random_streams(self.accelerator)
        if note := accumulation_note(self.model, self.task.objective, self.options.accumulation_steps):
            self.say(note)
        history = run_phases(
            self.model,
            plan,
            self.task,
            accelerator=self.accelerator,
            options=self.options,
            monitor=self.monitor,
            keep_best=keep_best,
            first_epoch=self.epochs_done,
            first_step=len(self.history.steps),
            start=start,
            on_epoch=remember,
            say=self.say,
        )
        self.history.epochs.extend(history.epochs)
        self.history.steps.extend(history.steps)
        self.history.best = history.best or self.history.best
        if history.best is not None and self.position is not None:
            self.position["weights_of"] = {"phase": history.best.phase, "epoch": history.best.epoch + 1}
        if history.best is not None:
            value = f"{self.monitor} {history.best.metrics[self.monitor]:.4f}"
            self.say(f"kept: the weights of {history.best.phase}, epoch {history.best.epoch + 1}, the best by {value}")
        return history

    def validate(self, batches: Batches | None = None) -> dict[str, float]:
        """Evaluate on the validation data, or on other batches.

        Raises:
            ValueError: There is neither.
        """
        batches = batches if batches is not None else self.task.valid_batches
        if batches is None or self.task.new_metric is None:
            raise ValueError("there is no validation data: give batches, or a Task with valid_batches and new_metric")
        self.model.to(self.accelerator.device)
        return evaluate(self.model, batches, self.task.objective, self.task.new_metric(), self.accelerator)

    def recompute_norm_statistics(self) -> list[str]:
        """Recompute the statistics of every batch norm from the training data; weights stay.

        Call it when training is over. Metrics measured before it are those of the old statistics.

        Returns:
            Names of the recomputed norms; empty if the model has no batch norms.
        """
        names = recompute_norm_statistics(self.model, self.task.train_batches, self.task.objective, self.accelerator)
        self.say(f"batch-norm statistics taken anew from the training data: {', '.join(names) or 'the model has none'}")
        return names

    def continue_on(self, train_batches: Batches, valid_batches: Batches | None = None) -> None:
        """Continue from the present weights and freeze state on other or further data.

        Args:
            train_batches: The data to train on from now on.
            valid_batches: Validation data; by default what was there stays.

        Raises:
            TypeError: What is given is a table or list, not batches.
        """
        for given in (train_batches, valid_batches):
            if given is not None and not hasattr(given, "set_epoch"):
                raise TypeError(
                    f"continue_on takes batches, such as ClassifierBatches, got {type(given).__name__}; make them from "
                    "the tokenized table, or build a learner from the new table and load the saved one into it"
                )
        if valid_batches is None:
            valid_batches = self.task.valid_batches
        self.task = replace(self.task, train_batches=train_batches, valid_batches=valid_batches)
        self.say(f"new training data: {len(train_batches)} batches per epoch; {self.describe_frozen()}")

    # ---- on disk

    def save(self, path: Path | str, *, add_files: Callable[[Path], None] | None = None) -> Path:
        """Save weights, architecture, freeze state and schedule position in a folder, atomically.

        Args:
            path: The folder; one that holds something else than a saved learner is refused.
            add_files: Writes further files (a tokenizer, say) into the folder before it takes its place.

        Returns:
            The folder.

        Raises:
            CheckpointError: The folder holds something else, or the disk is full; every process raises.
        """
        state = {
            "trainable": [group.name for group in self.layer_groups if not group.frozen],
            "position": self.position,
            "epochs_done": self.epochs_done,
            "options": {key: value for key, value in vars(self.options).items() if key not in OF_ONE_RUN},
            "metrics": self.history.epochs[-1].metrics if self.history.epochs else {},
            "saved_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        failure: Exception | None = None
        if self.accelerator.is_main_process:
            try:
                saved_learner.save(path, self.model, self.layer_groups, state, add_files=add_files)
            except Exception as error:  # raised below, once the other processes know
                failure = error
        failed = reduce_sum(self.accelerator)(torch.tensor([float(failure is not None)]))
        if failure is not None:
            raise failure
        if failed > 0:
            raise CheckpointError(f"the main process could not save to {path}; see its own message")
        return Path(path)

    def load(self, path: Path | str) -> "Learner":
        """Load weights, freeze state and schedule position from a saved folder, and log what is frozen.

        Raises:
            CheckpointError: The folder is not a saved learner, was cut short, or is of another architecture.
        """
        state = saved_learner.load(path, self.model, self.layer_groups)
        chosen = [group.index for group in self.layer_groups if group.name in state["trainable"]]
        grouping.set_trainable(self.layer_groups, chosen, train_norm=self.options.train_norm)
        self.position, self.epochs_done = state["position"], state["epochs_done"]
        where = "before any training"
        if self.position is not None:
            where = (
                f"after epoch {self.position['epoch']} of {self.position['epochs']} of {self.position['phase']!r} "
                f"(step {self.position['step']} of {self.position['total_steps']})"
            )
            if "weights_of" in self.position:
                where += ", weights of epoch {epoch} of {phase!r}".format(**self.position["weights_of"])
        self.say(f"loaded {path} as saved {where}; {self.describe_frozen()}")
        return self
