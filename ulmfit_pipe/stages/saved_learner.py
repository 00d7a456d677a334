"""Loading a complete saved learner: the model is built from its own folder, then frozen as it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from ulmfit_pipe.console import print_line
from ulmfit_pipe.models.heads.window_classifier import INNER, WindowsForSequenceClassification, bare_classifier
from ulmfit_pipe.models.layer_groups.group_specs import fixed_parameter_names, layer_group_specs
from ulmfit_pipe.settings.checks import home_path
from ulmfit_pipe.stages.artifacts import ArtifactError, load_config, load_model
from ulmfit_pipe.training.layer_groups import LayerGroup, split_layer_groups
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.records import Task, TrainingOptions
from ulmfit_pipe.training.resume.saved_learner import read_state


def groups_of(model: Any, *, max_blocks: int | None = None) -> list[LayerGroup]:
    """Split a model of a known architecture into its layer groups, and freeze what no training may change.

    Args:
        model: The model; one that reads in windows has the groups of the classifier inside.
        max_blocks: Most groups that the blocks of a text transformer make up; None gives each a group.

    Returns:
        The groups, input side first. Parameters of `fixed_parameter_names` (the weights below adapters, sines for
        positions) are frozen and in none of them; a group that holds nothing else is left out.

    Raises:
        ValueError: As `layer_group_specs`.
    """
    specs = layer_group_specs(bare_classifier(model), max_blocks=max_blocks)
    prefixes: list[tuple[str, ...]] = [spec.prefixes for spec in specs]
    if isinstance(model, WindowsForSequenceClassification):
        prefixes = [tuple(f"{INNER}.{prefix}" for prefix in group) for group in prefixes]
    return _movable(model, split_layer_groups(model, prefixes, names=[spec.name for spec in specs]))


def _movable(model: Any, groups: list[LayerGroup]) -> list[LayerGroup]:
    """Freeze the parameters that no training may change, and take them out of the groups."""
    fixed = fixed_parameter_names(model)
    movable: list[LayerGroup] = []
    for group in groups:
        for name, parameter in group.parameters:
            if name in fixed:
                parameter.requires_grad_(False)
                parameter.grad = None
        parameters = tuple((name, parameter) for name, parameter in group.parameters if name not in fixed)
        if parameters:
            movable.append(replace(group, index=len(movable), parameters=parameters))
    return movable


def _saved_groups(model: Any, state: dict[str, Any]) -> list[LayerGroup]:
    """Split a model as the saved one was."""
    groups = state["groups"]
    names, prefixes = [group["name"] for group in groups], [group["prefixes"] for group in groups]
    return _movable(model, split_layer_groups(model, prefixes, names=names))


def auto_class_of(model_class: str) -> Any:
    """Return the Auto class that loads a saved model, by the name of the model's own class."""
    if "SequenceClassification" in model_class:
        return AutoModelForSequenceClassification
    if "ImageClassification" in model_class:
        return AutoModelForImageClassification
    if "MaskedLM" in model_class:
        return AutoModelForMaskedLM
    return AutoModelForCausalLM if "CausalLM" in model_class or "LMHead" in model_class else AutoModel


def load_learner(
    path: Path | str,
    task: Task,
    *,
    options: TrainingOptions | None = None,
    accelerator: Accelerator | None = None,
    monitor: str = "loss",
    say: Callable[[str], None] = print_line,
) -> Learner:
    """Load what ``Learner.save`` wrote, with nothing but data to add.

    Args:
        path: The folder.
        task: Data and objective to continue with.
        options: Hyperparameters of the loop; the saved ones by default.
        accelerator: Device, precision and processes.
        monitor: Validation metric that selects the best epoch of further training.
        say: Receives a log line on what is frozen.

    Returns:
        A learner with the saved weights, freeze state and schedule position.

    Raises:
        CheckpointError: The folder is not a saved learner, or was cut short.
        ArtifactError: Its model cannot be built.
    """
    path = home_path(path)
    state = read_state(path)
    if not (Path(path) / "config.json").is_file():
        raise ArtifactError(
            f"{path} holds a {state['model_class']} without a config.json, so how to build one is unknown (a "
            "model with peft's adapters does not, nor does a module of your own); build it as before the save, and "
            "load into it: Learner(model, groups_of(model), task).load(path)"
        )
    config = load_config(path)
    model = load_model(path, auto_class_of(state["model_class"]), config=config)
    if state["model_class"] == WindowsForSequenceClassification.__name__:
        model = WindowsForSequenceClassification(model)
    if options is None:
        saved = dict(state["options"])
        options = TrainingOptions(**{**saved, "betas": tuple(saved["betas"])})
    learner = Learner(
        model,
        _saved_groups(model, state),
        task,
        options=options,
        accelerator=accelerator,
        monitor=monitor,
        say=say,
    )
    return learner.load(path)
