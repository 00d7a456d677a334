"""What the Python classes are handed: texts or images to predict, files and tables in memory to train on.

Where texts are wanted, a table or a mapping looks like a list of its column names to Python; what cannot be used is
refused before any work, with the line to write in its place.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, MappingView, Sequence, Set
from functools import partial
from itertools import islice
from typing import Any

from ulmfit_pipe.data.labels import is_blank
from ulmfit_pipe.data.tables.memory_tables import listed, open_memory_columns, open_memory_table
from ulmfit_pipe.data.tables.readers import KNOWN_SUFFIXES
from ulmfit_pipe.data.tables.row_sources import IN_MEMORY, RowSource
from ulmfit_pipe.settings.parsing import ordered_fields
from ulmfit_pipe.settings.values import SettingsError, shorten

SHOWN_COLUMNS = 8
AT_HAND = {  # names that other libraries have for what is trained on
    **dict.fromkeys(("data", "df", "dataset", "train_dataset"), "fit(train, ...), the first argument"),
    **dict.fromkeys(("texts", "X", "x", "labels", "y"), "fit((texts, labels), ...)"),
}
LOOKED_AT = 100  # items of a column of texts that might be names of files
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


def check_tables(
    value: Any, name: str, *, text_columns: Sequence[str], label_columns: Sequence[str]
) -> list[str] | RowSource:
    """Return what `fit` was given as a table: the files that it names, or its rows where it is in memory.

    Args:
        value: What the caller gave.
        name: The argument.
        text_columns: Names of the columns of text.
        label_columns: Those of the columns of labels; empty for text without labels.

    Raises:
        TypeError: It is nothing that rows can be read from.
        ValueError: A list is empty, columns differ in length, or texts are where names of files are wanted.
    """
    if label_columns and _is_pair(value):
        return _open_pair(value, name, text_columns, label_columns)
    if not label_columns and _is_column_of_texts(value, name):
        _refuse_several(name, "a column of texts", "text_column", text_columns)
        return open_memory_columns({text_columns[0]: listed(value)}, name, kind=type(value).__name__)
    rows = open_memory_table(value, name)
    return check_files(value, name, labelled=bool(label_columns)) if rows is None else rows


def check_files(value: Any, name: str, *, labelled: bool = True, table: bool = True) -> list[str]:
    """Return the files that an argument of `fit` names.

    Args:
        value: What the caller gave.
        name: The argument.
        labelled: Whether the tables have labels, for messages.
        table: Whether tables of texts are wanted; otherwise the argument names one folder or table of images.

    Raises:
        TypeError: It is neither a path nor a list of paths.
        ValueError: The list is empty, or it holds texts where names of files are wanted.
    """
    takes = f"{name} takes a folder of images (a folder per class) or a table"
    if table:
        last = "(texts, labels)" if labelled else "a list of texts"
        takes = f"{name} takes a file (CSV, TSV, JSONL or Parquet), a list of files, a DataFrame, a Dataset or {last}"
    advice = partial(_memory_line, labelled=labelled) if table else _saving_line
    if isinstance(value, str | os.PathLike):
        paths = [value]
    elif table and isinstance(value, list | tuple) and _names_in(value) is None:
        paths = list(value)
    else:
        raise TypeError(f"{takes}, got {_article(value)}; {advice(value, name)}")
    if not paths:
        raise ValueError(f"{takes}, got an empty list")
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"{takes}, got a list that holds {_article(path)}; {advice(value, name)}")
        if not os.fspath(path).strip():
            raise ValueError(f"{takes}, got {path!r}")
        if _reads_as_text(path):
            raise ValueError(
                f"{takes}; there is no file or folder {shorten(path)}. If it is a text, {advice([path], name)}"
            )
    return [os.fspath(path) for path in paths]


def _reads_as_text(item: Any) -> bool:
    """Whether an item is several words and names nothing that is there; a pattern or a hub name may be a file."""
    if not isinstance(item, str) or len(item.split()) < 2 or _FILE_ENDING.search(item):
        return False
    return not os.path.exists(os.path.expanduser(item))


def tables_given(settings: Mapping[str, Any], **given: Any) -> dict[str, list[str] | RowSource]:
    """Return what a run was given as tables, by the names of the settings that hold their files.

    Args:
        settings: Settings of the run, which may name columns.
        **given: Tables by their names; None is none, but for ``train`` and ``pool``.
    """
    text, label = (_named_columns(settings, f"{role}_column", role) for role in ("text", "label"))
    return {
        f"{name}_file": check_tables(
            value, name, text_columns=text, label_columns=() if name in ("unlabelled", "pool") else label
        )
        for name, value in given.items()
        if value is not None or name in ("train", "pool")
    }


def _named_columns(settings: Mapping[str, Any], name: str, default: str) -> list[str]:
    """Return the columns that a setting names, as far as it is what it should be: the settings check that."""
    value = settings.get(name, default)
    return (
        [value] if isinstance(value, str) else list(value) if value and isinstance(value, list | tuple) else [default]
    )


def recorded_tables(tables: Mapping[str, list[str] | RowSource]) -> dict[str, Any]:
    """Return what settings hold of a run's tables: their files, or in place of one what was in memory.

    Args:
        tables: Files, or a table in memory, by the name of the setting.
    """
    named = {
        name: [f"{IN_MEMORY} {table.in_memory}"] if isinstance(table, RowSource) else table
        for name, table in tables.items()
    }
    single = ("test_file", "validation_file")
    return {name: files[0] if name in single and len(files) == 1 else files for name, files in named.items()}


def _is_pair(value: Any) -> bool:
    """Whether a value is (texts, labels), and not two files."""
    if not isinstance(value, tuple) or len(value) != 2 or hasattr(value, "_fields"):
        return False
    return not any(isinstance(each, str | os.PathLike) for each in value)


def _open_pair(
    pair: tuple[Any, Any], name: str, text_columns: Sequence[str], label_columns: Sequence[str]
) -> RowSource:
    _refuse_several(name, "(texts, labels)", "text_column", text_columns)
    _refuse_several(name, "(texts, labels)", "label_column", label_columns)
    texts, labels = (_column(each, f"{what} of {name}") for each, what in zip(pair, ("texts", "labels"), strict=True))
    if len(texts) != len(labels):
        raise ValueError(f"{name} has {len(texts):,} texts and {len(labels):,} labels; give one label for each text")
    return open_memory_columns({text_columns[0]: texts, label_columns[0]: labels}, name, kind="(texts, labels)")


def _refuse_several(name: str, given: str, setting: str, columns: Sequence[str]) -> None:
    if len(columns) > 1:
        raise ValueError(
            f"{name} is {given} and {setting} names {len(columns)} columns; give a DataFrame that has these columns"
        )


def _column(value: Any, what: str) -> Sequence[Any]:
    """Return one of two columns.

    Raises:
        TypeError: It is a table, a text or something else that is not a column.
    """
    takes = f"{what} must be a list, a Series or an array of one axis"
    names, axes = _names_in(value), getattr(value, "ndim", 1)
    if names is not None:
        raise TypeError(f"{takes}, got {_article(value)}; write {_subscript(value, names, of='text')}")
    if axes != 1:
        several = "give a DataFrame and label_column=[...] for a column for each label"
        advice = several if what.startswith("labels") else "write texts[:, 0]"
        raise TypeError(f"{takes}, got {_article(value)} of {axes} axes; {advice}")
    no_column = isinstance(value, str | bytes | bytearray | os.PathLike | io.IOBase | Set)
    if no_column or not isinstance(value, Iterable):
        raise TypeError(f"{takes}, got {_article(value)}")
    return listed(value)


def _is_column_of_texts(value: Any, name: str) -> bool:
    """Whether further texts were given themselves, and not the files that hold them.

    Raises:
        ValueError: It cannot be told: some are files, others texts.
    """
    if isinstance(value, str | bytes | os.PathLike | Mapping | Set) or not hasattr(value, "__getitem__"):
        return False
    if _names_in(value) is not None or getattr(value, "ndim", 1) != 1:
        return False
    if isinstance(value, list | tuple):
        is_texts = any(map(_reads_as_text, value))
        files = [one for one in value if is_texts and isinstance(one, str | os.PathLike) and os.path.isfile(one)]
    else:
        is_texts, first = True, [one for one in listed(value)[:LOOKED_AT] if isinstance(one, str)]
        files = [one for one in first if one.lower().endswith(KNOWN_SUFFIXES)]
        files = files if len(files) == len(first) else []
    if files:
        raise ValueError(
            f"{name} holds names of files, such as {shorten(str(files[0]))}; give files alone in a list, and texts "
            "alone in a list or a Series; if these are texts, give pandas.DataFrame({'text': texts})"
        )
    return is_texts


def check_call(misplaced: Sequence[Any], output_dir: Any, *, table: bool = True) -> None:
    """Raise unless `fit` was given one positional argument to train on, and for images the output folder by name.

    Args:
        misplaced: Further positional arguments.
        output_dir: The folder; None if there is none.
        table: Whether tables of texts are trained on; otherwise images.

    Raises:
        TypeError: It was not; the message has the line to write.
    """
    line = 'write fit("images/train", output_dir="runs/mine")'
    if misplaced and table:
        raise TypeError(
            f"fit takes a labelled table first and all else by name, got {len(misplaced)} more positional; write "
            "fit((texts, labels)), or fit(train, test=test)"
        )
    if misplaced:
        raise TypeError(
            f"fit takes labelled images first and all else by name, got {len(misplaced)} more positional; lay images "
            f"out in a folder per class, then {line}"
        )
    if output_dir is None and not table:
        raise TypeError(f"fit needs output_dir, the folder for everything that the run writes; {line}")


def check_names(
    given: Iterable[str],
    settings_class: type,
    *,
    elsewhere: Mapping[str, str],
    meant: Callable[[str], str | None],
    of: str = "fit",
) -> None:
    """Raise unless a method, such as `fit`, has settings of all these names.

    Args:
        given: Names of keyword arguments.
        settings_class: The settings that `fit` fills.
        elsewhere: Fields of the class that are given in another way, and how.
        meant: Returns what an unknown name was likely meant to be, or None.
        of: The method.

    Raises:
        SettingsError: There is no such setting.
    """
    names = [field.name for field in ordered_fields(settings_class) if field.name not in elsewhere]
    for name in given:
        if name in elsewhere:
            raise SettingsError(f"{of} has no setting {name!r}; write {elsewhere[name]}")
        if name not in names:
            near = meant(name)
            advice = f"; did you mean {near}?" if near else "."
            raise SettingsError(f"{of} has no setting {shorten(name)}{advice} There are {', '.join(names)}")


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


def _subscript(values: Any, names: list[Any], *, of: str) -> str:
    """Return how to get the column that was likely meant: the one with a name, or the first."""
    return _predict_line(values, names, of=of).removeprefix("predict(").removesuffix(")")


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


def _memory_line(value: Any, name: str, *, labelled: bool) -> str:
    """Return how something in memory becomes a table that `fit` takes."""
    what = f"write {name}=" if name != "train" else "write fit("
    end = "" if name != "train" else ")"
    if isinstance(value, Mapping):
        is_dataset = hasattr(value, "save_to_disk")  # a DatasetDict
        return (
            f"{what}data[{next(iter(value), name)!r:.40}]{end}" if is_dataset else _made("from_dict(data)", what, end)
        )
    if hasattr(value, "collect"):  # a LazyFrame
        return f"{what}data.collect(){end}"
    if hasattr(value, "column_names"):  # an IterableDataset
        return _made("from_list(list(data))", what, end)
    if isinstance(value, list | tuple) and len(value):
        if isinstance(value[0], Mapping):
            return _made("from_list(rows)", what, end)
        if _names_in(value[0]) is not None:
            return f"{what}pandas.concat(tables){end}"
    if labelled and isinstance(value, list) and value and isinstance(value[0], tuple) and len(value[0]) == 2:
        return f"{what}tuple(zip(*rows)){end}"
    return f"{what}{'(texts, labels)' if labelled else 'list(texts)'}{end}"


def _made(how: str, what: str, end: str) -> str:
    return f"{what}datasets.Dataset.{how}{end}"


def _saving_line(value: Any, name: str) -> str:
    """Return how a table of images in memory becomes a file that `fit` takes."""
    stem = name.removesuffix("_images")
    if hasattr(value, "save_to_disk"):
        split = '["train"]' if isinstance(value, Mapping) else ""
        return f'write data{split}.save_to_disk("{stem}") and give "{stem}"'
    if hasattr(value, "to_csv"):
        return f'write df.to_csv("{stem}.csv", index=False) and give "{stem}.csv"'
    if hasattr(value, "write_csv"):
        return f'write df.write_csv("{stem}.csv") and give "{stem}.csv"'
    return f'write pandas.DataFrame({{"image": paths, "label": labels}}).to_csv("{stem}.csv", index=False)'


def _article(value: Any) -> str:
    """Return the type of a value as `a DataFrame`, `an ndarray` or `None`."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIO' else 'a'} {name}"
