"""What every stage of one run shares: preset, seed, precision, time, and where it says what it does."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ulmfit_pipe.stages.artifacts import model_identity
from ulmfit_pipe.stages.presets import Preset, StageOptimizer, load_preset
from ulmfit_pipe.training.records import TrainingOptions

Precision = Literal["no", "fp16", "bf16"]


@dataclass
class RunContext:
    """One run's surroundings.

    Attributes:
        preset: Name of the recipe.
        seed: Seed of weights, dropout and data order.
        mixed_precision: ``no``, ``fp16`` or ``bf16``.
        progress: Show progress bars; None decides by the terminal.
        deadline: ``time.monotonic()`` at which training stops, or None.
        say: Receives each line of news.
    """

    preset: str = "fastai"
    seed: int = 0
    mixed_precision: Precision = "no"
    progress: bool | None = None
    deadline: float | None = None
    say: Callable[[str], None] = partial(print, flush=True)
    _accelerator: Accelerator | None = field(default=None, repr=False)

    @property
    def recipe(self) -> Preset:
        """The preset's numbers."""
        return load_preset(self.preset)

    @property
    def accelerator(self) -> Accelerator:
        """Device, precision and processes, made when first needed.

        Raises:
            ValueError: fp16 is asked for without a GPU.
        """
        if self._accelerator is None:
            if self.mixed_precision == "fp16" and not torch.cuda.is_available():
                raise ValueError(
                    "mixed_precision 'fp16' needs a GPU (on a CPU it would silently compute in float32); "
                    "use 'bf16' or 'no'"
                )
            self._accelerator = Accelerator(mixed_precision=self.mixed_precision)
        return self._accelerator

    def start(self) -> None:
        """Seed every generator; call it at the start of a stage."""
        set_seed(self.seed)

    def tell(self, line: str) -> None:
        """Say a line on the main process."""
        if self.accelerator.is_main_process:
            self.say(line)

    def identity(self, settings: Any, *, model: str | None, data: str) -> dict[str, Any]:
        """Return everything a stage's result depends on; how it is computed (workers) does not count.

        A model's folder counts by its content, so that one trained again is another, and one moved is the same.
        """
        numbers = {name: value for name, value in dataclasses.asdict(settings).items() if name != "num_workers"}
        return {
            "settings": numbers,
            "model": model_identity(model),
            "preset": self.preset,
            "seed": self.seed,
            "mixed_precision": self.mixed_precision,
            "data": data,
        }

    def shares(self) -> dict[str, int]:
        """Return this process' place, as batches take it."""
        return {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}

    def options(self, optimizer: StageOptimizer, **changes: Any) -> TrainingOptions:
        """Return the loop's numbers for a stage: the preset's, with changes."""
        numbers: dict[str, Any] = {
            "betas": optimizer.betas,
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
            "decoupled": optimizer.decoupled,
            "max_grad_norm": optimizer.max_grad_norm,
            "train_norm": self.recipe.train_norm,
            "progress": self.progress,
            "deadline": self.deadline,
        }
        numbers.update({name: value for name, value in changes.items() if value is not None})
        return TrainingOptions(**numbers)


def deadline_after(seconds: float | None) -> float | None:
    """Return the moment so many seconds from now, or None.

    Raises:
        ValueError: The number is not positive.
    """
    if seconds is None:
        return None
    if seconds <= 0:
        raise ValueError(f"max_seconds must be positive, got {seconds!r}; leave it out for no limit")
    return time.monotonic() + seconds
