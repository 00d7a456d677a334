"""What a language model has read since its weights were random: one record per training run that continued the last.

The runs are in ``stage.json`` under ``lineage``, the oldest first. A stage that starts from a model takes over its
runs, so that a model card can report how far the weights were trained on what.
"""

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ulmfit_pipe.data.streams.lm_batches import LanguageModelBatches
from ulmfit_pipe.stages.artifacts import ModelName, location_of, read_stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.presets import load_preset
from ulmfit_pipe.text.language_model_scores import fitting_batch_size
from ulmfit_pipe.training.history import History
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.records import EpochRecord

MEASURED = ("perplexity", "perplexity_per_word", "bits_per_character")
MASKED_MEASURED = "pseudo_perplexity"  # of a masked language model, which has none of the others
HUB = "https://huggingface.co"  # an address, which records keep whole, unlike paths
CPU_FILE = Path("/proc/cpuinfo")


def lineage_before(model: ModelName | None) -> list[dict[str, Any]]:
    """Return the training runs of the model that a stage starts from; none for random weights or without a record."""
    if model is None:
        return []
    record = read_stage(location_of(model))
    return [] if record is None else lineage_of(record)


def lineage_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the training runs in a language-model stage's record; an older record is turned into one run."""
    if "lineage" in record:
        return list(record["lineage"])
    return [_run_of_older_record(record)] if "metrics" in record and "tokens" in record else []


def lineage_after(
    learner: Learner,
    history: History,
    metrics: dict[str, float],
    model: ModelName | None,
    context: RunContext,
    *,
    seconds: float,
    tokens: int,
    files: Sequence[str | Path] = (),
) -> list[dict[str, Any]]:
    """Return the training runs of a model whose training has just ended: those it started with, and the new one.

    Args:
        learner: What was trained.
        history: Its epochs and steps.
        metrics: Validation metrics of the weights.
        model: What the training started from; None for random weights.
        context: Seed, precision, processes.
        seconds: Wall time of the stage.
        tokens: Tokens of the text, read once per epoch.
        files: Files of the text; their base names are kept, or nothing where they are not known.
    """
    accelerator, batches = context.accelerator, learner.task.train_batches
    accumulation_steps = learner.options.accumulation_steps
    leg = {
        "started_from": name_of_start(model),
        "tokens_seen": tokens_seen(batches, history.epochs, accumulation_steps=accumulation_steps),
        "tokens_available": tokens,
        "steps": sum(_steps_of_epochs(history.epochs)),
        "epochs": len(history.epochs),
        "seconds": seconds,
        "precision": precision_name(accelerator.mixed_precision),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "processor": processor_name(accelerator.device),
        "train_files": [Path(name).name for name in files] or None,
        **{name: metrics.get(name) for name in MEASURED},
        **({MASKED_MEASURED: metrics[MASKED_MEASURED]} if MASKED_MEASURED in metrics else {}),
        "seed": context.seed,
        "date": time.strftime("%Y-%m-%d"),
    }
    return [*lineage_before(model), leg]


def name_of_start(model: ModelName | None) -> str | None:
    """Return how a record names the model that a training started from: a folder's own name, a hub id's address.

    Where the folder lay is nobody's business; a hub id without its owner would be another model's.
    """
    if model is None:
        return None
    text = str(model).rstrip("/")
    return f"{HUB}/{text}" if "/" in text and not Path(location_of(model)).is_dir() else Path(text).name


def tokens_seen(batches: Any, epochs: Sequence[EpochRecord], *, accumulation_steps: int = 1) -> int:
    """Count the tokens that the optimizer's steps were taken on, also where a time limit ended an epoch early.

    Args:
        batches: `LanguageModelBatches` or `TokenBlockBatches` that were trained on, of any one process.
        epochs: The epochs that were trained, with the steps that each phase had taken at its end.
        accumulation_steps: Micro-batches per step.
    """
    total = 0
    for number, steps in enumerate(_steps_of_epochs(epochs)):
        read, all_of_them = steps * accumulation_steps, batches.batches_in_epoch(number)
        if read >= all_of_them:
            total += batches.tokens_per_epoch
        elif not isinstance(batches, LanguageModelBatches) or batches.variable_bptt:
            total += round(batches.tokens_per_epoch * read / all_of_them)
        else:
            total += read * batches.batch_size * batches.bptt
    return total


def _steps_of_epochs(epochs: Sequence[EpochRecord]) -> list[int]:
    """Return the optimizer steps of each epoch; a record counts from its phase's start."""
    steps, before, phase = [], 0, None
    for record in epochs:
        before = before if record.phase == phase else 0
        steps.append(record.step - before)
        before, phase = record.step, record.phase
    return steps


def processor_name(device: torch.device | None = None) -> str:
    """Return the name of the GPU that a device is, or of this machine's processor."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = CPU_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*names, platform.processor(), platform.machine()]), "unknown")


def precision_name(mixed_precision: str) -> str:
    """Return the name of Accelerate's precision: "no" is "fp32"."""
    return "fp32" if mixed_precision == "no" else mixed_precision


def _run_of_older_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return a training run made from a record older than this field; what it lacks is None."""
    identity = record.get("identity", {})
    settings = identity.get("settings", {})
    recipe = load_preset(identity.get("preset", "fastai"))
    available, epochs = int(record["tokens"]), record.get("epochs", [])
    ends = {epoch["phase"]: epoch["step"] for epoch in epochs}  # the last epoch of each phase counts
    steps = sum(ends.values())
    batch_size = fitting_batch_size(available, settings.get("batch_size") or recipe.batch_size)
    a_step = batch_size * (settings.get("bptt") or recipe.bptt) * settings.get("accumulation_steps", 1)
    started_from = record.get("model")
    return {
        "started_from": None if started_from is None else Path(started_from).name,
        "tokens_seen": min(steps * a_step, len(epochs) * available),
        "tokens_available": available,
        "steps": steps,
        "epochs": len(epochs),
        "seconds": record.get("seconds"),
        "precision": precision_name(identity.get("mixed_precision", "no")),
        "processes": None,
        "threads": None,
        "processor": None,
        "train_files": None,
        **{name: record["metrics"].get(name) for name in MEASURED},
        "seed": identity.get("seed"),
        "date": str(record.get("finished_at", ""))[:10] or None,
    }
