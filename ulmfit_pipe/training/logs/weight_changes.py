"""How far the weights moved: the relative change of each layer group and each tensor between two states.

Of a tensor it is ``||after - before|| / ||before||`` with Frobenius norms: the root of the sum of the squares of all
its numbers, whatever its shape. Of a layer group it is the same over the numbers of all its tensors taken together, so
a large tensor counts for more than a small one; it is not a mean of theirs. Where ``||before||`` is zero, as of biases
that start so, it is 0 if nothing moved, and infinite otherwise. Buffers (running statistics) move without any gradient,
so they are listed apart and in no group's figure.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ulmfit_pipe.reports.number_words import change_words
from ulmfit_pipe.reports.text_tables import Report
from ulmfit_pipe.training.layer_groups import LayerGroup
from ulmfit_pipe.training.resume.saved_learner import untied_state

if TYPE_CHECKING:
    from ulmfit_pipe.reports.plots import Picture

PIECE = 1 << 22  # numbers turned to float64 at a time, so that large embeddings need no second copy


@dataclass(frozen=True)
class WeightChange:
    """Change of a tensor, or of all tensors of a layer group together, in training.

    Attributes:
        name: Name of the tensor or the group.
        group: The layer group.
        size: Number of elements.
        norm_before: ``||before||`` of what could be compared; None where there was nothing before.
        norm_change: ``||after - before||``, likewise.
    """

    name: str
    group: str
    size: int
    norm_before: float | None
    norm_change: float | None

    @property
    def relative(self) -> float | None:
        """``||after - before|| / ||before||``: None of what is new, infinite of what moved away from zero."""
        if self.norm_before is None or self.norm_change is None:
            return None
        if self.norm_change == 0:
            return 0.0
        return self.norm_change / self.norm_before if self.norm_before > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return the values for strict JSON; an infinite ``relative`` is null."""
        finite = self.relative if self.relative is not None and math.isfinite(self.relative) else None
        return {
            "name": self.name,
            "group": self.group,
            "size": self.size,
            "norm_before": self.norm_before,
            "norm_change": self.norm_change,
            "relative": finite,
        }


@dataclass(frozen=True, repr=False)
class WeightChanges:
    """How far every part of a model moved; shows itself as a table with a line per layer group.

    Attributes:
        groups: A row a layer group, input side first.
        tensors: One row per parameter, in the order of the groups.
        buffers: One row per floating-point buffer (running statistics), separate from the rest.
    """

    groups: tuple[WeightChange, ...]
    tensors: tuple[WeightChange, ...]
    buffers: tuple[WeightChange, ...]

    def __str__(self) -> str:
        """Return the table of the layer groups."""
        return str(self.describe())

    def __repr__(self) -> str:
        """Return the table, for a prompt."""
        return str(self)

    def _repr_html_(self) -> str:
        """Return the table of the layer groups for a notebook."""
        return self.describe()._repr_html_()

    def describe(self, *, tensors: bool = False) -> Report:
        """Return a table of the layer groups, input side first.

        Args:
            tensors: With a line for each tensor and buffer below its group, in place of the one that moved most.
        """
        if tensors:
            return Report.of([("layer group or tensor", "numbers", "change"), *self._all_rows()])
        rows: list[tuple[str, ...]] = [("layer group", "parameters", "change", "its tensor that moved most")]
        for group in self.groups:
            held = [tensor for tensor in self.tensors if tensor.group == group.name]
            new = sum(tensor.norm_before is None for tensor in held)
            note = f" ({new} of {len(held)} tensors new)" if 0 < new < len(held) else ""
            rows.append((group.name, f"{group.size:,}", _words(group) + note, _most_moved(held)))
        if self.buffers:
            size = sum(buffer.size for buffer in self.buffers)
            rows.append(("(buffers)", f"{size:,}", "", _most_moved(self.buffers)))
        return Report.of(rows)

    def _all_rows(self) -> list[tuple[str, ...]]:
        named = [(row, row.name) for row in self.tensors] + [(row, f"{row.name} (buffer)") for row in self.buffers]
        rows: list[tuple[str, ...]] = []
        for group in self.groups:
            rows.append((group.name, f"{group.size:,}", _words(group)))
            rows += [(f"  {name}", f"{row.size:,}", _words(row)) for row, name in named if row.group == group.name]
        return rows

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return groups, tensors and buffers as lists of plain records."""
        parts = {"groups": self.groups, "tensors": self.tensors, "buffers": self.buffers}
        return {name: [row.to_dict() for row in rows] for name, rows in parts.items()}

    def plot(self, path: Path | str | None = None, *, title: str | None = None) -> "Picture":
        """Draw the change of each layer group and its tensors, and save it as a picture where a path is given."""
        from ulmfit_pipe.reports.weight_changes import plot_weight_changes  # drawing is loaded by who draws

        return plot_weight_changes(self.to_dict(), title=title, path=path)


def weight_changes(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    groups: Sequence[LayerGroup],
    *,
    new: Collection[str] = (),
) -> WeightChanges:
    """Compare two states of a model.

    Args:
        before: Parameters and buffers by name, as ``state_dict`` gives them (a copy: it must not be the live one).
        after: The same at the later time; on any device, in any precision.
        groups: The model's layer groups; parameters in none of them (such as the weights below adapters) are left out.
        new: Names of parameters that have nothing to be compared with, such as a head put on since.

    Returns:
        Rows by group, tensor and buffer. Whole numbers (counters, ids) are not weights and are left out.

    Raises:
        ValueError: A state lacks a tensor of the groups, has it in another shape, or holds NaN or infinity; it is
            named.
    """
    rows, tensors, buffers = [], [], []
    for group in groups:
        held = [
            _new(name, group.name, parameter) if name in new else _compare(name, group.name, before, after)
            for name, parameter in group.parameters
        ]
        tensors += held
        rows.append(_together(group.name, held))
        buffers += [_compare(name, group.name, before, after) for name in _buffers_of(group, before, after)]
    return WeightChanges(tuple(rows), tuple(tensors), tuple(buffers))


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's parameters and buffers on the CPU, each tied tensor once under its first name."""
    return {name: value.detach().to("cpu", copy=True) for name, value in untied_state(model).items()}


def _new(name: str, group: str, parameter: Tensor) -> WeightChange:
    return WeightChange(name, group, parameter.numel(), None, None)


def _buffers_of(group: LayerGroup, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Return the names of a group's floating-point buffers that both states keep."""
    names = [
        f"{owner}.{name}" if owner else name
        for owner, module in group.modules
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    return [name for name in names if name in before and name in after]


def _compare(name: str, group: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> WeightChange:
    for when, state in (("before", before), ("after", after)):
        if name not in state:
            raise ValueError(
                f"the state {when} lacks {name!r} of layer group {group!r}; give the state of the same model, or name "
                "what has nothing to be compared with: new=[...]"
            )
    first, second = before[name], after[name]
    if first.shape != second.shape:
        raise ValueError(
            f"{name!r} has the shape {tuple(first.shape)} before and {tuple(second.shape)} after; the two states must "
            "be of the same model"
        )
    norm_before, norm_change = _norms(first, second)
    if not math.isfinite(norm_before + norm_change):
        when = "before" if not math.isfinite(norm_before) else "after"
        raise ValueError(f"{name!r} holds NaN or infinity {when}, so how far it moved is unknown")
    return WeightChange(name, group, second.numel(), norm_before, norm_change)


def _norms(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return ``||before||`` and ``||after - before||``, summed in float64."""
    squares, moved = 0.0, 0.0
    pieces = zip(before.detach().reshape(-1).split(PIECE), after.detach().reshape(-1).split(PIECE), strict=True)
    for old, new in pieces:
        first, second = (piece.to("cpu", torch.float64) for piece in (old, new))
        squares += float(first.square().sum())
        moved += float((second - first).square().sum())
    return math.sqrt(squares), math.sqrt(moved)


def _together(group: str, held: Sequence[WeightChange]) -> WeightChange:
    """Return the change of all tensors of a group as if they were one; new ones count in its size only."""
    size = sum(row.size for row in held)
    pairs = [
        (row.norm_before, row.norm_change)
        for row in held
        if row.norm_before is not None and row.norm_change is not None
    ]
    if not pairs:
        return WeightChange(group, group, size, None, None)
    norm_before, norm_change = (math.hypot(*values) for values in zip(*pairs, strict=True))
    return WeightChange(group, group, size, norm_before, norm_change)


def _words(row: WeightChange) -> str:
    return change_words(row.to_dict())


def _most_moved(rows: Sequence[WeightChange]) -> str:
    """Return name and change of the row that moved most, of those whose change is a share."""
    moved = [(row.relative, row) for row in rows if row.relative and math.isfinite(row.relative)]
    if not moved:
        return ""
    _, most = max(moved, key=lambda pair: pair[0])
    return f"{most.name} {_words(most)}"
