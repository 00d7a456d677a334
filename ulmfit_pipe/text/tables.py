"""The tables of one run: training, validation and test kept apart, and unlabelled text that leaks neither."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, concatenate_datasets

from ulmfit_pipe.console import print_line
from ulmfit_pipe.data.labels import label_type_of, list_labels, read_label_names
from ulmfit_pipe.data.splits import (
    check_labels_for_training,
    check_seed,
    labels_of_rows,
    some_rows,
    split_train_validation,
)
from ulmfit_pipe.data.tables.row_sources import reading_of
from ulmfit_pipe.data.tables.tables import FileFacts, TableError, load_table
from ulmfit_pipe.settings.checks import check_choices
from ulmfit_pipe.settings.tables import LabelledTables, RowLimits
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.storage.digests import digest_of
from ulmfit_pipe.text.table_account import tell_of_tables
from ulmfit_pipe.training.distributed.launch import started_processes

# The split that each setting reads from a dataset that has several.
TRAIN, VALIDATION, TEST = ("train", "training"), ("validation", "valid", "val", "dev"), ("test",)
UNLABELLED = ("unsupervised", "unsup", "unlabelled", "unlabeled")
SPLITS = {"training": TRAIN, "validation": VALIDATION, "test": TEST}
HELD_OUT = 0.1  # share of the labelled rows, for validation
LEAST_ROWS, LEAST_ROWS_PER_CLASS = 500, 20  # below, a tenth of the rows would be too few to choose an epoch by
SHOWN_LABELS = 12  # label names listed in a line


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
        sizes = [f"{len(table):,} {name}" for name, table in self.named().items()]
        return f"rows: {', '.join(sizes)}; labels: {list_labels(label_names_of(self.train)[0], SHOWN_LABELS)}"

    def named(self) -> dict[str, Dataset]:
        """Return the tables that are not None, by their names in messages."""
        tables = {
            "training": self.train,
            "validation": self.validation,
            "test": self.test,
            "unlabelled": self.unlabelled,
        }
        return {name: table for name, table in tables.items() if table is not None}

    def language_model_text(self) -> Dataset:
        """Return the texts that the language model may train on: training rows and unlabelled ones."""
        train = self.train.select_columns(["text"])
        return train if self.unlabelled is None else concatenate_datasets([train, self.unlabelled])


def check_tables_alike(tables: RunTables, context: RunContext) -> None:
    """Raise on every process unless all of them have read the same rows.

    Raises:
        ProcessError: They have not; the table is named.
    """
    if started_processes() == 1:
        return
    found = {name: table for name, table in vars(tables).items() if table is not None}
    rows = {name: len(table) for name, table in found.items()}
    digests = {name: digest_of(*(table[column] for column in table.column_names)) for name, table in found.items()}
    context.check_alike({"rows": rows, "data": digests})


def label_names_of(table: Dataset) -> tuple[list[str], bool]:
    """Return a table's label names, and whether a row may have several."""
    feature = table.features["label"]
    if hasattr(feature, "names"):
        return list(feature.names), False
    return list(feature.feature.names), True


def columns_of(settings: LabelledTables) -> dict[str, Any]:
    """Return the fields of `LabelledTables` that a run's settings inherit."""
    return {each.name: getattr(settings, each.name) for each in dataclasses.fields(LabelledTables)}


def loading_options(columns: LabelledTables) -> dict[str, Any]:
    """Return the same choices as arguments of `load_table`.

    Raises:
        TableError: The file of label names cannot be used.
        ValueError: No label column is named, or a value is not one of its field's choices.
    """
    check_choices(columns)
    labels = _listed(columns.label_column)
    if not labels:
        raise ValueError("label_column is empty; name at least one column")
    return {
        "text_columns": _listed(columns.text_column),
        "label_column": labels if len(labels) > 1 else labels[0],
        "label_separator": columns.label_separator,
        "multi_label": columns.multi_label or columns.label_separator is not None,
        "label_mapping": None if columns.label_names is None else read_label_names(columns.label_names),
        "label_threshold": columns.label_threshold,
        "skip_blank": columns.empty_text == "skip",
    }


def _listed(columns: Sequence[str] | str) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def load_run_tables(
    train_file: Any,
    *,
    validation_file: Any = None,
    test_file: Any = None,
    unlabelled_file: Any = None,
    validation_fraction: float | None = 0.1,
    seed: int = 0,
    include_test_text: bool = False,
    max_rows: RowLimits | None = None,
    say: Callable[[str], None] = print_line,
    **columns: Any,
) -> RunTables:
    """Load and split the tables of a run, and report what they hold.

    Args:
        train_file: Labelled file or files, or anything else that `load_table` takes.
        validation_file: The same, held out; without it a stratified part of the training rows is.
        test_file: The same, for the test, or None.
        unlabelled_file: The same, further text for the language model, or None.
        validation_fraction: Part held out where no validation file is given; None is a tenth of 500 rows or more.
        seed: Seed of the split.
        include_test_text: Keep unlabelled texts that are also in validation or test.
        max_rows: Upper limit on the rows of each table.
        say: Called with each log line: the sizes and what was left out.
        **columns: Fields of `LabelledTables`.

    Raises:
        TableError: A table cannot be used; file, row and column are named.
        ValueError: A setting makes no sense.
    """
    check_seed(seed)
    given = LabelledTables(**columns)
    how = {"reading": reading_of(given), "say": say}
    loader = TableLoader(loading_options(given), max_rows or RowLimits(), seed, how=how)
    train = loader.labelled("training", train_file)
    loader.names = label_names_of(train)[0]
    held_out = {
        name: None if file is None else loader.labelled(name, file)
        for name, file in (("validation", validation_file), ("test", test_file))
    }
    kept = _frequent_labels(train, given.min_rows_per_class, say)
    train = with_labels(train, kept)
    validation, test = (None if table is None else with_labels(table, kept) for table in held_out.values())
    check_labels_for_training(train)
    if validation is None:
        train, validation = hold_out(train, validation_fraction, seed=seed, say=say)
    unlabelled = None
    if unlabelled_file is not None:
        texts = loader.unlabelled(unlabelled_file)
        unlabelled = _not_held_out(texts, [] if include_test_text else [validation, test], say)
    tables = RunTables(train, validation, test, unlabelled)
    names, several = label_names_of(train)
    say(tables.describe())
    tell_of_tables(tables.named(), loader.files, names=names, several=several, say=say)
    return tables


def load_labelled_table(
    source: Any,
    *,
    known: Sequence[str],
    several: bool = False,
    say: Callable[[str], None] = print_line,
    **columns: Any,
) -> Dataset:
    """Return a labelled table, read as a run reads its test table.

    Args:
        source: A file, or anything else that `load_table` takes.
        known: Names that the labels must have, in order.
        several: A row may have several labels.
        say: Called with each log line.
        **columns: Fields of `LabelledTables`, or arguments that only `load_table` has.

    Raises:
        TableError: The table cannot be used; file, row and column are named.
        ValueError: ``text_column`` is given under both of its names.
    """
    if "text_columns" in columns:  # load_table's name for it
        if "text_column" in columns:
            raise ValueError("text_columns is another name of text_column; give text_column alone")
        columns["text_column"] = columns.pop("text_columns")
    names = {each.name for each in dataclasses.fields(LabelledTables)}
    given = LabelledTables(**{name: value for name, value in columns.items() if name in names})
    if several and len(_listed(given.label_column)) == 1:
        given = dataclasses.replace(given, multi_label=True)
    others = {name: value for name, value in columns.items() if name not in names}
    how = {"reading": reading_of(given), "say": say, **others}
    loader = TableLoader(loading_options(given), RowLimits(), 0, how=how)
    loader.names = list(known)
    return loader.labelled("test", source)


def hold_out(
    train: Dataset, fraction: float | None, *, seed: int, say: Callable[[str], None]
) -> tuple[Dataset, Dataset | None]:
    """Split labelled rows into training and validation, or into all and None.

    Args:
        train: Labelled rows.
        fraction: Part to hold out; 0 is none; None is a tenth if the table is large enough to select an epoch by.
        seed: Seed of the split.
        say: Called with a log line where nothing is held out by default.
    """
    if fraction is None:
        classes = len(label_names_of(train)[0])
        fraction = HELD_OUT
        if len(train) < max(LEAST_ROWS, LEAST_ROWS_PER_CLASS * classes):
            fraction = 0.0
            say(
                f"validation: none of the {len(train):,} rows is held out, too few to choose by (fewer than "
                f"{LEAST_ROWS}, or than {LEAST_ROWS_PER_CLASS} for each of {classes:,} labels); all are trained on, "
                f"the last epoch is kept (--validation_fraction {HELD_OUT} holds a part out)"
            )
    if fraction == 0:
        return train, None
    parts = split_train_validation(train, fraction=fraction, seed=seed)
    return parts["train"], parts["validation"]


class TableLoader:
    """Loads the tables of a run, and records facts about their files."""

    def __init__(self, columns: dict[str, Any], limits: RowLimits, seed: int, *, how: dict[str, Any]) -> None:
        self.columns, self.limits, self.seed, self.how = columns, limits, seed, how
        self.names: list[str] | None = None  # the labels that training knows, once it was read
        self.files: dict[str, list[FileFacts]] = {}

    def labelled(self, name: str, file: Any) -> Dataset:
        """Return a labelled table."""
        facts = self.files.setdefault(name, [])
        given = {**self.columns, **self.how, "label_names": self.names, "usual_splits": SPLITS[name]}
        table = load_table(file, facts=facts, **given)
        limit = {"training": self.limits.train, "test": self.limits.test}.get(name)
        return some_rows(table, limit, seed=self.seed)

    def unlabelled(self, file: Any) -> Dataset:
        """Return further texts."""
        facts = self.files.setdefault("unlabelled", [])
        columns = self.columns["text_columns"]
        table = load_table(
            file, text_columns=columns, label_column=None, facts=facts, usual_splits=UNLABELLED, **self.how
        )
        return some_rows(table, self.limits.unlabelled, seed=self.seed)


def _frequent_labels(train: Dataset, least: int, say: Callable[[str], None]) -> list[int] | None:
    """Return the ids of the labels that have enough rows, or None where all have."""
    if least < 1:
        raise ValueError(f"min_rows_per_class must be 1 or more, got {least!r}; 2 leaves classes of a single row out")
    names, counts = label_names_of(train)[0], Counter(label for row in labels_of_rows(train) for label in row)
    rare = [number for number in range(len(names)) if counts[number] < least]
    if least == 1 or not rare:
        return None
    shown = list_labels([f"{names[number]} ({counts[number]:,})" for number in rare], SHOWN_LABELS)
    say(
        f"left out {len(rare):,} of {len(names):,} classes, which have fewer than {least:,} rows "
        f"(min_rows_per_class): {shown}"
    )
    kept = [number for number in range(len(names)) if counts[number] >= least]
    if len(kept) < 1 + isinstance(train.features["label"], ClassLabel):
        raise TableError(f"min_rows_per_class {least:,} leaves {len(kept)} of {len(names):,} classes; take a lower one")
    return kept


def with_labels(table: Dataset, kept: Sequence[int] | None) -> Dataset:
    """Return a table without all but the labels kept: without their rows, in multi-label without the labels."""
    if kept is None:
        return table
    numbers = {old: new for new, old in enumerate(kept)}
    labels: Any = [[numbers[label] for label in row if label in numbers] for row in labels_of_rows(table)]
    known, several = label_names_of(table)
    feature: Any = ClassLabel(names=[known[number] for number in kept], id=label_type_of(table.features["label"]))
    rows: Sequence[int] = range(len(table))
    if several:
        feature = List(feature)
    else:
        rows = [row for row, label in enumerate(labels) if label]
        labels = [labels[row][0] for row in rows]
    column = Dataset.from_dict({"label": labels}, features=Features({"label": feature}))
    return concatenate_datasets([table.select(rows).remove_columns(["label"]), column], axis=1)


def _not_held_out(texts: Dataset, held_out: Sequence[Dataset | None], say: Callable[[str], None]) -> Dataset:
    where = "the validation or test table"
    return without_texts_of(texts, held_out, what="unlabelled texts", where=where, say=say)


def refuse_unvalidated_best(validation_file: Any, validation_fraction: float | None, *, keep: str) -> None:
    """Refuse, before any training, to keep a classifier's best epoch where no rows are held out to select it by.

    Raises:
        ValueError: The best epoch is wanted and no rows are held out.
    """
    if validation_file is None and validation_fraction == 0 and keep == "best":
        raise ValueError(
            "validation_fraction 0 trains on all rows and leaves none to choose the best epoch by; set classifier.keep "
            "to 'last' (after settings were chosen with rows held out), or give a validation file"
        )


def split_texts(texts: Dataset, *, fraction: float, seed: int, say: Callable[[str], None]) -> tuple[Dataset, Dataset]:
    """Split unlabelled texts into training and validation; no validation text is in training too."""
    parts = split_train_validation(texts, fraction=fraction, seed=seed)
    kept = without_texts_of(
        parts["train"], [parts["validation"]], what="training texts", where="the validation part", say=say
    )
    if not len(kept):  # a few texts that are repeated again and again: there is nothing else to train on
        say("all training texts are also in the validation part, so they are kept; its perplexity means little")
        kept = parts["train"]
    return kept, parts["validation"]


def without_texts_of(
    texts: Dataset, held_out: Sequence[Dataset | None], *, what: str, where: str, say: Callable[[str], None]
) -> Dataset:
    """Leave out the texts that are also in a held-out table, and log how many.

    Args:
        texts: Column ``text``.
        held_out: Tables that are only measured.
        what: What is left out, in words.
        where: What the held-out tables are, in words.
        say: Called with the number, if it is not zero.
    """
    known = {text for table in held_out if table is not None for text in table["text"]}
    kept = [row for row, text in enumerate(texts["text"]) if text not in known]
    dropped = len(texts) - len(kept)
    if not dropped:
        return texts
    say(f"left out {dropped:,} of {len(texts):,} {what} that are also in {where}")
    return texts.select(kept)
