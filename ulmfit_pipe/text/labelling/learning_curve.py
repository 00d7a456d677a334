"""What more labels would buy: the accuracy on subsets of the labelled rows, a power law through it, its interval.

Every row is held out once for each size; logistic regression on frozen features takes seconds where training takes
hours. The interval is that of resampled rows, over laws that end at no error and laws that level off.

Sources: power laws of learning curves, Hestness et al. 2017; with a floor, Figueroa et al. 2012.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.training.linear_probe import MOST_ITERATIONS, USUAL_STRENGTH, Features

LEAST_ROWS = 20  # labelled rows, and
LEAST_OF_CLASS = 5  # rows of each of two classes or more, below which folds show nothing
MOST_ROWS = 4_000  # rows that the curve is measured on: by then it is known
FOLDS, REPEATS, SIZES, RESAMPLES = 5, 3, 5, 300
FLOORS = np.linspace(0, 0.9, 7)  # error that no number of rows removes, as a share of the lowest that was measured
FAR = 3.0  # times the rows there are, beyond which a law is no more than a guess


class CurveError(UlmfitError, ValueError):
    """What more labels buy cannot be known from these rows; the message says why."""


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy by labelled rows, measured and extrapolated, all as shares.

    Attributes:
        sizes: Labelled rows trained on.
        accuracies: Cross-validated accuracy with so many.
        rows: Labelled rows there are.
        more: Further rows.
        now: Accuracy expected with the rows there are.
        then: Accuracy expected with the further ones.
        interval: 95 % interval of `then`.
        rises: Whether all but a few resamples agree that more rows help.
    """

    sizes: list[int]
    accuracies: list[float]
    rows: int
    more: int
    now: float
    then: float
    interval: tuple[float, float]
    rises: bool

    def __str__(self) -> str:
        """The curve in two lines."""
        measured = ", ".join(
            f"{size:,} rows {100 * value:.1f} %" for size, value in zip(self.sizes, self.accuracies, strict=True)
        )
        low, high = (100 * value for value in self.interval)
        line = (
            f"{self.more:,} more labels: {low:.0f} to {high:.0f} % (expected {100 * self.then:.1f} %, now "
            f"{100 * self.now:.1f} %)"
        )
        if not self.rises:
            line += "; whether they help at all cannot be told from these rows"
        elif self.rows + self.more > FAR * self.rows:
            line += f"; over {FAR:g} times the rows there are this is a guess"
        return f"learning curve (held-out folds, regression on frozen features, random rows): {measured}\n{line}"


def measure_curve(features: Features, *, more: int, seed: int) -> LearningCurve:
    """Measure how accuracy grows with labelled rows, and extrapolate it.

    Args:
        features: Of the labelled rows, by a network that has not seen their labels.
        more: Further rows.
        seed: Seed of folds, subsets and resamples.

    Raises:
        CurveError: There are too few rows, or they have several labels.
    """
    labels = features.labels
    _check(labels)
    generator, total = np.random.default_rng(seed), len(labels)
    kept = np.sort(generator.permutation(total)[:MOST_ROWS])
    x, labels = _scaled(features.values[kept]), labels[kept]
    least = max(2 * len(np.unique(labels)), math.ceil(len(labels) / 16), 8)
    most = len(labels) * (FOLDS - 1) // FOLDS
    sizes = sorted({round(size) for size in np.geomspace(min(least, most // 2), most, SIZES)})
    right = _held_out(x, labels, sizes, generator)  # (sizes, rows)
    draws = generator.integers(0, len(labels), (RESAMPLES, len(labels)))
    errors = np.stack([1 - right[:, draw].mean(1) for draw in draws])  # (resamples, sizes)
    own = np.asarray([total, total + more], dtype=np.float64)
    found = np.concatenate([_extrapolated(errors, np.asarray(sizes), own, floor=floor) for floor in FLOORS])
    expected = _mean_of_laws(1 - right.mean(1), np.asarray(sizes), own)
    low, high = np.quantile(found[:, 1], [0.025, 0.975])
    gains = found[:, 0] - found[:, 1]
    return LearningCurve(
        sizes,
        [float(value) for value in right.mean(1)],
        total,
        more,
        now=float(1 - expected[0]),
        then=float(1 - expected[1]),
        interval=(float(1 - high), float(1 - low)),
        rises=bool((gains > 0).mean() > 0.9),
    )


def _check(labels: NDArray[Any]) -> None:
    if labels.ndim == 2:
        raise CurveError("the curve is drawn for one label a text, and these have several")
    counts = np.unique(labels, return_counts=True)[1]
    if len(labels) < LEAST_ROWS or (counts >= LEAST_OF_CLASS).sum() < 2:
        raise CurveError(
            f"{len(labels):,} labelled rows are too few to tell: it takes {LEAST_ROWS}, and {LEAST_OF_CLASS} of each "
            "of two classes"
        )


def _scaled(values: NDArray[Any]) -> NDArray[Any]:
    """Return features centred and of mean square length 1, as the probe's strengths are meant for."""
    x = values.astype(np.float64) - values.mean(0)
    return np.asarray(x / (math.sqrt(float((x**2).sum(1).mean())) or 1.0))


def _held_out(x: NDArray[Any], labels: NDArray[Any], sizes: list[int], generator: np.random.Generator) -> NDArray[Any]:
    """Return how often each row was right while it was held out, float (sizes, rows)."""
    right = np.zeros((len(sizes), len(labels)))
    for _ in range(REPEATS):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=int(generator.integers(1 << 31)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class")
            warnings.simplefilter("ignore", ConvergenceWarning)
            for train, test in folds.split(x, labels):
                order = generator.permutation(train)
                for number, size in enumerate(sizes):
                    right[number, test] += _answers(x, labels, order[:size], test) == labels[test]
    return right / REPEATS


def _answers(x: NDArray[Any], labels: NDArray[Any], train: NDArray[Any], test: NDArray[Any]) -> NDArray[Any]:
    if len(np.unique(labels[train])) == 1:
        return np.full(len(test), labels[train[0]])
    model = LogisticRegression(C=USUAL_STRENGTH, max_iter=MOST_ITERATIONS).fit(x[train], labels[train])
    return np.asarray(model.predict(x[test]))


def _extrapolated(errors: NDArray[Any], sizes: NDArray[Any], rows: NDArray[Any], *, floor: float) -> NDArray[Any]:
    """Return the errors at numbers of rows by laws a * rows ** -b + c, float (laws, numbers).

    Args:
        errors: float (laws, sizes).
        sizes: Rows that they were measured with.
        rows: Numbers of rows.
        floor: c as a share of the lowest error of a law.
    """
    c = floor * errors.min(1, keepdims=True)
    values = np.log(np.maximum(errors - c, 1e-4))
    x, aim = np.log(sizes), np.log(rows)
    slope = ((values - values.mean(1, keepdims=True)) @ (x - x.mean())) / ((x - x.mean()) ** 2).sum()
    return np.asarray(np.clip(c + np.exp(values.mean(1)[:, None] + slope[:, None] * (aim - x.mean())), 0, 1))


def _mean_of_laws(errors: NDArray[Any], sizes: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    return np.mean([_extrapolated(errors[None], sizes, rows, floor=floor)[0] for floor in FLOORS], axis=0)
