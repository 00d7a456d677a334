"""What may be wrong with a table: each kind of problem is named with its row, likely label errors come first."""

import csv

import numpy as np
import pytest

from tests.support.tiny_runs import write_csv
from ulmfit_pipe.settings.tables import CheckDataSettings
from ulmfit_pipe.text import head_probe
from ulmfit_pipe.tools.table_check import check_data as table_check
from ulmfit_pipe.tools.table_check.check_data import Problem, check_data, describe_problems, rank_label_errors

TEXTS = [
    ("the first film was dull and long and nobody liked it", "bad"),
    ("The first film was dull and  long and nobody liked it", "bad"),
    ("a second story about three brothers, warm and funny", "good"),
    ("a second story about three brothers, warm and funny", "bad"),
    ("the first film was dull and long; and nobody liked it", "good"),
    ("ok", "good"),
    ("=HYPERLINK(1) is what some people write as a text", "good"),
]


def found_in(rows, folder, **settings):
    """Check a table without label errors; return the problems by row."""
    file = write_csv(folder / "t.csv", rows)
    return check_data(CheckDataSettings(train_file=[str(file)], label_errors=False, **settings))


def test_repeats_contradictions_near_repeats_and_empty_texts_are_named_with_their_rows(tmp_path):
    found = [(each.row, each.problem) for each in found_in(TEXTS, tmp_path)]
    assert found == [
        (2, "repeats row 1"),
        (4, "has another label than the same text in row 3"),
        (6, "text is almost empty"),
        (5, "has another label than the like text in row 2"),
    ]


def test_texts_of_the_test_table_that_were_trained_on_are_named(tmp_path):
    test = write_csv(tmp_path / "test.csv", [("Another text altogether, about nothing", "bad"), TEXTS[2]])
    found = found_in(TEXTS, tmp_path, test_file=str(test))
    assert [(each.row, each.problem) for each in found if each.table == "test"] == [(2, "is also training row 4")]


def test_all_rows_to_look_at_are_written_as_csv_without_formulas(tmp_path):
    rows = [*TEXTS, TEXTS[-1]]
    found = found_in(rows, tmp_path, output_file=str(tmp_path / "out.csv"))
    content = (tmp_path / "out.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")  # a spreadsheet reads UTF-8 by it
    written = list(csv.DictReader(content.decode("utf-8-sig").splitlines()))
    assert [(int(row["row"]), row["problem"]) for row in written] == [(each.row, each.problem) for each in found]
    assert [row["text"] for row in written if row["row"] == "8"] == [f"'{TEXTS[-1][0]}"]


def test_a_flipped_label_is_the_likeliest_error(tmp_path, builtin, capsys):
    words = {"bad": "dull long nobody", "good": "warm funny lovely"}
    rows = [(f"{words[label]} " * (1 + number % 5), label) for number in range(20) for label in words]
    rows[7] = (rows[7][0], "bad")
    file = write_csv(tmp_path / "t.csv", rows)
    found = check_data(CheckDataSettings(train_file=[str(file)], model="awd-lstm-en"))
    errors = [each for each in found if each.problem == "label is likely wrong"]
    assert (errors[0].row, errors[0].label, errors[0].suggestion) == (8, "bad", "good")
    assert "training labels:" in capsys.readouterr().out
    assert describe_problems(found).splitlines()[0].startswith(f"rows to look at: label is likely wrong {len(errors)}")


def test_errors_are_ranked_by_margin():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.05, 0.95], [0.5, 0.5]])
    assert rank_label_errors(probabilities, np.array([1, 0, 0, 0])) == [
        (2, 1, pytest.approx(0.9)),
        (0, 0, pytest.approx(0.8)),
        (1, 1, pytest.approx(0.2)),
    ]
    several = rank_label_errors(probabilities, np.array([[1, 0], [0, 0], [1, 1], [0, 0]]))
    assert [(row, label) for row, label, _ in several] == [(2, 0), (1, 1)]


def test_nothing_wrong_is_said_in_words():
    assert describe_problems([]) == "rows to look at: none"
    one = Problem("training", 3, "label is likely wrong", "a", "b", 0.5, "x\x1b[31my")
    assert describe_problems([one]).splitlines()[1] == (
        r"  training row 3: label is likely wrong; a -> b (0.50): x\x1b[31my"
    )


def test_of_a_very_long_table_the_first_rows_are_read_and_named_by_number(tmp_path, builtin, capsys, monkeypatch):
    for module in (table_check, head_probe):
        monkeypatch.setattr(module, "MOST_ROWS", 30)
    words = {"bad": "dull long nobody", "good": "warm funny lovely"}
    rows = [(f"{words[label]} " * (1 + number % 5), label) for number in range(40) for label in words]
    rows[7], rows[50] = (rows[7][0], "bad"), (rows[50][0], "good")
    file = write_csv(tmp_path / "t.csv", rows)
    found = check_data(CheckDataSettings(train_file=[str(file)], model="awd-lstm-en"))
    errors = [each for each in found if each.problem == "label is likely wrong"]
    assert errors[0].row == 8 and all(each.row <= 30 for each in errors)
    assert "label errors are looked for in the first 30 of 80 rows" in capsys.readouterr().out
