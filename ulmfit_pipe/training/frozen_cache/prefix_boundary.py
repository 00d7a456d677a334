"""Where the frozen groups of a model end: at the first module of a trained group that a forward pass calls.

The first floating-point tensor that goes into it is kept, and modules of frozen groups then return NaN. If their
outputs reached the model's another way, its scores would be NaN in the first batches trained from what was kept, which
`frozen_prefix` compares with the whole model. Zeros could pass that: a bias of attention that starts near 0 does.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit_pipe.training.compute.tensor_trees import Place, leaves_of, tensors_of, with_tensors
from ulmfit_pipe.training.frozen_cache.row_tensors import PrefixError
from ulmfit_pipe.training.layer_groups import LayerGroup, is_norm, train_flags_kept, train_mode
from ulmfit_pipe.training.records import TrainingOptions

PLAIN = (type(None), bool, int, float, str)  # leaves of an output that are the same in every call

Sources = dict[Place, list[set[Any]]]  # per tensor and axis, what gives its size: a number, or an input's (path, axis)


@dataclass
class FrozenPart:
    """A module that can be left out: it then returns NaN, of shapes that are learned from the calls that run.

    An output's size is taken for an input's size, or for a number, where that held in every call. Where two
    explanations disagree the module runs.
    """

    name: str
    module: nn.Module
    _known: dict[Any, tuple[Any, Sources]] = field(default_factory=dict)  # per kind of inputs, an output and its sizes

    @contextlib.contextmanager
    def replaced(self, *, left_out: bool) -> Iterator[None]:
        """Learn from the module's calls or, if it is left out, return NaN where their shapes are certain."""
        own, forward = self.module.__dict__.get("forward"), self.module.forward

        @functools.wraps(forward)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            inputs = tensors_of((args, kwargs))
            if left_out and (unknown := self._unknown(inputs)) is not None:
                return unknown
            output = forward(*args, **kwargs)
            self._learn(inputs, output)
            return output

        self.module.forward = replacement
        try:
            yield
        finally:
            self.module.__dict__.pop("forward")
            if own is not None:
                self.module.forward = own

    def _learn(self, inputs: dict[Place, Tensor], output: Any) -> None:
        strange = [type(leaf).__name__ for _, leaf in leaves_of(output) if not isinstance(leaf, (*PLAIN, Tensor))]
        if strange:
            raise PrefixError(f"{self.name} returns a {strange[0]} (use_cache makes some)")
        found = {place: [_sources(size, inputs) for size in value.shape] for place, value in tensors_of(output).items()}
        _, known = self._known.get(_kind(inputs), (None, found))
        if [(place, len(axes)) for place, axes in known.items()] != [
            (place, len(axes)) for place, axes in found.items()
        ]:
            raise PrefixError(f"{self.name} does not return the same kind of output each time")
        common = {place: [old & new for old, new in zip(known[place], found[place], strict=True)] for place in found}
        self._known[_kind(inputs)] = with_tensors(output, lambda _, value: value.new_empty(0)), common

    def _unknown(self, inputs: dict[Place, Tensor]) -> Any:
        output, sources = self._known.get(_kind(inputs), (None, {}))
        shapes: dict[Place, list[int]] = {}
        for place, axes in sources.items():
            sizes = [{one if isinstance(one, int) else inputs[one[0]].shape[one[1]] for one in axis} for axis in axes]
            if any(len(explained) != 1 for explained in sizes):
                return None
            shapes[place] = [size for explained in sizes for size in explained]
        return with_tensors(
            output, lambda place, like: like.new_full(shapes[place], torch.nan if like.is_floating_point() else 0)
        )


def _kind(inputs: dict[Place, Tensor]) -> tuple[Any, ...]:
    return tuple((place, tensor.ndim, tensor.dtype, tensor.device) for place, tensor in inputs.items())


def _sources(size: int, inputs: dict[Place, Tensor]) -> set[Any]:
    axes = ((place, axis, other) for place, tensor in inputs.items() for axis, other in enumerate(tensor.shape))
    return {size, *((place, axis) for place, axis, other in axes if other == size)}


@dataclass
class Boundary:
    """The first module called after the frozen groups, its argument that is cached, and the frozen part."""

    name: str
    module: nn.Module
    place: Place
    frozen: list[FrozenPart]

    @contextlib.contextmanager
    def hooked(self, change: Callable[[Tensor], Tensor], *, left_out: bool = False) -> Iterator[None]:
        """Show what crosses to a function, which may return another tensor for it; frozen modules may be left out."""

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_tensors((args, kwargs), lambda place, value: change(value) if place == self.place else value)

        with contextlib.ExitStack() as stack:
            stack.callback(self.module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for part in self.frozen:
                stack.enter_context(part.replaced(left_out=left_out))
            yield


@contextlib.contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Restore training flags, buffers and torch's random state after the block."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type != "cpu"}
    try:
        with train_flags_kept(model), torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for buffer, values in buffers:
            buffer.copy_(values)


def frozen_below(groups: Sequence[LayerGroup]) -> list[LayerGroup]:
    """Return the frozen groups that are before the first that trains."""
    return list(itertools.takewhile(lambda group: group.frozen, groups))


def find_boundary(
    model: nn.Module, groups: Sequence[LayerGroup], forward: Callable[[], Any], *, options: TrainingOptions
) -> Boundary:
    """Run a model once to see which module is called first behind its frozen groups; to be done in `left_as_found`.

    Args:
        model: The bare model, frozen as it will train.
        groups: Its layer groups; the first is frozen.
        forward: Runs the objective on a batch.
        options: What frozen groups do in training mode.

    Raises:
        PrefixError: The frozen groups cannot be left out without changing what is trained.
    """
    calls: list[tuple[str, nn.Module, dict[Place, Tensor]]] = []
    model.eval()
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():

            def note(module: nn.Module, args: Any, kwargs: Any, *, name: str = name) -> None:
                calls.append((name, module, tensors_of((args, kwargs))))

            hooks.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        with torch.enable_grad():  # what depends on a trained weight needs a gradient, and is known by that
            carry = forward().carry
    if carry is not None:
        raise PrefixError("the objective passes a recurrent state from one batch to the next")
    below = {parameter for group in frozen_below(groups) for _, parameter in group.parameters}
    later, frozen = [], {}
    for number, (name, module, inputs) in enumerate(calls):
        held = set(module.parameters())
        if held and held <= below:
            frozen[name] = module
            if any(value.requires_grad for value in inputs.values()):
                raise PrefixError(f"{name} reads what groups behind the boundary return")
        elif held and not held & below:
            later.append(number)
    name, module, inputs = calls[later[0]] if later else ("", model, {})
    place = next((place for place, value in inputs.items() if value.is_floating_point()), None)
    if place is None or inputs[place].requires_grad:
        raise PrefixError("no module that trains is called with what frozen groups return")
    train_mode(model, groups, train_norm=options.train_norm, frozen_dropout=options.frozen_dropout)
    before = [called for _, called, _ in calls[: later[0]]]
    _refuse_what_training_changes(model, {*before, *(one for part in frozen.values() for one in part.modules())}, name)
    return Boundary(name, module, place, [FrozenPart(*part) for part in frozen.items()])


def _refuse_what_training_changes(model: nn.Module, below: set[nn.Module], name: str) -> None:
    """Raise if a module before the boundary does not return the same each time in training mode."""
    training = [(key, module) for key, module in model.named_modules() if module in below and module.training]
    dropping = [key for key, module in training if _drops(module)]
    if dropping or any(is_norm(module) and [*module.buffers()] for _, module in training):
        cause = f"dropout runs below it ({', '.join(dropping[:3])})" if dropping else "training mode changes it"
        raise PrefixError(
            f"what goes into {name} is not the same each time: {cause}; frozen_dropout='off' reaches dropout inside "
            "frozen groups, and where it is between groups set its probability to 0"
        )


def _drops(module: nn.Module) -> bool:
    if "drop" not in type(module).__name__.lower():
        return False
    return any(float(getattr(module, name, 0) or 0) > 0 for name in ("p", "drop_prob", "weight_dropout"))
