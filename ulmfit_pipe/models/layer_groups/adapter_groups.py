"""Models with adapters of peft in them (LoRA, IA3, ...): which parameters are the adapters', which stay frozen.

An adapter belongs to the layer it sits in, so that the layer groups are those of the model below. Of each group only
the adapters may move: the pretrained weights stay as peft froze them, whatever is unfrozen. peft itself is not imported
(it is the optional extra ``[adapters]``); its layers are known by the attributes that it documents for their authors.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ulmfit_pipe.models.layer_groups.spec import GIVE_THEM_YOURSELF


def has_adapters(model: nn.Module) -> bool:
    """Whether peft has put adapters, or a prompt, into a model or a part of it."""
    return any(_is_adapter_layer(module) or _is_managed(module) for module in model.modules())


def check_adapters(model: nn.Module) -> None:
    """Check that a model's adapters sit in its layers.

    Args:
        model: A model of which `has_adapters` is true.

    Raises:
        ValueError: They are before the first layer (prompt tuning and its kin), or none is active.
    """
    if any(len(getattr(module, "prompt_encoder", ())) for module in model.modules()):
        raise ValueError(
            "the model is tuned by prompts (peft's prompt learning), which are in no layer, so there is nothing to "
            "unfreeze layer by layer; take adapters that sit in the layers (LoraConfig, IA3Config), or "
            f"{GIVE_THEM_YOURSELF}"
        )
    if not _adapter_ids(model):
        known = sorted({name for part in _managed_parts(model) for name in part.peft_config})
        raise ValueError(
            f"no weights of an active adapter were found in the model (its adapters: {', '.join(known) or 'none'}), so "
            "nothing would train; choose one with model.set_adapter(name), or merge them with merge_and_unload()"
        )


def frozen_base_names(model: nn.Module) -> frozenset[str]:
    """Name the parameters below the adapters, which must stay as they are; none where there are no adapters.

    What is outside the part that peft manages, such as a head put on afterwards, is not among them, nor what
    ``modules_to_save`` and ``bias`` of the adapter's configuration say is trained.
    """
    if not has_adapters(model):
        return frozenset()
    managed = _managed_parts(model) or [model]
    below = {id(parameter) for part in managed for parameter in part.parameters()} - _adapter_ids(model)
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in below)


def _is_adapter_layer(module: Any) -> bool:
    """Whether a module is one of peft's layers: a ``BaseTunerLayer`` or an ``AuxiliaryTrainingWrapper``."""
    return isinstance(getattr(module, "adapter_layer_names", None), tuple) and hasattr(module, "active_adapters")


def _is_managed(module: Any) -> bool:
    """Whether a module is what peft made out of a model, or a model that has adapters added."""
    return isinstance(getattr(module, "peft_config", None), dict)


def _managed_parts(module: Any) -> list[Any]:
    if _is_managed(module):
        return [module]
    return [part for child in module.children() for part in _managed_parts(child)]


def _adapter_ids(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that peft trains: the active adapters', and the biases set to train."""
    found = {id(parameter) for module in model.modules() for parameter in _active_weights(module)}
    for part in _managed_parts(model):
        for adapter in {name for module in part.modules() for name in _active_names(module)}:
            found |= {id(bias) for bias in _trained_biases(part, adapter)}
    return found


def _active_names(module: Any) -> list[str]:
    return list(module.active_adapters) if _is_adapter_layer(module) else []


def _active_weights(module: Any) -> Iterator[nn.Parameter]:
    """Yield the weights of an adapter layer's active adapters; those that peft itself holds still are left out."""
    for adapter in _active_names(module):
        still = getattr(module, "frozen_peft_weight_names", {}).get(adapter, ())
        for attribute in set(module.adapter_layer_names) - set(still):
            owner: Any = module
            for name in attribute.split("."):  # a wrapper's attribute may be one of what it wraps
                owner = getattr(owner, name, {})
            weights = owner[adapter] if adapter in owner else None
            if isinstance(weights, nn.Parameter):
                yield weights
            elif isinstance(weights, nn.Module):
                yield from weights.parameters()


def _trained_biases(part: Any, adapter: str) -> Iterator[nn.Parameter]:
    """Yield the biases that an adapter's configuration has trained: ``"all"``, or ``"lora_only"`` and its like."""
    which = getattr(part.peft_config.get(adapter), "bias", "none")
    if which == "all":
        for name, parameter in part.named_parameters():  # copies for modules_to_save are not meant
            path = name.split(".")
            if path[-1] == "bias" and not {"original_module", "modules_to_save"} & {*path}:
                yield parameter
    elif isinstance(which, str) and which.endswith("_only"):
        biases = (getattr(module, "bias", None) for module in part.modules() if _is_adapter_layer(module))
        yield from (bias for bias in biases if isinstance(bias, nn.Parameter))
