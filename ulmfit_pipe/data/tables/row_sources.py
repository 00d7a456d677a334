"""An open table, whatever kind of file it comes from, and the options for opening one."""

import codecs
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ulmfit_pipe.data.tables.text_files import TableError

NO_QUOTE = "none"
IN_MEMORY = "(in memory)"  # so begins what settings have in place of a file's name
_DELIMITER_WORDS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
_QUOTE_WORDS = {"double": '"', "single": "'", NO_QUOTE: NO_QUOTE}


@dataclass(frozen=True, kw_only=True)
class TableReading:
    """How tables of text are read; None detects a value from the file.

    Attributes:
        encoding: Encoding of tables of text.
        delimiter: Character that separates the fields of CSV-like tables, or its name.
        quote: Quote character of the fields of CSV-like tables, or its name; ``none`` if quotes belong to the text.
        no_header: The first row of CSV-like tables and Excel sheets is data, not column names.
        skip_torn_end: Leave out the last record of a table that was cut short, instead of raising.
    """

    encoding: str | None = None
    delimiter: str | None = None
    quote: str | None = None
    no_header: bool = False
    skip_torn_end: bool = False

    def checked(self) -> "TableReading":
        """Return the options with words turned into characters.

        Raises:
            TableError: One of them is not allowed.
        """
        delimiter = None if self.delimiter is None else _DELIMITER_WORDS.get(self.delimiter, self.delimiter)
        quote = None if self.quote is None else _QUOTE_WORDS.get(self.quote, self.quote)
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
            raise TableError(
                f"delimiter must be one character, or tab, comma, semicolon, pipe or space, got {self.delimiter!r:.60}"
            )
        if quote not in (None, NO_QUOTE) and (len(str(quote)) != 1 or str(quote) in "\r\n\0" or quote == delimiter):
            raise TableError(f"quote must be double, single, none or one character, got {self.quote!r:.60}")
        if self.encoding is not None:
            _check_encoding(self.encoding)
        return TableReading(
            encoding=self.encoding,
            delimiter=delimiter,
            quote=quote,
            no_header=self.no_header,
            skip_torn_end=self.skip_torn_end,
        )


def reading_of(settings: Any) -> TableReading:
    """Return the `TableReading` in larger settings, which have fields of the same names."""
    return TableReading(**{each.name: getattr(settings, each.name) for each in dataclasses.fields(TableReading)})


def _check_encoding(name: str) -> None:
    try:
        "".encode(name)  # refuses codecs that are not text encodings, such as base64
    except (LookupError, ValueError) as error:
        raise TableError(
            f"encoding {name!r:.60} is not known; usual ones are utf-8, cp1252, latin-1, utf-16, gb18030, shift_jis, "
            "cp1251"
        ) from error
    if codecs.lookup(name).name in ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"):
        raise TableError(f"encoding {name!r} is not for files; usual ones are utf-8, cp1252, latin-1, utf-16")


@dataclass(frozen=True)
class RowSource:
    """One opened table.

    Attributes:
        name: File, folder or hub name, for messages.
        columns: Column names in order, none twice; one without a name, or whose name was taken, is named by number.
        read: Takes names of columns and yields one tuple of their values per row. A missing value is None.
        untyped: Every value is a string, as in CSV.
        repeated: Names that are in the header twice, so that they are ambiguous.
        notes: Log lines on how it was read; reading to the end may add one.
        plain: A UTF-8 file that its suffix describes, or Parquet: prediction streams it as it is.
        schema: Arrow types of its columns, where it has them.
        objects: Its rows as lines of JSON, where rows may differ in their names.
        files: The file of each row, where a row is a file.
        in_memory: What it is and how many rows it has, for a table in memory; empty for any other.
    """

    name: str
    columns: list[str]
    read: Callable[[Sequence[str]], Iterator[tuple[Any, ...]]]
    untyped: bool = False
    repeated: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)
    plain: bool = False
    schema: pa.Schema | None = None
    objects: Callable[[], Iterator[str]] | None = None
    files: Sequence[str] = ()
    in_memory: str = ""


def unique_names(header: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    """Return a header's names with a number for empty and repeated ones; and the names that are there twice.

    Args:
        header: The names in the file.
    """
    names: dict[str, None] = {}
    repeated = set()
    taken = set(header)
    for number, name in enumerate(header, start=1):
        if name and name not in names:
            names[name] = None
            continue
        if name:
            repeated.add(name)
        free = f"{name}.{number}" if name else str(number)
        while free in names or free in taken:
            free = f"{name or 'column'}.{free}"
        names[free] = None
    return list(names), frozenset(repeated)
