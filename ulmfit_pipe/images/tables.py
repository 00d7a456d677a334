"""The images of one run: training, validation and test kept apart, each opened once before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ulmfit_pipe.data.images.files import ImageScan, load_images, scan_images, with_source_rows
from ulmfit_pipe.data.labels import SHOWN_NAMES, list_labels
from ulmfit_pipe.data.sample.image_samples import handwritten_digits
from ulmfit_pipe.data.splits import check_labels_for_training, some_rows, split_train_validation
from ulmfit_pipe.images.classifier import tell_of_skipped
from ulmfit_pipe.settings.images import ImageSettings
from ulmfit_pipe.stages.context import RunContext


@dataclass(frozen=True)
class ImageTables:
    """The scanned images of a run.

    Attributes:
        train: Images to train on.
        validation: Images that choose the best epoch.
        test: Images that are looked at once, or None.
    """

    train: ImageScan
    validation: ImageScan
    test: ImageScan | None


def load_image_tables(
    settings: "ImageSettings", context: RunContext, *, train: Dataset | None = None, test: Dataset | None = None
) -> ImageTables:
    """Load and scan what the settings name; a part of the training images is held out where no others validate.

    Args:
        settings: Settings of the run.
        context: Logs what the tables hold.
        train: A dataset, instead of ``train_images``.
        test: The same in place of ``test_images``.

    Raises:
        ImageError: An image does not open, or a table cannot be used or has a class that training does not know.
        TableError: There are too few images or classes to learn from.
    """
    columns = {"image_column": settings.image_column, "label_column": settings.label_column}
    validation = None
    if settings.dataset is not None:
        parts = handwritten_digits()
        train, test = parts["train"], parts["test"]
    else:
        train = _loaded(settings.train_images if train is None else train, columns)
        names = train.features["label"].names
        test, validation = (
            None if source is None else _loaded(source, columns, names)
            for source in (settings.test_images if test is None else test, settings.validation_images)
        )
    train = with_source_rows(train)  # a bad image is named by the row that it has in what the user gave
    train = some_rows(train, settings.max_train_images, seed=settings.seed)
    check_labels_for_training(train)
    if validation is None:
        split = split_train_validation(train, fraction=settings.validation_fraction, seed=settings.seed)
        train, validation = split["train"], split["validation"]
    scans = [_scan(table, settings, context) for table in (train, validation)]
    tables = ImageTables(scans[0], scans[1], None if test is None else _scan(test, settings, context))
    _tell(tables, context)
    return tables


def _loaded(source: Any, columns: dict[str, str], names: Sequence[str] | None = None) -> Dataset:
    source = source if isinstance(source, Dataset) else Path(source)
    return load_images(source, label_names=names, **columns)


def _scan(table: Dataset, settings: "ImageSettings", context: RunContext) -> ImageScan:
    scan = scan_images(table, skip_bad=settings.classifier.skip_bad_images)
    tell_of_skipped(scan, context)
    return scan


def _tell(tables: ImageTables, context: RunContext) -> None:
    """Log the sizes, the classes without held-out images, and how many held-out images are in training too."""
    named = {"training": tables.train, "validation": tables.validation, "test": tables.test}
    sizes = ", ".join(f"{len(scan.table):,} {name}" for name, scan in named.items() if scan is not None)
    classes = tables.train.table.features["label"].names
    context.tell(f"images: {sizes}; classes: {list_labels(classes, 2 * SHOWN_NAMES)}")
    known = set(tables.train.digests)
    for name in ("validation", "test"):
        scan = named[name]
        if scan is None:
            continue
        labels = set(scan.table["label"][:])
        missing = [label for number, label in enumerate(classes) if number not in labels]
        if missing:
            context.tell(f"note: there are no {name} images of {', '.join(missing)}; nothing is measured on them")
        repeats = sum(digest in known for digest in scan.digests)
        if repeats:
            context.tell(
                f"note: {repeats:,} of {len(scan.table):,} {name} images are also in training, byte for byte; the "
                f"{name} metrics are flattered by as much"
            )
