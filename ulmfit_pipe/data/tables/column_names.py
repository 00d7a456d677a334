"""Check that the wanted columns are in a table, and word the advice where one is missing."""

import contextlib
import difflib
import itertools
from collections.abc import Sequence

from ulmfit_pipe.console import escaped
from ulmfit_pipe.data.tables.row_sources import RowSource
from ulmfit_pipe.data.tables.text_files import TableError

SHOWN_COLUMNS = 20  # names listed in a message
SHOWN_LETTERS = 40  # of each
COMPARED_NAMES = 1000  # names among which a similar one is looked for
PEEKED_ROWS = 50  # read to find out whether the first row is data like the others
LONG_NAME, MANY_WORDS = 60, 6  # characters and words; a column's name has fewer, a text has more
SHOWN_FLAGS = 8  # columns of 0 and 1 listed in a message
FLAGS = [set(pair[:count]) for pair in (("0", "1"), ("false", "true")) for count in (1, 2)]
FASTTEXT = "__label__"  # prefix of a label in fastText's files
_SEPARATORS = {
    "\t": ("tabs", "tab"),
    ";": ("semicolons", "semicolon"),
    "|": ("pipes", "pipe"),
    ",": ("commas", "comma"),
}


def nearest(name: str, names: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` if a name is close, else nothing."""
    names = list(itertools.islice(names, COMPARED_NAMES))
    close = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.lower() == name.lower()]
    return f"; did you mean {shown_name(close[0])!r}?" if close else ""


def shown_name(name: str) -> str:
    """Return a name for a message: truncated, with control characters escaped so that none reaches the terminal."""
    cut = name if len(name) <= SHOWN_LETTERS else name[: SHOWN_LETTERS - 3] + "..."
    return escaped(cut)


def shown_names(names: Sequence[str]) -> str:
    """Return a list of names, truncated so that a message stays one line."""
    more = len(names) - SHOWN_COLUMNS
    shown = ", ".join(map(shown_name, names[:SHOWN_COLUMNS])) or "none"
    return shown + (f" and {more:,} more" if more > 0 else "")


def check_wanted(rows: RowSource, text_columns: Sequence[str], label_columns: Sequence[str] = ()) -> None:
    """Raise unless a table has the wanted columns, each once.

    Args:
        rows: The table.
        text_columns: Columns of text.
        label_columns: Columns of labels.

    Raises:
        TableError: A column is missing or is there twice; the message names the columns there are, and the setting.
    """
    wanted = [(name, "text") for name in text_columns] + [(name, "label") for name in label_columns]
    known = set(rows.columns)
    for name, role in wanted:
        if name in rows.repeated:
            raise TableError(
                f"{rows.name}: the column name {shown_name(name)!r} is there twice; rename one of the columns"
            )
        if name not in known:
            raise TableError(
                f"{rows.name}: there is no column {shown_name(name)!r}; there are {shown_names(rows.columns)}"
                f"{_advice(rows, name, role)}"
            )


def _advice(rows: RowSource, name: str, role: str) -> str:
    """Return advice for a missing column."""
    if rows.files and role == "label":
        return (
            "; a folder has labels where the texts of each class are in a folder of their own, such as "
            f"{rows.name}/pos/1.txt; give texts without labels as --unlabelled_file, or predict them"
        )
    flags = _flag_columns(rows)
    near = nearest(name, [each for each in rows.columns if each not in flags] if role == "text" else rows.columns)
    matter = _matter(rows, name)
    if not matter and role == "label" and len(flags) > 1:
        more = " ..." if len(flags) > SHOWN_FLAGS else ""
        listed = " ".join(f"--label_column {shown_name(flag)}" for flag in flags[:SHOWN_FLAGS])
        if rows.in_memory:
            listed = f"label_column={list(map(shown_name, flags[:SHOWN_FLAGS]))}"
        return f"{near}; for columns of 0 and 1 that are one label each give them all: {listed}{more}"
    setting = f"{role}_column=" if rows.in_memory else f"--{role}_column"
    option = f"{setting} names the column of {role}{'s' if role == 'label' else ''}"
    is_only = role == "text" and not near and rows.untyped and len(rows.columns) == 1
    if is_only and (not matter or matter.startswith("the header holds spaces")):
        given = "--no_header true --text_column 1"
        return f"; {matter or option}; if the first row is a text like the others, give {given}"
    return f"{near}; {matter or option}"


def _flag_columns(rows: RowSource) -> list[str]:
    """Return the columns that hold only 0 and 1, or true and false, in the first rows."""
    names = [name for name in rows.columns[:COMPARED_NAMES] if name not in rows.repeated]
    columns = zip(names, zip(*_peeked(rows, names), strict=False), strict=False)
    return [name for name, values in columns if {str(value).strip().casefold() for value in values} in FLAGS]


def _matter(rows: RowSource, name: str) -> str:
    """Return what seems to be wrong with a header, and the option that fixes it."""
    if not rows.untyped:
        return ""
    if len(rows.columns) == 1:
        for mark, (words, option) in _SEPARATORS.items():
            if mark in rows.columns[0]:
                return f"the header holds {words}; --delimiter {option} takes them for what separates the fields"
        if name in [each.strip("'\"") for each in rows.columns[0].split(" ")]:
            return "the header holds spaces; --delimiter space takes them for what separates the fields"
    if rows.columns[0].startswith(FASTTEXT):
        return f"the file is of fastText; write a table with a column of labels, without {FASTTEXT}, and one of text"
    if _begins_with_title(rows):
        return "the first line seems to be a title or a comment; remove it, so that the first line names the columns"
    if not _lacks_header(rows):
        return ""
    numbers = " and ".join(f"--{role}_column {at}" for role, at in _likely_columns(rows))
    return f"the file seems to have no header: --no_header true names its columns by number (perhaps {numbers})"


def _begins_with_title(rows: RowSource) -> bool:
    """Whether the first line is a comment, or has one name above rows of several fields."""
    if rows.columns[0].startswith("#") and " " in rows.columns[0]:
        return True
    if len(rows.columns) > 1:  # a spreadsheet fills a title's line with empty cells
        return rows.columns[1:] == [str(at) for at in range(2, len(rows.columns) + 1)]
    try:
        next(iter(rows.read(rows.columns)), None)
    except TableError:
        return True
    return False


def _peeked(rows: RowSource, names: Sequence[str] | None = None) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    with contextlib.suppress(TableError):  # a bad row is reported when the table is read
        found.extend(itertools.islice(rows.read(rows.columns if names is None else names), PEEKED_ROWS))
    return found


def _lacks_header(rows: RowSource) -> bool:
    """Whether the first row looks like the others: a name is a text, a number, or a value of its own column."""
    names = rows.columns[:COMPARED_NAMES]
    if any(len(name) > LONG_NAME or len(name.split()) > MANY_WORDS for name in names):
        return True
    values = [set(column) for column in zip(*_peeked(rows), strict=False)]
    number_names = {str(at) for at in range(1, len(rows.columns) + 1)}  # also of columns without a name
    return any(
        name in known or (name.isdecimal() and name not in number_names)
        for name, known in zip(names, values, strict=False)
    )


def _likely_columns(rows: RowSource) -> list[tuple[str, int]]:
    """Return the number of the column with the longest values, and of the one with the fewest distinct values."""
    columns = list(zip(rows.columns, *_peeked(rows), strict=False))[:COMPARED_NAMES]
    text = max(range(len(columns)), key=lambda at: sum(map(len, columns[at])))
    others = [at for at in range(len(columns)) if at != text]
    label = min(others, key=lambda at: len(set(columns[at])), default=None)
    return [("text", text + 1)] + ([] if label is None else [("label", label + 1)])
