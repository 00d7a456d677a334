"""The language-model stage: train one from scratch, or fine-tune a pretrained one on the target's text.

The first two steps of ULMFiT. Validation text is never trained on; the stage ends in a folder that the classifier
stage starts from. An AWD-LSTM goes through `families.awd_lstm`, any other text model through
`transformer_language_model`.

Source: Howard & Ruder 2018, sections 3.1 and 3.2.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from ulmfit_pipe.data.tables.tables import check_table
from ulmfit_pipe.models.quiet_transformers import one_builds, quiet_transformers
from ulmfit_pipe.settings.checks import home_path
from ulmfit_pipe.settings.text import LanguageModelSettings
from ulmfit_pipe.stages.artifacts import ModelName, find_model, model_type_of
from ulmfit_pipe.stages.context import RunContext, exclusive_run
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.stages.stage import StageRun
from ulmfit_pipe.storage.digests import digest_of
from ulmfit_pipe.text.families.family import family_of
from ulmfit_pipe.text.language_model_parts import LanguageModelParts
from ulmfit_pipe.text.language_model_scores import compared_across_vocabularies, describe_perplexity
from ulmfit_pipe.text.lineage import lineage_after
from ulmfit_pipe.training.history import History

STAGE = "language_model"


@exclusive_run()
def train_language_model(
    train: Dataset,
    validation: Dataset,
    *,
    output_dir: Path | str,
    model: ModelName | None = None,
    settings: LanguageModelSettings | None = None,
    context: RunContext | None = None,
    train_files: Sequence[str | Path] = (),
) -> StageResult:
    """Train or fine-tune a language model on texts and save it with its tokenizer.

    Args:
        train: Column ``text``; what to train on.
        validation: Column ``text``; what to measure perplexity on, never trained on.
        output_dir: Folder to write; a finished stage with the same settings and data is not run again.
        model: Pretrained language model or text encoder: a folder, a built-in name or a hub id; None trains an AWD-LSTM
            from scratch.
        settings: Settings of the stage.
        context: Preset, seed, precision, time.
        train_files: Where the texts came from, for the record: base names are kept.

    Returns:
        The folder, its metrics (loss, perplexity or pseudo-perplexity, token accuracy) and seconds.
    """
    _check_tables(train, validation, of="train_language_model")
    model, output_dir = find_model(model), home_path(output_dir)
    settings, context = settings or LanguageModelSettings(), (context or RunContext()).for_model(model_type_of(model))
    identity = context.identity(settings, model=model, data=digest_of(train["text"], validation["text"]))
    run = StageRun(STAGE, output_dir, identity, model, context)
    if (done := run.begin()) is not None:
        return done
    parts = build_language_model_learner(train, validation, model=model, settings=settings, context=context)
    run.keep(parts.learner, parts.tokenizer)
    with run.comparing_weights(parts.learner):
        history = _train(parts, context)
    metrics, seconds = _final_metrics(parts, history, validation), run.seconds(history)
    lineage = lineage_after(
        parts.learner, history, metrics, model, context, seconds=seconds, tokens=parts.tokens, files=train_files
    )
    return run.save(
        parts.learner,
        parts.phases,
        history,
        metrics,
        seconds=seconds,
        record={"tokens": parts.tokens, "lineage": lineage},
        write=partial(_write, parts),
        shown=describe_perplexity(metrics),
    )


def _train(parts: LanguageModelParts, context: RunContext) -> History:
    history = parts.learner.fit_plan(parts.phases)
    if not history.steps:
        left = "as the pretrained one was" if parts.pretrained else "random"
        context.tell(f"language model: max_seconds ran out before the first step, so it stays {left}")
    return history


def _check_tables(train: Any, validation: Any, *, of: str) -> None:
    for name, table in (("train", train), ("validation", validation)):
        check_table(table, what=f"{name} of {of}")


def _write(parts: LanguageModelParts, folder: Path) -> None:
    """Write a language model's weights, with those that only a classifier has a use for, and its tokenizer."""
    network: Any = parts.learner.model
    with quiet_transformers():
        network.save_pretrained(folder, state_dict={**network.state_dict(), **parts.handed_on})
    parts.tokenizer.save_pretrained(folder)


def _final_metrics(parts: LanguageModelParts, history: History, validation: Dataset) -> dict[str, Any]:
    """Return the validation metrics of the weights that were kept, measured when their epoch ended.

    The loss of masked tokens is not that of a whole text, so it is not spread over characters and words.
    """
    metrics: dict[str, Any] = dict(history.best.metrics) if history.best is not None else parts.learner.validate()
    if parts.masked:
        return metrics
    tokens = parts.learner.task.valid_batches.tokens_per_epoch  # type: ignore[union-attr]
    return {**metrics, **compared_across_vocabularies(metrics["loss"], tokens=tokens, texts=validation)}


@one_builds()
def build_language_model_learner(
    train: Dataset,
    validation: Dataset,
    *,
    model: ModelName | None = None,
    settings: LanguageModelSettings | None = None,
    context: RunContext | None = None,
) -> LanguageModelParts:
    """Prepare tokenizer, batches, model and phases, without training anything.

    Raises:
        TypeError: A table is not from `load_table`.
        ArtifactError: The model cannot be a language model, or its tokenizer is another's.
        ValueError: There is too little text for one batch, or a setting has no meaning for the model.
    """
    _check_tables(train, validation, of="build_language_model_learner")
    model = find_model(model)
    settings, context = settings or LanguageModelSettings(), (context or RunContext()).for_model(model_type_of(model))
    build = family_of(model_type_of(model)).build_language_model
    return build(train, validation, model=model, settings=settings, context=context)
