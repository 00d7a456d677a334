"""A tensor per row of data: in memory up to a bound, beyond it in a file that is gone when it is closed."""

import shutil
import tempfile
from collections.abc import Hashable, Sequence
from typing import IO

import torch
from torch import Tensor

DISK_SHARE = 0.5  # of the free space where temporary files go; the rest is left to checkpoints


class StoreFullError(RuntimeError):
    """There is no room for another row; the message gives the amount stored."""


class ActivationStore:
    """A tensor per row, kept on the CPU.

    Args:
        memory: Bytes to hold in memory; what comes after goes into a file.
        disk: Bytes that the file may take; None takes half of what is free in the folder of temporary files.
    """

    def __init__(self, *, memory: int, disk: int | None = None) -> None:
        self.memory = memory
        self.disk = int(shutil.disk_usage(tempfile.gettempdir()).free * DISK_SHARE) if disk is None else disk
        self.in_memory = self.on_disk = 0
        self.rows: dict[Hashable, Tensor | tuple[int, Tensor]] = {}  # or where it is in the file, and an empty like it
        self._file: IO[bytes] | None = None

    def add(self, rows: Sequence[Hashable], values: Sequence[Tensor]) -> None:
        """Keep the tensors of rows, on the CPU and not written to afterwards; a row that is held stays as it is.

        Raises:
            StoreFullError: Memory and disk are used up.
        """
        for row, value in zip(rows, values, strict=True):
            if row not in self.rows:
                self.rows[row] = self._kept(value)

    def get(self, rows: Sequence[Hashable]) -> list[Tensor]:
        """Return the tensors of rows, on the CPU."""
        return [self._read(self.rows[row]) for row in rows]

    def close(self) -> None:
        """Drop everything, the file too."""
        self.rows.clear()
        self.in_memory = self.on_disk = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _kept(self, value: Tensor) -> Tensor | tuple[int, Tensor]:
        size, start = value.nbytes, self.on_disk
        if self.in_memory + size <= self.memory:
            self.in_memory += size
            return value
        if start + size > self.disk:
            raise StoreFullError(
                f"{_shown(self.in_memory)} in memory and {_shown(start)} on disk hold {len(self.rows)} rows, and "
                f"there is room for {_shown(self.memory)} and {_shown(self.disk)}"
            )
        try:
            self._write(value)
        except OSError as error:
            raise StoreFullError(f"the disk took no more than {_shown(start)} ({error.strerror or error})") from error
        self.on_disk += size
        return start, value.new_empty(1).expand(value.shape)

    def _write(self, value: Tensor) -> None:
        self._file = self._file or tempfile.TemporaryFile(buffering=0)
        rest = value.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._file.seek(self.on_disk)
        while rest:  # an unbuffered file may take less than it is given
            rest = rest[self._file.write(rest) :]

    def _read(self, kept: Tensor | tuple[int, Tensor]) -> Tensor:
        if isinstance(kept, Tensor) or self._file is None:
            return kept if isinstance(kept, Tensor) else kept[1]
        start, like = kept
        if not like.nbytes:
            return like
        self._file.seek(start)
        return torch.frombuffer(bytearray(self._file.read(like.nbytes)), dtype=like.dtype).reshape(like.shape)

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
