"""Ways to unfreeze a classifier, side by side on the same rows and seeds: this method's table 7 on one's own data.

What is the same is in `ABOUT`, which goes into every results file. What differs:

full             all layer groups from the start; gradual unfreezes one group more per phase; head trains the head alone
discriminative   a lower rate for each group nearer the input (classifier.lr_decay); otherwise one rate for all
slanted, one-cycle   the curve of the rate over each phase; otherwise the rate is constant
chain-thaw       the head, each group alone, then all; its phases are as long as those of gradual
lp-ft            the head at a constant rate for as long as gradual unfreezes, then all groups with one rate

Source: Howard & Ruder 2018, section 5.2, table 7; Felbo et al. 2017 (chain-thaw); Kumar et al. 2022 (LP-FT).
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ulmfit_pipe.data.tables.row_sources import reading_of
from ulmfit_pipe.settings.studies import VARIANTS, AblationSettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.context import RunContext, context_of, exclusive_run
from ulmfit_pipe.studies.grid.cells import Cell, CellFolder
from ulmfit_pipe.studies.grid.results import RESULTS_FILE, variant_table, write_results
from ulmfit_pipe.studies.grid.tables import LabelledTables, load_labelled_tables
from ulmfit_pipe.studies.grid.training import Training, chosen_rate, phases_of, run_training, total_epochs
from ulmfit_pipe.training.records import Phase

ABOUT = (
    "Every variant starts from the same fine-tuned language model, trains on the same rows for the same number of "
    "epochs (those of all phases of gradual unfreezing together), and is tested with the weights of its last epoch. "
    "All have the same base learning rate, or each the best of the same rates, chosen with seed 0 by development rows "
    "that no variant is trained on in the end (with all rows: by a tenth of them, before it is trained on all)."
)


@exclusive_run()
def run_ablation(settings: AblationSettings, *, context: RunContext | None = None) -> dict[str, Any]:
    """Run what is missing of the comparison and write results.json, results.csv and results.md.

    Args:
        settings: Settings of the comparison.
        context: Environment; made from the settings by default.

    Returns:
        What ``results.json`` holds; ``table`` is the Markdown table. With stage ``plans`` the plans alone.

    Raises:
        ValueError: A setting, table or model cannot be used, or no cell is finished.
    """
    context = context or context_of(settings)
    output = Path(settings.output_dir)
    plans = {name: phases_of_variant(settings, name, context) for name in settings.variants or VARIANTS}
    for name, phases in plans.items():
        context.tell(f"{name}: {in_words(phases)}, {total_epochs(phases)} epochs, {phases[-1].schedule.describe()}")
    if settings.stage == "plans":
        return {"table": "", "plans": {name: in_words(phases) for name, phases in plans.items()}}
    if settings.stage == "all":
        context.refuse_several_processes("the comparison")
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
        tables.check_size(settings.size)
        for cell in _cells(settings, test_rows=len(tables.test)):
            _run_cell(settings, cell, tables, context, output)
    words = _all_in_words(settings, context)
    results = write_results(
        output,
        title=settings.title or output.name,
        about=ABOUT,
        order=list(VARIANTS),
        table=lambda summary: variant_table(summary, phases=words),
        settings=settings,
        say=context.tell,
    )
    context.tell(f"results: {output / RESULTS_FILE}")
    return results


def variant_settings(settings: AblationSettings, name: str, context: RunContext) -> ClassifierSettings:
    """Return a variant's settings: the shared ones, its changes, and epochs that add up to the shared budget.

    Raises:
        ValueError: The budget leaves chain-thaw no epoch with all groups.
    """
    shared = settings.classifier
    numbers = dataclasses.replace(shared, **VARIANTS[name])
    if numbers.plan == "gradual":
        return numbers
    gradual = dataclasses.replace(shared, plan="gradual")
    phases = phases_of(settings.model, gradual, context, rows=1)
    budget, unfreezing = total_epochs(phases), total_epochs(phases[:-1])
    if numbers.plan == "lp-ft":
        return dataclasses.replace(numbers, epochs_per_phase=unfreezing, rest_lr=shared.lr)
    if numbers.plan == "chain-thaw":
        left = budget - len(phases) * phases[0].epochs  # one phase a group, gradual has one fewer before its last
        if left < 1:
            raise ValueError(
                f"chain-thaw needs {len(phases)} phases of {phases[0].epochs} before its last, the budget is {budget} "
                f"epochs: raise classifier.final_epochs above {phases[0].epochs}, or leave chain-thaw out of variants"
            )
        return dataclasses.replace(numbers, final_epochs=left, rest_lr=shared.lr)
    return dataclasses.replace(numbers, final_epochs=budget)


def phases_of_variant(settings: AblationSettings, name: str, context: RunContext) -> list[Phase]:
    """Return the phases a variant trains in."""
    return phases_of(settings.model, variant_settings(settings, name, context), context, rows=1)


def in_words(phases: list[Phase]) -> str:
    """Return phases with their epochs: ``last 1 (1), last 2 (1), all (8)``."""
    return ", ".join(f"{phase.name} ({phase.epochs})" for phase in phases)


def _all_in_words(settings: AblationSettings, context: RunContext) -> dict[str, str]:
    """Return the phases of all variants; one that the budget leaves no room for has no cells to describe."""
    words = {}
    for name in VARIANTS:
        with contextlib.suppress(ValueError):
            words[name] = in_words(phases_of_variant(settings, name, context))
    return words


def _cells(settings: AblationSettings, *, test_rows: int) -> Iterator[Cell]:
    for seed in range(settings.seeds):
        for name in settings.variants or VARIANTS:
            yield Cell(name, settings.size, seed, test_rows)


def _run_cell(
    settings: AblationSettings, cell: Cell, tables: LabelledTables, context: RunContext, output: Path
) -> None:
    train = tables.subset(cell.size, seed=cell.seed)
    numbers = variant_settings(settings, cell.method, context)
    seeded = dataclasses.replace(context, seed=cell.seed)
    training = Training(train, tables.test, settings.model, numbers, seeded)
    if settings.rates is not None:
        rate = chosen_rate(
            tables,
            settings.rates,
            method=cell.method,
            size=cell.size,
            training=dataclasses.replace(training, context=dataclasses.replace(context, seed=0)),
            folder=CellFolder(output / "rates"),
            models=output / "models",
            say=context.tell,
        )
        rest = rate if numbers.rest_lr is not None else None
        training = dataclasses.replace(training, settings=dataclasses.replace(numbers, lr=rate, rest_lr=rest))
    run_training(CellFolder(output / "cells"), cell, training, models=output / "models", say=context.tell)
