"""When a run is not ahead of its baseline: the warnings, and the commands that are worth a try."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ulmfit_pipe.data.tables.row_sources import IN_MEMORY
from ulmfit_pipe.stages.artifacts import read_stage
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.stages.presets import AUTO, AWD_LSTM
from ulmfit_pipe.stages.report import SETTINGS_FILE

ENCODER = "distilbert-base-uncased"
LEAST_ROWS_TO_HALVE = 40


def warnings_of(scores: Mapping[str, Any], *, table: str) -> list[str]:
    """Return a line where the classifier is not ahead of its baseline, or of the most frequent class, by the interval.

    Args:
        scores: What `run_scores.score_tables` gives for one table.
        table: Its name.
    """
    lines: list[str] = []
    baseline = scores["baseline"]
    if baseline is not None and baseline["ahead_interval"][0] <= 0:
        low, high = baseline["ahead_interval"]
        how = "behind" if high < 0 else "not clearly ahead of"
        measure = "micro_f1" if "micro_f1" in scores else "accuracy"
        lines.append(
            f"{how} {baseline['name']} on the {scores['n']:,} {table} rows: {measure} {baseline['ahead']:+.4f} "
            f"(95 % {low:+.3f} to {high:+.3f})"
        )
    low = scores["interval"]["accuracy"][0]
    if "micro_f1" not in scores and low <= scores["majority"]:
        lines.append(
            f"not clearly ahead of always answering the most frequent class on the {scores['n']:,} {table} rows: "
            f"accuracy {scores['accuracy']:.4f} (95 % from {low:.3f}), the class alone {scores['majority']:.4f}"
        )
    return lines


def next_steps(settings: Any, results: Mapping[str, StageResult], *, rows: int, model_type: str) -> list[str]:
    """Return commands that train with one thing changed, each with a comment; only such as change this run.

    Args:
        settings: Settings of the run, `PipelineSettings`.
        results: Its stages by name.
        rows: Labelled rows that it was trained on.
        model_type: transformers' name of its model's architecture.
    """
    output = Path(settings.output_dir)
    start = ["ulmfit", "run", "--config", str(output / SETTINGS_FILE)]
    start += ["--output_dir", str(output.parent / f"{output.name}-next")]
    steps = [
        *(_other_model(settings) if model_type == AWD_LSTM else ()),
        _more_text(settings, results),
        _longer(results),
        _labels(settings, rows),
    ]
    if any(name.startswith(IN_MEMORY) for name in _tables_of(settings)):  # which no command can read again
        return [f"{_python_call(words)}  # {why}" for words, why in filter(None, steps)]
    return [f"{shlex.join([*start, *words])}  # {why}" for words, why in filter(None, steps)]


def _tables_of(settings: Any) -> list[str]:
    given = (settings.train_file, settings.test_file, settings.validation_file, settings.unlabelled_file)
    return [name for names in given for name in ([names] if isinstance(names, str) else names or [])]


def _python_call(words: list[str]) -> str:
    """Return the call that changes what the words of a command line change."""
    start, arguments = "pipe.fit(...", ""
    for name, value in zip(words[::2], words[1::2], strict=True):
        group, _, field = name.removeprefix("--").rpartition(".")
        shown = repr(yaml.safe_load(value))
        if field == "model":
            start = f"TextPipeline({shown}).fit(..."
        elif field == "unlabelled_file":
            arguments += ", unlabelled=texts"
        else:
            arguments += f", {group}={{{field!r}: {shown}}}" if group else f", {field}={shown}"
    return f"{start}{arguments})"


def _other_model(settings: Any) -> list[tuple[list[str], str]]:
    words = ["--model", ENCODER]
    if settings.preset != AUTO:
        words += ["--preset", AUTO]
    if settings.ensemble:
        words += ["--ensemble", "false", "--model_backward", "null"]
    return [(words, "an encoder from the hub; for other languages than English xlm-roberta-base")]


def _more_text(settings: Any, results: Mapping[str, StageResult]) -> tuple[list[str], str] | None:
    if "language_model" not in results:
        return ["--fine_tune_language_model", "true"], "fine-tune the language model on the texts first"
    if settings.unlabelled_file is None:
        return ["--unlabelled_file", "FILE"], "more texts of the kind for the language model; they need no labels"
    return None


def _longer(results: Mapping[str, StageResult]) -> tuple[list[str], str] | None:
    record = read_stage(results["classifier"].path) or {}
    if record.get("cut_short"):
        return ["--max_seconds", "null"], "the time limit cut the training short"
    epochs = record.get("epochs") or []
    if not epochs:
        return None
    count = 1 + max(epoch["epoch"] for epoch in epochs if epoch["phase"] == epochs[-1]["phase"])
    return ["--classifier.final_epochs", str(2 * count)], f"more epochs of the last phase, which had {count}"


def _labels(settings: Any, rows: int) -> tuple[list[str], str] | None:
    if settings.max_rows.train is not None:
        return ["--max_rows.train", "null"], "all labelled rows"
    if rows < LEAST_ROWS_TO_HALVE:
        return None
    return ["--max_rows.train", str(rows // 2)], "half the labels: if that is clearly worse, more labels will help"
