"""How sure a score is: 95 % intervals by the bootstrap over rows.

Identical rows are one entry of a count table, and a resample is a multinomial over its entries: memory depends
on the entries and not on the rows times the resamples.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array

from ulmfit_pipe.training.linear_probe import wilson_interval

RESAMPLES = 1_000
LEVEL = 0.95
MOST_AT_ONCE = 2_000_000  # numbers of the resamples that are in memory together

Interval = list[float]


def score_intervals(labels: np.ndarray, answers: np.ndarray, *, num_labels: int, seed: int) -> dict[str, Interval]:
    """Return the interval of accuracy and of macro F1, or for several labels a row of accuracy and micro F1.

    Where every row is right, or none is, no resample differs; so each interval is at least as wide as Wilson's for the
    accuracy there, and that of the accuracy always.

    Args:
        labels: Class of each row, int64 (rows,), or the labels given, bool (rows, num_labels).
        answers: What was predicted, in the same form.
        num_labels: Number of classes.
        seed: Seed of the resamples.
    """
    several = labels.ndim == 2
    if several:
        entries, counts = np.unique(_label_counts(labels, answers), axis=0, return_counts=True)
        score: Callable[[np.ndarray], np.ndarray] = lambda drawn: np.stack(  # noqa: E731
            [drawn @ entries[:, 2] / drawn.sum(axis=1), micro_f1(drawn @ entries[:, 0], drawn @ entries[:, 1])], axis=1
        )
        right = int(counts[entries[:, 2] == 1].sum())
    else:
        cells, counts = np.unique(labels * num_labels + answers, return_counts=True)
        score = _scores_of_cells(cells // num_labels, cells % num_labels, num_labels)
        right = int((labels == answers).sum())
    drawn = _resampled(counts, score, seed=seed, width=max(len(counts), 0 if several else num_labels))
    accuracy, f1 = (_middle(values) for values in drawn.T)
    wilson = wilson_interval(right / len(labels), len(labels))
    accuracy = [min(accuracy[0], wilson[0]), max(accuracy[1], wilson[1])]
    if f1[0] == f1[1]:
        f1 = [min(f1[0], wilson[0]), max(f1[1], wilson[1])]
    return {"accuracy": accuracy, "micro_f1" if several else "macro_f1": f1}


def paired_difference(
    labels: np.ndarray, answers: np.ndarray, others: np.ndarray, *, seed: int
) -> tuple[float, Interval]:
    """Return how far answers are ahead of others on the same rows, and the interval of that.

    It is the difference of the accuracies, or for several labels a row of the micro F1s. For the accuracies one row
    that only the one has right and one that only the other has right are added to the resamples (Bonett and Price
    2012), without which three rows of three would look like a proof.

    Args:
        labels: Class of each row, int64 (rows,), or the labels given, bool (rows, num_labels).
        answers: What was predicted, in the same form.
        others: What the other predicted.
        seed: Seed of the resamples.
    """
    if labels.ndim == 1:
        ahead = (answers == labels).astype(np.int64) - (others == labels)
        counts = np.array([(ahead == value).sum() for value in (-1, 0, 1)])
        drawn = _resampled(
            counts + [1, 0, 1], lambda rows: (rows[:, 2] - rows[:, 0]) / rows.sum(axis=1), seed=seed, width=3
        )
        return float(ahead.mean()), _middle(drawn)
    both = np.concatenate([_label_counts(labels, answers)[:, :2], _label_counts(labels, others)[:, :2]], axis=1)
    entries, counts = np.unique(both, axis=0, return_counts=True)

    def difference(drawn: np.ndarray) -> np.ndarray:
        sums = drawn @ entries  # (resamples, 4)
        return micro_f1(sums[:, 0], sums[:, 1]) - micro_f1(sums[:, 2], sums[:, 3])

    drawn = _resampled(counts, difference, seed=seed, width=len(counts))
    return float(difference(counts[None])[0]), _middle(drawn)


def micro_f1(hits: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the F1 of all decisions together.

    Args:
        hits: Labels rightly given: (resamples,).
        total: Labels given plus labels there: (resamples,).
    """
    return 2 * hits / np.maximum(total, 1)


def _label_counts(labels: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Return of each row the labels rightly given, those given plus those there, and 1 if all is right: (rows, 3)."""
    hits, exact = (labels & answers).sum(axis=1), (labels == answers).all(axis=1)
    return np.stack([hits, labels.sum(axis=1) + answers.sum(axis=1), exact], axis=1)


def _scores_of_cells(actual: np.ndarray, predicted: np.ndarray, num_labels: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what gives accuracy and macro F1 (resamples, 2) from counts of confusion cells (resamples, cells)."""
    cells, ones = np.arange(len(actual)), np.ones(len(actual))
    of_class, to_class = (csr_array((ones, (cells, kind)), (len(actual), num_labels)) for kind in (actual, predicted))
    right = actual == predicted
    hits = csr_array((ones[right], (cells[right], actual[right])), (len(actual), num_labels))

    def score(drawn: np.ndarray) -> np.ndarray:
        total = drawn @ of_class + drawn @ to_class  # (resamples, num_labels)
        f1 = 2 * (drawn @ hits) / np.maximum(total, 1)
        macro = f1.sum(axis=1) / (total > 0).sum(axis=1)  # over the classes that occur
        return np.stack([drawn[:, right].sum(axis=1) / drawn.sum(axis=1), macro], axis=1)

    return score


def _resampled(counts: np.ndarray, score: Callable[[np.ndarray], np.ndarray], *, seed: int, width: int) -> np.ndarray:
    """Return the scores of the resamples, (RESAMPLES, ...).

    Args:
        counts: Rows of each entry: (entries,).
        score: From counts (resamples, entries) to scores (resamples, ...).
        seed: Seed of the resamples.
        width: Numbers that a resample takes.
    """
    random, rows = np.random.default_rng(seed), int(counts.sum())
    at_once = max(1, MOST_AT_ONCE // width)
    sizes = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    return np.concatenate([score(random.multinomial(rows, counts / rows, size=size)) for size in sizes])


def _middle(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the bounds of the middle 95 % of values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
