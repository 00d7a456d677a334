"""Two tasks out of one labelled table: its classes are split in two halves, and each half is a task of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from datasets import ClassLabel, Dataset, Features

from ulmfit_pipe.data.images.files import ImageScan, load_images, scan_images, with_source_rows
from ulmfit_pipe.data.labels import SHOWN_NAMES, list_labels
from ulmfit_pipe.data.sample.docstrings import build_corpus, split_by_source
from ulmfit_pipe.data.sample.image_samples import handwritten_digits
from ulmfit_pipe.data.splits import check_labels_for_training, split_train_validation
from ulmfit_pipe.data.tables.row_sources import reading_of
from ulmfit_pipe.data.tables.tables import TableError, load_table
from ulmfit_pipe.settings.studies import TransferabilitySettings
from ulmfit_pipe.storage.digests import digest_of
from ulmfit_pipe.studies.demo import TARGET_LIBRARIES, TEST_FRACTION, long_paragraphs
from ulmfit_pipe.studies.grid.tables import nested_order
from ulmfit_pipe.text.tables import TEST, TRAIN, label_names_of, without_texts_of

SPLIT_SEED = 0  # of what is held out for the test, whatever the seed of a network
LEAST_CLASSES = 2  # of a task


@dataclass(frozen=True)
class Examples:
    """Labelled texts or images.

    Attributes:
        table: Columns ``text`` or ``image``, and ``label``.
        digests: Of each image's file; None for texts.
    """

    table: Dataset
    digests: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """Return the class names."""
        return label_names_of(self.table)[0]

    def digest(self) -> str:
        """Return a fingerprint of the rows and of what their labels are called."""
        content = self.table["text"] if self.digests is None else self.digests
        return digest_of(content, self.table["label"], self.names)[:16]

    def scan(self) -> ImageScan:
        """Return images as the image stage takes them, so that it does not open them all once more."""
        return ImageScan(self.table, list(self.digests or ()), [])

    def of_classes(self, names: Sequence[str], *, most: int | None = None, seed: int = 0) -> "Examples":
        """Return the rows of some classes, whose labels are counted anew from 0.

        Args:
            names: The classes, in the order of their new numbers.
            most: Take at most this many rows, the same share of each class.
            seed: Of which rows these are.
        """
        labels = np.asarray(self.table["label"][:])
        numbers = {self.names.index(name): number for number, name in enumerate(names)}
        rows = np.flatnonzero(np.isin(labels, list(numbers)))
        if most is not None and most < len(rows):
            rows = np.sort(rows[nested_order(labels[rows].tolist(), seed=seed)[:most]])
        column = "text" if self.digests is None else "image"
        features = Features({column: self.table.features[column], "label": ClassLabel(names=list(names))})
        content = {
            column: self.table.select(rows)[column][:],
            "label": [numbers[int(label)] for label in labels[rows]],
        }
        digests = None if self.digests is None else [self.digests[row] for row in rows]
        return Examples(Dataset.from_dict(content, features=features), digests)


@dataclass(frozen=True)
class HalfTask:
    """One of the two tasks: the rows of its classes, to train and to test on."""

    train: Examples
    test: Examples

    @property
    def names(self) -> list[str]:
        """Return the class names."""
        return self.train.names


def load_examples(settings: "TransferabilitySettings", *, say: Callable[[str], None]) -> tuple[Examples, Examples]:
    """Load all classes' rows to train and to test on.

    Raises:
        TableError: A table cannot be used, or its classes are too few to be split.
        ImageError: Images cannot be used.
    """
    if settings.train_images is not None or settings.dataset == "digits":
        train, test = _load_images(settings)
    else:
        train, test = _load_texts(settings, say)
    names = train.names
    if len(names) < 2 * LEAST_CLASSES:
        raise TableError(
            f"two tasks of at least {LEAST_CLASSES} classes each need {2 * LEAST_CLASSES} classes, the table has "
            f"{len(names)} ({list_labels(names)}); give a table with more, such as --dataset digits"
        )
    classes = list_labels(names, 2 * SHOWN_NAMES)
    say(f"rows: {len(train.table):,} to train, {len(test.table):,} to test; classes: {classes}")
    return train, test


def _load_images(settings: "TransferabilitySettings") -> tuple[Examples, Examples]:
    if settings.dataset == "digits":
        parts = handwritten_digits()
        train, test = parts["train"], parts["test"]
    else:
        train = load_images(
            str(settings.train_images), image_column=settings.image_column, label_column=settings.label_column
        )
        check_labels_for_training(train)
        if settings.test_images is None:  # a bad image is named by the row that it has in what the user gave
            train, test = _parts(with_source_rows(train), settings)
        else:
            test = load_images(
                settings.test_images,
                image_column=settings.image_column,
                label_column=settings.label_column,
                label_names=train.features["label"].names,
            )
    scans = [scan_images(part, skip_bad=False) for part in (train, test)]
    return Examples(scans[0].table, scans[0].digests), Examples(scans[1].table, scans[1].digests)


def _load_texts(settings: "TransferabilitySettings", say: Callable[[str], None]) -> tuple[Examples, Examples]:
    if settings.dataset is not None:
        corpus = long_paragraphs(build_corpus(TARGET_LIBRARIES))
        train, test = split_by_source(corpus, fraction=TEST_FRACTION, seed=SPLIT_SEED)
    else:
        load = partial(
            load_table,
            text_columns=settings.text_column,
            label_column=settings.label_column,
            reading=reading_of(settings),
            say=say,
        )
        train = load(settings.train_file or [], usual_splits=TRAIN)
        check_labels_for_training(train)
        if settings.test_file is None:
            train, test = _parts(train, settings)
        else:
            test = load(settings.test_file, label_names=label_names_of(train)[0], usual_splits=TEST)
    train = without_texts_of(train, [test], what="training texts", where="the test rows", say=say)
    return Examples(train), Examples(test)


def _parts(table: Dataset, settings: "TransferabilitySettings") -> tuple[Dataset, Dataset]:
    parts = split_train_validation(table, fraction=settings.test_fraction, seed=SPLIT_SEED)
    return parts["train"], parts["validation"]


def split_classes(names: Sequence[str], *, seed: int, task_a: Sequence[str] | None = None) -> tuple[list[str], ...]:
    """Split class names into those of task A and of task B, each in the table's order.

    Args:
        names: All class names, at least four.
        seed: Draws the split; of an odd number task A gets one class more.
        task_a: The classes of task A, which leaves nothing to draw.

    Raises:
        ValueError: `task_a` names a class that is not there, or leaves one of the tasks fewer than two.
    """
    if task_a is None:
        drawn = np.random.default_rng(seed).permutation(len(names))[: (len(names) + 1) // 2]
        chosen = {names[int(number)] for number in drawn}
    else:
        unknown = [name for name in task_a if name not in names]
        if unknown:
            raise ValueError(f"task_a names {unknown[0]!r}, which is not a class; the classes are {list_labels(names)}")
        chosen = set(task_a)
        if not LEAST_CLASSES <= len(chosen) <= len(names) - LEAST_CLASSES:
            raise ValueError(
                f"task_a has {len(chosen)} of {len(names)} classes, which leaves {len(names) - len(chosen)} to task B; "
                f"each task needs at least {LEAST_CLASSES}: name {LEAST_CLASSES} to {len(names) - LEAST_CLASSES}, or "
                "leave task_a out to have half of them drawn"
            )
    return [name for name in names if name in chosen], [name for name in names if name not in chosen]


def tasks_of(
    settings: "TransferabilitySettings", train: Examples, test: Examples, *, seed: int
) -> tuple[HalfTask, HalfTask]:
    """Return tasks A and B of a seed.

    Raises:
        ValueError: `task_a` cannot be used.
        TableError: One of the tasks has no row of a class to train on, or none to test on.
    """
    found = []
    halves = split_classes(train.names, seed=seed, task_a=settings.task_a)
    for names, most in zip(halves, (settings.rows_of_a, settings.rows_of_b), strict=True):
        task = HalfTask(
            train.of_classes(names, most=most, seed=seed),
            test.of_classes(names, most=settings.test_rows, seed=SPLIT_SEED),
        )
        there = set(task.train.table["label"][:])
        missing = [name for number, name in enumerate(names) if number not in there]
        if missing or not len(task.test.table):
            lacking = f"the class {missing[0]!r} to train on" if missing else f"{list_labels(names)} to test on"
            raise TableError(f"there is no row of {lacking}; add some, or raise rows_of_a and rows_of_b")
        found.append(task)
    return found[0], found[1]
