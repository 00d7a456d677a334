"""Which rows to label next: uncertain ones, spread out over what the frozen network makes of the texts.

Sources: margin, Scheffer, Decomain & Wrobel 2001; uncertain rows first and k-means among them, Zhdanov 2019;
k-means++ on gradients (badge), Ash et al. 2020.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, kmeans_plusplus

from ulmfit_pipe.settings.choices import LabelStrategy

PRESELECTED = 10  # most uncertain rows for each row wanted, among which k-means spreads out (Zhdanov 2019)

Floats = NDArray[np.floating[Any]]


def uncertainty(probabilities: Floats, *, several: bool = False) -> Floats:
    """Return how near the second label is to the first, float (rows,): 1 where they are equal, 0 where all is certain.

    Args:
        probabilities: float (rows, num_labels).
        several: Whether a text may have several labels; then of the label that is nearest to 0.5.
    """
    if several:
        return np.asarray(1 - np.abs(2 * probabilities - 1).min(1))
    first = np.sort(probabilities, axis=1)[:, ::-1]
    return np.asarray(1 - (first[:, 0] - first[:, 1])) if first.shape[1] > 1 else np.zeros(len(first))


def choose_rows(
    features: Floats, probabilities: Floats, *, n: int, strategy: LabelStrategy, seed: int = 0, several: bool = False
) -> list[int]:
    """Return the rows to label next, the most uncertain first.

    Args:
        features: float (rows, width), what a frozen network gives for the texts.
        probabilities: float (rows, num_labels), the classifier's.
        n: Rows wanted, at most as many as there are.
        strategy: margin takes the most uncertain; margin-kmeans of ten times as many the nearest to each of n centres;
            entropy the rows with the highest entropy; badge k-means++ on the head's gradients; kmeans the nearest to
            n centres of all; random any.
        seed: Seed of centres and of random.
        several: Whether a text may have several labels.
    """
    unsure = uncertainty(probabilities, several=several)
    order = np.argsort(-unsure, kind="stable")
    if strategy == "random":
        chosen = np.random.default_rng(seed).choice(len(unsure), n, replace=False)
    elif strategy == "margin":
        chosen = order[:n]
    elif strategy == "entropy":
        chosen = np.argsort(-_entropy(probabilities, several=several), kind="stable")[:n]
    elif strategy == "badge":
        chosen = _badge(features, probabilities, n, seed)
    elif strategy == "kmeans":
        chosen = _spread(features, unsure, np.arange(len(unsure)), n, seed)
    else:
        chosen = _spread(features, unsure, order[: PRESELECTED * n], n, seed)
    return [int(row) for row in sorted(chosen, key=lambda row: -unsure[row])]


def _entropy(probabilities: Floats, *, several: bool) -> Floats:
    p = np.clip(probabilities, 1e-12, 1)
    found = -(p * np.log(p)).sum(1)
    if several:
        q = np.clip(1 - probabilities, 1e-12, 1)
        found -= (q * np.log(q)).sum(1)
    return np.asarray(found)


def _spread(features: Floats, unsure: Floats, rows: NDArray[Any], n: int, seed: int) -> NDArray[Any]:
    """Return the row nearest to each of n centres, that are drawn towards uncertain rows; others fill up."""
    if len(rows) <= n:
        return rows[:n]
    values = _normalized(features[rows])
    weights = unsure[rows] + 1e-6  # a certain row counts too, if there is no other
    model = KMeans(n, n_init=1, random_state=seed).fit(values, sample_weight=weights)
    distance = ((values - model.cluster_centers_[model.labels_]) ** 2).sum(1)
    order = np.argsort(distance, kind="stable")
    nearest = order[np.unique(model.labels_[order], return_index=True)[1]]
    others = np.setdiff1d(np.arange(len(rows)), nearest)  # where rows are alike there are fewer centres than wanted
    return np.asarray(rows[np.concatenate([nearest, others])[:n]])


def _badge(features: Floats, probabilities: Floats, n: int, seed: int) -> NDArray[Any]:
    """Return rows by k-means++ on the gradient that the last layer would get if the answer were right."""
    given = np.eye(probabilities.shape[1])[probabilities.argmax(1)]
    gradients = (probabilities - given)[:, :, None] * _normalized(features)[:, None, :]
    return np.asarray(kmeans_plusplus(gradients.reshape(len(features), -1), n, random_state=seed)[1])


def _normalized(features: Floats) -> Floats:
    values = features.astype(np.float64) - features.mean(0)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))
