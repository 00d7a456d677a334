"""Labelled subsets: stratified, nested, drawn by the seed alone."""

from collections import Counter

import numpy as np
import pytest

from tests.support.tiny_runs import reviews, table, write_csv
from ulmfit_pipe.data.tables.tables import TableError
from ulmfit_pipe.studies.grid.tables import LabelledTables, language_model_texts, load_labelled_tables, nested_order

LABELS = [0] * 60 + [1] * 30 + [2] * 10


@pytest.fixture
def load(tmp_path):
    """Return a function that writes and loads 60 labelled and 30 test reviews."""
    train = write_csv(tmp_path / "train.csv", reviews(60, seed=1))
    test = write_csv(tmp_path / "test.csv", reviews(30, seed=2))

    def load(**settings):
        said = []
        return load_labelled_tables([str(train)], str(test), say=said.append, **settings), said

    return load


def texts(part):
    return set(part["text"])


@pytest.mark.parametrize("size", [5, 10, 20, 50, 99])
def test_every_beginning_of_the_order_is_stratified(size):
    for seed in range(5):
        counts = Counter(LABELS[row] for row in nested_order(LABELS, seed=seed)[:size])
        for label, share in ((0, 0.6), (1, 0.3), (2, 0.1)):
            assert abs(counts[label] - share * size) <= 1


def test_every_beginning_holds_a_row_of_each_class_if_it_can():
    labels = [0] * 997 + [1, 2, 3]
    assert {labels[row] for row in nested_order(labels, seed=3)[:4]} == {0, 1, 2, 3}


def test_the_order_is_a_permutation_that_depends_on_the_seed_alone():
    first, again, other = (nested_order(LABELS, seed=seed) for seed in (4, 4, 5))
    assert sorted(first.tolist()) == list(range(100))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_subsets_of_a_seed_are_nested_and_seeds_differ(load):
    tables, _ = load(development_rows=10)
    subsets = {size: texts(tables.subset(size, seed=3)) for size in (6, 14, 40)}
    assert [len(subset) for subset in subsets.values()] == [6, 14, 40]
    assert subsets[6] < subsets[14] < subsets[40]
    assert texts(tables.subset(14, seed=4)) != subsets[14]


def test_a_subset_does_not_depend_on_what_else_is_drawn(load):
    assert (
        load(development_rows=10)[0].subset(8, seed=2)["text"][:]
        == (load(development_rows=10, test_rows=4)[0].subset(8, seed=2)["text"][:])
    )


def test_no_subset_holds_a_development_row(load):
    tables, _ = load(development_rows=10)
    assert len(tables.development) == 10
    assert Counter(tables.development["label"]) == {0: 5, 1: 5}
    for seed in range(6):
        assert not texts(tables.subset(50, seed=seed)) & texts(tables.development)


def test_size_0_is_all_rows_those_of_development_too(load):
    tables, _ = load(development_rows=10)
    assert tables.subset(0, seed=5)["text"][:] == tables.train["text"][:]
    assert len(tables.subset(0, seed=5)) == 60


def test_what_is_chosen_for_a_size_is_chosen_by_development_rows_and_for_all_rows_by_a_tenth(load):
    tables, _ = load(development_rows=10)
    train, development = tables.rows_to_choose_by(14, seed=0)
    assert train["text"][:] == tables.subset(14, seed=0)["text"][:]
    assert development["text"][:] == tables.development["text"][:]
    train, development = tables.rows_to_choose_by(0, seed=0)
    assert (len(train), len(development)) == (54, 6)
    assert texts(train) | texts(development) == texts(tables.train)


def test_without_development_rows_nothing_can_be_chosen(load):
    words = "there are no development rows to choose a learning rate by; set development_rows, or give one rate"
    with pytest.raises(TableError, match=words):
        load()[0].rows_to_choose_by(14, seed=0)


def test_the_test_sample_is_stratified_and_always_the_same(load):
    tables, said = load(test_rows=8)
    assert Counter(tables.test["label"]) == {0: 4, 1: 4}
    assert len(tables.whole_test) == 30
    assert tables.test["text"][:] == load(test_rows=8, development_rows=4)[0].test["text"][:]
    assert said[-1] == "rows: 60 labelled (0 of them for development), 8 of 30 to test on; labels: bad, good"
    assert tables.names == ["bad", "good"]
    assert len(load(test_rows=31)[0].test) == 30


def test_test_texts_that_are_labelled_rows_too_are_told(tmp_path):
    rows = reviews(20)
    files = [
        write_csv(tmp_path / "train.csv", rows),
        write_csv(tmp_path / "test.csv", [*rows[:3], *reviews(4, seed=9)]),
    ]
    said = []
    load_labelled_tables([str(files[0])], str(files[1]), say=said.append)
    assert said[0] == "note: 3 of the 7 test texts are also in the labelled table, word for word"


def test_sizes_that_cannot_be_drawn_are_refused(load):
    tables, _ = load(development_rows=10)
    with pytest.raises(TableError, match="a subset of 1 rows cannot hold a row of each of the 2 classes; take more"):
        tables.check_size(1)
    words = "a subset of 51 rows is asked for, 60 labelled rows less 10 for development are 50; take a smaller size"
    with pytest.raises(TableError, match=words):
        tables.check_size(51)
    tables.check_size(50)
    tables.check_size(0)


def test_a_subset_cannot_lack_a_class():
    rows = table(reviews(12, labels=("bad", "fair", "good")), ("bad", "fair", "good"))
    tables = LabelledTables(rows, rows, None, rows, rows)
    with pytest.raises(TableError, match="of 2 rows cannot hold a row of each of the 3 classes"):
        tables.subset(2, seed=0)


def test_development_rows_must_leave_some_to_train_on(load):
    with pytest.raises(TableError, match="development_rows asks for 59 of 60 labelled rows, which leaves too few"):
        load(development_rows=59)


@pytest.mark.parametrize(
    ("labelled_too", "rows", "expected"), [(True, None, 60 + 45), (False, None, 45), (False, 20, 20), (True, 20, 80)]
)
def test_the_language_model_reads_no_text_of_the_whole_test_table(load, tmp_path, labelled_too, rows, expected):
    test = [(text,) for text, _ in reviews(30, seed=2)]
    more = [(text,) for text, _ in reviews(45, seed=3)]
    file = write_csv(tmp_path / "more.csv", [*test, *more] if rows is None else more, columns=("text",))
    tables, _ = load(test_rows=4)
    said = []
    train, validation = language_model_texts(
        tables, unlabelled_file=[str(file)], unlabelled_rows=rows, labelled_too=labelled_too, say=said.append
    )
    assert len(train) + len(validation) == expected
    assert not (texts(train) | texts(validation)) & texts(tables.whole_test)
    assert not texts(validation) & texts(train)
    assert said == (
        [] if rows else [f"left out 30 of {expected + 30} texts of the language model that are also in the test table"]
    )


def test_without_further_texts_the_language_model_reads_the_labelled_ones(load):
    tables, _ = load()
    train, validation = language_model_texts(tables, say=str)
    assert texts(train) | texts(validation) == texts(tables.train)
