"""Checkpoints of a training on disk: folders named by their step, of which the newest whole one counts.

A checkpoint is written under a temporary name, synced and renamed; ``state.json`` holds the SHA-256 of every file and
one of itself, so that a truncated or altered file is detected. Tensors are safetensors, all else is JSON.
"""

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ulmfit_pipe.storage.atomic import CheckpointError, atomic_folder, recover_folder
from ulmfit_pipe.storage.digests import digest_of_file
from ulmfit_pipe.storage.temporary_files import FULL_DISK, number_of, remove_abandoned, write_advice

STATE_FILE = "state.json"
PREFIX = "step-"
FORMAT = 1
NOT_FINITE = "__float__"  # strict JSON knows no NaN and no infinity


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after this many steps."""
    return folder / f"{PREFIX}{step:08d}"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the oldest first, whole or not."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def write_checkpoint(
    path: Path,
    state: Mapping[str, Any],
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    contents: Mapping[str, bytes],
) -> None:
    """Write a checkpoint, whole or not at all; it shares no file with another, so that damage hits one of them.

    Args:
        path: Its folder; a checkpoint that is there is replaced.
        state: What JSON can hold; floats may be NaN or infinite.
        tensors: Tensors by file name.
        contents: Bytes by file name.

    Raises:
        CheckpointError: The disk refuses; the message gives the reason, what remains, and how much space is lacking.
    """
    try:
        with atomic_folder(path) as folder:
            for name, part in tensors.items():
                save_file(independent(part), folder / name)
            for name, content in contents.items():
                (folder / name).write_bytes(content)
            digests = {file.name: digest_of_file(file) for file in sorted(folder.iterdir())}
            (folder / STATE_FILE).write_text(_sealed({"format": FORMAT, **state, "files": digests}), encoding="utf-8")
    except CheckpointError as error:
        sizes = [sum(value.nbytes for value in part.values()) for part in tensors.values()]
        sizes += [len(content) for content in contents.values()]
        raise CheckpointError(_not_written(path, sum(sizes), error.__cause__ or error)) from error


def _not_written(path: Path, size: int, reason: BaseException) -> str:
    before = [one.name for one in checkpoints_in(path.parent)]
    remains = f"the one before, {before[-1]}, remains" if before else "there is none before it"
    room = ""
    if number_of(reason) in (*FULL_DISK, errno.EFBIG):
        free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free
        room = f"; it takes about {math.ceil(size / 1e6):,} MB and {free // 10**6:,} MB are free"
    advice = write_advice(reason, None, again="run the same command again with --resume true")
    reason_words = getattr(reason, "strerror", None) or reason
    return f"could not save checkpoint {path}: {reason_words}{room}; {remains}. {advice}"


def independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU, each in memory of its own, as safetensors asks for."""
    alone: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:
            value = value.clone()
        seen.add(storage.data_ptr())
        alone[name] = value
    return alone


def _sealed(state: dict[str, Any]) -> str:
    plain = _with_finite_numbers(state)
    return json.dumps({"sha256": _digest_of_record(plain), "state": plain}, indent=1, allow_nan=False) + "\n"


def _digest_of_record(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, allow_nan=False).encode()).hexdigest()


def _with_finite_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else {NOT_FINITE: repr(value)}
    if isinstance(value, Mapping):
        return {str(key): _with_finite_numbers(part) for key, part in value.items()}
    return [_with_finite_numbers(part) for part in value] if isinstance(value, list | tuple) else value


def _with_all_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {NOT_FINITE}:
            return float(value[NOT_FINITE])
        return {key: _with_all_numbers(part) for key, part in value.items()}
    return [_with_all_numbers(part) for part in value] if isinstance(value, list) else value


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state of a checkpoint, after a look at every file.

    Raises:
        CheckpointError: A file is missing, cut short or altered, or another version wrote it.
    """
    state = read_state(path)
    for name, digest in state["files"].items():
        if Path(name).name != name:
            raise CheckpointError(f"{path / STATE_FILE} names a file outside of its folder, {name!r}: it was altered")
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name} is missing")
        if digest_of_file(path / name) != digest:
            raise CheckpointError(f"{path / name} was cut short or altered: its SHA-256 differs")
    return state


def read_state(path: Path) -> dict[str, Any]:
    """Return the state of a checkpoint, without a look at its other files.

    Raises:
        CheckpointError: It is missing, cut short or altered, or another version wrote it.
    """
    try:
        record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        plain = record["state"]
        whole = _digest_of_record(plain) == record["sha256"]
        known, state = plain["format"], _with_all_numbers(plain)
        if not isinstance(state["files"], dict):
            raise TypeError("files is not an object")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path / STATE_FILE} cannot be read ({type(error).__name__}: {error})") from error
    if not whole:
        raise CheckpointError(f"{path / STATE_FILE} was altered: its SHA-256 differs")
    if known != FORMAT:
        raise CheckpointError(f"{path} has format {known}, this version reads {FORMAT}")
    return state


def newest_whole(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest complete checkpoint, with its state; None if there are no checkpoints.

    Args:
        folder: Folder of checkpoints.
        say: Receives log lines on damaged ones.

    Raises:
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    paths = checkpoints_in(folder)
    for path in reversed(paths):
        try:
            return path, read_checkpoint(path)
        except CheckpointError as error:
            say(f"checkpoint {path.name} is damaged and left out, the one before it is taken: {error}")
    if paths:
        raise CheckpointError(f"all {len(paths)} checkpoints in {folder} are damaged; delete that folder to start over")
    return None


def load_part(path: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of one file of a checkpoint, in memory of their own: the file may go, or change."""
    return {key: value.clone() for key, value in load_file(path / name).items()}


def tidy(folder: Path) -> None:
    """Take away what a process that was killed while it wrote has left."""
    for old in folder.glob(f".{PREFIX}*.old"):
        recover_folder(folder / old.name[1:].rsplit(".", 2)[0])
    for left in (*folder.glob(f".{PREFIX}*.tmp"), *folder.glob(f".{PREFIX}*.old")):
        remove_abandoned(left)


def drop_all_but(newest: Path, *, keep: int) -> None:
    """Keep the newest `keep` checkpoints up to the one just written; later ones, of an abandoned run, are deleted."""
    paths = checkpoints_in(newest.parent)
    before = [path for path in paths if path.name < newest.name]
    kept = {newest, *before[len(before) - keep + 1 :]} if keep > 1 else {newest}
    for path in paths:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
