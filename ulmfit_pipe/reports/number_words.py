"""Numbers and names as a person reads them: shares in percent, durations in words, none of a hundred digits."""

import math
from collections.abc import Mapping
from typing import Any

from ulmfit_pipe.console import in_one_line

WORDS = {"micro_f1": "micro F1", "macro_f1": "macro F1", "mean_average_precision": "mean average precision"}
LONGEST_NAME = 60  # characters of a class's name
BEYOND = 1e6  # a number that is not a count means no more above it


def number(value: Any) -> str:
    """Return a value of a record: counts with separators, others with four significant digits, a dash for none."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _decimal(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(number, value)) or "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} {number(each)}" for name, each in value.items()) or "–"
    return str(value)


def _decimal(value: float) -> str:
    if math.isnan(value):
        return "–"
    if abs(value) > BEYOND:
        return f"{'below −' if value < 0 else 'over '}{BEYOND:,.0f}"
    if value and abs(value) < 1e-3:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if value.is_integer() or abs(value) >= 1e4 else f"{value:.4g}"


def percent(share: float | None) -> str:
    """Return a share as percent without its sign: whole, or with a digit where it is close to 0 or 100."""
    if share is None or math.isnan(share):
        return "–"
    value = 100 * share
    if value in (0, 100) or 1 <= value < 99:
        return f"{value:.0f}"
    return f"{min(max(value, 0.1), 99.9):.1f}"


def duration(seconds: float | None) -> str:
    """Return seconds in words of at most two units."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def short_name(name: str) -> str:
    """Return a class's name in one line of bounded length."""
    shown = in_one_line(name)
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"


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
