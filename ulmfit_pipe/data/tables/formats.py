"""The format of a CSV-like file: its delimiter, its quote character, whether its first row is a header.

All of it is found in the file's first rows, whatever its suffix says; only whether quotes belong to the text takes the
whole file (`quote_scan.py`).
"""

import contextlib
import csv
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ulmfit_pipe.data.tables.quote_scan import QuoteScan, quotes_are_marks, scan_quotes
from ulmfit_pipe.data.tables.row_sources import NO_QUOTE, TableReading
from ulmfit_pipe.data.tables.text_files import LONGEST_LINE, TableError, TextFile

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
SAMPLE_LINES = 200  # in which the delimiter is looked for
SAMPLE_CHARACTERS = 1_000_000  # after which no further line is taken
AGREEING = 0.9  # of the sample's rows have as many fields as the first, or the character is not a delimiter
SPACED = 0.5  # of the fields begin with a space: above it the character is punctuation
QUOTED = 0.8  # of the sample's rows begin a field with a single quote, or it is an apostrophe
STRAY = 0.05  # of that number may begin with a double quote
BACKSLASH = "\\"
_EXCEL_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
_WEB_PAGE = re.compile(r"\s*(<!doctype html|<html)", re.IGNORECASE)


@dataclass(frozen=True)
class TextFormat:
    """How lines become rows.

    Attributes:
        delimiter: Separates fields.
        quote: Quote character around a field; None where quotes belong to the text.
        escape: Escape character before a quote that is text, besides doubling the quote.
        skipped: Lines before the first row, such as Excel's ``sep=;``.
        has_header: The first row names the columns.
        notes: Log lines on the format.
    """

    delimiter: str
    quote: str | None = '"'
    escape: str | None = None
    skipped: int = 0
    has_header: bool = True
    notes: tuple[str, ...] = ()

    def records(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Yield rows, a header too; blank lines are passed over.

        Raises:
            csv.Error: A quoted field is not well-formed.
        """
        return filter(None, self.records_and_blanks(lines))

    def records_and_blanks(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Yield rows, and an empty list for each blank line."""
        csv.field_size_limit(LONGEST_LINE)
        lines = itertools.islice(lines, self.skipped, None)
        if self.quote is not None:
            yield from csv.reader(
                lines, delimiter=self.delimiter, quotechar=self.quote, escapechar=self.escape, strict=True
            )
            return
        for line in lines:
            body = line.rstrip("\r\n")
            yield body.split(self.delimiter) if body else []


def find_format(file: TextFile, *, usual: str, reading: TableReading) -> TextFormat:
    """Find out how a file of text is to be read.

    Args:
        file: The file.
        usual: The usual delimiter of its suffix.
        reading: The user's options.

    Raises:
        TableError: It is a web page, or its quotes can be read in two ways.
    """
    sample = _sample(file.lines())
    if sample and _WEB_PAGE.match(sample[0]):
        raise TableError(f"{file.path} is a web page (HTML) and not a table; download the file itself")
    excel = _EXCEL_LINE.fullmatch(sample[0]) if sample else None
    rows = sample[1:] if excel else sample
    notes = []
    if reading.delimiter is not None:
        delimiter = reading.delimiter
    else:
        has_header = not reading.no_header
        named = excel[1] if excel else None
        delimiter = named or _find_delimiter(rows, usual, name=str(file.path), has_header=has_header)
        if delimiter != usual:
            notes.append(f"{file.path}: {DELIMITERS.get(delimiter, repr(delimiter))} separate its fields")
    found = TextFormat(delimiter, None, None, 1 if excel else 0, not reading.no_header, tuple(notes))
    if reading.quote is not None:
        return found if reading.quote == NO_QUOTE else dataclasses.replace(found, quote=reading.quote)
    return _find_quote(file, rows, found)


def _sample(lines: Iterator[str]) -> list[str]:
    sample, size = list[str](), 0
    for line in lines:
        if line.strip("\r\n"):
            sample.append(line)
            size += len(line)
        if len(sample) == SAMPLE_LINES or (size > SAMPLE_CHARACTERS and len(sample) > 1):
            break
    return sample


def _find_delimiter(sample: Sequence[str], usual: str, *, name: str, has_header: bool) -> str:
    """The character that splits most rows into as many fields as the first has; in doubt the usual one.

    Punctuation of the text may do so too; the fields after it then begin with a space. Without a header, commas and
    semicolons that are equally frequent in every row cannot be told apart.
    """
    found: dict[str, float] = {}
    for delimiter in sorted(DELIMITERS, key=lambda each: each != usual):
        agreeing, width, spaced = _agreement(sample, delimiter)
        if width > 1 and agreeing >= AGREEING:
            found[delimiter] = spaced
    tight = [delimiter for delimiter, spaced in found.items() if spaced <= SPACED]
    if has_header or len(tight) < 2:
        return next(iter(tight or found), usual)
    if set(tight) == {",", ";"}:
        raise TableError(
            f"{name}: commas and semicolons are equally frequent in every row; choose the delimiter: "
            "--delimiter comma or --delimiter semicolon"
        )
    return next(each for each in "\t|;," if each in tight)


def _agreement(sample: Sequence[str], delimiter: str) -> tuple[float, int, float]:
    """The share of rows with as many fields as the first, how many those are, and the share that begins with a space.

    Quotes are read as delimiters of a field or as text, whichever makes more rows agree.
    """
    readings = [
        _parsed(sample, delimiter, _sample_quote(sample, delimiter)),
        [line.rstrip("\r\n").split(delimiter) for line in sample],
    ]
    shares: list[tuple[float, int, float]] = []
    for records in readings:
        width = len(records[0]) if records else 0
        whole = records[:-1] if len(records) > 2 else records  # the last may be truncated by the end of the sample
        later = [field for record in whole for field in record[1:]]
        spaced = sum(field.startswith(" ") for field in later) / max(len(later), 1)
        shares.append((sum(len(each) == width for each in whole) / max(len(whole), 1), width, spaced))
    return max(shares, key=lambda each: each[:2])


def _parsed(sample: Sequence[str], delimiter: str, quote: str) -> list[list[str]]:
    """Rows of a sample, as far as they can be parsed."""
    csv.field_size_limit(LONGEST_LINE)
    found = list[list[str]]()
    with contextlib.suppress(csv.Error):  # a carriage return in a field without quotes
        found.extend(csv.reader(sample, delimiter=delimiter, quotechar=quote))
    return found


def _sample_quote(sample: Sequence[str], delimiter: str) -> str:
    """The single quote where most rows begin a field with it, hardly any with a double one; else the double one."""
    begins = {mark: sum(line.startswith(mark) or delimiter + mark in line for line in sample) for mark in "'\""}
    return "'" if begins['"'] <= STRAY * begins["'"] and begins["'"] >= QUOTED * max(len(sample) - 1, 1) else '"'


def _find_quote(file: TextFile, sample: Sequence[str], found: TextFormat) -> TextFormat:
    """Return the format with its quote character and its escape character, or without any."""
    quote = _sample_quote(sample, found.delimiter)
    if quote == '"' and not file.holds_quotes:
        return dataclasses.replace(found, quote=quote)
    first = next(iter(_parsed(sample, found.delimiter, quote)), sample[0].split(found.delimiter) if sample else [])

    def scanned(escape: str | None) -> QuoteScan:
        return scan_quotes(
            itertools.islice(file.lines(), found.skipped, None),
            delimiter=found.delimiter,
            quote=quote,
            width=len(first),
            has_header=found.has_header,
            escape=escape,
        )

    name, escape, scan = str(file.path), None, scanned(None)
    notes = [f"{name}: its fields are in single quotes"] if quote == "'" else []
    if scan.holds_escapes and not scan.fits_as_marks:
        escaped = scanned(BACKSLASH)
        if escaped.fits_as_marks:
            escape, scan = BACKSLASH, escaped
            notes.append(f"{name}: a backslash escapes a quote that is text")
    if not quotes_are_marks(scan, name=name):
        note = f"{name}: its quotes belong to the text (--quote double reads them as quotes around a field)"
        return dataclasses.replace(found, notes=(*found.notes, note))
    if scan.first_span is not None:
        (row, start, end), spans = scan.first_span, scan.evidence.spans
        notes.append(
            f"{name}: {spans:,} {'row goes' if spans == 1 else 'rows go'} over several lines in a quoted "
            f"field, the first is row {row} (lines {start + found.skipped} to {end + found.skipped})"
        )
    return dataclasses.replace(found, quote=quote, escape=escape, notes=(*found.notes, *notes))
