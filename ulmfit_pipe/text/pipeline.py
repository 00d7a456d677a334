"""The whole method in one call: tables in, language model, classifier, metrics and a saved folder out.

Each stage writes its own folder below the output folder; a stage that is already finished with the same settings and
data is skipped, with a log line.
"""

import dataclasses
import json
import os
import shutil
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from datasets import Dataset

from ulmfit_pipe.console import print_line
from ulmfit_pipe.data.labels import BOOLS, INTEGERS, label_type_of, list_labels
from ulmfit_pipe.data.tables.row_sources import RowSource
from ulmfit_pipe.reports.result_table import Metrics
from ulmfit_pipe.settings.checks import home_path
from ulmfit_pipe.settings.choices import DEFAULT_MODEL, PresetName
from ulmfit_pipe.settings.parsing import list_settings, nearest_names
from ulmfit_pipe.settings.prediction import LabelNextSettings
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.settings.text_runs import PipelineSettings, UpdateSettings
from ulmfit_pipe.settings.values import SettingsError
from ulmfit_pipe.stages.artifacts import (
    ArtifactError,
    ResolvedModel,
    model_type_of,
    read_stage,
    resolve_model,
)
from ulmfit_pipe.stages.context import RunContext, context_of, deadline_after, exclusive_run
from ulmfit_pipe.stages.finished import StageResult, refuse_other_run
from ulmfit_pipe.stages.model_folder import trusting_run
from ulmfit_pipe.stages.presets import AWD_LSTM
from ulmfit_pipe.stages.python_input import (
    AT_HAND,
    check_call,
    check_folder,
    check_names,
    recorded_tables,
    tables_given,
)
from ulmfit_pipe.stages.report import (
    PREDICTIONS_FILE,
    command_line,
    refuse_foreign_output,
    report_line,
    save_records,
    write_report,
)
from ulmfit_pipe.storage.atomic import atomic_folder, contents_of
from ulmfit_pipe.storage.temporary_files import folder_of_owner
from ulmfit_pipe.storage.versions import library_versions
from ulmfit_pipe.text.classifier import classifier_identity, train_classifier
from ulmfit_pipe.text.families.starting_models import starting_models, with_builtin_backward
from ulmfit_pipe.text.labelling.label_next import LabelNext, label_next
from ulmfit_pipe.text.language_model import train_language_model
from ulmfit_pipe.text.predict.evaluation import evaluate_table
from ulmfit_pipe.text.predict.explain import Explanation, explain
from ulmfit_pipe.text.predict.predictor import BACKWARD, Predictor
from ulmfit_pipe.text.scores.interpretation import ClassificationInterpretation, interpret
from ulmfit_pipe.text.scores.next_steps import next_steps, warnings_of
from ulmfit_pipe.text.scores.predictions import record_of
from ulmfit_pipe.text.scores.repeated_runs import fold_of, is_repeated, run_repeated
from ulmfit_pipe.text.scores.run_scores import score_tables
from ulmfit_pipe.text.tables import (
    RunTables,
    check_tables_alike,
    columns_of,
    label_names_of,
    load_run_tables,
    refuse_unvalidated_best,
    split_texts,
)
from ulmfit_pipe.text.unknown_text import check_known_texts
from ulmfit_pipe.text.updating.update import run_update
from ulmfit_pipe.training.distributed.launch import started_processes

Direction: TypeAlias = Literal["forward", "backward"]

LM_SHARE = 0.5  # of max_seconds goes to the language models, what is left to the classifiers
GUESS_TOKENS = ("MaskedLM", "CausalLM", "LMHead", "PreTraining")  # parts of the names of classes with such a head
LM_HELD_OUT = 0.1  # of the texts, where no labelled rows are held out
LABEL_TYPES = {None: "text", INTEGERS: "integers", BOOLS: "bools"}
TABLES = ("train_file", "validation_file", "test_file", "unlabelled_file")
GIVEN_TO_FIT = {  # settings that `TextPipeline.fit` takes under another name, or not at all
    "train_file": "fit(train, ...), the first argument",
    "test_file": "test=",
    "unlabelled_file": "unlabelled=",
    "model": "TextPipeline(model)",
}
GIVEN_TO_UPDATE = {
    "train_file": "update(new, ...), the first argument",
    "test_file": "test=",
    "replay_file": "old=",
    "model": "TextPipeline.load(model).update",
}
GIVEN_TO_LABEL_NEXT = {
    "pool": "label_next(pool, ...), the first argument",
    "model": "TextPipeline.load(model).label_next",
}


@exclusive_run()
@trusting_run
def run_pipeline(
    settings: PipelineSettings,
    *,
    context: RunContext | None = None,
    in_memory: Mapping[str, Any] | None = None,
    report: bool = True,
) -> dict[str, Any]:
    """Run every stage and return what ``metrics.json`` holds.

    Args:
        settings: Settings of the run.
        context: Environment of the run; made from the settings by default.
        in_memory: Tables that are no files, as `load_table` takes them, by the names of the settings that they replace.
        report: Whether the page that shows the run is written; its pictures take seconds.

    Returns:
        ``test`` and ``validation`` metrics (``test`` is None without a test file), ``seconds`` per stage,
        ``versions``, ``seed``, and the folder of the classifier.

    Raises:
        ValueError: The settings contradict each other, or a table or model cannot be used.
    """
    if is_repeated(settings):
        return run_repeated(settings, context, run=partial(run_pipeline, in_memory=in_memory, report=report))
    settings = with_builtin_backward(settings)
    _check(settings)
    starts = starting_models(settings)
    start = next(iter(starts.values()))
    fine_tunes, reason = fine_tunes_language_model(settings, start)
    output = Path(settings.output_dir)
    deadline = deadline_after(settings.max_seconds)
    context = context or context_of(settings)
    context.check_alike(settings)
    context.tell_of_remote_code(settings)
    refuse_foreign_output(output, ensemble=settings.ensemble)
    context = context.for_model(model_type_of(start))
    if reason:
        context.tell(reason)
    tables = _load_tables(settings, in_memory or {}, context)
    _check_known(settings, tables, context, start)
    _check_labels(settings.classifier, tables.train)
    for suffix in ("", f"_{BACKWARD}") if settings.ensemble else ("",):
        refuse_other_run(
            output / f"classifier{suffix}",
            stage="classifier",
            identity=classifier_identity(tables.train, tables.validation, settings.classifier, context),
            unknown=("model",),  # its language model may not be trained yet
        )
    results: dict[str, StageResult] = {}
    given = dataclasses.replace(settings, fine_tune_language_model=fine_tunes)
    for direction, model in starts.items():
        _run_direction(given, tables, context, model, direction=direction, deadline=deadline, results=results)
    return _finish(settings, tables, context, results=results, model_type=model_type_of(start), report=report)


def _load_tables(settings: PipelineSettings, in_memory: Mapping[str, Any], context: RunContext) -> RunTables:
    """Return the tables of the run, or of its fold, which are the same on every process."""
    tables = load_run_tables(
        **{name: in_memory.get(name, getattr(settings, name)) for name in TABLES},
        validation_fraction=settings.validation_fraction if settings.folds is None else 0.0,
        seed=settings.seed,
        include_test_text=settings.include_test_text,
        max_rows=settings.max_rows,
        **columns_of(settings),
        say=context.tell,
    )
    if settings.folds is not None:
        tables = fold_of(tables, settings, say=context.tell)
    check_tables_alike(tables, context)
    return tables


def fine_tunes_language_model(settings: PipelineSettings, model: ResolvedModel | None) -> tuple[bool, str]:
    """Return whether the language model is fine-tuned first, and a log line with the reason where it is not by default.

    Args:
        settings: Settings of the run; null takes the stage where it pays: for an AWD-LSTM always, for a transformer
            where there is unlabelled text and a head that was trained to guess tokens, or settings of the stage.
        model: What the run starts from; None is from scratch.
    """
    wanted = settings.fine_tune_language_model
    if wanted is not None or model is None or settings.language_model != LanguageModelSettings():
        return wanted is not False, ""
    if model.model_type == AWD_LSTM:
        return True, ""
    if not any(kind in architecture for architecture in model.loaded.architectures or [] for kind in GUESS_TOKENS):
        return False, (
            f"language model: not fine-tuned, {model} has no head that was trained to guess tokens "
            "(--fine_tune_language_model true gives it a new one)"
        )
    if not settings.unlabelled_file:
        return False, (
            f"language model: {model} is not fine-tuned on the labelled texts alone; give further texts with "
            "--unlabelled_file, or --fine_tune_language_model true"
        )
    return True, ""


def _check(settings: PipelineSettings) -> None:
    if settings.model is None and settings.fine_tune_language_model is False:
        raise ValueError(
            "fine_tune_language_model false needs a pretrained model; give --model, or let the stage train one"
        )
    if settings.folds is None:
        refuse_unvalidated_best(settings.validation_file, settings.validation_fraction, keep=settings.classifier.keep)


def _check_labels(settings: ClassifierSettings, train: Dataset) -> None:
    """Raise before the language model is trained where the classifier's settings do not suit the labels."""
    names, several = label_names_of(train)
    settings.checked_monitor(multi_label=several)
    settings.check_classes(names)


def _check_known(
    settings: PipelineSettings, tables: RunTables, context: RunContext, start: ResolvedModel | None
) -> None:
    """Raise where the training texts are unknown to the model that the first stage starts from."""
    tuned, numbers = settings.fine_tune_language_model, settings.language_model
    check_known_texts(
        tables.train,
        model=start or (numbers.tokenizer_of if tuned else None),
        unknown_text=settings.unknown_text,
        context=context,
        vocabulary=numbers.tokenizer if tuned else "keep",
    )


def _run_direction(
    settings: PipelineSettings,
    tables: RunTables,
    context: RunContext,
    start: ResolvedModel | None,
    *,
    direction: Direction,
    deadline: float | None,
    results: dict[str, StageResult],
) -> None:
    """Run both stages of one direction and note their results under their folders' names."""
    second = settings.ensemble and direction == "backward"
    suffix = f"_{BACKWARD}" if second else ""
    output = Path(settings.output_dir)
    left = 1 if second or not settings.ensemble else 2  # directions still to come, this one included
    fine_tuned = output / f"language_model{suffix}"
    encoder = fine_tuned if start is None or settings.fine_tune_language_model else start
    if encoder is fine_tuned:
        context.deadline = _share(deadline, LM_SHARE / left)
        numbers = dataclasses.replace(settings.language_model, direction=direction)
        texts, held_out = _language_model_texts(tables, context)
        results[f"language_model{suffix}"] = train_language_model(
            texts,
            held_out,
            output_dir=fine_tuned,
            model=start,
            settings=numbers,
            context=context,
            train_files=[*settings.train_file, *(settings.unlabelled_file or [])],
        )
    context.deadline = _share(deadline, 1 / left)
    results[f"classifier{suffix}"] = train_classifier(
        tables.train,
        tables.validation,
        model=encoder,
        output_dir=output / f"classifier{suffix}",
        settings=settings.classifier,
        context=context,
    )


def _language_model_texts(tables: RunTables, context: RunContext) -> tuple[Dataset, Dataset]:
    """Return what the language model trains on and is measured on, which no setting of the classifier changes."""
    texts = tables.language_model_text()
    if tables.validation is not None:
        return texts, tables.validation.select_columns(["text"])
    return split_texts(texts, fraction=LM_HELD_OUT, seed=context.seed, say=context.tell)


def _share(deadline: float | None, share: float) -> float | None:
    if deadline is None:
        return None
    now = time.monotonic()
    return now + share * max(deadline - now, 0.0)


def _finish(
    settings: PipelineSettings,
    tables: RunTables,
    context: RunContext,
    *,
    results: dict[str, StageResult],
    model_type: str,
    report: bool,
) -> dict[str, Any]:
    """Score the finished classifier, put an ensemble together, and write ``metrics.json`` and the report."""
    started, output = time.perf_counter(), Path(settings.output_dir)
    folder = output / "classifier"
    if settings.ensemble and context.accelerator.is_main_process:
        with atomic_folder(folder / BACKWARD) as whole:
            shutil.copytree(output / f"classifier_{BACKWARD}", whole, dirs_exist_ok=True)
    context.accelerator.wait_for_everyone()
    predictor = Predictor.load(folder, accelerator=context.accelerator)
    _tell_of_other_types(predictor, tables, context)
    scores = score_tables(predictor, tables, context, baseline=settings.baseline, predictions=output / PREDICTIONS_FILE)
    judged = "validation" if scores["test"] is None else "test"
    warnings = [] if scores[judged] is None else warnings_of(scores[judged] or {}, table=judged)
    seconds = {name: round(result.seconds, 2) for name, result in results.items()}
    records = {name: read_stage(result.path) or {} for name, result in results.items()}
    metrics = {
        **scores,
        "cross_validation": records["classifier"].get("probe", {}).get("held_out"),
        "calibration": records["classifier"].get("calibration"),
        "cut_short": [name for name, record in records.items() if record.get("cut_short")],
        "warnings": warnings,
        "try_next": next_steps(settings, results, rows=len(tables.train), model_type=model_type) if warnings else [],
        "language_model": {name: result.metrics for name, result in results.items() if "language_model" in name},
        "seconds": {**seconds, "scoring": round(time.perf_counter() - started, 2)},
        "versions": library_versions(),
        "seed": settings.seed,
        "preset": context.preset,
        "classifier": str(folder),
        "tables": record_of(tables.named(), names=predictor.label_names),
        "command": command_line(),
        **predictor.named_thresholds(),
    }
    if context.accelerator.is_main_process:
        save_records(output, settings=settings, metrics=metrics)
        if report:
            context.tell(report_line(write_report(output)))
    return metrics


def _tell_of_other_types(predictor: Predictor, tables: RunTables, context: RunContext) -> None:
    """Log where a classifier that was finished before has the same labels in another type than this table."""
    now = label_type_of(tables.train.features["label"])
    if predictor.label_type != now:
        finished, given = (LABEL_TYPES[kind] for kind in (predictor.label_type, now))
        context.tell(
            f"note: the labels of the table are {given}, and the finished classifier returns them as {finished}; "
            "another output folder trains one that returns them as they are"
        )


class TextPipeline:
    """The method as one object: a pretrained language model in, a classifier out.

    Args:
        model: A pretrained language model or text encoder: a built-in name, a folder or a hub id; None trains an
            AWD-LSTM from the training texts. It has no labels: `predict` raises until `fit` has trained a classifier.
        trust_remote_code: Run Python code that comes with the model; off, such a model is refused.

    Raises:
        ArtifactError: The model does not exist; a hub id is looked up only when it is used.
    """

    def __init__(self, model: str | Path | None = DEFAULT_MODEL, *, trust_remote_code: bool = False) -> None:
        self.model = None if model is None else home_path(check_folder(model, "TextPipeline"))
        if model is not None:
            resolve_model(model)
        self.trust_remote_code = trust_remote_code
        self.metrics: dict[str, Any] | None = None
        self._predictor: Predictor | None = None
        self._folder: str | None = None  # of the classifier
        self._temporary: tuple[str, weakref.finalize[..., Any]] | None = None  # folder of a run without output_dir

    def __repr__(self) -> str:
        """Return one line: what fit starts from, and the classifier with its labels."""
        labels = "" if self._predictor is None else f"; {self._folder}: {list_labels(self._predictor.label_names)}"
        return f"TextPipeline({self.model}{labels or '; no classifier yet'})"

    @classmethod
    def load(cls, folder: str | Path, *, trust_remote_code: bool = False) -> "TextPipeline":
        """Load a classifier folder that a run has written; ``trust_remote_code`` as `Predictor.load`."""
        pipeline = cls(model=None, trust_remote_code=trust_remote_code)
        folder = check_folder(folder, "TextPipeline.load")
        pipeline._predictor = Predictor.load(folder, trust_remote_code=trust_remote_code)
        pipeline._folder = os.path.abspath(folder) if os.path.isdir(folder) else folder
        return pipeline

    def fit(
        self,
        train: Any = None,
        *misplaced: Any,
        output_dir: str | Path | None = None,
        test: Any = None,
        validation: Any = None,
        unlabelled: Any = None,
        preset: PresetName = "auto",
        **settings: Any,
    ) -> dict[str, Any]:
        """Run the whole method and keep the classifier for `predict`.

        A table is a file of any kind in docs/tables.md or a list of files, a DataFrame (of pandas, polars, ...), a
        `datasets.Dataset`, or ``(texts, labels)``. ``text_column`` and ``label_column`` name its columns.

        Args:
            train: Labelled table.
            misplaced: Must be empty: all other arguments are keyword-only.
            output_dir: Folder for all that the run writes; None takes a temporary one (`save` keeps the classifier).
            test: Labelled table that is scored once.
            validation: Labelled table that chooses the best epoch.
            unlabelled: Further text for the language model: a table, or the texts themselves.
            preset: Recipe.
            **settings: Any other field of `PipelineSettings`; a group as its class or a dict. ``label_names`` may be
                a mapping.

        Returns:
            What ``metrics.json`` holds.

        Raises:
            TypeError: Something is not a table; further positional arguments.
            ValueError: A setting, table or model cannot be used.
        """
        check_names(settings, PipelineSettings, elsewhere={**AT_HAND, **GIVEN_TO_FIT}, meant=_meant_setting)
        check_call(misplaced, output_dir)
        if isinstance(names := settings.get("label_names"), Mapping):
            settings["label_names"] = _as_json(names)
        if validation is not None and "validation_file" in settings:
            raise SettingsError("validation and validation_file are the same; give validation alone")
        validation = settings.pop("validation_file", validation)
        tables = tables_given(settings, train=train, test=test, validation=validation, unlabelled=unlabelled)
        given = PipelineSettings(
            output_dir="." if output_dir is None else check_folder(output_dir, "output_dir"),
            model=self.model,
            preset=preset,
            **recorded_tables(tables),
            **{"trust_remote_code": self.trust_remote_code, **settings},
        )
        before = self._temporary
        if output_dir is None:
            given = dataclasses.replace(given, output_dir=self._temporary_folder(again=given.resume))
        rows = {name: table for name, table in tables.items() if isinstance(table, RowSource)}
        self.metrics = Metrics(run_pipeline(given, in_memory=rows))
        folder = self.metrics["classifier"]  # cross-validation leaves no single classifier
        self._folder = folder and os.path.abspath(folder)
        self._predictor = Predictor.load(folder, trust_remote_code=given.trust_remote_code) if folder else None
        if before is not None and before != self._temporary:
            before[1]()
        return self.metrics

    def update(
        self, new: Any, *, output_dir: str | Path, test: Any = None, old: Any = None, **settings: Any
    ) -> dict[str, Any]:
        """Continue the classifier on new labelled rows, new classes included, and predict with the result.

        Args:
            new: Labelled table, as `fit` takes one.
            output_dir: Folder for the updated classifier; the one before stays as it is.
            test: Labelled table that is scored before and after.
            old: Labelled table of old rows to train on too; None reads those of the classifier's run again.
            **settings: Any other field of `UpdateSettings`.

        Returns:
            What ``metrics.json`` holds; `update_table` shows what the update changed.

        Raises:
            RuntimeError: Nothing was fitted or loaded yet.
            ValueError: A setting, table or model cannot be used.
        """
        source = self._folder if self.predictor else None
        meant = partial(_meant_setting, settings_class=UpdateSettings)
        check_names(settings, UpdateSettings, elsewhere=GIVEN_TO_UPDATE, meant=meant, of="update")
        tables = tables_given(settings, train=new, test=test, replay=old)
        given = UpdateSettings(
            model=str(source),
            output_dir=check_folder(output_dir, "output_dir"),
            **recorded_tables(tables),
            **{"trust_remote_code": self.trust_remote_code, **settings},
        )
        rows = {name: table for name, table in tables.items() if isinstance(table, RowSource)}
        self.metrics = Metrics(run_update(given, in_memory=rows))
        self._folder = os.path.abspath(given.output_dir)
        self._predictor = Predictor.load(given.output_dir, trust_remote_code=given.trust_remote_code)
        return self.metrics

    def label_next(
        self, pool: Any, n: int = 50, *, output_file: str | Path | None = None, **settings: Any
    ) -> LabelNext:
        """Return which texts of a pool to label next, uncertain ones that are spread out, and what it would buy.

        Args:
            pool: Texts, or a table of texts without labels, as ``unlabelled`` of `fit`.
            n: Rows to choose.
            output_file: CSV to write, ready for a spreadsheet; None writes none.
            **settings: Any other field of `LabelNextSettings`.

        Raises:
            RuntimeError: Nothing was fitted or loaded yet.
            ValueError: A setting, table or model cannot be used, or the pool has too few rows.
        """
        predictor, meant = self.predictor, partial(_meant_setting, settings_class=LabelNextSettings)
        check_names(settings, LabelNextSettings, elsewhere=GIVEN_TO_LABEL_NEXT, meant=meant, of="label_next")
        table = tables_given(settings, pool=pool)["pool_file"]
        given = LabelNextSettings(
            model=str(self._folder),
            pool=recorded_tables({"pool": table})["pool"],
            n=n,
            output_file=None if output_file is None else check_folder(output_file, "output_file"),
            **{"trust_remote_code": self.trust_remote_code, **settings},
        )
        return label_next(given, pool=table if isinstance(table, RowSource) else None, predictor=predictor)

    def _temporary_folder(self, *, again: bool) -> str:
        """Return a folder that goes with the pipeline, the one before where its run is to go on; say where it is."""
        if started_processes() > 1:
            raise ValueError("in several processes fit needs output_dir, the one folder that all of them know")
        if self._temporary is None or not again:
            self._temporary = folder_of_owner(self)
        folder = self._temporary[0]
        print_line(
            f"output_dir: {folder}, which is temporary: it goes when this pipeline is fitted again or Python ends "
            "(pipe.save(DIR) keeps the classifier, output_dir=DIR the run)"
        )
        return folder

    def save(self, folder: str | Path) -> Path:
        """Copy the classifier's folder, complete, to a new folder that `load` takes.

        Returns:
            The new folder.

        Raises:
            RuntimeError: Nothing was fitted or loaded yet.
            ArtifactError: Something is there already, or the classifier's own folder is gone.
        """
        target = Path(home_path(check_folder(folder, "TextPipeline.save")))
        source = Path(self._folder or "") if self.predictor else Path()
        if target.exists() and (not target.is_dir() or contents_of(target)):
            what = "is not empty" if target.is_dir() else "is a file"
            raise ArtifactError(f"{target} {what}; save to a new folder, such as {target.with_name('classifier-2')}")
        if not source.is_dir():
            raise ArtifactError(
                f"the classifier's folder {source} is not there to be copied; fit again, or load it anew"
            )
        if source.resolve() in target.resolve().parents:
            raise ArtifactError(f"{target} is inside of the classifier's own folder; save to a folder beside it")
        with atomic_folder(target) as whole:
            shutil.copytree(source, whole, dirs_exist_ok=True)
        return target

    @property
    def predictor(self) -> Predictor:
        """The classifier that predicts.

        Raises:
            RuntimeError: Nothing was fitted or loaded yet.
        """
        if self._predictor is None:
            start = "" if self.model is None else f" ({self.model} is what fit starts from; it knows no labels)"
            raise RuntimeError(
                f"there is no classifier yet: call fit, or TextPipeline.load on a classifier's folder{start}"
            )
        return self._predictor

    def predict(self, texts: Sequence[str], *, abstain_below: float | None = None) -> list[dict[str, Any]]:
        """Return ``{"label", "score", "scores"}`` for each text, in order; see `Predictor.predict`."""
        return self.predictor.predict(texts, abstain_below=abstain_below)

    def evaluate(self, table: Any, *, precision: float | None = None, **columns: Any) -> dict[str, Any]:
        """Score the classifier on a labelled table; see `evaluate_table`."""
        return Metrics(evaluate_table(self.predictor, table, precision=precision, **columns))

    def explain(self, text: str, *, label: Any = None) -> Explanation:
        """Return how much each word of a text moves the classifier towards a label, by default the predicted one."""
        return explain(self.predictor, text, label=label)

    def interpret(self, test: Any, **columns: Any) -> ClassificationInterpretation:
        """Return what the classifier gets wrong on a labelled table; tables and columns as for `evaluate`.

        Raises:
            RuntimeError: Nothing was fitted or loaded yet.
            ValueError: The table cannot be used, or has labels that the classifier does not know.
        """
        return interpret(self.predictor, test, **columns)


def _as_json(names: Mapping[Any, str]) -> str:
    return json.dumps({str(value): name for value, name in names.items()}, ensure_ascii=False)


def _meant_setting(name: str, settings_class: type = PipelineSettings) -> str | None:
    """Return the setting whose name is near, as it is written in Python, or None."""
    near = nearest_names(name, [field.name for field in list_settings(settings_class)])
    if not near:
        return None
    group, _, field_name = near[0].rpartition(".")
    return f'{group}={{"{field_name}": ...}}' if group else repr(near[0])
