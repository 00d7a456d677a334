"""What a page shows of each stage's training and of the tables, as plain values; the template only lays it out."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ulmfit_pipe.reports.charts import curves, freeze_map, phases_of
from ulmfit_pipe.reports.number_words import WORDS, change_words, number, short_name

SHOWN_DECADES = 4  # of how far layer groups moved, below the furthest


def stage_view(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a stage: map, curves, phases, epochs, and how far its layer groups moved."""
    epochs = record.get("epochs") or []
    best = record.get("best")
    kept = next(
        (place for place, epoch in enumerate(epochs) if best == {"phase": epoch["phase"], "epoch": epoch["epoch"]}),
        None,
    )
    losses = {
        "training loss": [epoch["train_loss"] for epoch in epochs],
        "validation loss": [epoch["metrics"].get("loss") for epoch in epochs],
    }
    measured = dict.fromkeys(key for epoch in epochs for key in epoch["metrics"] if key not in ("loss", "n"))
    columns = {key: [epoch["metrics"].get(key) for epoch in epochs] for key in measured}
    scores = {
        WORDS.get(key, key.replace("_", " ")): values
        for key, values in columns.items()
        if all(value is None or 0 <= value <= 1 for value in values)
    }
    moved = len(epochs) > 1
    return {
        "title": name.replace("_", " ").capitalize(),
        "map": freeze_map(record) if "rates" in record else None,
        "losses": curves(epochs, losses, best=kept, title="Loss") if moved else None,
        "scores": curves(epochs, scores, best=kept, title="Validation scores") if moved else None,
        "phases": list(_phase_rows(record)),
        "measured": list(measured),
        "epochs": [{**epoch, "kept": place == kept} for place, epoch in enumerate(epochs)],
        "groups": _group_rows(record),
        "compared": bool(record.get("weight_changes")),
        "plan": record.get("plan", ""),
        "probe": record.get("probe"),
        "seconds": record.get("seconds"),
        "cut_short": record.get("cut_short"),
        "memory": record.get("memory"),
    }


def _group_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return parameters of each layer group and how far it moved, the head first as in the freeze map."""
    groups = record.get("groups") or []
    moved = {row["name"]: row for row in record.get("weight_changes") or []}
    rates = (record.get("rates") or {}).get("values") or []
    trained = [any(rate > 0 for rate in column) for column in zip(*rates, strict=True)] or [False] * len(groups)
    furthest = max((row["relative"] or 0.0 for row in moved.values()), default=0.0) or 1.0
    rows = []
    for group, is_trained in zip(groups, trained, strict=False):
        change = moved.get(group["group"])
        relative = None if change is None else change["relative"]
        words = "" if change is None else change_words(change)
        rows.append(
            {
                **group,
                "state": "trained" if is_trained else "frozen throughout",
                "change": words,
                "relative": relative or 0.0,
                "share": 0.0 if not relative else max(0.0, 1 + math.log10(relative / furthest) / SHOWN_DECADES),
            }
        )
    return rows[::-1]


def leaks(tables: Mapping[str, Any], judged: str) -> Iterator[str]:
    """Yield a warning where rows of the table that counts are among those that were trained on, word for word."""
    table = tables.get(judged) or {}
    if count := table.get("in_training"):
        yield (
            f"{number(count)} of the {number(table['rows'])} {judged} texts are also among the training texts, word "
            "for word, so the score is flattered"
        )


def _phase_rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what each phase trained, how fast, how long, and the best it reached."""
    epochs, groups = record.get("epochs") or [], [group["group"] for group in record.get("groups") or []]
    rates = record.get("rates") or {"stride": 1, "values": []}
    steps = {name: (start, end) for name, start, end in phases_of(epochs)}
    numbers, memory = {name: place for place, name in enumerate(steps, start=1)}, record.get("memory") or {}
    for name in dict.fromkeys(epoch["phase"] for epoch in epochs):
        own = [epoch for epoch in epochs if epoch["phase"] == name]
        start, end = (place // rates["stride"] for place in steps.get(name, (0, 0)))
        columns = list(zip(*rates["values"][start : max(end, start + 1)], strict=True)) if name in steps else []
        highest = [max(column) for column in columns]
        trained = [group for group, rate in zip(groups, highest, strict=False) if rate > 0]
        key = next(
            (
                key
                for key in ("micro_f1", "accuracy", "perplexity", "pseudo_perplexity", "loss")
                if any(epoch["metrics"].get(key) is not None for epoch in own)
            ),
            None,
        )
        values = [epoch["metrics"][key] for epoch in own if key and epoch["metrics"].get(key) is not None]
        yield {
            "name": name,
            "trained": "all groups" if len(trained) == len(groups) else ", ".join(trained) or "nothing unfrozen",
            "epochs": len(own),
            "rate": max(highest, default=None),
            "measure": "" if key is None else WORDS.get(key, key.replace("_", " ")),
            "best": None if not values else (max if key in ("micro_f1", "accuracy") else min)(values),
            "seconds": sum(epoch["seconds"] for epoch in own),
            "number": numbers.get(name, ""),
            "memory": memory.get(numbers.get(name, 0)),
        }


def repeats(tables: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield how many rows of each table are repeats, or also in the tables that come before it."""
    for name, table in tables.items():
        if "repeats" in table:
            shown = {"repeated": "repeats", "in training": "in_training", "in validation": "in_validation"}
            yield {
                "name": name,
                "cells": {words: number(table[key]) if key in table else "" for words, key in shown.items()},
            }


def label_counts(tables: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the rows of each class in each table, the most frequent class first."""
    labelled = {name: table["labels"] for name, table in tables.items() if "labels" in table}
    if not labelled:
        return None
    first = next(iter(labelled.values()))
    ranked = sorted(first, key=lambda name: -first[name])
    most = max(first.values(), default=1) or 1
    return {
        "tables": list(labelled),
        "rows": [
            {
                "name": short_name(name),
                "counts": [counts.get(name, 0) for counts in labelled.values()],
                "share": first[name] / most,
            }
            for name in ranked
        ],
    }
