"""An ensemble of a forward and a backward AWD-LSTM: which two models, and whether they can be averaged."""

import dataclasses

from ulmfit_pipe.models.builtin_models import builtin_models
from ulmfit_pipe.settings.choices import BACKWARD_MODEL, DEFAULT_MODEL
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, load_config, load_tokenizer, model_type_of, resolve_model
from ulmfit_pipe.stages.presets import AWD_LSTM


def with_backward_twin(settings: "PipelineSettings") -> "PipelineSettings":
    """Add the built-in backward model to an ensemble that starts from the built-in forward one, if there is any."""
    if not settings.ensemble or settings.model != DEFAULT_MODEL or settings.model_backward is not None:
        return settings
    builtin = builtin_models()
    is_builtin = DEFAULT_MODEL in builtin and resolve_model(DEFAULT_MODEL) == str(builtin[DEFAULT_MODEL])
    found = is_builtin and BACKWARD_MODEL in builtin
    return dataclasses.replace(settings, model_backward=BACKWARD_MODEL) if found else settings


def check_ensemble(settings: "PipelineSettings") -> None:
    """Raise unless a run's models can be a forward and a backward one that are averaged; before either is trained.

    Raises:
        ValueError: A pretrained forward model has no backward one beside it.
        ArtifactError: The models are no AWD-LSTMs, read in other directions, or have different vocabularies.
    """
    if settings.model is None:
        return
    kind = model_type_of(settings.model)
    if kind != AWD_LSTM:
        raise ArtifactError(
            f"{settings.model} is a {kind!r} model, and an ensemble is of a forward and a backward AWD-LSTM: set "
            "ensemble to false, or give AWD-LSTM models"
        )
    if settings.model_backward is None:
        raise ValueError(
            f"ensemble true needs a backward language model beside --model {settings.model}; give --model_backward, or "
            "--model null to train both from scratch"
        )
    _check_pair(settings)


def _check_pair(settings: "PipelineSettings") -> None:
    """Refuse two models that cannot be averaged, before either is trained."""
    names = {"forward": str(settings.model), "backward": str(settings.model_backward)}
    configs = {direction: load_config(name) for direction, name in names.items()}
    for direction, config in configs.items():
        found = getattr(config, "direction", None)
        if found != direction:
            raise ArtifactError(
                f"{names[direction]} reads text {found}, the ensemble needs it as its {direction} model; give --model "
                "a forward and --model_backward a backward language model"
            )
    kept = settings.language_model.tokenizer in ("auto", "keep")
    if kept and configs["forward"].vocab_hash != configs["backward"].vocab_hash:
        both_words = all(load_tokenizer(name).kind == "word" for name in names.values())
        if not (
            both_words
            and settings.fine_tune_language_model is not False
            and settings.language_model.tokenizer == "auto"
        ):
            raise ArtifactError(
                f"{names['forward']} and {names['backward']} have different vocabularies, so they cannot be averaged; "
                "train both with the same tokenizer, or set language_model.tokenizer to build a new one"
            )
