"""Lists of integers, one per row, as one flat numpy array: how both batch makers hold a table in memory.

A million documents as Python lists of ints cost about 36 bytes per token; here it is 4, read from the
Arrow buffers of a `datasets.Dataset` without making a single Python int.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

ROWS_PER_READ = 10_000  # rows taken from Arrow at a time: bounds what is held twice while reading


@dataclass(frozen=True)
class TokenArrays:
    """Ragged rows of integers: row i is `flat[starts[i] : starts[i] + lengths[i]]`.

    Attributes:
        flat: int32 (total,), all rows one after the other.
        starts: int64 (rows,).
        lengths: int64 (rows,); 0 is allowed.
    """

    flat: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def total(self) -> int:
        """Number of integers in all rows together."""
        return len(self.flat)

    def row(self, index: int) -> np.ndarray:
        """The integers of one row, int32 (length,), without a copy."""
        start = self.starts[index]
        return self.flat[start : start + self.lengths[index]]


def read_token_arrays(rows: Dataset | Sequence[Sequence[int]], *, column: str = "input_ids") -> TokenArrays:
    """Read one column of lists of integers into flat memory (4 bytes per integer).

    Args:
        rows: A table with `column`, or any sequence of integer lists.
        column: The column's name; not used for a plain sequence.

    Raises:
        ValueError: If the table has no such column, or a row is missing (the row is named).
        TypeError: If the column does not hold lists of integers.
    """
    pieces, lengths = _pieces_of_dataset(rows, column) if isinstance(rows, Dataset) else _pieces_of_lists(rows)
    all_lengths = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
    flat = np.empty(int(all_lengths.sum()), dtype=np.int32)
    end = len(flat)
    while pieces:  # from the back, each piece released once copied: the tokens are not held twice
        piece = pieces.pop()
        flat[end - len(piece) : end] = piece
        end -= len(piece)
    return TokenArrays(flat=flat, starts=np.cumsum(all_lengths) - all_lengths, lengths=all_lengths)


def _pieces_of_dataset(dataset: Dataset, column: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    if column not in dataset.column_names:
        raise ValueError(
            f"the table has no column {column!r}, it has {dataset.column_names}; "
            "tokenize it first (ulmfit_pipe.data.text.tokenization.tokenize_dataset)"
        )
    pieces: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    first_row = 0
    tables = dataset.select_columns([column]).with_format("arrow").iter(batch_size=ROWS_PER_READ)
    for table in tables:
        for chunk in table.column(column).chunks:
            piece, piece_lengths = _numpy_of_chunk(chunk, column=column, first_row=first_row)
            pieces.append(piece)
            lengths.append(piece_lengths)
            first_row += len(chunk)
    return pieces, lengths


def _numpy_of_chunk(chunk: pa.Array, *, column: str, first_row: int) -> tuple[np.ndarray, np.ndarray]:
    is_list = pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)
    if not is_list or not (pa.types.is_integer(chunk.type.value_type) or pa.types.is_null(chunk.type.value_type)):
        raise TypeError(f"column {column!r} must hold lists of integers, it holds {chunk.type}")
    values = chunk.flatten()
    if chunk.null_count or values.null_count:
        broken = next(i for i, row in enumerate(chunk.to_pylist()) if row is None or None in row)
        raise ValueError(f"column {column!r} has a missing value in row {first_row + broken} (counted from 0)")
    lengths = pc.list_value_length(chunk).to_numpy(zero_copy_only=False).astype(np.int64)
    return values.to_numpy(zero_copy_only=False).astype(np.int32, copy=False), lengths


def _pieces_of_lists(rows: Sequence[Sequence[int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    pieces: list[np.ndarray] = []
    for index, row in enumerate(rows):
        piece = np.asarray(row)
        if piece.ndim != 1 or (piece.size and piece.dtype.kind not in "iu"):
            raise TypeError(f"row {index} must be a list of integers, got {type(row).__name__}: {str(row)[:60]!r}")
        pieces.append(piece.astype(np.int32, copy=False))
    return pieces, [np.array([len(piece) for piece in pieces], dtype=np.int64)]
