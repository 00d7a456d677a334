"""Rows of a Parquet file from any row on, for readers that go forward through it.

Parquet finds a row group at once, and a row within it only by reading the group from its top. A file may be one row
group of a million rows: who reads span after span must not begin at the top for each.
"""

import bisect
import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

BUFFER = 1 << 20  # bytes read ahead of a column; without it Arrow holds a whole row group


class ParquetSpans:
    """Reads spans of rows; a span that lies further on in the row group of the last one goes on from there.

    How rows are cut into batches depends on the row group in which their span begins, and not on what was read before.

    Args:
        path: The file.

    Raises:
        OSError: It is not there.
        pa.ArrowException: It is no Parquet file.
    """

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
        groups = [self._file.metadata.row_group(index) for index in range(self._file.num_row_groups)]
        self._starts = [0, *itertools.accumulate(group.num_rows for group in groups)]
        self.bytes_of_row = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0)
        self._reading: tuple[int, int] | None = None  # row group and size of batches
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._at = 0  # the row that comes next
        self._held: pa.RecordBatch | None = None  # the batch that begins with it, if it was read for the last span

    def batches(self, size: int, *, first: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a span in batches of at most so many.

        Args:
            size: The most rows of a batch.
            first: The first row, from 0.
            rows: How many; those that are not there are left out.
        """
        end = min(first + rows, self._starts[-1])
        if first >= end:
            return
        self._go_to(first, size)
        while self._at < end:
            batch, start = next(self._batches) if self._held is None else self._held, self._at
            low, high = max(first - start, 0), min(end - start, batch.num_rows)
            is_used_up = high == batch.num_rows
            self._at, self._held = (start + high, None) if is_used_up else (start, batch)
            if low < high:
                yield batch.slice(low, high - low)
            if not is_used_up:
                return

    def _go_to(self, first: int, size: int) -> None:
        """Begin at the top of a row's group, unless what is being read comes to the row."""
        group = bisect.bisect_right(self._starts, first) - 1
        if self._reading != (group, size) or self._at > first:
            self._reading, self._at, self._held = (group, size), self._starts[group], None
            self._batches = self._file.iter_batches(size, row_groups=range(group, self._file.num_row_groups))
