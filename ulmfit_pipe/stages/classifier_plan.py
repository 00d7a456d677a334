"""Which layer groups of the classifier thaw when: the preset's phases, or a named plan with the preset's numbers."""

import dataclasses
from typing import TYPE_CHECKING

from ulmfit_pipe.stages.presets import IMDB_ROWS, Preset, scale_epochs
from ulmfit_pipe.training.phases import (
    chain_thaw,
    full,
    gradual_unfreezing,
    head_only,
    linear_probe_then_fine_tune,
)
from ulmfit_pipe.training.records import Phase
from ulmfit_pipe.training.schedules import Schedule

if TYPE_CHECKING:
    from ulmfit_pipe.stages.classifier import ClassifierSettings

SCHEDULES = {
    "slanted-triangular": Schedule.slanted_triangular(),
    "one-cycle": Schedule.one_cycle(),
    "constant": Schedule.constant(),
}


def classifier_phases(num_groups: int, settings: "ClassifierSettings", recipe: Preset, *, rows: int) -> list[Phase]:
    """Return the phases that the settings ask for; epochs that they do not give are scaled to the table's size.

    Args:
        num_groups: Layer groups of the classifier.
        settings: Numbers of the stage; None takes the preset's.
        recipe: The preset.
        rows: Labelled rows to train on.
    """
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


def _named_phases(num_groups: int, settings: "ClassifierSettings", recipe: Preset) -> list[Phase]:
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


def _at_rest_lr(phases: list[Phase], settings: "ClassifierSettings", recipe: Preset) -> list[Phase]:
    """Return a preset's phases; one that has the head trained alone takes ``rest_lr`` for all that follows."""
    if settings.rest_lr is None or recipe.head_factor == 1:
        return phases
    return [phases[0], *(dataclasses.replace(phase, lrs=_scaled(phase, settings.rest_lr)) for phase in phases[1:])]


def _scaled(phase: Phase, lr: float) -> tuple[float, ...]:
    """Return a phase's rates with another one for the last group, and their ratios as they are."""
    return tuple(lr * rate / phase.lrs[-1] for rate in phase.lrs)
