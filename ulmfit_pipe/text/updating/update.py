"""`ulmfit update`: a saved classifier continues on new labelled rows, and is measured before and after.

The head keeps the rows of its labels, new ones are found by regression; then all layer groups train at low rates, on
the old rows too where they are at hand (replay), so that old classes are not forgotten.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ulmfit_pipe.data.labels import list_labels
from ulmfit_pipe.data.splits import labels_of_rows
from ulmfit_pipe.reports.text_tables import format_table
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.settings.text_runs import UpdateSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, ResolvedModel, find_model
from ulmfit_pipe.stages.classifier_labels import is_text_classifier
from ulmfit_pipe.stages.config_notes import notes_of
from ulmfit_pipe.stages.context import RunContext, context_of, deadline_after, exclusive_run
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.stages.model_folder import trusting_run
from ulmfit_pipe.stages.report import (
    BACKWARD,
    PREDICTIONS_FILE,
    command_line,
    report_line,
    save_records,
    write_report,
)
from ulmfit_pipe.storage.versions import library_versions
from ulmfit_pipe.text.classifier import train_classifier
from ulmfit_pipe.text.plans import settled_for_update
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.scores.predictions import record_of
from ulmfit_pipe.text.scores.run_scores import scores_and_answers
from ulmfit_pipe.text.scores.tfidf import label_array
from ulmfit_pipe.text.table_account import tell_of_tables
from ulmfit_pipe.text.tables import check_tables_alike, label_names_of
from ulmfit_pipe.text.truncation import Reading
from ulmfit_pipe.text.unknown_text import check_known_texts
from ulmfit_pipe.text.updating.rows import LabelSet, UpdateRows, load_update_rows

READING = tuple(field.name for field in fields(Reading))  # settings that a classifier remembers
TABLE_TITLES = {"test": "test", "new": "new rows held out"}
MOST_CLASSES = 20  # shown one by one


@exclusive_run()
@trusting_run
def run_update(
    settings: UpdateSettings, *, context: RunContext | None = None, in_memory: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Update a classifier and return what ``metrics.json`` holds.

    Args:
        settings: Settings of the update.
        context: Environment of the run; made from the settings by default.
        in_memory: Tables that are no files, as `load_table` takes them, by the names of the settings that they replace.

    Returns:
        ``test`` and ``validation`` metrics of the updated classifier, and ``update``: labels, rows, and for the test
        table and the new rows held out the accuracy before and after, on all rows, by old and new classes, per class.

    Raises:
        ArtifactError: The model is not a single classifier of texts, or the output folder is another run's.
        TableError: A table cannot be used.
    """
    model = _classifier(settings)
    context = context or context_of(settings, deadline=deadline_after(settings.max_seconds))
    context.check_alike(settings)
    context.tell_of_remote_code(settings)
    context = context.for_model(model.model_type)
    rows = load_update_rows(settings, model, in_memory=in_memory or {}, say=context.tell)
    check_tables_alike(rows.tables, context)
    _tell(rows, context)
    fresh = rows.tables.train.select(range(rows.old_rows, len(rows.tables.train)))
    check_known_texts(fresh, model=model, unknown_text=settings.unknown_text, context=context)
    result = train_classifier(
        rows.tables.train,
        rows.tables.validation,
        model=model,
        output_dir=settings.output_dir,
        settings=_settled(settings.classifier, model, rows, context),
        context=context,
        update=True,
    )
    return _finish(settings, model, rows, result, context)


def _classifier(settings: UpdateSettings) -> ResolvedModel:
    """Return the classifier that is to be updated; of a run's folder the classifier in it.

    Raises:
        ArtifactError: It is not one, or an ensemble, or the output folder is its own.
    """
    below = Path(settings.model) / "classifier"
    is_run = (below / "config.json").is_file() and not (Path(settings.model) / "config.json").is_file()
    model = find_model(str(below) if is_run else settings.model)
    if not is_text_classifier(model.loaded):
        raise ArtifactError(
            f"{model} is not a classifier of texts, so it has no labels to continue with; give a classifier's folder, "
            f"or train one from it: ulmfit train-classifier --model {model} --train_file TABLE --output_dir DIR"
        )
    folder = Path(model.location)
    if (folder / BACKWARD).is_dir():
        raise ArtifactError(
            f"{model} is an ensemble with a backward classifier, which cannot be updated; train it again on old and "
            "new rows with ulmfit run, or update a classifier of one direction"
        )
    if folder.is_dir() and folder.resolve() == Path(settings.output_dir).resolve():
        raise ArtifactError(f"{model} is the classifier to update; choose another output folder, such as {model}-2")
    return model


def _tell(rows: UpdateRows, context: RunContext) -> None:
    """Report labels, where old rows are from, and what may be forgotten."""
    train, labels, old = rows.tables.train, rows.labels, rows.old_labels
    context.tell(rows.tables.describe())
    new = labels.names[old:]
    context.tell(f"new classes: {list_labels(new) or 'none'}; {old} old ones are kept")
    if rows.old_rows:
        context.tell(
            f"replay: {rows.old_rows:,} old rows from {rows.replayed}, beside {len(train) - rows.old_rows:,} new ones"
        )
    else:
        why = "" if rows.replayed == "replay none" else f" ({rows.replayed}; give them with --replay_file)"
        seen = {label for row in labels_of_rows(train) for label in row}
        lost = [name for number, name in enumerate(labels.names[:old]) if number not in seen]
        what = (
            f"the classes without new rows may be forgotten: {list_labels(lost)}" if lost else "some may be forgotten"
        )
        context.tell(f"note: no old rows are trained on{why}; {what}")
    several, say = labels.several, context.tell
    tell_of_tables(rows.tables.named(), rows.files, names=labels.names, several=several, say=say, known=old)


def _settled(
    settings: ClassifierSettings, model: ResolvedModel, rows: UpdateRows, context: RunContext
) -> ClassifierSettings:
    """Return the settings of the training: documents are read as before, unless the settings change that.

    The best epoch is kept where old and new rows are held out; by one kind alone it would be the first or the last.
    """
    defaults, notes = ClassifierSettings(), notes_of(model.loaded)
    if READING[0] in notes and all(getattr(settings, name) == getattr(defaults, name) for name in READING):
        names = READING if notes[READING[0]] == "windows" else READING[:2]
        saved: dict[str, Any] = {name: notes.get(name) for name in names}
        settings = replace(settings, **saved)
    if settings.keep == "auto":
        both = rows.new is not None and rows.tables.validation is not None
        both = both and (len(rows.tables.validation or []) > len(rows.new or []) or not rows.old_rows)
        settings = replace(settings, keep="best" if both else "last")
    return settled_for_update(settings, context.recipe)


def _finish(
    settings: UpdateSettings, model: ResolvedModel, rows: UpdateRows, result: StageResult, context: RunContext
) -> dict[str, Any]:
    """Score both classifiers and write ``metrics.json`` and the report."""
    started, output = time.perf_counter(), Path(settings.output_dir)
    before = Predictor.load(model.location, accelerator=context.accelerator)
    after = Predictor.load(output, accelerator=context.accelerator)
    scores, answers = scores_and_answers(
        after, rows.tables, context, baseline="none", predictions=output / PREDICTIONS_FILE
    )
    compared = {}
    if rows.tables.test is not None:
        compared["test"] = compare(before, answers["test"].answers, rows.tables.test, old=rows.old_labels)
    if rows.new is not None:  # the last of the validation rows
        now = answers["validation"].answers[-len(rows.new) :]
        compared["new"] = compare(before, now, rows.new, old=rows.old_labels)
    metrics = {
        **scores,
        "update": {
            "from": str(model),
            "old_labels": rows.labels.names[: rows.old_labels],
            "new_labels": rows.labels.names[rows.old_labels :],
            "rows": {"old": rows.old_rows, "new": len(rows.tables.train) - rows.old_rows},
            "replay": rows.replayed,
            **compared,
        },
        "seconds": {"classifier": round(result.seconds, 2), "scoring": round(time.perf_counter() - started, 2)},
        "versions": library_versions(),
        "seed": settings.seed,
        "preset": context.preset,
        "classifier": str(output),
        "tables": record_of(rows.tables.named(), names=after.label_names),
        "command": command_line(),
        **after.named_thresholds(),
    }
    if context.accelerator.is_main_process:
        save_records(output, settings=settings, metrics=metrics)
        context.tell(report_line(write_report(output)))
    return metrics


def compare(before: Predictor, now: np.ndarray, table: Dataset, *, old: int) -> dict[str, Any]:
    """Return the share of right rows before and after an update: of all, of old and of new classes, of each class.

    Args:
        before: The classifier as it was.
        now: The updated one's answers to the rows, as `ScoredRows` has them.
        table: Rows with the labels of the updated one.
        old: How many labels the classifier had before; a row with a further one is of a new class.

    Returns:
        ``all``, ``old_classes``, ``new_classes``: ``rows``, ``before``, ``after``, None where there are no rows; and
        ``per_class``, the same of the rows of each class.
    """
    labels = label_array(table)
    right: dict[str, np.ndarray]
    is_new: np.ndarray
    names, several = label_names_of(table)
    nothing: Any = [[] if several else 0] * len(table)
    unlabelled = Dataset.from_dict(
        {"text": table["text"][:], "label": nothing},
        features=LabelSet(before.label_names, several, None).features(),
    )
    then = before.score_rows(unlabelled)[1].answers
    if several:
        then = np.pad(then, ((0, 0), (0, len(names) - then.shape[1])))
        is_new = np.asarray(labels[:, old:].any(1))
        right = {"before": (then == labels).all(1), "after": (now == labels).all(1)}
        of_class = [labels[:, number] for number in range(len(names))]
    else:
        is_new = np.asarray(labels >= old)
        right = {"before": np.asarray(then == labels), "after": np.asarray(now == labels)}
        of_class = [labels == number for number in range(len(names))]

    def shares(chosen: np.ndarray) -> dict[str, Any]:
        """Return rows and both accuracies."""
        count = int(chosen.sum())
        found = {name: float(hits[chosen].mean()) if count else None for name, hits in right.items()}
        return {"rows": count, **found}

    return {
        "all": shares(np.ones(len(table), dtype=bool)),
        "old_classes": shares(~is_new),
        "new_classes": shares(is_new),
        "per_class": {name: shares(chosen) for name, chosen in zip(names, of_class, strict=True)},
    }


def update_table(metrics: Mapping[str, Any]) -> str:
    """Return a table of the accuracy before and after an update; empty where no rows were held out or tested.

    Args:
        metrics: From `run_update`.
    """
    lines: list[Sequence[str]] = []
    for name, title in TABLE_TITLES.items():
        if (found := metrics["update"].get(name)) is None:
            continue
        groups = {"all": found["all"], "old classes": found["old_classes"], "new classes": found["new_classes"]}
        classes = found["per_class"] if len(found["per_class"]) <= MOST_CLASSES else {}
        for group, row in [*groups.items(), *((f"  {each}", row) for each, row in classes.items())]:
            if row["rows"]:
                lines.append((f"{title}, {group}", f"{row['rows']:,}", f"{row['before']:.4f}", f"{row['after']:.4f}"))
    return format_table([("accuracy", "rows", "before", "after"), *lines]) if lines else ""
