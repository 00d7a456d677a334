"""What every stage of one run shares: preset, seed, precision, time and the log."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from ulmfit_pipe.console import anything_works, hide_working, print_line, working
from ulmfit_pipe.data.run_files import run_files
from ulmfit_pipe.settings.checks import check_seed, check_whole, check_zero_or_more, settings_that_count
from ulmfit_pipe.settings.choices import Precision
from ulmfit_pipe.stages.artifacts import model_identity
from ulmfit_pipe.stages.model_names import ModelName
from ulmfit_pipe.stages.presets import AUTO, Preset, StageOptimizer, load_preset, resolve_preset
from ulmfit_pipe.training.compute.precision import tf32_note
from ulmfit_pipe.training.distributed.agreement import find_alike
from ulmfit_pipe.training.distributed.launch import new_accelerator, started_processes
from ulmfit_pipe.training.logs.accelerate_trackers import check_report_to
from ulmfit_pipe.training.records import TrainingOptions

_RUNNING = threading.RLock()  # random numbers, and what Accelerate and transformers keep, are of the whole process


@contextlib.contextmanager
def exclusive_run() -> Iterator[None]:
    """Run a block, or a function that it decorates, while no other thread of this process does.

    So runs in several threads give what they give one after the other. Temporary files of the run go at its end.
    """
    if not _RUNNING.acquire(blocking=False):
        print_line("another run is under way in a thread of this process; waiting for it to end")
        _RUNNING.acquire()
    try:
        with run_files(), contextlib.nullcontext() if anything_works() else working("running"):
            yield
    finally:
        _RUNNING.release()


@dataclass
class RunContext:
    """One run's environment.

    Attributes:
        preset: Name of the recipe; ``auto`` is settled by the model (`for_model`).
        seed: Seed of weights, dropout and data order.
        mixed_precision: ``no``, ``bf16``, ``fp16`` or ``fp8``.
        tf32: Train in TF32 on NVIDIA GPUs, or not; None leaves it to torch.
        gradient_checkpointing: Run layers again in the backward pass, for less memory.
        compile: Compile the model for each phase.
        progress: Show progress bars; None decides by the terminal; False also drops the lines that replace them.
        deadline: ``time.monotonic()`` at which training stops, or None.
        resume: Resume an unfinished stage from its last checkpoint, instead of starting over.
        checkpoint_seconds: Seconds between a stage's checkpoints; 0 saves after every step, None saves none.
        report_to: Trackers that show a training beside its own log: names as `check_report_to` takes them.
        log_every: Log one optimizer step out of this many.
        say: Receives each log line.
    """

    preset: str = "auto"
    seed: int = 0
    mixed_precision: Precision = "no"
    tf32: bool | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    progress: bool | None = None
    deadline: float | None = None
    resume: bool = False
    checkpoint_seconds: float | None = None
    report_to: Sequence[str] = ()
    log_every: int = 10
    say: Callable[[str], None] = print_line
    _accelerator: Accelerator | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse trackers that are not installed, and values out of range, before anything is read."""
        if self.progress is False:
            hide_working()
        self.report_to = check_report_to(self.report_to)
        check_whole(self, {"log_every": 1})
        check_seed(self)
        check_zero_or_more(self, "checkpoint_seconds")

    def for_model(self, model_type: str) -> "RunContext":
        """Return the context for a model of an architecture, with ``auto`` settled; it is the one records name.

        Raises:
            ValueError: There is no such preset, or it is not for this architecture.
        """
        name = resolve_preset(self.preset, model_type)
        return self if name == self.preset else dataclasses.replace(self, preset=name)

    @property
    def recipe(self) -> Preset:
        """The preset's hyperparameters.

        Raises:
            ValueError: The preset does not exist, or is ``auto`` and the model is not known yet.
        """
        if self.preset == AUTO:
            raise ValueError(
                "preset 'auto' has no values before the model is known; call RunContext.for_model(model_type), or "
                "name a preset"
            )
        return load_preset(self.preset)

    @property
    def accelerator(self) -> Accelerator:
        """Device, precision and processes, made when first needed.

        Raises:
            ValueError: The machine cannot compute in the precision asked for.
        """
        if self._accelerator is None:
            self._accelerator = new_accelerator(mixed_precision=self.mixed_precision, say=self.say)
            if line := tf32_note(self.tf32, self._accelerator.device):
                self.tell(line)
        return self._accelerator

    def start(self) -> None:
        """Seed every generator; call it at the start of a stage."""
        set_seed(self.seed)

    def tell(self, line: str) -> None:
        """Log a line on the main process."""
        if self.accelerator.is_main_process:
            self.say(line)

    def tell_of_remote_code(self, settings: Any) -> None:
        """Log that a model's own code may run, if the settings allow it."""
        if settings.trust_remote_code:
            self.tell("trust_remote_code is on: Python code that comes with the model may run here")

    def identity(self, settings: Any, *, model: ModelName | None, data: str) -> dict[str, Any]:
        """Return everything a stage's result depends on; how it is computed (workers) does not count.

        A model's folder counts by its content, so that one trained again is another, and one moved is the same.
        """
        numbers = settings_that_count(settings)
        if numbers.get("lr_decay", 1) is None:
            numbers["lr_decay"] = self.recipe.lr_decay
        return {
            "settings": numbers,
            "model": model_identity(model),
            "preset": self.preset,
            "seed": self.seed,
            "mixed_precision": self.mixed_precision,
            "data": data,
            **({} if self.tf32 is None else {"tf32": self.tf32}),
            **({"compile": True} if self.compile else {}),
        }

    def check_alike(self, found: Any) -> None:
        """Raise on every process unless all of them are about to do the same.

        Args:
            found: A run's settings, or a record of anything that its result depends on.

        Raises:
            ProcessError: They are not; what differs is named, with both values. Or another process is gone.
        """
        if started_processes() == 1:
            return
        record = dict(found) if isinstance(found, dict) else dataclasses.asdict(found)
        record.pop("progress", None)
        find_alike(self.accelerator, lambda: record, lambda same: same)

    def refuse_several_processes(self, what: str, *, shares_cells: bool = True) -> None:
        """Raise where a launcher started several processes for something that runs in one.

        Args:
            what: Its name, for the message.
            shares_cells: Whether starting it twice shares its cells out; launched together, each process would train
                another cell, and wait for the others' steps.

        Raises:
            ValueError: There are several.
        """
        count = self.accelerator.num_processes
        if count > 1:
            instead = "start it without a launcher"
            if shares_cells:
                instead = "start the same command twice instead: each process takes the cells that nobody is at"
            raise ValueError(f"{what} runs in one process, it was launched in {count}; {instead}")

    def shares(self) -> dict[str, int]:
        """Return this process's index and the number of processes, as batches take them."""
        return {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}

    def options(self, optimizer: StageOptimizer, **changes: Any) -> TrainingOptions:
        """Return a stage's `TrainingOptions`: the preset's, with changes."""
        numbers: dict[str, Any] = {
            "betas": optimizer.betas,
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
            "decoupled": optimizer.decoupled,
            "max_grad_norm": optimizer.max_grad_norm,
            "train_norm": self.recipe.train_norm,
            "progress": self.progress,
            "deadline": self.deadline,
            "tf32": self.tf32,
            "gradient_checkpointing": self.gradient_checkpointing,
            "compile": self.compile,
        }
        numbers.update({name: value for name, value in changes.items() if value is not None})
        return TrainingOptions(**numbers)


def context_of(settings: Any, **changes: Any) -> RunContext:
    """Return the context of a run, from the fields of its settings that have the same names.

    Args:
        settings: Settings of a run.
        **changes: Fields of the context that settings do not have, or that override theirs.
    """
    shared = {each.name for each in dataclasses.fields(RunContext)}.intersection(vars(settings))
    return RunContext(**({name: getattr(settings, name) for name in shared} | changes))


def deadline_after(seconds: float | None) -> float | None:
    """Return the time that is `seconds` from now, or None.

    Raises:
        ValueError: The number is not positive.
    """
    if seconds is None:
        return None
    if seconds <= 0:
        raise ValueError(f"max_seconds must be positive, got {seconds!r}; leave it out for no limit")
    return time.monotonic() + seconds
