"""Text tables: aligned columns, shown as they are in a notebook or at a prompt."""

import html
from collections.abc import Sequence


class Report(str):
    """A text table that shows itself as it is in a notebook or at a prompt."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the text itself."""
        return str(self)

    def _repr_html_(self) -> str:
        """Return the text for a notebook: its lines are not wrapped."""
        return f'<pre style="white-space: pre; overflow-x: auto">{html.escape(self)}</pre>'


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
