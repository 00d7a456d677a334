"""Batches in windows of as many as make an optimizer step: counted, and begun anywhere in an epoch."""

import itertools
import math
from collections.abc import Iterable, Iterator

from ulmfit_pipe.training.objectives import Batch
from ulmfit_pipe.training.records import Batches


def windows_of(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Group micro-batches into windows of ``size``; the last may be smaller."""
    iterator = iter(batches)
    while window := list(itertools.islice(iterator, size)):
        yield window


def count_steps(batches: Batches, epochs: int, accumulation_steps: int, *, first_epoch: int = 0) -> list[int]:
    """Return the number of optimizer steps of each epoch (their number of batches may differ)."""
    counts = []
    for epoch in range(first_epoch, first_epoch + epochs):
        batches.set_epoch(epoch)
        counts.append(math.ceil(len(batches) / accumulation_steps))
    if not counts or min(counts) < 1:
        where = f"epoch {first_epoch + counts.index(0)} (counted from 0)" if counts else f"a phase of {epochs} epochs"
        raise ValueError(f"{where} has no batch to train on; give more rows or a smaller batch size")
    return counts


def batches_from(batches: Batches, first: int) -> Iterator[Batch]:
    """Iterate over the batches of the current epoch from a certain one on.

    Those before it are passed over, or not made at all where the batches know how (``from_batch``).
    """
    begin = getattr(batches, "from_batch", None)
    if begin is not None:
        return iter(begin(first))
    iterator = iter(batches)
    for _ in itertools.islice(iterator, first):
        pass
    return iterator
