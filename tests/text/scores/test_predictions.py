"""The rows and tables that a run leaves for its report."""

import csv

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from tests.support.tiny_runs import multi_label_table, reviews, table
from ulmfit_pipe.text.predict.predictor import ScoredRows
from ulmfit_pipe.text.scores.predictions import LONGEST_TEXT, record_of, write_predictions


def written(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_row_has_its_text_truth_prediction_and_scores(tmp_path):
    rows = table(reviews(3))
    scored = ScoredRows(
        np.array([0, 0, 1]), np.array([0.9, 0.51, 2 / 3]), np.array([[0.9, 0.1], [0.51, 0.49], [1 / 3, 2 / 3]])
    )
    write_predictions(tmp_path / "p.csv", rows, scored, names=["bad", "good"])
    found = written(tmp_path / "p.csv")
    assert list(found[0]) == ["row", "text", "truth", "prediction", "score", "score_bad", "score_good"]
    assert [(row["row"], row["truth"], row["prediction"], row["score"], row["score_good"]) for row in found] == [
        ("1", "bad", "bad", "0.9", "0.1"),
        ("2", "good", "bad", "0.51", "0.49"),
        ("3", "bad", "good", "0.666667", "0.666667"),
    ]
    assert [row["text"] for row in found] == rows["text"][:]


def test_rows_of_several_labels_are_joined_and_many_labels_have_no_scores_each(tmp_path):
    rows = multi_label_table(4)
    answers = np.array([[True, False, True], [False] * 3, [False, True, False], [True] * 3])
    write_predictions(
        tmp_path / "p.csv", rows, ScoredRows(answers, np.full(4, 0.5), None), names=["bad", "fair", "good"]
    )
    found = written(tmp_path / "p.csv")
    assert [row["prediction"] for row in found] == ["bad|good", "", "fair", "bad|fair|good"]
    assert list(found[0]) == ["row", "text", "truth", "prediction", "score"]


def test_formulas_lone_surrogates_and_long_texts_are_written_so_that_they_do_no_harm(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["-1", "1"])})
    rows = Dataset.from_dict({"text": ['=1+1,\n"x"', "x" * 9000], "label": [0, 1]}, features=features)
    write_predictions(tmp_path / "p.csv", rows, ScoredRows(np.array([0, 0]), np.ones(2), None), names=["-1", "1\ud800"])
    one, other = written(tmp_path / "p.csv")
    assert (one["text"], one["truth"], one["prediction"]) == ('\'=1+1,\n"x"', "'-1", "'-1")
    assert (len(other["text"]), other["truth"]) == (LONGEST_TEXT, r"1\ud800")


def test_the_record_of_tables_counts_rows_characters_and_labels():
    texts = Dataset.from_dict({"text": ["a", "bbb", "cc", "dddd"]})
    found = record_of({"training": table(reviews(5)), "unlabelled": texts}, names=["bad", "good"])
    lengths = {"median": 2.5, "95 %": 3.8499999999999996, "longest": 4}
    assert found["unlabelled"] == {"rows": 4, "characters": lengths, "repeats": 0}
    assert found["training"]["labels"] == {"bad": 3, "good": 2}


def test_repeats_and_leaks_are_counted_word_for_word():
    texts = {"training": "a b b c", "validation": "b x", "test": "a c x x y", "unlabelled": "a z z z"}
    tables = {name: Dataset.from_dict({"text": words.split()}) for name, words in texts.items()}
    found = record_of(tables, names=[])
    counted = {name: {key: row[key] for key in row if key not in ("rows", "characters")} for name, row in found.items()}
    assert counted == {
        "training": {"repeats": 1},
        "validation": {"repeats": 0, "in_training": 1},
        "test": {"repeats": 1, "in_training": 2, "in_validation": 2},
        "unlabelled": {"repeats": 2},
    }
