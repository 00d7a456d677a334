"""The AWD-LSTM's part of both stages: its vocabulary, its one stream of text, its plan; its classifier's head.

Source: Howard & Ruder 2018, sections 3.1 and 3.2.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ulmfit_pipe.data.streams.lm_batches import LanguageModelBatches
from ulmfit_pipe.data.streams.token_arrays import read_token_arrays
from ulmfit_pipe.data.text.tokenization import (
    tokenize_dataset,
    tokens_in_order,
    train_tokenizer,
    vocab_hash,
)
from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM, AwdLstmForSequenceClassification
from ulmfit_pipe.models.awd_lstm.vocab_transfer import transfer_vocabulary
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, ResolvedModel, load_model, load_tokenizer
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.presets import IMDB_TOKENS, Preset, scale_epochs, with_dropouts
from ulmfit_pipe.stages.pretrained_files import refuse_larger_network
from ulmfit_pipe.text.language_model_parts import LanguageModelParts, build_learner
from ulmfit_pipe.text.language_model_scores import fitting_batch_size
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import SequenceObjective
from ulmfit_pipe.training.phases import full, gradual_unfreezing
from ulmfit_pipe.training.records import Phase, Task
from ulmfit_pipe.training.schedules import Schedule

SUBWORD_VOCAB_SIZE = 15_000  # about MultiFiT's (Eisenschlos et al. 2019)
SCRATCH_EPOCHS = 10
SCRATCH_LR = 5e-3  # peak of one cycle for a model with no pretrained weights; ours, see `ulmfit lr-find`
OF_TRANSFORMERS = {"block_size": "set bptt", "mask_probability": "leave it out", "whole_word_masking": "leave it out"}
TRANSFORMERS_ONLY = ("long_documents", "window_length", "window_overlap", "block_groups")


def build_awd_lstm_language_model(
    train: Dataset,
    validation: Dataset,
    *,
    model: ResolvedModel | None,
    settings: "LanguageModelSettings",
    context: RunContext,
) -> LanguageModelParts:
    """Prepare an AWD-LSTM language model, from scratch or pretrained, without training anything.

    Args:
        train: Column ``text``; what to train on.
        validation: Column ``text``; what to measure on.
        model: Pretrained language model; None is from scratch.
        settings: Settings of the stage.
        context: Preset and environment.

    Raises:
        ArtifactError: The model reads in the other direction, or its tokenizer is another's.
        ValueError: There is too little text for one batch, or a setting has no meaning for an AWD-LSTM.
    """
    _refuse_settings_of_transformers(settings)
    recipe = context.recipe
    network, tokenizer = _model_and_tokenizer(train, model, settings, context)
    encoded = {
        name: tokenize_dataset(dataset.select_columns(["text"]), tokenizer, num_proc=settings.num_workers)
        for name, dataset in (("train", train), ("validation", validation))
    }
    tokens = _count_tokens(encoded["train"])
    batches = {
        name: LanguageModelBatches(
            dataset,
            batch_size=fitting_batch_size(
                _count_tokens(dataset),
                settings.batch_size or recipe.batch_size,
                processes=context.accelerator.num_processes,
            ),
            bptt=settings.bptt or recipe.bptt,
            seed=context.seed,
            shuffle=name == "train",
            backward=settings.direction == "backward",
            variable_bptt=settings.variable_bptt and name == "train",
            **context.shares(),
        )
        for name, dataset in encoded.items()
    }
    context.tell(f"language model: {tokens:,} tokens to train on, vocabulary of {len(tokenizer):,}")
    task = Task(
        train_batches=batches["train"],
        objective=_objective(settings, recipe),
        valid_batches=batches["validation"],
        new_metric=LanguageModelMetric,
    )
    pretrained = model is not None
    phases_for = partial(_phases, settings=settings, context=context, pretrained=pretrained, tokens=tokens)
    learner, phases = build_learner(network, task, settings, context, pretrained=pretrained, phases_for=phases_for)
    return LanguageModelParts(learner, tokenizer, phases, pretrained, tokens)


def _refuse_settings_of_transformers(settings: "LanguageModelSettings") -> None:
    for name, advice in OF_TRANSFORMERS.items():
        if getattr(settings, name):
            raise ValueError(
                f"{name} {getattr(settings, name)!r} is for transformers; an AWD-LSTM reads one stream in windows of "
                f"bptt tokens and names the next one: {advice}"
            )


def _objective(settings: "LanguageModelSettings", recipe: Preset) -> SequenceObjective:
    return SequenceObjective(
        alpha=recipe.alpha if settings.alpha is None else settings.alpha,
        beta=recipe.beta if settings.beta is None else settings.beta,
        decodes=True,
    )


def _count_tokens(encoded: Dataset) -> int:
    return int(read_token_arrays(encoded).lengths.sum())


def _model_and_tokenizer(
    train: Dataset, model: ResolvedModel | None, settings: "LanguageModelSettings", context: RunContext
) -> tuple[AwdLstmForCausalLM, UlmfitTokenizer]:
    recipe = context.recipe
    if model is not None and settings.tokenizer_of is not None:
        raise ValueError(
            f"{model} has a tokenizer of its own; leave tokenizer_of ({settings.tokenizer_of}) out, or give model "
            "null to train one from scratch"
        )
    if model is None:
        if settings.tokenizer == "keep":
            raise ValueError("tokenizer 'keep' needs a pretrained model; give one, or a kind: unigram, bpe, word")
        kind = "unigram" if settings.tokenizer == "auto" else settings.tokenizer
        if settings.tokenizer_of is not None:
            tokenizer = load_tokenizer(settings.tokenizer_of)
        else:
            tokenizer = _new_tokenizer(train, kind, settings, context.recipe)
        embedding, hidden, layers = recipe.sizes
        config = AwdLstmConfig(
            vocab_size=len(tokenizer),
            embedding_size=settings.embedding_size or embedding,
            hidden_size=settings.hidden_size or hidden,
            num_hidden_layers=settings.num_hidden_layers or layers,
            pad_token_id=tokenizer.pad_token_id,
            bptt=settings.bptt or recipe.bptt,
            direction=settings.direction,
            vocab_hash=vocab_hash(tokenizer),
        )
        return AwdLstmForCausalLM(with_dropouts(config, recipe.lm_dropouts, settings.drop_mult)), tokenizer
    return _pretrained(train, model, settings, context)


def _pretrained(
    train: Dataset, model: ResolvedModel, settings: "LanguageModelSettings", context: RunContext
) -> tuple[AwdLstmForCausalLM, UlmfitTokenizer]:
    config: AwdLstmConfig = model.config
    if config.direction != settings.direction:
        raise ArtifactError(
            f"{model} reads text {config.direction}, the settings ask for {settings.direction}; "
            f"set direction to {config.direction!r} or give another model"
        )
    sizes = ("embedding_size", "hidden_size", "num_hidden_layers")
    ignored = [name for name in sizes if getattr(settings, name) not in (None, getattr(config, name))]
    if ignored:
        kept = ", ".join(f"{name} {getattr(config, name)}" for name in ignored)
        context.tell(f"note: {model} keeps its sizes ({kept}); the settings' are for a model from scratch, model null")
    old = load_tokenizer(model, config=config)
    config = with_dropouts(config, context.recipe.lm_dropouts, settings.drop_mult)
    network = load_model(model, AutoModelForCausalLM, config=config)
    kind = settings.tokenizer
    if kind == "auto":
        kind = "word" if old.kind == "word" else "keep"
    if kind == "keep":
        return network, old
    new = _new_tokenizer(train, kind, settings, context.recipe)
    transfer = transfer_vocabulary(
        network, tokens_in_order(old), tokens_in_order(new), vocab_hash=vocab_hash(new), old_vocab_hash=vocab_hash(old)
    )
    context.tell(f"vocabulary: {transfer.kept:,} tokens kept their rows, {transfer.new:,} start at the mean")
    return network, new


def _new_tokenizer(train: Dataset, kind: str, settings: "LanguageModelSettings", recipe: Preset) -> UlmfitTokenizer:
    def texts() -> Iterator[str]:
        for start in range(0, len(train), 1000):
            yield from train[start : start + 1000]["text"]

    words = kind == "word"
    return train_tokenizer(
        texts(),
        kind=kind,
        vocab_size=settings.vocab_size or (recipe.word_vocab_size if words else SUBWORD_VOCAB_SIZE),
        min_count=settings.min_count or recipe.word_min_count,
    )


def _phases(
    num_groups: int, settings: "LanguageModelSettings", context: RunContext, *, pretrained: bool, tokens: int
) -> list[Phase]:
    if settings.plan == "pretrain" or (settings.plan == "preset" and not pretrained):
        return full(
            num_groups,
            lr=settings.lr or SCRATCH_LR,
            epochs=settings.epochs or SCRATCH_EPOCHS,
            decay=1.0,
            schedule=Schedule.one_cycle(),
        )
    phases = context.recipe.lm_phases(num_groups, settings.frozen_epochs, settings.epochs, settings.lr)
    if settings.plan != "preset":
        last = phases[-1]
        lr, curve = settings.lr or max(last.lrs), last.schedule
        if settings.plan == "full":
            phases = full(num_groups, lr=lr, epochs=last.epochs, schedule=curve)
        else:
            frozen = settings.frozen_epochs or 1
            phases = gradual_unfreezing(
                num_groups, lr=lr, epochs_per_phase=frozen, final_epochs=last.epochs, schedule=curve
            )
    if settings.epochs is None:
        scaled = scale_epochs(phases[-1].epochs, size=tokens, full_size=IMDB_TOKENS)
        phases[-1] = dataclasses.replace(phases[-1], epochs=scaled)
    return phases


def build_awd_lstm_classifier(
    model: ResolvedModel, labels: dict[str, Any], settings: "ClassifierSettings", context: RunContext
) -> tuple[AwdLstmForSequenceClassification, UlmfitTokenizer]:
    """Return a classifier with the preset's dropouts, and its tokenizer.

    Args:
        model: Folder or name of a language model or classifier.
        labels: The configuration's entries on the labels.
        settings: Settings of the stage.
        context: Preset.

    Raises:
        ValueError: A setting has no meaning for an AWD-LSTM.
        ArtifactError: Weights or tokenizer cannot be used.
    """
    defaults = type(settings)()
    for name in TRANSFORMERS_ONLY:
        if getattr(settings, name) != getattr(defaults, name):
            raise ValueError(
                f"{name} {getattr(settings, name)!r} is for transformers; {model} is an AWD-LSTM, which reads "
                "documents whole and has a layer group per layer: leave it out (max_length truncates documents)"
            )
    config = model.config
    tokenizer = load_tokenizer(model, config=config)
    is_classifier = "AwdLstmForSequenceClassification" in (config.architectures or [])
    config = with_dropouts(config, context.recipe.classifier_dropouts, settings.drop_mult)
    for name, value in labels.items():
        setattr(config, name, value)
    if settings.gradient_window is not None:
        config.gradient_window = settings.gradient_window
    if is_classifier and not settings.from_scratch and not settings.new_head:
        return load_model(model, AutoModelForSequenceClassification, config=config), tokenizer
    refuse_larger_network(model, partial(AwdLstmForSequenceClassification, config))
    network = AwdLstmForSequenceClassification(config)
    if not settings.from_scratch:
        saved = load_model(model, AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM)
        network.model.load_state_dict(saved.get_submodule("model").state_dict())
    return network, tokenizer
