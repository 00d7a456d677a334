"""The tables of one run: training, validation and test kept apart, and unlabelled text that leaks neither."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from datasets import Dataset, concatenate_datasets

from ulmfit_pipe.console import in_one_line, print_line
from ulmfit_pipe.data.tables import check_labels_for_training, load_table, split_train_validation

LIKELY_SEPARATORS = "|;,/+"  # what people put between the labels of one cell


@dataclass(frozen=True)
class RowLimits:
    """Use only so many rows of a table, chosen at random by the seed; null takes all.

    Attributes:
        train: Of the labelled rows, before the validation part is held out.
        test: Of the test table.
        unlabelled: Of the further texts.
    """

    train: int | None = None
    test: int | None = None
    unlabelled: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, count in dataclasses.asdict(self).items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be 1 or more rows, or null for all, got {count!r}")


@dataclass(frozen=True)
class RunTables:
    """What a run trains and measures on.

    Attributes:
        train: Labelled rows to train on.
        validation: Labelled rows that choose the best epoch; None where nothing is held out.
        test: Labelled rows that are looked at once, or None.
        unlabelled: Further texts for the language model, or None.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    unlabelled: Dataset | None

    def describe(self) -> str:
        """Return one line: rows of each table, and the labels."""
        named = {
            "training": self.train,
            "validation": self.validation,
            "test": self.test,
            "unlabelled": self.unlabelled,
        }
        sizes = [f"{len(table):,} {name}" for name, table in named.items() if table is not None]
        names = label_names_of(self.train)[0]
        shown = ", ".join(map(in_one_line, names[:12])) + (" ..." if len(names) > 12 else "")
        return f"rows: {', '.join(sizes)}; labels: {shown}"

    def language_model_text(self) -> Dataset:
        """Return the texts that the language model may train on: training rows and unlabelled ones."""
        train = self.train.select_columns(["text"])
        return train if self.unlabelled is None else concatenate_datasets([train, self.unlabelled])


def label_names_of(table: Dataset) -> tuple[list[str], bool]:
    """Return a table's label names, and whether a row may have several."""
    feature = table.features["label"]
    if hasattr(feature, "names"):
        return list(feature.names), False
    return list(feature.feature.names), True


def load_run_tables(
    train_file: Sequence[str] | str,
    *,
    validation_file: str | None = None,
    test_file: str | None = None,
    unlabelled_file: Sequence[str] | str | None = None,
    text_column: Sequence[str] | str = ("text",),
    label_column: str = "label",
    label_separator: str | None = None,
    multi_label: bool = False,
    validation_fraction: float = 0.1,
    seed: int = 0,
    include_test_text: bool = False,
    max_rows: RowLimits | None = None,
    say: Callable[[str], None] = print_line,
) -> RunTables:
    """Load and split the tables of a run.

    Args:
        train_file: Labelled file or files.
        validation_file: Held-out file; without it a stratified part of the training rows is held out.
        test_file: Test file, or None.
        unlabelled_file: Further text for the language model, or None.
        text_column: Column or columns of text.
        label_column: Column of labels.
        label_separator: Splits a label cell into several (multi-label).
        multi_label: The label column holds lists.
        validation_fraction: Part held out where no validation file is given; 0 holds nothing out.
        seed: Seed of the split.
        include_test_text: Keep unlabelled texts that also stand in validation or test.
        max_rows: Use only so many rows of each table.
        say: Told the sizes and what was left out.

    Raises:
        TableError: A table cannot be used; file, row and column are named.
    """
    columns = (text_column,) if isinstance(text_column, str) else tuple(text_column)
    many = multi_label or label_separator is not None
    labels = {"label_column": label_column, "label_separator": label_separator, "multi_label": many}
    load: Callable[..., Dataset] = partial(load_table, text_columns=columns, **labels)  # type: ignore[arg-type]
    limits = max_rows or RowLimits()
    train = some_rows(load(train_file), limits.train, seed=seed)
    check_labels_for_training(train)
    names = label_names_of(train)[0]
    validation: Dataset | None = None
    if validation_file is not None:
        validation = load(validation_file, label_names=names)
    elif validation_fraction != 0:
        train, validation = split_train_validation(train, fraction=validation_fraction, seed=seed).values()
    test = None if test_file is None else some_rows(load(test_file, label_names=names), limits.test, seed=seed)
    unlabelled = None
    if unlabelled_file is not None:
        texts = load_table(unlabelled_file, text_columns=columns, label_column=None)
        held_out = [] if include_test_text else [validation, test]
        unlabelled = _not_held_out(some_rows(texts, limits.unlabelled, seed=seed), held_out, say)
    tables = RunTables(train, validation, test, unlabelled)
    _tell_of_repeats(tables, say)
    _tell_of_joined_labels(*label_names_of(train), say)
    say(tables.describe())
    return tables


def _not_held_out(texts: Dataset, held_out: Sequence[Dataset | None], say: Callable[[str], None]) -> Dataset:
    where = "the validation or test table"
    return without_texts_of(texts, held_out, what="unlabelled texts", where=where, say=say)


def refuse_unjudged_best(validation_file: str | None, validation_fraction: float, *, keep: str) -> None:
    """Refuse to keep the best epoch of a classifier where no row is held out to judge by, before anything is trained.

    Raises:
        ValueError: That is so.
    """
    if validation_file is None and validation_fraction == 0 and keep == "best":
        raise ValueError(
            "validation_fraction 0 trains on all rows and leaves none to choose the best epoch by; set classifier.keep "
            "to 'last' (after settings were chosen with rows held out), or give a validation file"
        )


def some_rows(table: Dataset, most: int | None, *, seed: int) -> Dataset:
    """Return at most so many rows, chosen at random, in the table's order."""
    if most is None or len(table) <= most:
        return table
    chosen = np.random.default_rng(seed).choice(len(table), most, replace=False)
    return table.select(sorted(int(row) for row in chosen))


def split_texts(texts: Dataset, *, fraction: float, seed: int, say: Callable[[str], None]) -> tuple[Dataset, Dataset]:
    """Split unlabelled texts into training and validation; none of the validation texts stands in training too."""
    parts = split_train_validation(texts, fraction=fraction, seed=seed)
    kept = without_texts_of(
        parts["train"], [parts["validation"]], what="training texts", where="the validation part", say=say
    )
    return kept, parts["validation"]


def without_texts_of(
    texts: Dataset, held_out: Sequence[Dataset | None], *, what: str, where: str, say: Callable[[str], None]
) -> Dataset:
    """Leave out the texts that also stand in a held-out table, and say how many.

    Args:
        texts: Column ``text``.
        held_out: Tables that are only measured.
        what: What is left out, in words.
        where: What the held-out tables are, in words.
        say: Told the number, if there is any.
    """
    known = {text for table in held_out if table is not None for text in table["text"]}
    kept = [row for row, text in enumerate(texts["text"]) if text not in known]
    dropped = len(texts) - len(kept)
    if not dropped:
        return texts
    say(f"left out {dropped:,} of {len(texts):,} {what} that also stand in {where}")
    return texts.select(kept)


def _tell_of_repeats(tables: RunTables, say: Callable[[str], None]) -> None:
    known = set(tables.train["text"])
    for name, held_out in (("validation", tables.validation), ("test", tables.test)):
        repeats = 0 if held_out is None else sum(text in known for text in held_out["text"])
        if held_out is not None and repeats:
            say(
                f"note: {repeats:,} of {len(held_out):,} {name} texts also stand in the training table, word for word; "
                f"the {name} metrics are flattered by as much"
            )


def _tell_of_joined_labels(names: Sequence[str], several: bool, say: Callable[[str], None]) -> None:
    """Say so where labels look like several in one cell: each part of ``a|b`` is itself a label of the table."""
    for separator in LIKELY_SEPARATORS if not several else "":
        for name in names:
            parts = [part.strip() for part in name.split(separator)]
            if len(parts) > 1 and all(part in names for part in parts):
                say(
                    f"note: the label {name!r} counts as one label beside {' and '.join(map(repr, parts))}; if it "
                    f"means several, set label_separator to {separator!r}"
                )
                return
