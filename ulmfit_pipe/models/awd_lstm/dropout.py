"""Dropout in the three shapes the AWD-LSTM needs, and the LSTM layer whose recurrent weight is dropped.

Source: Merity et al. 2017, sections 2 and 4; semantics of fastai 2.8 (text/models/awdlstm.py).
"""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

LstmState = tuple[torch.Tensor, torch.Tensor]  # (h, c), each (1, batch, hidden)


def dropout_mask(like: torch.Tensor, shape: tuple[int, ...], p: float) -> torch.Tensor:
    """Return a mask of 0 and 1/(1-p) of `shape`, with the dtype and device of `like`.

    On a CPU p is rounded to a multiple of 2**-16: torch's `bernoulli_` takes 10 ns a number on an AMD EPYC, four
    16-bit draws out of one 64-bit number take 2.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape).bernoulli_(1 - p).div_(1 - p)
    count = math.prod(shape)
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    dropped = min(round(p * 2**16), 2**16 - 1)  # of the 2**16 values a draw may have, the lowest
    return (draws >= dropped - 2**15).to(like.dtype).div_(1 - p).view(shape)


def drop_elements(weight: torch.Tensor, p: float) -> torch.Tensor:
    """Drop single elements of a weight of any shape and scale the others by 1/(1-p)."""
    if weight.device.type != "cpu":
        return F.dropout(weight, p)  # one fused operation that keeps a mask of single bytes
    return weight * dropout_mask(weight, tuple(weight.shape), p)


class TimeSharedDropout(nn.Module):
    """Dropout with one mask per row and feature, the same at every time step."""

    def __init__(self, p: float) -> None:
        """Take the probability that a feature is dropped."""
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop features of x: float (batch, seq_len, features); the same shape comes back."""
        if not self.training or self.p == 0:
            return x
        return x * dropout_mask(x, (x.shape[0], 1, x.shape[2]), self.p)

    def extra_repr(self) -> str:
        """Show the probability in the printed model."""
        return f"p={self.p}"


def drop_vocabulary_rows(embedded: torch.Tensor, input_ids: torch.Tensor, *, vocab_size: int, p: float) -> torch.Tensor:
    """Drop whole words: every occurrence of a dropped vocabulary row is zero, the others are scaled by 1/(1-p).

    Args:
        embedded: float (batch, seq_len, embedding), the looked-up rows.
        input_ids: int64 (batch, seq_len).
        vocab_size: Rows of the vocabulary.
        p: Probability that a row is dropped.

    Returns:
        float (batch, seq_len, embedding).
    """
    row_mask = dropout_mask(embedded, (vocab_size, 1), p)  # (vocab, 1)
    return embedded * row_mask[input_ids]


class WeightDropLSTM(GradientCheckpointingLayer):
    """One LSTM layer (batch first) with dropout on its recurrent weight, drawn once per forward in training.

    The parameters are plain and named as in `torch.nn.LSTM`; the dropped weight is a temporary of `forward`, so
    moving, copying, saving and data-parallel wrapping see nothing unusual. Under gradient checkpointing the layer keeps
    its input and runs again in the backward pass, with the same dropped weight.
    """

    runs_eagerly = True  # a compiler would unroll the layer over time

    def __init__(self, input_size: int, hidden_size: int, *, weight_dropout: float) -> None:
        """Take the widths of input and output, and the dropout probability of `weight_hh_l0`."""
        super().__init__()
        self.input_size, self.hidden_size, self.weight_dropout = input_size, hidden_size, weight_dropout
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(4 * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.empty(4 * hidden_size))
        for weight in self.parameters():
            nn.init.uniform_(weight, -self.init_bound, self.init_bound)

    @property
    def init_bound(self) -> float:
        """Bound of the uniform initialization, that of `torch.nn.LSTM`."""
        return 1 / math.sqrt(self.hidden_size)

    def forward(self, x: torch.Tensor, state: LstmState | None = None) -> tuple[torch.Tensor, LstmState]:
        """Run the layer.

        Args:
            x: float (batch, seq_len, input).
            state: (h, c), each float (1, batch, hidden); None starts from zeros.

        Returns:
            output float (batch, seq_len, hidden), and the new (h, c).
        """
        if state is None:
            zeros = x.new_zeros(1, x.shape[0], self.hidden_size)
            state = (zeros, zeros)
        weight_hh: torch.Tensor = self.weight_hh_l0
        if self.training and self.weight_dropout > 0:
            weight_hh = drop_elements(weight_hh, self.weight_dropout)
        weights: list[torch.Tensor] = [self.weight_ih_l0, weight_hh, self.bias_ih_l0, self.bias_hh_l0]
        if x.is_cuda:
            weights = _in_one_chunk(weights)
        # `train` only keeps what backward needs here (inter-layer dropout is 0), also when gradients are taken in eval.
        train = torch.is_grad_enabled()
        if _in_bf16_on_a_cpu(x) and not cpu_has_bf16_lstm():
            return _lstm_in_float32(x, state, weights, train=train)
        output, h, c = torch.lstm(x, state, weights, True, 1, 0.0, train, False, True)
        return output, (h, c)

    def extra_repr(self) -> str:
        """Show sizes and dropout in the printed model."""
        return f"{self.input_size}, {self.hidden_size}, weight_dropout={self.weight_dropout}"


@functools.cache
def cpu_has_bf16_lstm() -> bool:
    """Return whether torch can run an LSTM in bfloat16 on this processor; with AVX2 alone it raises a RuntimeError."""
    number, matrix, bias = torch.zeros(1, 1, 1), torch.zeros(4, 1), torch.zeros(4)  # nn.LSTM would draw random weights
    weights = [matrix, matrix, bias, bias]
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.lstm(number, (number, number), weights, True, 1, 0.0, True, False, True)
    except RuntimeError:
        return False
    return True


def _in_bf16_on_a_cpu(x: torch.Tensor) -> bool:
    if x.device.type != "cpu":
        return False
    return (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype) == torch.bfloat16


def _lstm_in_float32(
    x: torch.Tensor, state: LstmState, weights: list[torch.Tensor], *, train: bool
) -> tuple[torch.Tensor, LstmState]:
    """Run an LSTM in float32 and return bfloat16, as the caller expects."""
    h, c = state
    with torch.autocast("cpu", enabled=False):
        output, h, c = torch.lstm(
            x.float(), (h.float(), c.float()), [weight.float() for weight in weights], True, 1, 0.0, train, False, True
        )
    return output.bfloat16(), (h.bfloat16(), c.bfloat16())


def _in_one_chunk(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the same weights as views of one flat buffer, in cuDNN's order (matrices, then biases).

    cuDNN wants them so; separate tensors make it copy them at every call and warn about it.
    """
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    pieces = flat.split([weight.numel() for weight in weights])
    return [piece.view(weight.shape) for piece, weight in zip(pieces, weights, strict=True)]
