"""What a run's page shows, as plain values in the order of the page; the template only lays it out."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from ulmfit_pipe.console import in_one_line, visible
from ulmfit_pipe.reports.charts import coverage_picture, reliability_picture
from ulmfit_pipe.reports.number_words import WORDS, duration, number, percent, short_name
from ulmfit_pipe.reports.predictions import (
    Prediction,
    binned_error,
    class_scores,
    confusion,
    coverage_curve,
    decisions_of,
    examples_of_confusions,
    least_certain,
    levels_of,
    most_confident_mistakes,
    most_confused,
    reliability,
)
from ulmfit_pipe.reports.training_view import label_counts, leaks, repeats, stage_view

MOST_NAMED = 12  # classes listed in a line
MOST_SQUARED = 20  # classes of a confusion matrix; of more there is the list of the most confused pairs
MOST_PAIRS = 20
LONGEST_TEXT = 400  # characters of a text
MOST_WORDS = 5  # of those that move a label most
ASKED_SCORE = 0.8  # of the sentence on coverage
LEAST_COVERAGE = 0.05  # of the same: a lower score is taken where fewer rows reach it


def view_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page of a run shows.

    Args:
        record: What the run's files say: ``name``, ``folder``, ``metrics``, ``settings``, ``defaults``, ``effective``,
            ``stages``, ``predictions`` and ``explanations``.
    """
    metrics, rows = record["metrics"], record["predictions"]
    judged = judged_table(metrics)
    scores = metrics.get(judged) or {}
    several = "micro_f1" in scores or "thresholds" in metrics
    names = class_names(record)
    stages = sorted(record["stages"].items(), key=lambda item: not item[0].startswith("classifier"))
    return {
        "title": f"ULMFiT run {in_one_line(record['name'])}",
        "judged": judged,
        "things": things(record),
        "lead": _lead(record),
        "verdict": verdict(record),
        "facts": list(_facts(record, names)),
        "warnings": [*(metrics.get("warnings") or []), *leaks(metrics.get("tables") or {}, judged)],
        "try_next": metrics.get("try_next") or [],
        "cut_short": metrics.get("cut_short") or [],
        "scores": list(_score_rows(metrics)),
        "classes": _class_rows(scores, rows, names, several=several, thresholds=metrics.get("thresholds") or {}),
        **_confusions(rows, names, several=several),
        "mistakes": None if not rows else _mistakes(rows, names, record.get("explanations") or {}),
        "trust": None if not rows else _trust(rows, several=several, calibration=metrics.get("calibration")),
        "stages": [stage_view(name, stage) for name, stage in stages],
        "tables": metrics.get("tables") or {},
        "labels": label_counts(metrics.get("tables") or {}),
        "repeats": list(repeats(metrics.get("tables") or {})),
        **_run(record),
    }


def judged_table(metrics: Mapping[str, Any]) -> str:
    """Return the table whose scores count: test, or where there is none validation, or nothing."""
    return next((name for name in ("test", "validation") if metrics.get(name)), "")


def class_names(record: Mapping[str, Any]) -> list[str]:
    """Return the classes in the classifier's order, else those of the predictions."""
    stages = record["stages"]
    known = next((stages[name]["labels"] for name in ("classifier", *stages) if "labels" in stages.get(name, {})), None)
    rows = record["predictions"]
    return list(known or sorted({row.truth for row in rows} | {row.prediction for row in rows}))


def things(record: Mapping[str, Any]) -> str:
    """Return what is classified, in the plural."""
    return "images" if "train_images" in record["settings"] else "texts"


# The first screen


def verdict(record: Mapping[str, Any]) -> dict[str, str]:
    """Return one sentence on the result in parts: what is emphasized, what it says, and what it is compared with."""
    metrics = record["metrics"]
    table = judged_table(metrics)
    scores = metrics.get(table) or {}
    if "accuracy" in scores:
        return _classifier_verdict(record, table, scores)
    for name in ("perplexity", "pseudo_perplexity"):
        if name in scores:
            words = f"is the {name.replace('_', '-')} of the language model on {table} text; lower is better."
            return {"figure": number(scores[name]), "words": words, "beside": ""}
    if pooled := metrics.get("cross_validation"):
        low, high = pooled["interval"]
        return {
            "figure": f"{percent(pooled['accuracy'])} %",
            "words": f"of {number(pooled['rows'])} training texts are right in cross-validation (95 % interval "
            f"{percent(low)} to {percent(high)}); no table was held out.",
            "beside": "",
        }
    return {"figure": "–", "words": "No rows were held out, so there is no score.", "beside": ""}


def _classifier_verdict(record: Mapping[str, Any], table: str, scores: Mapping[str, Any]) -> dict[str, str]:
    several = "micro_f1" in scores
    subject = f"of {number(scores['n'])} {table} {things(record)}"
    words = f"{subject} have all their labels right" if several else f"{subject} are right"
    if interval := (scores.get("interval") or {}).get("accuracy"):
        words += f" (95 % interval {percent(interval[0])} to {percent(interval[1])})"
    beside = []
    if baseline := scores.get("baseline"):
        low, high = baseline["ahead_interval"]
        how = "clearly more than" if low > 0 else "clearly less than" if high < 0 else "not clearly different from"
        if several:
            how, share = "its", f"micro F1 is {number(baseline.get('micro_f1'))}"
            beside.append(f"Micro F1 is {number(scores['micro_f1'])}; {baseline['name']}: {share}")
        else:
            beside.append(f"That is {how} {baseline['name']} on the same rows: {percent(baseline['accuracy'])} %")
    if "majority" in scores and not several:
        beside.append(f"always the most frequent class: {percent(scores['majority'])} %")
    if table == "validation":
        words += "; they also chose the best epoch, so expect a little less on new ones"
    return {
        "figure": f"{percent(scores['accuracy'])} %",
        "words": f"{words}.",
        "beside": f"{'; '.join(beside)}." if beside else "",
    }


def _lead(record: Mapping[str, Any]) -> str:
    rows = ((record["metrics"].get("tables") or {}).get("training") or {}).get("rows")
    count = "" if rows is None else f"{number(rows)} {things(record)} of "
    return f"{model_name(record)}, trained on {count}{_sources(record)}; {date_of(record)}"


def model_name(record: Mapping[str, Any]) -> str:
    """Return what the run started from, in short."""
    model = record["settings"].get("model")
    if model is None:
        kind = "image model" if things(record) == "images" else "AWD-LSTM"
        return f"{kind} from scratch"
    parts = PurePath(str(model)).parts
    return in_one_line(model if len(parts) < 3 else PurePath(*parts[-2:]))


def _sources(record: Mapping[str, Any]) -> str:
    settings = record["settings"]
    files = settings.get("train_file") or settings.get("train_images") or settings.get("dataset") or "a table in memory"
    listed = files if isinstance(files, list) else [files]
    return in_one_line(", ".join(PurePath(str(name)).name or str(name) for name in listed[:3])) + (
        f" and {len(listed) - 3} more files" if len(listed) > 3 else ""
    )


def date_of(record: Mapping[str, Any]) -> str:
    """Return the day on which the last stage was finished."""
    days = [str(stage.get("finished_at", ""))[:10] for stage in record["stages"].values()]
    try:
        day = datetime.date.fromisoformat(max(days, default=""))
    except ValueError:
        return "date unknown"
    return f"{day.day} {day:%B %Y}"


def _facts(record: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    metrics = record["metrics"]
    for name, table in (metrics.get("tables") or {}).items():
        lengths = table["characters"]
        yield (
            f"{name.capitalize()} rows",
            f"{number(table['rows'])}; characters of a text: median {number(round(lengths['median']))}, longest "
            f"{number(lengths['longest'])}",
        )
    if names:
        more = f", and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        shown = ", ".join(short_name(name) for name in names[:MOST_NAMED])
        yield f"{len(names):,} classes", f"{shown}{more}"
    seconds = metrics.get("seconds") or {}
    if seconds:
        parts = ", ".join(f"{name.replace('_', ' ')} {duration(value)}" for name, value in seconds.items())
        yield "Time", f"{duration(sum(seconds.values()))} ({parts})"


def _score_rows(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the scores of each table, and below each those of the baseline on the same rows."""
    for table in ("test", "validation"):
        scores = metrics.get(table) or {}
        if not scores:
            continue
        measures = [
            name for name, value in scores.items() if isinstance(value, int | float) and name not in ("majority", "n")
        ]
        cells = []
        for name in measures:
            low_high = (scores.get("interval") or {}).get(name)
            interval = "" if low_high is None else f"{low_high[0]:.3f} to {low_high[1]:.3f}"
            words = WORDS.get(name, name.replace("_", " "))
            cells.append({"name": words, "value": _score(scores[name]), "interval": interval})
        baseline = scores.get("baseline")
        others = None if not baseline else [_score(baseline.get(name)) for name in measures]
        yield {"table": table, "cells": cells, "baseline": baseline and baseline["name"], "others": others}


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if 0 <= value <= 1 else number(value)


def _class_rows(
    scores: Mapping[str, Any],
    rows: Sequence[Prediction],
    names: Sequence[str],
    *,
    several: bool,
    thresholds: Mapping[str, float],
) -> list[dict[str, Any]]:
    known = scores.get("per_class")
    if not known and rows and not several:
        known = class_scores(rows, names)
    return [
        {"class": short_name(name), "threshold": thresholds.get(name), **values}
        for name, values in (known or {}).items()
    ]


def _confusions(rows: Sequence[Prediction], names: Sequence[str], *, several: bool) -> dict[str, Any]:
    """Return the confusion matrix and the most confused pairs; none where a row may have several labels."""
    if not rows or several:
        return {"matrix": None, "pairs": []}
    counts, places = confusion(rows), {name: place for place, name in enumerate(names)}
    embedded = {(row.truth, row.prediction) for row in _embedded(rows)}
    pairs = [
        {
            "truth": places.get(true),
            "prediction": places.get(given),
            "count": count,
            "names": (short_name(true), short_name(given)),
        }
        for true, given, count in most_confused(rows)[:MOST_PAIRS]
    ]
    if len(names) > MOST_SQUARED:
        return {"matrix": None, "pairs": pairs}
    lines = []
    for true in names:
        total = sum(counts[true, given] for given in names)
        cells = [
            {
                "truth": places[true],
                "prediction": places[given],
                "count": counts[true, given],
                "share": counts[true, given] / total if total else 0.0,
                "right": true == given,
                "embedded": (true, given) in embedded,
                "title": f"truth {short_name(true)}, predicted {short_name(given)}: {counts[true, given]:,} of "
                f"{total:,}",
            }
            for given in names
        ]
        lines.append({"name": short_name(true), "cells": cells, "total": total})
    return {"matrix": {"names": [short_name(name) for name in names], "lines": lines}, "pairs": pairs}


# Mistakes and trust


def _embedded(rows: Sequence[Prediction]) -> list[Prediction]:
    """Return the rows whose text is in the page, each once."""
    chosen = [*most_confident_mistakes(rows), *least_certain(rows), *examples_of_confusions(rows)]
    return list({row.row: row for row in chosen}.values())


def _mistakes(
    rows: Sequence[Prediction], names: Sequence[str], explanations: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    wrong = {row.row: place for place, row in enumerate(most_confident_mistakes(rows))}
    unsure = {row.row: place for place, row in enumerate(least_certain(rows))}
    places = {name: place for place, name in enumerate(names)}
    texts = []
    for row in _embedded(rows):
        found = explanations.get(str(row.row)) or {}
        if (found.get("prediction"), found.get("score")) != (row.prediction, row.score):
            found = {}  # of another run's answers
        texts.append(
            {
                "row": row.row,
                "pieces": marked_words(row.text[:LONGEST_TEXT], found.get("words") or []),
                "strongest": _strongest(found.get("words") or []),
                "explained": in_one_line(found.get("label", "")),
                "more": len(row.text) - LONGEST_TEXT,
                "truth": in_one_line(row.truth) or "no label",
                "prediction": in_one_line(row.prediction) or "no label",
                "score": row.score,
                "right": row.right,
                "cell": f"{places.get(row.truth, '')},{places.get(row.prediction, '')}",
                "wrong": wrong.get(row.row),
                "unsure": unsure.get(row.row),
            }
        )
    texts.sort(key=lambda text: (text["wrong"] is None, text["wrong"] or 0, text["row"]))
    count = sum(not row.right for row in rows)
    explained = any(text["strongest"] for text in texts)
    return {
        "explained": explained,
        "texts": texts,
        "wrong": len(wrong),
        "unsure": len(unsure),
        "all_wrong": count,
        "rows": len(rows),
    }


def marked_words(text: str, words: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return a text in pieces, each with what its word adds to the label: 1 is the most of any word, 0 is no word.

    Args:
        text: The text.
        words: Its words in order, each with its share of the label's log-odds; a word that is not found is left out.
    """
    most = max((abs(share) for _, share in words), default=0.0) or 1.0
    lowered, place, pieces = text.lower(), 0, []
    for word, share in words:
        start = lowered.find(word.lower(), place) if word else -1
        end = start + len(word)
        if start < 0 or len(lowered) != len(text):
            continue
        pieces += [{"text": visible(text[place:start]), "share": 0.0}] if start > place else []
        pieces.append({"text": visible(text[start:end]), "share": share / most})
        place = end
    return [*pieces, {"text": visible(text[place:]), "share": 0.0}] if place < len(text) else pieces


def _strongest(words: Sequence[Sequence[Any]]) -> str:
    """Return the words that move the label most, in either direction, in a line; marks alone are no words."""
    ranked = sorted((word for word in words if any(map(str.isalnum, word[0]))), key=lambda word: -abs(word[1]))
    return ", ".join(
        f"{short_name(word)} {'−' if share < 0 else '+'}{abs(share):.2f}" for word, share in ranked[:MOST_WORDS]
    )


def _trust(rows: Sequence[Prediction], *, several: bool, calibration: Any) -> dict[str, Any] | None:
    decisions = decisions_of(rows, several=several)
    if not decisions:
        return None
    bins = reliability(decisions)
    levels = [] if several else levels_of(rows)
    known = calibration if isinstance(calibration, Mapping) else {}
    return {
        "error": binned_error(np.array([score for score, _ in decisions]), np.array([right for _, right in decisions])),
        "before": known.get("ece_before"),
        "after": known.get("ece_after"),
        "confidence": sum(score for score, _ in decisions) / len(decisions),
        "accuracy": sum(right for _, right in decisions) / len(decisions),
        "several": several,
        "picture": reliability_picture(bins),
        "coverage": None if several else coverage_picture(coverage_curve(rows), levels),
        "levels": levels,
        "chosen": next(
            (level for level in reversed(levels) if level.score <= ASKED_SCORE and level.coverage >= LEAST_COVERAGE),
            None,
        ),
    }


# The run


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    settings, defaults, metrics = record["settings"], record["defaults"], record["metrics"]
    changed: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    trains_language_model = any("language_model" in name for name in record["stages"])
    for name, value in settings.items():
        if name.startswith("language_model.") and not trains_language_model:
            continue  # that stage did not run
        row = {"name": name, "value": value, "default": defaults.get(name), "came_to": record["effective"].get(name)}
        (changed if name not in defaults or defaults[name] != value else others).append(row)
    prints = []
    for name, stage in record["stages"].items():
        identity = stage.get("identity") or {}
        weights = (stage.get("files") or {}).get("model.safetensors") or {}
        prints += [
            {"name": f"{name}: {what}", "value": value}
            for what, value in (
                ("data", identity.get("data")),
                ("starts from", identity.get("model")),
                ("weights (SHA-256)", weights.get("sha256")),
            )
            if value
        ]
    return {
        "folder": record["folder"],
        "command": metrics.get("command"),
        "classifier": metrics.get("classifier"),
        "changed": changed,
        "others": others,
        "versions": metrics.get("versions") or {},
        "seed": metrics.get("seed"),
        "preset": metrics.get("preset"),
        "fingerprints": prints,
    }
