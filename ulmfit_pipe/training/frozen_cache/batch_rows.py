"""Which part of a tensor belongs to which row of a batch, so that it can be kept by row and put together anew.

A batch is a dict of tensors with a row an example: ``row`` names the rows, ``attention_mask`` (rows, seq_len) tells
text from padding, and ``document`` (windows,), where there is one, says which row each window is of: then everything
but ``labels`` and ``row`` has a row a window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROW, MASK, OWNER, LABELS = "row", "attention_mask", "document", "labels"
ROUNDING = {torch.float64: 1e-8, torch.float16: 2e-2, torch.bfloat16: 2e-2}  # of the largest value; float32 1e-4
TRIAL_ROWS = 4  # of a batch that something is tried out on

Batch = Mapping[str, Tensor]


class PrefixError(ValueError):
    """What frozen groups give out cannot be kept by row; the message says why."""


def is_filler(batch: Batch) -> bool:
    """Tell whether a batch's rows only stand in for a process' empty share, and count for nothing."""
    return bool(getattr(batch, "filler", False))


@dataclass(frozen=True)
class RowAxes:
    """Where a tensor has its rows.

    Attributes:
        row: The axis with a place a row of the batch (or a window).
        text: The axis with a place a token, or None.
        owned: Whether its rows are windows.
    """

    row: int
    text: int | None
    owned: bool

    def count(self, batch: Batch) -> int:
        """Return the size of the row axis for a batch."""
        return len(batch[OWNER]) if self.owned else len(batch[ROW])

    def split(self, value: Tensor, batch: Batch) -> list[Tensor]:
        """Cut a batch's tensor into a tensor a row: its tokens without padding, or its one place.

        Raises:
            PrefixError: The tensor has not as many rows as the batch, or windows are not in the order of their rows.
        """
        if value.shape[self.row] != self.count(batch):
            raise PrefixError(f"a batch of {self.count(batch)} rows gave {value.shape[self.row]}")
        if self.text is None:
            flat = value.movedim(self.row, 0)  # (rows, ...)
        else:
            flat = value.movedim((self.row, self.text), (0, 1))[batch[MASK].bool()]  # (tokens, ...)
        return list(flat.split(self._sizes(batch)))

    def join(self, parts: Sequence[Tensor], batch: Batch) -> Tensor:
        """Put a batch's tensor together from one tensor a row; padding is zero.

        Raises:
            PrefixError: A row has other lengths than when it was cut.
        """
        if [len(part) for part in parts] != self._sizes(batch):
            raise PrefixError("a row has another length than it had before, so its tensors are not the same each time")
        flat = torch.cat(list(parts)).to(batch[ROW].device)
        if self.text is None:
            return flat.movedim(0, self.row)
        value = flat.new_zeros(*batch[MASK].shape, *flat.shape[1:])
        value[batch[MASK].bool()] = flat
        return value.movedim((0, 1), (self.row, self.text))

    def _sizes(self, batch: Batch) -> list[int]:
        """Return how many tokens (or places) each row of the batch has."""
        sizes = torch.ones(self.count(batch), dtype=torch.long) if self.text is None else batch[MASK].sum(1).cpu()
        if self.owned:
            owner = batch[OWNER].cpu()
            if bool((owner[1:] < owner[:-1]).any()):
                raise PrefixError(f"the windows of a batch are not in the order of their rows: {owner.tolist()}")
            sizes = torch.zeros(len(batch[ROW]), dtype=sizes.dtype).index_add(0, owner, sizes)
        return sizes.tolist()


def find_axes(first: Tensor, second: Tensor, batches: tuple[Batch, Batch]) -> RowAxes:
    """Find a tensor's axes from its shapes for two batches that differ in their numbers of rows and of tokens.

    Raises:
        PrefixError: It has no row axis, or an axis changed that is none of both.
    """
    sizes = {"rows": tuple(len(batch[ROW]) for batch in batches)}
    if all(OWNER in batch for batch in batches):
        sizes["windows"] = tuple(len(batch[OWNER]) for batch in batches)
    if all(MASK in batch for batch in batches):
        sizes["text"] = tuple(batch[MASK].shape[1] for batch in batches)
    found: dict[str, list[int]] = {"rows": [], "windows": [], "text": [], "other": []}
    for axis, pair in enumerate(zip(first.shape, second.shape, strict=False)):
        if pair[0] != pair[1]:
            found[next((name for name in reversed(sizes) if sizes[name] == pair), "other")].append(axis)
    rows = found["windows"] or found["rows"]
    if len(rows) != 1 or len(found["text"]) > 1 or found["other"] or first.ndim != second.ndim:
        raise PrefixError(
            f"it has the shape {tuple(first.shape)} for {_described(batches[0])} and {tuple(second.shape)} for "
            f"{_described(batches[1])}, so it cannot be kept by row"
        )
    return RowAxes(rows[0], next(iter(found["text"]), None), owned=bool(found["windows"]))


def _described(batch: Batch) -> str:
    windows = f", {len(batch[OWNER])} windows" if OWNER in batch else ""
    tokens = f" of {batch[MASK].shape[1]} tokens" if MASK in batch else ""
    return f"{len(batch[ROW])} rows{windows}{tokens}"


def trial_batches(batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], list[int]]:
    """Make two small batches of a batch's first rows, for trying out what becomes of rows and padding.

    In the first each text is cut to a length of its own, the shortest first. The second has the same rows in another
    order, some of them twice, and one column of padding less.

    Returns:
        Both batches, and which row of the first each row of the second is.

    Raises:
        PrefixError: Rows have no names, or all texts have a single token.
    """
    if ROW not in batch:
        raise PrefixError(f"batches name no rows: they have {', '.join(sorted(batch))} and no {ROW!r}")
    count = min(TRIAL_ROWS, len(batch[ROW]))
    first = _cut_to_lengths(picked(batch, range(count)))
    rows = [*reversed(range(count)), count - 1, 0]
    return first, _narrowed(picked(first, rows)), rows


def picked(batch: Batch, rows: Sequence[int]) -> dict[str, Tensor]:
    """Return a batch of some rows of a batch, with the windows that are theirs; a row may come twice."""
    chosen = torch.tensor(list(rows))
    if OWNER not in batch:
        return {name: value[chosen.to(value.device)] for name, value in batch.items()}
    owner = batch[OWNER]
    windows = [(owner == row).nonzero().flatten() for row in rows]
    counts = torch.tensor([len(places) for places in windows])
    result = {}
    for name, value in batch.items():
        by_row = name in (ROW, LABELS)
        result[name] = value[chosen.to(value.device) if by_row else torch.cat(windows).to(value.device)]
    result[OWNER] = torch.arange(len(rows)).repeat_interleave(counts).to(owner.device)
    return result


def _cut_to_lengths(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Shorten texts by their mask, to rising lengths, so that the last column is padding everywhere."""
    if MASK not in batch:
        return batch
    mask = batch[MASK]
    rows, width = mask.shape
    if width < 2:
        raise PrefixError("all texts have a single token, which tells nothing of how a model takes padding")
    most = mask.sum(1).clamp(max=width - 1)
    kept = (most * (torch.arange(rows, device=mask.device) + 1) // rows).clamp(min=1)
    places = mask.cumsum(1) if _padded_right(mask) else mask.flip(1).cumsum(1).flip(1)
    return {**batch, MASK: mask * (places <= kept[:, None])}


def _narrowed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take away a column that is padding in every row."""
    if MASK not in batch:
        return batch
    mask = batch[MASK]
    columns = slice(None, -1) if _padded_right(mask) else slice(1, None)
    return {
        name: value[:, columns] if value.shape[:2] == mask.shape and not value.is_floating_point() else value
        for name, value in batch.items()
    }


def _padded_right(mask: Tensor) -> bool:
    return bool(mask[:, 0].all())


def about_equal(first: Any, second: Any) -> bool:
    """Return whether two tensors are the same up to rounding; NaN is like nothing."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.numel() == 0 or not first.is_floating_point():
        return torch.equal(first, second)
    gap, largest = (first - second).abs().max(), second.abs().max()
    return bool(gap <= ROUNDING.get(first.dtype, 1e-4) * largest)
