"""What a training logs while it runs: metrics every few steps and after every epoch, to any number of trackers.

`RunLog` collects them on every process; on the main process each `Tracker` gets them. `JsonlLog` is the one that needs
nothing installed; `accelerate_trackers` has those of Accelerate (TensorBoard, Weights & Biases, ...). Which step comes
before which is counted over all phases, so that a run that was killed continues in the same log.

Of a step, every `TrainingOptions.log_every` steps:

loss                   mean of the steps' losses since the line before (or since the phase began)
lr/GROUP               learning rate of each layer group, 0 where it is frozen
grad_norm              L2 norm of this step's gradient, loss scaling taken off, before clipping
grad_norm/GROUP        the same of one layer group; none where it is frozen
trainable_parameters   how many scalars the phase trains
tokens_per_second      (or rows_) over all processes, since the line before in this epoch
memory/rss_gib         of the main process; memory/cuda_peak_gib of its GPU, since the process began
phase                  its number in the plan, from 1

Of an epoch: ``epoch`` (from 1, over all phases), ``epoch/loss`` (mean over its items), ``epoch/seconds``,
``epoch/items_per_second``, ``validation/METRIC``, ``phase``.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ulmfit_pipe.storage.temporary_files import write_advice
from ulmfit_pipe.training.distributed.processes import reduce_sum
from ulmfit_pipe.training.history import History
from ulmfit_pipe.training.layer_groups import LayerGroup
from ulmfit_pipe.training.records import EpochRecord, EpochState, Phase, Tracker, TrainingOptions
from ulmfit_pipe.training.run import Position, Run

GIB = 2**30
STATM = Path("/proc/self/statm")  # sizes of this process in pages, resident ones second; Linux only


class JsonlLog:
    """A tracker that writes one JSON object per line: ``step``, ``time`` (seconds since 1970), and the metrics.

    NaN and infinity become null. A line is with the system once it is logged, so a killed process loses none.

    Args:
        path: The file; it is made when there is something to write.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def start(self, *, step: int, epochs: int) -> None:
        """Keep what a file that is there has of the steps and epochs that are done, and drop the rest of it.

        Raises:
            ValueError: The file is not such a log.
        """
        self.finish()
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise ValueError(f"{self.path} is a pipe, a device or a folder, not a log; choose another file")
        lines = self.path.read_bytes().splitlines(keepends=True)
        if lines and not lines[0].startswith(b'{"step": '):
            raise ValueError(f"{self.path} is not a log of a training and would be overwritten; choose another file")
        kept = sum(map(len, _lines_before(lines, step=step, epochs=epochs)))
        if kept:
            os.truncate(self.path, kept)
        else:
            self.path.unlink()

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Write a line.

        Raises:
            OSError: The disk is full or not writable; the message names the file.
        """
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **numbers}, allow_nan=False) + "\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise OSError(
                error.errno,
                f"could not write to the log {self.path}: {error.strerror or error}; checkpoints saved before remain. "
                f"{write_advice(error, None)}",
            ) from error

    def finish(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is not written yet was refused by `log`, with an error
                self._file.close()
            self._file = None


def _lines_before(lines: Sequence[bytes], *, step: int, epochs: int) -> Iterator[bytes]:
    """Yield the lines up to the first that is void or was cut short."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n") or record["step"] >= step or record.get("epoch", 0) > epochs:
            return
        yield line


def memory_in_use(device: torch.device) -> dict[str, float]:
    """Return this process's resident memory, where the system shows it, and the peak of its GPU, in GiB."""
    found: dict[str, float] = {}
    if STATM.exists():
        pages = int(STATM.read_text().split()[1])
        found["memory/rss_gib"] = pages * os.sysconf("SC_PAGE_SIZE") / GIB
    if device.type == "cuda":
        found["memory/cuda_peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
    return found


class RunLog:
    """Collects the metrics of one run of phases and passes them to its trackers.

    Every process makes the same calls: a number over all of them takes all of them.

    Args:
        trackers: Receivers of the metrics.
        accelerator: The processes.
        phases: All phases of the run.
        history: What is done by now; the run adds the epochs as they end, and the steps of phases that have ended.
        every: Log a step out of this many.
        first: Steps and epochs that were trained before this run.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        accelerator: Accelerator,
        phases: Sequence[Phase],
        history: History,
        *,
        every: int,
        first: tuple[int, int] = (0, 0),
    ) -> None:
        self.trackers = trackers if accelerator.is_main_process else ()
        self.accelerator, self.phases, self.history, self.every = accelerator, phases, history, every
        self._first_step, self._first_epoch = first
        self._phase, self._steps_before, self._epochs, self._trained = 0, 0, 0, 0
        self._started = False
        self._norms: dict[str, float] = {}
        self._mark(EpochState())

    def begin(self, *, steps_of_phase: int = 0) -> None:
        """Note what is done, and start the trackers there if they are not.

        Args:
            steps_of_phase: Steps of a phase that has begun before and is resumed.
        """
        self._steps_before = self._first_step + len(self.history.steps)
        self._epochs = self._first_epoch + len(self.history.epochs)
        if not self._started:
            self._started = True
            for tracker in self.trackers:
                tracker.start(step=self._steps_before + steps_of_phase, epochs=self._epochs)

    def enter_phase(self, run: Run, phase: Phase, position: Position) -> None:
        """Begin with a phase, its run holding the steps that were taken before, at the state of its epoch."""
        self._phase = 1 + [one.name for one in self.phases].index(phase.name)
        self.begin(steps_of_phase=len(run.steps))
        self._trained = sum(group.num_trainable for group in run.groups)
        self._mark(position.state)

    def before_batches(self) -> None:
        """Do nothing: what is skipped is not logged."""

    def _mark(self, state: EpochState) -> None:
        self._state, self._items, self._seconds = state, state.items, state.seconds

    def before_update(self, run: Run) -> None:
        """Take the norms of a step that will be logged, between backward pass and clipping."""
        if (self._steps_before + len(run.steps)) % self.every == 0:
            self._norms = gradient_norms(run.optimizer, run.groups, self.accelerator)

    def after_step(self, run: Run, position: Position) -> None:
        """Log a step if it is its turn; its record is the last among the run's steps."""
        state = position.state
        step = self._steps_before + len(run.steps) - 1
        if state is not self._state:  # an epoch has begun
            self._state, self._items, self._seconds = state, 0.0, 0.0
        if step % self.every:
            return
        losses = [record.loss for record in run.steps[-self.every :]]
        items = torch.tensor([state.items - self._items], dtype=torch.float64)
        speed = float(reduce_sum(self.accelerator)(items)) / max(state.seconds - self._seconds, 1e-9)
        values = {
            "phase": self._phase,
            "loss": sum(losses) / len(losses),
            **{f"lr/{group.name}": lr for group, lr in zip(run.groups, run.steps[-1].lrs, strict=True)},
            **self._norms,
            "trainable_parameters": self._trained,
            f"{run.unit}_per_second": speed,
            **memory_in_use(self.accelerator.device),
        }
        self._log(values, step=step)
        self._mark(state)

    def after_epoch(self, run: Run, position: Position, record: EpochRecord, *, ended: bool) -> None:
        """Log an epoch."""
        self._epochs += 1
        values = {
            "phase": self._phase,
            "epoch": self._epochs,
            "epoch/loss": record.train_loss,
            "epoch/seconds": record.seconds,
            "epoch/items_per_second": record.items_per_second,
            **{f"validation/{name}": value for name, value in record.metrics.items()},
        }
        self._log(values, step=max(self._steps_before + len(run.steps) - 1, 0))

    def _log(self, values: Mapping[str, float], *, step: int) -> None:
        for tracker in self.trackers:
            tracker.log(values, step=step)

    def finish(self) -> None:
        """End the run."""
        for tracker in self.trackers if self._started else ():
            tracker.finish()


@contextlib.contextmanager
def run_log(
    options: TrainingOptions,
    accelerator: Accelerator,
    phases: Sequence[Phase],
    history: History,
    *,
    first: tuple[int, int] = (0, 0),
) -> Iterator[RunLog | None]:
    """Give the log of one run of phases, and end it with the block; None where the options name no tracker."""
    if not options.trackers:
        yield None
        return
    log = RunLog(options.trackers, accelerator, phases, history, every=options.log_every, first=first)
    try:
        yield log
    finally:
        log.finish()


def gradient_norms(optimizer: Any, groups: Sequence[LayerGroup], accelerator: Accelerator) -> dict[str, float]:
    """Return the norm over all groups (``grad_norm``) and of each that has a gradient (``grad_norm/GROUP``).

    Call it on every process between the backward pass and clipping. The device is waited for once. Plain data
    parallelism has averaged the gradients by then; those that are sharded on the processes (torch's ``fully_shard``)
    cost one sum over them.

    Args:
        optimizer: The phase's; its parameter groups name their layer groups.
        groups: The layer groups.
        accelerator: The processes, and the loss scaling.
    """
    parameters: list[list[Tensor]] = [[] for _ in groups]
    for parameter_group in optimizer.param_groups:
        parameters[parameter_group["layer_group"]].extend(parameter_group["params"])
    gradients = [[one.grad for one in own if one.grad is not None] for own in parameters]
    device = accelerator.device
    whole = [_norm([one for one in own if not _is_shard(one)], device) for own in gradients]
    shards = [_norm([_own_shard(one) for one in own if _is_shard(one)], device) for own in gradients]
    squares = torch.stack([*whole, *shards]).cpu().double().square().reshape(2, len(groups))
    of_shards = torch.cat([squares[1], torch.tensor([float(len(own)) for own in gradients], dtype=torch.float64)])
    if any(_is_shard(one) for own in parameters for one in own):  # the same on all processes
        of_shards = reduce_sum(accelerator)(of_shards)
    scale = 1.0 if accelerator.scaler is None else float(accelerator.scaler.get_scale())
    total = (squares[0] + of_shards[: len(groups)]).tolist()
    norms = {
        f"grad_norm/{group.name}": math.sqrt(total[group.index]) / scale
        for group, count in zip(groups, of_shards[len(groups) :].tolist(), strict=True)
        if count > 0
    }
    return {"grad_norm": math.sqrt(sum(total)) / scale, **norms}


def _norm(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the norm of all together on the device, where torch would leave that of none on the CPU."""
    return torch.nn.utils.get_total_norm(tensors).to(device) if tensors else torch.zeros((), device=device)


def _is_shard(tensor: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # it takes half a second to load: who has such tensors did
    return module is not None and isinstance(tensor, module.DTensor)


def _own_shard(gradient: Any) -> Tensor:
    """Return this process's shard, scaled down where others hold the same: all squares then add up to the whole's."""
    sizes = [gradient.device_mesh.size(axis) for axis, one in enumerate(gradient.placements) if one.is_replicate()]
    return gradient.to_local() / math.sqrt(math.prod(sizes))
