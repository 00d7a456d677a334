"""Do the quotes of a CSV-like file surround its fields, or do they belong to the text?

Read as text, a line is a row. Read as marks, a field may hold line breaks, so two stray quotes swallow all the rows
between them, and nothing in the result shows it. The file is read both ways at once. A field over several lines is
suspicious if its lines are rows by themselves: they have the header's number of fields, and in one column values that
other rows have there too (or numbers, where the others are numbers).
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ulmfit_pipe.data.text_files import LONGEST_LINE, TableError

MOST_COLUMNS = 1000  # of a table whose values are compared
MOST_VALUES = 1000  # different values of a column that are remembered; a column with more is text
LONGEST_VALUE = 60  # characters of a value that is remembered
MOST_WAITING = 1000  # rows over several lines that wait for more values to compare with
LONG_RECORD = 1_000_000  # characters of one that does not wait
FEW_LINES = 2  # lines with as many commas as the header has: as many may be chance, more are not

Place: TypeAlias = tuple[int, int, int]  # a row's number, its first line and its last


@dataclass
class QuoteScan:
    """What one reading of a file, both ways at once, has found.

    Attributes:
        fits_as_marks: Every row has the header's fields, quotes taken as marks.
        fits_as_text: Every line has the header's fields, quotes taken as text.
        spans: Fields over several lines, quotes taken as marks.
        first_span: The first of them: its row and its first and last line.
        swallowed: The first that is suspicious: its row and lines.
        sure: Every line of every suspicious field is a row.
    """

    fits_as_marks: bool = True
    fits_as_text: bool = True
    spans: int = 0
    first_span: Place | None = None
    swallowed: Place | None = None
    sure: bool = True


class _Lines:
    """Hands lines on to the CSV parser, keeps those of the record at hand, and counts their fields as text."""

    def __init__(self, lines: Iterator[str], delimiter: str, width: int) -> None:
        self.lines, self.delimiter, self.width = lines, delimiter, width
        self.record: list[str] = []
        self.number = 0
        self.fits = True

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.number += 1
            self.record.append(line)
            self._count(line)
            yield line

    def _count(self, line: str) -> None:
        body = line.rstrip("\r\n")
        fields = body.count(self.delimiter) + 1
        if body and fields != self.width and not (fields < self.width and body == line):  # a last line may be torn
            self.fits = False


@dataclass
class _Column:
    """Values of one column, for a comparison."""

    values: set[str] | None = field(default_factory=set)
    numeric: bool = True
    rows: int = 0

    def add(self, value: str) -> None:
        self.rows += 1
        self.numeric = self.numeric and _is_number(value)
        if self.values is not None and value and len(value) <= LONGEST_VALUE and "\n" not in value:
            self.values.add(value)
            if len(self.values) > MOST_VALUES:
                self.values = None

    def knows(self, value: str) -> bool:
        return (self.values is not None and value in self.values) or (
            self.numeric and self.rows > 1 and _is_number(value)
        )


def _repeats(values: Sequence[str]) -> bool:
    """Whether a few values make up a column, as labels do."""
    return len(values) > FEW_LINES and all(values) and 2 * len(set(values)) <= len(values)


def _is_number(value: str) -> bool:
    return value.removeprefix("-").replace(".", "", 1).isdecimal()


def scan_quotes(
    lines: Iterator[str], *, delimiter: str, quote: str, width: int, has_header: bool, escape: str | None = None
) -> QuoteScan:
    """Read a file both ways.

    Args:
        lines: Its lines.
        delimiter: Separates the fields.
        quote: The mark in question.
        width: Fields of its first row.
        has_header: The first row names the columns.
        escape: Stands before a mark that is text, beside the doubled mark.
    """
    csv.field_size_limit(LONGEST_LINE)
    scan, source = QuoteScan(), _Lines(lines, delimiter, width)
    judge = _Judge(scan, delimiter, quote, width)
    row = -1 if has_header else 0
    try:
        for record in csv.reader(source, delimiter=delimiter, quotechar=quote, escapechar=escape, strict=True):
            held, source.record = source.record, []
            if not record:
                continue
            row += 1
            if len(record) != width:
                scan.fits_as_marks = False
            elif row:
                judge.add(record, held, (row, source.number - len(held) + 1, source.number))
    except csv.Error as error:
        scan.fits_as_marks = False
        if "unexpected end" in str(error) and judge.rows_among(source.record) > 1:  # else the file was cut short
            scan.swallowed = scan.swallowed or (row + 1, source.number - len(source.record) + 1, source.number)
            scan.sure = False
    for _ in source:  # the lines after an error
        source.record.clear()
    judge.finish()
    scan.fits_as_text = source.fits
    return scan


class _Judge:
    """Remembers the values of rows on one line, and compares those of rows over several lines with them."""

    def __init__(self, scan: QuoteScan, delimiter: str, quote: str, width: int) -> None:
        self.scan, self.delimiter, self.quote, self.width = scan, delimiter, quote, width
        self.columns = [_Column() for _ in range(width)] if width <= MOST_COLUMNS else []
        self.rows = self.quoted = 0  # rows on one line, and those of them that hold quotes
        self.needed = False  # a row makes sense only if its quotes are marks
        self.waiting: list[tuple[Sequence[str], Place]] = []  # rows over several lines, until more values are known

    def add(self, record: Sequence[str], lines: Sequence[str], place: Place) -> None:
        """Take one row, as a record and as lines."""
        for column, value in zip(self.columns, record, strict=False):
            column.add(value)
        if len(lines) == 1:
            self.rows += 1
            self.quoted += lines[0].count(self.quote) > 1
            self.needed = self.needed or lines[0].count(self.delimiter) + 1 != self.width
            return
        self.scan.spans += 1
        self.scan.first_span = self.scan.first_span or place
        self.needed = self.needed or any(2 * self.quote in line for line in lines)
        self.waiting.append((lines, place))
        if len(self.waiting) == MOST_WAITING or sum(map(len, lines)) > LONG_RECORD:
            self.finish()

    def finish(self) -> None:
        """Judge the rows that wait."""
        for lines, place in self.waiting:
            self._judge([line for line in lines if line.strip("\r\n")], place)
        self.waiting = []

    def _judge(self, lines: Sequence[str], place: Place) -> None:
        """Note a row over several lines if its lines are rows by themselves."""
        rows = self.rows_among(lines)
        fitting = sum(line.count(self.delimiter) + 1 == self.width for line in lines)
        all_fit = fitting == len(lines) > 1
        marks_are_usual = self.needed or 2 * self.quoted >= self.rows > 0
        by_number = all_fit and self.width > 1 and self.delimiter != "," and not marks_are_usual
        doubtful = all_fit and not marks_are_usual and (self.width == 1 or fitting > FEW_LINES)
        if rows > 1 or by_number or doubtful:
            self.scan.swallowed = self.scan.swallowed or place
            self.scan.sure = self.scan.sure and (by_number or rows == len(lines))

    def rows_among(self, lines: Sequence[str]) -> int:
        """How many of some lines are rows by themselves, by the column where most have a value that others have."""
        fields = [line.rstrip("\r\n").split(self.delimiter) for line in lines]
        fields = [each for each in fields if len(each) == self.width]
        if self.width == 1 or len(fields) < 2:
            return 0
        if any(_repeats([each[at] for each in fields]) for at in range(len(self.columns))):
            return len(fields)
        return max(
            (sum(column.knows(each[at]) for each in fields) for at, column in enumerate(self.columns)), default=0
        )


def quotes_are_marks(scan: QuoteScan, *, name: str) -> bool:
    """Decide.

    Args:
        scan: Of the file.
        name: Its name, for the message.

    Raises:
        TableError: Both readings make sense, or part of each.
    """
    if scan.fits_as_marks and scan.swallowed is None:
        return True
    if scan.fits_as_text and (scan.sure or not scan.fits_as_marks):
        return False
    if scan.swallowed is None:  # it fits neither way: reading it names the row
        return True
    row, first, last = scan.swallowed
    raise TableError(
        f"{name}, row {row} (header not counted) goes over lines {first} to {last} if its quotes are marks around a "
        "field, but these lines look like rows by themselves; --quote none reads quotes as text and a line as a row, "
        "--quote double reads the lines as one field"
    )
