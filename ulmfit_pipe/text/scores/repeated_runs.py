"""One run several times: over the folds of its training table, or over seeds; mean, spread, and pooled accuracy."""

import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold

from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.stages.context import RunContext, context_of, deadline_after
from ulmfit_pipe.stages.report import (
    RUN_FILES,
    command_line,
    report_line,
    save_records,
    write_report,
)
from ulmfit_pipe.storage.versions import library_versions
from ulmfit_pipe.text.scores.bootstrap import score_intervals
from ulmfit_pipe.text.scores.tfidf import label_array
from ulmfit_pipe.text.tables import RunTables, hold_out, without_texts_of

MEASURES = ("accuracy", "micro_f1", "macro_f1", "loss")


def is_repeated(settings: Any) -> bool:
    """Return whether settings ask for several runs, all folds or seeds."""
    return settings.seeds is not None or (settings.folds is not None and settings.fold is None)


def fold_of(tables: RunTables, settings: Any, *, say: Callable[[str], None]) -> RunTables:
    """Return the tables of one fold: a part of the training rows, stratified by class, is their test table.

    What chooses an epoch is held out of the other parts, so that nothing of a fold is seen before it is scored.

    Args:
        tables: Tables without validation and test rows.
        settings: Settings of the run: ``folds``, ``fold``, ``seed`` and ``validation_fraction``.
        say: Receives log lines on what is left out of the unlabelled texts.

    Raises:
        ValueError: There are fewer rows than folds, or no class has a row for each fold.
    """
    folds, fold, seed = settings.folds, settings.fold or 1, settings.seed
    labels, kind = label_array(tables.train), KFold
    most = len(labels)
    if labels.ndim == 1:
        kind, most = StratifiedKFold, int(np.bincount(labels).max())
    if most < folds:
        raise ValueError(f"folds {folds} are more than the {most} rows of the largest class; take fewer")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # it is then missing in some folds
        parts = list(kind(folds, shuffle=True, random_state=seed).split(labels, labels))
    train, held_out = (tables.train.select(rows) for rows in parts[fold - 1])
    train, validation = hold_out(train, settings.validation_fraction, seed=seed, say=say)
    unlabelled = tables.unlabelled
    if unlabelled is not None:
        where = "the fold that is held out, or in validation"
        unlabelled = without_texts_of(unlabelled, [validation, held_out], what="unlabelled texts", where=where, say=say)
    return dataclasses.replace(tables, train=train, validation=validation, test=held_out, unlabelled=unlabelled)


def run_repeated(settings: Any, context: RunContext | None, *, run: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Run every fold or seed in a folder of its own and write the summary; finished ones are skipped as in any run.

    Args:
        settings: Settings of the run, `PipelineSettings`.
        context: Environment; made from the settings by default.
        run: Runs one of them: ``run(settings, context=...)``.

    Returns:
        What ``metrics.json`` holds: ``runs``, ``spread`` (mean, lowest, highest of each measure on each table), for
        folds ``out_of_fold`` (accuracy over all training rows, each predicted by the run that did not train on it),
        and ``classifier``: the first seed's folder, or None for folds.
    """
    context = context or context_of(settings)
    output, started = Path(settings.output_dir), time.perf_counter()
    if settings.folds is not None:
        changes = {f"fold{fold}": {"fold": fold} for fold in range(1, settings.folds + 1)}
    else:
        changes = {f"seed{settings.seed + more}": {"seed": settings.seed + more} for more in range(settings.seeds)}
    _refuse_other_output(output, list(changes))
    deadline = deadline_after(settings.max_seconds)
    found: dict[str, dict[str, Any]] = {}
    for name, change in changes.items():
        left = None if deadline is None else max(1.0, deadline - time.monotonic()) / (len(changes) - len(found))
        own = {"output_dir": str(output / name), "seeds": None, "max_seconds": left, **change}
        one = dataclasses.replace(settings, **own)
        context.tell(f"{name}, {len(found) + 1} of {len(changes)}:")
        found[name] = run(one, context=dataclasses.replace(context, seed=one.seed))
    metrics = {
        "test": None,
        "validation": None,
        **summary_of(found, pooled=settings.folds is not None, seed=settings.seed),
        "seconds": {"all runs": round(time.perf_counter() - started, 2)},
        "versions": library_versions(),
        "seed": settings.seed,
        "classifier": None if settings.folds is not None else found[next(iter(found))]["classifier"],
        "command": command_line(),
    }
    if context.accelerator.is_main_process:
        save_records(output, settings=settings, metrics=metrics)
        context.tell(report_line(write_report(output)))
    return metrics


def summary_of(found: Mapping[str, Mapping[str, Any]], *, pooled: bool, seed: int) -> dict[str, Any]:
    """Return ``runs``, ``spread`` and, where the validation tables are parts of one table, ``out_of_fold``.

    Args:
        found: The metrics of each run by its name.
        pooled: Whether the test tables are the folds of one table.
        seed: Seed of the interval.
    """
    tables = {name: [run[name] for run in found.values() if run.get(name)] for name in ("validation", "test")}
    spread = {
        name: {
            measure: _spread([scores[measure] for scores in several]) for measure in MEASURES if measure in several[0]
        }
        for name, several in tables.items()
        if several
    }
    runs = {
        name: {"classifier": run["classifier"], **{table: _plain(run.get(table)) for table in tables}}
        for name, run in found.items()
    }
    summary: dict[str, Any] = {"runs": runs, "spread": spread}
    if pooled:
        rows = sum(scores["n"] for scores in tables["test"])
        right = sum(round(scores["accuracy"] * scores["n"]) for scores in tables["test"])
        truth, answers = np.zeros(rows, dtype=int), (np.arange(rows) >= right).astype(int)
        interval = score_intervals(truth, answers, num_labels=2, seed=seed)["accuracy"]
        summary["out_of_fold"] = {"accuracy": right / rows, "n": rows, "interval": {"accuracy": interval}}
    return summary


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values)}


def _plain(scores: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if scores is None else {name: scores[name] for name in (*MEASURES, "n") if name in scores}


def _refuse_other_output(output: Path, names: Sequence[str]) -> None:
    """Raise if the folder holds files of our names that are not of such a run."""
    there = [name for name in (*RUN_FILES, "classifier", "language_model") if (output / name).exists()]
    if output.is_file() or (there and not any((output / name).is_dir() for name in names)):
        raise ArtifactError(
            f"{output} holds {', '.join(there) or 'no folder'} and none of {names[0]} to {names[-1]}, so it is another "
            "run's; choose another output folder"
        )
