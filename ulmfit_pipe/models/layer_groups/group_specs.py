"""The layer groups of any model that is supported, input side first, and the parameters that no training moves."""

from torch import nn

from ulmfit_pipe.models.layer_groups.adapter_groups import check_adapters, frozen_base_names, has_adapters
from ulmfit_pipe.models.layer_groups.awd_lstm_groups import SPECS_BY_CLASS
from ulmfit_pipe.models.layer_groups.image_groups import image_group_specs
from ulmfit_pipe.models.layer_groups.spec import LayerGroupSpec
from ulmfit_pipe.models.layer_groups.transformer_groups import fixed_names, pretrained_part, transformer_group_specs


def layer_group_specs(model: nn.Module, *, max_blocks: int | None = None) -> list[LayerGroupSpec]:
    """Return the layer groups of a model, input side first.

    Args:
        model: A model whose class, or a base class of it, is in `SPECS_BY_CLASS`, or any text or image model of
            transformers, with or without adapters of peft.
        max_blocks: Most groups that the blocks of a text transformer make up; see `transformer_group_specs`.

    Raises:
        ValueError: The architecture has no known groups, or no blocks to bundle.
    """
    for base in type(model).__mro__:
        if base.__name__ in SPECS_BY_CLASS:
            _refuse_bundles(model, max_blocks)
            return SPECS_BY_CLASS[base.__name__](model)
    if has_adapters(model):
        check_adapters(model)
    inner = pretrained_part(model)
    if inner.main_input_name == "pixel_values":
        _refuse_bundles(model, max_blocks)
        path = next(f"{name}." if name else "" for name, module in model.named_modules() if module is inner)
        specs = image_group_specs(inner)
        return [LayerGroupSpec(spec.name, tuple(path + prefix for prefix in spec.prefixes)) for spec in specs]
    return transformer_group_specs(model, max_blocks=max_blocks)


def _refuse_bundles(model: nn.Module, max_blocks: int | None) -> None:
    if max_blocks is not None:
        raise ValueError(
            f"max_blocks={max_blocks!r} bundles the blocks of a text transformer, not of {type(model).__name__}; "
            "leave it out"
        )


def fixed_parameter_names(model: nn.Module) -> frozenset[str]:
    """Name the parameters that no training may move, whatever is unfrozen.

    They are the pretrained weights below adapters of peft, and what an architecture computes or never reaches
    (`transformer_groups.Arrangement.fixed`).
    """
    return fixed_names(model) | frozen_base_names(model)
