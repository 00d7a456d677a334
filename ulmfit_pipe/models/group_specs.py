"""Which module-name prefixes make up each layer group, by architecture; input side first.

The language model's tied embedding is in its last group (it is the decoder), the classifier's in its first.
Source: fastai 2.8 `awd_lstm_lm_split` and `awd_lstm_clas_split`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LayerGroupSpec:
    """A layer group's name and the module-name prefixes of its parameters."""

    name: str
    prefixes: tuple[str, ...]


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


def layer_group_specs(model: nn.Module) -> list[LayerGroupSpec]:
    """Return the layer groups of a model, input side first.

    Args:
        model: A model whose class, or a base class of it, is in `SPECS_BY_CLASS`.

    Raises:
        ValueError: The architecture is not listed.
    """
    for base in type(model).__mro__:
        if base.__name__ in SPECS_BY_CLASS:
            return SPECS_BY_CLASS[base.__name__](model)
    raise ValueError(
        f"no layer groups are known for {type(model).__name__}; known are {', '.join(sorted(SPECS_BY_CLASS))}. "
        "Give the groups yourself as a list of LayerGroupSpec(name, prefixes), input side first"
    )
