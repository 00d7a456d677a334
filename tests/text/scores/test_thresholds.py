"""Thresholds of labels, settled on hand-made probabilities."""

import numpy as np
import pytest

from ulmfit_pipe.text.scores.thresholds import settle_thresholds


def rows(*groups):
    """Return probabilities and labels of one label: (count, probability, whether the rows have it)."""
    probabilities = np.concatenate([np.full(count, value) for count, value, _ in groups])
    return probabilities[:, None], np.concatenate([np.full(count, has) for count, _, has in groups])[:, None]


def beside(*columns):
    return tuple(np.concatenate(parts, axis=1) for parts in zip(*columns, strict=True))


CLEAR = rows((10, 0.4, True), (10, 0.2, False))
RARE = rows((9, 0.4, True), (11, 0.2, False))


def test_a_label_with_enough_rows_gets_its_own_threshold_and_another_keeps_a_half():
    thresholds, line = settle_thresholds(*beside(CLEAR, RARE), names=["toxic", "obscene"], monitor="micro_f1")
    assert thresholds == pytest.approx([0.3, 0.5])
    assert line == "thresholds: toxic 0.3, obscene 0.5 (too few rows)"


def test_nothing_is_chosen_on_few_rows():
    thresholds, line = settle_thresholds(*RARE, names=["toxic"], monitor="micro_f1")
    assert (thresholds, line) == ([0.5], "thresholds: toxic 0.5 (too few rows)")


def test_thresholds_that_make_fewer_rows_right_are_not_taken():
    """From 0.05 on all 40 rows are given: F1 rises from 0 to 1/2, and of 30 rows right 10 are left."""
    probabilities, labels = rows((10, 0.1, True), (30, 0.1, False))
    thresholds, line = settle_thresholds(probabilities, labels, names=["toxic"], monitor="micro_f1")
    assert thresholds == [0.5]
    assert line == (
        "thresholds: 0.5 for every label; those with the best F1 for each label would change accuracy on the 40 "
        "validation rows from 0.750 to 0.250"
    )


@pytest.mark.parametrize("monitor", ["micro_f1", "loss", "mean_average_precision"])
def test_thresholds_that_lower_micro_f1_are_not_taken(monitor):
    """The first label's F1 rises from 0 to 1/3 by 40 wrong labels, which the second label's right ones must pay for."""
    probabilities, labels = beside(rows((10, 0.1, True), (40, 0.1, False)), rows((50, 0.9, True)))
    thresholds, line = settle_thresholds(probabilities, labels, names=["a", "b"], monitor=monitor)
    assert thresholds == [0.5, 0.5]
    assert "would change micro_f1 on the 50 validation rows from 0.909 to 0.750" in line


def test_macro_f1_counts_where_it_chose_the_best_epoch():
    probabilities, labels = beside(rows((10, 0.1, True), (40, 0.1, False)), rows((50, 0.9, True)))
    _, line = settle_thresholds(probabilities, labels, names=["a", "b"], monitor="macro_f1")
    assert "would change accuracy on the 50 validation rows from 0.800 to 0.200" in line


def test_the_line_is_bounded_for_many_and_long_labels():
    names = [f"label {number} {'x' * 500}" for number in range(1000)]
    probabilities, labels = beside(*[CLEAR] * 1000)
    thresholds, line = settle_thresholds(probabilities, labels, names=names, monitor="micro_f1")
    assert thresholds == pytest.approx([0.3] * 1000)
    assert line.endswith(", and 988 more")
    assert len(line) < 2000
    assert "\n" not in line
