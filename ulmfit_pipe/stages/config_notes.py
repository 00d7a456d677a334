"""What is ours in a model's configuration: how it reads texts, its labels' type and thresholds, its vocabulary."""

from collections.abc import Sequence
from typing import Any

from ulmfit_pipe.data.labels import can_be, typed_label
from ulmfit_pipe.stages.model_folder import NOTES
from ulmfit_pipe.stages.presets import AWD_LSTM


def notes_of(config: Any) -> dict[str, Any]:
    """Return what a transformer's configuration holds of ours; empty where it was never trained here."""
    return dict(getattr(config, NOTES, None) or {})


def note(config: Any, **values: Any) -> None:
    """Add to what a transformer's configuration holds of ours."""
    setattr(config, NOTES, {**notes_of(config), **values})


def raw_thresholds(config: Any) -> Any:
    """Return what a configuration holds as thresholds, whatever that is."""
    return config.thresholds if config.model_type == AWD_LSTM else notes_of(config).get("thresholds")


def label_type_in(config: Any) -> str | None:
    """Return the type that a classifier's labels were given in ("int" or "bool"), or None for names."""
    return notes_of(config).get("label_type")


def typed_labels(config: Any, names: Sequence[str]) -> list[Any]:
    """Return a classifier's labels in the type that training had them in: integers, bools or text."""
    kind = label_type_in(config)
    return [typed_label(name, kind if can_be(names, kind) else None) for name in names]


def remember_label_type(config: Any, kind: str | None) -> None:
    """Keep the type of a training table's labels in the classifier's configuration."""
    if kind != label_type_in(config):
        note(config, label_type=kind)


def thresholds_of(config: Any) -> list[float] | None:
    """Return the probabilities from which a label counts as given, or None where none were chosen."""
    found = raw_thresholds(config)
    return list(found) if found else None


def set_thresholds(config: Any, thresholds: list[float] | None) -> None:
    """Keep chosen thresholds in a configuration; None for 0.5 each."""
    if config.model_type == AWD_LSTM:
        config.thresholds = thresholds
    else:
        note(config, thresholds=thresholds)
