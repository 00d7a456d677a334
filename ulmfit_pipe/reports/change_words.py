"""How far weights moved, in words: the same in a table and in a picture."""

from collections.abc import Mapping
from typing import Any

WHOLE_PER_CENT = 1.0  # from 100% on, decimals say nothing


def change_words(row: Mapping[str, Any]) -> str:
    """Return a relative change as a person reads it.

    Args:
        row: ``relative`` (the change as a share, or None where it cannot be given) and ``norm_before`` (None where
            there was nothing before).

    Returns:
        Per cent, or ``unchanged``, ``new`` (nothing to compare with), ``from zero`` (no share of zero can be given).
    """
    relative = row["relative"]
    if row["norm_before"] is None:
        return "new"
    if relative is None:
        return "from zero"
    if relative == 0:
        return "unchanged"
    return f"{100 * relative:,.0f}%" if relative >= WHOLE_PER_CENT else f"{100 * relative:.3g}%"
