"""Pictures of what a classifier gets wrong: the confusion matrix, and the rows of the highest losses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ulmfit_pipe.console import in_one_line
from ulmfit_pipe.reports.plots import BLUE, DOTS_PER_INCH, MUTED, ORANGE, Picture, finish_figure, new_figure

MOST_NUMBERS = 25  # classes up to which a matrix has its counts written into it
LONGEST_NAME = 24  # characters
LONGEST_TEXT = 70


def plot_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], *, path: str | Path | None = None) -> Picture:
    """Draw a confusion matrix: a row for each true class, coloured by the share of its rows.

    Args:
        counts: Rows of each true class that got each label.
        names: The classes.
        path: Where to save a PNG, or None.
    """
    size = min(14.0, 2.5 + 0.6 * len(names))
    figure = Picture(figsize=(size, size), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    shown = [_cut(name, LONGEST_NAME) for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(names)), shown, parse_math=False)
    axes.set(xlabel="prediction", ylabel="truth", title="Confusion matrix")
    for place, row in enumerate(counts if len(names) <= MOST_NUMBERS else ()):
        for column, count in enumerate(row):
            color = "white" if shares[place][column] > 0.5 else "black"
            axes.text(column, place, f"{count:,}", ha="center", va="center", fontsize=9, color=color)
    return finish_figure(figure, path)


def plot_top_losses(rows: Sequence[Mapping[str, Any]], *, path: str | Path | None = None) -> Picture:
    """Draw the losses of rows as bars, the first on top, with truth, prediction and the beginning of the text.

    Args:
        rows: Mappings with ``text``, ``truth``, ``prediction``, ``score`` and ``loss``.
        path: Where to save a PNG, or None.
    """
    figure, axes = new_figure(height=0.9 + 0.55 * max(1, len(rows)))
    places = range(len(rows))
    colors = [BLUE if row["truth"] == row["prediction"] else ORANGE for row in rows]
    axes.barh(places, [row["loss"] for row in rows], color=colors, height=0.3)
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.4, -0.8)
    for place, row in zip(places, rows, strict=True):
        truth, given = (_cut(row[name], LONGEST_NAME) or "no label" for name in ("truth", "prediction"))
        words = f"{given} ({row['score']:.2f}), in truth {truth}: {_cut(row['text'], LONGEST_TEXT)}"
        axes.annotate(words, (0, place - 0.3), fontsize=8, color=MUTED, annotation_clip=False, parse_math=False)
    axes.set(xlabel="loss", title="Highest losses")
    return finish_figure(figure, path)


def _cut(text: str, length: int) -> str:
    shown = in_one_line(text)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"
