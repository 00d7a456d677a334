"""Do the quotes of a CSV-like file surround its fields, or do they belong to the text?

Read as text, a line is a row. Read as field quotes, a field may hold line breaks: two stray quotes swallow all rows
between them, and nothing in the result shows it. The file is read both ways at once. Where every row is complete
either way, `quote_evidence.py` weighs the evidence; where there is none, or some for both, the file is refused.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from ulmfit_pipe.data.tables.quote_evidence import Evidence, Place
from ulmfit_pipe.data.tables.text_files import LONGEST_LINE, TableError


@dataclass
class QuoteScan:
    """Result of one pass over a file under both interpretations.

    Attributes:
        evidence: Evidence for either interpretation.
        fits_as_marks: Every row has the header's fields if quotes delimit fields.
        fits_as_text: Every line has the header's fields, quotes taken as text.
        holds_escapes: A backslash precedes a quote.
        is_torn: A quote is open at the end of the file.
        rows: Number of rows if quotes delimit fields.
        lines: Lines that are not blank, without the header's: rows, quotes taken as text.
    """

    evidence: Evidence
    fits_as_marks: bool = True
    fits_as_text: bool = True
    holds_escapes: bool = False
    is_torn: bool = False
    rows: int = 0
    lines: int = 0

    @property
    def first_span(self) -> Place | None:
        """The first row over several lines and its lines, if quotes delimit fields."""
        return self.evidence.first_span


class _Lines:
    """Passes lines to the CSV parser, keeps those of the current record, and counts their fields as text."""

    def __init__(self, lines: Iterator[str], delimiter: str, quote: str, width: int) -> None:
        self.lines, self.delimiter, self.width = lines, delimiter, width
        self.escaped = "\\" + quote
        self.record: list[str] = []
        self.number = self.filled = 0
        self.fits, self.holds_escapes = True, False

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.number += 1
            self.record.append(line)
            self._count(line)
            yield line

    def _count(self, line: str) -> None:
        body = line.rstrip("\r\n")
        self.filled += bool(body)
        self.holds_escapes = self.holds_escapes or self.escaped in line
        fields = body.count(self.delimiter) + 1
        if body and fields != self.width and not (fields < self.width and body == line):  # a last line may be torn
            self.fits = False


def scan_quotes(
    lines: Iterator[str], *, delimiter: str, quote: str, width: int, has_header: bool, escape: str | None = None
) -> QuoteScan:
    """Read a file both ways.

    Args:
        lines: Its lines.
        delimiter: Separates the fields.
        quote: The quote character in question.
        width: Fields of its first row.
        has_header: The first row names the columns.
        escape: Escape character before a quote that is text, besides doubling the quote.
    """
    csv.field_size_limit(LONGEST_LINE)
    source = _Lines(lines, delimiter, quote, width)
    evidence = Evidence(delimiter, quote, width, counts_quotes=escape is None)
    scan = QuoteScan(evidence)
    is_header = has_header
    for record in _parsed(source, scan, quote, escape):
        held, source.record = source.record, []
        if not record:
            evidence.blank()
        elif len(record) != width:
            scan.fits_as_marks, is_header = False, False
        elif is_header:
            evidence.add_header(record, held)
            is_header = False
        else:
            scan.rows += 1
            evidence.add(record, held, (scan.rows, source.number - len(held) + 1, source.number))
    if scan.is_torn and len(source.record) > 1:
        evidence.add_torn(source.record, (scan.rows + 1, source.number - len(source.record) + 1, source.number))
    evidence.finish()
    scan.fits_as_text, scan.holds_escapes = source.fits, source.holds_escapes
    scan.lines = source.filled - has_header
    return scan


def _parsed(source: _Lines, scan: QuoteScan, quote: str, escape: str | None) -> Iterator[list[str]]:
    """Yield the rows, quotes as field quotes; one that cannot be parsed is recorded, the next line begins another."""
    records = csv.reader(source, delimiter=source.delimiter, quotechar=quote, escapechar=escape, strict=True)
    while True:
        try:
            record = next(records, None)
        except csv.Error as error:
            scan.fits_as_marks = False
            scan.is_torn = "unexpected end" in str(error)
            if scan.is_torn:
                return
            source.record = []
            continue
        if record is None:
            return
        yield record


def quotes_are_marks(scan: QuoteScan, *, name: str) -> bool:
    """Decide whether quotes delimit fields or belong to the text.

    Args:
        scan: Of the file.
        name: Its name, for the message.

    Raises:
        TableError: Both interpretations fit, or part of each.
    """
    evidence = scan.evidence
    if evidence.first_span is None or not (scan.fits_as_marks or scan.is_torn):
        # a row that contradicts the interpretation is named when it is read
        return scan.fits_as_marks or not scan.fits_as_text or evidence.mostly_quoted
    if not scan.fits_as_text:
        if evidence.swallowed is None:
            return True
    elif evidence.for_marks != evidence.for_text or (scan.is_torn and evidence.is_long):
        return evidence.for_marks
    row, first, last = evidence.swallowed or evidence.first_span
    raise TableError(
        f"{name}, row {row} (header not counted) spans lines {first} to {last} if its quotes delimit a "
        "field, but these lines look like rows by themselves; --quote none reads quotes as text and a line as a row "
        f"({scan.lines:,} rows), --quote double reads the lines as one field ({scan.rows:,} rows)"
    )
