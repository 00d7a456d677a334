"""The log of a stage: ``log.jsonl`` beside its other files, and the trackers that its context names.

While a stage trains, its log is with its checkpoints; at the end it becomes one of its files.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulmfit_pipe.settings.values import under_dotted_names
from ulmfit_pipe.stages.artifacts import LOG_FILE, save_stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.progress import drop_progress
from ulmfit_pipe.storage.atomic import TRACKERS, is_fixed, progress_folder
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.logs.accelerate_trackers import AccelerateTrackers
from ulmfit_pipe.training.logs.events import JsonlLog
from ulmfit_pipe.training.records import Tracker


def track_training(
    learner: Learner, output_dir: Path | str, *, identity: Mapping[str, Any], context: RunContext
) -> None:
    """Let a learner log a stage.

    Args:
        learner: The stage's learner, before it trains.
        output_dir: The stage's folder.
        identity: Fingerprint: everything the stage's result depends on; trackers show it as the run's config.
        context: Which trackers, and how often to log.
    """
    path = Path(output_dir).resolve()
    trackers: list[Tracker] = [JsonlLog(progress_folder(path) / LOG_FILE)]
    if context.report_to:
        folder = (path if is_fixed(path) else path.parent) / TRACKERS
        trackers.append(AccelerateTrackers(context.report_to, folder=folder, run=path.name, config=_flat(identity)))
    learner.options = replace(learner.options, trackers=tuple(trackers), log_every=context.log_every)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values under dotted names, as plain as every tracker can take them."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in under_dotted_names(values).items()
    }


def save_training(
    output_dir: Path | str, *, stage: str, record: dict[str, Any], write: Callable[[Path], None], context: RunContext
) -> None:
    """Save a finished stage with its log and drop its checkpoints, on the main process; the others wait.

    Args:
        output_dir: The stage's folder.
        stage: Its name.
        record: What ``stage.json`` holds.
        write: Writes the stage's own files into a folder.
        context: The processes.
    """

    def with_log(folder: Path) -> None:
        """Write the stage's files and its log; a training without a step has none."""
        write(folder)
        log = progress_folder(output_dir) / LOG_FILE
        if log.exists():
            shutil.copyfile(log, folder / LOG_FILE)

    if context.accelerator.is_main_process:
        save_stage(output_dir, stage=stage, record=record, write=with_log)
        drop_progress(output_dir)
    if record.get("cut_short"):
        epochs = len(record["epochs"])
        context.tell(
            f"{stage}: max_seconds ended the training in its epoch {epochs}, before its schedule had come to its end; "
            "more seconds in another output folder, or fewer epochs, train it whole"
        )
    context.accelerator.wait_for_everyone()
