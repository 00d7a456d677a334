"""The weights of the best epoch of a run, by a validation metric."""

import math

from torch import Tensor, nn

from ulmfit_pipe.training.records import EpochRecord

LOWER_IS_BETTER = ("loss", "perplexity", "error", "error_rate")  # ends of such metrics' names; others are scores


class BestWeights:
    """Keeps the weights of the best epoch over all phases; a tie keeps the earlier one.

    Args:
        monitor: Name of the validation metric to compare; smaller is better if the name ends like one of
            `LOWER_IS_BETTER`, larger otherwise.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.sign = -1.0 if monitor.endswith(LOWER_IS_BETTER) else 1.0
        self.record: EpochRecord | None = None
        self.weights: dict[str, Tensor] | None = None

    def value(self, record: EpochRecord) -> float:
        """Return the monitored value, larger is better; NaN counts as the worst.

        Raises:
            KeyError: The metric does not report the monitored name.
        """
        if self.monitor not in record.metrics:
            raise KeyError(f"no validation metric is called {self.monitor!r}; there are {sorted(record.metrics)}")
        value = self.sign * record.metrics[self.monitor]
        return -math.inf if math.isnan(value) else value

    def offer(self, record: EpochRecord, model: nn.Module) -> None:
        """Keep the model's weights if the record is better than any before; a tie goes to the lower loss, if known."""
        if self.record is None or self._rank(record) > self._rank(self.record):
            self.record = record
            state = model.state_dict(keep_vars=True)
            tensors = {id(value): value for value in state.values()}  # a tied weight has two names and is copied once
            copies = {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}
            self.weights = {name: copies[id(value)] for name, value in state.items()}

    def _rank(self, record: EpochRecord) -> tuple[float, float]:
        loss = record.metrics.get("loss", math.inf)
        return self.value(record), -math.inf if math.isnan(loss) else -loss

    def restore(self, model: nn.Module) -> None:
        """Put the kept weights back into the model, if there are any."""
        if self.weights is not None:
            model.load_state_dict(self.weights)
