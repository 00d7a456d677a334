"""A stage that is not finished: its checkpoints are in a hidden folder beside its own, and go when it is finished.

From its first step to its end a lock in that folder keeps other processes out.
"""

import shutil
import weakref
from collections.abc import Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.storage.atomic import CheckpointError, not_saved, progress_folder
from ulmfit_pipe.storage.locks import holder, lock, refuse_link
from ulmfit_pipe.storage.record_differences import as_json, differences
from ulmfit_pipe.storage.versions import library_versions
from ulmfit_pipe.training.distributed.processes import gather_bytes
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.records import Checkpoints, Phase
from ulmfit_pipe.training.resume.checkpoint_store import checkpoints_in, read_state

LOCK = "lock"
_HELD: dict[Path, FileIO] = {}  # locks of this process, by folder


def keep_progress(
    learner: Learner, output_dir: Path | str, *, identity: dict[str, Any], vocabulary: str | None, context: RunContext
) -> None:
    """Let a learner save checkpoints of a stage, and resume from the last one where the context says so.

    Until `drop_progress`, or until the learner is gone, no other process may train the stage.

    Args:
        learner: The stage's learner, before it trains.
        output_dir: The stage's folder.
        identity: Fingerprint: everything the stage's result depends on.
        vocabulary: Fingerprint of the tokenizer; None without one.
        context: Whether to continue, and how often to save.

    Raises:
        CheckpointError: There are checkpoints, and nobody asked to resume from them; or another process trains there;
            or nothing can be written there.
    """
    identity = {**identity, "vocabulary": vocabulary}
    if not context.resume:  # whether this run saves checkpoints or not: at its end it would delete the old ones
        refuse_unfinished(output_dir, identity=identity)
    _keep_others_out(learner, progress_folder(output_dir), context.accelerator)
    if not context.resume and context.checkpoint_seconds is None:
        return
    checkpoints = Checkpoints(
        progress_folder(output_dir),
        every_seconds=context.checkpoint_seconds,
        identity=identity,
        versions=library_versions(),
        resume=context.resume,
    )
    learner.options = replace(learner.options, checkpoints=checkpoints)


def epochs_of_checkpoint(phases: Sequence[Phase], output_dir: Path | str) -> list[Phase] | None:
    """Return an unfinished training's phases, with the epochs that its time allowed; None if there is no such training.

    Args:
        phases: The phases as the settings have them.
        output_dir: The stage's folder.
    """
    for path in reversed(checkpoints_in(progress_folder(output_dir))):
        try:
            saved = read_state(path)["plan"]["phases"]
            epochs = {phase["name"]: phase["epochs"] for phase in saved}
            return [replace(phase, epochs=epochs[phase.name]) for phase in phases if phase.name in epochs]
        except (CheckpointError, KeyError, TypeError, ValueError):
            continue  # it cannot be read, which the resumed training reports
    return None


def _keep_others_out(learner: Learner, folder: Path, accelerator: Accelerator) -> None:
    """Lock a folder on the main process; where another one holds it, raise on all."""
    refusal = ""
    if accelerator.is_main_process:
        if folder in _HELD:
            _HELD.pop(folder).close()  # of a training of this very process, which failed
        try:
            for inside in folder.glob("*"):
                refuse_link(inside)
            if file := lock(folder / LOCK):
                _HELD[folder] = file
                weakref.finalize(learner, file.close)  # at the latest: a training that fails does not come to its end
            else:
                refusal = _trains_here(folder, holder(folder / LOCK))
        except CheckpointError as error:  # raised below, on all processes
            refusal = str(error)
        except OSError as error:  # known before the training, not at its end
            refusal = not_saved(folder, error)
    refusal = gather_bytes(refusal.encode(), accelerator)[0].decode()
    if refusal:
        raise CheckpointError(refusal)


def _trains_here(folder: Path, who: str | None) -> str:
    return (
        f"another process trains here ({who or 'it has just ended'}), its checkpoints are in {folder}; wait for it, or "
        "end it and continue by --resume true (resume=True in Python)"
    )


def refuse_unfinished(output_dir: Path | str, *, identity: dict[str, Any]) -> None:
    """Raise if an unfinished training of a stage is there.

    Args:
        output_dir: The stage's folder.
        identity: Fingerprint: everything the stage's result depends on; its vocabulary only where that is known by now.

    Raises:
        CheckpointError: There are checkpoints; the message says whether they can be resumed, or who is training.
    """
    folder = progress_folder(output_dir)
    found = checkpoints_in(folder)
    if not found:
        return
    if who := holder(folder / LOCK):
        raise CheckpointError(_trains_here(folder, who))
    unfinished = f"an unfinished training of {Path(output_dir).name} is in {folder} ({found[-1].name})"
    changed = _differences(found, as_json(identity))
    if changed:
        raise CheckpointError(
            f"{unfinished}; it cannot be resumed now, since it differs in {', '.join(changed)}: give the "
            "old settings and data with --resume true (resume=True in Python), or delete that folder to start over"
        )
    raise CheckpointError(
        f"{unfinished}; resume it with --resume true (resume=True in Python), or delete that folder to start over"
    )


def _differences(checkpoints: Sequence[Path], identity: dict[str, Any]) -> list[str]:
    """Return where the newest checkpoint whose state can be read differs from what is asked for."""
    for path in reversed(checkpoints):
        try:
            there = read_state(path).get("identity")
        except CheckpointError:
            continue
        if not isinstance(there, dict):  # altered by hand; --resume reports it
            continue
        known = {name: value for name, value in there.items() if name in identity or name != "vocabulary"}
        return differences({"identity": known}, {"identity": identity})
    return []


def refuse_unbegun(steps: int, output_dir: Path | str, context: RunContext) -> None:
    """Raise if a classifier's time was over before its first step, and delete what such a training left.

    Args:
        steps: Steps that were taken.
        output_dir: The stage's folder.
        context: The processes.

    Raises:
        ValueError: No step was taken.
    """
    if steps:
        return
    if context.accelerator.is_main_process and not checkpoints_in(progress_folder(output_dir)):
        drop_progress(output_dir)
    raise ValueError(
        f"max_seconds ran out before the classifier's first step, so there is none in {output_dir}; give more seconds "
        "(stages that had finished are kept), or leave max_seconds out"
    )


def drop_progress(output_dir: Path | str) -> None:
    """Take the checkpoints of a finished stage away, and let its lock go."""
    folder = progress_folder(output_dir)
    shutil.rmtree(folder, ignore_errors=True)
    if folder in _HELD:
        _HELD.pop(folder).close()
