"""What predictions of labelled rows show: confusions, scores per class, mistakes, and what a score is worth.

Everything is computed from plain rows, so that it can be made again from ``predictions.csv``.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
BINS = 15  # of scores, equally wide, for a reliability diagram and the expected calibration error; Guo et al. 2017
SHOWN_MISTAKES = 50  # most confident wrong rows, and as many least certain ones
EXAMPLES = 10  # further rows of a cell of the confusion matrix
MOST_EXAMPLES = 400  # of all cells together
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # scores from which a classifier may be asked to answer


@dataclass(frozen=True)
class Prediction:
    """One row and the answer to it; several labels are joined with ``|``.

    Attributes:
        row: Number of the row, from 1.
        text: The text, or its beginning.
        truth: The label that the table has.
        prediction: The label given.
        score: Probability of the prediction.
        scores: ``score_LABEL`` -> probability; empty where there are too many labels.
    """

    row: int
    text: str
    truth: str
    prediction: str
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether the prediction is the truth."""
        return self.truth == self.prediction


@dataclass(frozen=True)
class Bin:
    """Decisions whose scores are in a range: how many, their mean score, and the share that is right."""

    low: float
    high: float
    count: int
    score: float
    accuracy: float


@dataclass(frozen=True)
class Level:
    """What is left where answers below a score are withheld: share of the rows answered, share of these right."""

    score: float
    coverage: float
    accuracy: float


def confusion(rows: Iterable[Prediction]) -> Counter[tuple[str, str]]:
    """Return how many rows have each pair of truth and prediction."""
    return Counter((row.truth, row.prediction) for row in rows)


def most_confused(rows: Iterable[Prediction]) -> list[tuple[str, str, int]]:
    """Return truth, prediction and count of each kind of mistake, the most frequent first."""
    counts = confusion(rows)
    return [(*pair, count) for pair, count in counts.most_common() if pair[0] != pair[1]]


def class_scores(rows: Iterable[Prediction], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return ``precision``, ``recall``, ``f1`` and ``support`` of each class; 0 where undefined."""
    counts = confusion(rows)
    truth, given = Counter[str](), Counter[str]()
    for (true, predicted), count in counts.items():
        truth[true] += count
        given[predicted] += count
    found = {}
    for name in names:
        hits = counts[name, name]
        found[name] = {
            "precision": hits / given[name] if given[name] else 0.0,
            "recall": hits / truth[name] if truth[name] else 0.0,
            "f1": 2 * hits / (given[name] + truth[name]) if hits else 0.0,
            "support": truth[name],
        }
    return found


def most_confident_mistakes(rows: Iterable[Prediction]) -> list[Prediction]:
    """Return the wrong rows of the highest scores, the highest first."""
    return sorted((row for row in rows if not row.right), key=lambda row: -row.score)[:SHOWN_MISTAKES]


def least_certain(rows: Iterable[Prediction]) -> list[Prediction]:
    """Return the rows of the lowest scores, right or wrong, the lowest first."""
    return sorted(rows, key=lambda row: row.score)[:SHOWN_MISTAKES]


def examples_of_confusions(rows: Iterable[Prediction]) -> list[Prediction]:
    """Return rows of each pair of truth and prediction: of mistakes the most confident, of others the least certain.

    Cells take turns, so that none is left without an example while another has many.
    """
    cells: dict[tuple[str, str], list[Prediction]] = defaultdict(list)
    for row in rows:
        cells[row.truth, row.prediction].append(row)
    queues = [
        sorted(cell, key=lambda row: row.score if row.right else -row.score)[:EXAMPLES] for cell in cells.values()
    ]
    turns = [cell[turn] for turn in range(EXAMPLES) for cell in queues if turn < len(cell)]
    return turns[:MOST_EXAMPLES]


def reliability(decisions: Iterable[tuple[float, bool]]) -> list[Bin]:
    """Return the bins of scores that hold decisions.

    Args:
        decisions: Score in [0, 1] of each decision, and whether what it scores is so.
    """
    cells: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for score, right in decisions:
        cells[min(int(score * BINS), BINS - 1)].append((score, right))
    return [
        Bin(
            low=number / BINS,
            high=(number + 1) / BINS,
            count=len(cell),
            score=sum(score for score, _ in cell) / len(cell),
            accuracy=sum(right for _, right in cell) / len(cell),
        )
        for number, cell in enumerate(cells)
        if cell
    ]


def binned_error(scores: FloatArray, right: NDArray[Any]) -> float:
    """Return the expected calibration error: how far scores (rows,) are from how often they are right (rows,).

    Source: Guo et al. 2017, section 2.
    """
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    off = np.bincount(bins, weights=scores - right, minlength=BINS)
    return float(np.abs(off).sum() / len(scores))


def decisions_of(rows: Iterable[Prediction], *, several: bool) -> list[tuple[float, bool]]:
    """Return score and outcome of each answer, or with several labels of each label of each row."""
    if not several:
        return [(row.score, row.right) for row in rows]
    return [
        (score, name.removeprefix("score_") in row.truth.split("|"))
        for row in rows
        for name, score in row.scores.items()
    ]


def coverage_curve(rows: Sequence[Prediction]) -> list[Level]:
    """Return coverage and accuracy where only rows of at least a score are answered, one level per distinct score."""
    ranked = sorted(rows, key=lambda row: -row.score)
    right = list(accumulate(int(row.right) for row in ranked))
    ends = [
        place for place, row in enumerate(ranked, start=1) if place == len(ranked) or ranked[place].score < row.score
    ]
    return [Level(ranked[end - 1].score, end / len(ranked), right[end - 1] / end) for end in ends]


def levels_of(rows: Sequence[Prediction]) -> list[Level]:
    """Return coverage and accuracy at a few round scores; those that no row reaches are left out."""
    found = []
    for score in LEVELS:
        answered = [row for row in rows if row.score >= score]
        if answered:
            found.append(Level(score, len(answered) / len(rows), sum(row.right for row in answered) / len(answered)))
    return found
