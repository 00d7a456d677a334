"""Intervals against closed forms."""

import math

import numpy as np
import pytest

from ulmfit_pipe.text.scores import bootstrap
from ulmfit_pipe.text.scores.bootstrap import paired_difference, score_intervals
from ulmfit_pipe.training.linear_probe import wilson_interval


def answers_with(right, rows):
    """Return labels of two classes in turn, and answers of which so many, spread evenly, are right."""
    labels = np.arange(rows) % 2
    wrong = np.arange(rows) >= right
    return labels, np.where(wrong, 1 - labels, labels)


def test_the_interval_of_the_accuracy_is_the_binomials():
    labels, answers = answers_with(320, 400)
    low, high = score_intervals(labels, answers, num_labels=2, seed=0)["accuracy"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.01)


def test_the_interval_of_macro_f1_is_that_of_resampled_rows():
    chance = np.random.default_rng(1)
    labels = chance.integers(0, 3, 300)
    answers = np.where(chance.random(300) < 0.7, labels, chance.integers(0, 3, 300))
    from sklearn.metrics import f1_score

    drawn = [chance.integers(0, 300, 300) for _ in range(400)]
    scores = [f1_score(labels[rows], answers[rows], average="macro") for rows in drawn]
    found = score_intervals(labels, answers, num_labels=3, seed=0)["macro_f1"]
    assert found == pytest.approx(np.quantile(scores, [0.025, 0.975]).tolist(), abs=0.015)


def test_a_few_rows_that_are_all_right_prove_little():
    rows = np.zeros(3, dtype=int)
    found = score_intervals(rows, rows, num_labels=2, seed=0)
    assert found["accuracy"] == found["macro_f1"] == pytest.approx([0.4385, 1.0], abs=1e-4)  # Wilson's of 3 in 3
    assert wilson_interval(0, 3) == pytest.approx((0.0, 0.5615), abs=1e-4)


def test_for_several_labels_a_row_the_interval_is_of_micro_f1():
    labels = np.array([[True, False], [True, True]] * 100)
    answers = np.array([[True, False], [True, False]] * 100)
    found = score_intervals(labels, answers, num_labels=2, seed=0)
    # per row (hits, total): (1, 2) and (1, 3): micro F1 2 / (2 + share of the second), the share within .5 +- .069
    assert found["micro_f1"] == pytest.approx([2 / 2.569, 2 / 2.431], abs=0.005)
    assert found["accuracy"] == pytest.approx([0.431, 0.569], abs=0.01)


def test_the_same_seed_gives_the_same_interval_however_few_resamples_are_in_memory(monkeypatch):
    labels, answers = answers_with(70, 100)
    whole = score_intervals(labels, answers, num_labels=2, seed=3)
    assert score_intervals(labels, answers, num_labels=2, seed=3) == whole
    monkeypatch.setattr(bootstrap, "MOST_AT_ONCE", 50)
    parts = score_intervals(labels, answers, num_labels=2, seed=3)
    assert parts["macro_f1"] == pytest.approx(whole["macro_f1"])


def test_what_is_better_on_the_same_rows_is_ahead_and_what_differs_by_chance_is_not():
    labels, good = answers_with(180, 200)
    _, poor = answers_with(140, 200)
    ahead, (low, high) = paired_difference(labels, good, poor, seed=0)
    assert ahead == pytest.approx(0.2)
    half = 1.96 * math.sqrt((0.2 - 0.2**2) / 200)  # 40 rows that only the one has right
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half), abs=0.015)
    _, as_good = answers_with(178, 200)
    assert paired_difference(labels, good, as_good, seed=0)[1][0] <= 0
    assert paired_difference(labels, good, good, seed=0)[0] == 0.0


def test_four_rows_of_four_are_no_proof():
    labels = np.zeros(50, dtype=int)
    for wins, proof in ((4, False), (7, True)):  # the sign test: p .125 and .016
        others = (np.arange(50) < wins).astype(int)
        assert (paired_difference(labels, labels, others, seed=0)[1][0] > 0) is proof


def test_for_several_labels_the_difference_is_of_micro_f1():
    labels = np.array([[True, False], [True, True]] * 50)
    half = labels & np.array([True, False])
    ahead, (low, high) = paired_difference(labels, labels, half, seed=0)
    assert ahead == pytest.approx(1 - 2 * 100 / (150 + 100))
    assert low < ahead < high
