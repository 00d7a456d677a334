"""A picture of how far each layer group and each of its tensors moved, from the records of `WeightChanges.to_dict`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ulmfit_pipe.reports.number_words import change_words
from ulmfit_pipe.reports.plots import BLUE, INK, MUTED, ORANGE, Picture, finish_figure, new_figure

TITLE = "How far training moved the weights"
ROW_HEIGHT, MARGINS = 0.36, 1.75  # inches: of a layer group, and of title, axis and legend together
FEW_DECADES = 2.2  # an axis this short is marked at 1, 2 and 5 of each decade
ROOM = 1.6  # factor by which the axis continues beyond its outermost points

Rows = Sequence[Mapping[str, Any]]


def plot_weight_changes(
    changes: Mapping[str, Rows], *, title: str | None = None, path: str | Path | None = None
) -> Picture:
    """Draw the relative change of every layer group (log axis), input side at the bottom, and its tensors as dots.

    Args:
        changes: ``groups``, input side first, and ``tensors``: rows with ``name``, ``group``, ``norm_before``,
            ``norm_change`` and ``relative``, as `WeightChanges.to_dict` gives them. What did not move, is new or moved
            away from zero has no place on the axis; it is named in words.
        title: In place of the usual one.
        path: Where to save a PNG, or None.

    Raises:
        ValueError: There is no group.
    """
    groups = changes["groups"]
    if not groups:
        raise ValueError("a picture of weight changes needs at least one layer group, got none")
    figure, axes = new_figure(height=MARGINS + ROW_HEIGHT * len(groups))
    places = {row["name"]: place for place, row in enumerate(groups)}
    tensors = [row for row in changes["tensors"] if row["relative"]]
    moved = [row for row in groups if row["relative"]]
    values = [row["relative"] for row in (*tensors, *moved)]
    if values:
        left, right = min(values) / ROOM, max(values) * ROOM
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        heights = [places[row["name"]] for row in moved]
        axes.hlines(heights, left, [row["relative"] for row in moved], color=BLUE, linewidth=2.2, alpha=0.35, zorder=1)
        _dots(axes, tensors, [places[row["group"]] for row in tensors], size=4.5, color=ORANGE, label="each tensor")
        _dots(axes, moved, heights, size=9.5, color=BLUE, label="layer group")
        _mark_per_cent(axes, decades=right / left)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    else:
        axes.set_xticks([])
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.set_yticks(range(len(groups)), [row["name"] for row in groups])
    axes.set_xlabel("||after − before|| / ||before|| (log scale)")
    axes.set_title(title or TITLE)
    _name_changes(axes, groups)
    return finish_figure(figure, path)


def _dots(axes: Axes, rows: Rows, heights: Sequence[int], *, size: float, color: str, label: str) -> None:
    axes.plot(
        [row["relative"] for row in rows],
        heights,
        "o",
        color=color,
        markersize=size,
        markeredgecolor="white",
        markeredgewidth=0.6,
        alpha=0.85,
        label=label,
        zorder=2,
    )


def _mark_per_cent(axes: Axes, *, decades: float) -> None:
    """Mark a log axis in per cent, and between the decades where there are few of them."""
    subs = (1.0, 2.0, 5.0) if decades < 10**FEW_DECADES else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name_changes(axes: Axes, groups: Rows) -> None:
    """Write each group's change right of the axes, muted where it is not a number."""
    names = axes.secondary_yaxis("right")
    names.set_yticks(range(len(groups)), [change_words(row) for row in groups])
    names.tick_params(length=0, labelsize=9)
    for label, row in zip(names.get_yticklabels(), groups, strict=True):
        label.set_color(INK if row["relative"] else MUTED)
    names.spines["right"].set_visible(False)
