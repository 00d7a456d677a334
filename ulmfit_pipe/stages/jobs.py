"""Single stages as jobs over files: what the recipes for one stage run.

Each job loads its tables, runs one stage and writes ``metrics.json`` and ``settings.yaml`` beside the stage's files,
and ``report.html`` where something was trained.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from ulmfit_pipe.data.row_sources import TableReading
from ulmfit_pipe.data.tables import load_table
from ulmfit_pipe.settings.checks import check_seed, check_types, with_absolute_paths, with_home_paths
from ulmfit_pipe.settings.parsing import settings_to_yaml
from ulmfit_pipe.stages.artifacts import STAGE_FILE, ArtifactError, model_type_of
from ulmfit_pipe.stages.classifier import ClassifierSettings, build_classifier_learner, train_classifier
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.stages.language_model import (
    LanguageModelSettings,
    build_language_model_learner,
    train_language_model,
)
from ulmfit_pipe.stages.model_folder import trusting_run
from ulmfit_pipe.stages.predict import Predictor
from ulmfit_pipe.stages.presets import PresetName
from ulmfit_pipe.stages.report import METRICS_FILE, REPORT_FILE, SETTINGS_FILE, report_line, write_report
from ulmfit_pipe.stages.run_context import Precision, RunContext, context_of, deadline_after, exclusive_run
from ulmfit_pipe.stages.table_account import tell_of_texts
from ulmfit_pipe.stages.tables_of_run import (
    TRAIN,
    VALIDATION,
    check_tables_alike,
    columns_of,
    load_run_tables,
    refuse_unjudged_best,
    split_texts,
    without_texts_of,
)
from ulmfit_pipe.stages.unknown_text import UnknownText, check_known_texts
from ulmfit_pipe.storage.atomic import write_atomic
from ulmfit_pipe.storage.json_files import write_json
from ulmfit_pipe.storage.versions import library_versions
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.lr_finder import LRFinderResult


@dataclass(frozen=True)
@with_home_paths
class LanguageModelJob(TableReading):
    """Settings of a language-model run.

    Attributes:
        train_file: Table or tables of text of any kind in docs/tables.md: a file, a folder of texts, a saved dataset's
            folder, or a hub name; NAME:SPLIT takes one split, else train is taken where there are several.
        output_dir: Folder to write: weights, configuration, tokenizer, metrics, settings, report.
        model: Pretrained language model to go on from, a folder or hub id; null trains from scratch.
        validation_file: Text that is only measured; without it a part of the training text is held out.
        text_column: Column of text; several are joined with field marks.
        unknown_text: Texts in a language or script that the pretrained model does not know: error stops before any
            training, allow trains on them all the same.
        validation_fraction: Part held out where no validation file is given.
        preset: Recipe; auto is fastai for an AWD-LSTM and transformer for any other model.
        seed: Seed of split, weights, dropout and order.
        max_seconds: Stop training after so long; null for no limit.
        mixed_precision: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        tf32: Train in TF32 on NVIDIA GPUs (faster, 10 bits of precision), or in float32; null leaves it to torch.
        gradient_checkpointing: Run layers again in the backward pass: less memory, more time, the same gradients.
        compile: Compile the model for each phase with torch.compile: slow to begin, then faster for transformers.
        progress: Show progress bars; null decides by the terminal.
        resume: Go on with an unfinished stage from its last checkpoint; false stops where there is one.
        checkpoint_seconds: Save a checkpoint so often while training; null saves none.
        report_to: Trackers that show the training: tensorboard, wandb, mlflow, ... as far as installed; all; none.
            A log.jsonl is written in any case.
        log_every: Log one optimizer step out of so many.
        language_model: Numbers of the stage.
        trust_remote_code: Run Python code that comes with a model (auto_map in its config.json); off, such a model is
            refused.
    """

    train_file: list[str]
    output_dir: str
    model: str | None = None
    validation_file: str | None = None
    text_column: list[str] = field(default_factory=lambda: ["text"])
    unknown_text: UnknownText = "error"
    validation_fraction: float = 0.02
    preset: PresetName = "auto"
    seed: int = 0
    max_seconds: float | None = None
    mixed_precision: Precision = "no"
    tf32: bool | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    progress: bool | None = None
    resume: bool = False
    checkpoint_seconds: float | None = 60.0
    report_to: list[str] = field(default_factory=list)
    log_every: int = 10
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse values of another type, or on no field's list."""
        check_types(self)
        check_seed(self)


@dataclass(frozen=True)
@with_home_paths
class ClassifierJob(TableReading):
    """Settings of a classifier run.

    Attributes:
        train_file: Labelled table or tables.
        output_dir: Folder to write: weights, configuration, tokenizer, metrics, settings, report.
        model: Folder or name of a language model or text encoder, or of a saved classifier with the same labels to go
            on from; any text model of transformers will do.
        test_file: Labelled table that is scored once at the end.
        validation_file: Labelled table that chooses the best epoch; without it a part is held out.
        text_column: Column of text; several are joined with field marks.
        label_column: Column of labels. Repeated, each column is a label of its own that holds 0 and 1 (multi-label).
        label_separator: Splits a label cell into several labels (multi-label).
        multi_label: The label column holds lists of labels.
        label_names: Names for the values of the label column: a JSON file {"0": "neg", "1": "pos"}, such a text
            itself, or a CSV file with a value and its name in each row; null takes the values as names.
        label_threshold: For several label columns of votes or shares: the number from which a label counts as given.
        min_rows_per_class: Leave classes with fewer labelled rows out of every table; the single row of a class is
            otherwise trained on and never measured.
        empty_text: error names the first labelled row without text; skip leaves such rows out and reports them.
        unknown_text: Texts in a language or script that the pretrained model does not know: error stops before any
            training, allow trains on them all the same.
        validation_fraction: Part held out where no validation file is given; 0 trains on all rows; null holds out a
            tenth of 500 rows or more (20 or more a label), and nothing of fewer.
        preset: Recipe; auto is fastai for an AWD-LSTM and transformer for any other model.
        seed: Seed of split, weights, dropout and order.
        max_seconds: Stop training after so long; null for no limit.
        mixed_precision: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        tf32: Train in TF32 on NVIDIA GPUs (faster, 10 bits of precision), or in float32; null leaves it to torch.
        gradient_checkpointing: Run layers again in the backward pass: less memory, more time, the same gradients.
        compile: Compile the model for each phase with torch.compile: slow to begin, then faster for transformers.
        progress: Show progress bars; null decides by the terminal.
        resume: Go on with an unfinished stage from its last checkpoint; false stops where there is one.
        checkpoint_seconds: Save a checkpoint so often while training; null saves none.
        report_to: Trackers that show the training: tensorboard, wandb, mlflow, ... as far as installed; all; none.
            A log.jsonl is written in any case.
        log_every: Log one optimizer step out of so many.
        classifier: Numbers of the stage.
        trust_remote_code: Run Python code that comes with a model (auto_map in its config.json); off, such a model is
            refused.
    """

    train_file: list[str]
    output_dir: str
    model: str
    test_file: str | None = None
    validation_file: str | None = None
    text_column: list[str] = field(default_factory=lambda: ["text"])
    label_column: list[str] = field(default_factory=lambda: ["label"])
    label_separator: str | None = None
    multi_label: bool = False
    label_names: str | None = None
    label_threshold: float | None = None
    min_rows_per_class: int = 1
    empty_text: Literal["error", "skip"] = "error"
    unknown_text: UnknownText = "error"
    validation_fraction: float | None = None
    preset: PresetName = "auto"
    seed: int = 0
    max_seconds: float | None = None
    mixed_precision: Precision = "no"
    tf32: bool | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    progress: bool | None = None
    resume: bool = False
    checkpoint_seconds: float | None = 60.0
    report_to: list[str] = field(default_factory=list)
    log_every: int = 10
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse values of another type, or on no field's list."""
        check_types(self)
        check_seed(self)


@dataclass(frozen=True)
@with_home_paths
class LearningRateJob(TableReading):
    """Settings of a learning-rate search.

    Attributes:
        train_file: The table to sweep over.
        output_dir: Folder for learning_rate.png and learning_rate.json.
        stage: Which stage the rate is for.
        model: Folder of a language model (or classifier); null sweeps a language model from scratch.
        freeze_to: First trained layer group, as in Learner.freeze_to; -1 is the head only, 0 everything.
        text_column: Column of text.
        label_column: Column of labels. Repeated, each column is a label of its own that holds 0 and 1 (multi-label).
        label_separator: Splits a label cell into several labels (multi-label).
        multi_label: The label column holds lists of labels.
        label_names: Names for the values of the label column: a JSON file {"0": "neg", "1": "pos"}, such a text
            itself, or a CSV file with a value and its name in each row; null takes the values as names.
        label_threshold: For several label columns of votes or shares: the number from which a label counts as given.
        min_rows_per_class: Leave classes with fewer labelled rows out of every table; the single row of a class is
            otherwise trained on and never measured.
        empty_text: error names the first labelled row without text; skip leaves such rows out and reports them.
        start_lr: First learning rate of the sweep.
        end_lr: Last learning rate of the sweep.
        num_steps: Steps of the sweep.
        preset: Recipe; auto is fastai for an AWD-LSTM and transformer for any other model.
        seed: Seed of split, weights, dropout and order.
        mixed_precision: The precision to train in afterwards: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        tf32: Sweep in TF32 on NVIDIA GPUs, or in float32; null leaves it to torch.
        gradient_checkpointing: Run layers again in the backward pass: less memory, more time, the same gradients.
        language_model: Numbers of the language-model stage.
        classifier: Numbers of the classifier stage.
        trust_remote_code: Run Python code that comes with a model (auto_map in its config.json); off, such a model is
            refused.
    """

    train_file: list[str]
    output_dir: str
    stage: Literal["language_model", "classifier"] = "classifier"
    model: str | None = None
    freeze_to: int = -1
    text_column: list[str] = field(default_factory=lambda: ["text"])
    label_column: list[str] = field(default_factory=lambda: ["label"])
    label_separator: str | None = None
    multi_label: bool = False
    label_names: str | None = None
    label_threshold: float | None = None
    min_rows_per_class: int = 1
    empty_text: Literal["error", "skip"] = "error"
    start_lr: float = 1e-7
    end_lr: float = 10.0
    num_steps: int = 100
    preset: PresetName = "auto"
    seed: int = 0
    mixed_precision: Precision = "no"
    tf32: bool | None = None
    gradient_checkpointing: bool = False
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse values of another type, or on no field's list."""
        check_types(self)
        check_seed(self)


def _context(job: LanguageModelJob | ClassifierJob) -> RunContext:
    context = context_of(job, deadline=deadline_after(job.max_seconds))
    context.check_alike(job)
    context.tell_of_remote_code(job)
    return context.for_model(model_type_of(job.model))


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
        reading=job.options(),
        say=context.tell,
    )


@exclusive_run()
@trusting_run
def run_language_model(job: LanguageModelJob) -> dict[str, Any]:
    """Train or fine-tune a language model on files and return what ``metrics.json`` holds."""
    context = _context(job)
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
        model=job.model or job.language_model.tokenizer_of,
        unknown_text=job.unknown_text,
        context=context,
        vocabulary=job.language_model.tokenizer,
    )
    result = train_language_model(
        train,
        validation,
        output_dir=job.output_dir,
        model=job.model,
        settings=job.language_model,
        context=context,
        train_files=job.train_file,
    )
    seconds = {"language_model": result.seconds}
    metrics = _write_metrics(job, context, test=None, validation=result.metrics, seconds=seconds)
    _write_report(job, context, metrics, {"language_model": result})
    return metrics


@exclusive_run()
@trusting_run
def run_classifier(job: ClassifierJob) -> dict[str, Any]:
    """Train a classifier on files and return what ``metrics.json`` holds."""
    refuse_unjudged_best(job.validation_file, job.validation_fraction, keep=job.classifier.keep)
    context = _context(job)
    tables = load_run_tables(
        job.train_file,
        validation_file=job.validation_file,
        test_file=job.test_file,
        **columns_of(job),
        validation_fraction=job.validation_fraction,
        seed=job.seed,
        reading=job.options(),
        min_rows_per_class=job.min_rows_per_class,
        say=context.tell,
    )
    check_tables_alike(tables, context)
    check_known_texts(
        tables.train,
        model=job.model,
        unknown_text=job.unknown_text,
        context=context,
        from_scratch="recipes/run_pipeline.py --model null trains one from scratch on these texts",
    )
    result = train_classifier(
        tables.train,
        tables.validation,
        model=job.model,
        output_dir=job.output_dir,
        settings=job.classifier,
        context=context,
    )
    started = time.perf_counter()
    predictor = Predictor.load(job.output_dir, accelerator=context.accelerator)
    test = None if tables.test is None else predictor.score(tables.test)
    if line := predictor.describe_cut():
        context.tell(line)
    seconds = {"classifier": result.seconds, "scoring": time.perf_counter() - started}
    more = predictor.named_thresholds()
    metrics = _write_metrics(job, context, test=test, validation=result.metrics or None, seconds=seconds, **more)
    _write_report(job, context, metrics, {"classifier": result})
    return metrics


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
        write_json(Path(job.output_dir) / METRICS_FILE, metrics)
        write_atomic(Path(job.output_dir) / SETTINGS_FILE, settings_to_yaml(with_absolute_paths(job)).encode())
    return metrics


def _write_report(
    job: LanguageModelJob | ClassifierJob,
    context: RunContext,
    metrics: dict[str, Any],
    results: dict[str, StageResult],
) -> None:
    if context.accelerator.is_main_process:
        path = write_report(Path(job.output_dir) / REPORT_FILE, settings=job, metrics=metrics, results=results)
        context.tell(report_line(path))


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
    context = RunContext(
        preset=job.preset,
        seed=job.seed,
        mixed_precision=job.mixed_precision,
        tf32=job.tf32,
        gradient_checkpointing=job.gradient_checkpointing,
    )
    context.check_alike(job)
    context.tell_of_remote_code(job)
    context = context.for_model(model_type_of(job.model))
    context.start()
    learner = _learner_to_sweep(job, context)
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


def _learner_to_sweep(job: LearningRateJob, context: RunContext) -> Learner:
    if job.stage == "language_model":
        train, validation = _text_tables(job, context, 0.1)
        return build_language_model_learner(
            train, validation, model=job.model, settings=job.language_model, context=context
        ).learner
    if job.model is None:
        raise ValueError("the classifier stage starts from a language model: give --model, a folder")
    tables = load_run_tables(
        job.train_file,
        **columns_of(job),
        seed=job.seed,
        reading=job.options(),
        say=context.tell,
    )
    return build_classifier_learner(
        tables.train, tables.validation, model=job.model, settings=job.classifier, context=context
    ).learner
