"""Knowing a finished stage again: the same settings, model and data are not trained twice."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit_pipe.stages.artifacts import ArtifactError, read_stage, refuse_foreign_folder


@dataclass(frozen=True)
class StageResult:
    """Where a stage ended, what it reached, how long it took.

    Attributes:
        path: The stage's folder.
        metrics: Its validation metrics.
        seconds: Wall time of the training, also when it was skipped this time.
        skipped: Whether the folder was finished before.
    """

    path: Path
    metrics: dict[str, Any]
    seconds: float
    skipped: bool


def digest_of(*columns: Iterable[Any]) -> str:
    """Return a SHA-256 over columns of texts or labels, as a fingerprint of the data."""
    digest = hashlib.sha256()
    for column in columns:
        for value in column:
            content = str(value).encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
        digest.update(b"\xff" * 8)
    return digest.hexdigest()


def finished_result(
    path: Path | str, *, stage: str, identity: dict[str, Any], say: Callable[[str], None]
) -> StageResult | None:
    """Return the result of a stage that was finished with the same identity, or None if it has to run.

    Args:
        path: The stage's folder.
        stage: Name of the stage.
        identity: Everything the result depends on.
        say: Told that the stage is skipped.

    Raises:
        ArtifactError: The folder holds a finished stage of another identity, or something else.
    """
    path = Path(path)
    refuse_foreign_folder(path, stage)
    record = read_stage(path)
    if record is None:
        return None
    changed = sorted(_differences(record.get("identity", {}), identity))
    if changed:
        raise ArtifactError(
            f"{path} holds a finished {stage} stage of another run; it differs in {', '.join(changed)}. "
            "Choose another output folder, or remove this one to train again"
        )
    say(f"{stage}: already finished in {path} with the same settings and data, skipped")
    return StageResult(path, record["metrics"], record["seconds"], skipped=True)


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            found += _differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        return found
    if isinstance(new, tuple):
        new = list(new)
    return [] if old == new else [f"{name} ({_short(old)} there, {_short(new)} now)"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
