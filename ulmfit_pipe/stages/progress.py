"""A stage that is not finished: its checkpoints lie in a hidden folder beside its own, and go when it is finished."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulmfit_pipe.stages.artifacts import library_versions
from ulmfit_pipe.stages.run_context import RunContext
from ulmfit_pipe.training.checkpoint import CheckpointError
from ulmfit_pipe.training.checkpoint_store import checkpoints_in, read_state
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.record_differences import as_json, differences
from ulmfit_pipe.training.resume import Checkpoints


def progress_folder(output_dir: Path | str) -> Path:
    """Return where the checkpoints of a stage lie until it is finished."""
    path = Path(output_dir).absolute()
    return path.with_name(f".{path.name}.progress")


def keep_progress(
    learner: Learner, output_dir: Path | str, *, identity: dict[str, Any], vocabulary: str | None, context: RunContext
) -> None:
    """Let a learner save checkpoints of a stage, and go on from the last one where the context says so.

    Args:
        learner: The stage's learner, before it trains.
        output_dir: The stage's folder.
        identity: Everything the stage's result depends on.
        vocabulary: What tells the tokenizer from any other; None without one.
        context: Whether to go on, and how often to save.

    Raises:
        CheckpointError: There are checkpoints, and nobody asked to go on from them.
    """
    identity = {**identity, "vocabulary": vocabulary}
    if not context.resume:  # whether this run saves checkpoints or not: at its end it would delete the old ones
        refuse_unfinished(output_dir, identity=identity)
        if context.checkpoint_seconds is None:
            return
    checkpoints = Checkpoints(
        progress_folder(output_dir),
        every_seconds=context.checkpoint_seconds,
        identity=identity,
        versions=library_versions(),
        resume=context.resume,
    )
    learner.options = replace(learner.options, checkpoints=checkpoints)


def refuse_unfinished(output_dir: Path | str, *, identity: dict[str, Any]) -> None:
    """Raise if an unfinished training of a stage lies there.

    Args:
        output_dir: The stage's folder.
        identity: Everything the stage's result depends on; its vocabulary only where that is known by now.

    Raises:
        CheckpointError: There are checkpoints; the message says whether they could be gone on with.
    """
    folder = progress_folder(output_dir)
    found = checkpoints_in(folder)
    if not found:
        return
    lies = f"an unfinished training of {Path(output_dir).name} lies in {folder} ({found[-1].name})"
    changed = _differences(found, as_json(identity))
    if changed:
        raise CheckpointError(
            f"{lies}; it cannot be gone on with as things are now, since it differs in {', '.join(changed)}: give the "
            "old settings and data with --resume true (resume=True in Python), or delete that folder to begin anew"
        )
    raise CheckpointError(
        f"{lies}; go on with it by --resume true (resume=True in Python), or delete that folder to begin anew"
    )


def _differences(checkpoints: Sequence[Path], identity: dict[str, Any]) -> list[str]:
    """Return where the newest checkpoint whose state can be read differs from what is asked for."""
    for path in reversed(checkpoints):
        try:
            there = read_state(path)["identity"]
        except CheckpointError:
            continue
        known = {name: value for name, value in there.items() if name in identity or name != "vocabulary"}
        return differences({"identity": known}, {"identity": identity})
    return []


def drop_progress(output_dir: Path | str) -> None:
    """Take the checkpoints of a finished stage away."""
    shutil.rmtree(progress_folder(output_dir), ignore_errors=True)
