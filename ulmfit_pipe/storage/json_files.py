"""JSON files, written atomically; a sealed one holds the SHA-256 of its own content."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ulmfit_pipe.storage.atomic import CheckpointError, write_atomic

SEAL = "record_sha256"  # entry of a JSON record that holds the digest of all others


class AlteredError(CheckpointError):
    """A record is not what was written."""


def write_sealed(path: Path | str, record: dict[str, Any]) -> None:
    """Write a record as `write_json` does, with a SHA-256 of its own content, by which `read_sealed` finds a change."""
    plain = json.loads(json.dumps(_finite(record)))  # as it will be read: keys are texts, for one
    write_json(path, {**plain, SEAL: _seal_of(plain)})


def read_sealed(path: Path | str) -> Any:
    """Read what `write_sealed` wrote; a record without a seal, of an older version, is taken as it is.

    Raises:
        CheckpointError: As `read_json`, or it is not what was written.
    """
    record = read_json(path)
    seal = record.get(SEAL) if isinstance(record, dict) else None
    if seal is not None and seal != _seal_of(record):
        raise AlteredError(
            f"{path} is not what was saved (its SHA-256 differs): it was damaged or altered; put back a copy of it, or "
            f"if you changed it on purpose, delete its entry {SEAL!r}"
        )
    return record


def _seal_of(record: dict[str, Any]) -> str:
    """Return the SHA-256 of a record without its seal, however its file is laid out."""
    rest = {name: value for name, value in record.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


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
        raise CheckpointError(f"{path} is not a whole JSON file ({error}); it was cut short: save it again") from error
