"""One setting's value: from text, or from what YAML read, to the type that its annotation asks for.

A value of another type is refused with what is allowed, in words (`--classifier.epochs must be a whole number, got
'3.5'`). jsonargparse does the conversion.
"""

import argparse
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

import jsonargparse

COMMAND_LINE = "the command line"
TYPE_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    type(None): "null",
}


class SettingsError(ValueError):
    """A setting is unknown, missing or not allowed; the message says which and what to type instead."""


def read_value(value: Any, hint: Any, *, name: str, origin: str) -> Any:
    """Check one value and convert it to the annotated type.

    None is settled before jsonargparse sees the value: it takes None for any type, and reads '#' and '~' as None.

    Args:
        value: Text from the command line (a list of texts for a list), or what YAML read.
        hint: The annotation.
        name: Dotted name, for the message.
        origin: `COMMAND_LINE`, or the file that the value stands in.

    Raises:
        SettingsError: The value is not of that type.
    """
    inner = _without_none(hint)
    optional = inner is not hint
    if value is None or (optional and value == "null" and origin == COMMAND_LINE):
        if not optional:
            _refuse_value(value, hint, name=name, origin=origin)
        return None
    if is_list(inner) and isinstance(value, str | int | float) and origin != COMMAND_LINE:
        value = [value]
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=inner)
    try:
        return parser.parse_object({"value": value}).value
    except argparse.ArgumentError:
        _refuse_value(value, hint, name=name, origin=origin)


def _refuse_value(value: Any, hint: Any, *, name: str, origin: str) -> NoReturn:
    spelled = f"--{name}" if origin == COMMAND_LINE else f"{origin}: {name}"
    message = f"{spelled} must be {describe_type(hint)}, got {shorten(value)}"
    if _without_none(hint) is str and not isinstance(value, str) and value is not None:
        message += "; put it in quotes"
    if typing.get_origin(_without_none(hint)) is Literal:
        close = difflib.get_close_matches(str(value), map(str, typing.get_args(_without_none(hint))), n=1)
        message += f"; did you mean {close[0]}?" if close else ""
    raise SettingsError(message)


def _without_none(hint: Any) -> Any:
    """`X | None` -> `X`; any other type as it is."""
    if typing.get_origin(hint) not in (Union, types.UnionType) or type(None) not in typing.get_args(hint):
        return hint
    return Union[tuple(arg for arg in typing.get_args(hint) if arg is not type(None))]  # noqa: UP007


def is_list(hint: Any) -> bool:
    """Whether the annotation is a list or a tuple (or None)."""
    return typing.get_origin(_without_none(hint)) in (list, tuple)


def describe_type(hint: Any) -> str:
    """The annotation in words, for messages and `--help`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(arg) for arg in args)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is list or (origin is tuple and args[-1] is Ellipsis):
        return f"a list, each item {describe_type(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}: {', '.join(map(describe_type, args))}"
    return TYPE_WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def shorten(value: Any, limit: int = 60) -> str:
    """`repr` of a value, cut so that a message stays one line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def to_plain(value: Any) -> Any:
    """Tuples -> lists and paths -> text, which is all that safe YAML knows."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def to_text(value: Any) -> str:
    """A value as one would type it: JSON for what is not text, which YAML reads as well."""
    return value if isinstance(value, str) and value else json.dumps(to_plain(value), ensure_ascii=False)
