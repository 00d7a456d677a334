"""Stand-ins for modules that need not run: outputs of zeros, of the shapes that the module itself would give."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit_pipe.training.frozen_cache.tensor_trees import Place, leaves_of, tensors_of, with_tensors

PLAIN = (type(None), bool, int, float, str)  # leaves of an output that are the same in every call

Source = tuple[Any, ...]  # where a size comes from: ("size", number) or ("input", place, axis)


@dataclass
class _Kind:
    """What calls with inputs of the same number of dimensions gave out.

    Attributes:
        output: One output, its tensors emptied.
        sources: For each axis of each tensor of the output, what could explain its size in every call seen; None where
            the output is not always built alike.
    """

    output: Any
    sources: dict[Place, list[set[Source]]] | None


class OutputShapes:
    """The shapes of a module's outputs as a function of those of its inputs, learned from calls.

    An output's size is taken for an input's size, or for a number, where that held in every call. Where two
    explanations disagree there is no answer until another call settles it.

    Attributes:
        strange: What an output held beside tensors and plain values, which cannot be repeated; None if nothing.
    """

    def __init__(self) -> None:
        self.strange: str | None = None
        self._kinds: dict[tuple[Any, ...], _Kind] = {}

    def learn(self, inputs: dict[Place, Tensor], output: Any) -> None:
        """Learn from a call."""
        for _, leaf in leaves_of(output):
            if not isinstance(leaf, (*PLAIN, Tensor)):
                self.strange = type(leaf).__name__
        found = {
            place: [_sources(size, inputs) for size in tensor.shape] for place, tensor in tensors_of(output).items()
        }
        known = self._kinds.get(_kind_of(inputs))
        emptied = with_tensors(output, lambda _, tensor: tensor.new_empty(0))
        sources = found if known is None else _common(known.sources, found)
        self._kinds[_kind_of(inputs)] = _Kind(emptied, sources)

    def zeros(self, inputs: dict[Place, Tensor]) -> tuple[Any] | None:
        """Return the output of a call as zeros (in a tuple of one), or None where its shapes are not certain."""
        kind = self._kinds.get(_kind_of(inputs))
        if self.strange is not None or kind is None or kind.sources is None:
            return None
        shapes: dict[Place, list[int]] = {}
        for place, axes in kind.sources.items():
            sizes = [{_size(source, inputs) for source in axis} for axis in axes]
            if any(len(explained) != 1 for explained in sizes):
                return None
            shapes[place] = [size for explained in sizes for size in explained]
        return (with_tensors(kind.output, lambda place, like: like.new_zeros(shapes[place])),)


def _kind_of(inputs: dict[Place, Tensor]) -> tuple[Any, ...]:
    return tuple((place, tensor.ndim, tensor.dtype, tensor.device) for place, tensor in inputs.items())


def _sources(size: int, inputs: dict[Place, Tensor]) -> set[Source]:
    equal = {
        ("input", place, axis)
        for place, tensor in inputs.items()
        for axis, other in enumerate(tensor.shape)
        if other == size
    }
    return {("size", size), *equal}


def _common(
    known: dict[Place, list[set[Source]]] | None, found: dict[Place, list[set[Source]]]
) -> dict[Place, list[set[Source]]] | None:
    """Return what explains both, or None where two outputs are built differently."""
    if known is None or {place: len(axes) for place, axes in known.items()} != {
        place: len(axes) for place, axes in found.items()
    }:
        return None
    return {place: [old & new for old, new in zip(known[place], axes, strict=True)] for place, axes in found.items()}


def _size(source: Source, inputs: dict[Place, Tensor]) -> int:
    return source[1] if source[0] == "size" else inputs[source[1]].shape[source[2]]


class StandIn:
    """A module whose forward is replaced while it is installed.

    Args:
        name: What the module is called, for messages.
        module: The module.

    Attributes:
        shapes: What is known of its outputs; every call that runs teaches it.
        active: Give zeros instead of running, where their shapes are known.
        look: Is shown each call's arguments, or None.
        change: Changes each output before it is given out, or None.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.shapes = OutputShapes()
        self.active = False
        self.look: Callable[[Any], None] | None = None
        self.change: Callable[[Any], Any] | None = None
        self._own_forward: Any = None
        self._forward: Callable[..., Any] = module.forward

    def install(self) -> None:
        """Take the place of the module's forward."""
        self._own_forward = self.module.__dict__.get("forward")
        self._forward = self.module.forward

        @functools.wraps(self._forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._call(args, kwargs)

        self.module.forward = forward

    def remove(self) -> None:
        """Give the module its own forward back."""
        self.module.__dict__.pop("forward")
        if self._own_forward is not None:
            self.module.forward = self._own_forward

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.look is not None:
            self.look((args, kwargs))
        inputs = tensors_of((args, kwargs))
        if self.active and (zeros := self.shapes.zeros(inputs)) is not None:
            return zeros[0]
        output = self._forward(*args, **kwargs)
        self.shapes.learn(inputs, output)
        return output if self.change is None else self.change(output)


def without_numbers(tree: Any) -> Any:
    """Return a tree whose floating-point tensors are all NaN; whatever is computed from them shows it."""
    return with_tensors(tree, lambda _, value: torch.full_like(value, torch.nan) if _holds_nan(value) else value)


def shows_nan(value: Tensor) -> bool:
    """Return whether a tensor has a NaN anywhere."""
    return _holds_nan(value) and bool(value.isnan().any())


def _holds_nan(value: Tensor) -> bool:
    return value.is_floating_point() and value.numel() > 0
