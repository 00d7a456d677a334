"""What a run leaves beside its stages: the page that shows it, and the check that a folder is free for it.

The page is made from the run's files alone: ``metrics.json``, ``settings.yaml``, ``predictions.csv`` and the stages'
``stage.json``.
"""

import contextlib
import csv
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ulmfit_pipe.console import in_one_line
from ulmfit_pipe.data.tables.row_streams import FORMULA_STARTS
from ulmfit_pipe.reports.classifier_card import classifier_card
from ulmfit_pipe.reports.comparison import compare_runs, comparison_table
from ulmfit_pipe.reports.predictions import Prediction
from ulmfit_pipe.reports.run_report import run_report
from ulmfit_pipe.settings.checks import with_absolute_paths
from ulmfit_pipe.settings.choices import BUILTIN_NAMES
from ulmfit_pipe.settings.images import ImageSettings
from ulmfit_pipe.settings.parsing import list_settings, settings_to_yaml
from ulmfit_pipe.settings.reports import ReportSettings
from ulmfit_pipe.settings.text_runs import ClassifierJob, LanguageModelJob, PipelineSettings
from ulmfit_pipe.settings.values import to_plain, under_dotted_names
from ulmfit_pipe.stages.artifacts import LOG_FILE, STAGE_FILE, ArtifactError, read_stage
from ulmfit_pipe.stages.presets import PRESETS
from ulmfit_pipe.storage.atomic import CheckpointError, write_atomic
from ulmfit_pipe.storage.json_files import read_json, write_json

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.csv"
REPORT_FILE = "report.html"
EXPLANATIONS_FILE = "explanations.json"  # written where it is asked for
CARD_FILE = "README.md"
SETTINGS_FILE = "settings.yaml"
RUN_FILES = (METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE, SETTINGS_FILE)
BACKWARD = "backward"
STAGES = ("pretraining", "language_model", f"language_model_{BACKWARD}", "classifier", f"classifier_{BACKWARD}")
UNKNOWN = (None, "auto")
OPEN = (*UNKNOWN, "preset")  # values of a setting that something else decides
OF_PRESET = ("bptt", "lr_decay", "alpha", "beta", "train_norm")  # settings that a preset has under the same name


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


def save_records(folder: Path | str, *, settings: Any, metrics: Mapping[str, Any]) -> None:
    """Write ``metrics.json`` and ``settings.yaml``, by which the run can be repeated, its paths absolute."""
    write_json(Path(folder) / METRICS_FILE, metrics)
    write_atomic(Path(folder) / SETTINGS_FILE, settings_to_yaml(with_absolute_paths(settings)).encode())


def write_report(folder: Path | str) -> Path:
    """Write the page of a finished run, or of a single stage's, into its folder, and the card of a text classifier.

    Returns:
        Path of the page.

    Raises:
        ArtifactError: The folder does not hold the records of a run, or one of them was altered.
    """
    path = Path(folder) / REPORT_FILE
    write_atomic(path, _page_of(folder))
    for place in (Path(folder), Path(folder) / "classifier"):
        write_card(place)
    return path


def write_card(folder: Path) -> Path | None:
    """Write the card of a text classifier's folder; return its path, or None where it is another stage's.

    Args:
        folder: The classifier's folder; the records of its run are in it or above it.
    """
    stage = read_stage(folder)
    if stage is None or stage.get("stage") != "classifier" or not (folder / "config.json").is_file():
        return None
    above = next((place for place in (folder, folder.parent) if (place / METRICS_FILE).is_file()), None)
    metrics = {} if above is None else read_json(above / METRICS_FILE)
    settings = {} if above is None else _settings_in(above / SETTINGS_FILE)
    base = settings.get("model") or stage.get("model")
    is_builtin = base in BUILTIN_NAMES
    name = folder.resolve().name if above == folder else folder.resolve().parent.name
    content = classifier_card(
        name,
        config=read_json(folder / "config.json"),
        stage=stage,
        metrics=metrics,
        base=base,
        is_builtin=is_builtin,
    )
    write_atomic(folder / CARD_FILE, content.encode())
    return folder / CARD_FILE


def _page_of(folder: Path | str) -> bytes:
    """Return a run's page; of one that was repeated over folds or seeds the comparison of its runs."""
    record = run_record(folder)
    if parts := record["metrics"].get("runs"):
        return compare_runs([run_record(Path(folder) / name) for name in parts], whole=record)
    return run_report(record)


def write_reports(settings: ReportSettings) -> str:
    """Make the page of a run again, or compare several runs; return what to print.

    Raises:
        ArtifactError: A folder does not hold the records of a run.
    """
    if len(settings.run_dir) == 1:
        path = Path(settings.output_file or Path(settings.run_dir[0]) / REPORT_FILE)
        write_atomic(path, _page_of(settings.run_dir[0]))
        return f"report: {in_one_line(path)}"
    records = [run_record(folder) for folder in settings.run_dir]
    lines = [comparison_table(records)]
    if settings.output_file is not None:
        write_atomic(Path(settings.output_file), compare_runs(records))
        lines.append(f"page: {in_one_line(settings.output_file)}")
    else:
        lines.append("--output_file FILE.html writes it as a page")
    return "\n".join(lines)


def run_record(folder: Path | str) -> dict[str, Any]:
    """Return all that the files of a run say, as plain values.

    Returns:
        ``name``, ``folder``, ``metrics``, ``settings``, ``defaults`` and ``effective`` (by dotted names), ``stages``
        (by name, in their order) and ``predictions``.

    Raises:
        ArtifactError: There is no ``metrics.json`` that can be read, or a stage's record was altered.
    """
    folder = Path(folder)
    try:
        metrics = read_json(folder / METRICS_FILE)
        if not isinstance(metrics, dict):
            raise CheckpointError(f"{folder / METRICS_FILE} holds no run's metrics")
    except (CheckpointError, OSError) as error:
        raise ArtifactError(
            f"{folder} is not the folder of a finished run: it has no {METRICS_FILE} that can be read; give the "
            "output_dir of a run"
        ) from error
    single = read_stage(folder)
    if single is not None:
        stages = {str(single["stage"]).removeprefix("image_"): single}
    else:
        found = {name: read_stage(folder / name) for name in STAGES}
        stages = {name: record for name, record in found.items() if record is not None}
    places = {name: folder / name if single is None else folder for name in stages}
    stages = {name: {**record, "memory": _memory_of(places[name])} for name, record in stages.items()}
    settings = under_dotted_names(_settings_in(folder / SETTINGS_FILE))
    return {
        "name": folder.resolve().name,
        "folder": str(folder),
        "metrics": metrics,
        "settings": settings,
        "defaults": _defaults(settings, single=None if single is None else str(single["stage"])),
        "effective": _effective(settings, stages, metrics),
        "stages": stages,
        "predictions": list(_read_predictions(folder / PREDICTIONS_FILE)),
        "explanations": _explanations_in(folder / EXPLANATIONS_FILE),
    }


def _memory_of(folder: Path) -> dict[int, float]:
    """Return the most memory in GiB that the log of a stage has of each phase: the GPU's, else the process's."""
    found: dict[int, float] = {}
    with contextlib.suppress(OSError, ValueError), (folder / LOG_FILE).open(encoding="utf-8") as file:
        for line in map(json.loads, file):
            memory = line.get("memory/cuda_peak_gib") or line.get("memory/rss_gib")
            if memory is not None:
                phase = int(line.get("phase", 0))
                found[phase] = max(found.get(phase, 0.0), float(memory))
    return found


def _explanations_in(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (CheckpointError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _settings_in(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _defaults(settings: Mapping[str, Any], *, single: str | None) -> dict[str, Any]:
    """Return the defaults of the settings that have one."""
    if "train_images" in settings:
        kind: type = ImageSettings
    elif single is not None:
        kind = LanguageModelJob if single == "language_model" else ClassifierJob
    else:
        kind = PipelineSettings
    return {field.name: to_plain(field.default) for field in list_settings(kind) if not field.required}


def _effective(
    settings: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what settings that were left to the preset came to, as far as the records know."""
    values: dict[str, Any] = {"preset": metrics.get("preset"), "validation_fraction": _held_out(settings, metrics)}
    values["fine_tune_language_model"] = any(name.startswith("language_model") for name in stages)
    values["classifier.monitor"] = "micro_f1" if "thresholds" in metrics else "accuracy"
    for stage, record in stages.items():
        known = _known_values(record, PRESETS.get(str(metrics.get("preset"))))
        for name, value in known.items():
            values[f"{stage}.{name}"] = value
    return {
        name: value
        for name, value in values.items()
        if name in settings and settings[name] in OPEN and value not in UNKNOWN and value != settings[name]
    }


def _held_out(settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> float | None:
    """Return which part of the rows was held out, or None where a validation table was given."""
    rows = {name: table["rows"] for name, table in (metrics.get("tables") or {}).items()}
    if settings.get("validation_file") or "training" not in rows:
        return None
    held_out = rows.get("validation", 0)
    return round(held_out / (held_out + rows["training"]), 3)


def _known_values(record: Mapping[str, Any], preset: Any) -> dict[str, Any]:
    """Return hyperparameters of a stage: the preset's, those in its fingerprint, and what its epochs show."""
    known = {name: getattr(preset, name) for name in OF_PRESET if hasattr(preset, name)}
    known.update(
        {name: value for name, value in record["identity"].get("settings", {}).items() if value not in UNKNOWN}
    )
    epochs: dict[str, int] = {}
    for epoch in record.get("epochs", []):
        if epoch["total_steps"]:
            epochs[epoch["phase"]] = epoch["epoch"] + 1
    counts = list(epochs.values())
    if counts:
        known.update({"epochs": counts[-1], "final_epochs": counts[-1]})
    if len(counts) > 1:
        known.update({"frozen_epochs": counts[0], "epochs_per_phase": counts[0]})
    if record.get("batch_size"):
        known["batch_size"] = record["batch_size"]
    rates = [rate for step in record.get("rates", {}).get("values", []) for rate in step[-1:]]
    if rates and max(rates) > 0:
        known["lr"] = max(rates)
    return known


def _read_predictions(path: Path) -> Iterator[Prediction]:
    """Yield the rows of ``predictions.csv``; nothing where there is none, or it is another program's."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                scores = {name: float(value) for name, value in row.items() if name.startswith("score_")}
                text, truth, given = (_unescaped(row[name]) for name in ("text", "truth", "prediction"))
                yield Prediction(int(row["row"]), text, truth, given, float(row["score"]), scores)
            except (KeyError, TypeError, ValueError, AttributeError):
                return


def _unescaped(cell: str) -> str:
    """Return a cell without the apostrophe that keeps spreadsheets from taking it for a formula."""
    return cell[1:] if cell.startswith(tuple(f"'{start}" for start in FORMULA_STARTS)) else cell


def command_line() -> str | None:
    """Return the command `ulmfit ...` that runs here, or None where Python or another program does."""
    name, words = sys.argv[0], sys.argv[1:]
    return shlex.join([*name.split(), *words]) if name.startswith("ulmfit ") else None


def report_line(path: Path) -> str:
    """Return the log line with the page's path, and how to reach it and the paths below the line."""
    seen_from = "" if path.is_absolute() else f" (it and the paths below are seen from {Path.cwd()})"
    return f"report: {in_one_line(path)}{in_one_line(seen_from)}"
