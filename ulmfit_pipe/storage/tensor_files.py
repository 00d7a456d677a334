"""Tensors as safetensors files, written atomically; pickled formats are refused."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ulmfit_pipe.storage.atomic import CheckpointError, write_atomic
from ulmfit_pipe.storage.digests import digest_of_file
from ulmfit_pipe.storage.pickles import PICKLE_STARTS, PICKLE_SUFFIXES


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
    if sha256 is not None and digest_of_file(path) != sha256:
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
