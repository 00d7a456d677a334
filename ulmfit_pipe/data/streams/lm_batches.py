"""One stream of tokens -> (batch, bptt) windows for a language model, the share of each process.

All documents, in an order drawn anew each epoch, form one stream. It is split into `batch_size` rows of equal length;
batch k holds the k-th window of every row, so that row r of batch k continues row r of batch k - 1 and the hidden state
can be carried. Processes take blocks of rows of the same windows: the carried state stays true.

Source: the stream order of fastai 2.8 `LMDataLoader`; varying windows from Merity et al. 2017, section 4.1.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset

from ulmfit_pipe.data.process_shares import FillerBatch, Share
from ulmfit_pipe.data.streams.token_arrays import read_token_arrays
from ulmfit_pipe.data.streams.token_stream import TokenStream, order_documents

# Variable windows (AWD-LSTM): the mean is bptt, now and then half of it, with a normal spread around it.
FULL_BPTT_PROBABILITY = 0.95
BPTT_STANDARD_DEVIATION = 5.0
MIN_VARIABLE_BPTT = 5
WINDOW_STREAM = 1  # a random stream of its own for one (seed, epoch), beside that of the documents' order


class LanguageModelBatches:
    """Batches for next-token training: `input_ids` and `targets`, int64 (rows of this rank, window).

    With `total` tokens the stream's first `floor((total - 1) / batch_size) * batch_size` tokens are inputs;
    at most `batch_size` tokens at the end are left out, others each epoch when `shuffle` is on. `targets` is
    the input shifted by one in the stream: the target of a row's last position is the token that follows in
    the stream (the next row's first). The last window may be shorter than `bptt`, at least one token. The
    documents are read in place by index: memory is 4 bytes per token whatever the order.

    The order is a pure function of (seed, epoch); the epoch is 0 until `set_epoch`.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[Sequence[int]],
        *,
        batch_size: int,
        bptt: int,
        seed: int = 0,
        shuffle: bool = True,
        backward: bool = False,
        variable_bptt: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Read the tokens and lay out epoch 0.

        Args:
            dataset: A table with a column `input_ids`, or a sequence of integer lists; a row is a document.
            batch_size: Rows of the global batch, over all processes.
            bptt: Tokens per window (the mean of it with `variable_bptt`).
            seed: With the epoch it fixes the order of documents and the window lengths.
            shuffle: Draw the order of documents anew each epoch; False keeps the table's order (evaluation).
            backward: Read the whole stream of the epoch from its last token to its first: each document's
                tokens in reverse, and the documents in reverse order. The target is then the token before.
            variable_bptt: Window lengths drawn as in AWD-LSTM instead of a constant `bptt`.
            rank: This process, from 0.
            world_size: Number of processes; rank r takes a contiguous block of the rows, uneven if need be. Where
                there are fewer rows than processes, those that get none are given a `FillerBatch`.

        Raises:
            ValueError: For a size below 1, or too little text for the rows.
        """
        _check_sizes(batch_size=batch_size, bptt=bptt, seed=seed, rank=rank, world_size=world_size)
        self.batch_size, self.bptt, self.seed = batch_size, bptt, seed
        self.shuffle, self.backward, self.variable_bptt = shuffle, backward, variable_bptt
        self._documents = read_token_arrays(dataset)
        self.row_length = (self._documents.total - 1) // batch_size  # tokens of one row in one epoch
        if self.row_length < 1:
            raise ValueError(
                f"too little text for a language model: {self._documents.total} tokens in "
                f"{len(self._documents)} documents, and batch_size={batch_size} needs at least "
                f"{batch_size + 1}; lower batch_size or add text"
            )
        rows = np.arange(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._rows = rows if len(rows) else np.zeros(1, dtype=np.int64)
        self._kind: Callable[..., Share] = dict if len(rows) else FillerBatch
        self.set_epoch(0)

    @property
    def tokens_per_epoch(self) -> int:
        """Input tokens of one epoch over all processes: batch_size * row_length."""
        return self.batch_size * self.row_length

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, which seeds its order and windows."""
        self._stream = order_documents(self._documents, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        self._windows = self._window_starts(epoch)

    def batches_in_epoch(self, epoch: int) -> int:
        """Number of batches of any epoch, the same on every rank (it varies only with `variable_bptt`)."""
        return len(self._window_starts(epoch)) - 1

    def __len__(self) -> int:
        """Number of batches of the current epoch, the same on every rank."""
        return len(self._windows) - 1

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield this rank's rows of each window of the current epoch."""
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield an epoch's windows from a given one on, to resume inside it; earlier ones are not built."""
        row_starts = self._rows[:, None] * self.row_length  # (rows, 1)
        stream, windows = self._stream, self._windows  # the epoch that this iteration began with
        for start, stop in zip(windows[first:-1], windows[first + 1 :], strict=True):
            positions = row_starts + np.arange(start, stop + 1)  # (rows, window + 1)
            tokens = torch.from_numpy(self._tokens_at(positions, stream))
            yield self._kind(input_ids=tokens[:, :-1].contiguous(), targets=tokens[:, 1:].contiguous())

    def _tokens_at(self, positions: np.ndarray, stream: TokenStream) -> np.ndarray:
        """Tokens at positions of the epoch's stream, int64, in the shape of `positions`."""
        return stream.tokens_at(self._documents.total - 1 - positions if self.backward else positions)

    def _window_starts(self, epoch: int) -> np.ndarray:
        """Where the windows begin inside a row, and the row's end: int64 (batches + 1,)."""
        if not self.variable_bptt:
            return np.append(np.arange(0, self.row_length, self.bptt), self.row_length)
        random = np.random.default_rng([self.seed, epoch, WINDOW_STREAM])
        count = self.row_length // MIN_VARIABLE_BPTT + 1  # enough, were all of them as short as possible
        means = np.where(random.random(count) < FULL_BPTT_PROBABILITY, self.bptt, self.bptt / 2)
        lengths = np.maximum(random.normal(means, BPTT_STANDARD_DEVIATION).astype(np.int64), MIN_VARIABLE_BPTT)
        stops = np.cumsum(lengths)
        return np.concatenate([[0], stops[stops < self.row_length], [self.row_length]])


def _check_sizes(*, batch_size: int, bptt: int, seed: int, rank: int, world_size: int) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("bptt", bptt, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..world_size-1, got rank={rank} with world_size={world_size}")
