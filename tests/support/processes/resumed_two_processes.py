"""Runs of two processes, stopped and resumed; see training/resume/test_resume_several_processes.py."""

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator

from tests.support.toy_models import (
    ToyBatches,
    ToyLanguageModel,
    groups_of,
    lm_groups_of,
    new_model,
    new_phase,
    new_task,
    token_rows,
    weights_of,
)
from ulmfit_pipe.storage import atomic
from ulmfit_pipe.training.distributed.launch import part_random_streams
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import SequenceObjective
from ulmfit_pipe.training.phases import Plan, gradual_unfreezing, run_phases
from ulmfit_pipe.training.records import Checkpoints, Task, TrainingOptions
from ulmfit_pipe.training.resume.checkpoint_manager import CheckpointManager
from ulmfit_pipe.training.resume.preemption import Preempted
from ulmfit_pipe.training.schedules import Schedule

FAR = 10**9
ALONE = (3, 17)  # batches, those of validation too, after which one process stops: in the first phase and the second


class Stopped(Exception):
    """Raised in the place of a kill, on all processes at the same batch."""


class StoppedAt:
    """An objective that ends the run when it is asked for its n-th batch."""

    def __init__(self, objective: Any, at: int, what: Any = None) -> None:
        self.objective, self.left, self.what = objective, at, what

    def count(self, batch: Any) -> float:
        return self.objective.count(batch)

    def __call__(self, *args: Any) -> Any:
        if self.left == 0 and self.what is None:
            raise Stopped
        if self.left == 0:
            self.what()
        self.left -= 1
        return self.objective(*args)


def classifier(accelerator: Accelerator, *, dropout: float) -> tuple[Any, ...]:
    shares = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    model = new_model(norm="batch", dropout=dropout).double()
    phases = [
        new_phase(3, name="head", epochs=2),
        new_phase(0, 1, 2, 3, name="all", schedule=Schedule.one_cycle(), epochs=2, from_best=True),
    ]
    return model, Plan(tuple(phases), tuple(groups_of(model))), new_task(19, **shares)


def language_model(accelerator: Accelerator) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = ToyLanguageModel()
    shares = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    batches = ToyBatches(token_rows(24), batch_size=4, **shares)
    task = Task(batches, SequenceObjective(), batches, LanguageModelMetric)
    return model, Plan(tuple(gradual_unfreezing(2, lr=1e-2)), tuple(lm_groups_of(model))), task


def train(
    accelerator: Accelerator,
    built: tuple[Any, ...],
    folder: Path | None,
    *,
    stop: int = FAR,
    what: Any = None,
    **changes: Any,
) -> dict[str, Any]:
    model, plan, task = built
    torch.manual_seed(7)
    part_random_streams(accelerator)
    checkpoints = None
    if folder is not None:
        checkpoints = Checkpoints(**{"folder": folder, "every_seconds": None, "every_steps": 1, **changes})
    task = replace(task, objective=StoppedAt(task.objective, stop, what))
    options = TrainingOptions(checkpoints=checkpoints)
    said: list[str] = []
    entered: list[Any] = []
    enter_phase = CheckpointManager.enter_phase

    def noted(self: Any, run: Any, phase: Any, position: Any) -> None:
        enter_phase(self, run, phase, position)
        entered.append(position.state)

    with mock.patch.object(CheckpointManager, "enter_phase", noted):
        history = run_phases(model, plan, task, accelerator=accelerator, options=options, say=said.append)
    return {
        "weights": weights_of(model),
        "losses": [step.loss for step in history.steps],
        "said": said,
        "items": [state.items for state in entered],
    }


def ended(run: Any) -> str:
    """Return how a run ended that should not have come to its end."""
    try:
        run()
    except (Stopped, Preempted, atomic.CheckpointError) as error:
        return f"{type(error).__name__}: {error}"
    return "it came to its end"


def stopped_and_resumed(accelerator: Accelerator, build: Any, folder: Path, stop: int) -> dict[str, Any]:
    first = ended(lambda: train(accelerator, build(), folder, stop=stop))
    return {"first": first, **train(accelerator, build(), folder, resume=True)}


def told_to_stop(accelerator: Accelerator, folder: Path) -> str:
    """Only the second process gets the signal, in the third step."""

    def signal_here() -> None:
        if accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    built = classifier(accelerator, dropout=0.3)
    return ended(lambda: train(accelerator, built, folder, stop=2, what=signal_here, every_steps=None))


def full_disk(accelerator: Accelerator, folder: Path) -> str:
    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sync, atomic._sync = atomic._sync, full
    try:
        return ended(lambda: train(accelerator, classifier(accelerator, dropout=0.3), folder))
    finally:
        atomic._sync = sync


@mock.patch.object(atomic, "_sync", lambda _path: None)
def begin_alone(accelerator: Accelerator, folder: Path) -> dict[str, str]:
    """Begin by one process what two are to go on with, and return how each run ended."""
    runs = {f"alone {stop}": (classifier(accelerator, dropout=0.0), stop) for stop in ALONE}
    runs |= {
        "alone dropout": (classifier(accelerator, dropout=0.3), 3),
        "alone carried": (language_model(accelerator), 3),
    }
    return {
        name: ended(lambda built=built, name=name, stop=stop: train(accelerator, built, folder / name, stop=stop))
        for name, (built, stop) in runs.items()
    }


def go_on_together(accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    """Go on with what one process began, where two may and where they may not."""
    results: dict[str, Any] = {
        f"alone {stop}": train(accelerator, classifier(accelerator, dropout=0.0), folder / f"alone {stop}", resume=True)
        for stop in ALONE
    }
    refused = {"alone dropout": classifier(accelerator, dropout=0.3), "alone carried": language_model(accelerator)}
    for name, built in refused.items():
        results[name] = ended(lambda built=built, name=name: train(accelerator, built, folder / name, resume=True))
    return results


@mock.patch("accelerate.utils.memory.clear_device_cache", lambda **_options: None)  # slower than the toys
@mock.patch.object(atomic, "_sync", lambda _path: None)  # and so is waiting for the disk
def everything(accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    dropped = lambda: classifier(accelerator, dropout=0.3)  # noqa: E731
    words = lambda: language_model(accelerator)  # noqa: E731
    results: dict[str, Any] = {
        "classifier": train(accelerator, dropped(), None),
        "language model": train(accelerator, words(), None),
    }
    for stop in (3, 5, 9, 22):
        results[f"classifier, {stop}"] = stopped_and_resumed(accelerator, dropped, folder / f"c{stop}", stop)
        results[f"language model, {stop}"] = stopped_and_resumed(accelerator, words, folder / f"l{stop}", stop)
    for name, built in {
        "exact": classifier(accelerator, dropout=0.0),
        "dropout": dropped(),
        "carried": words(),
    }.items():
        results[name] = ended(lambda built=built, name=name: train(accelerator, built, folder / name, stop=3))
    results["told to stop"] = told_to_stop(accelerator, folder / "told")
    results["full disk"] = full_disk(accelerator, folder / "full")
    return results | go_on_together(accelerator, folder)
