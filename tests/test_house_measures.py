"""Measures of the house: a file fits in one sitting, a function on one screen, and what is public explains itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 600  # 400 is the target; more is for one class or one idea that reads from top to bottom
MAX_FUNCTION_LINES = 60
RECIPE_LINES = range(40, 91)

PACKAGE_FILES = sorted((ROOT / "ulmfit_pipe").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> list[FUNCTION]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]


def public_definitions(body: list[ast.stmt]) -> Iterator[FUNCTION | ast.ClassDef]:
    """Functions, classes and methods that a caller sees; what is inside a function is its own matter."""
    for node in body:
        if isinstance(node, FUNCTION | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body)


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=shown)
def test_no_package_file_is_longer_than_600_lines(path):
    assert line_count(path) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", RECIPES, ids=shown)
def test_a_recipe_has_40_to_90_lines(path):
    assert line_count(path) in RECIPE_LINES


@pytest.mark.parametrize("path", PACKAGE_FILES + RECIPES, ids=shown)
def test_no_function_is_longer_than_60_lines(path):
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path)}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=shown)
def test_everything_public_has_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the file itself"
    assert [node.name for node in public_definitions(tree.body) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=shown)
def test_nothing_outside_tests_relies_on_assert(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=shown)
def test_no_file_is_named_for_everything_and_nothing(path):
    assert path.stem not in {"utils", "helpers", "common", "misc"}
