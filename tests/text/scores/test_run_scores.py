"""What a run's scores hold beside accuracy, by hand-computed values."""

import numpy as np
import pytest

from tests.support.tiny_runs import heard, reviews, table
from ulmfit_pipe.text.predict.predictor import ScoredRows
from ulmfit_pipe.text.scores import run_scores
from ulmfit_pipe.text.scores.run_scores import majority_share, more_scores, per_class, plain_scores
from ulmfit_pipe.text.scores.tfidf import fit_tfidf
from ulmfit_pipe.text.tables import RunTables

TRAIN, TEST = table(reviews(40)), table(reviews(20, seed=7))


def test_per_class_scores_of_a_confusion_matrix_of_2_by_2():
    labels = np.array([0] * 10 + [1] * 5)
    answers = np.array([0] * 8 + [1] * 2 + [0] * 1 + [1] * 4)  # 8 2 / 1 4
    found = per_class(labels, answers, names=["bad", "good"])
    assert found["bad"] == pytest.approx({"precision": 8 / 9, "recall": 0.8, "f1": 16 / 19, "support": 10})
    assert found["good"] == pytest.approx({"precision": 4 / 6, "recall": 0.8, "f1": 8 / 11, "support": 5})
    scores = plain_scores(labels, answers)
    assert scores == pytest.approx({"accuracy": 12 / 15, "macro_f1": (16 / 19 + 8 / 11) / 2})


def test_a_class_that_never_occurs_has_zeros_and_stays_out_of_macro_f1():
    labels = np.array([0, 0, 1])
    assert per_class(labels, labels, names=["a", "b", "c"])["c"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 0,
    }
    assert plain_scores(labels, labels)["macro_f1"] == 1.0


def test_several_labels_a_row_are_scored_label_by_label():
    labels = np.array([[True, False], [True, True], [False, False], [True, False]])
    answers = np.array([[True, True], [True, False], [False, False], [False, False]])
    found = per_class(labels, answers, names=["a", "b"])
    assert found["a"] == pytest.approx({"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3})
    assert found["b"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert plain_scores(labels, answers) == pytest.approx({"accuracy": 0.25, "micro_f1": 4 / 7, "macro_f1": 0.4})
    assert per_class(labels[:, :1], answers[:, :1], names=["a"]) == {"a": found["a"]}


def test_the_majority_is_that_of_training_counted_in_the_table():
    assert majority_share(np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1])) == 0.25
    train = np.array([[True, False], [True, False], [False, False]])
    assert majority_share(train, np.array([[True, False], [True, True]])) == 0.5


def test_the_baseline_is_scored_on_the_same_rows_and_told_apart_from_the_classifier():
    rival = fit_tfidf(TRAIN, seed=0)
    labels = np.array(TEST["label"][:])
    judged = more_scores(1 - labels, TEST, TRAIN, names=["bad", "good"], tfidf=rival, seed=0)
    assert (judged["majority"], judged["baseline"]["rows"]) == (0.5, 40)
    assert judged["baseline"]["accuracy"] > 0.8  # three words of each row tell its label
    assert judged["baseline"]["ahead"] == pytest.approx(-judged["baseline"]["accuracy"])
    assert judged["baseline"]["ahead_interval"][1] < 0
    assert more_scores(labels, TEST, TRAIN, names=["bad", "good"], tfidf=None, seed=0)["baseline"] is None


class Answers:
    """A predictor that gives the same class to each row."""

    label_names = ("bad", "good")

    def score_rows(self, rows):
        return {"accuracy": 0.5, "n": len(rows)}, ScoredRows(np.zeros(len(rows), dtype=int), np.ones(len(rows)), None)

    def describe_cut(self):
        return "3 were cut"


def test_of_a_large_table_the_baseline_takes_a_part_and_says_so(monkeypatch):
    monkeypatch.setattr(run_scores, "MOST_BASELINE_ROWS", 30)
    said, context = heard()
    scores = run_scores.score_tables(Answers(), RunTables(TRAIN, None, TEST, None), context, baseline="tf-idf")
    assert scores["validation"] is None
    assert scores["test"]["baseline"]["rows"] == 30
    assert said == [
        "3 were cut",
        "baseline: TF-IDF + logistic regression was trained on 30 of the 40 training rows, to take seconds",
    ]


def test_a_baseline_that_would_take_minutes_or_is_not_wanted_is_left_out(monkeypatch):
    monkeypatch.setattr(run_scores, "MOST_BASELINE_CLASSES", 1)
    said, context = heard()
    tables = RunTables(TRAIN, TEST, None, None)
    scores = run_scores.score_tables(Answers(), tables, context, baseline="tf-idf")
    assert scores["validation"]["baseline"] is None
    assert said == ["no baseline: it is trained for up to 1 classes, here are 2"]
    scores = run_scores.score_tables(Answers(), tables, context, baseline="none")
    assert (scores["validation"]["baseline"], scores["validation"]["majority"], len(said)) == (None, 0.5, 1)


def test_without_held_out_rows_nothing_is_computed(monkeypatch):
    monkeypatch.setattr(run_scores, "fit_tfidf", None)
    tables = RunTables(TRAIN, None, None, None)
    scores = run_scores.score_tables(Answers(), tables, heard()[1], baseline="tf-idf")
    assert scores == {"test": None, "validation": None}
