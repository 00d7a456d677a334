"""Where two records of settings differ, in words: what a stage or checkpoint was made with, and what is asked for."""

import json
import os
from typing import Any

MOST_LETTERS = 40  # of a value that is shown
BEFORE = 8  # of them that two long values share, before the first that differs


def differences(old: Any, new: Any, name: str = "", *, places: tuple[str, str] = ("there", "now")) -> list[str]:
    """Return one line for each value that differs, such as ``settings.epochs (1 there, 2 now)``.

    Of a plain list that is too long to show it is the first item that differs, and how many more do.

    Args:
        old: What was read from a file.
        new: What is asked for now.
        name: Dotted name of the part that is compared.
        places: Where the two values are, in words.
    """
    if isinstance(new, tuple):
        new = list(new)
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            found += differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key), places=places)
        return found
    if old == new:
        return []
    texts, deep = (repr(old), repr(new)), isinstance(old, list) and any(map(_is_deep, old))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and (deep or _too_long(*texts)):
        pairs = enumerate(zip(old, new, strict=True), start=1)
        lines = [
            line for number, (one, two) in pairs for line in differences(one, two, f"{name}.{number}", places=places)
        ]
        return lines if deep or len(lines) < 2 else [f"{lines[0]} and {len(lines) - 1} more of {len(old)}"]
    return [_one_line(name, *texts, places)]


def as_json(record: Any) -> Any:
    """Return a record as read back from JSON: tuples are lists, keys are strings, other objects are text."""
    return json.loads(json.dumps(record, default=str))


def _is_deep(value: Any) -> bool:
    return isinstance(value, dict | list)


def _too_long(*texts: str) -> bool:
    return max(map(len, texts)) > MOST_LETTERS


def _one_line(name: str, old: str, new: str, places: tuple[str, str]) -> str:
    same = len(os.path.commonprefix([old, new]))
    return f"{name} ({_short(old, same)} {places[0]}, {_short(new, same)} {places[1]})"


def _short(text: str, same: int) -> str:
    """Shorten a text that shares its beginning with another, so that it shows where they differ."""
    if not _too_long(text):
        return text
    start = 0 if same < MOST_LETTERS - 3 - BEFORE else same - BEFORE
    shown = ("..." if start else "") + text[start:]
    return shown if not _too_long(shown) else shown[: MOST_LETTERS - 3] + "..."
