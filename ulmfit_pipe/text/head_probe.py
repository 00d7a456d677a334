"""The head first: logistic regression on what the frozen network gives for each text, put into the head.

Each text is read once, scikit-learn finds the weights in seconds, and they are where the head starts: in its one linear
layer, or in the two blocks of ULMFiT's head, whose hidden units hold the positive and the negative part of each
direction.

Sources: linear probing, then fine-tuning: Kumar et al. 2022; the head first: Howard & Ruder 2018, section 3.3.
"""

import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from ulmfit_pipe.console import reported, working
from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.models.heads.classifier_heads import PoolingClassifierHead
from ulmfit_pipe.models.heads.window_classifier import mean_by_document
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.training.distributed.processes import gather_bytes, is_filler, to_device
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.linear_probe import Features, LinearProbe, fit_probe, held_out_score
from ulmfit_pipe.training.objectives import Batch
from ulmfit_pipe.training.records import START, Batches, EpochRecord

FIRST_SIZE = 1 << 16  # tokens of a batch: a larger one waits until the speed is known, where time is limited
MOST_ROWS = 20_000  # texts that the probe reads: more change a linear classifier little
CHECK_TOLERANCE = 1e-3  # of the largest score; what goes into the head must give what comes out
ROUNDED_TOLERANCE = 5e-2  # the same in half precision


class ProbeError(UlmfitError, ValueError):
    """The head of a network is not one whose weights can be set from its inputs; the message says why."""


def find_head(network: nn.Module, num_labels: int) -> nn.Linear | PoolingClassifierHead:
    """Return the part of a classifier whose weights a linear probe can set.

    Args:
        network: The classifier.
        num_labels: Labels it scores.

    Raises:
        ProbeError: It has neither ULMFiT's head nor a linear layer that gives the scores.
    """
    modules = list(network.modules())
    for module in modules:
        if isinstance(module, PoolingClassifierHead):
            return module
    for module in reversed(modules):
        if isinstance(module, nn.Linear) and module.out_features == num_labels:
            return module
    raise ProbeError(f"a {type(network).__name__} has no linear layer with {num_labels} outputs")


def last_layer(network: nn.Module, num_labels: int) -> nn.Linear:
    """Return the linear layer that gives a classifier's scores.

    Raises:
        ProbeError: There is none.
    """
    head = find_head(network, num_labels)
    if isinstance(head, PoolingClassifierHead):
        blocks: Any = head.blocks
        layer: nn.Linear = blocks[-1].linear
        return layer
    return head


@torch.no_grad()
def frozen_features(
    reader: nn.Module, head: nn.Module, batches: Batches, *, accelerator: Accelerator, until: float | None = None
) -> Features:
    """Read texts once and keep what goes into the head; every process gets the rows of all.

    Args:
        reader: The classifier, or what averages its windows.
        head: The part of it that `find_head` names.
        batches: Labelled batches; each row once.
        accelerator: Device, precision and processes.
        until: ``time.monotonic()`` by which reading ends, or None: a batch that would take longer at the speed of
            those before is skipped; the speed is measured on small ones, of which one is read in any case.

    Raises:
        ProbeError: What goes into the head does not explain the scores.
    """
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    was_training, started = reader.training, time.perf_counter()
    reader.to(accelerator.device).eval()
    rows: list[Tensor] = []
    values: list[Tensor] = []
    labels: list[Tensor] = []
    most = math.ceil(MOST_ROWS / accelerator.num_processes)
    speed = _Speed(until)
    read = speed.in_time(batch for batch in batches if not is_filler(batch))
    try:
        for batch in reported(read, "probe: reading texts", total=len(batches), unit="batches"):
            seen.clear()
            given = {name: value for name, value in batch.items() if name not in ("labels", "row")}
            inputs = to_device(given, accelerator)
            with accelerator.autocast():
                logits = reader(**inputs).logits
            found = _of_documents(torch.cat(seen), inputs)
            if not values:
                _check(head, found, logits, accelerator)
            rows.append(batch["row"])
            values.append(found.float().cpu())
            labels.append(batch["labels"])
            if sum(map(len, rows)) >= most:
                break
    finally:
        handle.remove()
        reader.train(was_training)
    parts = [torch.cat(part).numpy() for part in (rows, values, labels)] if rows else []
    order, found_values, found_labels = _gathered(parts, accelerator)
    seconds = time.perf_counter() - started
    return Features(found_values[order], found_labels[order], seconds, speed.skipped, speed.skipped_seconds)


class _Speed:
    """Which batches can be read before a deadline, at the speed of those before.

    Args:
        until: ``time.monotonic()`` by which reading ends, or None.
    """

    def __init__(self, until: float | None) -> None:
        self.until, self.read, self.seconds = until, 0, 0.0
        self.skipped, self.skipped_seconds = 0, 0.0

    def in_time(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Give the batches that there is time for; large ones that come before a speed is known at the end."""
        large: list[Batch] = []
        for batch in batches:
            if self.until is not None and not self.read and _size(batch) > FIRST_SIZE:
                large.append(batch)
            else:
                yield from self._timed(batch)
        for batch in large:
            yield from self._timed(batch)

    def _timed(self, batch: Batch) -> Iterator[Batch]:
        expected = self.seconds / self.read * _size(batch) if self.read else 0.0
        if self.until is not None and time.monotonic() + expected > self.until and self.read:
            self.skipped += len(batch["row"])
            self.skipped_seconds += expected
            return
        started = time.monotonic()
        yield batch
        self.read, self.seconds = self.read + _size(batch), self.seconds + time.monotonic() - started


def _size(batch: Batch) -> int:
    """Return the number of elements of a batch's largest tensor."""
    return max(value.numel() for value in batch.values() if isinstance(value, Tensor))


def _of_documents(values: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Return the head's input, float (documents, width), one row per document.

    A decoder's head reads every position; the last real one counts.
    """
    if values.ndim == 3:
        mask = inputs["attention_mask"]  # (batch, seq_len)
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        values = values[torch.arange(len(values), device=values.device), last]
    return mean_by_document(values, inputs["document"]) if "document" in inputs else values


def _check(head: nn.Module, values: Tensor, logits: Tensor, accelerator: Accelerator) -> None:
    with accelerator.autocast():
        again = head(values)
    scale = max(float(logits.abs().max()), 1e-6)
    tolerance = CHECK_TOLERANCE if accelerator.mixed_precision == "no" else ROUNDED_TOLERANCE
    if again.shape != logits.shape or float((again - logits).abs().max()) > tolerance * scale:
        raise ProbeError("the scores are not the output of its last layer for one vector per text")


def _gathered(parts: Sequence[NDArray[Any]], accelerator: Accelerator) -> tuple[NDArray[Any], ...]:
    """Return the order of all processes' rows by number, and what else was found, in the order that it came."""
    if accelerator.num_processes > 1:
        buffer = io.BytesIO()
        np.savez(buffer, *parts)
        content = gather_bytes(buffer.getvalue() if parts else b"", accelerator)
        loaded = [np.load(io.BytesIO(one)) for one in content if one]
        parts = [np.concatenate([arrays[f"arr_{number}"] for arrays in loaded]) for number in range(3)]
    return np.argsort(parts[0], kind="stable"), parts[1], parts[2]


def same_everywhere(probe: LinearProbe, accelerator: Accelerator) -> LinearProbe:
    """Return the main process's probe on every process: the last digits of a fit may differ from machine to machine."""
    if accelerator.num_processes == 1:
        return probe
    buffer = io.BytesIO()
    np.savez(buffer, weight=probe.weight, bias=probe.bias)
    main = np.load(io.BytesIO(gather_bytes(buffer.getvalue(), accelerator)[0]))
    return replace(probe, weight=main["weight"], bias=main["bias"])


def main_number(number: float, accelerator: Accelerator) -> float:
    """Return the main process's number on every process."""
    return float(gather_bytes(repr(float(number)).encode(), accelerator)[0])


@torch.no_grad()
def set_head(
    head: nn.Linear | PoolingClassifierHead, probe: LinearProbe, features: Features, *, scale: float = 1.0
) -> None:
    """Initialize a head so that its outputs are the scores of a linear probe.

    Args:
        head: One linear layer, or ULMFiT's two blocks.
        probe: The probe.
        features: What it was fitted on.
        scale: Factor on the scores; one below 1 leaves the labels as they are and makes them less certain.
    """
    probe = replace(probe, weight=probe.weight * scale, bias=probe.bias * scale)
    if isinstance(head, nn.Linear):
        head.weight.copy_(torch.from_numpy(probe.weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(probe.bias))
        return
    _set_blocks(head, probe, torch.from_numpy(features.values).double())


def _set_blocks(head: PoolingClassifierHead, probe: LinearProbe, x: Tensor) -> None:
    """Put a linear map into two blocks: a pair of hidden units for each direction, one for the bias.

    max(0, z) - max(0, -z) = z; with more labels than pairs the largest directions are taken. The batch norms get the
    statistics of the training texts, so that training and prediction begin with the same scores.
    """
    blocks: Any = head.blocks
    first, second = blocks
    mean, variance = x.mean(0), x.var(0, correction=0)
    deviation = (variance + first.norm.eps).sqrt()
    first.norm.running_mean.copy_(mean)
    first.norm.running_var.copy_(variance)
    first.norm.weight.fill_(1.0)
    first.norm.bias.zero_()
    weight = torch.from_numpy(probe.weight)  # (num_labels, width), for x as it is
    bias = torch.from_numpy(probe.bias) + weight @ mean
    left, sizes, right = torch.linalg.svd(weight * deviation, full_matrices=False)
    pairs = min(len(sizes), (first.linear.out_features - 1) // 2)
    root = sizes[:pairs].sqrt()
    inner = right[:pairs] * root[:, None]  # (pairs, width)
    outer = left[:, :pairs] * root  # (num_labels, pairs)
    first.linear.weight[: 2 * pairs].copy_(torch.cat([inner, -inner]))
    first.linear.weight[2 * pairs].zero_()
    second.linear.weight.zero_()
    second.linear.weight[:, : 2 * pairs].copy_(torch.cat([outer, -outer], dim=1))
    second.linear.weight[:, 2 * pairs].copy_(bias)
    device = first.linear.weight.device
    hidden = (((x - mean) / deviation) @ first.linear.weight.double().cpu().T).relu()  # (rows, hidden)
    mean, variance = hidden.mean(0), hidden.var(0, correction=0)
    kept = torch.arange(len(mean)) < 2 * pairs  # the others start as they were made
    second.norm.running_mean.copy_(mean)
    second.norm.running_var.copy_(variance)
    second.norm.weight[kept.to(device)] = (variance[kept] + second.norm.eps).sqrt().float().to(device)
    second.norm.bias[kept.to(device)] = mean[kept].float().to(device)
    second.norm.bias[2 * pairs] = 1.0


@dataclass(frozen=True)
class HeadStart:
    """What the head's probe gave.

    Attributes:
        start: What the classifier is worth with it, as an epoch.
        seconds: Time that a forward pass over all training rows takes.
        record: What ``stage.json`` keeps of it.
        set_scale: Sets the head to the probe's weights times a factor.
        out_of_fold: Probabilities, float64 (rows, num_labels), of rows that folds held out, with their labels, int64
            (rows,) or bool (rows, num_labels); None where nothing was held out.
        growth: What their logits are to be multiplied by to be as large as the saved probe's.
        name: What it is called in a line.
    """

    start: EpochRecord
    seconds: float
    record: dict[str, Any]
    set_scale: Callable[[float], None]
    out_of_fold: tuple[NDArray[Any], NDArray[Any]] | None = None
    growth: float = 1.0
    name: str = "the probe"


def training_features(learner: Learner, head: nn.Module, context: RunContext) -> Features:
    """Read the training texts once for a part of the network; where time is limited, in half of what is left."""
    until = None if context.deadline is None else (time.monotonic() + context.deadline) / 2
    return frozen_features(
        learner.model, head, learner.task.train_batches, accelerator=context.accelerator, until=until
    )


def fit_head_probe(
    head: nn.Linear | PoolingClassifierHead, features: Features, *, num_labels: int, seed: int
) -> LinearProbe:
    """Fit logistic regression on what goes into a head, as `fit_probe` does, scaled and centred as the head can be."""
    bias, blocks = getattr(head, "bias", True) is not None, isinstance(head, PoolingClassifierHead)
    return fit_probe(features, num_labels=num_labels, each_alone=blocks, bias=bias, seed=seed)


def starting_epoch(
    learner: Learner, features: Features, *, loss: float, seconds: float, rows: int
) -> tuple[EpochRecord, float]:
    """Return what a classifier is worth before training, as an epoch, and the seconds of a pass over all its rows.

    Args:
        learner: The classifier's learner.
        features: What was read of the training rows.
        loss: Mean log loss on them.
        seconds: Time that setting the head took.
        rows: Training rows.
    """
    read = len(features.labels)
    start = EpochRecord(
        phase=START,
        epoch=0,
        step=0,
        total_steps=0,
        train_loss=loss,
        metrics={} if learner.task.valid_batches is None else learner.validate(),
        lrs=(0.0,) * len(learner.layer_groups),
        seconds=seconds,
        items_per_second=read / seconds,
    )
    return start, features.seconds * (rows - features.skipped) / read + features.skipped_seconds


def start_head(learner: Learner, network: nn.Module, *, context: RunContext, num_labels: int, rows: int) -> HeadStart:
    """Set a classifier's head by logistic regression on frozen features, and report what it is worth.

    Args:
        learner: The classifier's learner; its training batches are read once.
        network: The classifier, without what averages its windows.
        context: Seed, time and processes.
        num_labels: Labels.
        rows: Training rows.

    Raises:
        ProbeError: The head's weights cannot be set so.
    """
    started, accelerator = time.perf_counter(), context.accelerator
    head = find_head(network, num_labels)
    features = training_features(learner, head, context)
    with working("probe: logistic regression"):
        probe = fit_head_probe(head, features, num_labels=num_labels, seed=context.seed)
    probe = same_everywhere(probe, accelerator)
    set_head(head, probe, features)
    found, read = held_out_score(probe, features.labels), len(features.labels)
    seconds = time.perf_counter() - started
    record: dict[str, Any] = {"rows": read, "strength": probe.strength, "seconds": seconds}
    line = f"probe: logistic regression (C {probe.strength:g}) on the frozen network's features of {read:,} texts"
    if found is not None:
        record["held_out"] = asdict(found)
        line += f"; cross-validated accuracy {found.describe()}"
    if features.skipped:
        line += f"; {features.skipped:,} more, which max_seconds leave no time to read, are left out"
    context.tell(f"{line}; its weights are the head's start")
    start, whole = starting_epoch(learner, features, loss=probe.loss(features), seconds=seconds, rows=rows)
    labels = features.labels > 0.5 if features.labels.ndim == 2 else features.labels
    out_of_fold = None if probe.held_out is None else (probe.held_out, labels)

    def set_scale(scale: float) -> None:
        set_head(head, probe, features, scale=scale)

    return HeadStart(start, whole, record, set_scale, out_of_fold, probe.growth)
