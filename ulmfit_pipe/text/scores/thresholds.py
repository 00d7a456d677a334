"""The probability from which each label of a multi-label classifier counts as given, settled on validation rows."""

from collections.abc import Sequence

import numpy as np

from ulmfit_pipe.data.labels import shown_label
from ulmfit_pipe.training.metrics import choose_thresholds, multi_label_scores

LEAST_ROWS = 10  # with a label, and without it, for a threshold of its own; ours
ROUNDING = 1e-9  # between two scores
SHOWN_LABELS = 12  # labels listed in a line


def settle_thresholds(
    probabilities: np.ndarray, labels: np.ndarray, *, names: Sequence[str], monitor: str
) -> tuple[list[float], str]:
    """Choose thresholds by F1 where there are enough rows, unless 0.5 for every label does better.

    Args:
        probabilities: float (rows, num_labels), of validation.
        labels: bool (rows, num_labels).
        names: The labels.
        monitor: The metric that chose the best epoch. Neither it nor the share of rows with every label right may
            suffer; micro F1 takes the place of one that thresholds do not change.

    Returns:
        One threshold a label, and a line that reports them.
    """
    chosen = choose_thresholds(probabilities, labels, least_rows=LEAST_ROWS)
    halves = [0.5] * len(names)
    if chosen == halves:
        return halves, f"thresholds: {_listed(halves, labels, names)}"
    before, after = (multi_label_scores(probabilities, labels, values) for values in (halves, chosen))
    counted = monitor if monitor in ("micro_f1", "macro_f1") else "micro_f1"
    for name in (counted, "accuracy"):
        if after[name] < before[name] - ROUNDING:
            return halves, (
                f"thresholds: 0.5 for every label; those with the best F1 for each label would change {name} on the "
                f"{len(labels):,} validation rows from {before[name]:.3f} to {after[name]:.3f}"
            )
    return chosen, f"thresholds: {_listed(chosen, labels, names)}"


def _listed(thresholds: Sequence[float], labels: np.ndarray, names: Sequence[str]) -> str:
    """Return labels with their thresholds in words; only the first ones if there are many."""
    rows = np.minimum(labels.sum(axis=0), (~labels).sum(axis=0))  # (num_labels,)
    parts = [
        f"{shown_label(name)} {threshold:.2g}{' (too few rows)' if count < LEAST_ROWS else ''}"
        for name, threshold, count in zip(names, thresholds, rows, strict=True)
    ]
    more = f", and {len(parts) - SHOWN_LABELS:,} more" if len(parts) > SHOWN_LABELS else ""
    return ", ".join(parts[:SHOWN_LABELS]) + more
