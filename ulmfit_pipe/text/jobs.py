"""Single stages as jobs over files: what the recipes for one stage run.

Each job loads its tables, runs one stage and writes ``metrics.json`` and ``settings.yaml`` beside the stage's files,
and ``report.html`` where something was trained.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from ulmfit_pipe.data.tables.row_sources import reading_of
from ulmfit_pipe.data.tables.tables import load_table
from ulmfit_pipe.settings.text_runs import ClassifierJob, LanguageModelJob, LearningRateJob
from ulmfit_pipe.stages.artifacts import STAGE_FILE, ArtifactError, ResolvedModel, find_model, model_type_of, read_stage
from ulmfit_pipe.stages.context import RunContext, context_of, deadline_after, exclusive_run
from ulmfit_pipe.stages.model_folder import trusting_run
from ulmfit_pipe.stages.report import (
    PREDICTIONS_FILE,
    command_line,
    report_line,
    save_records,
    write_report,
)
from ulmfit_pipe.storage.json_files import write_json
from ulmfit_pipe.storage.versions import library_versions
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.text.language_model import build_language_model_learner, train_language_model
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.scores.predictions import record_of, write_predictions
from ulmfit_pipe.text.table_account import tell_of_texts
from ulmfit_pipe.text.tables import (
    TRAIN,
    VALIDATION,
    RunTables,
    check_tables_alike,
    columns_of,
    load_run_tables,
    refuse_unvalidated_best,
    split_texts,
    without_texts_of,
)
from ulmfit_pipe.text.unknown_text import check_known_texts
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.lr_finder import LRFinderResult


def _context(job: LanguageModelJob | ClassifierJob | LearningRateJob, max_seconds: float | None = None) -> RunContext:
    context = context_of(job, deadline=deadline_after(max_seconds))
    context.check_alike(job)
    context.tell_of_remote_code(job)
    return context


def _text_tables(
    job: LanguageModelJob | LearningRateJob, context: RunContext, fraction: float
) -> tuple[Dataset, Dataset]:
    table = _text_loader(job, context)(job.train_file, usual_splits=TRAIN)
    return split_texts(table, fraction=fraction, seed=job.seed, say=context.tell)


def _text_loader(job: LanguageModelJob | LearningRateJob, context: RunContext) -> Callable[..., Dataset]:
    return partial(
        load_table,
        text_columns=tuple(job.text_column),
        label_column=None,
        reading=reading_of(job),
        say=context.tell,
    )


@exclusive_run()
@trusting_run
def run_language_model(job: LanguageModelJob) -> dict[str, Any]:
    """Train or fine-tune a language model on files and return what ``metrics.json`` holds."""
    context, model = _context(job, job.max_seconds), find_model(job.model)
    context = context.for_model(model_type_of(model))
    if job.validation_file is None:
        train, validation = _text_tables(job, context, job.validation_fraction)
    else:
        load = _text_loader(job, context)
        validation = load(job.validation_file, usual_splits=VALIDATION)
        train = without_texts_of(
            load(job.train_file, usual_splits=TRAIN),
            [validation],
            what="training texts",
            where="the validation file",
            say=context.tell,
        )
    tell_of_texts(train, validation, say=context.tell)
    check_known_texts(
        train,
        model=model or job.language_model.tokenizer_of,
        unknown_text=job.unknown_text,
        context=context,
        vocabulary=job.language_model.tokenizer,
    )
    result = train_language_model(
        train,
        validation,
        output_dir=job.output_dir,
        model=model,
        settings=job.language_model,
        context=context,
        train_files=job.train_file,
    )
    seconds = {"language_model": result.seconds}
    record = record_of({"training": train, "validation": validation}, names=[])
    metrics = _write_metrics(
        job, context, test=None, validation=result.metrics, seconds=seconds, tables=record, command=command_line()
    )
    _write_report(job, context)
    return metrics


@exclusive_run()
@trusting_run
def run_classifier(job: ClassifierJob) -> dict[str, Any]:
    """Train a classifier on files and return what ``metrics.json`` holds."""
    refuse_unvalidated_best(job.validation_file, job.validation_fraction, keep=job.classifier.keep)
    context, model = _context(job, job.max_seconds), find_model(job.model)
    context = context.for_model(model.model_type)
    tables = load_run_tables(
        job.train_file,
        validation_file=job.validation_file,
        test_file=job.test_file,
        **columns_of(job),
        validation_fraction=job.validation_fraction,
        seed=job.seed,
        say=context.tell,
    )
    check_tables_alike(tables, context)
    check_known_texts(
        tables.train,
        model=model,
        unknown_text=job.unknown_text,
        context=context,
        from_scratch="ulmfit run --model null trains one from scratch on these texts",
    )
    result = train_classifier(
        tables.train,
        tables.validation,
        model=model,
        output_dir=job.output_dir,
        settings=job.classifier,
        context=context,
    )
    started = time.perf_counter()
    predictor = Predictor.load(job.output_dir, accelerator=context.accelerator)
    test = _scored(job, predictor, tables, context)
    if line := predictor.describe_cut():
        context.tell(line)
    seconds = {"classifier": result.seconds, "scoring": time.perf_counter() - started}
    record = record_of(tables.named(), names=predictor.label_names)
    more = {
        "calibration": (read_stage(result.path) or {}).get("calibration"),
        "tables": record,
        "command": command_line(),
        **predictor.named_thresholds(),
    }
    metrics = _write_metrics(job, context, test=test, validation=result.metrics or None, seconds=seconds, **more)
    _write_report(job, context)
    return metrics


def _scored(
    job: ClassifierJob, predictor: Predictor, tables: RunTables, context: RunContext
) -> dict[str, float] | None:
    """Return the scores of the test table, and write the answers to its rows, or to the validation rows without it."""
    path = Path(job.output_dir) / PREDICTIONS_FILE
    table = tables.validation if tables.test is None else tables.test
    if table is None:
        path.unlink(missing_ok=True)
        return None
    scores, scored = predictor.score_rows(table)
    if context.accelerator.is_main_process:
        write_predictions(path, table, scored, names=predictor.label_names)
    return None if tables.test is None else scores


def _write_metrics(
    job: LanguageModelJob | ClassifierJob | LearningRateJob,
    context: RunContext,
    *,
    test: dict[str, float] | None,
    validation: dict[str, float] | None,
    seconds: dict[str, float],
    **more: Any,
) -> dict[str, Any]:
    metrics = {
        "test": test,
        "validation": validation,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "versions": library_versions(),
        "seed": job.seed,
        "preset": context.preset,
        **more,
    }
    if context.accelerator.is_main_process:
        save_records(job.output_dir, settings=job, metrics=metrics)
    return metrics


def _write_report(job: LanguageModelJob | ClassifierJob, context: RunContext) -> None:
    if context.accelerator.is_main_process:
        context.tell(report_line(write_report(job.output_dir)))


@exclusive_run()
@trusting_run
def find_learning_rate(job: LearningRateJob) -> LRFinderResult:
    """Sweep the learning rate of one stage at one freeze state; write the curve and the suggestions.

    Raises:
        ValueError: The classifier stage has no model to start from.
        ArtifactError: The output folder is a stage's.
    """
    output, started = Path(job.output_dir), time.perf_counter()
    if (output / STAGE_FILE).exists():
        raise ArtifactError(f"{output} is a stage's folder; choose another output folder for the sweep")
    context, model = _context(job), find_model(job.model)
    context = context.for_model(model_type_of(model))
    context.start()
    learner = _learner_to_sweep(job, model, context)
    learner.freeze_to(job.freeze_to)
    result = learner.lr_find(start_lr=job.start_lr, end_lr=job.end_lr, num_steps=job.num_steps)
    if not context.accelerator.is_main_process:
        return result
    record = {"suggestions": result.suggestions, "trained": result.trained, "lrs": result.lrs, "losses": result.losses}
    write_json(output / "learning_rate.json", record)
    result.plot(output / "learning_rate.png")
    seconds = {"sweep": time.perf_counter() - started}
    _write_metrics(job, context, test=None, validation=None, seconds=seconds, suggestions=result.suggestions)
    return result


def _learner_to_sweep(job: LearningRateJob, model: ResolvedModel | None, context: RunContext) -> Learner:
    if job.stage == "language_model":
        train, validation = _text_tables(job, context, 0.1)
        return build_language_model_learner(
            train, validation, model=model, settings=job.language_model, context=context
        ).learner
    if model is None:
        raise ValueError("the classifier stage starts from a language model: give --model, a folder")
    tables = load_run_tables(job.train_file, **columns_of(job), seed=job.seed, say=context.tell)
    return build_classifier_learner(
        tables.train, tables.validation, model=model, settings=job.classifier, context=context
    ).learner
