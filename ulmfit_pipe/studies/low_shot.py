"""What few labels reach: the method beside its baselines on nested labelled subsets, cell by cell.

Methods, all tested on the same rows:

scratch     the same network and head with random weights, all layers at once, for as many epochs as the method has
pretrained  the pretrained language model's encoder, unfrozen, without fine-tuning the language model first
ulmfit      the whole method: the language model is fine-tuned once on texts without labels, shared by all cells
backward    the whole method on the backward language model
ensemble    the probabilities of ulmfit and backward, averaged
tfidf       TF-IDF with logistic regression, C by cross-validation on the cell's labelled rows

What makes it fair, and where a baseline has an advantage, is in `ABOUT`, which goes into every results file.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_pipe.data.tables.row_sources import reading_of
from ulmfit_pipe.reports.plots import plot_label_curves
from ulmfit_pipe.settings.choices import ALL_ROWS
from ulmfit_pipe.settings.studies import TITLES, LowShotSettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.context import RunContext, context_of, exclusive_run
from ulmfit_pipe.storage.json_files import read_json
from ulmfit_pipe.storage.locks import held
from ulmfit_pipe.studies.grid.cells import Cell, CellFolder, Outcome
from ulmfit_pipe.studies.grid.results import RESULTS_FILE, curves_of, size_table, write_results
from ulmfit_pipe.studies.grid.tables import LabelledTables, language_model_texts, load_labelled_tables
from ulmfit_pipe.studies.grid.training import (
    Training,
    chosen_rate,
    outcome_of,
    phases_of,
    run_training,
    tfidf_identity,
    tfidf_outcome,
    total_epochs,
)
from ulmfit_pipe.text.language_model import train_language_model

ABOUT = (
    "No method sees a label beyond the cell's own: the last epoch's weights are tested, and nothing is chosen by test "
    "rows. One baseline has an advantage: the network from scratch has the best of several learning rates, chosen "
    "once per size with seed 0 by development rows that no subset holds (for all rows by a tenth of them, before it is "
    "trained on all); the method has none to choose. TF-IDF has C chosen by cross-validation on the cell's labelled "
    "rows. The language model is fine-tuned once, without labels, and reads no text of the test table."
)
IN_WORK_ORDER = ("tfidf", "scratch", "pretrained", "ulmfit", "backward", "ensemble")


@dataclass(frozen=True)
class _Grid:
    """What the cells of one run share."""

    settings: LowShotSettings
    tables: LabelledTables
    context: RunContext
    output: Path
    models: dict[str, str]  # method -> model to start from
    rates: dict[int, float] = field(default_factory=dict)  # size -> chosen rate of scratch
    done: dict[Cell, dict[str, Any] | None] = field(default_factory=dict)

    @property
    def cells(self) -> CellFolder:
        """Return the folder of finished cells."""
        return CellFolder(self.output / "cells")


@exclusive_run()
def run_low_shot(settings: LowShotSettings, *, context: RunContext | None = None) -> dict[str, Any]:
    """Run what is missing of the grid and write results.json, results.csv, results.md and the picture.

    Args:
        settings: Settings of the grid.
        context: Environment; made from the settings by default.

    Returns:
        What ``results.json`` holds; ``table`` is the Markdown table.

    Raises:
        ValueError: A setting, table or model cannot be used, or no cell is finished.
    """
    if settings.combine is not None:
        return _combine(settings)
    context = context or context_of(settings)
    home = Path(settings.output_dir)  # of the language models; cells of development rows are kept apart
    output = home / "development" if settings.score == "development" else home
    if settings.stage == "results":
        return _write_results(settings, output, context)
    context.refuse_several_processes("the grid")
    tables = _load_tables(settings, context)
    models = _models(settings, tables, context, home)
    if settings.stage == "language_model":
        return {
            "table": "",
            "language_models": {name: models[name] for name in ("ulmfit", "backward") if name in models},
        }
    grid = _Grid(settings, tables, context, output, models)
    cells = list(_cells(settings, test_rows=len(tables.test)))
    for number, (cell, place) in enumerate(cells, start=1):
        context.tell(f"cell {number} of {len(cells)}: {cell.describe()}")
        grid.done[cell] = _run_cell(grid, cell, place)
    return _write_results(settings, output, context)


def _load_tables(settings: LowShotSettings, context: RunContext) -> LabelledTables:
    if not settings.train_file or settings.test_file is None:
        raise ValueError("the grid needs a labelled table and one to test on: give --train_file and --test_file")
    tables = load_labelled_tables(
        settings.train_file,
        settings.test_file,
        text_column=settings.text_column,
        label_column=settings.label_column,
        test_rows=settings.test_rows,
        development_rows=settings.development_rows,
        reading=reading_of(settings),
        say=context.tell,
    )
    for size in settings.sizes:
        tables.check_size(size)
    if settings.score == "test":
        return tables
    if tables.development is None or ALL_ROWS in settings.sizes:
        raise ValueError(
            f"score development needs development_rows of 1 or more, got {settings.development_rows}, and sizes other "
            f"than {ALL_ROWS}, got {settings.sizes}: all rows hold the development rows too"
        )
    return dataclasses.replace(tables, test=tables.development)


def _wanted(settings: LowShotSettings) -> list[str]:
    """Return the methods to run, cheap ones first; an ensemble needs both its halves."""
    halves = {"ulmfit", "backward"} if "ensemble" in settings.methods else set()
    return [method for method in IN_WORK_ORDER if method in halves | set(settings.methods)]


def _cells(settings: LowShotSettings, *, test_rows: int) -> Iterator[tuple[Cell, int]]:
    """Yield every cell of the grid with the index of its size."""
    seeds = settings.seeds * len(settings.sizes) if len(settings.seeds) == 1 else settings.seeds
    for place, size in enumerate(settings.sizes):
        for seed in range(seeds[place]):
            for method in _wanted(settings):
                yield Cell(method, size, seed, test_rows), place


# ---- language models


def _models(settings: LowShotSettings, tables: LabelledTables, context: RunContext, output: Path) -> dict[str, str]:
    """Return the model each method starts from; language models are fine-tuned here, or found finished."""
    models = {"scratch": settings.model, "pretrained": settings.model}
    wanted = _wanted(settings)
    starts = {"ulmfit": settings.model, "backward": settings.model_backward}
    needed = [method for method in starts if method in wanted]
    if not needed:
        return models
    if settings.language_model_text == "unlabelled" and settings.unlabelled_file is None:
        raise ValueError("language_model_text is unlabelled, and there is no unlabelled_file; give one, or training")
    train, validation = language_model_texts(
        tables,
        unlabelled_file=None if settings.language_model_text == "training" else settings.unlabelled_file,
        unlabelled_rows=settings.unlabelled_rows,
        text_column=settings.text_column,
        labelled_too=settings.language_model_text != "unlabelled",
        reading=reading_of(settings),
        say=context.tell,
    )
    for method in needed:
        folder = output / ("language_model" if method == "ulmfit" else "language_model_backward")
        numbers = dataclasses.replace(
            settings.language_model, direction="forward" if method == "ulmfit" else "backward"
        )
        with held(output / f".{folder.name}.lock", wait=True, say=context.tell):
            train_language_model(
                train, validation, output_dir=folder, model=starts[method], settings=numbers, context=context
            )
        models[method] = str(folder)
    return models


# ---- cells


def _run_cell(grid: _Grid, cell: Cell, place: int) -> dict[str, Any] | None:
    if cell.method == "ensemble":
        return _run_ensemble(grid, cell)
    train, test = grid.tables.subset(cell.size, seed=cell.seed), grid.tables.test
    say = grid.context.tell
    if cell.method == "tfidf":
        identity = tfidf_identity(train, test, seed=cell.seed)
        return grid.cells.run(cell, identity, lambda: tfidf_outcome(train, test, seed=cell.seed), say=say)
    context = dataclasses.replace(grid.context, seed=cell.seed)
    settings = _classifier(grid.settings, place)
    training = Training(train, test, grid.models[cell.method], settings, context)
    if cell.method == "scratch":
        training = dataclasses.replace(training, settings=_scratch_settings(grid, cell, place, rows=len(train)))
        if cell.size not in grid.rates:
            grid.rates[cell.size] = _rate_of_scratch(grid, cell, training)
        training = dataclasses.replace(
            training, settings=dataclasses.replace(training.settings, lr=grid.rates[cell.size])
        )
    return run_training(
        grid.cells, cell, training, models=grid.output / "models", keep_model=grid.settings.keep_models, say=say
    )


def _classifier(settings: LowShotSettings, place: int) -> ClassifierSettings:
    if settings.final_epochs is None:
        return settings.classifier
    return dataclasses.replace(settings.classifier, final_epochs=settings.final_epochs[place])


def _scratch_settings(grid: _Grid, cell: Cell, place: int, *, rows: int) -> ClassifierSettings:
    """Return the settings of the network from scratch; null ones are those of the method."""
    settings, given = grid.settings, grid.settings.scratch
    method = _classifier(settings, place)
    phases = phases_of(settings.model, method, grid.context, rows=rows)
    epochs = settings.scratch_epochs[place] if settings.scratch_epochs else given.final_epochs
    return dataclasses.replace(
        given,
        from_scratch=True,
        lr=given.lr or method.lr or phases[0].lrs[-1],
        batch_size=given.batch_size or method.batch_size,
        max_length=given.max_length or method.max_length,
        final_epochs=epochs or total_epochs(phases),
    )


def _rate_of_scratch(grid: _Grid, cell: Cell, training: Training) -> float:
    first = dataclasses.replace(training, context=dataclasses.replace(grid.context, seed=0))
    return chosen_rate(
        grid.tables,
        [factor * (training.settings.lr or 0.0) for factor in grid.settings.scratch_factors],
        method="scratch",
        size=cell.size,
        training=first,
        folder=CellFolder(grid.output / "rates"),
        models=grid.output / "models",
        say=grid.context.tell,
    )


def _run_ensemble(grid: _Grid, cell: Cell) -> dict[str, Any] | None:
    halves = [dataclasses.replace(cell, method=method) for method in ("ulmfit", "backward")]
    records = [record for half in halves if (record := grid.done[half]) is not None]
    if len(records) < len(halves):
        grid.context.tell(f"{cell.describe()}: waits for its halves; run the command again when they are finished")
        return None
    identity = {
        "of": [record["recipe"] for record in records],
        "seed": cell.seed,
        "rows": [record["probabilities"] for record in records],
    }

    def average() -> Outcome:
        probabilities = np.mean([grid.cells.probabilities(half) for half in halves], axis=0)
        details = {name: sum(record[name] for record in records) for name in ("seconds", "steps")}
        return outcome_of(probabilities, grid.tables.test, {"rows": records[0]["rows"], **details})

    return grid.cells.run(cell, identity, average, say=grid.context.tell)


# ---- results


def _write_results(settings: LowShotSettings, output: Path, context: RunContext) -> dict[str, Any]:
    developing = settings.score == "development"
    results = write_results(
        output,
        title=(settings.title or Path(settings.output_dir).name) + (", development rows" if developing else ""),
        about=("The rows scored here are development rows, not test rows. " if developing else "") + ABOUT,
        order=list(TITLES),
        table=lambda summary: size_table(summary, titles=TITLES),
        settings=settings,
        say=context.tell,
        curves=lambda summary: curves_of(summary, titles=TITLES),
    )
    figure = Path(settings.figure or output / "curve.png")
    plot_label_curves({str(results["title"]): results["curves"]}, path=figure)
    context.tell(f"results: {output / RESULTS_FILE}; picture: {figure}")
    return results


def _combine(settings: LowShotSettings) -> dict[str, Any]:
    if settings.figure is None:
        raise ValueError("combine draws several results.json into one picture: give its path with --figure FILE.png")
    found: Sequence[dict[str, Any]] = [read_json(path) for path in settings.combine or []]
    plot_label_curves({results["title"]: results["curves"] for results in found}, path=settings.figure)
    return {"table": "\n\n".join(f"{results['title']}\n\n{results['table']}" for results in found)}
