"""Layer groups of the AWD-LSTM's three models, input side first.

The language model's tied embedding is in its last group (it is the decoder), the classifier's in its first.
Source: fastai 2.8 `awd_lstm_lm_split` and `awd_lstm_clas_split`.
"""

from collections.abc import Callable

from torch import nn

from ulmfit_pipe.models.layer_groups.spec import LayerGroupSpec


def _lstm_groups(model: nn.Module, prefix: str) -> list[LayerGroupSpec]:
    layers = model.get_submodule(f"{prefix}layers")
    return [LayerGroupSpec(f"lstm{i}", (f"{prefix}layers.{i}",)) for i, _ in enumerate(layers.children())]


def _awd_lstm_backbone(model: nn.Module) -> list[LayerGroupSpec]:
    return [LayerGroupSpec("embeddings", ("embeddings",)), *_lstm_groups(model, "")]


def _awd_lstm_language_model(model: nn.Module) -> list[LayerGroupSpec]:
    embeddings = LayerGroupSpec("embeddings", ("model.embeddings", "lm_head"))
    return [*_lstm_groups(model, "model."), embeddings]


def _awd_lstm_classifier(model: nn.Module) -> list[LayerGroupSpec]:
    embeddings = LayerGroupSpec("embeddings", ("model.embeddings",))
    return [embeddings, *_lstm_groups(model, "model."), LayerGroupSpec("head", ("classifier",))]


SPECS_BY_CLASS: dict[str, Callable[[nn.Module], list[LayerGroupSpec]]] = {
    "AwdLstmModel": _awd_lstm_backbone,
    "AwdLstmForCausalLM": _awd_lstm_language_model,
    "AwdLstmForSequenceClassification": _awd_lstm_classifier,
}
