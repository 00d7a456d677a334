"""Measures of the house: a file fits in one sitting, a function on one screen, and what is public explains itself."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.support.package_sources import PACKAGE_FILES, RECIPES, listed, nodes, shown, text, tree

MAX_FILE_LINES = 600  # 400 is the target; more is for one class or one idea that reads from top to bottom
MAX_FUNCTION_LINES = 60
MAX_FILES = 16  # of a folder, beside its sub-folders
RECIPE_LINES = range(40, 91)
# Benchmarks hold the other side's code too, which runs in an environment without the package.
LONG_RECIPES = {
    "benchmark_few_labels": 440,
    "benchmark_fastai": 360,
    "benchmark_trainer": 160,
    "benchmark_label_next": 130,
}

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def public_definitions(body: list[ast.stmt]) -> Iterator[FUNCTION | ast.ClassDef]:
    """Functions, classes and methods that a caller sees; what is inside a function is its own matter."""
    for node in body:
        if isinstance(node, FUNCTION | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body)


def test_the_rules_are_asked_of_every_file():
    assert len(PACKAGE_FILES) > 100
    assert len(RECIPES) > 10


def test_no_package_file_is_longer_than_600_lines():
    lines = {shown(path): len(text(path).splitlines()) for path in PACKAGE_FILES}
    offenders = [f"{path}: {count} lines" for path, count in lines.items() if count > MAX_FILE_LINES]
    assert not offenders, listed(offenders)


def test_no_folder_has_more_than_16_files():
    files = Counter(shown(path.parent) for path in PACKAGE_FILES)
    assert not {folder: count for folder, count in files.items() if count > MAX_FILES}


def test_a_recipe_has_35_to_90_lines():
    lines = {shown(path): len(text(path).splitlines()) for path in RECIPES}
    allowed = {path: range(35, LONG_RECIPES.get(Path(path).stem, 90) + 1) for path in lines}
    offenders = [f"{path}: {count} lines" for path, count in lines.items() if count not in allowed[path]]
    assert not offenders, listed(offenders)


def test_no_function_is_longer_than_60_lines():
    functions = [(path, node) for path in PACKAGE_FILES + RECIPES for node in nodes(path) if isinstance(node, FUNCTION)]
    lengths = {
        f"{shown(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1 for path, node in functions
    }
    offenders = [f"{name}: {count} lines" for name, count in lengths.items() if count > MAX_FUNCTION_LINES]
    assert not offenders, listed(offenders)


def is_overload(node):
    """Whether a definition only states types; the function behind it has the docstring."""
    return any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)


def test_everything_public_has_a_docstring():
    offenders = [f"{shown(path)}: the file itself" for path in PACKAGE_FILES if not ast.get_docstring(tree(path))]
    for path in PACKAGE_FILES:
        public = [node for node in public_definitions(tree(path).body) if not is_overload(node)]
        offenders += [f"{shown(path)}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)]
    assert not offenders, listed(offenders)


def test_nothing_outside_tests_relies_on_assert():
    found = [(path, node) for path in PACKAGE_FILES for node in nodes(path) if isinstance(node, ast.Assert)]
    assert not found, listed([f"{shown(path)}:{node.lineno}" for path, node in found])


def test_no_file_is_named_for_everything_and_nothing():
    found = [shown(path) for path in PACKAGE_FILES if path.stem in {"utils", "helpers", "common", "misc"}]
    assert not found, listed(found)
