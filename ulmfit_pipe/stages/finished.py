"""Knowing a finished stage again: the same settings, model and data are not trained twice."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit_pipe.stages.artifacts import ArtifactError, check_stage_files, read_stage, refuse_foreign_folder
from ulmfit_pipe.stages.progress import refuse_unfinished
from ulmfit_pipe.storage.atomic import progress_folder
from ulmfit_pipe.storage.record_differences import differences
from ulmfit_pipe.training.history import History
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.records import EpochRecord, Phase

MOST_RATES = 1000  # learning rates that stage.json keeps, for the picture of the schedule


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


def finished_result(
    path: Path | str, *, stage: str, identity: dict[str, Any], say: Callable[[str], None], resume: bool = False
) -> StageResult | None:
    """Return the result of a stage that was finished with the same fingerprint, or None if it has to run.

    Args:
        path: The stage's folder.
        stage: Name of the stage.
        identity: Fingerprint: everything the result depends on.
        say: Receives a log line if the stage is skipped.
        resume: Whether an unfinished training of the stage is to be resumed.

    Raises:
        ArtifactError: The folder holds a finished stage of another fingerprint, or something else, or a file of it was
            damaged since.
        CheckpointError: There is an unfinished training, and `resume` is off.
    """
    path = Path(path)
    refuse_other_run(path, stage=stage, identity=identity)
    record = read_stage(path)
    if record is None:
        if not resume:
            refuse_unfinished(path, identity=identity)
        return None
    check_stage_files(path)
    shutil.rmtree(progress_folder(path), ignore_errors=True)  # of a process that was killed as it finished
    say(f"{stage}: already finished in {path} with the same settings and data, skipped")
    if record.get("cut_short"):
        say(f"{stage}: that training was cut short by a time limit; remove {path} to train it to its end")
    return StageResult(path, record["metrics"], record["seconds"], skipped=True)


def refuse_other_run(path: Path | str, *, stage: str, identity: dict[str, Any], unknown: Sequence[str] = ()) -> None:
    """Raise if a stage's folder holds something else, or the same stage with another fingerprint.

    Args:
        path: The stage's folder.
        stage: Name of the stage.
        identity: Fingerprint: all the result depends on. A setting at its default may be left out, as in a record
            made before there was one.
        unknown: Names in the fingerprint that are not known yet.

    Raises:
        ArtifactError: What is there is another's; the message names what differs.
    """
    path = Path(path)
    refuse_foreign_folder(path, stage)
    record = read_stage(path)
    if record is None:
        return
    known = {name: value for name, value in record.get("identity", {}).items() if name not in unknown}
    changed = sorted(differences(known, identity))
    if changed:
        raise ArtifactError(
            f"{path} holds a finished {stage} stage of another run; it differs in {', '.join(changed)}. "
            "Choose another output folder, or remove this one to train again"
        )


def training_record(learner: Learner, phases: Sequence[Phase], history: History) -> dict[str, Any]:
    """Return what ``stage.json`` keeps of a training: plan, epochs, layer groups, rates of the steps."""
    stride = max(1, len(history.steps) // MOST_RATES)
    return {
        "plan": str(learner.plan(phases).describe()) if phases else "logistic regression on frozen features; no phase",
        "epochs": [dataclasses.asdict(epoch) for epoch in history.epochs],
        "best": None if history.best is None else {"phase": history.best.phase, "epoch": history.best.epoch},
        "groups": [{"group": group.name, "parameters": group.num_parameters} for group in learner.layer_groups],
        "rates": {"stride": stride, "values": [list(step.lrs) for step in history.steps[::stride]]},
        "batch_size": getattr(learner.task.train_batches, "batch_size", None),  # a loader of one's own may have none
        "precision": learner.accelerator.mixed_precision,
        "cut_short": learner.options.deadline is not None and was_cut_short(history.epochs, phases),
    }


def was_cut_short(epochs: Sequence[EpochRecord], phases: Sequence[Phase]) -> bool:
    """Return whether a time limit ended the training: a phase is missing, or ended before its schedule.

    A phase that may stop early for want of progress does not count.
    """
    last = {record.phase: record for record in epochs}

    def ended_early(phase: Phase) -> bool:
        """Return whether training was cut short, by epochs; steps that fp16 skipped are not counted."""
        return last[phase.name].cut_short or last[phase.name].epoch + 1 < phase.epochs

    return any(phase.name not in last or (phase.patience is None and ended_early(phase)) for phase in phases)
