"""What differs between an AWD-LSTM and a transformer in the two stages, as one interface."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ulmfit_pipe.stages.presets import AWD_LSTM
from ulmfit_pipe.text.families.awd_lstm import build_awd_lstm_classifier, build_awd_lstm_language_model
from ulmfit_pipe.text.families.transformer_classifier import build_transformer_classifier, count_transformer_groups
from ulmfit_pipe.text.families.transformer_language_model import build_transformer_language_model
from ulmfit_pipe.text.language_model_parts import LanguageModelParts
from ulmfit_pipe.text.truncation import Reading, choose_reading, describe_long, saved_reading


@dataclass(frozen=True)
class TextFamily:
    """The functions of a family; both families' take the same arguments.

    Attributes:
        build_language_model: Makes the language-model stage's parts.
        build_classifier: Loads a model as a classifier of a table's labels, with its tokenizer.
        count_layer_groups: Counts a classifier's layer groups without its weights.
        choose_reading: Returns how the settings want documents read, and keeps it in the classifier's configuration.
        saved_reading: Returns how a saved classifier reads.
        describe_long: Returns lines on texts that are longer than what is read at once.
    """

    build_language_model: Callable[..., LanguageModelParts]
    build_classifier: Callable[..., tuple[Any, PreTrainedTokenizerBase]]
    count_layer_groups: Callable[..., int]
    choose_reading: Callable[..., Reading]
    saved_reading: Callable[..., Reading]
    describe_long: Callable[..., list[str]]


_AWD_LSTM = TextFamily(  # reads documents whole, token after token
    build_language_model=build_awd_lstm_language_model,
    build_classifier=build_awd_lstm_classifier,
    count_layer_groups=lambda model, _settings: model.loaded.num_hidden_layers + 2,  # embeddings, LSTM layers, head
    choose_reading=lambda settings, *_network, **_names: Reading(max_length=settings.max_length),
    saved_reading=lambda *_network: Reading(),
    describe_long=lambda *_batches, **_names: [],
)
_TRANSFORMER = TextFamily(
    build_language_model=build_transformer_language_model,
    build_classifier=build_transformer_classifier,
    count_layer_groups=count_transformer_groups,
    choose_reading=choose_reading,
    saved_reading=saved_reading,
    describe_long=describe_long,
)


def family_of(model_type: str) -> TextFamily:
    """Return the family of an architecture, by transformers' name of it."""
    return _AWD_LSTM if model_type == AWD_LSTM else _TRANSFORMER
