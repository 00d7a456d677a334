"""A few tensors a row of data: in memory up to a bound, beyond it in a file that is gone when it is closed."""

import shutil
import tempfile
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

DISK_SHARE = 0.5  # of the free space where temporary files go; the rest is left to checkpoints


class StoreFullError(RuntimeError):
    """There is no room for another row; the message says how much is held."""


@dataclass(frozen=True)
class _Written:
    """Where a tensor's bytes are."""

    file: IO[bytes]
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class ActivationStore:
    """A few tensors a row, kept on the CPU.

    Args:
        memory: Bytes to hold in memory; what comes after goes into a file.
        disk: Bytes that the file may take; None takes half of what is free in the folder of temporary files.
    """

    def __init__(self, *, memory: int, disk: int | None = None) -> None:
        self.memory = memory
        self.disk = int(shutil.disk_usage(tempfile.gettempdir()).free * DISK_SHARE) if disk is None else disk
        self.in_memory = 0
        self.on_disk = 0
        self._rows: dict[Hashable, list[Tensor | _Written]] = {}
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __contains__(self, row: Hashable) -> bool:
        """Return whether a row is held."""
        return row in self._rows

    def add(self, rows: Sequence[Hashable], values: Sequence[Sequence[Tensor]]) -> None:
        """Keep the tensors of rows; a row that is held already stays as it is.

        Args:
            rows: Their names.
            values: For each kind of tensor one a row, on the CPU; nobody may write to them afterwards.

        Raises:
            StoreFullError: Memory and disk are used up.
        """
        for place, row in enumerate(rows):
            if row not in self._rows:
                self._rows[row] = [self._kept(column[place]) for column in values]

    def get(self, rows: Sequence[Hashable], kind: int) -> list[Tensor]:
        """Return the tensors of one kind, one a row, on the CPU."""
        return [self._read(self._rows[row][kind]) for row in rows]

    def close(self) -> None:
        """Drop everything, the file too."""
        self._rows.clear()
        self.in_memory = self.on_disk = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _kept(self, value: Tensor) -> Tensor | _Written:
        size = value.numel() * value.element_size()
        if self.in_memory + size <= self.memory:
            self.in_memory += size
            return value
        if self.on_disk + size > self.disk:
            raise StoreFullError(
                f"{_shown(self.in_memory)} in memory and {_shown(self.on_disk)} on disk hold {len(self)} rows, and "
                f"there is room for {_shown(self.memory)} and {_shown(self.disk)}"
            )
        try:
            written = _Written(self._written(value), self.on_disk, tuple(value.shape), value.dtype)
        except OSError as error:
            raise StoreFullError(
                f"the disk took no more than {_shown(self.on_disk)} ({error.strerror or error})"
            ) from error
        self.on_disk += size
        return written

    def _written(self, value: Tensor) -> IO[bytes]:
        """Write a tensor's bytes behind what is there, and return the file."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)
        rest = value.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._file.seek(self.on_disk)
        while rest:  # an unbuffered file may take less than it is given
            rest = rest[self._file.write(rest) :]
        return self._file

    def _read(self, kept: Tensor | _Written) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        size = torch.Size(kept.shape).numel() * kept.dtype.itemsize
        if not size:
            return torch.empty(kept.shape, dtype=kept.dtype)
        kept.file.seek(kept.start)
        content = bytearray(kept.file.read(size))
        return torch.frombuffer(content, dtype=kept.dtype).reshape(kept.shape)

    def describe(self) -> str:
        """Return what is held, in words."""
        places = [(self.in_memory, "in memory"), (self.on_disk, "on disk")]
        return " and ".join(f"{_shown(size)} {where}" for size, where in places if size) or "nothing"


def _shown(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"
