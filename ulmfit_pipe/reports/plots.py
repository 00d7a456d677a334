"""Pictures from plain lists and dictionaries: learning-rate finder, losses, learning rates, label curves.

Every function returns a `Picture`, a matplotlib figure that a notebook shows, and saves a PNG where `path` is given.
Figures are built by matplotlib's object interface: no window, no global state, safe on servers and in threads.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH = 8.0  # inches
DOTS_PER_INCH = 150
INK, MUTED, GRID = "#222222", "#6b7280", "#e5e7eb"
BLUE, ORANGE = "#2563eb", "#d97706"
MARKED = ("#d97706", "#059669", "#c026d3", "#dc2626", "#0891b2", "#65a30d")
MARKERS = ("o", "s", "^", "D", "v", "P")
PRINTED_DOTS_PER_INCH = 200  # of a picture for a page
# Okabe and Ito's colours, told apart by colour-blind readers too; each also has a mark of its own
APART = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#222222", "#e69f00")
MANY_POINTS = 40  # of a line, from which on they are not marked one by one
LABEL_GAP = 0.055  # of the axes' height between two names at the curves' ends
LOSS_HEADROOM = 1.6  # a diverging loss is drawn up to this many times the span between first and lowest


class Picture(Figure):
    """A figure that a notebook shows where it is a cell's last line, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        """Return the figure as PNG."""
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def plot_lr_find(
    lrs: Sequence[float],
    losses: Sequence[float],
    suggestions: Mapping[str, float],
    *,
    path: str | Path | None = None,
) -> Picture:
    """Draw the loss over the learning rate (log axis) with every suggestion marked on the curve.

    Args:
        lrs: Learning rate of each batch, above 0, rising.
        losses: Smoothed loss of each batch; those that are not finite are left out.
        suggestions: Name to learning rate, as `lr_find` returns them; may be empty.
        path: Where to save a PNG, or None.

    Raises:
        ValueError: Lengths differ, or no loss is finite.
    """
    points = _finite_points(lrs, losses, what="learning rates")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    figure, axes = new_figure(height=4.2)
    axes.plot(xs, ys, color=BLUE, linewidth=1.8, zorder=2)
    axes.set_xscale("log")
    for index, (name, lr) in enumerate(suggestions.items()):
        color = MARKED[index % len(MARKED)]
        axes.axvline(lr, color=color, linewidth=0.8, linestyle=":", zorder=1)
        axes.plot(
            [lr],
            [_loss_at(lr, xs, ys)],
            MARKERS[index % len(MARKERS)],
            color=color,
            markersize=8,
            markeredgecolor="white",
            label=f"{name}  {_short(lr)}",
            zorder=3,
        )
    span = max(ys[0] - min(ys), 0.05 * abs(min(ys)), 1e-6)
    axes.set_ylim(min(ys) - 0.15 * span, min(max(ys), min(ys) + LOSS_HEADROOM * span) + 0.1 * span)
    axes.set(xlabel="learning rate", ylabel="loss (smoothed)", title="Learning-rate finder")
    if suggestions:
        axes.legend(loc="best", framealpha=0.9, edgecolor="white")
    return finish_figure(figure, path)


def plot_losses(
    losses: Sequence[float],
    epochs: Sequence[tuple[int, float, float | None]],
    *,
    phases: Sequence[tuple[str, int]] = (),
    path: str | Path | None = None,
) -> Picture:
    """Draw the loss of every step, and where each epoch ends its mean and the validation loss.

    Args:
        losses: Training loss of each step.
        epochs: Of each epoch the steps taken by its end, its mean training loss, and its validation loss or None.
        phases: Name and first step of each phase.
        path: Where to save a PNG, or None.

    Raises:
        ValueError: There is no step, or no loss is finite.
    """
    points = _finite_points(range(1, len(losses) + 1), losses, what="steps")
    figure, axes = new_figure(height=4.2)
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, color=BLUE, linewidth=0.8, alpha=0.35, label="training, each step")
    ends = [end for end, _, _ in epochs]
    _line(axes, ends, [loss for _, loss, _ in epochs], "training, mean of the epoch", BLUE, "o")
    if any(loss is not None for _, _, loss in epochs):
        _line(axes, ends, [math.nan if loss is None else loss for _, _, loss in epochs], "validation", ORANGE, "s")
    _by_step(axes, phases)
    axes.set(ylabel="loss", title="Loss")
    axes.legend(loc="upper right", framealpha=0.9, edgecolor="white")
    return finish_figure(figure, path)


def plot_schedule(
    rates: Mapping[str, Sequence[float]],
    *,
    phases: Sequence[tuple[str, int]] = (),
    path: str | Path | None = None,
) -> Picture:
    """Draw the learning rate of each layer group over the steps (log axis), with the phases' boundaries.

    Args:
        rates: Group name, input side first, to its learning rate at every step; 0 where it is frozen, which is
            drawn as a gap.
        phases: Name and first step of each phase.
        path: Where to save a PNG, or None.

    Raises:
        ValueError: No group has a rate at any step.
    """
    if not any(value > 0 for values in rates.values() for value in values):
        raise ValueError(
            "a schedule's picture needs a learning rate above 0, and no step has one; was anything trained?"
        )
    figure, axes = new_figure(height=4.2)
    for place, (name, values) in enumerate(rates.items()):
        drawn = [value if value > 0 else math.nan for value in values]
        color = colormaps["viridis"](0.85 * place / max(1, len(rates) - 1))
        _line(axes, range(1, len(drawn) + 1), drawn, name, color, ".")
    axes.set_yscale("log")
    _by_step(axes, phases)
    axes.set(ylabel="learning rate", title="Learning rates")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        labels[::-1],
        title="head on top" if len(rates) > 1 else None,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
    )
    return finish_figure(figure, path)


def _line(axes: Axes, xs: Sequence[int], ys: Sequence[float], label: str, color: Any, marker: str) -> None:
    shape = marker if len(xs) < MANY_POINTS else ""
    axes.plot(xs, ys, color=color, marker=shape, markersize=5, linewidth=1.8, label=label)


def _by_step(axes: Axes, phases: Sequence[tuple[str, int]]) -> None:
    """Name the axis of steps, draw a line where each phase but the first starts, and name the phases above it."""
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(phases) < 2:
        return
    for _, start in phases[1:]:
        axes.axvline(start + 0.5, color=MUTED, linewidth=0.8, linestyle="--", zorder=1)
    names = axes.secondary_xaxis("top")
    names.set_ticks([start + 0.5 for _, start in phases], [name for name, _ in phases])
    names.tick_params(length=0, pad=1, labelsize=8, labelcolor=MUTED, labelrotation=25)
    for label in names.get_xticklabels():
        label.set(ha="left", rotation_mode="anchor")
    names.spines["top"].set_visible(False)


def plot_label_curves(
    panels: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]], *, path: str | Path | None = None
) -> Picture:
    """Draw test error against the number of labels (log axis), a panel a data set, a line a method.

    The line is the mean, the band goes from the lowest to the highest seed; each line bears its name at its end.

    Args:
        panels: Title -> name of a method -> its points: `labels`, and `error`, `lowest`, `highest` in [0, 1].
        path: Where to save a PNG, or None.

    Raises:
        ValueError: There is no panel, or one has no point.
    """
    empty = [title for title, curves in panels.items() if not any(curves.values())]
    if empty or not panels:
        raise ValueError(f"a picture of label curves needs points, got none for {', '.join(empty) or 'any data set'}")
    figure = Picture(
        figsize=(WIDTH * (0.9 + 0.4 * len(panels)) / 1.3, 4.6), dpi=PRINTED_DOTS_PER_INCH, layout="constrained"
    )
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        style_axes(axes)
        ends: dict[str, tuple[float, str]] = {}
        for name, points in curves.items():
            place = names.index(name)
            color, mark = APART[place % len(APART)], MARKERS[place % len(MARKERS)]
            points = sorted(points, key=lambda point: point["labels"])
            labels = [point["labels"] for point in points]
            low, mean, high = ([100 * point[key] for point in points] for key in ("lowest", "error", "highest"))
            axes.fill_between(labels, low, high, color=color, alpha=0.16, linewidth=0)
            axes.plot(labels, mean, color=color, marker=mark, markersize=5.5, linewidth=1.8, label=name)
            ends[name] = (mean[-1], color)
        axes.set_xscale("log")
        sizes = sorted({point["labels"] for points in curves.values() for point in points})
        axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        axes.minorticks_off()
        axes.set(xlabel="labelled training rows (log scale)", ylabel="test error, %", title=title)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.06)
        name_ends(axes, ends)
    return finish_figure(figure, path)


def name_ends(axes: Axes, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write each line's name right of the axes, at the height where the line ends, names kept apart.

    Args:
        axes: The axes, with their limits set.
        ends: Name -> height and colour.
    """
    low, high = axes.get_ylim()
    ordered = sorted(ends.items(), key=lambda item: item[1])
    heights = _kept_apart([end for _, (end, _) in ordered], gap=LABEL_GAP * (high - low))
    for (name, (_, color)), height in zip(ordered, heights, strict=True):
        place = (1.02, height)
        axes.annotate(
            name, place, xycoords=("axes fraction", "data"), color=color, fontsize=9, va="center", annotation_clip=False
        )


def _kept_apart(heights: Sequence[float], *, gap: float) -> list[float]:
    """Move rising heights as little as need be until neighbours are a gap apart: those too close share a middle."""
    blocks: list[list[float]] = []  # each is a run of heights that is set a gap apart around its mean
    for height in heights:
        blocks.append([height])
        while (
            len(blocks) > 1
            and _middle(blocks[-1]) - _middle(blocks[-2]) < gap * (len(blocks[-1]) + len(blocks[-2])) / 2
        ):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [_middle(block) + gap * (place - (len(block) - 1) / 2) for block in blocks for place in range(len(block))]


def _middle(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def new_figure(*, height: float) -> tuple[Picture, Axes]:
    """Return a figure of the width that all have, and its axes."""
    figure = Picture(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Give axes the looks of all pictures: a light grid below the data, no frame."""
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9)


def _finite_points(xs: Sequence[float], ys: Sequence[float], *, what: str) -> list[tuple[float, float]]:
    if len(xs) != len(ys):
        raise ValueError(f"every loss needs its place, got {len(xs)} {what} and {len(ys)} losses")
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not points:
        raise ValueError(f"no finite loss to draw among {len(ys)}; did the first batch give NaN?")
    return points


def _loss_at(lr: float, lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Interpolate the curve over the logarithm of the rate; outside it, its nearest end."""
    for (low, before), (high, after) in zip(
        zip(lrs, losses, strict=True), zip(lrs[1:], losses[1:], strict=True), strict=False
    ):
        if low <= lr <= high:
            return before + (after - before) * math.log(lr / low) / math.log(high / low)
    return losses[0] if lr < lrs[0] else losses[-1]


def _short(lr: float) -> str:
    digits, exponent = f"{lr:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def finish_figure(figure: Picture, path: str | Path | None) -> Picture:
    """Make titles bold, and save the figure as PNG where a path is given."""
    for axes in figure.axes:
        axes.title.set_fontweight("bold")
    if path is not None:
        figure.savefig(path, format="png")
    return figure
