"""A transformer's part of the language-model stage: masked or next tokens, by what the model is, on packed blocks.

An encoder (BERT, RoBERTa, ...) continues guessing masked tokens, a decoder (GPT-2, Llama, ...) the next one. An encoder
without a language-model head gets one. The folder it ends in is plain transformers, and a classifier takes its encoder
over by the weights' names.

Sources: further pretraining on the text of the task, Sun et al. 2019 (section 5.4) and Gururangan et al. 2020, after
Howard & Ruder 2018, section 3.2.
"""

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerBase,
)

from ulmfit_pipe.data.streams.masking import MASK_PROBABILITY, TokenMasking, masking_of
from ulmfit_pipe.data.streams.token_arrays import read_token_arrays
from ulmfit_pipe.data.streams.token_blocks import TokenBlockBatches, block_layout
from ulmfit_pipe.data.text.pretrained_tokenizers import longest_text, vocabulary_digest
from ulmfit_pipe.data.text.tokenization import tokenize_dataset
from ulmfit_pipe.models.heads.token_logits import causal_logits, masked_logits, sees_later_tokens
from ulmfit_pipe.models.heads.window_classifier import longest_input
from ulmfit_pipe.settings.text import LanguageModelSettings
from ulmfit_pipe.stages.artifacts import (
    ArtifactError,
    ResolvedModel,
    load_model,
    load_text_tokenizer,
    refuse_image_model,
)
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.model_folder import NOTES
from ulmfit_pipe.stages.presets import IMDB_TOKENS, scale_epochs
from ulmfit_pipe.text.language_model_parts import LanguageModelParts, build_learner
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import TokenObjective
from ulmfit_pipe.training.phases import full, gradual_unfreezing
from ulmfit_pipe.training.records import Phase, Task
from ulmfit_pipe.training.schedules import Schedule

BLOCK_SIZE = 128  # tokens: Sun et al. 2019 for further pretraining; nine tenths of BERT's own (Devlin et al. 2019, A.2)
STEPS_PER_EPOCH = 25  # little text narrows the batch until an epoch has about as many steps; ours, as the classifier's
LEAST_BATCH = 8  # blocks; the batch is not narrowed below it
BUNDLES = 3  # of a transformer's blocks where the language model is unfrozen gradually; ours
EVALUATION_SEED = 0  # of the validation's masks: the same in every run, so that runs can be compared

# What an AWD-LSTM's settings would mean here: name -> (default, why it is refused)
OF_AWD_LSTM: dict[str, tuple[Any, str]] = {
    "bptt": (None, "nothing is carried from window to window; set block_size"),
    "variable_bptt": (False, "nothing is carried from window to window; leave it out"),
    "alpha": (None, "AR and TAR are penalties on a recurrent network's states; leave it out"),
    "beta": (None, "AR and TAR are penalties on a recurrent network's states; leave it out"),
    "drop_mult": (1.0, "its dropouts are its own; leave it out, or change them in its config.json"),
    "tokenizer_of": (None, "it has a tokenizer of its own; leave it out"),
    "vocab_size": (None, "it keeps its vocabulary; leave it out"),
    "min_count": (None, "it keeps its vocabulary; leave it out"),
    "embedding_size": (None, "it keeps its sizes; leave it out"),
    "hidden_size": (None, "it keeps its sizes; leave it out"),
    "num_hidden_layers": (None, "it keeps its sizes; leave it out"),
    "direction": ("forward", "it reads text as it was trained to; set direction to 'forward'"),
}


def build_transformer_language_model(
    train: Dataset,
    validation: Dataset,
    *,
    model: ResolvedModel,
    settings: "LanguageModelSettings",
    context: RunContext,
) -> LanguageModelParts:
    """Prepare a transformer as a language model, without training anything.

    Args:
        train: Column ``text``; what to train on.
        validation: Column ``text``; what to measure on.
        model: Folder or name of any text model of transformers.
        settings: Settings of the stage.
        context: Preset and environment.

    Raises:
        ArtifactError: It is not a model that could guess masked or next tokens, or its weights or tokenizer cannot be
            used.
        ValueError: There is too little text, or a setting has no meaning for the model.
    """
    masked = guesses_masked_tokens(model)
    _refuse_settings(model, settings, masked=masked)
    config = model.config
    tokenizer = load_text_tokenizer(model, config, say=context.tell)
    masking = None
    if masked:
        probability = MASK_PROBABILITY if settings.mask_probability is None else settings.mask_probability
        masking = masking_of(tokenizer, probability=probability, whole_words=settings.whole_word_masking)
    network, handed_on = _load(model, config, context, masked=masked)
    setattr(network.config, NOTES, {"vocabulary": vocabulary_digest(tokenizer)})
    batches = _batches(train, validation, tokenizer, network, settings, context, masking=masking)
    task = Task(
        train_batches=batches["train"],
        objective=TokenObjective(logits_at=masked_logits if masked else causal_logits),
        valid_batches=batches["validation"],
        new_metric=partial(LanguageModelMetric, masked=masked),
    )
    tokens = batches["train"].tokens_per_epoch
    asked = "masked ones are guessed" if masked else "the next one is guessed"
    context.tell(
        f"language model: {tokens:,} tokens to train on in {batches['train'].num_blocks:,} blocks of "
        f"{batches['train'].block_length}, {asked}; vocabulary of {len(tokenizer):,}"
    )
    learner, phases = build_learner(
        network,
        task,
        settings,
        context,
        pretrained=True,
        phases_for=partial(_phases, settings=settings, context=context, tokens=tokens),
        max_blocks=BUNDLES if settings.plan == "gradual" else None,
    )
    return LanguageModelParts(learner, tokenizer, phases, True, tokens, masked, handed_on)


def guesses_masked_tokens(model: ResolvedModel) -> bool:
    """Return whether a model's kind of language modelling is guessing masked tokens; otherwise it is the next one.

    Args:
        model: The model.

    Raises:
        ArtifactError: transformers has no language model of that kind, or it is an encoder with a decoder behind it.
    """
    config = model.loaded
    if config.is_encoder_decoder:
        raise ArtifactError(
            f"{model} is a {config.model_type!r} model, an encoder with a decoder behind it, which guesses neither "
            "masked tokens nor the next one of a text; give an encoder (BERT, ...) or a decoder (GPT-2, ...)"
        )
    decodes = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not decodes:
        return True
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    refuse_image_model(model, config)
    without = ", or train the classifier without this stage (fine_tune_language_model false)"
    raise ArtifactError(
        f"{model} is a {config.model_type!r} model, for which transformers has no language model; give an AWD-LSTM's "
        "folder, a text encoder (BERT, RoBERTa, ...) or a language model (GPT-2, Llama, ...)"
        f"{without if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING else ''}"
    )


def _refuse_settings(model: ResolvedModel, settings: "LanguageModelSettings", *, masked: bool) -> None:
    for name, (default, why) in OF_AWD_LSTM.items():
        value = getattr(settings, name)
        if value != default:
            raise ValueError(f"{name} {value!r} is for an AWD-LSTM; {model} is a {model.model_type!r} model: {why}")
    if settings.tokenizer not in ("auto", "keep"):
        raise ValueError(
            f"tokenizer {settings.tokenizer!r} would make a new vocabulary; {model} is a {model.model_type!r} model "
            "and keeps its own: leave tokenizer out"
        )
    for name in ("mask_probability", "whole_word_masking"):
        if not masked and getattr(settings, name):
            raise ValueError(
                f"{name} {getattr(settings, name)!r} is for models that guess masked tokens; {model} is a "
                f"{model.model_type!r} model and guesses the next one: leave it out"
            )


def _load(model: ResolvedModel, config: Any, context: RunContext, *, masked: bool) -> tuple[Any, dict[str, Tensor]]:
    """Load a language model, with a new head where it has none; also weights that only a classifier has a use for."""
    if any("SequenceClassification" in name for name in config.architectures or []):
        context.tell(
            f"{model} is a classifier: its encoder continues as a language model, its head is left behind; to keep the "
            "head, leave this stage out (fine_tune_language_model false)"
        )
    kind = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    network, found = _loaded(model, kind, config)
    missing = sorted(found["missing_keys"])
    decoder = [name for name, module in network.named_modules() if module is network.get_output_embeddings()]
    if any(f"{name}.weight" in missing for name in decoder) and not config.tie_word_embeddings:
        config.tie_word_embeddings = True  # a new head has no weights of its own to lose
        network, found = _loaded(model, kind, config)
    _zero_new_biases(network, found["missing_keys"])
    if missing:
        output = network.get_output_embeddings()
        tied = output is not None and output.weight is network.get_input_embeddings().weight
        context.tell(
            f"{model} has no whole language-model head ({missing[0]} is missing, {len(missing)} in all): it gets a new "
            f"one{', tied to the embeddings' if tied else ''}"
        )
    if not masked and sees_later_tokens(network):
        raise ArtifactError(
            f"{model} is a {config.model_type!r} model that reads text both ways, so it would read the next token off "
            "instead of guessing it; give a decoder (GPT-2, Llama, ...) or an encoder with a masked language model "
            "(BERT, RoBERTa, ...)"
        )
    network.get_input_embeddings().padding_idx = None  # nothing is padded, and the end of a text learns like the rest
    return network, _handed_on(model, network, config) if found["unexpected_keys"] else {}


def _loaded(model: ResolvedModel, kind: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model of whose weights only the head's may be missing."""
    loaded: Any = load_model(model, kind, config=config, output_loading_info=True)
    network, found = loaded
    encoder = f"{network.base_model_prefix}."
    lost = sorted(key for key in found["missing_keys"] if key.startswith(encoder))
    if lost:
        raise ArtifactError(
            f"the weights of {model} lack {lost[0]} ({len(lost)} in all), so they are not a complete "
            f"{type(network).__name__}: take another save"
        )
    return network, found


def _zero_new_biases(network: Any, missing: Iterable[str]) -> None:
    """Let a new head's biases start at zero; transformers leaves some of them as the memory was that they were put in.

    Those are biases beside a linear layer rather than in it: Longformer's ``lm_head.bias``, FNet's
    ``cls.predictions.bias``.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name in missing:
        if name.endswith("bias") and name in parameters and parameters[name].ndim == 1:
            nn.init.zeros_(parameters[name])


def _handed_on(model: ResolvedModel, network: Any, config: Any) -> dict[str, Tensor]:
    """Return weights of the encoder that the language model leaves out (a pooler), by their names in its folder."""
    loaded: Any = load_model(model, AutoModel, config=config, output_loading_info=True)
    encoder, found = loaded
    known = {*network.base_model.state_dict(), *found["missing_keys"]}
    prefix = network.base_model_prefix
    return {f"{prefix}.{name}": value for name, value in encoder.state_dict().items() if name not in known}


def _batches(
    train: Dataset,
    validation: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    network: Any,
    settings: "LanguageModelSettings",
    context: RunContext,
    *,
    masking: TokenMasking | None,
) -> dict[str, TokenBlockBatches]:
    layout = block_layout(tokenizer, masked=masking is not None)
    block_size = _block_size(settings.block_size, network, tokenizer)
    encoded = {
        name: tokenize_dataset(dataset.select_columns(["text"]), tokenizer, num_proc=settings.num_workers)
        for name, dataset in (("train", train), ("validation", validation))
    }
    blocks = int(read_token_arrays(encoded["train"]).lengths.sum()) // block_size
    fitting = max(LEAST_BATCH, min(context.recipe.batch_size, blocks // STEPS_PER_EPOCH))
    wanted = settings.batch_size or fitting
    common: dict[str, Any] = {
        "block_size": block_size,
        "batch_size": wanted,
        "layout": layout,
        **context.shares(),
    }
    hidden = None if masking is None else masking.without_chance()
    return {
        "train": TokenBlockBatches(encoded["train"], masking=masking, seed=context.seed, **common),
        "validation": TokenBlockBatches(
            encoded["validation"], masking=hidden, seed=EVALUATION_SEED, shuffle=False, **common
        ),
    }


def _block_size(given: int | None, network: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    known = [length for length in (longest_input(network), longest_text(tokenizer)) if length is not None]
    if given is None:
        return min([BLOCK_SIZE, *known])
    if known and given > min(known):
        raise ValueError(
            f"block_size {given} is more than the model reads, {min(known)} tokens; take {min(known)} or less"
        )
    return given


def _phases(num_groups: int, *, settings: "LanguageModelSettings", context: RunContext, tokens: int) -> list[Phase]:
    phases = context.recipe.lm_phases(num_groups, settings.frozen_epochs, settings.epochs, settings.lr)
    last = phases[-1]
    lr = settings.lr or max(last.lrs)
    if settings.plan == "pretrain":
        phases = full(num_groups, lr=lr, epochs=last.epochs, decay=1.0, schedule=Schedule.one_cycle())
    elif settings.plan == "full":
        phases = [dataclasses.replace(last, name="full")]
    elif settings.plan == "gradual":
        frozen = settings.frozen_epochs or 1
        unfreezing = gradual_unfreezing(
            num_groups, lr=lr, epochs_per_phase=frozen, final_epochs=last.epochs, schedule=last.schedule
        )
        phases = [dataclasses.replace(phase, lrs=last.lrs) for phase in unfreezing]
    if settings.frozen_epochs is not None and len(phases) == 1:
        raise ValueError(
            f"frozen_epochs {settings.frozen_epochs} has no meaning where all layer groups train from the start; leave "
            "it out, or set plan to 'gradual'"
        )
    if settings.epochs is None:
        scaled = scale_epochs(phases[-1].epochs, size=tokens, full_size=IMDB_TOKENS)
        phases[-1] = dataclasses.replace(phases[-1], epochs=scaled)
    return phases
