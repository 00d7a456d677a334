"""Images and their labels, from a folder of class folders, a table of paths, or a dataset of `datasets`.

All become one kind of table: ``image`` (a path, or the bytes of a file) and ``label``. Nothing is opened here but what
`scan_images` reads once: every image, so that a bad one stops the run before it starts, and is named.
"""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

try:
    from PIL import Image, ImageOps
except ImportError as error:
    raise ImportError("images need Pillow, which is not installed: pip install 'ulmfit_pipe[vision]'") from error

from ulmfit_pipe.data.labels import INTEGERS, can_be, clean_label, list_labels, sort_label_names
from ulmfit_pipe.data.progress_bars import bars_on_a_terminal_only
from ulmfit_pipe.data.tables.column_names import shown_names
from ulmfit_pipe.data.tables.tables import load_table
from ulmfit_pipe.errors import UlmfitError

MAX_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs: 256 MB of colour
SHOWN_FILES = 5  # bad images listed in a message
# What systems leave in folders of images, beside files and folders that begin with a dot, in small letters
JUNK = {
    *("thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "@recycle", "@__thumb", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information", "lost+found", "__pycache__"),
}
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}
SAVED_MARKS = ("state.json", "dataset_dict.json")  # files of a folder that `datasets` saved
SCAN_THREADS = 8
DRAFT = (64, 64)  # a JPEG is scanned at about this size: truncation shows, and it takes a fraction of the time
SOURCE_ROW = "source_row"  # column that keeps a row's number in its source, from 0, where rows are drawn or split
BYTE = 256  # steps of 16 bits to one of 8


class ImageError(UlmfitError, ValueError):
    """An image, or a set of them, that cannot be used; the message names the file or row and the remedy."""


@dataclass(frozen=True)
class ImageScan:
    """What reading every image of a table once has shown.

    Attributes:
        table: The images that open.
        digests: SHA-256 of each of their files.
        skipped: What was wrong with the others, one line per image.
    """

    table: datasets.Dataset
    digests: list[str]
    skipped: list[str]


def load_images(
    source: str | Path | datasets.Dataset,
    *,
    image_column: str = "image",
    label_column: str | None = "label",
    label_names: Sequence[str] | None = None,
    split: str | None = None,
) -> datasets.Dataset:
    """List images and labels.

    Args:
        source: A folder that holds a folder of images per class; a .csv, .tsv, .jsonl, .json or .parquet table whose
            image column holds paths (from the table's own folder on); a folder saved by `datasets`, or its dataset.
        image_column: The column of images or paths, in a table or dataset.
        label_column: The column of labels; None for images without.
        label_names: The class names that training knows, in order; any other is refused. None takes what is there.
        split: Which split of a saved ``DatasetDict``.

    Returns:
        ``image`` (undecoded) and, unless ``label_column`` is None, ``label`` (ClassLabel).

    Raises:
        ImageError: There is no such source, a class folder is empty, or a label cannot be used.
        TableError: A table of paths cannot be used; file, row and column are named.
    """
    if isinstance(source, datasets.Dataset):
        return _from_dataset(source, "the dataset", image_column, label_column, label_names)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"load_images takes a folder, a table of paths or a dataset, got {type(source).__name__}; write a table in "
            'memory to a file first: df.to_csv("images.csv", index=False)'
        )
    if not os.fspath(source).strip():
        raise ImageError(f"the name of a folder of images is empty, got {source!r:.60}; give a folder or a table")
    path = Path(os.path.expanduser(source))
    if path.is_dir() and any((path / mark).is_file() for mark in SAVED_MARKS):
        return _from_dataset(_load_saved(path, split), str(path), image_column, label_column, label_names)
    if path.is_dir():
        return _from_folder(path, label_names)
    if path.is_file():
        return _from_table(path, image_column, label_column, label_names)
    raise ImageError(
        f"there is no folder or table {path}; give a folder that holds a folder of images per class, a table of paths, "
        "or a folder saved by datasets (a dataset of the hub: load_dataset(...).save_to_disk(folder))"
    )


def _from_folder(folder: Path, label_names: Sequence[str] | None) -> datasets.Dataset:
    entries = [entry for entry in sorted(folder.iterdir()) if _counts(Path(entry.name))]
    classes = [entry.name for entry in entries if entry.is_dir()]
    loose = [entry.name for entry in entries if entry.is_file()]
    if not classes:
        raise ImageError(f"{folder} holds no folder of images per class; lay images out as {folder}/CLASS/IMAGE")
    if len(classes) > 1 and {name.lower() for name in classes} <= SPLIT_NAMES:
        raise ImageError(
            f"{folder} holds {', '.join(classes)}, which are splits rather than classes; give one of them, such as "
            f"{folder / classes[0]}"
        )
    if loose:
        raise ImageError(f"{folder / loose[0]} is beside the class folders, so it has no class; move or remove it")
    names = sort_label_names(set(map(clean_label, classes))) if label_names is None else list(label_names)
    numbers = {clean_label(name): number for number, name in enumerate(names)}
    images, labels = [], []
    for name in classes:
        top = folder / name
        files = [file for file in sorted(top.rglob("*")) if _counts(file.relative_to(top)) and file.is_file()]
        if not files:
            raise ImageError(f"the class folder {folder / name} is empty; put images of the class in it, or remove it")
        if clean_label(name) not in numbers:
            raise ImageError(f"{folder} has the class {name!r}, {_unknown(names)}")
        images += [{"bytes": None, "path": str(file)} for file in files]
        labels += [numbers[clean_label(name)]] * len(files)
    return _table(images, labels, names)


def _counts(path: Path) -> bool:
    """Whether no part of a path below the folder is hidden, or a system's own."""
    return not any(part.startswith(".") or part.lower() in JUNK for part in path.parts)


def _unknown(names: Sequence[str]) -> str:
    return f"which training does not know ({list_labels(names)}); rename it, or train with it"


def _table(images: list[dict[str, Any]], labels: list[int], names: list[str]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def image_table(files: Sequence[bytes], labels: Sequence[int], names: Sequence[str]) -> datasets.Dataset:
    """Return a table of images from the bytes of their files.

    Args:
        files: The content of each image's file.
        labels: The class number of each.
        names: Class names, in order.
    """
    return _table([{"bytes": content, "path": None} for content in files], list(labels), list(names))


def _from_table(
    path: Path, image_column: str, label_column: str | None, label_names: Sequence[str] | None
) -> datasets.Dataset:
    table = load_table(path, text_columns=[image_column], label_column=label_column, label_names=label_names)
    paths = [str(path.parent / text) for text in table["text"]]
    images = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image(decode=False))
    if label_column is None:
        return images
    return datasets.concatenate_datasets([images, table.select_columns(["label"])], axis=1)


def _load_saved(path: Path, split: str | None) -> datasets.Dataset:
    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split is None and len(loaded) == 1:
        split = next(iter(loaded))
    if split not in loaded:
        raise ImageError(
            f"{path} has the splits {', '.join(map(str, loaded))}; save the one you mean in a folder of its own, or "
            f"pass split=, got {split!r}"
        )
    return loaded[split]


def _from_dataset(
    dataset: datasets.Dataset,
    name: str,
    image_column: str,
    label_column: str | None,
    label_names: Sequence[str] | None,
) -> datasets.Dataset:
    for column in (image_column, label_column):
        if column is not None and column not in dataset.column_names:
            raise ImageError(f"{name} has no column {column!r}; it has {shown_names(dataset.column_names)}")
    feature = dataset.features[image_column]
    kind = getattr(feature, "dtype", None)
    if not isinstance(feature, datasets.Image) and kind not in ("string", "binary"):
        raise ImageError(
            f"column {image_column!r} of {name} holds {feature}; it must hold images (datasets.Image), paths or the "
            "bytes of image files"
        )
    images = dataset.select_columns([image_column]).with_format(None)
    if image_column != "image":
        images = images.rename_column(image_column, "image")
    images = images.cast_column("image", datasets.Image(decode=False))
    if label_column is None:
        return images
    ids, names = _labels_of(dataset, label_column, name, label_names)
    feature = datasets.ClassLabel(names=names, id=_label_type(dataset.features[label_column], names))
    features = datasets.Features({"label": feature})
    labels = datasets.Dataset.from_dict({"label": ids}, features=features)
    with bars_on_a_terminal_only():
        return datasets.concatenate_datasets([images, labels], axis=1)


def _labels_of(
    dataset: datasets.Dataset, column: str, name: str, label_names: Sequence[str] | None
) -> tuple[list[int], list[str]]:
    """Return class ids by the label names of training, or by those of the dataset."""
    feature, values = dataset.features[column], dataset.with_format(None)[column][:]
    given: list[str | None] = []
    for row, value in enumerate(values, start=1):
        if value is None or value == -1:
            raise ImageError(f"row {row} of {name} has no label; label it, or remove the row")
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ImageError(f"row {row} of {name} has the label {value!r:.60}; an image has one, a name or an integer")
        given.append(clean_label(feature.int2str(value) if isinstance(feature, datasets.ClassLabel) else str(value)))
    names = list(label_names or getattr(feature, "names", None) or sort_label_names(set(map(str, given))))
    numbers = {clean_label(label): number for number, label in enumerate(names)}
    for row, label in enumerate(given, start=1):
        if label not in numbers:
            raise ImageError(f"row {row} of {name} has the class {label!r}, {_unknown(names)}")
    return [numbers[str(label)] for label in given], names


def _label_type(feature: Any, names: Sequence[str]) -> str | None:
    """Return the type that a column's labels are in, as `LabelColumn` keeps it: integers, or None for names."""
    if isinstance(feature, datasets.ClassLabel):
        return feature.id
    return INTEGERS if getattr(feature, "dtype", "").startswith(("int", "uint")) and can_be(names, INTEGERS) else None


def with_source_rows(table: datasets.Dataset) -> datasets.Dataset:
    """Return a table that remembers which row of its source each of its rows is, whatever is selected of it."""
    rows = datasets.Dataset.from_dict({SOURCE_ROW: range(len(table))})
    with bars_on_a_terminal_only():
        return datasets.concatenate_datasets([table, rows], axis=1)


def describe_source(example: Mapping[str, Any], row: int) -> str:
    """Return what an image is called in messages: its file, or its row in its source, counted from 1.

    Args:
        example: The row of the table.
        row: Its index in the table, from 0; used if the table does not record the source's row.
    """
    path, row = (example["image"] or {}).get("path"), example.get(SOURCE_ROW, row)
    return f"{path} (row {row + 1})" if path else f"the image of row {row + 1}"


def read_source(source: Mapping[str, Any], where: str) -> bytes:
    """Return the content of an image's file.

    Raises:
        ImageError: There is no such file, or it cannot be read.
    """
    if source.get("bytes") is not None:
        return source["bytes"]
    if not source.get("path"):
        raise ImageError(f"{where} holds no image; fill it in, or remove the row")
    try:
        return Path(source["path"]).read_bytes()
    except OSError as error:
        raise ImageError(f"{where} cannot be read ({error.strerror}); correct the path, or remove the row") from error


def open_image(content: bytes, where: str, *, grey: bool = False, draft: bool = False) -> Image.Image:
    """Decode an image: upright, and in colour or grey whatever its file holds.

    Args:
        content: The content of its file.
        where: What to call it in a message.
        grey: Return one channel instead of three.
        draft: Decode a JPEG at a fraction of its size, for a check.

    Returns:
        The image turned by its EXIF orientation, mode RGB or L. Transparent parts are white; palettes are
        resolved; 16 bits become 8; of an animation it is the first picture.

    Raises:
        ImageError: It does not open, was cut short, has more than `MAX_PIXELS`, or holds no picture to show.
    """
    try:
        with Image.open(io.BytesIO(content)) as file:
            _check_pixels(file.width * file.height, where)
            if draft:
                file.draft(None, DRAFT)
            return plain_image(file, where, grey=grey)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(where, "more than twice as many") from None
    except Exception as error:  # every decoder raises its own kind: OSError, SyntaxError, struct.error, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(" <_io.BytesIO object", "")
        raise ImageError(f"{where} does not open as an image ({reason.split(' at 0x')[0]})") from error


def plain_image(image: Image.Image, where: str, *, grey: bool = False) -> Image.Image:
    """Return an opened image upright, in colour or grey, with 8 bits a channel; see `open_image`.

    Raises:
        ImageError: Its values are not brightness levels.
    """
    return _as_eight_bits(ImageOps.exif_transpose(image), where).convert("L" if grey else "RGB")


def _check_pixels(pixels: int, where: str) -> None:
    if pixels > MAX_PIXELS:
        raise _too_large(where, f"{pixels:,}")


def _too_large(where: str, pixels: str) -> ImageError:
    return ImageError(
        f"{where} is too large: at most {MAX_PIXELS:,} pixels are decoded (more may be a decompression bomb), it has "
        f"{pixels}; make it smaller first"
    )


def _as_eight_bits(image: Image.Image, where: str) -> Image.Image:
    """Put a transparent image on white, and bring more than 8 bits a channel down to 8."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() >= BYTE**2:
            raise ImageError(
                f"{where} holds values (mode {image.mode}) that are not brightness of 8 or 16 bits; save it as an "
                "8-bit image"
            )
        return Image.fromarray((values // BYTE).astype(np.uint8))
    return image


def scan_images(table: datasets.Dataset, *, skip_bad: bool = False) -> ImageScan:
    """Open every image once, before anything is trained on them.

    Args:
        table: From `load_images`.
        skip_bad: Leave images that do not open out instead of refusing them.

    Raises:
        ImageError: An image does not open and none may be skipped, or no image is left of a class or at all.
    """

    def look(row: int) -> tuple[str | None, str | None]:
        example = table[row]
        where = describe_source(example, row)
        try:
            content = read_source(example["image"] or {}, where)
            open_image(content, where, draft=True)
        except ImageError as error:
            return None, str(error)
        return hashlib.sha256(content).hexdigest(), None

    with ThreadPoolExecutor(SCAN_THREADS) as threads:
        found = list(threads.map(look, range(len(table))))
    problems = [problem for _, problem in found if problem is not None]
    if problems and not skip_bad:
        more = "".join(f"; {problem}" for problem in problems[1:SHOWN_FILES])
        rest = f"; and {len(problems) - SHOWN_FILES} more" if len(problems) > SHOWN_FILES else ""
        raise ImageError(
            f"{problems[0]}{more}{rest}. Replace or remove what does not open, or set skip_bad_images to leave such "
            "images out"
        )
    kept = [row for row, (digest, _) in enumerate(found) if digest is not None]
    _check_all_classes_left(table, kept)
    return ImageScan(table.select(kept), [digest for digest, _ in found if digest is not None], problems)


def _check_all_classes_left(table: datasets.Dataset, kept: list[int]) -> None:
    if not kept:
        raise ImageError(f"none of the {len(table)} images opens; give at least one that does")
    if "label" not in table.column_names:
        return
    labels = table["label"][:]
    lost = set(labels) - {labels[row] for row in kept}
    if lost:
        name = table.features["label"].int2str(min(lost))
        raise ImageError(f"none of the images of class {name!r} opens; replace them, or remove the class")
