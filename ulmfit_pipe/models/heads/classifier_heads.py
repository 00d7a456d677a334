"""What turns a document's outputs into label scores: concat pooling and the two-block head, or the mean and one layer.

Sources: Howard & Ruder 2018, section 3.3 (concat pooling, two linear blocks with batch norm and dropout); the blocks
are fastai 2.8's `LinBnDrop` (batch norm, dropout, linear without bias, activation). Mean pooling: Reimers & Gurevych
2019, section 3.
"""

import math
from typing import Literal

import torch
from torch import nn
from transformers import initialization as init

NORM_BIAS = 1e-3  # initial bias of the head's batch norms, fastai 2.8 layers.py


def at_least_single(x: torch.Tensor) -> torch.Tensor:
    """Return x in float32, or as it is where it is float64: sums and losses are not taken in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def masked_sum(outputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum outputs float (batch, seq_len, width) over where the mask bool (batch, seq_len) is True: (batch, width)."""
    return at_least_single(outputs.masked_fill(~mask[..., None], 0)).sum(1)


class PrefixPool:
    """Running max and sum of outputs that are read without gradients, for each row of a batch."""

    def __init__(self, like: torch.Tensor) -> None:
        """Start with nothing read: max -inf, sum 0, both of the shape (batch, width), dtype and device of `like`."""
        self.peak = torch.full_like(like, -torch.inf)
        self.total = torch.zeros_like(like)

    def update(self, rows: torch.Tensor, outputs: torch.Tensor) -> None:
        """Add outputs float (n, steps, width), all real positions, of the rows int64 (n,)."""
        self.peak[rows] = torch.maximum(self.peak[rows], outputs.amax(1).to(self.peak.dtype))
        self.total[rows] += outputs.sum(1, dtype=self.total.dtype)


class ConcatPooling(nn.Module):
    """Concatenate [last, max, mean] of a document's outputs over its real positions."""

    def forward(
        self,
        outputs: torch.Tensor,
        mask: torch.Tensor,
        *,
        lengths: torch.Tensor | None = None,
        prefix: PrefixPool | None = None,
    ) -> torch.Tensor:
        """Pool right-padded outputs.

        Args:
            outputs: float (batch, seq_len, width).
            mask: bool (batch, seq_len), True at real positions; at least one in every row, padding to the right.
            lengths: int64 (batch,), tokens of the whole document; None when nothing was read before `outputs`.
            prefix: What was read before `outputs`.

        Returns:
            float (batch, 3 * width).
        """
        kept = mask.sum(1)  # (batch,)
        last = outputs[torch.arange(len(outputs), device=outputs.device), kept - 1]  # (batch, width)
        peak = outputs.masked_fill(~mask[..., None], -torch.inf).max(1).values
        total = masked_sum(outputs, mask)  # (batch, width)
        if prefix is not None:
            peak = torch.maximum(peak, prefix.peak.to(peak.dtype))
            total = total + prefix.total
        mean = total / (kept if lengths is None else lengths)[:, None]
        return torch.cat([last, peak, mean.to(last.dtype)], dim=1)


class TokenPooling(nn.Module):
    """One vector of a document's outputs over its real positions, as a sentence encoder was trained to be read."""

    def __init__(self, mode: Literal["mean", "max", "cls", "last"], *, normalize: bool = False) -> None:
        """Take the mean, the maximum, the first or the last token; divided by its length if `normalize`."""
        super().__init__()
        self.mode = mode
        self.normalize = normalize

    def forward(self, outputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool right-padded outputs.

        Args:
            outputs: float (batch, seq_len, width).
            mask: bool (batch, seq_len), True at real positions; at least one in every row.

        Returns:
            float (batch, width).
        """
        kept = mask.sum(1)  # (batch,)
        if self.mode == "mean":
            pooled = masked_sum(outputs, mask) / kept[:, None]
        elif self.mode == "max":
            pooled = outputs.masked_fill(~mask[..., None], -torch.inf).max(1).values
        elif self.mode == "cls":
            pooled = outputs[:, 0]
        else:
            pooled = outputs[torch.arange(len(outputs), device=outputs.device), kept - 1]
        if self.normalize:
            pooled = nn.functional.normalize(at_least_single(pooled), dim=-1)
        return pooled.to(outputs.dtype)


def needs_two_rows(norm: nn.Module) -> bool:
    """Return whether a norm takes a variance over this process's rows only (those marked `global_batch` take all).

    Training over several processes marks its norms; they refuse a single row themselves.
    """
    return norm.training and not hasattr(norm, "global_batch")


class HeadBlock(nn.Module):
    """Batch norm, dropout, linear without bias, and ReLU unless it is the last block."""

    def __init__(self, in_features: int, out_features: int, *, dropout: float, activation: bool) -> None:
        """Take the widths, the dropout probability and whether a ReLU follows."""
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.activation = nn.ReLU() if activation else nn.Identity()
        nn.init.constant_(self.norm.bias, NORM_BIAS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float (batch, in_features) to float (batch, out_features).

        Raises:
            ValueError: A training batch has one row, of which batch norm cannot take a variance.
        """
        if len(x) == 1 and needs_two_rows(self.norm):
            raise ValueError(
                "batch norm in training needs at least 2 documents in a batch, got 1; use a larger batch size, merge "
                "the last batch with its neighbour, or put the head's norms in eval mode"
            )
        return self.activation(self.linear(self.dropout(self.norm(x))))


class PoolingClassifierHead(nn.Module):
    """The two-block head on pooled features; its key names do not depend on the dropouts."""

    def __init__(
        self, in_features: int, hidden_size: int, num_labels: int, *, dropout: float, hidden_dropout: float
    ) -> None:
        """Build the blocks `in_features -> hidden_size -> num_labels` with their two dropouts."""
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                HeadBlock(in_features, hidden_size, dropout=dropout, activation=True),
                HeadBlock(hidden_size, num_labels, dropout=hidden_dropout, activation=False),
            ]
        )

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map pooled features float (batch, in_features) to logits float (batch, num_labels)."""
        for block in self.blocks:
            pooled = block(pooled)
        return pooled


class LinearHead(nn.Module):
    """Dropout and one linear layer, the head that transformers puts on an encoder."""

    def __init__(self, in_features: int, num_labels: int, *, dropout: float) -> None:
        """Take the widths and the dropout probability."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map pooled features float (batch, in_features) to logits float (batch, num_labels)."""
        return self.linear(self.dropout(pooled))


def initialize_head(module: nn.Module) -> None:
    """Initialize one module of a head when transformers asks for it: linear layers as torch does, norms as fastai."""
    if isinstance(module, nn.Linear):
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm1d):
        init.ones_(module.weight)
        init.constant_(module.bias, NORM_BIAS)
        for name, buffer in module.named_buffers():
            init.constant_(buffer, 1 if name == "running_var" else 0)
