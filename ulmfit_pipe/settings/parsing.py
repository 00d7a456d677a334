"""Settings: a frozen dataclass, filled from YAML files and the command line, and written back as YAML.

A stage describes its settings as a frozen dataclass; a nested dataclass is a group, whose fields get dotted names
(`--classifier.epochs 3`). Files come first (`--config a.yaml --config b.yaml`, later ones win), the command line wins
over them. Nothing is guessed: a name that does not exist, or is shortened, stops the run and names the nearest one; a
value of the wrong type stops it and names what is allowed (`values.py`). jsonargparse converts the values; names
and files are handled here, because it accepts prefixes of names, suggests nothing, and lets a file that is given after
a setting win over it.
"""

import argparse
import dataclasses
import difflib
import inspect
import os
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import docstring_parser
import yaml

from ulmfit_pipe.console import VisibleStream, in_one_line
from ulmfit_pipe.settings.guides import MORE_EPOCHS, Guide
from ulmfit_pipe.settings.values import (
    COMMAND_LINE,
    SettingsError,
    cut_middle,
    describe_type,
    read_value,
    shorten,
    takes_list,
    takes_text,
    to_plain,
    to_text,
)

SettingsT = TypeVar("SettingsT")

SUGGESTION_CUTOFF = 0.6  # difflib's own default for "close"
SUGGESTION_MARGIN = 0.15  # a name this much less alike than the best is noise beside it
MAX_SUGGESTIONS = 3
LONGEST_NAME = 80  # characters; no setting has such a name, and comparing takes the square of it
LARGEST_FILE = 2**18  # bytes of a settings file
FIRST_SETTINGS = "The settings that most people need"
MOST_VALUES = 200_000  # in a settings file, each alias (*name) counted with all that it stands for


@dataclass(frozen=True)
class SettingField:
    """One setting, as the command line and `--help` know it.

    Attributes:
        name: Dotted name, for example `classifier.epochs`.
        type: The annotation.
        default: The default, or `dataclasses.MISSING` for a required setting.
        doc: The field's text in the dataclass's docstring.
        section: First line of the docstring of the dataclass that holds the field; its heading in `--help`.
    """

    name: str
    type: Any
    default: Any
    doc: str
    section: str

    @property
    def required(self) -> bool:
        """Whether the setting must be given."""
        return self.default is MISSING


def parse_settings(
    settings_class: type[SettingsT],
    argv: Sequence[str] | None = None,
    *,
    description: str,
    prog: str | None = None,
    guide: Guide | None = None,
) -> SettingsT:
    """Read settings from the command line and the files it names.

    A list: repeat the name (`--text_column title --text_column body`) or write `--text_column '[title, body]'`.
    Any other setting is given once. `null` stands for None where None is allowed; true and false need writing out
    (`--backward true`).

    Args:
        settings_class: A frozen dataclass; nested dataclasses are groups.
        argv: The words after the program's name. None takes them from `sys.argv`, and then a mistake is printed and
            ends the program with exit code 2.
        description: One or two sentences for the top of `--help`.
        prog: Name of the program in messages; the script's name if None.
        guide: What `--help` shows first; None shows every setting, as `--help all` does.

    Raises:
        SettingsError: A mistake in an `argv` that was given.
        SystemExit: `--help` (code 0), or a mistake on the real command line (code 2).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--help" in words or "-h" in words:
        short = None if guide is None or "all" in words else guide.first
        nulls = {} if guide is None else guide.nulls
        _help_parser(settings_class, description, prog, first=short, nulls=nulls).print_help()
        if guide is not None:
            print(_help_end(guide, short=short is not None, settings_class=settings_class))
        raise SystemExit(0)
    try:
        return _parse_words(settings_class, words)
    except SettingsError as error:
        if argv is not None:
            raise
        print(f"{prog or Path(sys.argv[0]).name}: error: {in_one_line(error)}", file=VisibleStream(sys.stderr))
        raise SystemExit(2) from error


def load_settings(settings_class: type[SettingsT], path: str | Path) -> SettingsT:
    """Read settings from one YAML file; what it does not name takes its default.

    Raises:
        SettingsError: The file cannot be read, or holds an unknown or missing name or a value that is not allowed.
    """
    return _build(settings_class, _read_file(settings_class, str(path)))


def settings_to_yaml(settings: Any) -> str:
    """YAML text of all fields in their order, groups as mappings."""
    values = dataclasses.asdict(settings)
    ordered = {field.name: values[field.name] for field in ordered_fields(type(settings))}
    return yaml.safe_dump(to_plain(ordered), sort_keys=False, allow_unicode=True)


def list_settings(settings_class: type) -> list[SettingField]:
    """All settings of a class in order, those of groups with dotted names."""
    return list(_iterate_fields(settings_class, prefix="", defaults=MISSING))


def _parse_words(settings_class: type[SettingsT], words: list[str]) -> SettingsT:
    files, given = _split_words(settings_class, words)
    values: dict[str, Any] = {}
    for path in files:
        values.update(_read_file(settings_class, path))
    fields = {field.name: field for field in list_settings(settings_class)}
    for name, texts in given.items():
        values[name] = _read_field(fields[name], _join_texts(fields[name], texts), COMMAND_LINE)
    return _build(settings_class, values)


# The fields of a class


def _iterate_fields(settings_class: type, *, prefix: str, defaults: Any) -> Iterator[SettingField]:
    hints = typing.get_type_hints(settings_class)
    docs = _field_docs(settings_class)
    title = (settings_class.__doc__ or settings_class.__name__).strip().splitlines()[0].rstrip(".")
    for field in ordered_fields(settings_class):
        default = _default_of(field) if defaults is MISSING else getattr(defaults, field.name)
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _iterate_fields(typing.cast(type, hint), prefix=f"{prefix}{field.name}.", defaults=default)
        else:
            yield SettingField(prefix + field.name, hint, default, docs.get(field.name, ""), title)


def ordered_fields(settings_class: type) -> list[dataclasses.Field[Any]]:
    """A class's own fields, and after them those that it inherits, from the first base to the last."""
    declared = [name for each in settings_class.__mro__ for name in inspect.get_annotations(each)]
    return sorted(dataclasses.fields(settings_class), key=lambda field: declared.index(field.name))


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _field_docs(settings_class: type) -> dict[str, str]:
    """Field name -> its text in the `Attributes:` section, or the string that is below it."""
    docs: dict[str, str] = {}
    for each in reversed(settings_class.__mro__[:-1]):  # a class's own words last
        parsed = docstring_parser.parse_from_object(each)
        docs.update({item.arg_name: " ".join((item.description or "").split()) for item in parsed.params})
    return docs


def _group_names(fields: Mapping[str, SettingField]) -> set[str]:
    parts = [name.split(".") for name in fields]
    return {".".join(part[:depth]) for part in parts for depth in range(1, len(part))}


# Names


def _split_words(settings_class: type, words: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Command-line words -> (config files, setting -> the texts given to it)."""
    fields = {field.name: field for field in list_settings(settings_class)}
    files: list[str] = []
    given: dict[str, list[str]] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            raise SettingsError(
                f"{shorten(word)} follows no setting's name; write --name VALUE, again for each item of a list"
            )
        name, equals, text = word[2:].partition("=")
        if name != "config" and name not in fields:
            _refuse_name(name, {"config": None, **fields}, spelled=f"--{name}", dashes="--")
        if not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise SettingsError(
                    f"--{name} needs a value; write --{name} VALUE, or --{name}=VALUE if it begins with --"
                )
        if name == "config":
            files.append(text)
        else:
            given.setdefault(name, []).append(text)
    return files, given


def _refuse_name(name: str, fields: Mapping[str, Any], *, spelled: str, dashes: str = "") -> NoReturn:
    if name in _group_names(fields):
        example = next(field for field in fields if field.startswith(name + "."))
        raise SettingsError(f"{spelled} is a group of settings; set one of its fields, for example {dashes}{example}")
    nearest = [dashes + candidate for candidate in nearest_names(name, list(fields))]
    shown = repr(cut_middle(spelled, LONGEST_NAME))[1:-1]  # control characters escaped
    advice = (
        f"did you mean {' or '.join(nearest)}? (--help all lists all)" if nearest else "--help all lists all there are"
    )
    raise SettingsError(f"unknown setting {shown}; {advice}")


def nearest_names(name: str, known: Sequence[str]) -> list[str]:
    """The closest real names, best first, and none where none is close; the field counts more than its group."""
    if len(name) > LONGEST_NAME:
        return []
    typed_group, _, typed_field = name.rpartition(".")

    def likeness(candidate: str) -> float:
        group, _, field = candidate.rpartition(".")
        if candidate.startswith(name) or field.startswith(name):
            return 1.0
        if name.endswith(f"_{field}"):  # the Trainer's per_device_train_batch_size
            return 0.9
        if typed_group:
            return 0.8 * _ratio(typed_field, field) + 0.2 * _ratio(typed_group, group)
        return max(_ratio(name, field), _ratio(name, candidate))

    ranked = sorted(known, key=likeness, reverse=True)
    enough = max(SUGGESTION_CUTOFF, likeness(ranked[0]) - SUGGESTION_MARGIN)
    return [candidate for candidate in ranked if likeness(candidate) >= enough][:MAX_SUGGESTIONS]


def _ratio(typed: str, real: str) -> float:
    return difflib.SequenceMatcher(None, typed, real).ratio()


def _join_texts(field: SettingField, texts: list[str]) -> Any:
    """Texts given on the command line -> one value: for a list all of them."""
    if len(texts) > 1 and (not takes_list(field.type) or "null" in texts):
        shown = " and ".join(shorten(text, 40) for text in texts[:2])
        raise SettingsError(f"--{field.name} is given twice: {shown}; write it once")
    if takes_list(field.type) and texts[0].startswith("["):
        return _listed(texts[0]) if len(texts) == 1 else texts
    single = not takes_list(field.type) or texts[0] == "null" or (len(texts) == 1 and takes_text(field.type))
    return texts[0] if single else texts


def _listed(text: str) -> Any:
    """Return a list written as one text, `[title, body]`; any other value is returned unchanged and refused later."""
    try:
        return _load_yaml(text)
    except (yaml.YAMLError, SettingsError):
        return text


def _read_field(field: SettingField, value: Any, origin: str) -> Any:
    return read_value(value, field.type, name=field.name, origin=origin)


# Files


class _SettingsLoader(yaml.SafeLoader):
    """A safe loader that reads plain words as YAML 1.2 does, and refuses a name given twice.

    In PyYAML's YAML 1.1, `no` is false, 010 is eight, 1:30 is ninety and 2024-05-01 a date; here they are texts, which
    a setting of another type refuses. Of a name given twice YAML itself would silently take the second.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build the mapping after looking for a repeated key."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<" and first.setdefault(key.value, line) != line:
                raise SettingsError(
                    f"{cut_middle(key.value, LONGEST_NAME)} is given twice, the first time on line "
                    f"{first[key.value]}; keep one"
                )
        return super().construct_mapping(node, deep=deep)


_SettingsLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]{0,300})", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", "<<", "<"),
):
    _SettingsLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _load_yaml(text: str) -> Any:
    loader = _SettingsLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > MOST_VALUES:
            raise SettingsError(f"it stands for more than {MOST_VALUES:,} values; write out what its aliases (*) mean")
        return loader.construct_document(node)
    except RecursionError:
        raise SettingsError(
            "lists or groups are nested too deeply; settings have groups of one or two levels"
        ) from None
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, counted: dict[int, int]) -> int:
    """Count the values below a node, those behind an alias each time that it is used."""
    if id(node) not in counted:
        counted[id(node)] = MOST_VALUES + 1  # what a node that holds itself would never stop counting
        below = [] if isinstance(node, yaml.ScalarNode) else node.value
        pairs = (part for item in below for part in (item if isinstance(item, tuple) else (item,)))
        counted[id(node)] = 1 + sum(_count_values(part, counted) for part in pairs)
    return counted[id(node)]


def _read_file(settings_class: type, path: str) -> dict[str, Any]:
    """YAML file -> setting -> checked value, for the settings it names."""
    fields = {field.name: field for field in list_settings(settings_class)}
    try:
        content = _load_yaml(_read_text(path))
        if content is None:  # only comments
            return {}
        if not isinstance(content, dict):
            raise SettingsError(f"expected lines of the form 'name: value', got {shorten(content)}")
        flat = _flatten(content, fields, prefix="")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "it cannot be read")
        raise SettingsError(f"{path}: not valid YAML{place}: {cut_middle(str(problem), 200)}") from error
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return {name: _read_field(fields[name], value, path) for name, value in flat.items()}


def _read_text(path: str) -> str:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise SettingsError(f"more than {LARGEST_FILE:,} bytes, so it is not a file of settings")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except OSError as error:
        raise SettingsError(
            f"the settings file cannot be read: {error.strerror}; --config takes a YAML file"
        ) from error


def _flatten(content: Mapping[Any, Any], fields: Mapping[str, SettingField], *, prefix: str) -> dict[str, Any]:
    groups = _group_names(fields)
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in fields:
            flat[name] = value
        elif name not in groups:
            _refuse_name(name, fields, spelled=name)
        elif isinstance(value, dict):
            flat.update(_flatten(value, fields, prefix=f"{name}."))
        elif value is not None:  # None: a group whose lines are all commented out
            _refuse_name(name, fields, spelled=name)
    return flat


# The object and the help page


def _build(settings_class: type[SettingsT], values: dict[str, Any]) -> SettingsT:
    complete = {field.name: field.default for field in list_settings(settings_class)} | values
    missing = [f"--{name}" for name, value in complete.items() if value is MISSING]
    if missing:
        raise SettingsError(f"required and not given: {', '.join(missing)}; give it, or name it in a file for --config")
    return _build_group(settings_class, complete, prefix="")


def _build_group(settings_class: Any, values: Mapping[str, Any], *, prefix: str) -> Any:
    hints = typing.get_type_hints(settings_class)
    arguments = {}
    for field in dataclasses.fields(settings_class):
        name, hint = prefix + field.name, hints[field.name]
        grouped = dataclasses.is_dataclass(hint)
        arguments[field.name] = _build_group(hint, values, prefix=f"{name}.") if grouped else values[name]
    try:
        return settings_class(**arguments)
    except SettingsError:
        raise
    except ValueError as error:  # a class's own __post_init__
        raise SettingsError(f"{prefix.rstrip('.') or 'settings'}: {error}") from error


def _help_parser(
    settings_class: type, description: str, prog: str | None, *, first: Sequence[str] | None, nulls: Mapping[str, str]
) -> argparse.ArgumentParser:
    """Return what prints the help: of the settings that are named first, or of all in their groups."""
    usage = "%(prog)s [--config FILE ...] [--name VALUE ...]"
    parser = argparse.ArgumentParser(prog=prog, description=description, usage=usage)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; may be repeated, later ones win")
    sections: dict[str, Any] = {}
    fields = {field.name: field for field in list_settings(settings_class)}
    for field in fields.values() if first is None else [fields[name] for name in first]:
        group = field.name.rpartition(".")[0] if first is None else ""
        if group not in sections:
            sections[group] = parser.add_argument_group(field.section if first is None else FIRST_SETTINGS)
        default = "required" if field.required else f"default: {to_text(field.default)}"
        if field.default is None and field.name in nulls:
            default += f", which is {nulls[field.name]}"
            default += "; more where there is less data" if field.name in MORE_EPOCHS else ""
        again = "; repeat the name for each" if takes_list(field.type) else ""
        text = f"{field.doc} ({describe_type(field.type)}{again}; {default})".strip().replace("%", "%%")
        sections[group].add_argument(f"--{field.name}", metavar="VALUE", help=text)
    return parser


def _help_end(guide: Guide, *, short: bool, settings_class: type) -> str:
    """Return example and files, and how to see what was left out."""
    flags = "--quiet prints errors and the result only, --json one JSON object in a line."
    lines = ["", "example:", f"  {guide.example}", "writes:", f"  {guide.writes}", "", flags]
    if short:
        count = len(list_settings(settings_class)) - len(guide.first)
        lines += [f"--help all lists the other {count} settings too, in their groups."]
    return "\n".join(lines)
