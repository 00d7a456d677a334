"""The loss of models that name a token at each position and carry no state: masked and causal language models alike.

A batch holds the model's inputs and ``targets``; a target of -100 asks for nothing. Which positions' logits are
computed is left to a function, because a masked model needs those of one position in seven only.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ulmfit_pipe.training.objectives import IGNORED, Batch, ObjectiveOutput, summed_cross_entropy

# (model, its inputs, bool (batch, seq_len)) -> float (wanted positions, num_classes), row by row
LogitsAt = Callable[[nn.Module, Mapping[str, Tensor], Tensor], Tensor]


def logits_of_all(model: nn.Module, inputs: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
    """Return the logits at the wanted positions of a model that gives them at all positions.

    Args:
        model: Its output has ``logits``, float (batch, seq_len, num_classes).
        inputs: Named inputs.
        wanted: bool (batch, seq_len).
    """
    logits: Tensor = model(**inputs).logits
    return logits.flatten(0, 1) if bool(wanted.all()) else logits[wanted]


class TokenObjective:
    """Cross-entropy over the positions that have a target; nothing is carried from batch to batch.

    Args:
        logits_at: Runs the model and returns the logits at the wanted positions.
    """

    def __init__(self, *, logits_at: LogitsAt = logits_of_all) -> None:
        self.logits_at = logits_at

    def count(self, batch: Batch) -> float:
        """Return the number of targets that count."""
        return float((batch["targets"] != IGNORED).sum())

    def __call__(self, model: nn.Module, batch: Batch, carry: Any) -> ObjectiveOutput:
        """Run the model on everything but targets and row numbers, and sum the losses of the positions asked for."""
        inputs = {key: value for key, value in batch.items() if key not in ("targets", "row")}
        wanted = batch["targets"] != IGNORED
        logits = self.logits_at(model, inputs, wanted)  # (wanted positions, num_classes)
        targets = batch["targets"][wanted]  # (wanted positions,)
        loss_sum = summed_cross_entropy(logits, targets)
        return ObjectiveOutput(loss_sum, None, None, logits.detach(), targets)
