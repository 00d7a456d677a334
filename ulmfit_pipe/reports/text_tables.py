"""Text tables: aligned columns, shown as they are in a notebook or at a prompt."""

from collections.abc import Sequence


class Report(str):
    """A text table that shows itself as it is in a notebook or at a prompt."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the text itself."""
        return str(self)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows of text out in aligned columns, the first row as a header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
