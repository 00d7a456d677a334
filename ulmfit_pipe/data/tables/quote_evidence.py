"""Evidence whether a field over several lines is one field, or rows between two quotes that belong to the text.

For field quotes: line breaks within the field that differ from those between rows; blank lines in the field alone;
columns that are quoted in every row; doubled quotes; lines that fit no column (a text where the others have numbers,
nothing where the others have something, a space after the delimiter); row numbers that only then rise.
For text: lines with values that other rows have in the same column; row numbers that rise by the same step from
line to line; a delimiter that texts hardly hold; quotes in the middle of fields that are not quoted, which no program
writes into a quoted table. Numbers that are merely where others have numbers are not evidence.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

MOST_COLUMNS = 1000  # of a table whose values are compared
MOST_VALUES = 1000  # different values of a column that are remembered; a column with more is text
LONGEST_VALUE = 60  # characters of a value that is remembered
SAMPLED_ROWS = 20_000  # whose values are compared
MOST_WAITING_LINES = 10_000  # of rows over several lines that wait for more values to compare with
MOST_LINES = 1000  # of one row that are compared
LONG_RECORD = 1_000_000  # characters of one that does not wait
FEW_LINES = 2  # with as many, values may be alike by chance
REPEATING_LINES = 6  # with fewer, the same
MANY_LINES = 10  # in a field; that all have the header's fields is then not by chance
WIDE = 4  # fields; that all lines of a text have as many is then not by chance
FEW_ROWS = 3  # with fewer, that all are quoted or evenly numbered may be chance
QUOTED_ROWS = 2  # rows that are quoted properly; one may be so by chance
RISING_ROWS = 5  # with fewer, numbers may rise by chance
FEW_VALUES_ROWS = 8  # with fewer, a value that no row has is not evidence
MANY_PAIRS = 5  # of quotes that open before and close after a field, and none elsewhere; more are not by chance
FEW_BARE = 0.1  # of the quoted values of a column; a program that quotes it left no more without, a torn row or two
MATCHING = 0.8  # share of the lines with known values, below which values are not evidence
SPACED = 0.05  # of a column's values begin with a space: below it a space speaks for punctuation

Place: TypeAlias = tuple[int, int, int]  # a row's number, its first line and its last


@dataclass
class _Numbers:
    """Whether the values of a column rise from row to row, and by the same step."""

    count: int = 0
    rises: bool = True
    is_even: bool = True
    last: float = 0.0
    step: float | None = None

    def add(self, value: str) -> None:
        """Take the next row's value."""
        if not self.rises:
            return
        if not is_number(value):
            self.rises = self.is_even = False
            return
        number, self.count = float(value), self.count + 1
        step, self.last = number - self.last, number
        if self.count == 1:
            return
        self.rises = step > 0
        self.step = step if self.step is None else self.step
        self.is_even = self.is_even and self.rises and abs(step - self.step) <= 1e-9 * max(1.0, abs(number))


@dataclass
class _Column:
    """Statistics of one column's values, and of what lines within quoted fields would have there."""

    values: set[str] | None = field(default_factory=set)
    rows: int = 0
    empty: int = 0
    spaced: int = 0
    numbers: int = 0
    quoted: int = 0
    bare: int = 0  # not quoted, though a program that quotes texts would have
    marks: _Numbers = field(default_factory=_Numbers)  # row by row, quotes read as field quotes
    text: _Numbers = field(default_factory=_Numbers)  # line by line
    asked: int = 0  # lines within quoted fields
    words: int = 0  # of these, with a value that is not a number and that others have
    figures: int = 0  # of these, with a number that others have

    def add(self, value: str, *, quoted: bool = False) -> None:
        """Take the value of a row on one line."""
        self.rows += 1
        self.empty += not value
        self.spaced += value[:1].isspace()
        number = is_number(value)
        self.numbers += number
        self.quoted += quoted
        self.bare += not quoted and not number and value not in ("", "NA", "NULL")
        if self.values is not None and value and len(value) <= LONGEST_VALUE and "\n" not in value:
            self.values.add(value)
            if len(self.values) > MOST_VALUES:
                self.values = None

    @property
    def always_quoted(self) -> bool:
        """Whether a program quoted every text of the column."""
        return self.quoted >= FEW_ROWS and not self.bare

    @property
    def mostly_quoted(self) -> bool:
        """Whether a program quoted the texts of the column, but for a torn row or two."""
        return self.quoted >= QUOTED_ROWS and self.bare <= FEW_BARE * self.quoted

    @property
    def is_numeric(self) -> bool:
        """Whether the column holds numbers and empty values alone."""
        return self.rows > 1 and self.numbers + self.empty == self.rows and self.numbers > 0

    @property
    def numbers_rows(self) -> bool:
        """Whether the column numbers the rows only if quotes delimit fields."""
        marks, text = self.marks, self.text
        return (marks.rises and marks.count >= RISING_ROWS and not text.rises) or (
            marks.is_even and marks.count >= FEW_ROWS and not text.is_even
        )

    @property
    def knows_none(self) -> bool:
        """Whether a few values make up the column, and none of the lines has one of them."""
        few = self.values is not None and 4 * len(self.values) <= self.rows
        return few and self.rows >= FEW_VALUES_ROWS and self.asked > FEW_LINES and not self.words + self.figures

    def compare(self, value: str) -> bool:
        """Take the value that a line would have here, and return whether it fits."""
        self.asked += 1
        number = is_number(value)
        if self.values is not None and value in self.values:
            self.words += not number
            self.figures += number and 2 * len(self.values) <= self.rows
        return self.allows(value)

    def allows(self, value: str) -> bool:
        """Whether a value is like those of the column: numbers among numbers, blanks where there were some."""
        if value[:1].isspace() and self.spaced <= SPACED * self.rows:
            return False
        if not value:
            return self.empty > 0 or self.rows < FEW_ROWS
        return is_number(value) or not self.is_numeric


@dataclass
class _Span:
    """A row over several lines: their fields as text, those of the quoted field, and its position."""

    lines: list[list[str]]
    first: int  # column of the first quoted field over several lines
    last: int
    place: Place
    fits: bool  # every line has the header's fields


class Evidence:
    """Remembers what rows on one line are like, and compares those over several lines with them.

    Args:
        delimiter: Separates the fields.
        quote: The quote character in question.
        width: Fields of a row.
        counts_quotes: A quote within quotes is a doubled one.

    Attributes:
        first_span: The first row over several lines.
        spans: How many rows go over several lines.
    """

    def __init__(self, delimiter: str, quote: str, width: int, *, counts_quotes: bool) -> None:
        self.delimiter, self.quote, self.width, self.counts_quotes = delimiter, quote, width, counts_quotes
        self.columns = [_Column() for _ in range(min(width, MOST_COLUMNS))]
        self.first_span: Place | None = None
        self._swallowed: Place | None = None
        self.spans = 0
        self.header_quoted = False
        self.needed = False  # a row on one line makes sense only if its quotes delimit fields
        self.all_quoted = False  # in a row of several fields, every field is quoted
        self.loose = False  # a quote is within a field that is not quoted
        self.needless = False  # a field is quoted that has no need of it
        self.blanks_between = self.blanks_within = 0
        self.row_end: str | None = None  # of all rows, or "" where they differ
        self.other_ends = 0  # line breaks within fields that are none of rows
        self.same_ends = 0
        self.seen = self.bad = 0  # lines within fields; those that fit no column
        self.repeats = False  # they have a few values in a column, as labels are
        self.rows = 0
        self.rising = list(range(len(self.columns)))  # columns whose values rise, quotes read as field quotes
        self.waiting: list[_Span] = []
        self.waiting_lines = 0

    def blank(self) -> None:
        """Take a blank line between rows."""
        self.blanks_between += 1

    def add_header(self, record: Sequence[str], lines: Sequence[str]) -> None:
        """Take the row of names."""
        quoted = self._quoted_fields(record, "".join(lines))
        self.header_quoted = bool(quoted) and all(quoted)
        for column, name in zip(self.columns, record, strict=False):
            column.spaced += name[:1].isspace()
        self._add_end(lines[-1])

    def add(self, record: Sequence[str], lines: Sequence[str], place: Place) -> None:
        """Take one row, as a record and as lines."""
        raw = lines[0] if len(lines) == 1 else "".join(lines)
        self.rows += 1
        quoted: Sequence[bool] = ()
        if self.quote in raw and not (self.needed and self.loose and self.rows > SAMPLED_ROWS):
            quoted = self._quoted_fields(record, raw)
            self._look_at_quotes(record, quoted, on_one_line=len(lines) == 1)
        if self.rows <= SAMPLED_ROWS:
            for column, value, mark in itertools.zip_longest(self.columns, record[:MOST_COLUMNS], quoted):
                column.add(value, quoted=bool(mark))
        self._count(record, on_one_line=len(lines) == 1)
        self._add_end(lines[-1])
        if len(lines) == 1:
            self.needed = self.needed or raw.count(self.delimiter) + 1 != self.width
            return
        inside = [at for at, value in enumerate(record) if "\n" in value or "\r" in value]
        self._add_span(lines, inside or [0], place)

    def _count(self, record: Sequence[str], *, on_one_line: bool) -> None:
        """Pass a row's numbers to the columns that have numbered the rows so far."""
        for at in self.rising:
            self.columns[at].marks.add(record[at])
            if on_one_line:
                self.columns[at].text.add(record[at])
        self.rising = [at for at in self.rising if self.columns[at].marks.rises]

    def add_torn(self, lines: Sequence[str], place: Place) -> None:
        """Take the lines after a quote that is never closed."""
        opening = lines[0].split(self.delimiter)
        at = next((at for at, value in enumerate(opening[: self.width]) if value.startswith(self.quote)), 0)
        self._add_span(lines, [at, self.width - 1], place)

    def finish(self) -> None:
        """Evaluate the pending rows."""
        for span in self.waiting:
            self._judge(span)
        self.waiting, self.waiting_lines = [], 0

    @property
    def swallowed(self) -> Place | None:
        """The first row whose lines look like rows by themselves."""
        return None if self._surely_marks else self._swallowed

    @property
    def for_marks(self) -> bool:
        """Whether there is evidence that the quotes delimit fields."""
        return (
            self.needed
            or self._surely_marks
            or 2 * self.bad > self.seen > 0
            or (self.spans >= MANY_PAIRS and self.width > 1 and not self.needless)
            or any(column.numbers_rows or column.knows_none for column in self.columns)
        )

    @property
    def for_text(self) -> bool:
        """Whether there is evidence that the quotes are text."""
        if (
            self.loose
            or self.repeats
            or any(column.text.is_even and column.text.count >= FEW_ROWS for column in self.columns)
        ):
            return True
        by_number = self.delimiter != "," or self.width >= WIDE or self.is_long
        if by_number and self.width > 1 and self.seen and not self.bad:
            return True
        figures_tell = self.needless or self.spans <= FEW_LINES
        return any(
            column.asked and max(column.words, column.figures * figures_tell) >= MATCHING * column.asked
            for column in self.columns
        )

    @property
    def mostly_quoted(self) -> bool:
        """Whether nearly all rows are quoted as a program does it, so that any other row is damaged."""
        if self.header_quoted or self.needed or any(column.mostly_quoted for column in self.columns):
            return True
        return self.all_quoted and not any(column.bare for column in self.columns)

    @property
    def is_long(self) -> bool:
        """Whether the quotes, read as field quotes, make one or two rows of many lines."""
        return self.spans <= FEW_LINES and self.seen >= MANY_LINES * self.spans

    @property
    def _surely_marks(self) -> bool:
        quoted = [column for column in self.columns if column.quoted]
        return (
            (self.other_ends > 0 == self.same_ends and bool(self.row_end))
            or (self.blanks_within > 0 and not self.blanks_between)
            or any(column.always_quoted for column in quoted)
            or (self.header_quoted and not any(column.bare for column in quoted))
        )

    def _add_end(self, line: str) -> None:
        end = line[len(line.rstrip("\r\n")) :]
        if end:
            self.row_end = end if self.row_end in (None, end) else ""

    def _quoted_fields(self, record: Sequence[str], raw: str) -> list[bool]:
        """Whether each field of a row is quoted; its value then determines its characters, quotes included."""
        if not self.counts_quotes:
            return []
        found, at = [], 0
        for value in record:
            quoted = raw.startswith(self.quote, at)
            found.append(quoted)
            at += len(value) + len(self.delimiter) + (2 + value.count(self.quote) if quoted else 0)
        return found

    def _look_at_quotes(self, record: Sequence[str], quoted: Sequence[bool], *, on_one_line: bool) -> None:
        self.all_quoted = self.all_quoted or (len(quoted) > 1 and all(quoted))
        for value, mark in zip(record, quoted, strict=False):
            if mark and on_one_line:
                self.needed = self.needed or self.quote in value
                self.needless = self.needless or bool(value and value == value.strip() and self.quote not in value)
            elif not mark:
                self.loose = self.loose or self.quote in value

    def _add_span(self, lines: Sequence[str], inside: Sequence[int], place: Place) -> None:
        self.spans += 1
        self.first_span = self.first_span or place
        fields: list[list[str]] = []
        fits = True
        for number, line in enumerate(lines, start=1):
            body = line.rstrip("\r\n")
            self.blanks_within += not body
            if number < len(lines):
                same = line[len(body) :] == self.row_end
                self.same_ends += same
                self.other_ends += not same
            if body and body.count(self.delimiter) + 1 != self.width:
                fits = False
            elif body and (len(fields) < MOST_LINES or number == len(lines)):
                fields.append(body.split(self.delimiter))
        for at in self.rising:
            for values in fields:
                self.columns[at].text.add(values[at])
        if len(fields) > 1:
            self.waiting.append(_Span(fields, inside[0], inside[-1], place, fits))
            self.waiting_lines += len(fields)
        if self.waiting_lines > MOST_WAITING_LINES or sum(map(len, lines)) > LONG_RECORD:
            self.finish()

    def _judge(self, span: _Span) -> None:
        """Compare the lines of a row with other rows."""
        before = [(column.asked, column.words + column.figures) for column in self.columns]
        bad = 0
        for number, line in enumerate(span.lines):
            places = self._columns_of_evidence(span, number)
            self.seen += bool(places)
            allowed = [self.columns[at].compare(line[at]) for at in places]
            bad += not all(allowed)
        self.bad += bad
        repeats = self._repeat(span)
        self.repeats = self.repeats or repeats
        found = [
            (column.asked - asked, column.words + column.figures - known)
            for column, (asked, known) in zip(self.columns, before, strict=True)
        ]
        known = any(matched >= MATCHING * asked for asked, matched in found if matched)
        if not bad and ((repeats and span.fits) or known):
            self._swallowed = self._swallowed or span.place

    def _columns_of_evidence(self, span: _Span, number: int) -> range:
        """Return the columns in which a line is evidence: all but those before and after the quoted field."""
        begin = span.last + 1 if number == 0 else 0
        end = span.first + 1 if number == len(span.lines) - 1 else len(self.columns)
        return range(begin, min(end, len(self.columns)))

    def _repeat(self, span: _Span) -> bool:
        for at in range(len(self.columns)):
            values = [line[at] for line in span.lines]
            if len(values) >= REPEATING_LINES and 3 * len(set(values)) <= len(values) and all(values):
                return True
        return False


def is_number(value: str) -> bool:
    """Whether a value is written as a number."""
    return value.removeprefix("-").replace(".", "", 1).isdecimal()
