"""A language model, encoder or classifier, loaded as a classifier of a table's labels."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from ulmfit_pipe.data.labels import clean_label, list_apart
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, ModelName, ResolvedModel, find_model
from ulmfit_pipe.stages.classifier_labels import NEW_HEAD, is_text_classifier, labels_of
from ulmfit_pipe.stages.config_notes import set_thresholds
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.families.family import family_of
from ulmfit_pipe.text.updating.head_rows import grow_head


def load_as_classifier(
    model: ModelName,
    names: list[str],
    multi_label: bool,
    settings: "ClassifierSettings",
    context: RunContext,
    *,
    update: bool = False,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model as a classifier of a table's labels, with its tokenizer.

    Args:
        model: Folder or name of a language model, an encoder, or a classifier with the same labels.
        names: The labels.
        multi_label: Whether a text may have several.
        settings: Settings of the stage.
        context: Preset and log.
        update: The model is a classifier of the first of the labels; its head gets a row for each further one.

    Raises:
        ArtifactError: The model cannot classify texts, its tokenizer is another's, or a classifier's labels differ.
        ValueError: A setting has no meaning for the model.
    """
    model = find_model(model)
    config, wanted = model.loaded, names
    if update:
        names = labels_of(model, config)[0]
        _check_labels(model, config, wanted[: len(names)], multi_label=multi_label)
    elif is_text_classifier(config) and not settings.new_head:
        _check_labels(model, config, names, multi_label=multi_label)
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }
    network, tokenizer = family_of(model.model_type).build_classifier(model, labels, settings, context)
    if settings.new_head and is_text_classifier(config):
        set_thresholds(network.config, None)  # they were those of the other labels
        context.tell(f"{model} is a classifier: its encoder is taken, the head is new")
    if update:
        grow_head(network, wanted)
    return network, tokenizer


def count_layer_groups(model: ModelName, settings: "ClassifierSettings") -> int:
    """Return how many layer groups a model has as a classifier, without its weights.

    Args:
        model: As in `load_as_classifier`.
        settings: Settings of the stage.

    Raises:
        ArtifactError: The model cannot classify texts.
        ValueError: Its layer groups cannot be found.
    """
    model = find_model(model)
    return family_of(model.model_type).count_layer_groups(model, settings)


def _check_labels(model: ResolvedModel, config: Any, names: list[str], *, multi_label: bool) -> None:
    """Raise unless a saved classifier has the table's labels, and as many of them for a text."""
    saved, gives_several = labels_of(model, config)
    if list(map(clean_label, saved)) != list(map(clean_label, names)):
        known, given = list_apart(saved, names)
        raise ArtifactError(
            f"{model} is a classifier of {known}, the training table has the labels {given}; to resume from a "
            f"classifier the labels must be the same: for other labels put a new head on its encoder with {NEW_HEAD}, "
            "or add classes to it with ulmfit update"
        )
    if gives_several != multi_label:
        kinds = ("several labels", "one label") if not multi_label else ("one label", "several labels")
        raise ArtifactError(
            f"{model} gives a text {kinds[0]}, the training table {kinds[1]}; to resume from a classifier both must "
            f"be alike: put a new head on its encoder with {NEW_HEAD}"
        )
