"""What the Python classes are handed: texts or images to predict, files to train on.

A table in memory, a mapping or an array looks like a list of its column names to Python; each is refused before any
work, with the line to write instead.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, MappingView, Sequence, Set
from itertools import islice
from typing import Any

from ulmfit_pipe.data.labels import is_blank
from ulmfit_pipe.settings.parsing import ordered_fields
from ulmfit_pipe.settings.values import SettingsError, shorten

SHOWN_COLUMNS = 8
AT_HAND = dict.fromkeys(  # names that other libraries have for data in memory
    ("texts", "X", "x", "data", "df", "dataset", "train_dataset", "labels", "y"),
    'pandas.DataFrame({"text": texts, "label": labels}).to_csv("train.csv", index=False), then fit("train.csv", '
    'output_dir="runs/mine")',
)
_FILE_ENDING = re.compile(r"\.\w{1,8}$")


def check_sequence(values: Any, *, of: str) -> Iterable[Any]:
    """Return what `predict` was given, if it goes through texts or images in a definite order.

    Lists, tuples, columns of tables (a pandas Series, `dataset["text"]`, Arrow and NumPy arrays of one axis) and
    iterators do.

    Args:
        values: What the caller gave.
        of: `text` or `image`.

    Raises:
        TypeError: It is a table, a mapping, a set, an array of several axes, a file or a single value.
    """
    takes = f"predict takes a list of {of}s"
    names = _names_in(values)
    if names is None and _is_row(values, of):
        raise TypeError(f"{takes}, got one row of a table; write predict([row[{of!r}]])")
    if names is not None:
        shown = f" with {_shown_names(names)}" if names else ""
        raise TypeError(f"{takes}, got {_article(values)}{shown}; write {_predict_line(values, names, of=of)}")
    if isinstance(values, str | bytes | bytearray | memoryview | os.PathLike):
        decoded = ".decode()" if of == "text" and not isinstance(values, str | os.PathLike) else ""
        kind = "string" if isinstance(values, str) else type(values).__name__
        raise TypeError(f"{takes}, got one {kind}; write predict([{of}{decoded}])")
    if isinstance(values, io.IOBase):
        raise TypeError(f"{takes}, got an open file; write predict(file.read().splitlines()) if each line is a {of}")
    if isinstance(values, Set) and not isinstance(values, MappingView):
        raise TypeError(f"{takes}, got a {type(values).__name__}, which has no order; write predict(list({of}s))")
    axes = getattr(values, "ndim", 1)
    if axes != 1:
        raise TypeError(
            f"{takes}, got {_article(values)} of {axes} axes; write predict([{of}]) for one, or give a column of {of}s"
        )
    if hasattr(values, "to_pylist"):  # an array of Arrow, whose items are not Python's
        return values.to_pylist()
    try:
        return iter(values)
    except TypeError:
        raise TypeError(f"{takes}, got {shorten(values)}; write predict([{of}])") from None


def check_texts(values: Any) -> list[str]:
    """Return the texts that `predict` was given.

    Raises:
        TypeError: It is not a sequence of texts (`check_sequence`), or something in it is not a string.
        ValueError: A text is empty.
    """
    texts = list(check_sequence(values, of="text"))
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"text {position} (counted from 0) is {type(text).__name__}, not a string: {shorten(text)}; "
                f"{_item_advice(text)}"
            )
        if is_blank(text):
            raise ValueError(f"text {position} (counted from 0) is empty; leave it out, an empty text has no label")
    return texts


def check_folder(value: Any, what: str) -> str:
    """Return a folder or a model's name as text.

    Raises:
        TypeError: It is neither a string nor a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(
            f"{what} takes the name of a folder or model, got {_article(value)}; a model at hand is saved with "
            'save_pretrained("my_model") and given as "my_model"'
        )
    return os.fspath(value)


def check_files(value: Any, name: str, *, several: bool = True, table: bool = True) -> list[str]:
    """Return the files that an argument of `fit` names.

    Args:
        value: What the caller gave.
        name: The argument.
        several: Whether a list of files is taken as well.
        table: Whether the files are tables; otherwise the argument names a folder of images.

    Raises:
        TypeError: It is neither a path nor a list of paths, such as a table in memory.
        ValueError: The list is empty, or it holds texts where names of files are wanted.
    """
    kind = "a file (CSV, TSV, JSONL or Parquet)" if table else "a folder of images (a folder per class) or a table"
    takes = f"{name} takes {kind}{', or a list of files' if several else ''}"
    if isinstance(value, str | os.PathLike):
        paths = [value]
    elif several and isinstance(value, list | tuple) and _names_in(value) is None:
        paths = list(value)
    else:
        raise TypeError(f"{takes}, got {_article(value)}; {_saving_line(value, name)}")
    if not paths:
        raise ValueError(f"{takes}, got an empty list")
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"{takes}, got a list that holds {_article(path)}; {_saving_line(path, name)}")
        _refuse_text(os.fspath(path), takes, name)
    return [os.fspath(path) for path in paths]


def _refuse_text(path: str, takes: str, name: str) -> None:
    """Refuse a text given in place of a file's name; anything that may be a file, pattern or hub name passes."""
    if not path.strip():
        raise ValueError(f"{takes}, got {path!r}")
    words = len(path.split()) > 1 and not _FILE_ENDING.search(path)
    if words and not os.path.exists(os.path.expanduser(path)):
        raise ValueError(
            f"{takes}; there is no file or folder {shorten(path)}. If it is a text, {_saving_line([path], name)}"
        )


def check_call(train: Any, misplaced: Sequence[Any], output_dir: Any, *, table: bool = True) -> None:
    """Raise unless `fit` was given one positional argument to train on, and the output folder by name.

    Args:
        train: The first argument.
        misplaced: Further positional arguments.
        output_dir: The folder; None if there is none.
        table: Whether tables of texts are trained on; otherwise images.

    Raises:
        TypeError: It was not; the message has the line to write.
    """
    source = '"train.csv"' if table else '"images/train"'
    line = f'write fit({source}, output_dir="runs/mine")'
    takes = f"fit takes {'a labelled file or files' if table else 'labelled images'} first and all else by name"
    if misplaced and table:
        raise TypeError(f"{takes}, got {len(misplaced)} more positional; {_saving_line(train, 'train')}, then {line}")
    if misplaced:
        raise TypeError(
            f"{takes}, got {len(misplaced)} more positional; lay images out in a folder per class, then {line}"
        )
    if output_dir is None:
        raise TypeError(f"fit needs output_dir, the folder for everything that the run writes; {line}")


def check_names(
    given: Iterable[str], settings_class: type, *, elsewhere: Mapping[str, str], meant: Callable[[str], str | None]
) -> None:
    """Raise unless `fit` has settings of all these names.

    Args:
        given: Names of keyword arguments.
        settings_class: The settings that `fit` fills.
        elsewhere: Fields of the class that are given in another way, and how.
        meant: Returns what an unknown name was likely meant to be, or None.

    Raises:
        SettingsError: There is no such setting.
    """
    names = [field.name for field in ordered_fields(settings_class) if field.name not in elsewhere]
    for name in given:
        if name in elsewhere:
            raise SettingsError(f"fit has no setting {name!r}; write {elsewhere[name]}")
        if name not in names:
            near = meant(name)
            advice = f"; did you mean {near}?" if near else "."
            raise SettingsError(f"fit has no setting {shorten(name)}{advice} There are {', '.join(names)}")


def _names_in(values: Any) -> list[Any] | None:
    """Return the first names of columns, keys or fields that something has, or None where it has no such names."""
    if isinstance(values, Mapping):
        return list(islice(values, SHOWN_COLUMNS + 1))
    fields = getattr(values, "_fields", None) or getattr(getattr(values, "dtype", None), "names", None)
    if fields and isinstance(fields, tuple):
        return list(fields[: SHOWN_COLUMNS + 1])
    for attribute in ("column_names", "columns"):
        if hasattr(values, attribute):
            try:
                return list(islice(getattr(values, attribute), SHOWN_COLUMNS + 1))
            except TypeError:  # a stream does not know its columns before it is read
                return []
    return None


def _is_row(values: Any, column: str) -> bool:
    """Return whether a pandas Series is a row of a data frame, whose index holds the column names."""
    return hasattr(values, "iloc") and column in values.index


def _shown_names(names: list[Any]) -> str:
    more = ", ..." if len(names) > SHOWN_COLUMNS else ""
    return ("the columns " if len(names) > 1 else "the column ") + ", ".join(map(_short, names[:SHOWN_COLUMNS])) + more


def _short(name: Any) -> str:
    return shorten(name, 40)


def _predict_line(values: Any, names: list[Any] | None, *, of: str) -> str:
    """Return the call that was likely meant: of the column with the name of what is predicted, or of the first."""
    name = of if not names or of in names else names[0]
    if hasattr(values, "_fields"):  # a row of pandas' itertuples
        return f"predict([row.{name}])"
    if isinstance(values, Mapping):
        inner = values.get(name)
        if isinstance(inner, str | os.PathLike):
            return f"predict([data[{_short(name)}]])"
        return f'predict(data[{_short(name)}]["{of}"])' if _names_in(inner) else f"predict(data[{_short(name)}])"
    return f"predict({'df' if type(values).__name__.endswith('Frame') else 'data'}[{_short(name)}])"


def _item_advice(item: Any) -> str:
    if isinstance(item, Mapping):
        return 'write predict([row["text"] for row in rows])'
    if isinstance(item, bytes | bytearray):
        return "decode it first: item.decode()"
    if isinstance(item, list | tuple):
        return "give one list that holds a string for each text"
    if item is None or type(item).__name__ in ("float", "NAType", "NaTType"):
        return "leave out the rows without text, for example with df['text'].dropna()"
    return "write str(item) if it is a text"


def _saving_line(value: Any, name: str) -> str:
    """Return how something in memory becomes a file that `fit` takes."""
    stem = name.removesuffix("_file")
    if hasattr(value, "save_to_disk"):
        split = '["train"]' if isinstance(value, Mapping) else ""
        return f'write data{split}.save_to_disk("{stem}") and give "{stem}"'
    if hasattr(value, "to_csv"):
        return f'write df.to_csv("{stem}.csv", index=False) and give "{stem}.csv"'
    if hasattr(value, "write_csv"):
        return f'write df.write_csv("{stem}.csv") and give "{stem}.csv"'
    columns = '{"text": texts}' if stem == "unlabelled" else '{"text": texts, "label": labels}'
    return f'write pandas.DataFrame({columns}).to_csv("{stem}.csv", index=False) and give "{stem}.csv"'


def _article(value: Any) -> str:
    """Return the type of a value as `a DataFrame`, `an ndarray` or `None`."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIO' else 'a'} {name}"
