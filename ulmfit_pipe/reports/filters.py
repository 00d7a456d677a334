"""Pictures of an image model before and after fine-tuning: its first filters, and what its layers make of images.

Everything comes in as numpy arrays; each pair of tiles has one scale for both states, so that a change shows.
"""

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ulmfit_pipe.reports.plots import DOTS_PER_INCH, MUTED, Picture, finish_figure

MOST_FILTERS = 64  # drawn of a layer that has more: those that moved most
TILE_PIXELS = 48  # approximate side of a mosaic's tile in pixels before the picture is scaled
GAP = 0.12  # between tiles, as a share of a tile
PANEL, BAR = 3.2, 0.9  # inches: a mosaic's side, the colour scale's width
CELL, LABELS, TITLES = 1.05, 0.6, 0.75  # inches: a map's side, room left of the maps, and above and below them
LEAST_WIDTH = 5.5  # inches, for the name of a layer
STATES = ("before", "after")


def plot_filters(
    before: np.ndarray, after: np.ndarray, *, title: str = "First-layer filters", path: str | Path | None = None
) -> Picture:
    """Draw filters before and after, and where they changed.

    Args:
        before: float (filters, channels, height, width). Three channels are drawn in colour, one in grey, of any other
            number the mean in grey. Each filter's lowest number of both states is black, its highest white.
        after: The same, later.
        title: Title of the picture.
        path: Where to save a PNG, or None.

    Raises:
        ValueError: The two differ in shape, or are not filters.
    """
    if before.shape != after.shape or before.ndim != 4:
        raise ValueError(
            f"filters must be two arrays (filters, channels, height, width) of one shape, got {before.shape} and "
            f"{after.shape}"
        )
    before, after = before.astype(np.float64), after.astype(np.float64)
    moved = np.sqrt(((after - before) ** 2).mean(axis=(1, 2, 3)))
    shown = np.sort(np.argsort(-moved, kind="stable")[:MOST_FILTERS])
    low, high = (
        pick(np.stack([before[shown], after[shown]]), axis=(0, 2, 3, 4))[:, None, None, None]
        for pick in (np.min, np.max)
    )
    span = np.where(high > low, high - low, 1.0)
    figure = Picture(figsize=(3 * PANEL + BAR, PANEL + 0.5 * TITLES), dpi=DOTS_PER_INCH)
    figure.set_layout_engine("constrained", wspace=0.08)
    panels = figure.subplots(1, 3)
    for axes, state, filters in zip(panels, STATES, (before, after), strict=False):
        tiles = _visible((filters[shown] - low) / span)
        axes.imshow(_mosaic(tiles, empty=1.0), vmin=0, vmax=1, cmap="gray", interpolation="nearest")
        axes.set_title(state)
    change = np.sqrt((((after - before)[shown] / span) ** 2).mean(axis=1))  # (filters, height, width)
    colors = colormaps["viridis"].with_extremes(bad="white")
    drawn = panels[2].imshow(
        _mosaic(change, empty=np.nan), vmin=0, vmax=change.max() or 1.0, cmap=colors, interpolation="nearest"
    )
    panels[2].set_title("change" if change.any() else "change (none)")
    percent = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")
    scale = figure.colorbar(drawn, ax=panels[2], format=percent, ticks=MaxNLocator(4), shrink=0.8)
    scale.set_label("of the filter's own range", fontsize=8)
    scale.ax.tick_params(labelsize=8)
    for axes in panels:
        _bare(axes)
    count = f"{len(before)} filters" if len(shown) == len(before) else f"{len(shown)} of {len(before)} that moved most"
    figure.suptitle(f"{title} ({count}, {before.shape[2]} x {before.shape[3]})", fontweight="bold")
    return finish_figure(figure, path)


def plot_activations(
    images: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    *,
    layer: str,
    channels: int = 8,
    path: str | Path | None = None,
) -> Picture:
    """Draw what a layer makes of images before and after: the channels that changed most, a column each.

    Args:
        images: What the model saw, in [0, 1]: float (images, height, width, 3), or without the last axis in grey.
        before: The layer's maps, float (images, channels, rows, columns). A column has one scale for all its maps.
        after: The same, later.
        layer: The layer's name, for the title.
        channels: Most channels to draw.
        path: Where to save a PNG, or None.

    Raises:
        ValueError: The maps differ in shape, do not belong to the images, or no channel is asked for.
    """
    if before.shape != after.shape or before.ndim != 4 or len(images) != len(before) or not len(images):
        raise ValueError(
            f"activations must be two arrays (images, channels, rows, columns) of one shape, a map an image, got "
            f"{before.shape} and {after.shape} for {len(images)} images"
        )
    if channels < 1:
        raise ValueError(f"channels must be 1 or more, got {channels!r}")
    shown = most_changed(before, after, channels)
    rows, columns = 2 * len(images), 1 + len(shown)
    figure = Picture(
        figsize=(max(LEAST_WIDTH, CELL * (columns + 1) + LABELS), CELL * rows + TITLES),
        dpi=DOTS_PER_INCH,
        layout="constrained",
    )
    grid = figure.add_gridspec(rows, columns, width_ratios=[2.0] + [1.0] * len(shown))
    for row, image in enumerate(images):
        axes = figure.add_subplot(grid[2 * row : 2 * row + 2, 0])
        axes.imshow(image, vmin=0, vmax=1, cmap="gray")
        _bare(axes)
    for column, channel in enumerate(shown, start=1):
        pair = np.stack([before[:, channel], after[:, channel]])  # (state, images, rows, columns)
        low, high = float(pair.min()), float(pair.max())
        for row in range(rows):
            axes = figure.add_subplot(grid[row, column])
            tile = pair[row % 2, row // 2]
            axes.imshow(tile, vmin=low, vmax=high if high > low else low + 1, cmap="viridis", interpolation="nearest")
            _bare(axes)
            if row == 0:
                axes.set_title(f"channel {channel}", fontsize=8)
            if column == 1:
                axes.set_ylabel(STATES[row % 2], fontsize=8, color=MUTED)
    which = f"{len(shown)} of {before.shape[1]} channels, those that changed most; one scale a channel"
    figure.suptitle(layer, fontweight="bold", fontsize=11)
    figure.supxlabel(which, fontsize=8, color=MUTED)
    return finish_figure(figure, path)


def most_changed(before: np.ndarray, after: np.ndarray, count: int) -> list[int]:
    """Return the channels whose maps changed most, by root mean square over images and places, the most first."""
    difference = after.astype(np.float64) - before.astype(np.float64)
    moved = np.sqrt((difference**2).mean(axis=(0, 2, 3)))
    return [int(channel) for channel in np.argsort(-moved, kind="stable")[:count]]


def _visible(filters: np.ndarray) -> np.ndarray:
    """Turn filters float (filters, channels, height, width) into tiles, in colour where there are three channels."""
    return filters.transpose(0, 2, 3, 1) if filters.shape[1] == 3 else filters.mean(axis=1)


def _mosaic(tiles: np.ndarray, *, empty: float) -> np.ndarray:
    """Lay tiles float (tiles, height, width[, 3]) out in a square, row by row, with gaps between them."""
    count, height, width = tiles.shape[:3]
    scale = max(1, TILE_PIXELS // max(height, width))
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale, width * scale
    gap = max(1, round(GAP * max(height, width)))
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:])
    mosaic = np.full(shape, empty)
    for place, tile in enumerate(tiles):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        mosaic[top : top + height, left : left + width] = tile
    return mosaic


def _bare(axes: Axes) -> None:
    """Take ticks and frame off."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
