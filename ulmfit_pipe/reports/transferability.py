"""The picture of transferability: five curves of test accuracy against the number of copied layer groups.

Drawn after Yosinski et al. 2014, figure 2. Colour says where the layers come from, a full line and mark that they are
frozen, a broken line and an open mark that they are unfrozen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ulmfit_pipe.reports.plots import (
    APART,
    INK,
    MUTED,
    PRINTED_DOTS_PER_INCH,
    WIDTH,
    Picture,
    finish_figure,
    name_ends,
    style_axes,
)

OWN, OTHER, RANDOM = APART[0], APART[1], APART[2]
LOOKS: dict[str, tuple[str, str, str, bool, str]] = {  # curve -> colour, line, mark, whether the mark is full, name
    "BnB": (OWN, "-", "o", True, "BnB  own, frozen"),
    "BnB+": (OWN, "--", "o", False, "BnB+  own, unfrozen"),
    "AnB": (OTHER, "-", "s", True, "AnB  other task's, frozen"),
    "AnB+": (OTHER, "--", "s", False, "AnB+  other task's, unfrozen"),
    "random": (RANDOM, ":", "^", True, "random, frozen"),
}
BASE, START = "baseB", "new"
BASE_NAME = "baseB  trained as usual"
ROOM = 0.06  # of the span, above and below
APART_BY = 0.05  # of an n, between the points of neighbouring curves, so that their ranges do not hide one another


def plot_transferability(
    points: Sequence[Mapping[str, Any]], groups: Sequence[str], *, title: str, path: str | Path | None = None
) -> Picture:
    """Draw the curves with the range of their seeds, and the ordinary network as a line with a band.

    Args:
        points: ``curve`` (BnB, BnB+, AnB, AnB+, random; baseB; new for n = 0), ``n``, and ``accuracy``, ``lowest``,
            ``highest`` in [0, 1]; any other curve is left out.
        groups: Names of the layer groups, input side first.
        title: Name of the data.
        path: Where to save a PNG, or None.

    Raises:
        ValueError: None of the five curves has a point.
    """
    curves = {name: _points_of(points, name) for name in LOOKS}
    curves = {name: found for name, found in curves.items() if found}
    if not curves:
        raise ValueError(f"a picture of transferability needs a point of {', '.join(LOOKS)}, got none")
    figure = Picture(figsize=(WIDTH * 1.15, 4.8), dpi=PRINTED_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    start, base = _points_of(points, START), _points_of(points, BASE)
    ends: dict[str, tuple[float, str]] = {}
    for name, found in curves.items():
        ends[LOOKS[name][4]] = (_draw(axes, name, start, found), LOOKS[name][0])
    if start:
        low, mean, high = (100 * start[0][key] for key in ("lowest", "accuracy", "highest"))
        axes.errorbar(
            [0],
            [mean],
            [[mean - low], [high - mean]],
            color=INK,
            marker="o",
            markersize=6,
            elinewidth=1.1,
            capsize=2.5,
            zorder=3,
        )
    if base:
        low, mean, high = (100 * base[0][key] for key in ("lowest", "accuracy", "highest"))
        axes.axhspan(low, high, color=MUTED, alpha=0.12, linewidth=0)
        axes.axhline(mean, color=MUTED, linewidth=1.4, zorder=1)
        ends[BASE_NAME] = (mean, MUTED)
    numbers = sorted({point["n"] for found in (start, *curves.values()) for point in found})
    axes.set_xticks(numbers, [f"{n}\n{groups[n - 1] if n else 'none'}" for n in numbers])
    axes.margins(x=0.04)
    drawn = [*start, *base, *(point for found in curves.values() for point in found)]
    bottom, top = 100 * min(point["lowest"] for point in drawn), 100 * max(point["highest"] for point in drawn)
    room = ROOM * max(top - bottom, 1.0)
    axes.set_ylim(bottom - room, top + room)
    axes.set(
        xlabel="n: layer groups copied from the input on, and the last of them",
        ylabel="test accuracy on task B, %",
        title=f"How transferable are the layers? ({title})",
    )
    name_ends(axes, ends)
    return finish_figure(figure, path)


def _points_of(points: Sequence[Mapping[str, Any]], curve: str) -> list[Mapping[str, Any]]:
    return sorted((point for point in points if point["curve"] == curve), key=lambda point: point["n"])


def _draw(axes: Axes, name: str, start: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> float:
    """Draw one curve from n = 0 on, each of its points with the range of its seeds, and return where it ends."""
    color, line, mark, full, _ = LOOKS[name]
    shift = APART_BY * (list(LOOKS).index(name) - (len(LOOKS) - 1) / 2)
    places = [point["n"] + shift for point in points]
    low, mean, high = ([100 * point[key] for point in points] for key in ("lowest", "accuracy", "highest"))
    ranges = [[m - value for m, value in zip(mean, low, strict=True)], [v - m for m, v in zip(mean, high, strict=True)]]
    axes.errorbar(places, mean, ranges, fmt="none", ecolor=color, elinewidth=1.1, capsize=2.5, alpha=0.7, zorder=2)
    axes.plot(
        [*(point["n"] for point in start), *places],
        [*(100 * point["accuracy"] for point in start), *mean],
        color=color,
        linestyle=line,
        marker=mark,
        markersize=6,
        markerfacecolor=color if full else "white",
        linewidth=1.8,
        label=name,
        zorder=2.5,
    )
    return mean[-1]
