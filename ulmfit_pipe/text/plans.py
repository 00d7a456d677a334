"""Which layer groups of the classifier train when: the preset's phases, or a named plan with its rates."""

import dataclasses
import math
import time
from collections.abc import Sequence

from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.presets import FASTAI, IMDB_ROWS, LAYER_DECAY, TRANSFORMER, WARM_UP, Preset, scale_epochs
from ulmfit_pipe.text.tables import LEAST_ROWS
from ulmfit_pipe.training.optim import discriminative_lrs
from ulmfit_pipe.training.phases import (
    chain_thaw,
    full,
    gradual_unfreezing,
    head_only,
    linear_probe_then_fine_tune,
)
from ulmfit_pipe.training.records import Phase
from ulmfit_pipe.training.schedules import Schedule

TIME_FOR_TRAINING = 0.85  # of the time left; validation, saving and scoring take the rest
SCHEDULES = {
    "slanted-triangular": Schedule.slanted_triangular(),
    "one-cycle": Schedule.one_cycle(),
    "constant": Schedule.constant(),
}
PROBED = ("probe-full", "probe")  # plans that begin with logistic regression on frozen features (`head_probe`)
# After the probe; ours, chosen by accuracy on AG News, TREC-6 and IMDb with 8 to 64 labels per class
AUTO_LR, AUTO_LR_DECAY = 1e-4, LAYER_DECAY  # of the last group of a transformer once all train
LSTM_LR, LSTM_LR_DECAY = 5e-3, 1.3  # the same of an AWD-LSTM
AUTO_EPOCHS = 4  # of a table with many rows
AUTO_STEPS = 100  # of a table with few rows: as many epochs as have this many steps, up to
AUTO_MOST_EPOCHS = 25
UPDATE_SHARE = 0.3  # of these rates, for a classifier that is trained already; ours
BACKWARD_COST = 2.5  # what a training step takes beside its forward pass, in forward passes, optimizer included


def settled(settings: ClassifierSettings, recipe: Preset, *, held_out: bool, rows: int) -> ClassifierSettings:
    """Return settings whose ``auto`` is replaced by what it means for a preset and a table.

    Args:
        settings: Settings of the stage.
        recipe: The preset.
        held_out: Whether there are validation rows.
        rows: Labelled rows to train on.
    """
    plan, keep = settings.plan, settings.keep
    if plan == "auto":
        few = decided_by_folds(settings, recipe, held_out=held_out, rows=rows)
        of_preset = settings.from_scratch or settings.epochs_per_phase is not None or settings.lr is not None
        plan = "probe-full" if few or (recipe.name == TRANSFORMER and not of_preset) else "preset"
    if keep == "auto":
        keep = "best" if held_out else "last"
    return dataclasses.replace(settings, plan=plan, keep=keep)


def settled_for_update(settings: ClassifierSettings, recipe: Preset) -> ClassifierSettings:
    """Return settings whose ``auto`` is replaced by what it means for a classifier that continues on new rows.

    Args:
        settings: Settings of the stage.
        recipe: The preset.
    """
    if settings.plan not in ("auto", "probe-full"):
        return settings
    usual = AUTO_LR if recipe.name == TRANSFORMER else LSTM_LR
    rate = settings.rest_lr or settings.lr or UPDATE_SHARE * usual
    return dataclasses.replace(settings, plan="probe-full", rest_lr=rate)


def decided_by_folds(settings: ClassifierSettings, recipe: Preset, *, held_out: bool, rows: int) -> bool:
    """Return whether held-out folds of the training rows decide if more than the head of an AWD-LSTM is trained.

    Where rows are too few to hold a part out of, the probe is where its training starts, and the folds decide whether
    it is the end.
    """
    numbers = (settings.epochs_per_phase, settings.final_epochs, settings.lr, settings.rest_lr, settings.lr_decay)
    given = settings.from_scratch or settings.schedule != "preset" or any(number is not None for number in numbers)
    return settings.plan == "auto" and recipe.name == FASTAI and not held_out and rows < LEAST_ROWS and not given


def possible_epochs(reading_seconds: float, deadline: float | None) -> float:
    """Return how many epochs of all groups fit before a deadline.

    Args:
        reading_seconds: What a forward pass over all training rows takes.
        deadline: ``time.monotonic()`` at which training has to be over; None for no limit.
    """
    if deadline is None:
        return math.inf
    return (deadline - time.monotonic()) * TIME_FOR_TRAINING / max(reading_seconds * (1 + BACKWARD_COST), 1e-6)


def within_time(phases: Sequence[Phase], possible: float) -> tuple[list[Phase], str]:
    """Return phases that have at most this many epochs, with their schedules; and a line on what is left out, if any.

    Args:
        phases: The phases.
        possible: Epochs that the time allows.
    """
    wanted = sum(phase.epochs for phase in phases)
    if possible >= wanted or not phases:
        return list(phases), ""
    if possible < 1:
        return [], "max_seconds leave no time for an epoch of training, so nothing is unfrozen: the probe is the result"
    last = dataclasses.replace(phases[-1], epochs=min(int(possible), phases[-1].epochs))
    return [last], f"max_seconds leave time for {int(possible)} of {wanted} epochs; the schedule is made for these"


def classifier_phases(
    num_groups: int, settings: ClassifierSettings, recipe: Preset, *, rows: int, batch_size: int = 32
) -> list[Phase]:
    """Return the phases that the settings ask for; epochs that they do not give are scaled to the table's size.

    Args:
        num_groups: Layer groups of the classifier.
        settings: Settings of the stage; None takes the preset's.
        recipe: The preset.
        rows: Labelled rows to train on.
        batch_size: Rows of a step.
    """
    settings = settled(settings, recipe, held_out=True, rows=rows)
    if settings.plan in PROBED:
        return [] if settings.plan == "probe" else _after_probe(num_groups, settings, recipe, rows, batch_size)
    phases = _named_phases(num_groups, settings, recipe)
    scaled = []
    for number, phase in enumerate(phases):
        given = settings.final_epochs if number == len(phases) - 1 else settings.epochs_per_phase
        head_of_lp_ft = settings.plan == "lp-ft" and number == 0  # trains until it has converged: no curve fits
        fixed = given is not None or head_of_lp_ft
        epochs = phase.epochs if fixed else scale_epochs(phase.epochs, size=rows, full_size=IMDB_ROWS)
        curve = phase.schedule if head_of_lp_ft else SCHEDULES.get(settings.schedule, phase.schedule)
        scaled.append(dataclasses.replace(phase, epochs=epochs, schedule=curve))
    return scaled


def _after_probe(
    num_groups: int, settings: ClassifierSettings, recipe: Preset, rows: int, batch_size: int
) -> list[Phase]:
    """Return one phase of all groups for a head that starts from the probe: few rows are read more often."""
    lr, decay = (AUTO_LR, AUTO_LR_DECAY) if recipe.name == TRANSFORMER else (LSTM_LR, LSTM_LR_DECAY)
    rates = discriminative_lrs(settings.rest_lr or lr, num_groups, decay=settings.lr_decay or decay)
    steps = max(1, math.ceil(rows / batch_size))  # of an epoch
    epochs = settings.final_epochs or min(AUTO_MOST_EPOCHS, max(AUTO_EPOCHS, math.ceil(AUTO_STEPS / steps)))
    usual = WARM_UP if recipe.name == TRANSFORMER else Schedule.one_cycle()
    schedule = SCHEDULES.get(settings.schedule, usual)
    return [Phase("all", tuple(range(num_groups)), tuple(rates), schedule, epochs=epochs)]


def _named_phases(num_groups: int, settings: ClassifierSettings, recipe: Preset) -> list[Phase]:
    thaw, last = settings.epochs_per_phase, settings.final_epochs
    preset = recipe.classifier_phases(num_groups, thaw, last, settings.lr)
    if settings.plan == "preset":
        return _at_rest_lr(preset, settings, recipe)
    head_lr, epochs = preset[0].lrs[-1], preset[-1].epochs
    rest_lr, curve = settings.rest_lr or preset[-1].lrs[-1], preset[-1].schedule
    per_phase, decay = preset[0].epochs, settings.lr_decay or recipe.lr_decay
    lr = settings.lr or head_lr / recipe.head_factor  # of the last group once more than the head trains
    if settings.plan == "gradual":
        phases = gradual_unfreezing(
            num_groups, lr=lr, epochs_per_phase=per_phase, final_epochs=epochs, decay=decay, schedule=curve
        )
        if lr != head_lr:
            phases[0] = dataclasses.replace(phases[0], lrs=_scaled(phases[0], head_lr))
        return phases
    if settings.plan == "chain-thaw":
        return chain_thaw(num_groups, lr=rest_lr, epochs_per_phase=per_phase, final_epochs=epochs, schedule=curve)
    if settings.plan == "lp-ft":
        bound = {} if thaw is None else {"max_head_epochs": thaw}
        return linear_probe_then_fine_tune(
            num_groups, head_lr=head_lr, lr=rest_lr, epochs=epochs, schedule=curve, **bound
        )
    if settings.plan == "head":
        return head_only(num_groups, lr=head_lr, epochs=epochs, schedule=curve)
    return full(num_groups, lr=lr, epochs=epochs, decay=decay, schedule=curve)


def _at_rest_lr(phases: list[Phase], settings: ClassifierSettings, recipe: Preset) -> list[Phase]:
    """Return a preset's phases; one that has the head trained alone takes ``rest_lr`` for all that follows."""
    if settings.rest_lr is None or recipe.head_factor == 1:
        return phases
    return [phases[0], *(dataclasses.replace(phase, lrs=_scaled(phase, settings.rest_lr)) for phase in phases[1:])]


def _scaled(phase: Phase, lr: float) -> tuple[float, ...]:
    """Return a phase's rates with another one for the last group, and their ratios as they are."""
    return tuple(lr * rate / phase.lrs[-1] for rate in phase.lrs)
