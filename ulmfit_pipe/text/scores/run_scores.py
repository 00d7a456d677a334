"""The scores of a run, with intervals, per class, beside a baseline on the same rows."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.metrics import f1_score, precision_recall_fscore_support

from ulmfit_pipe.console import working
from ulmfit_pipe.settings.choices import BaselineName
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.predict.predictor import Predictor, ScoredRows
from ulmfit_pipe.text.scores.bootstrap import paired_difference, score_intervals
from ulmfit_pipe.text.scores.predictions import write_predictions
from ulmfit_pipe.text.scores.tfidf import TITLE, Tfidf, fit_tfidf, label_array
from ulmfit_pipe.text.tables import RunTables, label_names_of
from ulmfit_pipe.training.distributed.processes import gather_bytes
from ulmfit_pipe.training.metrics import multi_label_scores

MOST_BASELINE_ROWS = 20_000
MOST_BASELINE_CLASSES = 1_000  # more would take minutes


def score_tables(
    predictor: Predictor,
    tables: RunTables,
    context: RunContext,
    *,
    baseline: BaselineName,
    predictions: Path | None = None,
) -> dict[str, dict[str, Any] | None]:
    """Return the scores of `scores_and_answers` alone."""
    return scores_and_answers(predictor, tables, context, baseline=baseline, predictions=predictions)[0]


def scores_and_answers(
    predictor: Predictor,
    tables: RunTables,
    context: RunContext,
    *,
    baseline: BaselineName,
    predictions: Path | None = None,
) -> tuple[dict[str, dict[str, Any] | None], dict[str, ScoredRows]]:
    """Return the scores of a run's test and validation table, None for one that there is not, and the answers.

    Every process predicts its share; the first one does the rest and hands it to the others.

    Args:
        predictor: The classifier.
        tables: Tables of the run.
        context: Seed, and where lines go.
        baseline: What the scores are compared with.
        predictions: CSV file for the answers to the test rows, or to the validation rows where there are none; one
            that is there goes where there are neither.

    Returns:
        What `Predictor.score` gives, with ``interval`` (95 %), ``majority`` (the share of the class that is the most
        frequent in training), ``per_class``, and ``baseline``: scores on the same rows, the ``rows`` it was trained on,
        its ``C``, and ``ahead``, ``ahead_interval``: how far the classifier is ahead by accuracy (micro F1). The
        answers are those to all rows of the tables that there are, on every process.
    """
    found: dict[str, dict[str, Any] | None] = {"test": None, "validation": None}
    answers: dict[str, ScoredRows] = {}
    for name in found:
        table = getattr(tables, name)
        if table is not None:
            found[name], answers[name] = predictor.score_rows(table)
            if name == "test" and (line := predictor.describe_cut()):
                context.tell(line)
    main = context.accelerator.is_main_process
    if main and predictions is not None:
        predictions.unlink(missing_ok=True)
        for name in list(answers)[:1]:
            write_predictions(predictions, getattr(tables, name), answers[name], names=predictor.label_names)
    if main and answers:
        tfidf = None if baseline == "none" else _baseline(tables.train, context)
        for name, own in answers.items():
            table = getattr(tables, name)
            extra = more_scores(
                own.answers, table, tables.train, names=predictor.label_names, tfidf=tfidf, seed=context.seed
            )
            found[name] = {**(found[name] or {}), **extra}
    content = gather_bytes(json.dumps(found).encode() if main else b"", context.accelerator)[0]
    shared: dict[str, dict[str, Any] | None] = json.loads(content)
    return shared, answers


def _baseline(train: Dataset, context: RunContext) -> Tfidf | None:
    classes = len(label_names_of(train)[0])
    if classes > MOST_BASELINE_CLASSES:
        context.tell(f"no baseline: it is trained for up to {MOST_BASELINE_CLASSES:,} classes, here are {classes:,}")
        return None
    with working(f"baseline: {TITLE}"):
        fitted = fit_tfidf(train, seed=context.seed, most_rows=MOST_BASELINE_ROWS)
    if fitted.details["rows"] < len(train):
        context.tell(
            f"baseline: {TITLE} was trained on {fitted.details['rows']:,} of the {len(train):,} training rows, to take "
            "seconds"
        )
    return fitted


def more_scores(
    answers: np.ndarray, table: Dataset, train: Dataset, *, names: Sequence[str], tfidf: Tfidf | None, seed: int
) -> dict[str, Any]:
    """Return interval, majority, per-class scores and baseline of the answers to a table's rows.

    Args:
        answers: Class of each row, int64 (rows,), or the labels given, bool (rows, num_labels).
        table: The rows, with their labels.
        train: The rows that were trained on.
        names: Names of the classes.
        tfidf: The baseline, or None.
        seed: Seed of the resamples.
    """
    labels = label_array(table)
    own = answer_scores(labels, answers, names=names, seed=seed)
    scores: dict[str, Any] = {
        "interval": own["interval"],
        "majority": majority_share(label_array(train), labels),
        "per_class": own["per_class"],
        "baseline": None,
    }
    if tfidf is not None:
        others = tfidf.answers(table)
        ahead, interval = paired_difference(labels, answers, others, seed=seed)
        details = {**tfidf.details, "ahead": ahead, "ahead_interval": interval}
        scores["baseline"] = {"name": TITLE, **plain_scores(labels, others), **details}
    return scores


def answer_scores(labels: np.ndarray, answers: np.ndarray, *, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Return ``interval`` and ``per_class`` of the answers to rows, as `more_scores` does."""
    return {
        "interval": score_intervals(labels, answers, num_labels=len(names), seed=seed),
        "per_class": per_class(labels, answers, names=names),
    }


def majority_share(train: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of a table's rows with the class, or the set of labels, that is most frequent in training."""
    most = Counter(map(_hashable, train)).most_common(1)[0][0]
    return sum(_hashable(row) == most for row in labels) / len(labels)


def _hashable(row: np.ndarray) -> int | bytes:
    return row.tobytes() if row.ndim else int(row)


def per_class(labels: np.ndarray, answers: np.ndarray, *, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return ``precision``, ``recall``, ``f1`` and ``support`` (rows) of each class by its name; 0 where undefined."""
    numbers = list(range(len(names)))
    labels, answers = labels.astype(np.int64), answers.astype(np.int64)
    if labels.shape[1:] == (1,):
        labels, answers, numbers = labels[:, 0], answers[:, 0], [1]
    columns = precision_recall_fscore_support(labels, answers, labels=numbers, average=None, zero_division=0)
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for name, precision, recall, f1, support in zip(names, *columns, strict=True)
    }


def plain_scores(labels: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """Return accuracy and macro F1 of answers, and micro F1 where a row may have several labels."""
    if labels.ndim == 2:
        scores = multi_label_scores(answers.astype(float), labels)
        return {name: scores[name] for name in ("accuracy", "micro_f1", "macro_f1")}
    macro = float(f1_score(labels, answers, average="macro", zero_division=0))
    return {"accuracy": float((labels == answers).mean()), "macro_f1": macro}
