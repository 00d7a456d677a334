"""Gradient checkpointing: a layer keeps its inputs alone, and runs once more in the backward pass for the rest.

Memory for time: a third more of it where everything trains, none where nothing is thawed, since a layer that no
gradient flows through is not run again. The layers are those that transformers (and the AWD-LSTM) mark by an attribute
``gradient_checkpointing``; gradients are the same, dropout masks included.

Source: Chen et al. 2016; torch's non-reentrant ``checkpoint``. The reentrant one gives a thawed layer above a frozen
prefix no gradient.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ulmfit_pipe.training.frozen_cache.tensor_trees import tensors_of
from ulmfit_pipe.training.layer_groups import is_norm

SWITCH, FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"  # transformers' names


@contextlib.contextmanager
def checkpointed(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Let a model's layers run again in the backward pass, for the time of a block.

    Args:
        model: The bare model, frozen as the phase has it.
        enabled: False changes nothing.

    Raises:
        ValueError: The model has no layer that can.
    """
    layers = [module for module in model.modules() if enabled and hasattr(module, SWITCH)]
    if enabled and not layers:
        raise ValueError(
            f"gradient_checkpointing: no layer of {type(model).__name__} can be run again in the backward pass "
            f"(transformers marks those that can by an attribute {SWITCH!r}); leave it out"
        )
    before = [{name: layer.__dict__[name] for name in (SWITCH, FUNCTION) if name in layer.__dict__} for layer in layers]
    for layer in layers:
        setattr(layer, FUNCTION, partial(run_again_if_needed, layer))
        setattr(layer, SWITCH, True)
    try:
        yield
    finally:
        for layer, values in zip(layers, before, strict=True):
            for name in (SWITCH, FUNCTION):
                layer.__dict__.pop(name, None)
            layer.__dict__.update(values)


def run_again_if_needed(layer: nn.Module, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Run a layer's function on arguments, checkpointed if a gradient will flow through it.

    A batch norm that takes running statistics would take those of a batch twice; what holds one is run as ever.

    Args:
        layer: Who runs; where the function is another module's method, that module counts.
        function: Its forward function, with further arguments bound by ``functools.partial`` perhaps.
        *args: Arguments.
        **named: Named arguments.
    """
    owner = getattr(function, "__self__", layer)
    owner = owner if isinstance(owner, nn.Module) else layer
    if not torch.is_grad_enabled() or _moves_statistics(owner):
        return function(*args, **named)
    trains = any(parameter.requires_grad for parameter in owner.parameters())
    given = (args, named, getattr(function, "args", ()), getattr(function, "keywords", {}))
    if not trains and not any(tensor.requires_grad for tensor in tensors_of(given).values()):
        return function(*args, **named)
    return checkpoint(function, *args, use_reentrant=False, **named)


def _moves_statistics(module: nn.Module) -> bool:
    return any(
        part.training and is_norm(part) and any(True for _ in part.buffers(recurse=False)) for part in module.modules()
    )
