"""What a training run is given and what it reports: plain records, no behaviour.

`Phase` is what one phase trains, `Task` what it trains on, `TrainingOptions` the hyperparameters of all phases;
`EpochRecord` and `StepRecord` are what comes back.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ulmfit_pipe.training.objectives import Objective
from ulmfit_pipe.training.schedules import Schedule


class Batches(Protocol):
    """One process's share of the data: batches in an order that (seed, epoch) decides.

    Where a row's tensors are the same in every epoch but for padding (nothing is augmented or masked at random),
    batches may declare it by an attribute ``fixed_rows`` that is True; `TrainingOptions.cache_frozen` asks for it.
    Batches that can begin anywhere in the epoch without making those before it may have ``from_batch(first)``, an
    iterator; a training that resumes from a checkpoint asks for it.

    A batch of a process that has no share of the global one may be a dict with an attribute ``filler`` that is True:
    it is run, since the other processes wait for it, and counts for nothing.
    """

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of the current epoch."""
        ...

    def __len__(self) -> int:
        """Return the number of batches of the current epoch, the same on every process."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and with it the order, on this object alone: a shallow copy keeps its own."""
        ...


class Metric(Protocol):
    """Sums with counts over batches, divided once."""

    def update(self, logits: Tensor, labels: Tensor, loss_sum: Tensor, count: float) -> None:
        """Add one batch."""
        ...

    def compute(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Reduce over processes and divide."""
        ...


@dataclass(frozen=True)
class Checkpoints:
    """Where a training keeps its progress, how often, and what it must be to be resumed.

    Attributes:
        folder: Holds the checkpoints of this one training; where it is begun anew, old ones go.
        every_seconds: Save when so long has passed since the last time; None does not go by the clock. It is longer
            where saving takes more than a twentieth of it; 0 saves after every step.
        every_steps: Save after this many optimizer steps; None does not count.
        keep: Number of newest checkpoints that are kept.
        identity: Fingerprint: all that the result depends on; a checkpoint of another one is refused.
        versions: Libraries that a result depends on; others are named, and the training continues.
        resume: Resume from the newest complete checkpoint, if there is one; False starts over.
    """

    folder: Path
    every_seconds: float | None = 60.0
    every_steps: int | None = None
    keep: int = 2
    identity: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.every_seconds is not None and not self.every_seconds >= 0:
            raise ValueError(f"every_seconds must be 0 or more or None, got {self.every_seconds!r}; 60 is the default")
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"every_steps must be 1 or more or None, got {self.every_steps!r}")
        if self.keep < 1:
            raise ValueError(f"keep must be 1 or more checkpoints, got {self.keep!r}; 2 outlive a damaged one")


class Tracker(Protocol):
    """Stores or shows the metrics of a training; it is called on the main process only."""

    def start(self, *, step: int, epochs: int) -> None:
        """Begin a run, or resume it after this many steps and epochs.

        Args:
            step: The first step to come; what was logged of it and of later ones is void.
            epochs: Epochs that are done; what was logged of later ones is void.
        """
        ...

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Log the metrics of a step, or of an epoch that ended with it (they have ``epoch``); some may be NaN."""
        ...

    def finish(self) -> None:
        """End the run, also one that failed; `start` may follow."""
        ...


@dataclass(frozen=True)
class TrainingOptions:
    """Hyperparameters of the loop that stay the same over all phases.

    Attributes:
        weight_decay: Decay of the decayed parameters of every group.
        betas: Adam's coefficients; a one-cycle schedule replaces the first.
        eps: Adam's epsilon; 1e-5 is fastai's.
        decoupled: AdamW (True) or Adam with L2 (False).
        max_grad_norm: Clip the gradient's L2 norm over all parameters to this, or None.
        accumulation_steps: Micro-batches per optimizer step: the same as one batch that many times larger, but for what
            is taken over a batch (statistics of batch norms; AR and TAR over texts of unequal length).
        train_norm: Train norm layers inside frozen groups (preset ``fastai``).
        frozen_dropout: ``on`` or ``off`` in frozen groups.
        progress: Show progress bars; None decides by whether the error stream is a terminal.
        deadline: Value of ``time.monotonic()`` after which training stops at the next step, or None.
        cache_frozen: Run frozen groups once per row in each phase, and train the others from what they gave, wherever
            that leads to the same weights up to rounding (`frozen_prefix`).
        cache_memory_gib: Memory for it in GiB; what is more goes into a temporary file.
        check_agreement: Compare the processes' weights bit for bit after every phase (`agreement`).
        checkpoints: Where a run of phases keeps its progress, to be resumed if it is killed; None keeps none.
        trackers: Where a run of phases logs its metrics (`events`), on the main process.
        log_every: Log one step out of this many.
        tf32: Let float32 matrix products, convolutions and LSTMs on NVIDIA GPUs run in TF32 (True) or in float32
            (False) while training; None leaves it to torch.
        gradient_checkpointing: Layers keep their inputs alone and run again in the backward pass: less memory, more
            time, the same gradients (`wrapping.checkpointed`).
        compile: Compile the model for each phase (`wrapping.compiled`); dropout masks are then drawn otherwise.
        shard: Part weights, gradients and optimizer over the processes (`sharding`); Accelerate's FSDP2 asks for it
            too.
    """

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-5
    decoupled: bool = True
    max_grad_norm: float | None = None
    accumulation_steps: int = 1
    train_norm: bool = False
    frozen_dropout: str = "on"
    progress: bool | None = None
    deadline: float | None = None
    cache_frozen: bool = False
    cache_memory_gib: float = 2.0
    check_agreement: bool = True
    checkpoints: Checkpoints | None = None
    trackers: tuple[Tracker, ...] = ()
    log_every: int = 10
    tf32: bool | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        """Check the values that no other function checks."""
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "compile and gradient_checkpointing are not proven together: compiled code decides itself what it "
                "computes again; leave one of them out"
            )
        if self.shard and self.checkpoints is not None:
            raise ValueError(
                "shard splits the weights over the processes, and no checkpoints of these are saved; leave one of the "
                "two out"
            )
        if not self.cache_memory_gib >= 0:
            raise ValueError(f"cache_memory_gib must be 0 or more, got {self.cache_memory_gib!r}; 0 keeps all on disk")
        if isinstance(self.log_every, bool) or not isinstance(self.log_every, int) or self.log_every < 1:
            raise ValueError(f"log_every must be a whole number of 1 or more, got {self.log_every!r}; 1 logs each step")
        if self.accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be 1 or more, got {self.accumulation_steps!r}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive or None, got {self.max_grad_norm!r}; 0.25-1 is usual")

    def to_dict(self) -> dict[str, Any]:
        """Return the options that the result of a training depends on, as plain values."""
        names = ["weight_decay", "betas", "eps", "decoupled", "max_grad_norm", "accumulation_steps"]
        names += ["train_norm", "frozen_dropout", "cache_frozen", "tf32", "compile"]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Phase:
    """One phase of training: what moves, how fast, along which curve, for how long.

    Attributes:
        name: Shown in tables, bars and records.
        trainable: Indices of the layer groups that train.
        lrs: Base learning rate of every layer group; those of frozen groups are not used.
        schedule: Curve that multiplies the base rates over the phase's steps.
        epochs: Epochs the schedule spans, at least 1.
        start_epoch: Skip this many epochs of the schedule and continue from there.
        patience: End the phase after this many epochs without a better validation value than its own best.
        from_best: Start from the best weights seen so far instead of the latest ones.
    """

    name: str
    trainable: tuple[int, ...]
    lrs: tuple[float, ...]
    schedule: Schedule
    epochs: int = 1
    start_epoch: int = 0
    patience: int | None = None
    from_best: bool = False

    def __post_init__(self) -> None:
        """Check the epoch counts."""
        whole = isinstance(self.epochs, int) and not isinstance(self.epochs, bool)
        if not whole or self.epochs < 1 or not 0 <= self.start_epoch < self.epochs:
            raise ValueError(
                f"phase {self.name!r}: epochs must be 1 or more and start_epoch in 0..epochs-1, "
                f"got epochs={self.epochs!r}, start_epoch={self.start_epoch!r}"
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"phase {self.name!r}: patience must be 1 or more or None, got {self.patience!r}")


@dataclass(frozen=True)
class Task:
    """The data of a training run and what is minimized on it.

    Attributes:
        train_batches: Training data of this process.
        objective: What is minimized.
        valid_batches: Validation data, or None.
        new_metric: Makes a fresh metric for each evaluation, or None.
    """

    train_batches: Batches
    objective: Objective
    valid_batches: Batches | None = None
    new_metric: Callable[[], Metric] | None = None


@dataclass
class EpochRecord:
    """What one epoch did.

    Attributes:
        phase: Name of the phase.
        epoch: Epoch within the phase, from 0.
        step: Optimizer steps taken in the phase so far.
        total_steps: Steps the phase's schedule was made for.
        train_loss: Mean loss over the epoch's items, penalties left out.
        metrics: Validation metrics, empty without validation data.
        lrs: Learning rate of each layer group at the last step; 0 where frozen.
        seconds: Wall time, validation included.
        items_per_second: Tokens (or rows) trained per second, over all processes.
        cut_short: Whether a time limit ended it before its last batch.
    """

    phase: str
    epoch: int
    step: int
    total_steps: int
    train_loss: float
    metrics: dict[str, float]
    lrs: tuple[float, ...]
    seconds: float
    items_per_second: float
    cut_short: bool = False


START = "probe"  # name of the record of what weights are worth before the first phase, chosen without a step


@dataclass
class EpochState:
    """State of an epoch in training: what a checkpoint saves of it.

    Attributes:
        batch: Micro-batches trained on so far.
        loss_sum: Sum of their losses, penalties left out.
        count: What the sum is divided by.
        items: Tokens (or rows) this process has trained on; a checkpoint keeps their sum over all processes.
        seconds: Time it took.
        carry: Recurrent state for the next batch.
    """

    batch: int = 0
    loss_sum: float = 0.0
    count: float = 0.0
    items: float = 0.0
    seconds: float = 0.0
    carry: Any = None


@dataclass(frozen=True)
class StepRecord:
    """Loss and learning rates (0 where frozen) of one optimizer step."""

    step: int
    loss: float
    lrs: tuple[float, ...]
