"""What a stage's settings must satisfy, checked when they are made: before any table is read or step is taken."""

import dataclasses
import difflib
import math
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from ulmfit_pipe.settings.values import python_value, shorten
from ulmfit_pipe.storage.temporary_files import no_place_for_a_file

SettingsT = TypeVar("SettingsT")

PATH_SETTINGS = frozenset(  # settings that are paths, or names of models; a list holds several
    "train_file test_file validation_file unlabelled_file input_file output_file output_dir model model_backward "
    "tokenizer_of label_names train_images test_images validation_images images weights vocab before after figure "
    "combine run_dir replay_file pool".split()
)
OUTPUT_SETTINGS = ("output_dir", "output_file", "figure")
MODEL_SETTINGS = ("model", "model_backward", "tokenizer_of")  # a built-in name comes before a folder without a model
LARGEST_SEED = 2**32 - 1  # NumPy's generators take no larger one
ADDED = "added"  # mark of a field that came when there were finished stages without it


def added_setting(default: Any) -> Any:
    """Declare a setting that came later: at its default it is not part of a stage's fingerprint.

    What was finished before there was such a setting is then still known as finished.
    """
    return dataclasses.field(default=default, metadata={ADDED: True})


def home_path(path: Any) -> Any:
    """Return a path with ``~`` or ``~user`` at its start replaced by that home folder, as text or `Path` as it came.

    Any other text, a model's name for example, and what is not a text or path, is returned as it is.

    Raises:
        ValueError: The path is empty or blank, there is no home folder, or a NUL character in it.
    """
    if isinstance(path, str) and not path.strip():
        raise ValueError(f"the name of a file, folder or model is empty, got {path!r:.60}; give one, or leave it out")
    if isinstance(path, str | os.PathLike) and "\0" in os.fspath(path):
        raise ValueError(f"a path cannot hold a NUL character, got {shorten(os.fspath(path))}; write it without")
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith("~"):
        return path
    text = os.path.expanduser(os.fspath(path))
    if text == "~" or text.startswith("~/"):
        raise ValueError(
            f"{text} has no meaning here: this user has no home folder (set HOME, or write the whole path)"
        )
    return text if isinstance(path, str) else Path(text)


def with_home_paths(settings_class: type[SettingsT]) -> type[SettingsT]:
    """Have a class of settings replace ``~`` in its paths, wherever they come from; a decorator below `dataclass`.

    An empty name is refused, which Python would take for the working directory; and an output that is a pipe or a
    device, before any work is done for it.
    """
    checked = getattr(settings_class, "__post_init__", lambda settings: None)

    def expand_and_check(settings: Any) -> None:
        """Replace ``~`` in each path, then do what the class itself does."""
        for name in PATH_SETTINGS & {field.name for field in dataclasses.fields(settings)}:
            value = getattr(settings, name)
            many = isinstance(value, list | tuple)
            if blank := [one for one in (value if many else [value]) if isinstance(one, str) and not one.strip()]:
                raise ValueError(f"{name} is empty, got {blank[0]!r:.60}; give a name, or leave {name} out")
            object.__setattr__(settings, name, type(value)(map(home_path, value)) if many else home_path(value))
            if name in OUTPUT_SETTINGS and isinstance(value, str) and (refusal := no_place_for_a_file(value)):
                raise ValueError(f"{name} {refusal}")
        checked(settings)

    settings_class.__post_init__ = expand_and_check  # type: ignore[attr-defined]
    return settings_class


def with_absolute_paths(settings: SettingsT) -> SettingsT:
    """Return settings whose paths hold in any folder: those of outputs, and of what is there; names stay names."""

    def absolute(name: str, path: Any) -> Any:
        if not isinstance(path, str):
            return path
        table, colon, part = path.rpartition(":")
        if colon and not os.path.exists(path) and os.path.exists(table):  # one split of a folder, or sheet of a file
            return f"{os.path.abspath(table)}:{part}"
        there = os.path.exists(path) or name in ("output_dir", "output_file")
        is_name = name in MODEL_SETTINGS and not os.path.isfile(os.path.join(str(path), "config.json"))
        return os.path.abspath(path) if there and not is_name else path

    paths: dict[str, Any] = {}
    for name in sorted(PATH_SETTINGS & {field.name for field in dataclasses.fields(typing.cast(Any, settings))}):
        value = getattr(settings, name)
        many = isinstance(value, list | tuple)
        paths[name] = type(value)(absolute(name, one) for one in value) if many else absolute(name, value)
    return dataclasses.replace(typing.cast(Any, settings), **paths)


def settings_that_count(settings: Any) -> dict[str, Any]:
    """Return the settings that a stage's result depends on: not the workers, and of the added ones those set."""
    names = {
        field.name
        for field in dataclasses.fields(settings)
        if field.name != "num_workers"
        and not (field.metadata.get(ADDED) and getattr(settings, field.name) == field.default)
    }
    return {name: value for name, value in dataclasses.asdict(settings).items() if name in names}


def check_types(settings: Any) -> None:
    """Raise unless every field holds a value of its annotated type, and one of its list where that is closed.

    Python's other ways to write a value are taken: see `python_value`, whose results replace the fields.

    Raises:
        ValueError: A value is of another type, or not on its field's list.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        given = getattr(settings, field.name)
        settled = python_value(given, hints[field.name], name=field.name)
        if settled is not given:
            object.__setattr__(settings, field.name, settled)  # the class is frozen, but not yet finished
    check_choices(settings)


def check_seed(settings: Any) -> None:
    """Raise unless the field `seed` is a number that every random generator takes.

    Raises:
        ValueError: It is not a whole number, negative, or too large for NumPy's generators.
    """
    seed = settings.seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be 0..2**32-1, got {shorten(seed)}; {_default_seed(settings)} is the default")


def _default_seed(settings: Any) -> Any:
    return next((field.default for field in dataclasses.fields(settings) if field.name == "seed"), 0)


def check_choices(settings: Any) -> None:
    """Raise unless every field with a closed list of values holds one of them.

    Raises:
        ValueError: A value is not on its field's list; the nearest one is named.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        allowed = _choices(hints[field.name])
        value = getattr(settings, field.name)
        if allowed and value not in allowed and not isinstance(value, Mapping):
            close = difflib.get_close_matches(str(value), [str(one) for one in allowed], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{field.name} must be one of {', '.join(map(str, allowed))}, got {value!r}{hint}")


def _choices(hint: Any) -> list[Any]:
    parts = [hint, *typing.get_args(hint)]
    found = [value for part in parts if typing.get_origin(part) is Literal for value in typing.get_args(part)]
    return [*found, None] if found and type(None) in parts else found


def check_whole(settings: Any, least: Mapping[str, int]) -> None:
    """Raise unless every named field is None or a whole number of at least its bound.

    Raises:
        ValueError: A field is below its bound or no whole number.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise ValueError(
                f"{name} must be a whole number of {bound} or more, got {value!r}{_advice(settings, name)}"
            )


def check_above_zero(settings: Any, *names: str) -> None:
    """Raise unless every named field is None or a finite number above 0.

    Raises:
        ValueError: A field is 0, negative, infinite or no number.
    """
    _check_numbers(settings, names, lambda value: value > 0, "above 0")


def check_zero_or_more(settings: Any, *names: str) -> None:
    """Raise unless every named field is None or a finite number of at least 0.

    Raises:
        ValueError: A field is negative, infinite or no number.
    """
    _check_numbers(settings, names, lambda value: value >= 0, "of 0 or more")


def _check_numbers(settings: Any, names: Sequence[str], holds: Callable[[float], bool], bound: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and holds(value)):
            raise ValueError(f"{name} must be a number {bound}, got {value!r}{_advice(settings, name)}")


def _advice(settings: Any, name: str) -> str:
    default = next(field.default for field in dataclasses.fields(settings) if field.name == name)
    return "; leave it out for the default" if default is None else f"; the default is {default!r}"
