"""A transformer's part of the classifier stage: its own head, or one on pooled outputs, on any text model's weights.

With its own head a saved classifier is plain transformers: ``AutoModelForSequenceClassification`` loads it where
ulmfit_pipe is not installed.
"""

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from tokenizers.normalizers import Lowercase, Prepend, Sequence
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
)

from ulmfit_pipe.data.text.pretrained_tokenizers import special_tokens_of, vocabulary_digest
from ulmfit_pipe.models.heads.pooling_classifier import (
    MODEL_TYPE,
    PoolingClassifierConfig,
    PoolingForSequenceClassification,
    backbone_options,
)
from ulmfit_pipe.models.sentence_encoders import SentenceEncoder, SentenceEncoderError, read_sentence_encoder
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import (
    ArtifactError,
    ResolvedModel,
    load_model,
    load_text_tokenizer,
    refuse_image_model,
)
from ulmfit_pipe.stages.classifier_labels import is_text_classifier
from ulmfit_pipe.stages.config_notes import note
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.pretrained_files import find_beside, refuse_larger_network
from ulmfit_pipe.stages.saved_learner import groups_of

POOLINGS: dict[str, Literal["concat", "mean"]] = {"concat-pooling": "concat", "mean-pooling": "mean"}  # by head


@dataclass(frozen=True)
class Head:
    """Which head a classifier gets.

    Attributes:
        name: As the setting names it; ``own`` for the architecture's.
        pooling: Entries of `PoolingClassifierConfig` for a head on pooled outputs; empty for the architecture's own.
        encoder: How a sentence encoder was made to be read, where the head is chosen by that.
    """

    name: str
    pooling: dict[str, Any] = field(default_factory=dict)
    encoder: SentenceEncoder | None = None


def choose_head(model: ResolvedModel, settings: "ClassifierSettings") -> Head:
    """Return the head that the settings ask for; auto reads a sentence encoder as it was made, others have their own.

    Args:
        model: Folder or name of any text model of transformers.
        settings: Settings of the stage.

    Raises:
        ArtifactError: A sentence encoder's files cannot be read, or name what a classifier here does not have.
    """
    config = model.loaded
    if settings.head in POOLINGS:
        return Head(settings.head, {"pooling": POOLINGS[settings.head]})
    if settings.head == "own" or _head_of(config) is not None:
        return Head("own")
    try:
        encoder = read_sentence_encoder(partial(find_beside, model))
    except SentenceEncoderError as error:
        raise ArtifactError(
            f"{model} is a sentence encoder whose way of reading is not known here ({error}); set head to "
            "'mean-pooling', 'concat-pooling' or 'own', or give another encoder"
        ) from error
    if encoder is not None:
        pooling = {"pooling": encoder.pooling, "normalize": encoder.normalize}
        return Head(f"{encoder.pooling}-pooling", pooling, encoder)
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return Head("own")
    return Head("concat-pooling", {"pooling": "concat"})


def build_transformer_classifier(
    model: ResolvedModel,
    labels: dict[str, Any],
    settings: "ClassifierSettings",
    context: RunContext,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a classifier on a transformer, and its tokenizer.

    Args:
        model: Folder or name of any text model of transformers: an encoder, a language model, a classifier.
        labels: The configuration's entries on the labels.
        settings: Settings of the stage.
        context: Logs what the tokenizer lacks and which weights start at random.

    Raises:
        ArtifactError: It is not a text model that could classify, or its weights or tokenizer cannot be used.
        ValueError: A setting has no meaning for a transformer.
    """
    _refuse_settings_of_awd_lstm(model, settings)
    head = choose_head(model, settings)
    _check_architecture(model, settings, head)
    config = model.config
    refuse_larger_network(model, partial(_empty_classifier, config, head))
    tokenizer = load_text_tokenizer(model, config, say=context.tell)
    config.dtype = torch.float32  # some are saved in half precision, which is not a type to train weights in
    text_config = config.get_text_config()
    text_config.dtype = torch.float32
    if getattr(text_config, "use_cache", False):
        text_config.use_cache = False  # of keys and values, for text generation
    for name, value in labels.items():
        setattr(config, name, value)
    if is_text_classifier(model.loaded) and not settings.new_head:
        network = _saved_classifier(model, config, settings)
    elif head.pooling and config.model_type != MODEL_TYPE:
        network = _pooling_classifier(model, config, labels, tokenizer, head, from_scratch=settings.from_scratch)
    elif settings.new_head and _head_of(config) is not None and not settings.from_scratch:
        network = _with_new_head(model, config)
    else:
        network = _own_classifier(model, config, settings, context)
    note(network.config, vocabulary=vocabulary_digest(tokenizer))
    if head.encoder is not None:
        _read_as_made(head.encoder, network, tokenizer)
        context.tell(f"{model} is a sentence encoder, read as it was made: {head.encoder.describe()} (head: auto)")
    return network, tokenizer


def _read_as_made(encoder: SentenceEncoder, network: Any, tokenizer: Any) -> None:
    """Have texts read as a sentence encoder was made for: its longest text, its prompt, its lower case.

    The prompt and the lower case become part of the tokenizer, which is saved with the classifier.
    """
    if encoder.max_length is not None:
        note(network.config, usual_length=encoder.max_length)
    first = [*([Lowercase()] if encoder.lowercase else []), *([Prepend(encoder.prompt)] if encoder.prompt else [])]
    if first:
        backend = tokenizer.backend_tokenizer
        backend.normalizer = Sequence([*first, *([backend.normalizer] if backend.normalizer is not None else [])])


def count_transformer_groups(model: ResolvedModel, settings: "ClassifierSettings") -> int:
    """Return how many layer groups the classifier has that `build_transformer_classifier` makes.

    Args:
        model: Any text model of transformers; its weights are not read.
        settings: Settings of the stage.

    Raises:
        ArtifactError: It is not a text model that could classify.
        ValueError: Its layer groups cannot be found.
    """
    head = choose_head(model, settings)
    _check_architecture(model, settings, head)
    return len(groups_of(_empty_classifier(model.loaded, head), max_blocks=settings.block_groups))


def _empty_classifier(config: Any, head: Head) -> Any:
    with torch.device("meta"):
        if head.pooling and config.model_type != MODEL_TYPE:
            return PoolingForSequenceClassification(
                PoolingClassifierConfig(encoder_config=copy.deepcopy(config), **head.pooling)
            )
        return AutoModelForSequenceClassification.from_config(copy.deepcopy(config), trust_remote_code=False)


def _refuse_settings_of_awd_lstm(model: ResolvedModel, settings: "ClassifierSettings") -> None:
    kind = model.loaded.get_text_config().model_type
    if settings.drop_mult != 1:
        raise ValueError(
            f"drop_mult {settings.drop_mult!r} multiplies the AWD-LSTM's five dropouts; {model} is a {kind!r} model "
            "with dropouts of its own: leave drop_mult out, or change them in its config.json"
        )
    if settings.gradient_window is not None:
        raise ValueError(
            f"gradient_window {settings.gradient_window} is for an AWD-LSTM's recurrent state; {model} is "
            f"a {kind!r} model: leave it out, max_length bounds what is read of a document"
        )


def _check_architecture(model: ResolvedModel, settings: "ClassifierSettings", head: Head) -> None:
    config, kind = model.loaded, model.model_type
    if config.is_encoder_decoder:
        raise ArtifactError(
            f"{model} is a {kind!r} model, an encoder with a decoder behind it: their layers are in no one order from "
            "input to output that groups could be unfrozen in; give an encoder (BERT, ...) or a decoder (GPT-2, ...)"
        )
    has_own_head = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    reads_text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if not has_own_head and not (reads_text and type(config) in MODEL_MAPPING):
        refuse_image_model(model, config)
        raise ArtifactError(
            f"{model} is a {kind!r} model, which transformers cannot classify texts with; give an AWD-LSTM's folder, a "
            "text encoder (BERT, RoBERTa, ...) or a language model (GPT-2, Llama, ...)"
        )
    if not has_own_head and head.name == "own":
        raise ArtifactError(
            f"{model} is a {kind!r} model, for which transformers has no classifier with a head of its own; set head "
            "to 'concat-pooling' or 'mean-pooling'"
        )
    its_own = None if settings.new_head and config.model_type != MODEL_TYPE else _head_of(config)
    if settings.head in POOLINGS and its_own not in (None, settings.head):
        what = "a head of its own" if its_own == "own" else f"a {its_own} head"
        raise ArtifactError(
            f"{model} is a classifier with {what}, which cannot become a {settings.head} one; give the folder of its "
            "encoder or language model, or leave head out to keep the head it has"
        )


def _head_of(config: Any) -> str | None:
    """Return a saved classifier's head as the setting names it; None of a model that is not a classifier."""
    if config.model_type == MODEL_TYPE:
        return f"{config.pooling}-pooling"
    return "own" if is_text_classifier(config) else None


def _saved_classifier(model: ResolvedModel, config: Any, settings: "ClassifierSettings") -> Any:
    if settings.from_scratch:
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    return load_model(model, AutoModelForSequenceClassification, config=config)


def _with_new_head(model: ResolvedModel, config: Any) -> Any:
    """Put a new head of a saved classifier's own kind on its encoder; all that is not the encoder starts at random."""
    saved: Any = load_model(model, AutoModelForSequenceClassification)
    network = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    if network.base_model is network:
        raise ArtifactError(
            f"{model} is a {config.model_type!r} model, whose encoder is mixed with its head; give the encoder's "
            "own folder, or the same labels"
        )
    network.base_model.load_state_dict(saved.base_model.state_dict())
    return network


def _own_classifier(model: ResolvedModel, config: Any, settings: "ClassifierSettings", context: RunContext) -> Any:
    """Put the architecture's own head on the encoder; only the head (and the pooler below it) may start at random."""
    if settings.from_scratch:
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    loaded: Any = load_model(model, AutoModelForSequenceClassification, config=config, output_loading_info=True)
    network, found = loaded
    encoder = f"{network.base_model_prefix}."
    missing = sorted(key for key in found["missing_keys"] if key.startswith(encoder))
    lost = [key for key in missing if "pooler" not in key]
    if lost:
        raise ArtifactError(
            f"the weights of {model} lack {lost[0]} ({len(lost)} in all), so they are not a complete "
            f"{type(network).__name__}: take another save"
        )
    if missing:
        context.tell(f"the weights of {model} lack the pooler ({missing[0]}): it starts at random, as the head does")
    return network


def _pooling_classifier(
    model: ResolvedModel,
    config: Any,
    labels: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    head: Head,
    *,
    from_scratch: bool,
) -> PoolingForSequenceClassification:
    if type(config).__module__.startswith("transformers_modules"):
        raise ArtifactError(
            f"{model} comes with code of its own, which a classifier with a {head.name} head would not find again "
            "when it is loaded; leave head out for the model's own"
        )
    prefix = special_tokens_of(tokenizer).prefix
    reads_first = bool(prefix) and prefix[0] == tokenizer.cls_token_id
    whole = PoolingClassifierConfig(
        encoder_config=config,
        **head.pooling,
        summary="first" if reads_first else "last",
        **labels,
    )
    network = _tried(model, whole, head=head.name)
    if not from_scratch:
        encoder = load_model(model, AutoModel, config=config, **backbone_options(config))
        network.backbone.load_state_dict(encoder.state_dict())
    return network


def _tried(model: ResolvedModel, config: PoolingClassifierConfig, *, head: str) -> PoolingForSequenceClassification:
    """Build a pooling classifier and let it read two tokens: some backbones output what it cannot pool.

    Reformer's outputs are twice as wide as in its configuration; Perceiver reads no ``input_ids``.
    """
    try:
        network = PoolingForSequenceClassification(config)
        with torch.no_grad():
            network.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long), attention_mask=torch.ones(1, 2))
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        kind = config.get_text_config().model_type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"{model} is a {kind!r} model, whose outputs {head} cannot take ({reason}); leave head out for its own, or "
            "give another encoder"
        ) from error
    network.train()
    return network
