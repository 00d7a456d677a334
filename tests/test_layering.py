"""Imports go down only: studies, tools -> text, images -> stages -> training, models, data -> settings -> storage."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.package_sources import PACKAGE_FILES, RECIPES, ROOT, listed, nodes, shown, tree

# Room -> level. A file imports from lower levels, or from its own room; rooms of one level know nothing of one another.
LEVELS = {
    "__main__": 8,
    "cli": 7,
    "program": 6,
    **dict.fromkeys(("studies", "tools", "sklearn"), 5),
    **dict.fromkeys(("text", "images"), 4),
    "stages": 3,
    **dict.fromkeys(("training", "models", "data"), 2),
    "settings": 1,
    **dict.fromkeys(("storage", "reports"), 0),
    **dict.fromkeys(("console", "errors"), -1),
}
WITHOUT_SETTINGS = {"training", "models", "data"}  # components take named numbers
# Room -> libraries that its files do not import, at the top or inside a function.
FOREIGN = {
    "training": {"transformers", "datasets", "tokenizers", "torchvision", "PIL"},
    "models": {"datasets", "accelerate"},
    "data": {"accelerate"},
    "settings": {"torch", "transformers", "datasets", "accelerate"},
    "storage": {"transformers", "datasets", "accelerate"},
    "reports": {"torch", "transformers", "datasets", "accelerate"},
}
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RESTRICTED_READER = ROOT / "ulmfit_pipe" / "tools" / "fastai" / "safe_pickles.py"  # fastai's files are pickles


def imported_names(tree: ast.Module) -> set[str]:
    """Dotted names that a file imports, wherever in it; `from a.b import c` gives `a.b` and `a.b.c`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def imports_from(names: set[str], packages: set[str]) -> set[str]:
    return {name for name in names if any(name == package or name.startswith(f"{package}.") for package in packages)}


def room_of(name: str) -> str:
    """Return the folder or file just below the package that a dotted name is in; "" for the package itself."""
    return f"{name}.".split(".")[1]


def imports_from_above(room: str, names: set[str]) -> set[str]:
    """Return which of the names a file of a room imports is above it, beside it, or foreign to it."""
    ours = {name: room_of(name) for name in imports_from(names, {"ulmfit_pipe"}) if name != "ulmfit_pipe"}
    wrong = {name for name, other in ours.items() if other != room and LEVELS.get(other, 99) >= LEVELS[room]}
    if room in WITHOUT_SETTINGS:
        wrong |= {name for name, other in ours.items() if other == "settings"}
    return wrong | imports_from(names, FOREIGN.get(room, set()) | {"recipes", "tests"})


@cache
def calls_in(path: Path) -> tuple[tuple[str, ast.Call], ...]:
    """Every call of a file, with what it calls as written there."""
    return tuple((ast.unparse(node.func), node) for node in nodes(path) if isinstance(node, ast.Call))


def test_a_file_imports_only_from_below():
    offenders = []
    for path in PACKAGE_FILES:
        names = imported_names(tree(path))
        room = room_of(module_name(path))
        if room:
            offenders += [f"{shown(path)} imports {name}" for name in sorted(imports_from_above(room, names))]
        offenders += [f"{shown(path)}: absolute imports only, not {name}" for name in names if name.startswith(".")]
    assert not offenders, listed(offenders)


def test_every_room_has_a_level():
    assert {room_of(module_name(path)) for path in PACKAGE_FILES} - {""} == {*LEVELS}


def test_a_folder_imports_nothing_by_itself():
    initial = {path for path in PACKAGE_FILES if path.name == "__init__.py" and len(tree(path).body) > 1}
    assert {shown(path) for path in initial} == {
        "ulmfit_pipe/__init__.py",  # public names, lazy
        "ulmfit_pipe/stages/__init__.py",  # registers the Auto classes
    }


def test_nothing_unpickles():
    offenders = []
    for path in sorted({*PACKAGE_FILES, *RECIPES} - {RESTRICTED_READER}):
        names = imported_names(tree(path))
        calls = {name for name, _ in calls_in(path)} & {"torch.load", "pandas.read_pickle", "pd.read_pickle"}
        found = imports_from(names, UNPICKLING) | calls | names & {"torch.load"}
        offenders += [f"{shown(path)}: {name}" for name in sorted(found)]
    assert not offenders, listed(offenders)


def test_the_reader_of_fastais_files_unpickles_nothing_but_plain_data():
    assert imports_from(imported_names(tree(RESTRICTED_READER)), UNPICKLING) == {"pickle"}
    loads = [ast.unparse(call) for name, call in calls_in(RESTRICTED_READER) if name == "torch.load"]
    assert loads == ["torch.load(file, map_location='cpu', weights_only=True)"]
    used = {ast.unparse(node) for node in nodes(RESTRICTED_READER) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {
        "pickle._Unpickler",
        "pickle._Unpickler.dispatch",
        "pickle.dump",
    }


def test_a_recipe_imports_public_names_only_and_no_other_recipe():
    offenders = []
    for path in RECIPES:
        names = imported_names(tree(path))
        ours = imports_from(names, {"ulmfit_pipe"})
        private = {name for name in ours if any(part.startswith("_") for part in name.split("."))}
        recipes = imports_from(names, {"recipes"} | {recipe.stem for recipe in RECIPES})
        offenders += [f"{shown(path)} imports {name}" for name in sorted(private | recipes)]
    assert not offenders, listed(offenders)


def test_a_model_is_wrapped_in_one_place_and_an_accelerator_made_in_one():
    places: dict[str, set[str]] = {r"accelerator\.prepare(_\w+)?": set(), "Accelerator": set()}
    for path in PACKAGE_FILES:
        for name, found in places.items():
            if any(re.fullmatch(rf"(.+\.)?{name}", call) for call, _ in calls_in(path)):
                found.add(shown(path))
    assert list(places.values()) == [
        {"ulmfit_pipe/training/compute/wrapping.py"},
        {"ulmfit_pipe/training/distributed/launch.py"},
    ]


def test_the_check_sees_an_import_wherever_it_stands():
    tree = ast.parse("def f():\n    from ulmfit_pipe.data.labels import list_labels\n    import torch.nn\n")
    names = imported_names(tree)
    assert imports_from_above("training", names) == {
        "ulmfit_pipe.data.labels",
        "ulmfit_pipe.data.labels.list_labels",
    }
    assert imports_from_above("stages", names) == set()
    assert imports_from_above("reports", names) >= {"torch.nn", "ulmfit_pipe.data.labels"}
    assert not imports_from({"torchmetrics"}, {"torch"})


def test_the_check_knows_what_is_above_what():
    for room, text, wrong in [
        ("training", "from ulmfit_pipe import data", {"ulmfit_pipe.data"}),
        ("training", "import ulmfit_pipe.settings.text", {"ulmfit_pipe.settings.text"}),
        ("stages", "from ulmfit_pipe.text import tables", {"ulmfit_pipe.text", "ulmfit_pipe.text.tables"}),
        ("images", "from ulmfit_pipe.text import tables", {"ulmfit_pipe.text", "ulmfit_pipe.text.tables"}),
        ("images", "from ulmfit_pipe import TextPipeline", {"ulmfit_pipe.TextPipeline"}),
        ("tools", "import ulmfit_pipe.studies.demo", {"ulmfit_pipe.studies.demo"}),
        ("text", "from ulmfit_pipe.settings.text import ClassifierSettings", set()),
        ("studies", "from ulmfit_pipe.images import tables\nimport ulmfit_pipe.studies.demo", set()),
        ("reports", "from ulmfit_pipe.console import in_one_line", set()),
    ]:
        assert imports_from_above(room, imported_names(ast.parse(text))) == wrong, (room, text)


OF_OTHERS = {"SetFitModel.from_pretrained", "StaticModel.from_pretrained"}  # in an environment without this package
LOADERS = {"from_pretrained", "get_image_processor_dict", "get_config_dict", "from_config"}


def loading_calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Calls of transformers' loaders, of what builds a network from a configuration as well: it may name code."""
    calls = [(name, node) for name, node in calls_in(path) if getattr(node.func, "attr", None) in LOADERS]
    return [(name, node) for name, node in calls if name not in OF_OTHERS]


def test_transformers_loads_nothing_without_being_told_whether_code_may_run():
    offenders = []
    for path in sorted({*PACKAGE_FILES, *RECIPES}):
        calls = loading_calls(path)
        pretrained = [name for name, _ in calls if name.endswith(".from_pretrained")]
        if pretrained != (["kind.from_pretrained"] if path.name == "pretrained_files.py" else []):
            offenders.append(f"{shown(path)}: {pretrained}; load_pretrained is the one way to it")
        untold = {name for name, node in calls if "trust_remote_code" not in {word.arg for word in node.keywords}}
        untold -= {"BitImageProcessorPil.get_image_processor_dict"}  # that reads a JSON file, after load_pretrained
        offenders += [f"{shown(path)}: {name} without trust_remote_code" for name in sorted(untold)]
        attributes = [node for node in nodes(path) if isinstance(node, ast.Attribute) and node.attr in LOADERS]
        references = [node for node in attributes if ast.unparse(node) not in OF_OTHERS]
        if len(references) != len(calls):
            offenders.append(f"{shown(path)}: a loader is called where it is named, not handed on")
    assert not offenders, listed(offenders)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(module: ast.Module, modules: set[str]) -> set[str]:
    """Which of the modules a file imports: at its top, inside a function or under TYPE_CHECKING.

    A name counts as an import of the file that holds it: `from a.b import c` imports `a.b.c` where that is a file, and
    `a.b` where it is not.
    """
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in names}
    return found & modules


def reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    """What a file imports, what that imports, and so on; the file itself only where a circle leads back to it."""
    seen: set[str] = set()
    waiting = [*imports[start]]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports[name]
    return seen


def circles(imports: dict[str, set[str]]) -> Iterator[dict[str, set[str]]]:
    """Each largest set of files that all reach one another, as file -> the files of the set that it imports."""
    below = {name: reached(name, imports) for name in imports}
    done: set[str] = set()
    for name in sorted(imports):
        if name in below[name] and name not in done:
            members = {other for other in below[name] if name in below[other]}
            done |= members
            yield {member: imports[member] & members for member in sorted(members)}


def test_files_import_one_another_in_no_circle():
    modules = {module_name(path): path for path in PACKAGE_FILES}
    imports = {name: imported_modules(tree(path), {*modules}) for name, path in modules.items()}
    lines = [
        f"{name} imports {', '.join(sorted(inside))}" for circle in circles(imports) for name, inside in circle.items()
    ]
    advice = "a type or function that two sides need belongs below both"
    assert not lines, listed([f"these files import one another in a circle; {advice}:", *lines])


def test_the_circle_check_sees_an_import_wherever_it_stands():
    texts = {
        "p.top": "from p.inside import f",
        "p.inside": "def f():\n    import p.typed",
        "p.typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import top",
        "p.above": "import p.top\nfrom p import other_name",
        "p": "",
    }
    imports = {name: imported_modules(ast.parse(text), {*texts}) for name, text in texts.items()}
    assert imports["p.above"] == {"p.top", "p"}
    assert list(circles(imports)) == [{"p.inside": {"p.typed"}, "p.top": {"p.inside"}, "p.typed": {"p.top"}}]
    assert list(circles({**imports, "p.inside": set()})) == []
