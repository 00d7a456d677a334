"""A batch's tensor split into a tensor per row, and put together again for another batch.

A batch is a dict of tensors with a row per example: ``row`` names the rows, ``attention_mask`` (rows, seq_len) tells
text from padding, and ``document`` (windows,), where there is one, says which row each window is of: then everything
but ``labels`` and ``row`` has a row per window.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

ROW, MASK, OWNER, LABELS = "row", "attention_mask", "document", "labels"
ROUNDING = {torch.float64: 1e-8, torch.float16: 2e-2, torch.bfloat16: 2e-2}  # of the largest value; float32 1e-4

Batch = Mapping[str, Tensor]


class PrefixError(ValueError):
    """The outputs of frozen groups cannot be cached per row; the message gives the reason."""


def has_tokens(value: Tensor, batch: Batch) -> bool:
    """Return whether a batch's tensor is (rows, seq_len, ...), and not (rows, ...)."""
    return MASK in batch and value.ndim > 2 and value.shape[:2] == batch[MASK].shape


def split_rows(value: Tensor, batch: Batch, *, tokens: bool) -> list[Tensor]:
    """Split a batch's tensor into a tensor per row: its tokens without padding, or its one vector (its windows').

    Raises:
        PrefixError: The tensor has not as many rows as the batch, or windows are not in the order of their rows.
    """
    count = len(batch[OWNER] if OWNER in batch else batch[ROW])
    if len(value) != count or tokens != has_tokens(value, batch):
        raise PrefixError(f"a batch of {count} rows gave a tensor of the shape {tuple(value.shape)}")
    return list((value[batch[MASK].bool()] if tokens else value).split(_sizes(batch, tokens=tokens)))


def join_rows(parts: Sequence[Tensor], batch: Batch, *, tokens: bool) -> Tensor:
    """Put a batch's tensor together from one tensor per row; padding is zero.

    Raises:
        PrefixError: A row has another length than when it was split.
    """
    if [len(part) for part in parts] != _sizes(batch, tokens=tokens):
        raise PrefixError("a row has another length than it had before, so its tensors are not the same each time")
    flat = torch.cat(list(parts)).to(batch[ROW].device)
    if not tokens:
        return flat
    value = flat.new_zeros(*batch[MASK].shape, *flat.shape[1:])
    value[batch[MASK].bool()] = flat
    return value


def _sizes(batch: Batch, *, tokens: bool) -> list[int]:
    """Return how many tokens (or vectors) each row of the batch has."""
    sizes = batch[MASK].sum(1).cpu() if tokens else torch.ones(len(batch[ROW]), dtype=torch.long)
    if OWNER in batch:
        owner = batch[OWNER].cpu()
        if bool((owner[1:] < owner[:-1]).any()):
            raise PrefixError(f"the windows of a batch are not in the order of their rows: {owner.tolist()}")
        sizes = sizes if tokens else torch.ones_like(owner)
        sizes = torch.zeros(len(batch[ROW]), dtype=sizes.dtype).index_add(0, owner, sizes)
    return sizes.tolist()


def picked(batch: Batch, rows: Sequence[int]) -> dict[str, Tensor]:
    """Return a batch of some rows of a batch, with the windows that are theirs."""
    chosen = windows = torch.tensor(list(rows))
    counts = torch.ones_like(chosen)
    if OWNER in batch:
        found = [(batch[OWNER] == row).nonzero().flatten() for row in rows]
        windows, counts = torch.cat(found), torch.tensor([len(places) for places in found])
    taken = {name: chosen if name in (ROW, LABELS) else windows for name in batch}
    result = {name: value[taken[name].to(value.device)] for name, value in batch.items()}
    if OWNER in batch:
        result[OWNER] = torch.arange(len(rows)).repeat_interleave(counts).to(batch[OWNER].device)
    return result


def about_equal(first: Any, second: Any) -> bool:
    """Return whether two tensors are the same up to rounding; NaN equals nothing."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.numel() == 0 or not first.is_floating_point():
        return torch.equal(first, second)
    gap, largest = (first - second).abs().max(), second.abs().max()
    return bool(gap <= ROUNDING.get(first.dtype, 1e-4) * largest)
