"""What is minimized: the summed loss of a batch and the number of items it is a sum over.

Sums and counts, not means, so that unequal batches, accumulation and many processes weigh every item alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Batch = Mapping[str, Tensor]

HALF_TYPES = (torch.float16, torch.bfloat16)
IGNORED = -100  # torch's ignore_index
CHUNK_NUMBERS = 2**19  # logits whose loss is computed at once: 2 MB in float32, what a core's own cache holds
DECODED_ROWS = 256  # rows of a decoder's logits at once: with 60,000 classes 128 took 8 % longer, 64 took 33 %
# (model, its inputs, bool (batch, seq_len)) -> float (wanted positions, num_classes), row by row
LogitsAt = Callable[[nn.Module, Mapping[str, Tensor], Tensor], Tensor]


@dataclass
class ObjectiveOutput:
    """What an objective returns for one batch.

    Attributes:
        loss_sum: Loss summed over the items, with its graph.
        penalty: A regularizer (a mean, not a sum) that is trained on but not reported, or None.
        carry: Recurrent state for the next batch, detached, or None.
        logits: float (batch, ..., num_classes), detached; empty in training where the loss was taken without them.
        labels: The targets that belong to the logits.
        penalty_parts: The terms of the penalty, equally many on every process, each with the number of positions that
            it is a mean over; several processes average by these. Empty where the number is in proportion to the
            batch's weight, as it is where all rows are equally long.
    """

    loss_sum: Tensor
    penalty: Tensor | None
    carry: Any
    logits: Tensor
    labels: Tensor
    penalty_parts: Sequence[tuple[Tensor, Tensor]] = ()


class Objective(Protocol):
    """A loss for `loop.fit`: counts the items of a batch and sums their losses."""

    def count(self, batch: Batch) -> float:
        """Return the weight of the batch, by which its summed loss is divided."""
        ...

    def __call__(self, model: nn.Module, batch: Batch, carry: Any) -> ObjectiveOutput:
        """Run the model on the batch and return the summed loss."""
        ...


class ClassificationObjective:
    """Cross-entropy, or binary cross-entropy for multi-label, from ``model(**inputs).logits``.

    Args:
        class_weights: float (num_labels,) or None; weighted as torch's mean reduction does. In multi-label they weigh
            the rows that have a label against those that do not, as torch's ``pos_weight``.
        label_smoothing: In [0, 1).
        multi_label: Whether labels are float (batch, num_labels) of 0 and 1.
        alpha: Weight of AR, where the model outputs ``raw_output``.
        beta: Weight of TAR, where the model outputs ``raw_output``.

    Raises:
        ValueError: ``class_weights``, ``label_smoothing``, ``alpha`` or ``beta`` is out of range.
    """

    def __init__(
        self,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        multi_label: bool = False,
        alpha: float = 0.0,
        beta: float = 0.0,
    ) -> None:
        _check_penalties(alpha, beta)
        if class_weights is not None and not (bool((class_weights >= 0).all()) and bool(class_weights.sum() > 0)):
            raise ValueError(f"class_weights must be 0 or more and not all 0, got {class_weights.tolist()}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing!r}; 0.1 is common")
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.multi_label = multi_label
        self.alpha = alpha
        self.beta = beta

    def count(self, batch: Batch) -> float:
        """Return the number of rows, or the sum of their class weights."""
        labels = batch["labels"]
        if self.class_weights is None or self.multi_label:
            return float(labels.shape[0])
        return float(self.class_weights.to(labels.device)[labels].sum())

    def __call__(self, model: nn.Module, batch: Batch, carry: Any) -> ObjectiveOutput:
        """Run the model on everything but labels and row indices."""
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "row")}
        labels = batch["labels"]
        output = model(**inputs)
        logits = widened(output.logits)  # (batch, num_labels)
        if self.multi_label:
            loss_sum = self._multi_label_loss(logits, labels)
        else:
            weights = None if self.class_weights is None else self.class_weights.to(logits)
            # sum reduction with smoothing and weights equals torch's mean times the summed weights
            loss_sum = F.cross_entropy(
                logits, labels, weight=weights, reduction="sum", label_smoothing=self.label_smoothing
            )
        raw = getattr(output, "raw_output", None)
        parts: Sequence[tuple[Tensor, Tensor]] = ()
        if model.training and raw is not None and (self.alpha or self.beta):
            mask = getattr(output, "raw_mask", None)
            parts = penalty_parts(raw, raw, alpha=self.alpha, beta=self.beta, mask=mask)
        return ObjectiveOutput(loss_sum, _whole_penalty(parts), None, logits.detach(), labels, parts)

    def _multi_label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels.to(logits)
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
        return losses.mean(dim=1).sum()  # mean over labels, sum over rows


class SequenceObjective:
    """Next-item prediction with recurrent hidden state, plus the penalties AR and TAR of AWD-LSTM.

    Args:
        alpha: Weight of the mean square of the dropped output (AR).
        beta: Weight of the mean square of its change over time (TAR), on the output before dropout.
        decodes: Whether the model takes ``decoder_loss``: then training on a CPU never holds all logits.

    Source: Merity et al. 2017, section 4.3; values 2 and 1 as in fastai and the 2018 code.
    """

    def __init__(self, *, alpha: float = 2.0, beta: float = 1.0, decodes: bool = False) -> None:
        _check_penalties(alpha, beta)
        self.alpha = alpha
        self.beta = beta
        self.decodes = decodes

    def count(self, batch: Batch) -> float:
        """Return the number of targets that are not ignored."""
        return float((batch["targets"] != IGNORED).sum())

    def __call__(self, model: nn.Module, batch: Batch, carry: Any) -> ObjectiveOutput:
        """Run the model from the recurrent state and sum the cross-entropy over all positions."""
        targets = batch["targets"]
        inputs = {"input_ids": batch["input_ids"], "hidden_state": carry}
        logits = torch.empty(0)
        if self.decodes and model.training and targets.device.type == "cpu":  # nobody asks for logits in training
            output = model(**inputs, decoder_loss=partial(decoded_cross_entropy, targets=targets))
            loss_sum = output.loss
        else:
            output = model(**inputs)
            logits = output.logits  # (batch, seq_len, vocab_size)
            loss_sum = summed_cross_entropy(logits.flatten(0, 1), targets.flatten())
        penalty = None
        if model.training:
            penalty = activation_penalty(output.raw_output, output.dropped_output, alpha=self.alpha, beta=self.beta)
        return ObjectiveOutput(loss_sum, penalty, detach(output.hidden_state), logits.detach(), targets)


def widened(values: Tensor) -> Tensor:
    """Return half-precision values as float32 and others as they are: a loss is never summed in half precision."""
    return values.float() if values.dtype in HALF_TYPES else values


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of rows of logits, summed; rows whose target is -100 count for nothing.

    On a CPU the rows are taken a few at a time: a language model's logits in float32, their softmax and its gradient
    are each a hundred megabytes or more, and moving these through memory took longer than all of the LSTM's arithmetic.

    Args:
        logits: float (rows, num_classes); half precision is widened to float32 first.
        targets: int64 (rows,).
    """
    if logits.device.type == "cpu" and logits.numel() > CHUNK_NUMBERS and logits.dtype != torch.float16:
        loss_sum: Tensor = _ChunkedCrossEntropy.apply(logits, targets)
        return loss_sum
    return F.cross_entropy(widened(logits), targets, reduction="sum", ignore_index=IGNORED)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy whose gradient is computed beside the loss, `CHUNK_NUMBERS` logits at a time.

    Not for float16: its gradient has to be multiplied by the loss scale before it is rounded.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum the losses and keep the gradient of each logit."""
        rows_at_once = max(1, CHUNK_NUMBERS // logits.shape[1])
        wide = torch.float32 if logits.dtype in HALF_TYPES else logits.dtype
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        loss_sum = torch.zeros((), dtype=wide)
        for first in range(0, len(logits), rows_at_once):
            rows = slice(first, first + rows_at_once)
            scores = logits[rows].to(wide, copy=True)  # (chunk, num_classes)
            loss_sum += _summed_loss(scores, targets[rows], then_gradient=gradient is not None)
            if gradient is not None:
                gradient[rows] = scores
        ctx.save_for_backward(gradient)
        return loss_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor, None]:
        """Scale the gradient that forward kept."""
        (gradient,) = ctx.saved_tensors
        return gradient * loss_gradient.to(gradient.dtype), None


def _summed_loss(scores: Tensor, targets: Tensor, *, then_gradient: bool) -> Tensor:
    """Return the summed cross-entropy of scores float (rows, num_classes), which are overwritten.

    Args:
        scores: What is left in them is their gradient where that is asked for, else of no use.
        targets: int64 (rows,); -100 counts for nothing.
        then_gradient: Whether the gradient is asked for.
    """
    wanted = (targets != IGNORED).unsqueeze(1)  # (rows, 1)
    at_target, counts = targets.unsqueeze(1).where(wanted, 0), wanted.to(scores)
    scores -= scores.amax(dim=1, keepdim=True)
    target_scores = scores.gather(1, at_target)
    sums = scores.exp_().sum(dim=1, keepdim=True)
    if then_gradient:
        scores *= counts / sums
        scores.scatter_add_(1, at_target, -counts)
    return ((sums.log() - target_scores) * counts).sum()


def decoded_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Return `summed_cross_entropy` of ``F.linear(hidden, weight, bias)`` without ever holding all of these logits.

    Both gradients are taken beside the loss, `DECODED_ROWS` rows at a time. Not for float16, as above.

    Args:
        hidden: float (..., hidden), what the decoder reads.
        weight: float (num_classes, hidden) of the decoder.
        bias: float (num_classes,).
        targets: int64 (...); -100 counts for nothing.
    """
    rows = hidden.flatten(0, -2)
    loss_sum: Tensor = _DecodedCrossEntropy.apply(rows, weight, bias, targets.flatten())
    return loss_sum


class _DecodedCrossEntropy(torch.autograd.Function):
    """A linear decoder and the summed cross-entropy of its logits, with the gradients of input, weight and bias."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """Sum the losses; under autocast the products are computed in its type, as those of a linear layer are."""
        device = hidden.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wide = torch.float32 if kind in HALF_TYPES else kind
        with torch.autocast(device, enabled=False):
            inputs, decoder, shift = hidden.to(kind), weight.to(kind), bias.to(kind)
            of_hidden = torch.empty_like(inputs)
            of_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
            of_bias = torch.zeros_like(bias, dtype=wide)
            loss_sum = torch.zeros((), dtype=wide, device=hidden.device)
            for first in range(0, len(inputs), DECODED_ROWS):
                rows = slice(first, first + DECODED_ROWS)
                scores = torch.addmm(shift, inputs[rows], decoder.t()).to(wide)  # (chunk, num_classes)
                loss_sum += _summed_loss(scores, targets[rows], then_gradient=True)
                of_bias += scores.sum(dim=0)
                gradient = scores.to(kind)
                torch.mm(gradient, decoder, out=of_hidden[rows])
                if of_weight is not None:
                    _add_product(of_weight, gradient.t(), inputs[rows])
        ctx.save_for_backward(of_hidden.to(hidden.dtype), of_weight, of_bias)
        ctx.types = weight.dtype, bias.dtype
        return loss_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        """Scale the gradients that forward kept."""
        of_hidden, of_weight, of_bias = ctx.saved_tensors
        of_weight = None if of_weight is None else (of_weight * loss_gradient).to(ctx.types[0])
        return (
            of_hidden * loss_gradient.to(of_hidden.dtype),
            of_weight,
            (of_bias * loss_gradient).to(ctx.types[1]),
            None,
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product of matrices to a total, which is wider than they are where they are in half precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _check_penalties(alpha: float, beta: float) -> None:
    if alpha < 0 or beta < 0:
        raise ValueError(f"alpha and beta must be 0 or more, got {alpha!r} and {beta!r}; 2 and 1 are usual")


def activation_penalty(
    raw: Tensor, dropped: Tensor, *, alpha: float, beta: float, mask: Tensor | None = None
) -> Tensor | None:
    """Return AR plus TAR, or None where both are off.

    Args:
        raw: float (batch, seq_len, hidden), the last layer's output before dropout; TAR takes it.
        dropped: The same after dropout; AR takes it.
        alpha: Weight of AR, the mean square of the output.
        beta: Weight of TAR, the mean square of its change from one position to the next.
        mask: bool (batch, seq_len), True at real positions; None means all are.

    Source: Merity et al. 2017, section 4.3; fastai 2.8 callback/rnn.py.
    """
    beta = beta if raw.shape[1] > 1 else 0.0  # a window of one token has no change over time
    return _whole_penalty(penalty_parts(raw, dropped, alpha=alpha, beta=beta, mask=mask))


def penalty_parts(
    raw: Tensor, dropped: Tensor, *, alpha: float, beta: float, mask: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Return AR and TAR one by one, where they are not off, each with the number of positions that it is a mean over.

    Arguments as in `activation_penalty`. TAR of a window of one token is 0, over no position.
    """
    parts = []
    if alpha:
        parts.append((alpha, _mean_over(widened(dropped).pow(2), mask)))
    if beta:
        wide = widened(raw)
        change = (wide[:, 1:] - wide[:, :-1]).pow(2)
        parts.append((beta, _mean_over(change, None if mask is None else mask[:, 1:])))
    return [(weight * mean, count) for weight, (mean, count) in parts]


def _whole_penalty(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor | None:
    return torch.stack([term for term, _ in parts]).sum() if parts else None


def _mean_over(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean of values (batch, steps, width) over the positions of a mask, and how many these are."""
    if mask is None:
        positions = torch.tensor(values.shape[0] * values.shape[1])
        return (values.mean() if values.numel() else values.sum()), positions
    positions = mask.sum()
    return (values * mask.unsqueeze(-1)).sum() / (positions.clamp(min=1) * values.shape[-1]), positions


def detach(state: Any) -> Any:
    """Detach a nested tuple of tensors from its graph."""
    if isinstance(state, Tensor):
        return state.detach()
    return None if state is None else type(state)(detach(part) for part in state)


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
    """Cross-entropy over the positions that have a target; no state is passed from batch to batch.

    For masked and causal language models alike. A batch holds the model's inputs and ``targets``; a target of -100 asks
    for nothing. Which positions' logits are computed is left to a function, because a masked model needs those of one
    position in seven only.

    Args:
        logits_at: Runs the model and returns the logits at the wanted positions.
    """

    def __init__(self, *, logits_at: LogitsAt = logits_of_all) -> None:
        self.logits_at = logits_at

    def count(self, batch: Batch) -> float:
        """Return the number of targets that are not ignored."""
        return float((batch["targets"] != IGNORED).sum())

    def __call__(self, model: nn.Module, batch: Batch, carry: Any) -> ObjectiveOutput:
        """Run the model on everything but targets and row indices, and sum the losses of the positions asked for."""
        inputs = {key: value for key, value in batch.items() if key not in ("targets", "row")}
        wanted = batch["targets"] != IGNORED
        logits = self.logits_at(model, inputs, wanted)  # (wanted positions, num_classes)
        targets = batch["targets"][wanted]  # (wanted positions,)
        loss_sum = summed_cross_entropy(logits, targets)
        return ObjectiveOutput(loss_sum, None, None, logits.detach(), targets)
