"""Labels as they are in tables: cleaned, refused or named, and kept in the type they were given.

A label is a name, an integer or a bool. Two spellings of one name that look the same (a space at the end, two
Unicode forms of one letter) are one label; those that merely look alike (capitals, quotes) stay apart and are reported.
"""

import ast
import csv
import itertools
import json
import math
import re
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np

from ulmfit_pipe.console import escaped
from ulmfit_pipe.data.tables.readers import TableError, nearest

Label: TypeAlias = str | int | bool

SHOWN_NAMES = 8  # label names listed in a message
SHOWN_CHARACTERS = 60  # of one label name in a message
LONGEST_NORMALIZED = 1000  # characters; Unicode normalization takes quadratic time on long runs of accents
INTEGERS, BOOLS = "int", "bool"  # types of labels that ClassLabel.id keeps; None there stands for names
_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][+-]?\d+)")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # as Python writes one
_INVISIBLE = "".join(
    map(
        chr,
        # soft hyphen, joiners, fillers, zero-width marks and marks of direction, byte order mark
        [0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010)]
        + [*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x2800, 0x3164, 0xFEFF, 0xFFA0],
    )
)
_EDGES = "".join(character for character in map(chr, range(0x3001)) if character.isspace()) + _INVISIBLE
_CONTROLS = [code for code in range(0xA0) if not chr(code).isprintable() and not chr(code).isspace()]
_UNSEEN = dict.fromkeys(
    [*map(ord, _INVISIBLE), *_CONTROLS, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
)  # the last choose a style
_LIKE_LATIN = str.maketrans(  # small letters of Cyrillic and Greek, and the Latin ones that they look like
    "аеорсухіјѕԁһӏԛԝвкмнтгαορνικτυχγє", "aeopcyxijsdhlqwbkmhtraopviktuxye"
)
_LATIN, _FOREIGN = re.compile("[A-Za-z]"), re.compile("[\u0400-\u052fοΑΒΕΖΗΙΚΜΝΟΡΤΥΧ]")
_QUOTES = "\"'`´‘’‚“”„«»‹›「」"
_BETWEEN_WORDS = re.compile(r"(?<=\w)[\s_\-‐-―]+(?=\w)")
_LIST_TEXT = re.compile(r"""[\[({]+\s*(['"].*)?[\])}]""", re.DOTALL)
_LIST_CALL = re.compile(  # as Python shows what is not a plain list
    r"(?:array|set|frozenset|list|tuple|Index)\(\s*(?:([\[({].*[\])}])(?:,\s*dtype=[^,()]*)?)?\s*\)", re.DOTALL
)
_LIST_PARTS = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(,)|([^\s,'"\[\](){}]+)|\s+""")
_GIVEN = {"1", "true", "t", "yes", "y"}
_NOT_GIVEN = {"0", "false", "f", "no", "n"}
_BARE = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None, "nan": None}


@dataclass(frozen=True)
class Place:
    """Position of a value in a table, for messages."""

    file: str
    row: int
    column: str
    in_memory: bool = False

    def error(self, what: str) -> TableError:
        """Return an error that names this position; rows of a table in memory count from 0, as in `iloc`."""
        row = f"row {self.row - 1} (counted from 0)" if self.in_memory else f"row {self.row} (header not counted)"
        return TableError(f"{self.file}, {row}, column {self.column!r}: {what}")


# Names


def clean_label(name: str) -> str:
    """Return a label without spaces and invisible marks at its ends, its letters in Unicode's composed form (NFC)."""
    name = name.strip(_EDGES)
    return name if len(name) > LONGEST_NORMALIZED else unicodedata.normalize("NFC", name)


def is_blank(text: str) -> bool:
    """Whether a text is empty, or holds nothing but spaces and invisible marks such as U+200B."""
    return not text.strip(_EDGES)


def lookalike_key(name: str) -> str:
    """Return what a label has in common with others that look like it.

    Capitals, quotes around it, the width and style of letters (NFKC), Cyrillic and Greek letters that look like Latin
    ones, invisible marks, what is between words, and zeros before an integer do not count.
    """
    key = name.translate(_UNSEEN).casefold()
    if len(key) <= LONGEST_NORMALIZED:
        key = unicodedata.normalize("NFKC", key).casefold()
    key = " ".join(key.translate(_LIKE_LATIN).split()).strip(_QUOTES + " ")
    key = _BETWEEN_WORDS.sub(" ", key)
    return str(int(key)) if re.fullmatch(r"[+-]?\d{1,18}", key) else key


def find_lookalikes(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of labels that look alike, each in the order given."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(lookalike_key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def mixes_scripts(name: str) -> bool:
    """Whether a word of a label mixes Latin letters with Cyrillic ones, or Greek ones that look like Latin ones."""
    return any(_LATIN.search(word) and _FOREIGN.search(word) for word in re.findall(r"\w+", name))


def is_quoted(name: str) -> bool:
    """Whether a label is in quotes, which then count as a part of it."""
    return len(name) > 1 and name[0] in _QUOTES and name[-1] in _QUOTES


def shown_label(name: str) -> str:
    """Return a label for a line of text: control characters are escaped, and a long label is truncated."""
    return escaped(name[:SHOWN_CHARACTERS]) + ("..." if len(name) > SHOWN_CHARACTERS else "")


def list_labels(names: Sequence[str], most: int = SHOWN_NAMES) -> str:
    """Return label names for a message, the first ones of many."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(shown_label, names[:most])) + more


def list_apart(names: Sequence[str], others: Sequence[str]) -> tuple[str, str]:
    """Return two lists of label names that differ for a message; of long ones also the first name that differs."""
    pairs = enumerate(itertools.zip_longest(names, others))
    at = next((at for at, (one, other) in pairs if one != other), 0)
    shown = []
    for each in (names, others):
        further = f" (number {at + 1:,} is {shown_label(each[at])})" if SHOWN_NAMES <= at < len(each) else ""
        shown.append(list_labels(each) + further)
    return shown[0], shown[1]


def sort_label_names(names: Iterable[str]) -> list[str]:
    """Label names in their standard order: by value if all are integers, else as strings."""
    names = list(names)
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def label_name(value: Any, place: Place, *, untyped: bool) -> str:
    """Return a label's name.

    Raises:
        TableError: The value cannot be a label.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise place.error("there is no label; fill it in, or delete the row")
    if isinstance(value, list | tuple | set | np.ndarray):
        raise place.error(f"the label is a list, {value!r:.80}; set multi_label=True if a text may have several")
    if isinstance(value, float) or (untyped and isinstance(value, str) and _FLOAT.fullmatch(clean_label(value))):
        raise place.error(f"the label is the decimal number {value}; {_whole_labels(float(value), place.column)}")
    if not isinstance(value, str | int):
        raise place.error(f"the label must be a name or an integer, got {type(value).__name__} {value!r:.80}")
    return _checked_name(value, place) if isinstance(value, str) else str(value)


def _whole_labels(value: float, column: str) -> str:
    """Return advice on how to make a label of a decimal number."""
    if value.is_integer():  # pandas turns integers into such numbers where some are missing
        turned = f"table.dropna(subset=[{column!r}]).astype({{{column!r}: 'Int64'}})"
        return (
            "labels must be names or integers. Convert the column first, which also leaves out rows without a label, "
            f"for example in pandas: table = {turned}"
        )
    return "a classifier knows classes and no numbers between; make names or integers of them, such as low and high"


def _checked_name(value: str, place: Place) -> str:
    name = clean_label(value)
    if not name:
        raise place.error("the label is empty or only spaces; fill it in, or delete the row")
    if "\0" in name:
        raise place.error(f"the label {name!r:.80} holds a NUL byte; remove it, for example with tr -d '\\000'")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise place.error(
            f"character {error.start} of the label {name!r:.80} is half of a surrogate pair; remove it"
        ) from error
    if _LIST_TEXT.fullmatch(name) or _LIST_CALL.fullmatch(name):
        raise place.error(
            f"the label is the text of a list, {name:.80}; set multi_label=True if a text may have several labels, "
            "or write one name"
        )
    return name


def parse_list(text: str) -> list[Any] | None:
    """Return the items of a list written as text, as JSON, Python or NumPy write one, or None where it is not a list.

    One word in brackets, such as ``[URGENT]``, is a name and not a list.
    """
    text = clean_label(text)
    shown = _LIST_CALL.fullmatch(text)
    groups = _list_groups((shown[1] or "[]") if shown else text)
    if groups is None:
        return None
    if len(groups) == 1:  # nothing, one item, or several between spaces, as NumPy prints them
        return [_list_item(part) for part in groups[0]] if all(map(_stands_alone, groups[0])) else None
    if any(len(group) > 1 and any(part[1] for part in group) for group in groups):
        return None
    filled = [group for group in groups if group]  # Python writes a comma after the only item of a tuple
    return [_list_item(group[0]) if len(group) == 1 else " ".join(part[0] for part in group) for group in filled]


def _list_groups(text: str) -> list[list[re.Match[str]]] | None:
    """Return the quoted parts and bare words between the commas of a list written as text, or None."""
    if len(text) < 2 or text[0] + text[-1] not in ("[]", "()", "{}"):
        return None
    groups: list[list[re.Match[str]]] = [[]]
    at = 1
    for part in _LIST_PARTS.finditer(text, 1, len(text) - 1):
        if part.start() != at or (part[3] and text[0] != "["):  # (none) and {none} are names
            return None
        at = part.end()
        if part[2]:
            groups.append([])
        elif part[1] or part[3]:
            groups[-1].append(part)
    return groups if at == len(text) - 1 else None


def _stands_alone(part: "re.Match[str]") -> bool:
    return bool(part[1]) or _is_number(part[0])


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[+-]?\d{1,18}\.?\d*", text))


def _list_item(part: "re.Match[str]") -> Any:
    text = part[0]
    if not part[1]:
        return int(text) if _INTEGER.fullmatch(text) else float(text) if _is_number(text) else _BARE.get(text, text)
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text[1:-1]


# Types


def label_type_of(feature: Any) -> str | None:
    """Return the type that a table's labels were given in: `INTEGERS`, `BOOLS`, or None for names."""
    return getattr(feature, "feature", feature).id


def typed_label(name: str, kind: str | None) -> Label:
    """Return a label in the type that it was given in."""
    if kind == INTEGERS:
        return int(name)
    return name == "True" if kind == BOOLS else name


def can_be(names: Iterable[str], kind: str | None) -> bool:
    """Whether label names can be returned in a type without loss."""
    if kind == INTEGERS:
        return all(map(_INTEGER.fullmatch, names))
    return kind is None or set(names) <= {"False", "True"}


# Columns


class LabelColumn:
    """Label names in order of first appearance, and each row's label as an id (ids, in multi-label).

    Args:
        names: The names that training knows, in order, or None to take what turns up.
        multi_label: A row may have several.
        separator: What is between the labels of one cell.
        mapping: The name of each value of the column, or None where values are names.
    """

    def __init__(
        self,
        names: Sequence[str] | None,
        *,
        multi_label: bool,
        separator: str | None,
        mapping: Mapping[str, str] | None = None,
    ) -> None:
        self.fixed = list(names) if names is not None else None
        self.numbers: dict[str, int] = {name: number for number, name in enumerate(names or ())}
        self.cleaned = {clean_label(name): name for name in reversed(self.fixed or ())}
        self.multi_label = multi_label
        self.separator = separator
        self.mapping = mapping
        self.single = array("q")
        self.several: list[list[int]] = []
        self.kinds: set[str | None] = set()

    def add(self, value: Any, place: Place, *, untyped: bool) -> None:
        """Check one row's label and keep it."""
        if self.multi_label:
            self.several.append(sorted({self._number(part, place, untyped) for part in self._parts(value, place)}))
        else:
            self.single.append(self._number(value, place, untyped))

    def add_columns(self, values: Sequence[Any], places: Sequence[Place], *, threshold: float | None) -> None:
        """Check one row of several columns, each of which flags one label as given or not, and keep the labels."""
        given = [is_given(value, place, threshold) for value, place in zip(values, places, strict=True)]
        self.several.append([number for number, one in enumerate(given) if one])

    def _parts(self, value: Any, place: Place) -> list[Any]:
        if value is None:
            raise place.error("there is no label; write an empty list for a text without any")
        if isinstance(value, list | tuple | set | np.ndarray):
            return list(value)
        if isinstance(value, str):
            found = parse_list(value)
            if found is not None:
                return found
            if self.separator:
                return [part for part in value.split(self.separator) if clean_label(part)]
        raise place.error(
            f"multi_label=True needs a list of labels, got {value!r:.80}; if labels are joined in one string, "
            "give label_separator"
        )

    def _number(self, value: Any, place: Place, untyped: bool) -> int:
        name = label_name(value, place, untyped=untyped)
        if self.mapping is not None:
            name = self._mapped(name, place)
        elif self.fixed is None:
            self.kinds.add(_kind(value, untyped))
            if {INTEGERS, BOOLS} <= self.kinds:
                raise place.error(
                    f"the label is {value!r}, but labels mix whole numbers with true and false; write all in one way"
                )
        elif isinstance(value, str) and value in self.numbers:
            name = value  # an older model may know a name that is not clean
        if self.fixed is not None:
            name = name if name in self.numbers else self.cleaned.get(name, name)
            if name not in self.numbers:
                raise place.error(
                    f"the label {name!r} is not among those that training knows "
                    f"({list_labels(self.fixed)}); rename it, or train with it{nearest(name, self.fixed)}"
                )
        return self.numbers.setdefault(name, len(self.numbers))

    def _mapped(self, name: str, place: Place) -> str:
        known = self.mapping or {}
        if name not in known:
            raise place.error(
                f"the label {name!r} has no name in label_names, which names {list_labels(list(known))}; add it there"
            )
        return known[name]

    def column(self) -> datasets.Dataset:
        """A one-column dataset ``label`` with the names in their final order."""
        seen = list(self.numbers)
        names = self.fixed if self.fixed is not None else sort_label_names(seen)
        final = {name: number for number, name in enumerate(names)}
        order = [final[name] for name in seen]
        feature: Any = datasets.ClassLabel(names=names, id=self._type(names))
        values: Any = [order[number] for number in self.single]
        if self.multi_label:
            feature = datasets.List(feature)
            values = [sorted(order[number] for number in row) for row in self.several]
        return datasets.Dataset.from_dict({"label": values}, features=datasets.Features({"label": feature}))

    def _type(self, names: Sequence[str]) -> str | None:
        """Return the type of the labels: of untyped tables integers where all are."""
        if not names or len(self.kinds - {""}) > 1:
            return None
        kinds = self.kinds - {""} or {INTEGERS if "" in self.kinds else None}
        (kind,) = kinds
        return kind if can_be(names, kind) else None


def _kind(value: Any, untyped: bool) -> str | None:
    """Return the type that one label is given in; the empty string for the cell of an untyped table."""
    if isinstance(value, str):
        return "" if untyped else None
    return BOOLS if isinstance(value, bool | np.bool_) else INTEGERS


def is_given(value: Any, place: Place, threshold: float | None) -> bool:
    """Return whether a cell of a column for one label flags the label as given.

    Raises:
        TableError: The value is not a flag.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        word = clean_label(value).casefold()
        try:
            value = word in _GIVEN if word in _GIVEN | _NOT_GIVEN else float(word) if word else None
        except ValueError:
            raise place.error(
                f"a label column of several must hold 0 and 1, or true and false, got {value!r:.80}; for a column of "
                "names give it alone as label_column"
            ) from None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise place.error("there is no label; write 0 or 1, or delete the row")
    if not isinstance(value, int | float):
        raise place.error(f"a label column of several must hold 0 and 1, got {type(value).__name__} {value!r:.80}")
    if threshold is not None:
        return value >= threshold
    if value not in (0, 1):
        raise place.error(
            f"a label column of several must hold 0 and 1, got {value!r:.80}; for votes or shares set label_threshold, "
            "the number from which the label counts as given"
        )
    return value == 1


# Names for values


def read_label_names(source: str | Path | Mapping[Any, Any]) -> dict[str, str]:
    """Return the name of each value of a label column.

    Args:
        source: A mapping, or one as JSON text; or a file: JSON ``{"0": "neg", "1": "pos"}`` or ``["neg", "pos"]``, or
            CSV or TSV with a value and its name in each row.

    Raises:
        TableError: The file cannot be read, or holds something else; or a value or name is empty or named twice.
    """
    if isinstance(source, Mapping):
        where, pairs = "label_names", list(source.items())
    elif str(source).lstrip().startswith(("{", "[")):
        where, pairs = "label_names", _json_pairs(str(source), "label_names")
    elif not str(source).strip():
        raise TableError(f"label_names is empty, got {str(source)!r:.60}; give a JSON or CSV file, or leave it out")
    else:
        path = Path(source).expanduser()
        where, pairs = str(path), _read_pairs(path)
    names: dict[str, str] = {}
    for value, name in pairs:
        key = clean_label(str(value))
        if not isinstance(name, str | int) or not clean_label(str(name)) or not key:
            raise TableError(f"{where}: the value {value!r:.40} has the name {name!r:.40}; both must be filled in")
        if names.setdefault(key, clean_label(str(name))) != clean_label(str(name)):
            raise TableError(f"{where}: the value {key!r:.40} has two names, {names[key]!r} and {name!r}; keep one")
    if not names:
        raise TableError(f"{where} names no label; write one value and its name a row")
    return names


def _read_pairs(path: Path) -> list[tuple[Any, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"label_names {path} cannot be read ({error}); give a JSON or CSV file in UTF-8") from error
    if path.suffix.lower() == ".json":
        return _json_pairs(text, f"label_names {path}")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise TableError(
                f"label_names {path}, line {number} has {len(row)} fields; write a value and its name in each row"
            )
    return [(value, name) for value, name in rows]


def _json_pairs(text: str, where: str) -> list[tuple[Any, Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{where} is not JSON: {error}") from error
    if isinstance(content, list):
        return list(enumerate(content))
    if not isinstance(content, dict):
        raise TableError(f'{where} must hold an object such as {{"0": "neg", "1": "pos"}}')
    return list(content.items())
