"""What the files of a run say, as plain records: of a classifier with gradual unfreezing, for tests of its page."""

import random
from typing import Any

from ulmfit_pipe.reports.predictions import Prediction

GROUPS = ("embeddings", "lstm0", "lstm1", "head")
HOSTILE = "<script>alert('1')</script>&\"x\""
PHASES = (("last 1", 3), ("last 2", 2), ("all", 1))  # name, frozen groups


def predictions(count: int, names: tuple[str, ...], *, seed: int = 0) -> list[Prediction]:
    """Return rows of which about three of four are right, with texts of a few words."""
    chance, rows = random.Random(seed), []
    for row in range(1, count + 1):
        truth = chance.choice(names)
        given = truth if chance.random() < 0.75 else chance.choice(names)
        score = round(chance.uniform(1 / len(names), 1), 4)
        rows.append(Prediction(row, f"text number {row} about {truth}", truth, given, score, {}))
    return rows


def stage(**changes: Any) -> dict[str, Any]:
    """Return the record of a classifier's stage: three phases of two epochs of four steps."""
    epochs, rates = [], []
    for name, frozen in PHASES:
        for epoch in range(2):
            metrics = {"accuracy": 0.5 + 0.1 * epoch, "macro_f1": 0.4, "loss": 0.9 - 0.1 * epoch, "n": 30}
            record = {"phase": name, "epoch": epoch, "step": 4 * (epoch + 1), "total_steps": 8, "seconds": 1.5}
            epochs.append({**record, "train_loss": 1.25, "metrics": metrics})
        rates += [[0.0 if group < frozen else 1e-3 * (group + 1) for group in range(4)]] * 8
    record = {
        "stage": "classifier",
        "finished_at": "2026-11-30T20:54:58+0000",
        "identity": {"settings": {"plan": "preset", "lr_decay": 2.6}, "data": "4fa1", "model": "folder with digest 77"},
        "labels": ["bad", "good"],
        "seconds": 61.0,
        "plan": "phase  trains\n-----  ------\n1 last 1  head",
        "epochs": epochs,
        "best": {"phase": "last 2", "epoch": 1},
        "groups": [{"group": name, "parameters": 12345} for name in GROUPS],
        "rates": {"stride": 1, "values": rates},
        "weight_changes": [
            {
                "name": name,
                "group": name,
                "size": 12345,
                "norm_before": 2.0,
                "norm_change": 2 * moved,
                "relative": moved,
            }
            for name, moved in zip(GROUPS, (0.0, 0.002, 0.03, 1.5), strict=True)
        ],
        "memory": {1: 0.75, 2: 1.25, 3: 2.5},
        "files": {"model.safetensors": {"sha256": "c7db8b"}},
    }
    return {**record, **changes}


def run_record(*, names: tuple[str, ...] = ("bad", "good"), rows: int = 40, **changes: Any) -> dict[str, Any]:
    """Return what the files of a whole run say."""
    found = predictions(rows, names)
    accuracy = sum(row.right for row in found) / rows
    scores = {
        "accuracy": accuracy,
        "macro_f1": 0.5,
        "loss": 0.25,
        "n": rows,
        "interval": {"accuracy": [accuracy - 0.1, min(1.0, accuracy + 0.1)]},
        "majority": 0.5,
        "baseline": {"name": "TF-IDF", "accuracy": 0.6, "macro_f1": 0.4, "ahead_interval": [0.01, 0.2]},
    }
    tables = {
        "training": {"rows": 27, "characters": {"median": 30.0, "95 %": 50.0, "longest": 61}, "labels": {}},
        "test": {"rows": rows, "characters": {"median": 30.0, "95 %": 50.0, "longest": 60}, "labels": {}},
    }
    tables["training"]["repeats"] = 4
    tables["test"] |= {"repeats": 0, "in_training": 3}
    for table in tables.values():
        table["labels"] = {name: 7 + len(name) for name in names}  # type: ignore[assignment]
    record = {
        "name": "reviews",
        "folder": "runs/reviews",
        "metrics": {
            "test": scores,
            "validation": None,
            "seconds": {"classifier": 61.0, "scoring": 2.0},
            "versions": {"torch": "2.13.0"},
            "seed": 7,
            "preset": "fastai",
            "classifier": "runs/reviews/classifier",
            "tables": tables,
            "command": "ulmfit run --train_file train.csv",
        },
        "settings": {"train_file": ["data/train.csv"], "model": "awd-lstm-en", "seed": 7, "classifier.lr": None},
        "defaults": {"model": "awd-lstm-en", "seed": 0, "classifier.lr": None},
        "effective": {"classifier.lr": 0.02},
        "stages": {"classifier": stage(labels=list(names))},
        "predictions": found,
    }
    return {**record, **changes}


def hostile_record() -> dict[str, Any]:
    """Return a record with what would do harm in every place that a user, a file or a model fills."""
    text = f"{HOSTILE} \x1b[2J \u202e RTL \u05e9\u05dc\u05d5\u05dd 👩‍🚀 " + "w" * 3000 + " \ud800"
    rows = [Prediction(1, text, HOSTILE, f"{HOSTILE}2", 0.9), Prediction(2, text, HOSTILE, HOSTILE, 0.5)]
    record = run_record(names=(HOSTILE, f"{HOSTILE}2"), predictions=rows, name=HOSTILE, folder=HOSTILE)
    record["metrics"] |= dict.fromkeys(("command", "classifier", "preset"), HOSTILE)
    record["metrics"] |= {"warnings": [HOSTILE], "try_next": [HOSTILE], "versions": {HOSTILE: HOSTILE}}
    record["settings"] = {HOSTILE: HOSTILE, "model": HOSTILE, "train_file": [HOSTILE]}
    named = {"groups": [{"group": HOSTILE, "parameters": 1}] * 4, "plan": HOSTILE, "labels": [HOSTILE, f"{HOSTILE}2"]}
    moved = {"size": 1, "norm_before": 1.0, "norm_change": 0.5, "relative": 0.5}
    whole = stage(**named, weight_changes=[{"name": HOSTILE, "group": HOSTILE, **moved}])
    words = [[HOSTILE, 1.0], ["w" * 3000, -0.5]]
    record["explanations"] = {"1": {"prediction": f"{HOSTILE}2", "score": 0.9, "label": HOSTILE, "words": words}}
    for epoch in whole["epochs"]:
        epoch["phase"] = HOSTILE
    record["stages"] = {"classifier": whole}
    return record
