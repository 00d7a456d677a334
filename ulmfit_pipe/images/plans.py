"""Which layer groups of an image classifier train when, and how fast."""

from ulmfit_pipe.settings.images import ImageClassifierSettings
from ulmfit_pipe.training.optim import LR_DECAY, SLICE_RATIO
from ulmfit_pipe.training.phases import (
    chain_thaw,
    full,
    gradual_unfreezing,
    head_only,
    linear_probe_then_fine_tune,
)
from ulmfit_pipe.training.records import Phase
from ulmfit_pipe.training.schedules import Schedule

MOMS = (0.95, 0.85, 0.95)  # beta1 over a cycle, fastai 2.8's Learner
HEAD_START, REST_START, REST_DIV = 0.99, 0.3, 5.0  # shapes of fine_tune's two cycles, fastai 2.8 schedule.py
LOWEST, HIGHEST = 200.0, 2.0  # fine_tune trains all groups from lr / 200 to lr / 2


def image_phases(num_groups: int, settings: "ImageClassifierSettings", *, pretrained: bool) -> list[Phase]:
    """Return the phases that the settings ask for.

    Args:
        num_groups: Layer groups of the classifier.
        settings: Settings of the stage.
        pretrained: Whether the backbone's weights are; without them all groups train from the start, by default.
    """
    plan = settings.plan or ("fine-tune" if pretrained else "full")
    thaw, last, lr = settings.epochs_per_phase, settings.final_epochs, settings.lr
    rest_lr = settings.rest_lr or lr / SLICE_RATIO
    decay = settings.lr_decay or (LR_DECAY if pretrained else 1.0)
    curve = Schedule.one_cycle(moms=MOMS)
    if plan == "fine-tune":
        return _fine_tune(num_groups, lr=lr, head_epochs=thaw, epochs=last)
    if plan == "gradual":
        return gradual_unfreezing(
            num_groups, lr=lr, epochs_per_phase=thaw, final_epochs=last, decay=decay, schedule=curve
        )
    if plan == "chain-thaw":
        return chain_thaw(num_groups, lr=rest_lr, epochs_per_phase=thaw, final_epochs=last, schedule=curve)
    if plan == "lp-ft":
        return linear_probe_then_fine_tune(
            num_groups, head_lr=lr, lr=rest_lr, max_head_epochs=thaw, epochs=last, schedule=curve
        )
    if plan == "head":
        return head_only(num_groups, lr=lr, epochs=last, schedule=curve)
    return full(num_groups, lr=lr, epochs=last, decay=decay, schedule=curve)


def _fine_tune(num_groups: int, *, lr: float, head_epochs: int, epochs: int) -> list[Phase]:
    """The head alone, then everything at lower rates, the lowest at the input.

    Source: fastai 2.8 callback/schedule.py, ``Learner.fine_tune``.
    """
    head = num_groups - 1
    low, high = lr / LOWEST, lr / HIGHEST
    rest = tuple(low * (high / low) ** (index / max(head, 1)) for index in range(num_groups))
    return [
        Phase(
            "head",
            (head,),
            (lr / SLICE_RATIO,) * head + (lr,),
            Schedule.one_cycle(pct_start=HEAD_START, moms=MOMS),
            epochs=head_epochs,
        ),
        Phase(
            "all",
            tuple(range(num_groups)),
            rest,
            Schedule.one_cycle(pct_start=REST_START, div=REST_DIV, moms=MOMS),
            epochs=epochs,
        ),
    ]
