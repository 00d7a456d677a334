"""Training, validation and test kept apart, and unlabelled text that leaks neither."""

import gzip

import pytest
from datasets import Dataset, DatasetDict
from tiny_runs import heard, reviews, texts_of, write_csv

from ulmfit_pipe.data.row_sources import TableReading
from ulmfit_pipe.data.tables import TableError
from ulmfit_pipe.stages.tables_of_run import (
    RowLimits,
    label_names_of,
    load_run_tables,
    some_rows,
    split_texts,
    without_texts_of,
)


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
    assert said == ["rows: 18 training, 2 validation, 6 test; labels: bad, good"]


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
    reading = TableReading(delimiter="semicolon")
    load({**files, "train": packed}, said, test_file=None, unlabelled_file=None, reading=reading)
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
    assert said[0] == "left out 6 of 14 unlabelled texts that also stand in the validation or test table"


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
    expected = "note: 3 of 4 test texts also stand in the training table, word for word; the test metrics are flattered"
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


def test_split_texts_shares_no_text_even_where_the_table_repeats_them():
    said, _ = heard()
    train, validation = split_texts(texts_of(*"abcde" * 4), fraction=0.1, seed=0, say=said.append)
    assert len(validation) == 2
    assert not set(train["text"]) & set(validation["text"])
    left_out = 18 - len(train)
    assert said == [f"left out {left_out} of 18 training texts that also stand in the validation part"]


def test_nothing_is_said_where_nothing_is_left_out():
    said, _ = heard()
    table = texts_of("a", "b")
    kept = without_texts_of(table, [texts_of("c"), None], what="texts", where="the test", say=said.append)
    assert (kept, said) == (table, [])


def test_some_rows_are_chosen_by_the_seed_and_keep_their_order():
    table = Dataset.from_dict({"text": [str(number) for number in range(20)]})
    chosen = some_rows(table, 7, seed=1)["text"]
    assert len(chosen) == 7
    assert [int(text) for text in chosen] == sorted(int(text) for text in chosen)
    assert list(some_rows(table, 7, seed=1)["text"]) == list(chosen)
    assert list(some_rows(table, 7, seed=2)["text"]) != list(chosen)
    assert some_rows(table, None, seed=1) is table
    assert some_rows(table, 20, seed=1) is table


def test_a_limit_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="train must be 1 or more rows, or null for all, got 0"):
        RowLimits(train=0)


def test_limits_apply_before_the_validation_part_is_held_out(files):
    tables = load(files, [], max_rows=RowLimits(train=12, test=3, unlabelled=5))
    assert len(tables.train) + len(tables.validation) == 12
    assert len(tables.test) == 3
    assert len(tables.unlabelled) <= 5
