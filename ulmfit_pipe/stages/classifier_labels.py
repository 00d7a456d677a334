"""Which labels a saved classifier gives a text, by its configuration; a model that gives none is refused."""

from pathlib import Path
from typing import Any

from ulmfit_pipe.stages.model_folder import shown
from ulmfit_pipe.stages.model_names import ArtifactError, ModelName

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NEW_HEAD = "--classifier.new_head true (in Python classifier=ClassifierSettings(new_head=True))"  # leaves a head behind


def is_text_classifier(config: Any) -> bool:
    """Return whether a configuration is of a model with a head for texts, by the name of its class."""
    classes = config.architectures or []
    own = (getattr(config, "auto_map", None) or {}).get("AutoModelForSequenceClassification") or ""
    return any("SequenceClassification" in name or own.endswith(f".{name}") for name in classes)


def labels_of(name: ModelName, config: Any) -> tuple[list[str], bool]:
    """Return a classifier's label names in the order of their ids, and whether a text may have several.

    Args:
        name: What the user calls the model.
        config: Its configuration.

    Raises:
        ArtifactError: It gives numbers instead of labels, or its labels are not names that differ.
    """
    kind, given = getattr(config, "problem_type", None), config.id2label or {}
    if kind == REGRESSION:
        raise ArtifactError(
            f"{name} is a regression model (problem_type in config.json): it gives a text numbers, not labels; give a "
            f"classifier, or train one from its encoder with {NEW_HEAD}"
        )
    if kind not in (None, SINGLE_LABEL, MULTI_LABEL):
        raise ArtifactError(
            f"{name} cannot be used: problem_type in config.json is {shown(kind)}; allowed are {SINGLE_LABEL}, "
            f"{MULTI_LABEL} and null: correct it, or take another save"
        )
    names: list[Any] = [given.get(index) for index in range(len(given))]
    for index, label in enumerate(names):
        if not isinstance(label, str) or not label.strip() or label in names[:index]:
            what = "is there twice" if label in names[:index] else "is not a name"
            raise ArtifactError(
                f"{name} cannot be used: label {index} of id2label in config.json is {shown(label)}, which {what}; "
                "give each id a text of its own, in quotes"
            )
    if len(names) < 2 and kind != MULTI_LABEL:
        raise ArtifactError(
            f"{name} has one output ({', '.join(map(shown, names)) or 'no label'}), which is a number (a rating, a "
            "similarity), not a label: every text would get it with score 1.0; give a classifier of two labels or "
            f"more, or train one from its encoder with {NEW_HEAD}"
        )
    return names, kind == MULTI_LABEL


def check_thresholds(name: str | Path, thresholds: Any, *, labels: int) -> None:
    """Raise unless thresholds are one probability a label.

    Args:
        name: What the user calls the model.
        thresholds: As its configuration holds them; None where there are none.
        labels: Number of its labels.

    Raises:
        ArtifactError: There are more or fewer, or one is not in 0..1.
    """
    if thresholds is None:
        return
    fit = isinstance(thresholds, list) and len(thresholds) == labels
    if not fit or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in thresholds):
        raise ArtifactError(
            f"{name} cannot be used: thresholds in config.json must be {labels} numbers in 0..1, one per label, got "
            f"{shown(thresholds)}; correct them, or delete the entry for 0.5 each"
        )
