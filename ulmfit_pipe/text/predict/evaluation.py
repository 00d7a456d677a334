"""A saved classifier scored on a labelled table, and the score from which its labels are as right as they should be."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ulmfit_pipe.reports.predictions import binned_error
from ulmfit_pipe.settings.prediction import EvaluateSettings, PredictFileSettings
from ulmfit_pipe.stages.artifacts import read_stage
from ulmfit_pipe.stages.context import context_of
from ulmfit_pipe.stages.model_folder import trusting_run
from ulmfit_pipe.storage.json_files import write_json
from ulmfit_pipe.text.predict.predictor import BACKWARD, Predictor, ScoredRows
from ulmfit_pipe.text.scores.calibration import coverage_curve, cut_for_precision
from ulmfit_pipe.text.scores.run_scores import answer_scores
from ulmfit_pipe.text.scores.tfidf import label_array
from ulmfit_pipe.text.tables import columns_of, load_labelled_table

SCORE_STEPS = 1_000_000  # a cut is rounded down to so many: later digits depend on what is in the same batch


@trusting_run
def evaluate_file(settings: EvaluateSettings) -> dict[str, Any]:
    """Score a classifier on a labelled file, and write the scores where a file is named; see `evaluate_table`."""
    context = context_of(settings)
    context.tell_of_remote_code(settings)
    predictor = Predictor.load(settings.model, accelerator=context.accelerator)
    scores = evaluate_table(
        predictor,
        settings.test_file,
        precision=settings.precision,
        seed=settings.seed,
        say=context.tell,
        **columns_of(settings),
    )
    if line := predictor.describe_cut():
        context.tell(line)
    if settings.output_file is not None and context.accelerator.is_main_process:
        write_json(Path(settings.output_file), scores)
    return scores


def evaluate_table(
    predictor: Predictor,
    table: Any,
    *,
    precision: float | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda _line: None,
    **columns: Any,
) -> dict[str, Any]:
    """Score a classifier on a labelled table; the scores are those that a run has of its test table.

    Args:
        predictor: The classifier.
        table: A labelled file or anything else that `load_table` takes, or what it gives.
        precision: The share of labels that should be right, or None.
        seed: Of the resamples that the intervals are taken from; 0 is a run's own.
        say: Called with each log line on how the file was read.
        **columns: Fields of `LabelledTables`.

    Returns:
        What `Predictor.score` gives, with ``interval`` (95 %), ``per_class``, ``calibration_error`` and, where a
        precision is asked for, ``at_precision``: ``score`` from which on it is met, ``coverage`` (the share of rows
        with it), ``precision`` there, and the ``line`` that reports them; the first three None where none meets it.

    Raises:
        ValueError: The table has other labels, or a precision is asked of several labels a text.
    """
    _check_precision(precision, predictor)
    if not isinstance(table, Dataset):
        known, several = predictor.label_names, predictor.multi_label
        table = load_labelled_table(table, known=known, several=several, say=say, **columns)
    scores, scored = predictor.score_rows(table)
    labels, answers = label_array(table), scored.answers
    found: dict[str, Any] = {
        **scores,
        **answer_scores(labels, answers, names=predictor.label_names, seed=seed),
        "calibration_error": _calibration_error(scored, labels),
    }
    if precision is not None:
        curve = coverage_curve(scored.scores, answers == labels)
        cut, line = _cut(curve, precision, rows=f"the {len(labels):,} rows")
        names = ("score", "coverage", "precision")
        found["at_precision"] = {**dict(zip(names, cut or (None,) * 3, strict=True)), "line": line}
    return found


def _calibration_error(scored: ScoredRows, labels: Any) -> float | None:
    """Return the expected calibration error; None where a row may have several of more labels than are kept."""
    if labels.ndim == 1:
        return binned_error(scored.scores, scored.answers == labels)
    return None if scored.probabilities is None else binned_error(scored.probabilities.ravel(), labels.ravel())


def with_cut(settings: PredictFileSettings, *, say: Callable[[str], None]) -> PredictFileSettings:
    """Return settings with the score to abstain below in place of the precision wished for, and report it.

    Raises:
        ValueError: Both are given, the classifier has no scores of held-out rows, or none of them meets the wish.
    """
    if settings.precision is None:
        return settings
    if settings.abstain_below is not None:
        raise ValueError(
            f"precision {settings.precision} and abstain_below {settings.abstain_below} both set the lowest score of a "
            "label; give one of them"
        )
    folder, curve = Path(settings.model), None
    if not (folder / BACKWARD).is_dir():
        curve = (read_stage(folder) or {}).get("coverage")
    if not curve:
        raise ValueError(
            f"{folder} keeps no scores of held-out rows to find precision {settings.precision} by (they are kept for "
            "one label a text and one classifier, calibrated on 100 rows or more); find the score with ulmfit evaluate "
            f"--model {folder} --test_file LABELLED.csv --precision {settings.precision}, and give it as abstain_below"
        )
    cut, line = _cut(curve, settings.precision, rows="the held-out rows")
    if cut is None:
        raise ValueError(line)
    say(line)
    return dataclasses.replace(settings, precision=None, abstain_below=cut[0])


def _cut(
    curve: Sequence[Sequence[float]], precision: float, *, rows: str
) -> tuple[tuple[float, float, float] | None, str]:
    """Return the point of a coverage curve where a precision is met, or None, and a line that reports it."""
    found = cut_for_precision(curve, precision)
    if found is None:
        score, coverage, most = max(curve, key=lambda point: (point[2], point[1]))
        return None, (
            f"precision {precision:g} is met by no score on {rows}: the highest is {most:.3f}, from score {score:.6f} "
            f"on, which {coverage:.1%} of them have; ask for less"
        )
    score, (_, coverage, reached) = math.floor(found[0] * SCORE_STEPS) / SCORE_STEPS, found
    return (score, coverage, reached), (
        f"precision {precision:g} is met from score {score:.6f} on: {coverage:.1%} of {rows} have it, and "
        f"{reached:.1%} of their labels are right (--abstain_below {score:.6f})"
    )


def _check_precision(precision: float | None, predictor: Predictor) -> None:
    if precision is None:
        return
    cut_for_precision([], precision)
    if predictor.multi_label:
        raise ValueError(
            f"precision {precision:g} is for one label a text, and this classifier gives several, each from its own "
            "threshold on; leave precision out, and see per_class for the precision of each label"
        )
