"""Where the marks of the page's pictures are: plain geometry, which the template draws as inline SVG.

A picture is 480 units wide and is scaled to its column, so that its words can be read on a phone too. Every mark comes
with a title, which a browser shows where the pointer rests.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from ulmfit_pipe.reports.number_words import number, percent
from ulmfit_pipe.reports.predictions import Bin, Level

WIDTH, HEIGHT = 480.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 20.0, 34.0
NAMES = 100.0  # room for the names of layer groups
LEGEND = 44.0  # height below the freeze map
STOPS = 14  # colours that a phase's learning rate is drawn with
LABEL_ROOM = 30.0  # between two marks with labels
FADE = 1e3  # learning rates lower than the highest by more than this have the lowest colour
SCALE = ((59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis, without its darkest part


def phases_of(epochs: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Return name, first step and end of each phase that took steps; an epoch's step counts from its phase's start."""
    steps: dict[str, int] = {}
    for epoch in epochs:
        if epoch["total_steps"]:
            steps[epoch["phase"]] = epoch["step"]
    phases, first = [], 0
    for name, count in steps.items():
        phases.append((name, first, first + count))
        first += count
    return phases


def freeze_map(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the map of layer groups and steps, coloured by learning rate; None where no step was taken.

    Args:
        record: A stage's record: ``groups``, ``epochs`` and ``rates``.
    """
    stride, values = record["rates"]["stride"], record["rates"]["values"]
    phases, groups = phases_of(record["epochs"]), [group["group"] for group in record["groups"]]
    highest = max((rate for step in values for rate in step), default=0.0)
    if not phases or highest <= 0:
        return None
    lowest = max(min(rate for step in values for rate in step if rate > 0), highest / FADE)
    row = max(7.0, min(22.0, 250.0 / len(groups)))
    total, room = phases[-1][2], WIDTH - NAMES - RIGHT
    bands, marks = [], []
    for index, (name, start, end) in enumerate(phases):
        x, width = NAMES + room * start / total, room * (end - start) / total
        marks.append({"x": x, "width": width, "number": index + 1, "name": name})
        for group, label in enumerate(groups):
            rates = [step[group] for step in values[start // stride : max(end // stride, start // stride + 1)]]
            y = TOP + row * (len(groups) - 1 - group)
            bands.append({"x": x, "y": y, "width": width, **_band(label, name, start, end, rates, lowest, highest)})
    skip = math.ceil(11 / row)  # lines of text are 11 units apart at least
    names = [
        {"name": name, "y": TOP + row * (len(groups) - 1 - place) + row / 2 + 4}
        for place, name in enumerate(groups)
        if place % skip == 0 or place == len(groups) - 1
    ]
    bottom = TOP + row * len(groups)
    return {
        "width": WIDTH,
        "height": bottom + LEGEND + 12,
        "row": row,
        "bottom": bottom,
        "left": NAMES,
        "right": WIDTH - RIGHT,
        "bands": bands,
        "phases": marks,
        "names": names,
        "steps": total,
        "low": number(lowest),
        "high": number(highest),
        "scale": [_colour(place / 8) for place in range(9)],
    }


def _band(
    group: str, phase: str, start: int, end: int, rates: Sequence[float], lowest: float, highest: float
) -> dict[str, Any]:
    where = f"{group}, phase {phase}, steps {start + 1:,} to {end:,}"
    if not any(rates):
        return {"stops": [], "title": f"{where}: frozen"}
    shown = [rates[round(place * (len(rates) - 1) / (STOPS - 1))] for place in range(STOPS)]
    span = math.log(highest / lowest) or 1.0
    heights = [1 + math.log(max(rate, lowest) / highest) / span if highest > lowest else 1.0 for rate in shown]
    return {
        "stops": [_colour(height) for height in heights],
        "title": f"{where}: learning rate up to {number(max(rates))}",
    }


def _colour(height: float) -> str:
    place = min(max(height, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(place), len(SCALE) - 2)
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(SCALE[low], SCALE[low + 1], strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def curves(
    epochs: Sequence[Mapping[str, Any]], series: Mapping[str, Sequence[float | None]], *, best: int | None, title: str
) -> dict[str, Any] | None:
    """Return lines over the epochs with the phases' boundaries and the best epoch; None where there is no number.

    Args:
        epochs: Records of the epochs; their phases are marked.
        series: Name -> a value for each epoch, or None.
        best: Number of the epoch whose weights were kept, or None.
        title: What is measured.
    """
    known = {
        name: [(place, value) for place, value in enumerate(values) if value is not None and math.isfinite(value)]
        for name, values in series.items()
    }
    heights = [value for points in known.values() for _, value in points]
    if not heights:
        return None
    low, high = min(heights), max(heights)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(place: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / len(epochs)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low or 1.0)

    names = [epoch["phase"] for epoch in epochs]
    starts = [place for place in range(len(epochs)) if place == 0 or names[place] != names[place - 1]]
    ends = [*starts[1:], len(epochs)]
    numbers = list(accumulate(int(bool(epochs[start]["total_steps"])) for start in starts))  # the start is no phase
    step = max(1, math.ceil(len(epochs) / 12))
    return {
        "title": title,
        "ticks": [{"y": y(tick), "label": number(tick)} for tick in ticks],
        "epochs": [{"x": x(place), "label": place + 1} for place in range(0, len(epochs), step)],
        "phases": [
            {
                "x": x(start - 0.5),
                "width": x(end) - x(start),
                "number": count if epochs[start]["total_steps"] else "",
                "name": names[start],
            }
            for count, start, end in zip(numbers, starts, ends, strict=True)
        ],
        "best": None if best is None else x(best),
        "lines": [
            {
                "name": name,
                "points": [
                    {"x": x(place), "y": y(value), "title": _told(epochs, place, name, value, best)}
                    for place, value in points
                ],
            }
            for name, points in known.items()
            if points
        ],
    }


def _told(epochs: Sequence[Mapping[str, Any]], place: int, name: str, value: float, best: int | None) -> str:
    kept = " (kept)" if place == best else ""
    return f"epoch {place + 1}, phase {epochs[place]['phase']}{kept}: {name} {number(value)}"


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers within a range, about four, or its ends where there are none."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 3))
    step = next(unit * times for times in (1, 2, 5, 10) if span / (unit * times) <= 4)
    first = math.floor(low / step)
    return [round(step * place, 10) for place in range(first, math.ceil(high / step) + 1)]


def reliability_picture(bins: Sequence[Bin]) -> dict[str, Any]:
    """Return the bars of a reliability diagram: the share that is right over the score, and how many decisions."""
    size = HEIGHT + 40
    most = max(each.count for each in bins)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value

    def y(value: float) -> float:
        return size - BOTTOM - (size - TOP - BOTTOM) * value

    return {
        "height": size,
        "bars": [
            {
                "x": x(each.low) + 1.5,
                "width": x(each.high) - x(each.low) - 3,
                "y": y(each.accuracy),
                "height": max(y(0) - y(each.accuracy), 1),
                "opacity": 0.3 + 0.7 * math.sqrt(each.count / most),
                "title": f"scores {each.low:.2f} to {each.high:.2f}, {each.score:.2f} on average: {each.count:,} "
                f"answers, {percent(each.accuracy)} % right",
            }
            for each in bins
        ],
        "diagonal": (x(0), y(0), x(1), y(1)),
        "ticks": [{"y": y(value), "label": percent(value)} for value in (0, 0.25, 0.5, 0.75, 1)],
        "scores": [{"x": x(value), "label": f"{value:.1f}"} for value in (0, 0.2, 0.4, 0.6, 0.8, 1.0)],
    }


def coverage_picture(curve: Sequence[Level], levels: Sequence[Level]) -> dict[str, Any]:
    """Return accuracy over coverage as a line, and a mark at each round score."""
    size = HEIGHT + 40
    steady = [level for level in curve if level.coverage >= 0.02] or list(curve)
    low = min(0.95, math.floor(10 * min(level.accuracy for level in steady)) / 10)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value

    def y(value: float) -> float:
        return size - BOTTOM - (size - TOP - BOTTOM) * (max(value, low) - low) / (1 - low)

    step = max(1, len(steady) // 200)
    shown = [*steady[::step], steady[-1]]
    return {
        "height": size,
        "line": [{"x": x(level.coverage), "y": y(level.accuracy)} for level in shown],
        "marks": [
            {
                "x": x(level.coverage),
                "y": y(level.accuracy),
                "label": f"{level.score:g}".removeprefix("0") if room else "",
                "title": f"score {level.score:g} or more: {percent(level.coverage)} % of the texts are answered, "
                f"{percent(level.accuracy)} % of these right",
            }
            for level, room in zip(levels, _with_room([x(level.coverage) for level in levels]), strict=True)
        ],
        "ticks": [
            {"y": y(value), "label": f"{100 * value:.4g}"}
            for value in (low + (1 - low) * place / 4 for place in range(5))
        ],
        "shares": [{"x": x(value / 4), "label": f"{25 * value}"} for value in range(5)],
    }


def _with_room(places: Sequence[float]) -> Iterator[bool]:
    """Yield whether a mark has room for its label beside the last one that has one."""
    last = math.inf
    for place in places:
        room = abs(last - place) > LABEL_ROOM
        last = place if room else last
        yield room


def interval_bar(value: float, low: float, high: float, *, baseline: float | None = None) -> dict[str, float | None]:
    """Return where a score, its interval and a baseline are on a line from 0 to 1, 100 units long."""
    return {
        "value": 100 * value,
        "low": 100 * low,
        "high": 100 * high,
        "baseline": None if baseline is None else 100 * baseline,
    }
