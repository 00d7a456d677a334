"""All documents one after the other, in an order drawn anew each epoch: the input of both language-model batchers."""

from dataclasses import dataclass

import numpy as np

from ulmfit_pipe.data.streams.token_arrays import TokenArrays

ORDER_STREAM = 0  # the random stream, among those of one (seed, epoch), that draws the order of documents


@dataclass(frozen=True)
class TokenStream:
    """The documents of one epoch as one stream; a position in it is found in flat memory without copying anything.

    Attributes:
        documents: The documents.
        ends: int64 (documents,), where each document ends in the stream.
        shifts: int64 (documents,), stream position -> offset in flat memory; None where both are the same.
    """

    documents: TokenArrays
    ends: np.ndarray
    shifts: np.ndarray | None

    def places(self, positions: np.ndarray) -> np.ndarray:
        """Return the offsets in flat memory of stream positions, in the shape of `positions`."""
        if self.shifts is None:
            return positions
        return positions + self.shifts[np.searchsorted(self.ends, positions, side="right")]

    def tokens_at(self, positions: np.ndarray) -> np.ndarray:
        """Tokens at positions of the stream, int64, in the shape of `positions`."""
        return self.documents.flat[self.places(positions)].astype(np.int64)


def order_documents(documents: TokenArrays, *, seed: int, epoch: int, shuffle: bool) -> TokenStream:
    """Lay the documents out as the stream of an epoch; the order is a pure function of (seed, epoch).

    Args:
        documents: The documents.
        seed: With the epoch it fixes the order.
        epoch: From 0.
        shuffle: False keeps the table's order.

    Raises:
        ValueError: The epoch is negative.
    """
    if epoch < 0:
        raise ValueError(f"epoch must be 0 or more, got {epoch}")
    order = np.arange(len(documents))
    if shuffle:
        order = np.random.default_rng([seed, epoch, ORDER_STREAM]).permutation(len(documents))
    lengths = documents.lengths[order]
    ends = np.cumsum(lengths)
    shifts = documents.starts[order] - (ends - lengths)
    return TokenStream(documents, ends, shifts if shifts.any() else None)
