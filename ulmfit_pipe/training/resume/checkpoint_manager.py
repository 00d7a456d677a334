"""Resuming a training that was killed: checkpoints at steps, and the run restored from the newest.

`records.Checkpoints` defines where and how often; `CheckpointManager` does it for one run. The order of the data is
a function of seed and epoch and the random generators are kept, so that on a CPU the finished run has the bits of one
that was never killed. Nothing is pickled: see `checkpoint_store` for the files.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.storage.record_differences import as_json
from ulmfit_pipe.training.best_weights import BestWeights
from ulmfit_pipe.training.distributed.processes import gather_bytes, reduce_sum
from ulmfit_pipe.training.records import Checkpoints, EpochRecord, EpochState, Phase
from ulmfit_pipe.training.resume import checkpoint_store as store
from ulmfit_pipe.training.resume import run_state
from ulmfit_pipe.training.resume.checks import (
    other_environment,
    refuse_impossible,
    refuse_other_processes,
    refuse_other_training,
)
from ulmfit_pipe.training.resume.preemption import Preempted
from ulmfit_pipe.training.run import Position, Run

MODEL, OPTIMIZER, BEST, STEPS = (f"{name}.safetensors" for name in ("model", "optimizer", "best", "steps"))
# What restoring a checkpoint may raise if its entries were altered.
ALTERED = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OSError, SafetensorError)
MOST_OF_THE_TIME = 0.05  # largest share of it for checkpoints saved by time, whatever the model and disk


class Progress(Protocol):
    """State of a run besides the model: its history, best weights, and the present phase's validation values."""

    history: Any
    best: BestWeights
    values: list[float]


class CheckpointManager:
    """Saves checkpoints of one run of phases at steps, and restores the newest.

    Args:
        checkpoints: Where and how often.
        model: The bare model.
        accelerator: The processes; all of them make the same calls.
        progress: History and best weights of the run.
        plan: Everything that the training depends on; a checkpoint of another plan is refused.
        stop_asked: Returns whether this process was asked to stop.
        say: Receives log lines on what was found and saved.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        model: nn.Module,
        accelerator: Accelerator,
        progress: Progress,
        *,
        plan: Mapping[str, Any],
        stop_asked: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self.checkpoints, self.model, self.accelerator = checkpoints, model, accelerator
        self.progress, self.stop_asked, self.say = progress, stop_asked, say
        self.plan = as_json(plan)
        self.phase = 0  # index of the first phase to run
        self.earlier_seconds = 0.0
        self._found: tuple[Path, dict[str, Any]] | None = None
        self._random: dict[str, torch.Tensor] | None = None
        self._random_used = False
        self._steps_since, self._pause = 0, 0.0
        self._saved_at = self._began = time.monotonic()
        self._open()
        self._random_start = run_state.random_tensors(accelerator.device)

    @property
    def inside_phase(self) -> bool:
        """Whether the first phase to run has begun before."""
        return self._found is not None and self._found[1]["position"]["epoch"] is not None

    # ---- resuming

    def _open(self) -> None:
        """Find the checkpoint to resume from on the main process, agree on it, and read it on all."""
        found: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            try:
                found = self._look()
            except (CheckpointError, OSError) as error:
                found = {"error": str(error)}
        found = json.loads(gather_bytes(json.dumps(found).encode(), self.accelerator)[0])
        if "error" in found:
            raise CheckpointError(found["error"])
        if "name" in found:
            path = self.checkpoints.folder / found["name"]
            with _altered(path):
                self._restore(path, store.read_checkpoint(path))

    def _look(self) -> dict[str, Any]:
        folder = self.checkpoints.folder
        store.tidy(folder)
        if not self.checkpoints.resume:
            for path in store.checkpoints_in(folder):
                shutil.rmtree(path)
            return {}
        newest = store.newest_whole(folder, self.say)
        if newest is None:
            self.say(f"there is no checkpoint in {folder}: the training starts from the beginning")
            return {}
        path, state = newest
        asked = {"identity": as_json(self.checkpoints.identity), "plan": self.plan}
        refuse_other_training(state, asked, folder)
        refuse_impossible(state, self.plan, path)
        if line := refuse_other_processes(state, self.accelerator.num_processes, folder):
            self.say(line)
        if line := other_environment(state, self._environment()):
            self.say(line)
        return {"name": path.name}

    def _environment(self) -> dict[str, Any]:
        here = {"device": self.accelerator.device.type, "threads": torch.get_num_threads()}
        return as_json({"torch": torch.__version__, **here, **self.checkpoints.versions})

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        """Restore weights, history and best weights; the optimizer follows once its phase has built it."""
        self._found = (path, state)
        position, progress = state["position"], self.progress
        self.phase, self.earlier_seconds = position["phase"], state["seconds"]
        self._random_used = state["random_used"]
        run_state.restore_model(self.model, store.load_part(path, MODEL))
        steps = run_state.steps_from(store.load_part(path, STEPS))
        if position["steps_of_phase"] > len(steps):
            raise ValueError(f"steps_of_phase is {position['steps_of_phase']}, {len(steps)} steps are recorded")
        progress.history.epochs = [
            EpochRecord(**{**record, "lrs": tuple(record["lrs"])}) for record in state["history"]
        ]
        progress.history.steps = steps[: len(steps) - position["steps_of_phase"]]
        progress.values = list(state["values"])
        if state["best"] is not None:
            best = progress.history.epochs[state["best"]]
            progress.best.record = best
            progress.best.weights = run_state.with_ties(store.load_part(path, BEST), state["ties"])
        alike = state["world_size"] == self.accelerator.num_processes
        self._own_file = f"rank-{self.accelerator.process_index if alike else 0}.safetensors"
        tensors = store.load_part(path, self._own_file)
        if alike:  # otherwise nothing was drawn before, and each process has its own stream by now
            self._random = {name[7:]: value for name, value in tensors.items() if name.startswith("random/")}
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if position["epoch"] is None:
            self.restore_random()
        self.say(f"resuming from {path}: {len(steps)} steps done, {_place(position)}")

    def enter_phase(self, run: Run, phase: Phase, position: Position) -> None:
        """Put a phase's run back where the checkpoint left it, if that was inside this phase.

        Args:
            run: The phase's run, its optimizer new.
            phase: The phase.
            position: Where it begins; it is set to where the checkpoint was saved.

        Raises:
            CheckpointError: The epochs have other numbers of steps than they had.
        """
        self._steps = list(position.steps)
        if not self.inside_phase or self._found is None:
            return
        path, state = self._found
        saved = state["position"]
        if saved["steps"] != self._steps:
            raise CheckpointError(
                f"the epochs of this phase have {self._steps} optimizer steps, they had {saved['steps']} when "
                f"{path} was saved: data or batch sizes differ; delete that folder to start over"
            )
        with _altered(path):
            run_state.restore_optimizer(run.optimizer, self.model, store.load_part(path, OPTIMIZER))
            for group, numbers in zip(run.optimizer.param_groups, state["optimizer"], strict=True):
                group.update({"lr": numbers["lr"], "betas": tuple(numbers["betas"])})
            records = run_state.steps_from(store.load_part(path, STEPS))
            run.step = saved["step"]
            run.steps.extend(records[len(records) - saved["steps_of_phase"] :])
            share = state["sums"]["items"] / self.accelerator.num_processes  # of what all processes had trained on
            position.epoch = saved["epoch"]
            position.state = EpochState(**{**state["sums"], "items": share}, carry=self._carry(path))
        if position.state.batch == 0:
            self.restore_random()
        self._found = None  # the phases after this one begin at their start

    def _carry(self, path: Path) -> Any:
        with safe_open(path / self._own_file, framework="pt") as file:
            outline = file.metadata()["carry"]
        tensors = store.load_part(path, self._own_file)
        carried = {name[6:]: value for name, value in tensors.items() if name.startswith("carry/")}
        return run_state.rebuild_carry(carried, outline, self.accelerator.device)

    def restore_random(self) -> None:
        """Put the random generators back, once: after the batches that were seen before have been skipped."""
        if self._random is not None:
            run_state.restore_random(self._random, self.accelerator.device)
            self._random = None
            self._random_start = run_state.random_tensors(self.accelerator.device)

    def before_batches(self) -> None:
        """Put the random generators back: the batches that were seen before have been skipped."""
        self.restore_random()

    # ---- saving

    def before_update(self, run: Run) -> None:
        """Do nothing: gradients are not saved."""

    def after_step(self, run: Run, position: Position) -> None:
        """Save after a step if it is time to, and stop if any process was asked to.

        Raises:
            Preempted: A process was stopped by SIGTERM; all of them raise.
            CheckpointError: There was no room to save; all processes raise.
        """
        self._steps_since += 1
        self._save_if_asked(run, position.state, position.epoch)

    def after_epoch(self, run: Run, position: Position, record: EpochRecord, *, ended: bool) -> None:
        """Save after an epoch's validation if it is due, and stop if any process was asked to; as `after_step`."""
        if ended:
            self.phase += 1
        self._save_if_asked(run, EpochState(), None if ended else position.epoch + 1)

    def _save_if_asked(self, run: Run, epoch: EpochState, number: int | None) -> None:
        due, stop = self._agreed()
        if not due and not stop:
            return
        self._save(run, epoch, number)
        if stop:
            raise Preempted(
                f"stopped by SIGTERM after {self._steps_done(run)} steps, which are saved in "
                f"{self.checkpoints.folder}; run the same command again with --resume true"
            )

    def _agreed(self) -> tuple[bool, bool]:
        """Return whether it is time to save and whether to stop, the same on all processes."""
        every = self.checkpoints.every_seconds
        by_clock = every is not None and time.monotonic() - self._saved_at >= max(every, self._pause if every else 0)
        by_clock = by_clock and self.accelerator.is_main_process
        asked = reduce_sum(self.accelerator)(torch.tensor([float(by_clock), float(self.stop_asked())]))
        by_count = self.checkpoints.every_steps is not None and self._steps_since >= self.checkpoints.every_steps
        return by_count or bool(asked[0] > 0), bool(asked[1] > 0)

    def _steps_done(self, run: Run) -> int:
        return len(self.progress.history.steps) + len(run.steps)

    def _save(self, run: Run, epoch: EpochState, number: int | None) -> None:
        started = time.monotonic()
        ranks = gather_bytes(self._own_part(epoch), self.accelerator)
        used = not run_state.same_random(self._random_start, run_state.random_tensors(self.accelerator.device))
        sums = torch.tensor([float(used), epoch.items], dtype=torch.float64)
        processes_used, items = reduce_sum(self.accelerator)(sums).tolist()
        self._random_used = self._random_used or processes_used > 0
        failure: Exception | None = None
        if self.accelerator.is_main_process:
            try:
                self._write(run, replace(epoch, items=items), number, ranks)
            except CheckpointError as error:  # raised below, once the other processes know
                failure = error
        failed = reduce_sum(self.accelerator)(torch.tensor([float(failure is not None)]))
        if failure is not None:
            raise failure
        if failed > 0:
            raise CheckpointError("the main process could not save a checkpoint; see its own message")
        self._steps_since, self._saved_at = 0, time.monotonic()
        self._pause = (self._saved_at - started) / MOST_OF_THE_TIME

    def _own_part(self, epoch: EpochState) -> bytes:
        carried, outline = run_state.flatten_carry(epoch.carry)
        states = run_state.random_tensors(self.accelerator.device)
        tensors = {f"random/{name}": value for name, value in states.items()}
        tensors.update({f"carry/{name}": value for name, value in carried.items()})
        return to_bytes(store.independent(tensors), metadata={"carry": outline})

    def _write(self, run: Run, epoch: EpochState, number: int | None, ranks: Sequence[bytes]) -> None:
        path = store.checkpoint_path(self.checkpoints.folder, self._steps_done(run))
        tensors = {
            MODEL: run_state.model_tensors(self.model),
            STEPS: run_state.step_tensors([*self.progress.history.steps, *run.steps]),
        }
        if number is not None:
            tensors[OPTIMIZER] = run_state.optimizer_tensors(run.optimizer, self.model)
        ties: dict[str, str] = {}
        if self.progress.best.record is not None and self.progress.best.weights is not None:
            # from memory each time: a file of the checkpoint before may be damaged by now
            tensors[BEST], ties = run_state.without_ties(self.progress.best.weights)
        store.write_checkpoint(
            path,
            self._state(run, epoch, number, ties),
            tensors=tensors,
            contents={f"rank-{rank}.safetensors": content for rank, content in enumerate(ranks)},
        )
        store.drop_all_but(path, keep=self.checkpoints.keep)

    def _state(self, run: Run, epoch: EpochState, number: int | None, ties: Mapping[str, str]) -> dict[str, Any]:
        history, best = self.progress.history, self.progress.best
        records = [index for index, record in enumerate(history.epochs) if record is best.record]
        scaler = self.accelerator.scaler
        ended = number is None
        return {
            "position": {
                "phase": self.phase,
                "epoch": number,
                "step": run.step,
                "steps_of_phase": 0 if ended else len(run.steps),
                "steps": self._steps,
            },
            "sums": {name: value for name, value in vars(epoch).items() if name != "carry"},
            "carries": epoch.carry is not None,
            "random_used": self._random_used,
            "history": [asdict(record) for record in history.epochs],
            "best": records[0] if records and best.weights is not None else None,
            "ties": dict(ties),
            "values": [] if ended else list(self.progress.values),
            "optimizer": [{"lr": group["lr"], "betas": group["betas"]} for group in run.optimizer.param_groups],
            "scaler": None if scaler is None else scaler.state_dict(),
            "seconds": self.earlier_seconds + time.monotonic() - self._began,
            "world_size": self.accelerator.num_processes,
            "surroundings": self._environment(),
            "identity": as_json(self.checkpoints.identity),
            "plan": self.plan,
        }


@contextlib.contextmanager
def _altered(path: Path) -> Iterator[None]:
    """Turn what putting a checkpoint back raises where it was altered and sealed again into one line."""
    try:
        yield
    except CheckpointError:
        raise
    except ALTERED as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise CheckpointError(
            f"{path} cannot be continued from ({type(error).__name__}: {reason}); it was altered: delete that "
            "checkpoint to take the one before, or its folder to start over"
        ) from error


def _place(position: Mapping[str, Any]) -> str:
    if position["epoch"] is None:
        return f"at the start of phase {position['phase'] + 1}"
    return f"in epoch {position['epoch'] + 1} of phase {position['phase'] + 1}"
