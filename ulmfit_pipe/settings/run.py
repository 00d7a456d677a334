"""The settings that every training run has, written once: each run's settings inherit them."""

from dataclasses import dataclass, field

from ulmfit_pipe.settings.checks import check_seed, check_types, with_home_paths
from ulmfit_pipe.settings.choices import Precision, PresetName


@dataclass(frozen=True, kw_only=True)
class TextModelOptions:
    """How a text model is trained and loaded.

    Attributes:
        preset: Recipe; auto is fastai for an AWD-LSTM and transformer for any other model.
        trust_remote_code: Run Python code that comes with a model (auto_map in its config.json); off, such a model is
            refused.
    """

    preset: PresetName = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
@with_home_paths
class ComputeSettings:
    """What a training step depends on beside its model and data.

    Attributes:
        seed: Seed of split, weights, dropout and order.
        mixed_precision: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        tf32: Train in TF32 on NVIDIA GPUs (faster, 10 bits of precision), or in float32; null leaves it to torch.
        gradient_checkpointing: Run layers again in the backward pass: less memory, more time, the same gradients.
    """

    seed: int = 0
    mixed_precision: Precision = "no"
    tf32: bool | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse values of another type, or on no field's list."""
        check_types(self)
        check_seed(self)


@dataclass(frozen=True, kw_only=True)
class RunSettings(ComputeSettings):
    """What every training run has.

    Attributes:
        compile: Compile the model for each phase with torch.compile: slow to begin, then faster for transformers.
        max_seconds: Stop training after this time, and continue with the best weights so far; null for no limit.
        progress: Show progress bars; null decides by the terminal.
        resume: Resume an unfinished stage from its last checkpoint; false stops where there is one.
        checkpoint_seconds: Seconds between checkpoints while training; null saves none.
        report_to: Trackers that show the training: tensorboard, wandb, mlflow, ... as far as installed; all; none.
            A log.jsonl is written in any case.
        log_every: Log one optimizer step out of this many.
    """

    compile: bool = False
    max_seconds: float | None = None
    progress: bool | None = None
    resume: bool = False
    checkpoint_seconds: float | None = 60.0
    report_to: list[str] = field(default_factory=list)
    log_every: int = 10
