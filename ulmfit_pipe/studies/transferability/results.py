"""What the curves of transferability come to: mean and spread over seeds, a table, a picture, and one sentence.

Statistics are of paired differences between networks of the same seed: the same split, rows and number of steps.

fragile co-adaptation   BnB+ - BnB: the task's own layers are there, and only cannot follow the new ones above them
specificity             BnB - AnB: frozen layers of the other task instead of the task's own
cost of freezing        AnB+ - AnB: both together, what unfreezing wins back

Source: Yosinski et al. 2014, section 4.1. There BnB is held against baseB, which is BnB+ but for noise; BnB+ has the
same new layers, and also fits where the bases start from a pretrained model.
"""

import csv
import dataclasses
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit_pipe.reports.transferability import plot_transferability
from ulmfit_pipe.settings.studies import TransferabilitySettings
from ulmfit_pipe.storage.atomic import write_atomic
from ulmfit_pipe.storage.json_files import write_json
from ulmfit_pipe.storage.versions import library_versions
from ulmfit_pipe.studies.grid.cells import CellFolder
from ulmfit_pipe.studies.grid.results import RESULTS_FILE, Record, markdown, of_one_recipe, without_identity
from ulmfit_pipe.studies.transferability.networks import BASE_A, BASE_B, CURVES, NEW

FIGURE_FILE = "transferability.png"
COVERAGE = 0.9  # of the intervals, by Student's t over the seeds
T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)  # its 95 % point, 1 to 9 degrees of freedom
MADE_OF = {"co-adaptation": ("BnB+", "BnB"), "specificity": ("BnB", "AnB"), "freezing": ("AnB+", "AnB")}
CSV_COLUMNS = ("curve", "n", "seed", "accuracy", "error", "macro_f1", "rows", "test_rows", "steps", "seconds")
ABOUT = (
    "The classes are split into tasks A and B, for each seed anew unless they were given; every figure is the accuracy "
    "on test rows of task B. Layer groups 1..n come from a network trained on B itself (BnB) or on A (AnB) and stay "
    "frozen, or are unfrozen after the first phase (BnB+, AnB+); or are random and frozen, with batch norms set to "
    "the training data. The groups above are new and random, the same ones for every curve of a seed. baseB is an "
    "ordinary network of task B, with other random weights. All have the same rates, number of epochs and order of "
    "rows, and are tested with the weights of the last epoch."
)


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences over seeds, with its interval.

    Attributes:
        mean: In accuracy, 0.01 is a point.
        half: Half the interval's width; None with one seed, which shows no spread.
        seeds: Number of pairs.
    """

    mean: float
    half: float | None
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 where the difference is surely above or below 0, else 0; with one seed that of the difference."""
        if abs(self.mean) <= (self.half or 0.0):
            return 0
        return 1 if self.mean > 0 else -1

    def in_words(self) -> str:
        """Return ``+7.1 points, 90 % interval +5.0 to +9.2 over 3 seeds``."""
        points = f"{100 * self.mean:+.1f} points"
        if self.half is None:
            return f"{points} in the only seed"
        low, high = 100 * (self.mean - self.half), 100 * (self.mean + self.half)
        return f"{points}, {100 * COVERAGE:.0f} % interval {low:+.1f} to {high:+.1f} over {self.seeds} seeds"


Scores = Mapping[tuple[str, int], Mapping[int, float]]  # curve and n -> seed -> accuracy


def write_transferability(
    settings: "TransferabilitySettings", *, groups: Sequence[str], say: Callable[[str], None]
) -> Record:
    """Write the results of the cells there are and draw the picture.

    Args:
        settings: Settings of the experiment; a cell counts if its n is one of them and its seed is.
        groups: Names of the layer groups, input side first.
        say: Receives log lines on which cells are left out.

    Returns:
        What ``results.json`` holds.

    Raises:
        ValueError: No network of the experiment is finished.
    """
    output = Path(settings.output_dir)
    kept, left = of_one_recipe(CellFolder(output / "cells").records(), say=say)
    wanted = [0, *(settings.layers or ())]
    kept = [record for record in kept if record["copied"] in wanted and record["cell"]["seed"] < settings.seeds]
    if not kept:
        raise ValueError(f"{output / 'cells'} holds no finished network; run the experiment first")
    scores = scores_of(kept)
    points = points_of(scores)
    figure = Path(settings.figure or output / FIGURE_FILE)
    results: Record = {
        "title": settings.title,
        "about": ABOUT,
        "groups": list(groups),
        "points": points,
        "differences": differences_of(scores),
        "answer": answer_of(scores, groups),
        "table": table_of(points, groups),
        "cells": without_identity(kept),
        "left_out": without_identity(left),
        "settings": dataclasses.asdict(settings),
        "versions": library_versions(),
        "figure": str(figure),
    }
    write_json(output / RESULTS_FILE, results)
    write_atomic(output / "results.csv", csv_of(kept))
    write_atomic(output / "results.md", f"{results['table']}\n\n{results['answer']}\n\n{ABOUT}\n".encode())
    figure.parent.mkdir(parents=True, exist_ok=True)
    plot_transferability(points, groups, title=str(settings.title), path=figure)
    return results


def scores_of(records: Sequence[Record]) -> dict[tuple[str, int], dict[int, float]]:
    """Return the accuracy of each seed by curve and n."""
    scores: dict[tuple[str, int], dict[int, float]] = {}
    for record in records:
        scores.setdefault((record["curve"], record["copied"]), {})[record["cell"]["seed"]] = record["accuracy"]
    return scores


def points_of(scores: Scores) -> list[Record]:
    """Return ``curve, n, accuracy, lowest, highest, seeds`` of each curve and n, curves in the paper's order."""
    order = [BASE_B, BASE_A, NEW, *CURVES]
    return [
        {
            "curve": curve,
            "n": n,
            "accuracy": statistics.fmean(seeds.values()),
            "lowest": min(seeds.values()),
            "highest": max(seeds.values()),
            "seeds": len(seeds),
        }
        for (curve, n), seeds in sorted(scores.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]


def difference(scores: Scores, better: tuple[str, int], worse: tuple[str, int]) -> Difference | None:
    """Return how much more accurate one network is than another, over the seeds that both have; None without any."""
    first, second = scores.get(better, {}), scores.get(worse, {})
    pairs = [first[seed] - second[seed] for seed in sorted(set(first) & set(second))]
    if not pairs:
        return None
    if len(pairs) == 1:
        return Difference(pairs[0], None, 1)
    error = statistics.stdev(pairs) / len(pairs) ** 0.5
    reach = T_95[min(len(pairs) - 1, len(T_95)) - 1]  # with more than ten seeds a little wide
    return Difference(statistics.fmean(pairs), reach * error, len(pairs))


def differences_of(scores: Scores) -> list[Record]:
    """Return what the sentence is made of, as records: ``what, n, mean, half, seeds``."""
    found = []
    for what, (better, worse) in MADE_OF.items():
        for n in sorted({n for curve, n in scores if curve == better}):
            judged = difference(scores, (better, n), (worse, n))
            if judged is not None:
                found.append({"what": what, "n": n, **dataclasses.asdict(judged), "sign": judged.sign})
    return found


def answer_of(scores: Scores, groups: Sequence[str]) -> str:
    """Return a sentence on whether unfreezing after training the head helps, and from which n on freezing costs."""
    places = sorted({n for curve, n in scores if curve == "AnB+"})
    judged = None if not places else difference(scores, ("AnB+", places[-1]), ("AnB", places[-1]))
    if judged is None:
        return "The figures do not show yet whether unfreezing helps: AnB and AnB+ have no seed in common."
    last = places[-1]
    unfrozen, frozen = (100 * statistics.fmean(scores[curve, last].values()) for curve in ("AnB+", "AnB"))
    verdict = {1: "helps", -1: "does harm", 0: "neither helps nor harms for sure"}[judged.sign]
    whole = last == len(groups) - 1
    copied = "the layer group" if last == 1 else f"all {last} layer groups"
    copied += " below the head" if whole else f" up to {groups[last - 1]}"
    return (
        f"Unfreezing after training the {'head' if whole else 'new layers'} {verdict} on these data: with "
        f"{copied} taken from the other task, the accuracy is {unfrozen:.1f} % unfrozen and {frozen:.1f} % frozen "
        f"({judged.in_words()}); {_costs(scores, groups)}."
    )


def _costs(scores: Scores, groups: Sequence[str]) -> str:
    parts = {what: _where(scores, groups, what) for what in MADE_OF}
    return (
        f"freezing the other task's layers costs {parts['freezing']}; of it, layers that were torn from those above "
        f"them (fragile co-adaptation) cost {parts['co-adaptation']}, and their being the other task's (specificity) "
        f"costs {parts['specificity']}"
    )


def _where(scores: Scores, groups: Sequence[str], what: str) -> str:
    """Return where something costs and how much, such as ``from n = 3 (stage1) on, up to 7.1 points at n = 4``."""
    better, worse = MADE_OF[what]
    judged = {n: difference(scores, (better, n), (worse, n)) for n in sorted({n for curve, n in scores if n})}
    known = {n: one for n, one in judged.items() if one is not None}
    costly = [n for n, one in known.items() if one.sign > 0]
    if not costly:
        return "nowhere for sure"
    most = max(costly, key=lambda n: known[n].mean)
    points = f"{100 * known[most].mean:.1f} points"
    if len(costly) > 1:
        points = f"up to {points} at n = {most}"
    if costly == list(known)[-len(costly) :]:
        return f"from n = {costly[0]} ({groups[costly[0] - 1]}) on, {points}"
    return f"at n = {' and '.join(f'{n} ({groups[n - 1]})' for n in costly)}, {points}"


def table_of(points: Sequence[Record], groups: Sequence[str]) -> str:
    """Return Markdown: n down, the curves across, test accuracy in per cent with lowest and highest seed."""
    found = {(point["curve"], point["n"]): point for point in points}
    header = ["test accuracy %", *CURVES]
    body = [["baseB (the line)", *([_in_words(found.get((BASE_B, 0)))] + ["-"] * (len(CURVES) - 1))]]
    if (NEW, 0) in found:
        body.append(["n = 0, all new", *[_in_words(found[NEW, 0])] * len(CURVES)])
    for n in sorted({n for curve, n in found if curve in CURVES}):
        body.append([f"n = {n}, up to {groups[n - 1]}", *(_in_words(found.get((curve, n))) for curve in CURVES)])
    return markdown([header, *body])


def _in_words(point: Record | None) -> str:
    if point is None:
        return "-"
    mean = f"{100 * point['accuracy']:.1f}"
    return mean if point["seeds"] == 1 else f"{mean} ({100 * point['lowest']:.1f}-{100 * point['highest']:.1f})"


def csv_of(records: Sequence[Record]) -> bytes:
    """Return the networks as CSV, one per row; the bases' rows are those of their own task."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for record in records:
        own = {"n": record["copied"], "seed": record["cell"]["seed"], "test_rows": record["n"]}
        values: dict[str, Any] = {**record, **own}
        writer.writerow([values.get(name, "") for name in CSV_COLUMNS])
    return text.getvalue().encode()
