"""A folder of texts: a folder per class with a file per text (``CLASS/*.txt``, as in aclImdb), or texts alone."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ulmfit_pipe.data.tables.row_sources import RowSource
from ulmfit_pipe.data.tables.saved_datasets import choose_split
from ulmfit_pipe.data.tables.text_files import LONGEST_LINE, TableError

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", "test", "unsupervised")
UNLABELLED_NAMES = ("unsup", "unsupervised", "unlabelled", "unlabeled")  # folders that are not classes
JUNK = ("thumbs.db", "desktop.ini")  # files that systems leave in folders, besides hidden ones
SHOWN_FOLDERS = 8  # names that a message lists
COLUMNS = ["text", "label", "file"]


def open_text_folder(
    folder: Path, split: str | None, usual_splits: Sequence[str], *, encoding: str | None, tables: Sequence[str]
) -> RowSource:
    """Open a folder of texts; its columns are text, label and file, or text and file where there are no classes.

    Args:
        folder: The folder.
        split: The sub-folder to read, or None.
        usual_splits: The sub-folders to read where it holds train and test and `split` is None.
        encoding: Of the texts; None takes UTF-8, and cp1252 for a text that is not.
        tables: Table files in it, for the error message.

    Raises:
        TableError: It holds no texts, or which ones to read is ambiguous.
    """
    below = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _counts(entry)]
    found = {entry.name: _files(entry) for entry in below}
    filled = {name: texts for name, files in found.items() if (texts := _texts(files))}
    splits = [name for name in filled if name.lower() in SPLIT_NAMES]
    if split is not None or (splits and len(splits) == len(filled)):
        if not filled:
            raise TableError(_nothing(folder, tables))
        chosen = choose_split(str(folder), list(filled), split, usual_splits)
        return open_text_folder(folder / chosen, None, (), encoding=encoding, tables=())
    unlabelled = [name for name in filled if name.lower() in UNLABELLED_NAMES]
    classes = [name for name in filled if name not in unlabelled]
    notes = [
        f"{folder / name} holds texts without labels and was left out; give it as --unlabelled_file"
        for name in unlabelled
        if classes
    ]
    empty = [entry for entry in below if entry.name not in filled]
    if classes and empty:
        raise TableError(f"the class folder {empty[0]} holds no .txt files; put texts in it, or remove it")
    if classes:
        others = sum(len(found[name]) - len(filled[name]) for name in classes)
        if others:
            notes.append(f"{folder}: {others:,} files in the class folders are not .txt files and were left out")
        return _source(folder, [(name, file) for name in classes for file in filled[name]], encoding, notes)
    if folder.name in ("", ".."):  # an empty name becomes this too
        raise TableError(
            f"the folder {folder} holds no folder of .txt files per class, and texts without classes are only read "
            "from a folder that is given by its name; give that, or a file"
        )
    bare = _texts([file for file in sorted(folder.iterdir()) if file.is_file() and _counts(file)])
    if not bare:
        raise TableError(_nothing(folder, tables))
    return _source(folder, [(None, file) for file in bare], encoding, notes)


def _nothing(folder: Path, tables: Sequence[str]) -> str:
    found = f"; it holds {', '.join(tables[:5])}" if tables else ""
    return (
        f"the folder {folder} was not saved by datasets (save_to_disk), and holds no folder of .txt files per class; "
        f"give a file in it instead, or a list of files{found}"
    )


def _counts(path: Path) -> bool:
    return not path.name.startswith((".", "__MACOSX", "@")) and path.name.lower() not in JUNK


def _files(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones and those in hidden folders."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and all(map(_counts, (file, *(part for part in file.relative_to(folder).parents if part.name))))
    ]


def _texts(files: Sequence[Path]) -> list[Path]:
    """The .txt files, or those without a suffix where there are none."""
    return [file for file in files if file.suffix.lower() == ".txt"] or [file for file in files if not file.suffix]


def _source(
    folder: Path, files: Sequence[tuple[str | None, Path]], encoding: str | None, notes: list[str]
) -> RowSource:
    columns = COLUMNS if files[0][0] is not None else ["text", "file"]

    def read(wanted: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        foreign: list[Path] = []
        if "label" in columns and "label" not in wanted:
            note = _texts_without_labels(folder, Counter(str(label) for label, _ in files))
            notes.extend([note] if note not in notes else [])
        for label, file in files:
            values = {"label": label, "file": str(file.relative_to(folder))}
            if "text" in wanted:
                values["text"] = _text_of(file, encoding, foreign)
            yield tuple([values[name] for name in wanted])
        if foreign:
            notes.append(
                f"{folder}: {len(foreign):,} of {len(files):,} texts are not UTF-8 and were read as cp1252 (--encoding "
                f"names another), the first is {foreign[0].name}"
            )

    names = [str(file.relative_to(folder)) for _, file in files]
    return RowSource(str(folder), list(columns), read, notes=notes, files=names)


def _texts_without_labels(folder: Path, counts: Counter[str]) -> str:
    """Return a note on the folders whose texts are read without labels; refuse a folder that is not named."""
    shown = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common(SHOWN_FOLDERS))
    more = ", ..." if len(counts) > SHOWN_FOLDERS else ""
    if folder.name in ("", ".."):
        raise TableError(
            f"the folder {folder} is not given by its name, and without labels all texts in the folders below it would "
            f"be read: {shown}{more}; give it by its name, or a file"
        )
    return f"{folder}: read {counts.total():,} texts in the folders {shown}{more}, whose names are not used as labels"


def _text_of(file: Path, encoding: str | None, foreign: list[Path]) -> str:
    if file.stat().st_size > LONGEST_LINE:
        raise TableError(f"{file} is longer than {LONGEST_LINE:,} bytes; a file is one text")
    content = file.read_bytes()
    try:
        return content.decode(encoding or "utf-8-sig")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise TableError(f"{file} cannot be read as {encoding} ({error.reason})") from error
    foreign.append(file)
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("latin-1")
