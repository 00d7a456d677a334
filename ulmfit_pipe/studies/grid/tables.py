"""The tables of a grid of measurements: small labelled subsets, a test sample, texts for the language model.

Subsets are stratified and nested (the 100 rows of a seed are among its 500), and a pure function of labels, seed and
size. A development part is set aside first: it chooses a learning rate where one has to be chosen, and no subset
holds a row of it, so that nothing is ever chosen by rows that a cell trains on or is tested on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from datasets import Dataset, concatenate_datasets

from ulmfit_pipe.console import print_line
from ulmfit_pipe.data.labels import list_labels
from ulmfit_pipe.data.splits import check_labels_for_training, some_rows
from ulmfit_pipe.data.tables.row_sources import TableReading
from ulmfit_pipe.data.tables.tables import TableError, load_table
from ulmfit_pipe.settings.choices import ALL_ROWS
from ulmfit_pipe.text.tables import TEST, TRAIN, UNLABELLED, label_names_of, split_texts, without_texts_of

DEVELOPMENT_SEED = 1_000_003  # far from the seeds of the subsets
COMMON_SEED = 0  # one test sample for every cell, and one sample of texts for every language model
LM_HELD_OUT = 0.02  # of the language model's texts, to measure its perplexity
HELD_OUT_OF_ALL = 0.1  # development part where a cell trains on all rows: they are trained on once the rate is chosen


@dataclass(frozen=True)
class LabelledTables:
    """The tables that every cell of a grid draws from.

    Attributes:
        train: All labelled rows, in the table's order.
        pool: Those outside the development part; subsets are drawn from these.
        development: The development part, or None.
        test: The rows every cell is tested on.
        whole_test: The whole test table, whose texts no model may see.
    """

    train: Dataset
    pool: Dataset
    development: Dataset | None
    test: Dataset
    whole_test: Dataset

    @property
    def names(self) -> list[str]:
        """The label names."""
        return label_names_of(self.train)[0]

    def check_size(self, size: int) -> None:
        """Raise unless a subset of this size can be drawn.

        Raises:
            TableError: There are too few rows, or fewer than one per class.
        """
        if size == ALL_ROWS:
            return
        classes = len(set(self.pool["label"]))
        if size < max(classes, 2):
            raise TableError(f"a subset of {size} rows cannot hold a row of each of the {classes} classes; take more")
        if size > len(self.pool):
            held_out = len(self.train) - len(self.pool)
            raise TableError(
                f"a subset of {size:,} rows is asked for, {len(self.train):,} labelled rows less {held_out:,} for "
                f"development are {len(self.pool):,}; take a smaller size, or {ALL_ROWS} for all rows"
            )

    def subset(self, size: int, *, seed: int) -> Dataset:
        """Return the labelled rows of a cell; 0 gives all rows whatever the seed."""
        self.check_size(size)
        if size == ALL_ROWS:
            return self.train
        return first_rows(self.pool, size, seed=seed)

    def rows_to_choose_by(self, size: int, *, seed: int) -> tuple[Dataset, Dataset]:
        """Return the rows to train on and to select by when hyperparameters are chosen for cells of a size.

        Raises:
            TableError: There is no development part.
        """
        if size == ALL_ROWS:
            order = nested_order(self.train["label"], seed=DEVELOPMENT_SEED)
            held_out = max(1, round(HELD_OUT_OF_ALL * len(order)))
            return _in_order(self.train, order[held_out:]), _in_order(self.train, order[:held_out])
        if self.development is None:
            raise TableError(
                "there are no development rows to choose a learning rate by; set development_rows, or give one rate"
            )
        return self.subset(size, seed=seed), self.development


def load_labelled_tables(
    train_file: Sequence[str],
    test_file: str,
    *,
    text_column: Sequence[str] = ("text",),
    label_column: str = "label",
    test_rows: int | None = None,
    development_rows: int = 0,
    reading: TableReading | None = None,
    say: Callable[[str], None] = print_line,
) -> LabelledTables:
    """Load the tables of a grid, set the development part aside and draw the test sample.

    Args:
        train_file: Labelled file or files.
        test_file: Labelled file to test on.
        text_column: Column or columns of text.
        label_column: Column of labels, one per row.
        test_rows: Stratified sample of the test table, the same for every cell; None takes it whole.
        development_rows: Rows to set aside; 0 for none.
        reading: How tables of text are read; None finds it out.
        say: Receives log lines on the sizes.

    Raises:
        TableError: A table cannot be used.
    """
    read = partial(load_table, text_columns=tuple(text_column), label_column=label_column, reading=reading, say=say)
    train = read(list(train_file), usual_splits=TRAIN)
    check_labels_for_training(train)
    names = label_names_of(train)[0]
    whole_test = read(test_file, label_names=names, usual_splits=TEST)
    pool, development = train, None
    if development_rows:
        if development_rows > len(train) - len(names):
            raise TableError(
                f"development_rows asks for {development_rows:,} of {len(train):,} labelled rows, which leaves too few "
                f"to train on; take fewer"
            )
        order = nested_order(train["label"], seed=DEVELOPMENT_SEED)
        development, pool = _in_order(train, order[:development_rows]), _in_order(train, order[development_rows:])
    test = whole_test
    if test_rows is not None and test_rows < len(whole_test):
        test = first_rows(whole_test, test_rows, seed=COMMON_SEED)
    known = set(train["text"])
    repeats = sum(text in known for text in test["text"])
    if repeats:
        say(f"note: {repeats:,} of the {len(test):,} test texts are also in the labelled table, word for word")
    say(
        f"rows: {len(train):,} labelled ({len(train) - len(pool):,} of them for development), {len(test):,} of "
        f"{len(whole_test):,} to test on; labels: {list_labels(names)}"
    )
    return LabelledTables(train, pool, development, test, whole_test)


def language_model_texts(
    tables: LabelledTables,
    *,
    unlabelled_file: Sequence[str] | None = None,
    unlabelled_rows: int | None = None,
    text_column: Sequence[str] = ("text",),
    labelled_too: bool = True,
    reading: TableReading | None = None,
    say: Callable[[str], None] = print_line,
) -> tuple[Dataset, Dataset]:
    """Return the texts that a language model trains on and is measured on; none is in the test table.

    Args:
        tables: The grid's tables.
        unlabelled_file: Further texts, or None.
        unlabelled_rows: Random sample of them; None takes all.
        text_column: Column or columns of text.
        labelled_too: Take the texts of the labelled table, without their labels.
        reading: How tables of text are read; None finds it out.
        say: Receives log lines on what was left out.
    """
    parts = [tables.train.select_columns(["text"])] if labelled_too else []
    if unlabelled_file is not None:
        texts = load_table(
            list(unlabelled_file),
            text_columns=tuple(text_column),
            label_column=None,
            usual_splits=UNLABELLED,
            reading=reading,
            say=say,
        )
        parts.append(some_rows(texts, unlabelled_rows, seed=COMMON_SEED))
    what, where = "texts of the language model", "the test table"
    kept = without_texts_of(concatenate_datasets(parts), [tables.whole_test], what=what, where=where, say=say)
    return split_texts(kept, fraction=LM_HELD_OUT, seed=COMMON_SEED, say=say)


def nested_order(labels: Sequence[int], *, seed: int) -> np.ndarray:
    """Return an order of the rows whose every beginning is stratified, and holds a row of each class if it can.

    Row j (in a random order) of a class of n rows gets the rank ``(j + 0.5) / n``, the first of each class 0.
    """
    random = np.random.default_rng(seed)
    values = np.asarray(labels)
    places = np.zeros(len(values))
    for label in np.unique(values):
        rows = random.permutation(np.flatnonzero(values == label))
        places[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
        places[rows[0]] = 0.0
    ties = random.permutation(len(values))
    return np.lexsort((ties, places))


def first_rows(table: Dataset, count: int, *, seed: int) -> Dataset:
    """Return the first rows of a table's nested order, in the table's own order."""
    return _in_order(table, nested_order(table["label"], seed=seed)[:count])


def _in_order(table: Dataset, rows: np.ndarray) -> Dataset:
    return table.select(sorted(int(row) for row in rows))
