"""The AWD-LSTM's part of the classifier stage: a head on the encoder of a language model, or a saved classifier."""

from functools import partial
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForSequenceClassification
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import load_model, load_tokenizer
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.presets import with_dropouts
from ulmfit_pipe.stages.pretrained_files import refuse_larger_network

TRANSFORMERS_ONLY = ("long_documents", "window_length", "window_overlap", "block_groups")


def build_awd_lstm_classifier(
    model: str, config: Any, labels: dict[str, Any], settings: "ClassifierSettings", context: RunContext
) -> tuple[AwdLstmForSequenceClassification, UlmfitTokenizer]:
    """Return a classifier with the preset's dropouts, and its tokenizer.

    Args:
        model: Folder or name of a language model or classifier.
        config: Its configuration; not changed.
        labels: The configuration's entries that say what the labels are.
        settings: Numbers of the stage.
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
                "documents whole and has a layer group a layer: leave it out (max_length cuts documents)"
            )
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
