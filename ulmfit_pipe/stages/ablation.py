"""Ways to thaw a classifier, side by side on the same rows and seeds: this method's table 7 on one's own data.

What is alike is said in `ABOUT`, which goes into every results file. What differs:

full             all layer groups from the start; gradual thaws one group more a phase; head trains the head alone
discriminative   a lower rate for each group nearer the input (classifier.lr_decay); otherwise one rate for all
slanted, one-cycle   the curve of the rate over each phase; otherwise the rate is constant
chain-thaw       the head, each group alone, then all; its phases are as long as those of gradual
lp-ft            the head at a constant rate for as long as gradual thaws, then all groups with one rate

Source: Howard & Ruder 2018, section 5.2, table 7; Felbo et al. 2017 (chain-thaw); Kumar et al. 2022 (LP-FT).
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ulmfit_pipe.data.row_sources import TableReading
from ulmfit_pipe.settings.checks import check_choices, check_whole, with_home_paths
from ulmfit_pipe.stages.classifier import ClassifierSettings
from ulmfit_pipe.stages.grid_cells import Cell, CellFolder
from ulmfit_pipe.stages.grid_results import RESULTS_FILE, variant_table, write_results
from ulmfit_pipe.stages.grid_tables import ALL_ROWS, LabelledTables, load_labelled_tables
from ulmfit_pipe.stages.grid_training import Training, chosen_rate, phases_of, run_training, total_epochs
from ulmfit_pipe.stages.presets import PresetName
from ulmfit_pipe.stages.run_context import Precision, RunContext, exclusive_run
from ulmfit_pipe.training.records import Phase

ABOUT = (
    "Every variant starts from the same fine-tuned language model, trains on the same rows for the same number of "
    "epochs (those of all phases of gradual unfreezing together), and is tested with the weights of its last epoch. "
    "All have the same base learning rate, or each the best of the same rates, chosen with seed 0 by development rows "
    "that no variant is trained on in the end (with all rows: by a tenth of them, before it is trained on all)."
)
ONE_RATE = {"lr_decay": 1.0}
SLANTED, ONE_CYCLE, CONSTANT = ({"schedule": name} for name in ("slanted-triangular", "one-cycle", "constant"))

# Variant -> what it changes of the settings `classifier`; epochs are set by `variant_settings`.
VARIANTS: dict[str, dict[str, Any]] = {
    "head": {"plan": "head", **SLANTED},
    "full": {"plan": "full", **ONE_RATE, **CONSTANT},
    "full-slanted": {"plan": "full", **ONE_RATE, **SLANTED},
    "full-one-cycle": {"plan": "full", **ONE_RATE, **ONE_CYCLE},
    "full-discriminative": {"plan": "full", **CONSTANT},
    "full-discriminative-slanted": {"plan": "full", **SLANTED},
    "full-discriminative-one-cycle": {"plan": "full", **ONE_CYCLE},
    "gradual": {"plan": "gradual", **ONE_RATE, **CONSTANT},
    "gradual-slanted": {"plan": "gradual", **ONE_RATE, **SLANTED},
    "gradual-one-cycle": {"plan": "gradual", **ONE_RATE, **ONE_CYCLE},
    "gradual-discriminative": {"plan": "gradual", **CONSTANT},
    "gradual-discriminative-slanted": {"plan": "gradual", **SLANTED},
    "gradual-discriminative-one-cycle": {"plan": "gradual", **ONE_CYCLE},
    "chain-thaw": {"plan": "chain-thaw", **SLANTED},
    "lp-ft": {"plan": "lp-ft", **SLANTED},
}


@dataclass(frozen=True)
@with_home_paths
class AblationSettings(TableReading):
    """Settings of a comparison of ways to thaw.

    Attributes:
        train_file: Labelled table or tables.
        test_file: Labelled table to test on.
        model: Folder of the fine-tuned language model that every variant starts from.
        output_dir: Folder for cells and results; several processes may work in it.
        text_column: Column of text; several are joined with field marks.
        label_column: Column of labels.
        size: Labelled rows to train on; 0 is all rows.
        seeds: Number of seeds (0, 1, ...), each with its own rows.
        variants: What to compare; null compares all.
        rates: Learning rates to choose from, for each variant the best on development rows with seed 0; null takes
            classifier.lr for every variant.
        test_rows: Size of the stratified test sample; null tests on all rows.
        development_rows: Labelled rows set aside to choose rates by; in no subset.
        preset: Recipe; auto is fastai for an AWD-LSTM and transformer for any other model.
        mixed_precision: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        progress: Show progress bars; null decides by the terminal.
        stage: Everything; only show the variants' phases; or only write the results of the cells there are.
        title: Name of the data; null takes the output folder's name.
        classifier: Numbers that all variants share: rate, decay, batch size, and the epochs of gradual unfreezing.
    """

    train_file: list[str]
    test_file: str
    model: str
    output_dir: str = "runs/ablation"
    text_column: list[str] = field(default_factory=lambda: ["text"])
    label_column: str = "label"
    size: int = ALL_ROWS
    seeds: int = 3
    variants: list[str] | None = None
    rates: list[float] | None = None
    test_rows: int | None = 2000
    development_rows: int = 500
    preset: PresetName = "auto"
    mixed_precision: Precision = "no"
    progress: bool | None = None
    stage: Literal["all", "plans", "results"] = "all"
    title: str | None = None
    classifier: ClassifierSettings = field(
        default_factory=lambda: ClassifierSettings(plan="gradual", lr=1e-2, epochs_per_phase=1, final_epochs=8)
    )

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before anything is read."""
        check_choices(self)
        check_whole(self, {"size": ALL_ROWS, "seeds": 1, "test_rows": 1, "development_rows": 0})
        unknown = [name for name in self.variants or VARIANTS if name not in VARIANTS]
        if unknown or self.variants == []:
            raise ValueError(f"variants must be some of {', '.join(VARIANTS)}, got {', '.join(unknown) or 'none'}")
        if self.rates is not None and (not self.rates or min(self.rates) <= 0):
            raise ValueError(f"rates must be numbers above 0, got {self.rates}; leave it out for classifier.lr")
        given = {name: getattr(self.classifier, name) for name in ("lr", "epochs_per_phase", "final_epochs")}
        missing = [f"classifier.{name}" for name, value in given.items() if value is None]
        if missing:
            raise ValueError(f"all variants share one budget and one rate: set {', '.join(missing)}")


@exclusive_run()
def run_ablation(settings: AblationSettings, *, context: RunContext | None = None) -> dict[str, Any]:
    """Run what is missing of the comparison and write results.json, results.csv and results.md.

    Args:
        settings: Settings of the comparison.
        context: Surroundings; made from the settings by default.

    Returns:
        What ``results.json`` holds; ``table`` is the Markdown table. With stage ``plans`` the plans alone.

    Raises:
        ValueError: A setting, table or model cannot be used, or no cell is finished.
    """
    context = context or RunContext(
        preset=settings.preset, mixed_precision=settings.mixed_precision, progress=settings.progress
    )
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
            reading=settings.options(),
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
    """Return a variant's numbers: the shared ones, its changes, and epochs that add up to the shared budget.

    Raises:
        ValueError: The budget leaves chain-thaw no epoch with all groups.
    """
    shared = settings.classifier
    numbers = dataclasses.replace(shared, **VARIANTS[name])
    if numbers.plan == "gradual":
        return numbers
    gradual = dataclasses.replace(shared, plan="gradual")
    phases = phases_of(settings.model, gradual, context, rows=1)
    budget, thawing = total_epochs(phases), total_epochs(phases[:-1])
    if numbers.plan == "lp-ft":
        return dataclasses.replace(numbers, epochs_per_phase=thawing, rest_lr=shared.lr)
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
