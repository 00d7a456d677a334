"""Loading a complete saved learner: the model is built from its own folder, then frozen as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ulmfit_pipe.models.group_specs import layer_group_specs
from ulmfit_pipe.stages.artifacts import load_config, load_model
from ulmfit_pipe.training.layer_groups import LayerGroup, split_layer_groups
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.records import Task, TrainingOptions
from ulmfit_pipe.training.saved_learner import read_state


def groups_of(model: Any) -> list[LayerGroup]:
    """Split a model of a known architecture into its layer groups."""
    specs = layer_group_specs(model)
    return split_layer_groups(model, [spec.prefixes for spec in specs], names=[spec.name for spec in specs])


def load_learner(
    path: Path | str,
    task: Task,
    *,
    options: TrainingOptions | None = None,
    accelerator: Accelerator | None = None,
    monitor: str = "loss",
    say: Callable[[str], None] = print,
) -> Learner:
    """Load what ``Learner.save`` wrote, with nothing but data to add.

    Args:
        path: The folder.
        task: Data and objective to go on with.
        options: Numbers of the loop; the saved ones by default.
        accelerator: Device, precision and processes.
        monitor: Validation metric by which the best epoch of further training is judged.
        say: Told in one line what is frozen.

    Returns:
        A learner with the saved weights, freeze state and schedule position.

    Raises:
        CheckpointError: The folder is no saved learner, or was cut short.
        ArtifactError: Its model cannot be built.
    """
    state = read_state(path)
    config = load_config(path)
    is_classifier = "SequenceClassification" in state["model_class"]
    model = load_model(
        path, AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM, config=config
    )
    if options is None:
        saved = dict(state["options"])
        options = TrainingOptions(**{**saved, "betas": tuple(saved["betas"])})
    learner = Learner(
        model,
        groups_of(model),
        task,
        options=options,
        accelerator=accelerator,
        monitor=monitor,
        say=lambda _line: None,  # what is frozen before the load is of no interest
    )
    learner._say = say
    return learner.load(path)
