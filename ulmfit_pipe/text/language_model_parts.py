"""What both kinds of language model end in before training: a learner, its tokenizer, its phases."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ulmfit_pipe.settings.text import LanguageModelSettings
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.saved_learner import groups_of
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.records import Phase, Task


@dataclass(frozen=True)
class LanguageModelParts:
    """A language model ready to train, with what belongs to it.

    Attributes:
        learner: The model, its layer groups and its data.
        tokenizer: Its tokenizer.
        phases: What is trained when.
        pretrained: Whether its weights were trained before.
        tokens: Tokens to train on.
        masked: Whether it guesses masked tokens instead of the next one.
        handed_on: Weights that it has no use for and a classifier on its encoder has, by their names in its folder.
    """

    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    phases: list[Phase]
    pretrained: bool
    tokens: int
    masked: bool = False
    handed_on: Mapping[str, Tensor] = field(default_factory=dict)


def build_learner(
    network: Any,
    task: Task,
    settings: "LanguageModelSettings",
    context: RunContext,
    *,
    pretrained: bool,
    phases_for: Callable[[int], list[Phase]],
    max_blocks: int | None = None,
) -> tuple[Learner, list[Phase]]:
    """Split a language model into layer groups and return its learner and phases.

    Args:
        network: The model.
        task: Its data and objective.
        settings: Settings of the stage.
        context: Preset, device, precision.
        pretrained: Whether its weights were trained before.
        phases_for: Makes the phases for this many layer groups.
        max_blocks: Bundle a transformer's blocks into this many groups.
    """
    groups = groups_of(network, max_blocks=max_blocks)
    learner = Learner(
        network,
        groups,
        task,
        options=context.options(context.recipe.lm_optimizer, accumulation_steps=settings.accumulation_steps),
        accelerator=context.accelerator,
        monitor="loss",
        pretrained=pretrained,
        say=context.say,
    )
    return learner, phases_for(len(groups))
