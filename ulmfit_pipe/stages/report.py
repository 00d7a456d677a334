"""What a run leaves beside its stages: the page that shows it, and the check that a folder is free for it."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ulmfit_pipe.console import in_one_line
from ulmfit_pipe.reports.plots import Picture, plot_history, plot_schedule
from ulmfit_pipe.reports.run_report import run_report
from ulmfit_pipe.settings.values import to_plain
from ulmfit_pipe.stages.artifacts import STAGE_FILE, ArtifactError, read_stage
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.storage.atomic import write_atomic

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
SETTINGS_FILE = "settings.yaml"
RUN_FILES = (METRICS_FILE, REPORT_FILE, SETTINGS_FILE)
BACKWARD = "backward"


def refuse_foreign_output(output: Path, *, ensemble: bool) -> None:
    """Raise if a run's output folder is another thing's: its files would be overwritten, or mixed up with ours.

    Raises:
        ArtifactError: It is a file or a single stage's folder, holds files of the names we write but no stage, or an
            ensemble where none is asked for.
    """
    if output.is_file():
        raise ArtifactError(f"{output} is a file; choose another output folder")
    if (output / STAGE_FILE).exists():
        raise ArtifactError(f"{output} is a single stage's folder, not a run's; choose another output folder")
    foreign = [name for name in RUN_FILES if (output / name).exists()]
    if foreign and not any(output.glob(f"*/{STAGE_FILE}")):
        raise ArtifactError(
            f"{output} holds {', '.join(foreign)} but no stage of a run, so it is another program's; "
            "choose another output folder"
        )
    if not ensemble and (output / "classifier" / BACKWARD).is_dir():
        raise ArtifactError(
            f"{output / 'classifier'} is an ensemble with a backward classifier, the settings have ensemble false; "
            "choose another output folder"
        )


def write_report(path: Path, *, settings: Any, metrics: Mapping[str, Any], results: Mapping[str, StageResult]) -> Path:
    """Write the run's page: results, pictures, plans, epochs, layer groups, settings.

    Args:
        path: The HTML file.
        settings: Settings of the run, a dataclass.
        metrics: What ``metrics.json`` holds.
        results: The stages by name, in their order.

    Returns:
        The path.
    """
    records = {name: read_stage(result.path) or {} for name, result in results.items()}
    pictures: dict[str, Picture | str | Path] = {}
    for name, record in records.items():
        pictures.update(_pictures(name.replace("_", " "), record))
    page = run_report(
        title=f"ULMFiT run {path.parent.name}",
        metrics=metrics,
        settings=to_plain(dataclasses.asdict(settings)),
        plan_table="\n\n".join(f"{name}\n{record['plan']}" for name, record in records.items() if "plan" in record),
        history=[row for name, record in records.items() for row in _epoch_rows(name, record)],
        group_table=[
            {"stage": name, **group} for name, record in records.items() for group in record.get("groups", [])
        ],
        pictures=pictures,
    )
    write_atomic(path, page)
    return path


def report_line(path: Path) -> str:
    """Return the log line with the page's path, and how to reach it and the paths below the line."""
    seen_from = "" if path.is_absolute() else f" (it and the paths below are seen from {Path.cwd()})"
    return f"report: {in_one_line(path)}{in_one_line(seen_from)}"


def _epoch_rows(name: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for epoch in record.get("epochs", []):
        best = record.get("best") == {"phase": epoch["phase"], "epoch": epoch["epoch"]}
        rows.append(
            {
                "stage": name,
                "phase": epoch["phase"],
                "epoch": epoch["epoch"] + 1,
                "kept": "best" if best else "",
                "seconds": epoch["seconds"],
                "train loss": epoch["train_loss"],
                **{key: value for key, value in epoch["metrics"].items() if key != "n"},
            }
        )
    return rows


def _pictures(name: str, record: Mapping[str, Any]) -> dict[str, Picture]:
    epochs = [_drawable(epoch) for epoch in record.get("epochs", [])]
    if not epochs:
        return {}
    pictures = {f"{name}: loss and validation scores": plot_history(epochs)}
    stride, values = record["rates"]["stride"], record["rates"]["values"]
    if not any(rate for step in values for rate in step):
        return pictures
    groups = [group["group"] for group in record["groups"]]
    rates = {group: [step[index] for step in values] for index, group in enumerate(groups)}
    figure = plot_schedule(rates, phases=_phase_starts(epochs, stride))
    if stride > 1:
        figure.axes[0].set_xlabel(f"optimizer step / {stride}")
    return {**pictures, f"{name}: learning rate of each layer group": figure}


def _drawable(epoch: Mapping[str, Any]) -> dict[str, Any]:
    """Return an epoch with NaN where JSON has null: a loss of no step, a metric of no value."""
    metrics = {key: math.nan if value is None else value for key, value in epoch["metrics"].items()}
    loss = math.nan if epoch["train_loss"] is None else epoch["train_loss"]
    return {**epoch, "train_loss": loss, "metrics": metrics}


def _phase_starts(epochs: list[dict[str, Any]], stride: int) -> list[tuple[str, int]]:
    """Return name and first step of each phase; an epoch's step counts from its phase's start."""
    steps: dict[str, int] = {}
    for epoch in epochs:
        steps[epoch["phase"]] = epoch["step"]
    starts, first = [], 0
    for name, count in steps.items():
        starts.append((name, first // stride))
        first += count
    return starts
