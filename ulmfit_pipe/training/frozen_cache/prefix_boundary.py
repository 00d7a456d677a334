"""Where the frozen groups of a model end: found by running it on a few rows, and proved before anyone relies on it.

Nothing is known of architectures. The largest modules of frozen groups (frozen parts) are set to give out NaN; the
arguments of the largest modules behind them (later parts) that turn NaN are what crosses the boundary. To keep these by
row is right if they do not depend on what trains, do not change in training mode, and belong to their row whatever its
place, its neighbours and its padding. Each of this is tried out.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit_pipe.training.frozen_cache.batch_rows import (
    MASK,
    Batch,
    PrefixError,
    RowAxes,
    about_equal,
    find_axes,
    trial_batches,
)
from ulmfit_pipe.training.frozen_cache.stand_ins import StandIn, shows_nan, without_numbers
from ulmfit_pipe.training.frozen_cache.tensor_trees import Place, tensors_of, with_tensors
from ulmfit_pipe.training.layer_groups import LayerGroup, train_flags_kept, train_mode
from ulmfit_pipe.training.objectives import ObjectiveOutput
from ulmfit_pipe.training.records import TrainingOptions

Forward = Callable[[Batch], ObjectiveOutput]
Calls = dict[str, list[dict[Place, Tensor]]]  # by part, the tensors among the arguments of each of its calls
Tap = Callable[[str, Place, int, Tensor], Tensor]  # part, place, number of the call, tensor -> what it gets instead


@dataclass(frozen=True)
class Crossing:
    """An argument of a later part that comes from frozen groups.

    Attributes:
        part: Name of the later part.
        place: Where among its arguments.
        axes: Where it has its rows.
    """

    part: str
    place: Place
    axes: RowAxes

    def __str__(self) -> str:
        """Name it as a reader of the model would."""
        return f"{self.part}({'.'.join(map(str, self.place[1:]))})"


@dataclass
class Cut:
    """A model in parts.

    Attributes:
        frozen: The largest modules of frozen groups, which can be left out.
        later: The largest modules behind them, by name.
        crossings: What goes from the first to the second.
    """

    frozen: list[StandIn]
    later: dict[str, nn.Module]
    crossings: tuple[Crossing, ...] = ()
    _calls: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def tapped(self, tap: Tap, *, left_out: bool = False) -> Iterator[None]:
        """Show every tensor that a later part is called with to a function, which may give another in its place.

        Args:
            tap: The function.
            left_out: Whether frozen parts give zeros instead of running.
        """
        self._calls = dict.fromkeys(self.later, 0)
        hooks = [
            module.register_forward_pre_hook(self._hook(name, tap), with_kwargs=True)
            for name, module in self.later.items()
        ]
        for part in self.frozen:
            part.install()
            part.active = left_out
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for part in self.frozen:
                part.remove()

    def _hook(self, name: str, tap: Tap) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self._calls[name]
            self._calls[name] += 1
            return with_tensors((args, kwargs), lambda place, value: tap(name, place, call, value))

        return hook


@contextlib.contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Put back training flags, buffers and torch's random state after the block."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type != "cpu"}
    try:
        with train_flags_kept(model), torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for buffer, values in buffers:
            buffer.copy_(values)


def frozen_below(groups: Sequence[LayerGroup]) -> list[LayerGroup]:
    """Return the frozen groups that lie before the first that trains."""
    return list(itertools.takewhile(lambda group: group.frozen, groups))


def find_cut(
    model: nn.Module, groups: Sequence[LayerGroup], batch: Batch, forward: Forward, *, options: TrainingOptions
) -> Cut:
    """Cut a model where its first trained group begins; run it inside `left_as_found`.

    Args:
        model: The bare model, frozen as it will train.
        groups: Its layer groups; the first is frozen.
        batch: A batch of the training data, where the model is.
        forward: Runs the objective on a batch.
        options: What frozen groups do in training mode.

    Raises:
        PrefixError: The frozen groups cannot be cut off without changing what is trained.
    """
    first, second, rows = trial_batches(batch)
    model.eval()
    if forward(first).carry is not None:
        raise PrefixError("the objective carries a state from one batch to the next")
    cut = _parts(model, groups, _called(model, lambda: forward(first)))
    output, seen = _run(cut, forward, first)
    _, other = _run(cut, forward, second)
    cut.frozen = [part for part in cut.frozen if not _rowless(seen[part.name], other[part.name], (first, second))]
    strange = [part for part in cut.frozen if part.shapes.strange]
    if strange:
        raise PrefixError(f"{strange[0].name} gives out a {strange[0].shapes.strange} (use_cache makes some)")
    crossing = _arguments_from_frozen(cut, forward, first, output, seen)
    _refuse_what_trains(cut, forward, first, crossing)
    cut.crossings = tuple(
        _by_row(part, place, (seen[part], other[part]), (first, second), rows) for part, place in crossing
    )
    _refuse_what_training_changes(model, groups, cut, forward, first, seen, options)
    return cut


def _called(model: nn.Module, forward: Callable[[], Any]) -> set[str]:
    """Return the names of the modules that a forward pass calls."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: called.add(name))
        for name, module in model.named_modules()
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _parts(model: nn.Module, groups: Sequence[LayerGroup], called: set[str]) -> Cut:
    """Find the largest modules that are called and lie on one side of the boundary."""
    start = len(frozen_below(groups))
    below = {id(parameter) for group in groups[:start] for _, parameter in group.parameters}
    above = {id(parameter) for group in groups[start:] for _, parameter in group.parameters}
    cut = Cut([], {})
    done: set[int] = set()

    def visit(name: str, module: nn.Module) -> None:
        held = {id(parameter) for parameter in module.parameters()}
        if id(module) in done or not held & (below | above):
            return
        done.add(id(module))
        mixed = bool(held & below) and bool(held & above)
        if name in called and not mixed:
            if held & below:
                cut.frozen.append(StandIn(name, module))
            else:
                cut.later[name] = module
            return
        own = [key for key, parameter in module.named_parameters(recurse=False) if id(parameter) in above]
        if mixed and own:
            raise PrefixError(
                f"{own[0]} of {name or type(model).__name__} trains, and the same module holds frozen layers"
            )
        for key, child in module.named_children():
            visit(f"{name}.{key}" if name else key, child)

    visit("", model)
    return cut


def _run(cut: Cut, forward: Forward, batch: Batch, *, swap: Tap | None = None) -> tuple[ObjectiveOutput, Calls]:
    """Run a batch and return the output, and what each part was called with (before any swap)."""
    seen: Calls = {name: [] for name in [*(part.name for part in cut.frozen), *cut.later]}

    def tap(part: str, place: Place, call: int, value: Tensor) -> Tensor:
        while len(seen[part]) <= call:
            seen[part].append({})
        seen[part][call][place] = value
        return value if swap is None else swap(part, place, call, value)

    for part in cut.frozen:
        part.look = lambda tree, calls=seen[part.name]: calls.append(tensors_of(tree))
    try:
        with cut.tapped(tap):
            return forward(batch), seen
    finally:
        for part in cut.frozen:
            part.look = None


def _rowless(first: list[dict[Place, Tensor]], second: list[dict[Place, Tensor]], batches: tuple[Batch, Batch]) -> bool:
    """Return whether a part's calls have nothing to do with the batch's rows, as an embedding of positions has not.

    Such a part is cheap, and is run. Only the number of tokens may change its inputs' shapes.
    """
    width = tuple(batch[MASK].shape[1] for batch in batches if MASK in batch)
    if [call.keys() for call in first] != [call.keys() for call in second]:
        return False
    for one, two in zip(first, second, strict=True):
        for place, value in one.items():
            if value.ndim != two[place].ndim:
                return False
            if any(pair[0] != pair[1] and pair != width for pair in zip(value.shape, two[place].shape, strict=True)):
                return False
    return True


def _arguments_from_frozen(
    cut: Cut, forward: Forward, batch: Batch, output: ObjectiveOutput, seen: Calls
) -> list[tuple[str, Place]]:
    """Find the arguments of later parts that come from frozen ones: those that are NaN when frozen parts give NaN.

    Each is given its right value, so that what comes behind is right too; then so must be the model's output.
    """
    found: dict[tuple[str, Place], None] = {}

    def swap(part: str, place: Place, call: int, value: Tensor) -> Tensor:
        if not shows_nan(value):
            return value
        found[part, place] = None
        return seen[part][call].get(place, value) if call < len(seen[part]) else value

    for frozen in cut.frozen:
        frozen.change = without_numbers
    try:
        without, _ = _run(cut, forward, batch, swap=swap)
    finally:
        for frozen in cut.frozen:
            frozen.change = None
    if not found:
        raise PrefixError("nothing that trains reads what frozen groups give out")
    if not (about_equal(without.logits, output.logits) and about_equal(without.loss_sum, output.loss_sum)):
        raise PrefixError("what frozen groups give out reaches the output past all that trains")
    return list(found)


def _refuse_what_trains(cut: Cut, forward: Forward, batch: Batch, crossing: Sequence[tuple[str, Place]]) -> None:
    """Raise if frozen parts, or what crosses the boundary, depend on what later parts give out."""
    hooks = [
        module.register_forward_hook(lambda _module, _args, output: without_numbers(output))
        for module in cut.later.values()
    ]
    try:
        _, seen = _run(cut, forward, batch)
    finally:
        for hook in hooks:
            hook.remove()
    for part, calls in seen.items():
        for place, value in ((place, value) for call in calls for place, value in call.items()):
            if shows_nan(value) and (part not in cut.later or (part, place) in crossing):
                raise PrefixError(f"{part} reads what groups behind the boundary give out")


def _by_row(
    part: str,
    place: Place,
    calls: tuple[list[dict[Place, Tensor]], list[dict[Place, Tensor]]],
    batches: tuple[Batch, Batch],
    rows: Sequence[int],
) -> Crossing:
    """Return a crossing whose rows were found, and found to be the same wherever they stand."""
    pieces = tuple([call[place] for call in found if place in call] for found in calls)
    try:
        axes, (first, second) = _find_pieced(pieces[0], pieces[1], batches)
        crossing = Crossing(part, place, axes)
        parts = [crossing.axes.split(value, batch) for value, batch in zip((first, second), batches, strict=True)]
    except PrefixError as error:
        raise PrefixError(f"of what goes into {part}, {error}") from error
    if not all(about_equal(moved, parts[0][row]) for moved, row in zip(parts[1], rows, strict=True)):
        raise PrefixError(f"what goes into {part} for a row depends on the row's place, its neighbours or its padding")
    return crossing


def _find_pieced(
    first: list[Tensor], second: list[Tensor], batches: tuple[Batch, Batch]
) -> tuple[RowAxes, tuple[Tensor, Tensor]]:
    """Find the axes of a tensor that may come in pieces, each with the next rows, and put the pieces together."""
    if len(first) == len(second) == 1:
        return find_axes(first[0], second[0], batches), (first[0], second[0])
    for row in range(first[0].ndim):
        with contextlib.suppress(PrefixError, RuntimeError):  # pieces that do not fit along this axis
            whole = torch.cat(first, dim=row), torch.cat(second, dim=row)
            axes = find_axes(*whole, batches)
            if axes.row == row:
                return axes, whole
    raise PrefixError(f"it comes {len(first)} times for a batch, and not each time for the next rows")


def _refuse_what_training_changes(
    model: nn.Module,
    groups: Sequence[LayerGroup],
    cut: Cut,
    forward: Forward,
    batch: Batch,
    seen: Calls,
    options: TrainingOptions,
) -> None:
    """Raise if what crosses the boundary is not the same in training mode, as dropout and batch norm make it."""
    train_mode(model, groups, train_norm=options.train_norm, frozen_dropout=options.frozen_dropout)
    for part in cut.later.values():
        part.eval()
    active: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: active.append(name))
        for name, module in model.named_modules()
        if module.training and _drops(module)
    ]
    before: list[str] = []

    def note(part: str, place: Place, _call: int, value: Tensor) -> Tensor:
        if any((part, place) == (crossing.part, crossing.place) for crossing in cut.crossings):
            before[:] = dict.fromkeys(active)
        return value

    try:
        _, training = _run(cut, forward, batch, swap=note)
    finally:
        for hook in hooks:
            hook.remove()
    for crossing in cut.crossings:
        kept, now = (
            torch.cat([call[crossing.place] for call in calls[crossing.part]], dim=crossing.axes.row)
            for calls in (seen, training)
        )
        if not about_equal(now, kept):
            cause = f"dropout runs below it ({', '.join(before[:3])})" if before else "training mode changes it"
            raise PrefixError(
                f"what goes into {crossing.part} is not the same each time: {cause}; frozen_dropout='off' reaches "
                "dropout inside frozen groups, and where it lies between groups set its probability to 0"
            )


def _drops(module: nn.Module) -> bool:
    if "drop" not in type(module).__name__.lower():
        return False
    return any(float(getattr(module, name, 0) or 0) > 0 for name in ("p", "drop_prob", "weight_dropout"))
