"""A stage that is not finished: its checkpoints lie in a hidden folder beside its own, and go when it is finished."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulmfit_pipe.stages.artifacts import library_versions
from ulmfit_pipe.stages.run_context import RunContext
from ulmfit_pipe.training.checkpoint import CheckpointError
from ulmfit_pipe.training.checkpoint_store import checkpoints_in
from ulmfit_pipe.training.learner import Learner
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
    if context.checkpoint_seconds is None and not context.resume:
        return
    folder = progress_folder(output_dir)
    found = [] if context.resume else checkpoints_in(folder)
    if found:
        raise CheckpointError(
            f"an unfinished training of {Path(output_dir).name} lies in {folder} ({found[-1].name}); go on with it by "
            "--resume true (resume=True in Python), or delete that folder to begin anew"
        )
    checkpoints = Checkpoints(
        folder,
        every_seconds=context.checkpoint_seconds,
        identity={**identity, "vocabulary": vocabulary},
        versions=library_versions(),
        resume=context.resume,
    )
    learner.options = replace(learner.options, checkpoints=checkpoints)


def drop_progress(output_dir: Path | str) -> None:
    """Take the checkpoints of a finished stage away."""
    shutil.rmtree(progress_folder(output_dir), ignore_errors=True)
