"""Where two records of settings differ, in words: what a stage or checkpoint was made with, and what is asked for."""

import json
from typing import Any


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return one line for each value that differs, such as ``settings.epochs (1 there, 2 now)``.

    Args:
        old: What was read from a file.
        new: What is asked for now.
        name: Dotted name of the part that is compared.
    """
    if isinstance(new, tuple):
        new = list(new)
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            found += differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and any(map(_is_deep, old)):
        pairs = enumerate(zip(old, new, strict=True), start=1)
        return [line for number, (one, two) in pairs for line in differences(one, two, f"{name}.{number}")]
    return [] if old == new else [f"{name} ({_short(old)} there, {_short(new)} now)"]


def as_json(record: Any) -> Any:
    """Return a record as JSON would give it back: tuples are lists, keys are strings, what it cannot hold is text."""
    return json.loads(json.dumps(record, default=str))


def _is_deep(value: Any) -> bool:
    return isinstance(value, dict | list)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
