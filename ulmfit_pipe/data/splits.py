"""Rows held out for validation, so that every label that can be is both trained and measured."""

from collections import Counter
from collections.abc import Sequence

import datasets
import numpy as np

from ulmfit_pipe.data.labels import list_labels
from ulmfit_pipe.data.tables.readers import TableError
from ulmfit_pipe.data.tables.tables import check_table

LARGEST_SEED = 2**32 - 1  # what NumPy and PyTorch both take


def check_seed(seed: int) -> None:
    """Raise unless a seed is one that every generator takes.

    Raises:
        ValueError: It is below 0, too large, or not a whole number.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be a whole number in 0..{LARGEST_SEED} (2**32 - 1), got {seed!r}; 0 is usual")


def some_rows(table: datasets.Dataset, most: int | None, *, seed: int) -> datasets.Dataset:
    """Return at most this many rows, chosen at random, in the table's order."""
    if most is None or len(table) <= most:
        return table
    chosen = np.random.default_rng(seed).choice(len(table), most, replace=False)
    return table.select(sorted(int(row) for row in chosen))


def labels_of_rows(dataset: datasets.Dataset) -> list[list[int]]:
    """Return the label ids of each row: one, or in multi-label any number of them."""
    labels = dataset["label"][:]
    return labels if labels and isinstance(labels[0], list) else [[label] for label in labels]


def split_train_validation(dataset: datasets.Dataset, *, fraction: float = 0.1, seed: int = 0) -> datasets.DatasetDict:
    """Split off a validation set in which every class has its share.

    A class of two rows or more is on both sides, whatever its share. The only row of a class stays in training, and
    nothing is measured on that class. Multi-label rows are drawn plainly first; then rows are exchanged until the same
    holds for each label, as far as rows that have several labels allow it. Unlabelled rows are drawn plainly.

    Args:
        dataset: From :func:`load_table`.
        fraction: Share of the rows for validation, in (0, 1); a little more are taken where rare classes need it.
        seed: The same seed gives the same split.

    Returns:
        ``train`` and ``validation``.

    Raises:
        ValueError: ``fraction`` or ``seed`` is out of range.
        TypeError: It is not a table of `load_table`.
        TableError: There are too few rows.
    """
    check_table(dataset, what="the table of split_train_validation", columns=())
    check_seed(seed)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1), got {fraction!r}; 0.1 is usual")
    if len(dataset) < 2:
        raise TableError(f"a table of {len(dataset)} row cannot be split; give a validation file, or more rows")
    held_out = max(1, round(fraction * len(dataset)))
    if "label" not in dataset.column_names:
        parts = dataset.train_test_split(test_size=held_out, seed=seed)
        return datasets.DatasetDict(train=parts["train"], validation=parts["test"])
    labels = labels_of_rows(dataset)
    if isinstance(dataset.features["label"], datasets.ClassLabel):
        train, validation = _stratified_rows(dataset, labels, held_out=held_out, seed=seed)
    else:
        train, validation = _drawn_rows(list(range(len(dataset))), held_out=held_out, seed=seed)
    train, validation = _on_both_sides(train, validation, labels)
    if not validation:
        raise TableError(
            f"{len(dataset)} rows are too few to hold any out: each is the only row of a label; add rows, or give a "
            "validation file"
        )
    return datasets.DatasetDict(train=dataset.select(train), validation=dataset.select(validation))


def _drawn_rows(
    rows: Sequence[int], *, held_out: int, seed: int, classes: Sequence[int] | None = None, num_classes: int = 0
) -> tuple[list[int], list[int]]:
    """Draw rows with the generator of `datasets`, stratified by their classes if there are any."""
    columns: dict[str, Sequence[int]] = {"row": rows}
    features = datasets.Features({"row": datasets.Value("int64")})
    if classes is not None:
        columns["class"] = classes
        features["class"] = datasets.ClassLabel(num_classes=num_classes)
    parts = datasets.Dataset.from_dict(columns, features=features).train_test_split(
        test_size=held_out, seed=seed, stratify_by_column=None if classes is None else "class"
    )
    return parts["train"]["row"][:], parts["test"]["row"][:]


def _stratified_rows(
    dataset: datasets.Dataset, labels: Sequence[Sequence[int]], *, held_out: int, seed: int
) -> tuple[list[int], list[int]]:
    counts = Counter(label for row in labels for label in row)
    alone = [row for row, (label,) in enumerate(labels) if counts[label] == 1]
    rows = [row for row, (label,) in enumerate(labels) if counts[label] > 1]
    numbers = {label: number for number, label in enumerate(sorted(label for label in counts if counts[label] > 1))}
    if not numbers:
        names = dataset.features["label"].names
        raise TableError(
            f"every class has one row only ({list_labels([names[label] for label in sorted(counts)])}), which cannot "
            "be both in training and in validation; is it the right label column? Add rows, or give a validation file"
        )
    held_out = max(held_out, len(numbers))
    if len(rows) - held_out < len(numbers):
        raise TableError(
            f"{len(rows)} rows of {len(numbers)} classes are too few to hold out {held_out} for validation; "
            "add rows, take a smaller fraction, or give a validation file"
        )
    classes = [numbers[labels[row][0]] for row in rows]
    train, validation = _drawn_rows(rows, held_out=held_out, seed=seed, classes=classes, num_classes=len(numbers))
    return train + alone, validation


def _on_both_sides(
    train: Sequence[int], validation: Sequence[int], labels: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """Exchange rows: first every label has one in training, then every label that can spare one in validation."""
    trained = Counter(label for row in train for label in labels[row])
    validation, kept = list(validation), []
    added: list[int] = []
    for row in validation:
        if any(not trained[label] for label in labels[row]):
            trained.update(labels[row])
            added.append(row)
        else:
            kept.append(row)
    measured = Counter(label for row in kept for label in labels[row])
    left = []
    for row in train:
        wanted = not kept or any(not measured[label] for label in labels[row])
        if wanted and all(trained[label] > 1 for label in labels[row]):
            trained.subtract(labels[row])
            measured.update(labels[row])
            kept.append(row)
        else:
            left.append(row)
    return left + added, kept


def check_labels_for_training(dataset: datasets.Dataset) -> None:
    """Refuse a table that a classifier cannot learn from.

    Raises:
        TableError: All rows have one label, or (multi-label) no row has any.
    """
    if "label" not in dataset.column_names:
        raise TableError("the table has no labels; load it with label_column=")
    feature = dataset.features["label"]
    if not isinstance(feature, datasets.ClassLabel):
        if not any(len(row) for row in dataset["label"][:]):
            raise TableError(f"none of the {len(dataset)} rows has a label; multi-label training needs some")
        return
    seen = set(dataset["label"][:])
    if len(seen) < 2:
        name = feature.int2str(next(iter(seen)))
        raise TableError(f"all {len(dataset)} rows have the label {name!r}; a classifier needs at least two classes")
