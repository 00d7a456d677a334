"""Logistic regression on fixed features: the linear classifier that a head starts from, and what it is worth.

Its strength is chosen by cross-validation, and the probabilities of held-out folds are kept: they show how good such a
classifier is on rows that it has not seen.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # C, on features of mean square length 1
USUAL_STRENGTH = 10.0  # where there are too few rows of a class, or too much to compute, to choose
FOLDS = 5
MOST_WORK = 2e9  # rows x width x labels x folds x strengths beyond which the strength is not chosen
MOST_ITERATIONS = 1_000
NORM_EPS = 1e-5  # added to a variance, as torch's batch norms do: features that hardly vary are not blown up
NO_ROW = -10.0  # logit of a label that no row has
Z_95 = 1.959964  # of the normal distribution, for an interval of 95 %

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Features:
    """What a frozen network gives its head.

    Attributes:
        values: float32 (rows, width), one row per text, in the table's order.
        labels: int64 (rows,), or float32 (rows, num_labels) of 0 and 1.
        seconds: Time that reading the texts took.
        skipped: Texts that were too long for the time there was.
        skipped_seconds: Time that reading them would have taken.
    """

    values: Floats
    labels: NDArray[Any]
    seconds: float
    skipped: int = 0
    skipped_seconds: float = 0.0


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on features, and what it is worth on rows that it was not made from.

    Attributes:
        weight: float64 (num_labels, width), for features as they come.
        bias: float64 (num_labels,).
        strength: Inverse of the regularization, C.
        held_out: float64 (rows, num_labels), probabilities of each row by a classifier made without it; None where
            nothing was held out.
        growth: How many times as long its weights are as those of the classifiers that gave `held_out`, which were
            made from fewer rows and are less certain.
    """

    weight: Floats
    bias: Floats
    strength: float
    held_out: Floats | None
    growth: float = 1.0

    def loss(self, features: Features) -> float:
        """Return the mean log loss on features, in multi-label summed over the labels."""
        several = features.labels.ndim == 2
        probabilities = _probabilities(features.values @ self.weight.T + self.bias, several=several)
        return _log_loss(probabilities, _targets(features.labels, len(self.bias)), several=several)


def fit_probe(features: Features, *, num_labels: int, each_alone: bool, bias: bool, seed: int) -> LinearProbe:
    """Fit logistic regression on features; its strength is chosen by cross-validated log loss.

    Args:
        features: What the frozen network gives.
        num_labels: Labels.
        each_alone: Scale each feature by its own deviation, as the batch norm of ULMFiT's head does, instead of all by
            one number.
        bias: Whether the head has biases; without them nothing is centred.
        seed: Seed of the folds.
    """
    x = features.values.astype(np.float64)
    centre = x.mean(0) if bias else np.zeros(x.shape[1])
    spread = np.sqrt((x - centre).var(0) + NORM_EPS) if each_alone else np.ones(x.shape[1])
    scaled = (x - centre) / spread
    length = math.sqrt(float((scaled**2).sum(1).mean())) or 1.0
    scaled, spread = scaled / length, spread * length
    targets = _targets(features.labels, num_labels)
    strength, held_out, length_of_others = _choose_strength(scaled, targets, features.labels, bias=bias, seed=seed)
    weight, intercept = _regress(scaled, targets, features.labels, strength=strength, bias=bias)
    growth = float(np.linalg.norm(weight)) / length_of_others if length_of_others else 1.0
    weight = weight / spread
    return LinearProbe(weight, intercept - weight @ centre, strength, held_out, growth)


def fit_new_rows(features: Features, *, weight: Floats, bias: Floats | None, num_labels: int) -> tuple[Floats, Floats]:
    """Fit the rows of new labels beside those of old ones, which stay as they are: their scores are on one scale.

    Args:
        features: What the frozen network gives for texts of old and new labels.
        weight: float (old labels, width), the rows there are.
        bias: float (old labels,), or None where the layer has none.
        num_labels: Old labels and new ones.

    Returns:
        weight float64 (new labels, width) and bias float64 (new labels,).
    """
    x, old = features.values.astype(np.float64), len(weight)
    fixed = x @ weight.T.astype(np.float64) + (0.0 if bias is None else bias)
    centre = x.mean(0) if bias is not None else np.zeros(x.shape[1])
    length = math.sqrt(float(((x - centre) ** 2).sum(1).mean())) or 1.0
    scaled = (x - centre) / length
    if bias is not None:
        scaled = np.concatenate([scaled, np.ones((len(x), 1))], axis=1)
    targets, several = _targets(features.labels, num_labels), features.labels.ndim == 2

    def loss(flat: Floats) -> tuple[float, Floats]:
        rows = flat.reshape(num_labels - old, -1)
        p = _probabilities(np.concatenate([fixed, scaled @ rows.T], axis=1), several=several)
        gradient = USUAL_STRENGTH * (p - targets)[:, old:].T @ scaled + rows
        value = USUAL_STRENGTH * len(x) * _log_loss(p, targets, several=several) + float((rows**2).sum()) / 2
        return value / len(x), gradient.ravel() / len(x)

    start = np.zeros((num_labels - old) * scaled.shape[1])
    rows = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": MOST_ITERATIONS}).x
    rows = rows.reshape(num_labels - old, -1)
    new = rows[:, : x.shape[1]] / length
    return new, (np.zeros(len(new)) if bias is None else rows[:, -1] - new @ centre)


def _targets(labels: NDArray[Any], num_labels: int) -> NDArray[Any]:
    """Return labels as a matrix of 0 and 1, (rows, num_labels)."""
    return labels if labels.ndim == 2 else np.eye(num_labels)[labels]


def _choose_strength(
    x: Floats, targets: NDArray[Any], labels: NDArray[Any], *, bias: bool, seed: int
) -> tuple[float, Floats | None, float]:
    """Return the strength with the lowest log loss on held-out folds, the probabilities there, and the weights' length.

    The length is the mean over the folds, 0 where nothing was held out.
    """
    counts = targets.sum(0)
    often = counts[counts >= 2]
    if len(often) < (1 if labels.ndim == 2 else 2):
        return USUAL_STRENGTH, None, 0.0
    folds = int(min(FOLDS, max(2, often.min())))
    strengths = STRENGTHS if x.size * targets.shape[1] * folds * len(STRENGTHS) <= MOST_WORK else (USUAL_STRENGTH,)
    groups = labels if labels.ndim == 1 else targets.argmax(1) * (targets.sum(1) > 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, groups))
    several, found, lengths = labels.ndim == 2, {}, {}
    for strength in strengths:
        held_out = np.empty(targets.shape)  # every row is in one of the folds
        lengths[strength] = 0.0
        for train, test in parts:
            weight, intercept = _regress(x[train], targets[train], labels[train], strength=strength, bias=bias)
            held_out[test] = _probabilities(x[test] @ weight.T + intercept, several=several)
            lengths[strength] += float(np.linalg.norm(weight)) / folds
        found[strength] = held_out
    best = min(found, key=lambda strength: _log_loss(found[strength], targets, several=several))
    return best, found[best], lengths[best]


def _regress(
    x: Floats, targets: NDArray[Any], labels: NDArray[Any], *, strength: float, bias: bool
) -> tuple[Floats, Floats]:
    """Return weight (num_labels, width) and bias (num_labels,) of regularized logistic regression."""
    num_labels = targets.shape[1]
    weight, intercept = np.zeros((num_labels, x.shape[1])), np.zeros(num_labels)
    model = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS, fit_intercept=bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a start, not an end
        if labels.ndim == 2:
            for label in range(num_labels):
                given = targets[:, label]
                if 0 < given.sum() < len(given):
                    model.fit(x, given)
                    weight[label], intercept[label] = model.coef_[0], np.ravel(model.intercept_)[0]
                else:
                    intercept[label] = NO_ROW if not given.any() else -NO_ROW
            return weight, intercept
        intercept[:] = NO_ROW
        model.fit(x, labels)
    known = model.classes_
    if len(known) == 2:  # one row: of the second class against the first
        weight[known] = np.concatenate([-model.coef_, model.coef_]) / 2
        intercept[known] = np.array([-1, 1]) * model.intercept_ / 2
    else:
        weight[known], intercept[known] = model.coef_, model.intercept_
    return weight, intercept if bias else np.zeros(num_labels)


def _probabilities(logits: Floats, *, several: bool) -> Floats:
    if several:
        return 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def _log_loss(probabilities: Floats, targets: NDArray[Any], *, several: bool) -> float:
    p = np.clip(probabilities, 1e-12, 1)
    loss = -(targets * np.log(p)).sum(1)
    if several:
        loss -= ((1 - targets) * np.log(np.clip(1 - probabilities, 1e-12, 1))).sum(1)
    return float(loss.mean())


@dataclass(frozen=True)
class HeldOutScore:
    """Accuracy on rows of held-out folds.

    Attributes:
        accuracy: Share of rows with the right label; in multi-label the share of labels that are right.
        interval: Its 95 % interval (Wilson's), lowest and highest.
        rows: Rows that were held out once.
    """

    accuracy: float
    interval: tuple[float, float]
    rows: int

    def describe(self) -> str:
        """Return it in words, for a line."""
        low, high = self.interval
        return f"{self.accuracy:.3f} (95 % {low:.3f} to {high:.3f}, {self.rows:,} rows)"


def held_out_score(probe: LinearProbe, labels: NDArray[Any]) -> HeldOutScore | None:
    """Return what a probe scores on rows that it was not made from, or None where none were held out."""
    if probe.held_out is None:
        return None
    p = probe.held_out
    right = (p.argmax(1) == labels) if labels.ndim == 1 else ((p >= 0.5) == (labels > 0.5)).mean(1)
    accuracy, rows = float(right.mean()), len(right)
    return HeldOutScore(accuracy, wilson_interval(accuracy, rows), rows)


def wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of independent rows (Wilson 1927)."""
    centre = share + Z_95**2 / (2 * rows)
    half = Z_95 * math.sqrt(share * (1 - share) / rows + Z_95**2 / (4 * rows**2))
    scale = 1 + Z_95**2 / rows
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
