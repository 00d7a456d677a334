"""The validation split: its size, its classes, and what it cannot do."""

import datasets
import pytest

from ulmfit_pipe.data.splits import check_labels_for_training, some_rows, split_train_validation
from ulmfit_pipe.data.tables.tables import TableError


def labelled(counts):
    names = list(counts)
    numbers = [number for number, name in enumerate(names) for _ in range(counts[name])]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict(
        {"text": [f"text {n}" for n in range(len(numbers))], "label": numbers}, features=features
    )


def test_every_class_gets_its_share_of_the_validation_set():
    parts = split_train_validation(labelled({"a": 60, "b": 30, "c": 10}), fraction=0.2)
    assert [parts["validation"]["label"][:].count(number) for number in range(3)] == [12, 6, 2]
    assert [parts["train"]["label"][:].count(number) for number in range(3)] == [48, 24, 8]
    assert not set(parts["train"]["text"][:]) & set(parts["validation"]["text"][:])


def test_the_split_is_a_function_of_its_seed():
    table = labelled({"a": 30, "b": 20})
    one, same, other = (split_train_validation(table, seed=seed)["validation"]["text"][:] for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_a_small_table_still_gives_every_class_a_validation_row():
    parts = split_train_validation(labelled({"a": 4, "b": 3, "c": 2}), fraction=0.1)
    assert sorted(parts["validation"]["label"][:]) == [0, 1, 2]


def test_multi_label_and_unlabelled_tables_are_split_plainly():
    table = multi_label([["x"] if n % 2 else [] for n in range(20)])
    assert {k: len(v) for k, v in split_train_validation(table, fraction=0.25).items()} == {
        "train": 15,
        "validation": 5,
    }
    assert len(split_train_validation(table.select_columns(["text"]))["validation"]) == 2


def counts_of(part, names):
    return {name: part["label"][:].count(number) for number, name in enumerate(names)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
def test_a_class_of_two_rows_is_on_both_sides(seed, fraction):
    parts = split_train_validation(labelled({"a": 60, "b": 50, "c": 2, "d": 3}), fraction=fraction, seed=seed)
    for part in parts.values():
        assert all(counts_of(part, "abcd").values())
    assert len(parts["train"]) + len(parts["validation"]) == 115
    assert len(parts["validation"]) == pytest.approx(115 * fraction, abs=4)
    assert not set(parts["train"]["text"]) & set(parts["validation"]["text"])


def test_a_large_fraction_leaves_every_class_a_training_row():
    parts = split_train_validation(labelled({"a": 20, "b": 2}), fraction=0.9)
    assert counts_of(parts["train"], "ab") == {"a": 2, "b": 1}


@pytest.mark.parametrize("seed", range(3))
def test_the_only_row_of_a_class_stays_in_training(seed):
    parts = split_train_validation(labelled({"a": 10, "b": 1, "c": 9, "d": 1}), fraction=0.2, seed=seed)
    assert counts_of(parts["train"], "abcd") == {"a": 8, "b": 1, "c": 7, "d": 1}
    assert counts_of(parts["validation"], "abcd") == {"a": 2, "b": 0, "c": 2, "d": 0}


def test_classes_of_one_row_each_cannot_be_split():
    with pytest.raises(TableError, match=r"every class has one row only \(a, b, c\).*is it the right label column"):
        split_train_validation(labelled({"a": 1, "b": 1, "c": 1}))


@pytest.mark.parametrize("seed", range(8))
def test_every_label_of_several_is_trained_and_measured_where_it_can_be(seed):
    rows = [["x"], ["x", "y"], ["y"], ["x"], [], ["z"], ["z", "x"], ["w"], *[["x"]] * 12]
    parts = split_train_validation(multi_label(rows), fraction=0.15, seed=seed)
    train, validation = ({label for row in part["label"] for label in row} for part in parts.values())
    assert train == {0, 1, 2, 3}
    assert validation == {1, 2, 3}  # w has a single row
    assert len(parts["train"]) + len(parts["validation"]) == len(rows)


def multi_label(rows):
    names = sorted({name for row in rows for name in row})
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=names))}
    )
    content = {
        "text": [f"text {n}" for n in range(len(rows))],
        "label": [[names.index(name) for name in row] for row in rows],
    }
    return datasets.Dataset.from_dict(content, features=features)


def test_labels_of_one_row_each_cannot_be_split():
    with pytest.raises(TableError, match="2 rows are too few to hold any out: each is the only row of a label"):
        split_train_validation(multi_label([["x"], ["y"]]))


def test_two_thousand_classes_are_each_on_both_sides():
    parts = split_train_validation(labelled({f"class {number}": 2 for number in range(2000)}))
    assert len(set(parts["train"]["label"])) == len(set(parts["validation"]["label"])) == 2000


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70, 1.0, True, "1"])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed must be a whole number in 0..4294967295 \(2\*\*32 - 1\), got"):
        split_train_validation(labelled({"a": 4}), seed=seed)


def test_tables_too_small_to_split_are_refused():
    with pytest.raises(TableError, match="a table of 1 row cannot be split"):
        split_train_validation(labelled({"a": 1}))
    with pytest.raises(TableError, match="4 rows of 2 classes are too few to hold out 3"):
        split_train_validation(labelled({"a": 2, "b": 2}), fraction=0.75)


@pytest.mark.parametrize("fraction", [0, 1, -0.5])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\), got"):
        split_train_validation(labelled({"a": 9}), fraction=fraction)


def test_one_class_only_is_refused_for_training():
    with pytest.raises(TableError, match="all 5 rows have the label 'pos'; a classifier needs at least two classes"):
        check_labels_for_training(labelled({"pos": 5, "neg": 0}))
    check_labels_for_training(labelled({"pos": 5, "neg": 1}))


def test_labels_are_needed_for_training():
    with pytest.raises(TableError, match="the table has no labels; load it with label_column="):
        check_labels_for_training(datasets.Dataset.from_dict({"text": ["a"]}))
    empty = multi_label([["x"], [], []]).select([1, 2])
    with pytest.raises(TableError, match="none of the 2 rows has a label"):
        check_labels_for_training(empty)
    check_labels_for_training(multi_label([["x"]]))


def test_some_rows_are_chosen_by_the_seed_and_keep_their_order():
    table = datasets.Dataset.from_dict({"text": [str(number) for number in range(20)]})
    chosen = some_rows(table, 7, seed=1)["text"]
    assert len(chosen) == 7
    assert [int(text) for text in chosen] == sorted(int(text) for text in chosen)
    assert list(some_rows(table, 7, seed=1)["text"]) == list(chosen)
    assert list(some_rows(table, 7, seed=2)["text"]) != list(chosen)
    assert some_rows(table, None, seed=1) is table
    assert some_rows(table, 20, seed=1) is table
