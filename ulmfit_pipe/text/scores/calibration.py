"""Scores that mean something: temperatures fitted on rows that were not trained on, and how far scores are from true.

The logits of a class or label are divided by a temperature, one for all classes, or one for each label where a text may
have several. The best label of a text stays what it was, and so does on which side of 0.5 a label is.

Sources: Guo et al. 2017 (temperature, expected calibration error); Platt 1999 (what a label's targets are smoothed by).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.model_selection import KFold

from ulmfit_pipe.reports.predictions import binned_error

LEAST_ROWS = 100  # to fit temperatures on; with fewer they are mostly noise; ours
LEAST_OF_LABEL = 10  # rows with a label, and without it, for a temperature of its own; ours
FOLDS = 5  # to measure what temperatures are worth on rows that they were not fitted on
LARGEST = 20.0  # temperature; the smallest is its inverse
TOLERANCE = 1e-4  # of a temperature's logarithm
DIGITS = 4  # of a temperature that is kept
MOST_NUMBERS = 2_000_000  # scores that temperatures are fitted on: more take minutes and change little
CURVE_POINTS = 200  # of a coverage curve
TINY = 1e-300  # keeps the logarithm of a probability finite

Source = Literal["validation", "out-of-fold"]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Calibration:
    """Temperatures, and what they change.

    Attributes:
        temperature: What the logits are divided by: one number, or with several labels a text one a label.
        rows: Rows that it was fitted on.
        ece_before: Expected calibration error of the scores as they were.
        ece_after: That of rows scaled by temperatures that were fitted on the other folds.
        source: Which rows these are.
    """

    temperature: float | list[float]
    rows: int
    ece_before: float
    ece_after: float
    source: Source

    @property
    def changes_scores(self) -> bool:
        """Whether any temperature is not 1."""
        return bool(np.any(np.asarray(self.temperature) != 1))

    def record(self) -> dict[str, Any]:
        """Return what ``stage.json`` and ``metrics.json`` hold of it."""
        found = asdict(self)
        return {**{name: value for name, value in found.items() if name != "source"}, "from": self.source}

    def describe(self) -> str:
        """Return it in words, for a line."""
        where = f"{self.rows:,} {'validation' if self.source == 'validation' else 'out-of-fold'} rows"
        if not self.changes_scores:
            return f"scores: as they are; no temperature makes them better on {where} (error {self.ece_before:.3f})"
        if isinstance(self.temperature, float):
            what = f"a temperature of {self.temperature:.3g}"
        else:
            what = f"temperatures of {min(self.temperature):.3g} to {max(self.temperature):.3g}"
        return (
            f"scores: calibrated by {what}, fitted on {where}; expected calibration error {self.ece_before:.3f}, now "
            f"{self.ece_after:.3f}"
        )


def calibrate(
    probabilities: Floats, labels: NDArray[Any], *, source: Source, seed: int, growth: float = 1.0
) -> Calibration:
    """Fit temperatures, and measure on held-out folds what they are worth; where they are worth nothing, all are 1.

    Args:
        probabilities: float (rows, num_labels), of rows that the network was not trained on.
        labels: int64 (rows,), or bool (rows, num_labels).
        source: Which rows these are.
        seed: Seed of the folds.
        growth: What these rows' logits are to be multiplied by to be as large as those of the classifier that is
            calibrated: one made from more rows is more certain.
    """
    wanted = max(LEAST_ROWS, MOST_NUMBERS // probabilities.shape[1])
    rows = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), wanted)).astype(np.int64))
    probabilities, labels = probabilities[rows], labels[rows]
    held_out = np.empty_like(probabilities)
    for fitted, left in KFold(FOLDS, shuffle=True, random_state=seed).split(labels):
        temperatures = fit_temperatures(probabilities[fitted], labels[fitted])
        held_out[left] = scaled(probabilities[left], temperatures)
    before, after = (calibration_error(each, labels) for each in (probabilities, held_out))
    found = fit_temperatures(probabilities, labels)
    if not _log_loss(held_out, labels) < _log_loss(probabilities, labels):
        found, after, growth = np.ones_like(found), before, 1.0
    kept = [float(f"{value * growth:.{DIGITS}g}") for value in found]
    return Calibration(kept if labels.ndim == 2 else kept[0], len(labels), before, after, source)


def fit_temperatures(probabilities: Floats, labels: NDArray[Any]) -> Floats:
    """Return the temperatures with the lowest log loss: float64 (1,), or (num_labels,) where a row has several labels.

    So that no temperature makes a few rows certain, the targets are smoothed: by one row of all classes alike, or for
    each label as Platt does. A label that fewer than 10 rows have, or lack, keeps 1.

    Args:
        probabilities: float (rows, num_labels).
        labels: int64 (rows,), or bool (rows, num_labels).
    """
    if labels.ndim == 1:
        logits = np.log(np.maximum(probabilities, TINY))
        share = 1 / (len(labels) + 1)  # of the added row
        own = logits[np.arange(len(labels)), labels]
        target = (1 - share) * own.mean() + share * logits.mean()
        return np.array([_lowest(lambda scale: float(_log_sum(logits * scale).mean() - scale * target))])
    return np.array([_of_label(*pair) for pair in zip(probabilities.T, labels.T, strict=True)])


def _of_label(probabilities: Floats, given: NDArray[Any]) -> float:
    """Return the temperature of one label: float (rows,), bool (rows,)."""
    having = int(given.sum())
    lacking = len(given) - having
    if min(having, lacking) < LEAST_OF_LABEL:
        return 1.0
    logits = _logit(probabilities)
    targets = np.where(given, (having + 1) / (having + 2), 1 / (lacking + 2))
    return _lowest(lambda scale: float((np.logaddexp(0, logits * scale) - targets * logits * scale).mean()))


def _lowest(loss: Callable[[float], float]) -> float:
    """Return the temperature whose inverse, as the factor on logits, gives the lowest loss."""
    bound = math.log(LARGEST)
    found = minimize_scalar(
        lambda logarithm: loss(math.exp(-logarithm)),
        bounds=(-bound, bound),
        method="bounded",
        options={"xatol": TOLERANCE},
    )
    return math.exp(float(found.x))


def scaled(probabilities: Floats, temperatures: Floats) -> Floats:
    """Return what probabilities become once their logits are divided by temperatures.

    Args:
        probabilities: float (rows, num_labels).
        temperatures: float (1,) where a row has one label, else (num_labels,).
    """
    if len(temperatures) == 1 and probabilities.shape[1] > 1:
        logits = np.log(np.maximum(probabilities, TINY)) / temperatures
        return np.exp(logits - _log_sum(logits)[:, None])
    result: Floats = 1 / (1 + np.exp(-_logit(probabilities) / temperatures))
    return result


def calibration_error(probabilities: Floats, labels: NDArray[Any]) -> float:
    """Return the expected calibration error: how far scores are from how often they are right, by bins of scores.

    Of the label given, or where a row may have several of each label's probability.

    Args:
        probabilities: float (rows, num_labels).
        labels: int64 (rows,), or bool (rows, num_labels).
    """
    if labels.ndim == 1:
        scores, right = probabilities.max(1), probabilities.argmax(1) == labels
    else:
        scores, right = probabilities.ravel(), labels.ravel()
    return binned_error(scores, right)


def coverage_curve(scores: Floats, right: NDArray[Any]) -> list[list[float]]:
    """Return ``[score, share of rows with at least this score, share of these that are right]``, highest score first.

    Args:
        scores: float (rows,), of the labels given.
        right: bool (rows,).
    """
    order = np.argsort(-scores, kind="stable")
    counts = np.arange(1, len(scores) + 1)
    ends = np.append(np.diff(scores[order]) != 0, True)  # rows of equal scores come together
    points = np.stack([scores[order], counts / len(scores), right[order].cumsum() / counts], axis=1)[ends]
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), CURVE_POINTS)).astype(np.int64))
    return [[float(value) for value in point] for point in points[kept]]


def cut_for_precision(curve: Sequence[Sequence[float]], precision: float) -> tuple[float, float, float] | None:
    """Return the point of a coverage curve with the most rows of which this share is right, or None if there is none.

    Raises:
        ValueError: The precision is not above 0 and at most 1.
    """
    if isinstance(precision, bool) or not 0 < precision <= 1:
        raise ValueError(f"precision must be above 0 and at most 1, got {precision!r}; 0.95 is 95 of 100 labels right")
    met = [point for point in curve if point[2] >= precision]
    if not met:
        return None
    score, coverage, found = max(met, key=lambda point: point[1])
    return score, coverage, found


def _log_sum(logits: Floats) -> Floats:
    """Return the logarithm of the summed exponentials of each row."""
    top = logits.max(1)
    total: Floats = top + np.log(np.exp(logits - top[:, None]).sum(1))
    return total


def _logit(probabilities: Floats) -> Floats:
    result: Floats = np.log(np.maximum(probabilities, TINY)) - np.log(np.maximum(1 - probabilities, 1e-16))
    return result


def _log_loss(probabilities: Floats, labels: NDArray[Any]) -> float:
    if labels.ndim == 1:
        return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], TINY)).mean())
    return float(-np.log(np.maximum(np.where(labels, probabilities, 1 - probabilities), TINY)).mean())
