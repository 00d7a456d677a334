"""Which models a run starts from, forward and backward, and whether the two can be averaged."""

import dataclasses
from typing import Literal, TypeAlias

from ulmfit_pipe.models.builtin_models import builtin_models
from ulmfit_pipe.settings.choices import BACKWARD_MODEL, DEFAULT_MODEL
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, ResolvedModel, find_model, load_tokenizer, resolve_model
from ulmfit_pipe.stages.presets import AWD_LSTM

Direction: TypeAlias = Literal["forward", "backward"]


def with_builtin_backward(settings: PipelineSettings) -> PipelineSettings:
    """Add the built-in backward model to an ensemble that starts from the built-in forward one, if there is any."""
    if not settings.ensemble or settings.model != DEFAULT_MODEL or settings.model_backward is not None:
        return settings
    builtin = builtin_models()
    is_builtin = DEFAULT_MODEL in builtin and resolve_model(DEFAULT_MODEL) == str(builtin[DEFAULT_MODEL])
    found = is_builtin and BACKWARD_MODEL in builtin
    return dataclasses.replace(settings, model_backward=BACKWARD_MODEL) if found else settings


def starting_models(settings: PipelineSettings) -> dict[Direction, ResolvedModel | None]:
    """Return the model that each direction of a run starts from, looked up once; None is one from scratch.

    Raises:
        ValueError: A pretrained forward model comes without a backward one.
        ArtifactError: The models are not AWD-LSTMs, read in the wrong directions, or have different vocabularies.
    """
    first = find_model(settings.model)
    if not settings.ensemble:
        return {settings.language_model.direction: first}
    if first is None:
        return {"forward": None, "backward": find_model(settings.model_backward)}
    if first.model_type != AWD_LSTM:
        raise ArtifactError(
            f"{first} is a {first.model_type!r} model, and an ensemble is of a forward and a backward AWD-LSTM: set "
            "ensemble to false, or give AWD-LSTM models"
        )
    if settings.model_backward is None:
        raise ValueError(
            f"ensemble true needs a backward language model besides --model {first}; give --model_backward, or "
            "--model null to train both from scratch"
        )
    second = find_model(settings.model_backward)
    _check_pair(settings, first, second)
    return {"forward": first, "backward": second}


def _check_pair(settings: PipelineSettings, forward: ResolvedModel, backward: ResolvedModel) -> None:
    """Refuse two models that cannot be averaged, before either is trained."""
    for direction, model in (("forward", forward), ("backward", backward)):
        found = getattr(model.loaded, "direction", None)
        if found != direction:
            raise ArtifactError(
                f"{model} reads text {found}, the ensemble needs it as its {direction} model; give --model "
                "a forward and --model_backward a backward language model"
            )
    kept = settings.language_model.tokenizer in ("auto", "keep")
    if kept and forward.loaded.vocab_hash != backward.loaded.vocab_hash:
        both_words = all(load_tokenizer(model).kind == "word" for model in (forward, backward))
        if not (
            both_words
            and settings.fine_tune_language_model is not False
            and settings.language_model.tokenizer == "auto"
        ):
            raise ArtifactError(
                f"{forward} and {backward} have different vocabularies, so they cannot be averaged; "
                "train both with the same tokenizer, or set language_model.tokenizer to build a new one"
            )
