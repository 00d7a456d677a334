"""What a cell of a grid does: train a classifier on a labelled subset and test it, or TF-IDF on the same rows.

The weights of the last epoch are tested and no validation rows are given, so labels beyond the cell's own choose
nothing. A learning rate that has to be chosen is chosen by development rows, which no subset holds.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score

from ulmfit_pipe.console import print_line
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import model_type_of, read_stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.storage.digests import digest_of
from ulmfit_pipe.studies.grid.cells import Cell, CellFolder, Outcome, short_digest
from ulmfit_pipe.studies.grid.tables import LabelledTables
from ulmfit_pipe.text.classifier import train_classifier
from ulmfit_pipe.text.classifier_network import count_layer_groups
from ulmfit_pipe.text.plans import classifier_phases
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.scores.tfidf import FOLDS, REGULARIZATIONS, TITLE, fit_tfidf
from ulmfit_pipe.text.tables import label_names_of
from ulmfit_pipe.training.loop import NonFiniteLossError
from ulmfit_pipe.training.records import Phase


@dataclass(frozen=True)
class Training:
    """One classifier to train for a cell.

    Attributes:
        train: Labelled rows.
        test: Rows to test on.
        model: Folder or name of the model to start from.
        settings: Settings of the classifier stage; ``keep`` is always last.
        context: Preset, seed, precision.
    """

    train: Dataset
    test: Dataset
    model: str
    settings: ClassifierSettings
    context: RunContext

    @property
    def numbers(self) -> ClassifierSettings:
        """The settings with the last epoch kept."""
        return dataclasses.replace(self.settings, keep="last")

    def identity(self) -> dict[str, Any]:
        """Return all that the result depends on."""
        context = self.context.for_model(model_type_of(self.model))
        found = context.identity(self.numbers, model=self.model, data=rows_digest(self.train))
        rows = found.pop("data")
        return {**found, "rows": rows, "test": rows_digest(self.test)}

    def run(self, folder: Path, *, keep_model: bool = False) -> Outcome:
        """Train in a folder, test, and remove the folder unless the model is to be kept."""
        quiet = dataclasses.replace(self.context, say=_say_nothing)
        train_classifier(self.train, None, model=self.model, output_dir=folder, settings=self.numbers, context=quiet)
        started = time.perf_counter()
        predictor = Predictor.load(folder, accelerator=quiet.accelerator)
        probabilities = predictor.probabilities(predictor.tokenize(self.test))
        details = {"seconds_of_test": round(time.perf_counter() - started, 1), **_training_details(folder)}
        if not keep_model:
            shutil.rmtree(folder)
        return outcome_of(probabilities, self.test, {"rows": len(self.train), "lr": self.settings.lr, **details})


def _say_nothing(_line: str) -> None:
    """Plans and epochs of many cells are kept in their records instead."""


def _training_details(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_stage(folder) or {}
    epochs = record["epochs"]
    last_step = {epoch["phase"]: epoch["step"] for epoch in epochs}
    tokens = sum(epoch["items_per_second"] * epoch["seconds"] for epoch in epochs)
    return {
        "seconds": round(record["seconds"], 1),
        "steps": sum(last_step.values()),
        "epochs": len(epochs),
        "tokens": round(tokens),
        "train_loss": epochs[-1]["train_loss"],
        "plan": record["plan"],
    }


def run_training(
    folder: CellFolder,
    cell: Cell,
    training: Training,
    *,
    models: Path,
    keep_model: bool = False,
    wait: bool = False,
    say: Callable[[str], None] = print_line,
) -> dict[str, Any] | None:
    """Run a cell that trains a classifier, or return its record if it is finished.

    Args:
        folder: Where cells are kept.
        cell: The cell.
        training: What to train.
        models: Where classifiers are written while they are needed.
        keep_model: Keep the classifier.
        wait: Wait for another process that is at it.
        say: Receives log lines on what is done.
    """
    identity = training.identity()
    name = f"{cell.training}-{short_digest({**identity, 'test': None})}"  # the same classifier, whatever tests it

    def work() -> Outcome:
        for left in models.glob(f"{cell.training}-*"):  # of a run with other settings that was killed
            if left.name != name and not keep_model:
                shutil.rmtree(left)
        return training.run(models / name, keep_model=keep_model)

    return folder.run(cell, identity, work, wait=wait, say=say)


def rows_digest(table: Dataset) -> str:
    """Return a fingerprint of labelled rows and of what their labels are called."""
    return digest_of(table["text"], table["label"], label_names_of(table)[0])[:16]


def outcome_of(probabilities: np.ndarray, test: Dataset, details: dict[str, Any]) -> Outcome:
    """Score probabilities on labelled rows: accuracy, error, macro F1 over all classes of the table."""
    labels, predicted = np.asarray(test["label"]), probabilities.argmax(axis=1)
    accuracy = float(accuracy_score(labels, predicted))
    scores = {
        "accuracy": accuracy,
        "error": 1.0 - accuracy,
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        "n": len(labels),
    }
    return Outcome(probabilities, scores, details)


def chosen_rate(
    tables: LabelledTables,
    rates: Sequence[float],
    *,
    method: str,
    size: int,
    training: Training,
    folder: CellFolder,
    models: Path,
    say: Callable[[str], None] = print_line,
) -> float:
    """Return the learning rate that is best on the development rows; a tie goes to the lower one.

    Args:
        tables: The grid's tables.
        rates: Rates to try; a single one is taken as it is.
        method: What they are tried for.
        size: Labelled rows of the cells it is for.
        training: What to train but for rows and rate; its seed is the one that decides.
        folder: Where the trials are kept, as cells of their own.
        models: Where classifiers are written while they are needed.
        say: Receives log lines on the choice.
    """
    if len(rates) == 1:
        return rates[0]
    train, development = tables.rows_to_choose_by(size, seed=training.context.seed)
    errors = {}
    for rate in sorted(rates):
        trial = dataclasses.replace(
            training, train=train, test=development, settings=dataclasses.replace(training.settings, lr=rate)
        )
        cell = Cell(f"{method}-lr{rate:g}", size, training.context.seed, len(development))
        try:
            record = run_training(folder, cell, trial, models=models, wait=True, say=say)
        except NonFiniteLossError:
            record = None  # the loss diverged: as wrong as can be
        errors[rate] = 1.0 if record is None else record["error"]
    best = min(errors, key=errors.__getitem__)
    tried = ", ".join(f"{rate:g}: {100 * error:.2f} %" for rate, error in errors.items())
    say(f"{method}, {size or 'all'} labels: learning rate {best:g} chosen by development error ({tried})")
    return best


def phases_of(model: str, settings: ClassifierSettings, context: RunContext, *, rows: int) -> list[Phase]:
    """Return the phases that a classifier on this model would train in."""
    recipe = context.for_model(model_type_of(model)).recipe
    return classifier_phases(count_layer_groups(model, settings), settings, recipe, rows=rows)


def total_epochs(phases: Sequence[Phase]) -> int:
    """Return the epochs of all phases together: what a baseline in one phase gets."""
    return sum(phase.epochs for phase in phases)


def tfidf_outcome(train: Dataset, test: Dataset, *, seed: int) -> Outcome:
    """Train TF-IDF with logistic regression and test it; C by cross-validation on the labelled rows alone."""
    started = time.perf_counter()
    fitted = fit_tfidf(train, seed=seed)
    probabilities = fitted.probabilities(test)
    return outcome_of(probabilities, test, {**fitted.details, "seconds": round(time.perf_counter() - started, 1)})


def tfidf_identity(train: Dataset, test: Dataset, *, seed: int) -> dict[str, Any]:
    """Return all that a TF-IDF cell depends on."""
    return {
        "rival": f"{TITLE}, C of {REGULARIZATIONS}, {FOLDS} folds, vectors of all rows",
        "seed": seed,
        "rows": rows_digest(train),
        "test": rows_digest(test),
    }
