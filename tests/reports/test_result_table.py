"""The result table, line by line."""

import re

from ulmfit_pipe.reports.result_table import Metrics, class_rows, metrics_table

BASELINE = {"name": "TF-IDF + logistic regression", "accuracy": 0.74, "macro_f1": 0.72, "rows": 900, "C": 10.0}
SCORES = {
    "accuracy": 0.824,
    "macro_f1": 0.8101,
    "loss": 0.5,
    "n": 500,
    "interval": {"accuracy": [0.79, 0.856], "macro_f1": [0.772, 0.845]},
    "majority": 0.33,
    "per_class": {
        "bad": {"precision": 0.9, "recall": 0.8, "f1": 0.847, "support": 300},
        "a\ttab": {"precision": 0.7, "recall": 0.85, "f1": 0.768, "support": 200},
    },
    "baseline": BASELINE,
}


def test_scores_come_with_intervals_baseline_and_classes():
    assert metrics_table({"test": SCORES, "validation": None, "seconds": {"classifier": 7.2}}).splitlines() == [
        "test        accuracy 0.8240 (95 % 0.790 to 0.856)  macro_f1 0.8101 (0.772 to 0.845)  loss 0.5000  n 500",
        "baseline    accuracy 0.7400  macro_f1 0.7200   TF-IDF + logistic regression, the same rows; "
        "majority class 0.3300",
        "class        precision    recall        f1   support",
        "bad             0.9000    0.8000    0.8470       300",
        "a\\ttab          0.7000    0.8500    0.7680       200",
        "seconds     classifier 7",
    ]


def test_without_a_baseline_the_majority_is_left_and_advice_comes_last():
    metrics = {"test": {**SCORES, "baseline": None}, "seconds": {}, "warnings": ["not ahead"], "try_next": ["do this"]}
    lines = metrics_table(metrics).splitlines()
    assert lines[1] == "baseline    majority class 0.3300"
    assert lines[-2:] == ["warning     not ahead", "try next    do this"]


def test_scores_without_intervals_are_shown_as_they_are():
    assert metrics_table({"test": {"accuracy": 0.5, "n": 3}, "seconds": {"x": 1.0}}).splitlines() == [
        "test        accuracy 0.5000",
        "seconds     x 1",
    ]


def test_of_many_classes_the_five_worst_are_shown():
    classes = {f"c{i}": {"precision": 1.0, "recall": 1.0, "f1": 1 - i / 100, "support": i % 2} for i in range(30)}
    rows, note = class_rows(classes)
    assert [row["class"] for row in rows] == ["c29", "c27", "c25", "c23", "c21"]
    assert note == "the 5 classes of the lowest F1, of 30 (15 of them in the table)"


def test_in_a_notebook_metrics_are_a_short_table_and_stay_a_dictionary():
    metrics = Metrics({"test": SCORES, "validation": None, "warnings": ["<b>not ahead"], "classifier": "runs/x"})
    assert metrics == {"test": SCORES, "validation": None, "warnings": ["<b>not ahead"], "classifier": "runs/x"}
    page = metrics._repr_html_()
    cells = [re.findall(r">([^<>]*)</t[hd]>", line) for line in page.split("<tr>")[1:]]
    assert cells == [
        ["", "accuracy", "macro f1", "loss", "rows"],
        ["test", "0.824 (0.790 to 0.856)", "0.810 (0.772 to 0.845)", "0.500", "500"],
        ["  TF-IDF + logistic regression", "0.740", "0.720", "", ""],
    ]
    assert page.endswith("</table><p>&lt;b&gt;not ahead</p><p>classifier: runs/x</p>")
    assert "<td" in Metrics({"accuracy": 0.5, "n": 3})._repr_html_()
    assert "<td" not in Metrics({"test": None})._repr_html_()
