"""What a run of phases did, and its table."""

import math
from dataclasses import dataclass, field

from ulmfit_pipe.training.records import EpochRecord, StepRecord
from ulmfit_pipe.training.text_tables import Report, format_table


def _cell(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


@dataclass
class History:
    """What a run of phases did, epoch by epoch and step by step.

    Attributes:
        epochs: One record an epoch over all phases.
        steps: One record an optimizer step over all phases.
        best: The record whose weights were kept, or None without validation.
        earlier_seconds: Time that the training had taken before it was gone on with, in this process not measured.
    """

    epochs: list[EpochRecord] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    best: EpochRecord | None = None
    earlier_seconds: float = 0.0

    def describe(self) -> Report:
        """Return a table with a row an epoch; the epoch whose weights were kept is marked."""
        names = list(dict.fromkeys(name for record in self.epochs for name in record.metrics))
        rows = [("phase", "epoch", "train loss", *names, "items/s", "seconds", "")]
        for record in self.epochs:
            values = [_cell(record.metrics.get(name, math.nan)) for name in names]
            rows.append(
                (
                    record.phase,
                    str(record.epoch + 1),
                    f"{record.train_loss:.4f}",
                    *values,
                    f"{record.items_per_second:,.0f}",
                    f"{record.seconds:.1f}",
                    "best" if record is self.best else "",
                )
            )
        return Report(format_table(rows))
