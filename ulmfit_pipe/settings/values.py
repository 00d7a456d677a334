"""One setting's value: from text, or from what YAML read, to the type that its annotation asks for.

A value of another type is refused with what is allowed, in words (`--classifier.epochs must be a whole number, got
'3.5'`). jsonargparse does the conversion.
"""

import argparse
import dataclasses
import datetime
import difflib
import json
import numbers
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, NoReturn, Union

import jsonargparse

from ulmfit_pipe.errors import UlmfitError

LONGEST_MESSAGE = 500  # characters
COMMAND_LINE = "the command line"
WORDS_FOR_BOOL = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WHOLE_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,300})")  # no leading zeros: 010 is eight to some
UNFIT = object()  # returned for a value that is not of a type
TYPE_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    type(None): "null",
}


class SettingsError(UlmfitError, ValueError):
    """A setting is unknown, missing or not allowed; the message says which and what to type instead.

    It is one line of bounded length, whatever the value, file or name that it quotes.
    """

    def __init__(self, message: str) -> None:
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(message.split()))
        super().__init__(cut_middle(line, LONGEST_MESSAGE))


def read_value(value: Any, hint: Any, *, name: str, origin: str) -> Any:
    """Check one value and convert it to the annotated type.

    None is settled before jsonargparse sees the value: it takes None for any type, and reads '#' and '~' as None.

    Args:
        value: Text from the command line (a list of texts for a list), or what YAML read.
        hint: The annotation.
        name: Dotted name, for the message.
        origin: `COMMAND_LINE`, or the file that the value is in.

    Raises:
        SettingsError: The value is not of that type.
    """
    given, inner = value, _without_none(hint)
    optional = inner is not hint
    if value is None or (optional and value == "null" and origin == COMMAND_LINE):
        if not optional:
            _refuse_value(value, hint, name=name, origin=origin)
        return None
    if takes_list(inner) and not takes_text(inner) and isinstance(value, str | int | float) and origin != COMMAND_LINE:
        value = [value]
    value = _read_words(value, inner)
    if value is UNFIT:
        _refuse_value(given, hint, name=name, origin=origin)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=inner)
    try:
        return parser.parse_object({"value": value}).value
    except argparse.ArgumentError:
        _refuse_value(given, hint, name=name, origin=origin)


def _read_words(value: Any, hint: Any) -> Any:
    """Read numbers and YAML 1.1's words for true and false, which jsonargparse would read by that standard's surprises.

    010 is eight there and 1:30 ninety. A value of another type is returned unchanged; `UNFIT` is returned for a
    text that is none of these.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, tuple) and isinstance(value, list):
        items = [
            _read_words(item, args[0 if args[-1] is Ellipsis else min(i, len(args) - 1)])
            for i, item in enumerate(value)
        ]
        return UNFIT if any(item is UNFIT for item in items) else items
    if isinstance(value, Mapping) and any(typing.get_origin(option) is dict for option in _options(hint)):
        return {str(key): one for key, one in value.items()}  # YAML reads 1: 3 as a number's
    if origin is Literal and "no" in args and not {"true", "false"} & {str(arg) for arg in args}:
        if value is False or (isinstance(value, str) and WORDS_FOR_BOOL.get(value.lower()) is False):
            return "no"  # `false`, by someone who knows what YAML makes of `no`; or No, off
    if not isinstance(value, str):
        return value
    if hint is bool:
        return WORDS_FOR_BOOL.get(value.lower(), UNFIT)
    if hint is int:
        return int(value) if _WHOLE_NUMBER.fullmatch(value) else UNFIT
    if hint is float:
        return _float_or_unfit(value)
    return value


def _float_or_unfit(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return UNFIT


def python_value(value: Any, hint: Any, *, name: str) -> Any:
    """Check one value given in Python; nothing is read from text here.

    NumPy's numbers become Python's, a path text, one text a list of one, a tuple a list and a mapping the group of
    settings that the annotation names. All else comes back as it is.

    Args:
        value: What the caller gave.
        hint: The annotation.
        name: Dotted name, for the message.

    Raises:
        SettingsError: The value is not of that type, or a mapping holds an unknown name.
    """
    if dataclasses.is_dataclass(hint):
        return _python_group(value, typing.cast(type, hint), name)
    settled = _settle(value, hint)
    if settled is UNFIT:
        raise SettingsError(f"{name} must be {describe_type(hint)}, got {shorten(value)}")
    return settled


def _python_group(value: Any, group: type, name: str) -> Any:
    if isinstance(value, group):
        return value
    if not isinstance(value, Mapping):
        raise SettingsError(f"{name} must be {group.__name__}(...) or a dict of its settings, got {shorten(value)}")
    known = [field.name for field in dataclasses.fields(group)]
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            advice = f"; did you mean {close[0]!r}?" if close else "."
            raise SettingsError(f"{name} has no setting {shorten(key)}{advice} There are {', '.join(known)}")
    try:
        return group(**value)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from error


def _settle(value: Any, hint: Any) -> Any:
    """A value as the annotation wants it, or `UNFIT`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        found = (_settle(value, arg) for arg in args)
        return next((settled for settled in found if settled is not UNFIT), UNFIT)
    if origin is Literal:
        return value if type(value) in map(type, args) else UNFIT
    if origin in (list, tuple):
        return _settle_items(value, origin, args)
    if origin is dict:
        return _settle_mapping(value, *args)
    if hint in (int, float):
        return _settle_number(value, hint)
    if hint is bool and type(value).__name__ in ("bool", "bool_"):  # Python's and NumPy's
        return value if isinstance(value, bool) else bool(value)
    if hint in (str, Path) and isinstance(value, str | PurePath):
        return value if type(value) is hint else hint(value)
    return value if isinstance(value, type(None) if hint is None else hint) and hint is not bool else UNFIT


def _settle_number(value: Any, hint: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if hint is int else numbers.Real):
        return UNFIT
    plain: Any = int(value) if isinstance(value, numbers.Integral) else float(value)
    return value if type(value) is type(plain) else plain


def _settle_mapping(value: Any, key_hint: Any, hint: Any) -> Any:
    if not isinstance(value, Mapping):
        return UNFIT
    settled = {str(key) if key_hint is str else key: _settle(one, hint) for key, one in value.items()}
    if any(one is UNFIT for one in settled.values()):
        return UNFIT
    return value if type(value) is dict and value == settled and list(value) == list(settled) else settled


def _settle_items(value: Any, kind: type, args: tuple[Any, ...]) -> Any:
    if isinstance(value, str | PurePath):
        value = [value]
    if not isinstance(value, list | tuple):
        return UNFIT
    fixed = kind is tuple and args[-1] is not Ellipsis
    if fixed and len(value) != len(args):
        return UNFIT
    items = [_settle(item, hint) for item, hint in zip(value, args if fixed else args[:1] * len(value), strict=True)]
    if any(item is UNFIT for item in items):
        return UNFIT
    same = type(value) is kind and all(new is old for new, old in zip(items, value, strict=True))
    return value if same else kind(items)


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
    if type(None) not in _options(hint) or hint is type(None):
        return hint
    return Union[tuple(arg for arg in typing.get_args(hint) if arg is not type(None))]  # noqa: UP007


def takes_list(hint: Any) -> bool:
    """Whether the annotation is a list or a tuple, or allows one beside something else."""
    return any(typing.get_origin(option) in (list, tuple) for option in _options(hint))


def takes_text(hint: Any) -> bool:
    """Whether the annotation allows a plain text."""
    return str in _options(hint)


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


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
    if origin is dict:
        return f"a mapping of names, each {describe_type(args[1])}"
    return TYPE_WORDS.get(hint) or str(getattr(hint, "__name__", hint))


class _Shown(reprlib.Repr):
    """The values of settings, and of anything else the type: its `repr` may be a page, or take long."""

    def repr_int(self, value: int, level: int) -> str:
        """Show a number whose digits Python refuses to write by its size."""
        return repr(value) if abs(value) < 10**40 else f"a whole number of {value.bit_length():,} bits"

    def repr_instance(self, value: Any, level: int) -> str:
        """Show a number, a date or a path as it is, and an object by its type."""
        plain = value is None or isinstance(value, bool | bytes | numbers.Number | datetime.date | PurePath)
        return " ".join(repr(value).split()) if plain else f"<{type(value).__name__}>"


_SHOWN = _Shown()
_SHOWN.maxstring = _SHOWN.maxother = 200


def shorten(value: Any, limit: int = 60) -> str:
    """`repr` of a value on one line, control characters escaped, a long one truncated in the middle."""
    return cut_middle(_SHOWN.repr(value), limit)


def cut_middle(text: str, limit: int) -> str:
    """A text of at most `limit` characters: its beginning and its end."""
    return text if len(text) <= limit else f"{text[: (limit - 3) // 2]}...{text[-((limit - 2) // 2) :]}"


def to_plain(value: Any) -> Any:
    """Tuples -> lists and paths -> text, which is all that safe YAML knows."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def under_dotted_names(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(under_dotted_names(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def to_text(value: Any) -> str:
    """A value as one would type it: JSON for what is not text, which YAML reads as well."""
    return value if isinstance(value, str) and value else json.dumps(to_plain(value), ensure_ascii=False)
