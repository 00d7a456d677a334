"""Text tables: aligned columns at a prompt, a table in a notebook."""

import html
from collections.abc import Sequence


class Report(str):
    """A text table that shows itself as it is at a prompt, and as a table in a notebook.

    Attributes:
        rows: Its rows of text, the first one the header.
        notes: Lines below it.
    """

    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[Sequence[str]], *notes: str) -> "Report":
        """Return the report of rows, the first one the header, with lines below the table."""
        report = cls("\n".join([format_table(rows), *notes]))
        report.rows, report.notes = tuple(map(tuple, rows)), notes
        return report

    def __repr__(self) -> str:
        """Return the text itself."""
        return str(self)

    def _repr_html_(self) -> str:
        """Return a table for a notebook, everything escaped; spaces that indent a cell stay."""
        if not self.rows:  # made of a text alone
            return f'<pre style="white-space: pre; overflow-x: auto">{html.escape(self)}</pre>'
        lines = [_html_row(row, "td") for row in self.rows[1:]]
        header = "".join(_html_row(row, "th") for row in self.rows[:1])
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><thead>{header}</thead><tbody>{''.join(lines)}</tbody></table>{notes}"


def _html_row(row: Sequence[str], tag: str) -> str:
    style = "text-align: left; white-space: pre"
    return "<tr>" + "".join(f'<{tag} style="{style}">{html.escape(cell)}</{tag}>' for cell in row) + "</tr>"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows of text out in aligned columns, the first row as a header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join([*header_lines(rows[0], widths), *(table_line(row, widths) for row in rows[1:])])


def header_lines(names: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Return a table's first two lines: the columns' names, and the rule below them."""
    return [table_line(names, widths), "  ".join("-" * width for width in widths)]


def table_line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Lay a row out in columns of these widths."""
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
