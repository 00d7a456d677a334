"""Saving without ever losing what was there, and the best weights over all phases.

A file or folder is written under a temporary name, synced and renamed, so that a full disk or a killed process leaves
the previous one as it was. Weights are safetensors, everything else is JSON: nothing here unpickles.
"""

import contextlib
import glob
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ulmfit_pipe.training.records import EpochRecord

LOWER_IS_BETTER = ("loss", "perplexity", "error", "error_rate")  # ends of such metrics' names; others are scores
PICKLE_STARTS = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))  # torch.save's zip, pickle
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pth", ".pt", ".bin", ".ckpt")


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit; the message names the file and what to do."""


class BestWeights:
    """Keeps the weights of the best epoch over all phases; a tie keeps the earlier one.

    Args:
        monitor: Name of the validation metric to judge by; smaller is better if the name ends like one of
            `LOWER_IS_BETTER`, larger otherwise.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.sign = -1.0 if monitor.endswith(LOWER_IS_BETTER) else 1.0
        self.record: EpochRecord | None = None
        self.weights: dict[str, Tensor] | None = None

    def value(self, record: EpochRecord) -> float:
        """Return the judged value, larger is better; NaN counts as the worst.

        Raises:
            KeyError: The metric does not report the monitored name.
        """
        if self.monitor not in record.metrics:
            raise KeyError(f"no validation metric is called {self.monitor!r}; there are {sorted(record.metrics)}")
        value = self.sign * record.metrics[self.monitor]
        return -math.inf if math.isnan(value) else value

    def offer(self, record: EpochRecord, model: nn.Module) -> None:
        """Keep the model's weights if the record is better than any before; a tie goes to the lower loss, if known."""
        if self.record is None or self._rank(record) > self._rank(self.record):
            self.record = record
            state = model.state_dict(keep_vars=True)
            tensors = {id(value): value for value in state.values()}  # a tied weight has two names and is copied once
            copies = {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}
            self.weights = {name: copies[id(value)] for name, value in state.items()}

    def _rank(self, record: EpochRecord) -> tuple[float, float]:
        loss = record.metrics.get("loss", math.inf)
        return self.value(record), -math.inf if math.isnan(loss) else -loss

    def restore(self, model: nn.Module) -> None:
        """Put the kept weights back into the model, if there are any."""
        if self.weights is not None:
            model.load_state_dict(self.weights)


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` that takes its place when the block ends without an error.

    What was at ``path`` stays whole until the very end; files of the old folder that the new one lacks are gone
    afterwards, unless the block copied them.

    Raises:
        CheckpointError: The disk is full or not writable; the old folder is untouched.
    """
    path = Path(path).absolute()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    recover_folder(path)
    for kind in ("tmp", "old") if path.exists() else ("tmp",):
        for left in path.parent.glob(f".{glob.escape(path.name)}.????????.{kind}"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed while it wrote
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(_ordinary_mode())  # safetensors makes its files readable by their owner alone
            _sync(file)
        _sync(temporary)  # the names in it, which must be on the disk before it has the name that counts
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
    except CheckpointError as error:  # of a file in the temporary folder, whose name tells the user nothing
        raise CheckpointError(str(error).replace(str(temporary), str(path))) from error
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own error
        raise CheckpointError(_not_saved(path, error)) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path | str) -> None:
    """Put an old folder back that a process killed at the very end of `atomic_folder` left under its other name."""
    path = Path(path).absolute()
    left = sorted(path.parent.glob(f".{glob.escape(path.name)}.*.old"), key=lambda folder: folder.stat().st_mtime)
    if left and not path.exists():
        left[-1].rename(path)


def _not_saved(path: Path, error: Exception) -> str:
    return (
        f"could not save to {path}: {getattr(error, 'strerror', None) or error}; what was there before is untouched. "
        "Free some disk space or choose another output folder, then run again"
    )


def write_atomic(path: Path | str, content: bytes) -> None:
    """Write a file so that either the old content or all of the new is there.

    Raises:
        CheckpointError: The disk is full or not writable; the old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(_not_saved(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _ordinary_mode() -> int:
    """Return the mode that a newly opened file gets here."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path | str, record: Any) -> None:
    """Write a record as strict JSON, atomically; NaN and infinity become null."""
    write_atomic(path, (json.dumps(_finite(record), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: It is missing, cut short or no JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; give the folder that a stage or Learner.save wrote") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits or 200,000 brackets too
        raise CheckpointError(f"{path} is no whole JSON file ({error}); it was cut short: save it again") from error


def save_tensors(path: Path | str, tensors: dict[str, Tensor]) -> str:
    """Write tensors as safetensors, atomically, and return the file's SHA-256."""
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def load_tensors(path: Path | str, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: The file; pickled formats are refused.
        sha256: The digest it must have, or None.

    Raises:
        CheckpointError: The file is missing, pickled, cut short or altered.
    """
    path = Path(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(_refused_pickle(path))
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the folder that a stage or Learner.save wrote")
    if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise CheckpointError(
            f"{path} is not the file that was saved (its SHA-256 differs): it was cut short or altered; "
            "take an earlier save"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            if file.read(8).startswith(PICKLE_STARTS):
                raise CheckpointError(_refused_pickle(path)) from None
        raise CheckpointError(f"{path} cannot be read ({error}): it was cut short; take an earlier save") from error


def _refused_pickle(path: Path) -> str:
    return (
        f"{path} is a pickled checkpoint, which can run code when read, so it is refused; "
        "convert it to safetensors where you trust it, or export it again"
    )
