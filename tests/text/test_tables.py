"""Training, validation and test kept apart, and unlabelled text that leaks neither."""

import gzip
import re

import pytest
from datasets import Dataset, DatasetDict

from tests.support.tiny_runs import heard, reviews, texts_of, write_csv
from ulmfit_pipe.data.tables.tables import TableError
from ulmfit_pipe.settings.tables import RowLimits
from ulmfit_pipe.text.tables import label_names_of, load_run_tables, split_texts, without_texts_of


@pytest.fixture
def files(tmp_path):
    train, test = reviews(20), reviews(6, seed=1)
    held_out = [(text,) for text, _ in test[:4]]
    fresh = [(text,) for text, _ in reviews(7, seed=2)]
    return {
        "train": write_csv(tmp_path / "train.csv", train),
        "test": write_csv(tmp_path / "test.csv", test),
        "more": write_csv(tmp_path / "more.csv", [*held_out, *fresh], columns=("text",)),
    }


MISSING = ("NA", "n/a", "-", "?", "N/A", "None", "NULL")


def load(files, said, **changes):
    given = {"test_file": str(files["test"]), "unlabelled_file": [str(files["more"])], "say": said.append, **changes}
    return load_run_tables([str(files["train"])], **given)


def test_every_training_row_is_in_one_part_only(files):
    said, _ = heard()
    tables = load(files, said, unlabelled_file=None)
    assert (len(tables.train), len(tables.validation), len(tables.test)) == (18, 2, 6)
    texts = [*tables.train["text"], *tables.validation["text"]]
    assert sorted(texts) == sorted(text for text, _ in reviews(20))
    assert sorted(tables.validation["label"]) == [0, 1]
    assert label_names_of(tables.train) == (["bad", "good"], False)
    assert said[0] == "rows: 18 training, 2 validation, 6 test; labels: bad, good"
    assert said[1] == "files: train.csv (20 training rows), test.csv (6 test rows)"
    assert said[2] == "training labels: bad 9, good 9"
    assert said[3].startswith("training texts: characters per text: median ")
    assert len(said) == 6


def test_each_setting_takes_its_split_of_a_dataset(tmp_path):
    def part(*seeds):
        rows = [row for seed in seeds for row in reviews(8, seed=seed)]
        return Dataset.from_list([{"text": text, "label": label} for text, label in rows])

    parts = {"train": part(0, 4), "validation": part(1), "test": part(2), "unsupervised": part(3)}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    folder = str(tmp_path / "saved")
    tables = load_run_tables(
        [folder],
        validation_file=folder,
        test_file=folder,
        unlabelled_file=[folder],
        include_test_text=True,
        say=[].append,
    )
    found = {"train": tables.train, "validation": tables.validation, "test": tables.test}
    assert {name: list(table["text"]) for name, table in found.items()} == {
        name: list(parts[name]["text"]) for name in found
    }
    assert list(tables.unlabelled["text"]) == list(parts["unsupervised"]["text"])
    named = load_run_tables([f"{folder}:test"], validation_fraction=0, say=[].append)
    assert list(named.train["text"]) == list(parts["test"]["text"])


def test_how_a_table_was_read_is_said(files, tmp_path):
    packed = tmp_path / "train.csv.gz"
    packed.write_bytes(gzip.compress(files["train"].read_text().replace(",", ";").encode("utf-16")))
    said, _ = heard()
    load({**files, "train": packed}, said, test_file=None, unlabelled_file=None, delimiter="semicolon")
    assert said[0] == f"{packed} is not UTF-8; it is read as utf-16 (--encoding names another one)"


def test_the_split_depends_on_the_seed_alone(files):
    first, again, other = (
        list(load(files, [], seed=seed, unlabelled_file=None).validation["text"]) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_unlabelled_texts_of_validation_and_test_are_left_out_and_it_is_said(files, tmp_path):
    validation = list(load(files, [], unlabelled_file=None).validation["text"])
    both = write_csv(tmp_path / "both.csv", [(text,) for text in [*validation, "a new text"]], columns=("text",))
    said, _ = heard()
    tables = load(files, said, unlabelled_file=[str(files["more"]), str(both)])
    assert len(tables.unlabelled) == 7 + 1
    held_out = {*tables.validation["text"], *tables.test["text"]}
    assert not held_out & set(tables.language_model_text()["text"])
    assert len(tables.language_model_text()) == 18 + 8
    assert said[0] == "left out 6 of 14 unlabelled texts that are also in the validation or test table"


def test_they_are_read_where_that_is_asked_for(files):
    said, _ = heard()
    tables = load(files, said, include_test_text=True)
    assert len(tables.unlabelled) == 11
    assert not any("left out" in line for line in said)


def test_all_unlabelled_text_may_be_left_out(files, tmp_path):
    only = write_csv(tmp_path / "only.csv", [(text,) for text, _ in reviews(6, seed=1)], columns=("text",))
    tables = load(files, [], unlabelled_file=[str(only)])
    assert len(tables.language_model_text()) == 18


def test_a_validation_file_is_taken_whole_with_the_labels_of_training(files, tmp_path):
    validation = write_csv(tmp_path / "validation.csv", reviews(3, seed=9))
    tables = load(files, [], validation_file=str(validation))
    assert (len(tables.train), len(tables.validation)) == (20, 3)
    strange = write_csv(tmp_path / "strange.csv", [("a text", "fine")])
    with pytest.raises(TableError, match=r"strange.csv, row 1 .*the label 'fine' is not among those"):
        load(files, [], validation_file=str(strange))


def test_texts_in_training_and_test_are_counted_aloud(files, tmp_path):
    test = write_csv(tmp_path / "same.csv", [*reviews(20)[:3], ("a new text", "good")])
    said, _ = heard()
    load(files, said, test_file=str(test), validation_file=str(files["test"]), unlabelled_file=None)
    expected = "note: 3 of 4 test texts are also in the training table, word for word; the test metrics are flattered"
    assert any(line.startswith(expected) for line in said)


def test_one_text_column_may_be_a_plain_string(files):
    assert len(load(files, [], text_column="text").train) == 18


def test_a_column_of_several_labels_is_told_apart(tmp_path):
    path = write_csv(tmp_path / "several.csv", [("a", "x|y"), ("b", "y"), ("c", "")])
    tables = load_run_tables(str(path), label_separator="|", validation_fraction=0.4, say=str)
    assert label_names_of(tables.train) == (["x", "y"], True)


def test_labels_that_look_like_several_in_one_cell_are_pointed_out(tmp_path):
    rows = [("a", "x|y"), ("b", "y"), ("c", "x"), ("d", "x"), ("e", "y"), ("f", "x|y")]
    path = write_csv(tmp_path / "joined.csv", rows)
    said, _ = heard()
    load_run_tables(str(path), validation_fraction=0.5, say=said.append)
    expected = "note: the label 'x|y' counts as one label beside 'x' and 'y'; if it means several, set label_separator"
    assert f"{expected} to '|'" in said
    said.clear()
    load_run_tables(str(path), validation_fraction=0.5, label_separator="|", say=said.append)
    assert not any(line.startswith("note: the label") for line in said)


def notes_on(tmp_path, rows, **settings):
    """Load rows as a table of a run and return the notes that are given."""
    said, _ = heard()
    tables = load_run_tables(str(write_csv(tmp_path / "rows.csv", rows)), say=said.append, **settings)
    assert not any("\n" in line for line in said)
    return tables, [line for line in said if line.startswith(("note: ", "left out "))]


def test_labels_that_look_alike_are_reported_with_their_rows(tmp_path):
    rows = [(f"text {n}", ("Pos", "pos", "neg", "neg ")[n % 4]) for n in range(16)]
    tables, notes = notes_on(tmp_path, rows)
    assert label_names_of(tables.train)[0] == ["Pos", "neg", "pos"]
    assert notes == [
        "note: labels that look alike are classes of their own, with labelled rows in brackets: 'Pos' (4) and 'pos' "
        "(4); write them alike if they mean the same, or give label_names"
    ]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (['"a"', "b"], r"note: the labels \"a\" \(8\) are in quotes"),
        (["nan", "b"], r"note: the labels nan \(8\) are words for a missing value"),
        *[([word, "b"], rf"note: the labels {re.escape(word)} \(8\) are words for a missing") for word in MISSING],
        (["g\u043eod", "b"], r"note: the labels .* \(8\) mix letters of two scripts in one word; type them anew"),
        (["[1, 2]", "[3]"], r"note: the labels \[1, 2\] \(8\), \[3\] \(8\) are written like lists; set multi_label"),
    ],
)
def test_labels_that_may_be_none_are_reported(tmp_path, labels, words):
    _, notes = notes_on(tmp_path, [(f"text {n}", labels[n % 2]) for n in range(16)])
    assert any(re.match(words, note) for note in notes)


def test_classes_that_nothing_is_measured_on_are_reported(tmp_path):
    rows = [(f"text {n}", "ab"[n % 2]) for n in range(20)] + [("one", "c"), ("two", "d"), ("three", "e"), ("four", "e")]
    test = write_csv(tmp_path / "test.csv", [("new", "a"), ("newer", "c"), ("newest", "d"), ("other", "e")])
    tables, notes = notes_on(tmp_path, rows, test_file=str(test))
    assert sorted(set(tables.validation["label"])) == [0, 1, 4]
    assert notes == [
        "note: there are no validation rows of c (1), d (1), with labelled rows in brackets; nothing is measured on "
        "them; min_rows_per_class leaves rare classes out",
        "note: there are no test rows of b (10), with labelled rows in brackets; nothing is measured on it",
    ]


def test_rare_classes_are_left_out_of_every_table(tmp_path):
    rows = [(f"text {n}", "zy"[n % 2]) for n in range(20)] + [("one", "c"), ("two", "d"), ("three", "d")]
    test = write_csv(tmp_path / "test.csv", [("new", "z"), ("newer", "c"), ("newest", "y")])
    tables, notes = notes_on(tmp_path, rows, test_file=str(test), min_rows_per_class=3)
    assert label_names_of(tables.train) == (["y", "z"], False)
    assert len(tables.train) + len(tables.validation) == 20
    assert (tables.test["text"][:], tables.test["label"][:]) == (["new", "newest"], [1, 0])
    assert notes[0] == "left out 2 of 4 classes, which have fewer than 3 rows (min_rows_per_class): c (1), d (2)"


def test_rare_labels_of_several_are_left_out_and_their_rows_stay(tmp_path):
    rows = [(f"text {n}", ("x", "x|z", "z", "x|w")[n % 4 if n < 4 else n % 3]) for n in range(12)]
    tables, notes = notes_on(tmp_path, rows, label_separator="|", min_rows_per_class=2)
    assert label_names_of(tables.train) == (["x", "z"], True)
    assert len(tables.train) + len(tables.validation) == 12
    assert notes[0] == "left out 1 of 3 classes, which have fewer than 2 rows (min_rows_per_class): w (1)"


@pytest.mark.parametrize(
    ("least", "error", "words"),
    [
        (0, ValueError, "min_rows_per_class must be 1 or more, got 0"),
        (9, TableError, "min_rows_per_class 9 leaves 1 of 2 classes; take a lower one"),
    ],
)
def test_a_least_number_of_rows_that_leaves_nothing_is_refused(tmp_path, least, error, words):
    with pytest.raises(error, match=words):
        notes_on(tmp_path, [(f"text {n}", "aab"[n % 3]) for n in range(15)], min_rows_per_class=least)


def test_repeated_and_contradicting_texts_are_reported(tmp_path):
    rows = [*[(f"a text of its own {n}", "ab"[n % 2]) for n in range(10)], ("Same", "a"), ("Same", "a"), ("same ", "b")]
    _, notes = notes_on(tmp_path, rows, validation_fraction=0)
    assert notes == [
        "note: 2 of 13 training texts repeat an earlier one, 1 word for word and 1 apart from capitals and spaces",
        "note: 1 labelled texts are in several rows with different labels, such as 'Same' with 'a' and 'b'; at most "
        "one of them can be right, correct the others",
    ]


@pytest.mark.parametrize("seed", range(3))
def test_contradictions_between_training_and_validation_are_found(tmp_path, seed):
    rows = [(f"text {n % 10}", "ab"[n // 10]) for n in range(20)]
    _, notes = notes_on(tmp_path, rows, validation_fraction=0.8, seed=seed)
    assert any(re.match(r"note: 10 labelled texts .* such as 'text \d' with '[ab]' and '[ab]'", note) for note in notes)


def test_test_texts_that_differ_by_capitals_and_spaces_alone_are_reported(files, tmp_path):
    first, second = (text for text, _ in reviews(20)[:2])
    test = write_csv(tmp_path / "near.csv", [(first.upper(), "bad"), (f" {second}  ", "good"), ("a new text", "good")])
    said, _ = heard()
    load(files, said, test_file=str(test), validation_file=str(files["test"]), unlabelled_file=None)
    assert any(
        line.startswith("note: 2 of 3 test texts are also in the training table, apart from capitals") for line in said
    )


def test_words_for_a_missing_text_and_empty_rows_are_counted(tmp_path):
    rows = [(f"text {n}", "ab"[n % 2]) for n in range(10)] + [("nan", "a"), (" NULL", "b"), ("", "a"), ("None", "a")]
    with pytest.raises(TableError, match="row 13 .*the text is empty .*skip_blank=True .of a run: empty_text to skip"):
        notes_on(tmp_path, rows)
    tables, notes = notes_on(tmp_path, rows, empty_text="skip", validation_fraction=0)
    assert len(tables.train) == 13
    assert notes[0].endswith("rows.csv have no text and are left out") and notes[0].startswith("note: 1 rows of ")
    assert notes[1].startswith("note: 3 of 13 training texts are only a word for a missing value ('nan' 1, 'NULL' 1, ")


def test_texts_that_are_numbers_are_reported(tmp_path):
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(f'{{"text": {n}, "label": {n % 2}}}\n' for n in range(10)))
    said, _ = heard()
    load_run_tables(str(path), say=said.append)
    assert any(line.startswith("note: 10 of 10 training texts of ") and "are numbers" in line for line in said)


def test_the_account_names_scripts_and_stays_short_with_many_classes(tmp_path):
    rows = [(f"слово {n}" if n % 4 else f"word {n}", f"class {n // 2}") for n in range(4000)]
    said, _ = heard()
    load_run_tables(str(write_csv(tmp_path / "many.csv", rows)), say=said.append)
    assert said[2] == (
        "training labels: "
        + ", ".join(f"class {n} 1" for n in (0, 1, 10, 100, 1000, 1001, 1002, 1003, 1004, 1005, 1006))
        + ", and 1,989 more, down to 1"
    )
    assert "letters: Cyrillic 79 %, Latin 21 %" in said[3]
    assert len(said) < 10 and all(len(line) < 400 for line in said)


def test_several_label_columns_are_the_labels_of_every_table(tmp_path):
    cells = ((0, 1), (1, 0), (1, 1), (0, 0))
    rows = [(f"text {n}", *map(str, cells[n % 4])) for n in range(20)]
    path = write_csv(tmp_path / "columns.csv", rows, columns=("text", "toxic", "obscene"))
    tables = load_run_tables(str(path), test_file=str(path), label_column=["toxic", "obscene"], say=str)
    assert label_names_of(tables.train) == label_names_of(tables.test) == (["toxic", "obscene"], True)
    assert tables.test["label"][:4] == [[1], [0], [0, 1], []]


def test_a_mapping_names_the_labels_of_every_table(tmp_path):
    path = write_csv(tmp_path / "numbers.csv", [(f"text {n}", str(n % 2)) for n in range(20)])
    (tmp_path / "names.json").write_text('{"0": "neg", "1": "pos"}')
    for names in ({0: "neg", 1: "pos"}, str(tmp_path / "names.json")):
        tables = load_run_tables(str(path), test_file=str(path), label_names=names, say=str)
        assert label_names_of(tables.train)[0] == ["neg", "pos"]
        assert tables.test["label"][:2] == [0, 1]


def test_split_texts_shares_no_text_even_where_the_table_repeats_them():
    said, _ = heard()
    train, validation = split_texts(texts_of(*"abcde" * 4), fraction=0.1, seed=0, say=said.append)
    assert len(validation) == 2
    assert not set(train["text"]) & set(validation["text"])
    left_out = 18 - len(train)
    assert said == [f"left out {left_out} of 18 training texts that are also in the validation part"]


def test_nothing_is_said_where_nothing_is_left_out():
    said, _ = heard()
    table = texts_of("a", "b")
    kept = without_texts_of(table, [texts_of("c"), None], what="texts", where="the test", say=said.append)
    assert (kept, said) == (table, [])


def test_a_limit_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="train must be 1 or more rows, or null for all, got 0"):
        RowLimits(train=0)


def test_limits_apply_before_the_validation_part_is_held_out(files):
    tables = load(files, [], max_rows=RowLimits(train=12, test=3, unlabelled=5))
    assert len(tables.train) + len(tables.validation) == 12
    assert len(tables.test) == 3
    assert len(tables.unlabelled) <= 5
