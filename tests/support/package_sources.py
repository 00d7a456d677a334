"""The Python files of the package and of the recipes, each read and parsed once for all rules about them."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_MODELS = ROOT / "ulmfit_pipe" / "models" / "pretrained"  # code there is a copy, as in every saved folder
PACKAGE_FILES = sorted(path for path in (ROOT / "ulmfit_pipe").rglob("*.py") if OF_MODELS not in path.parents)
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(text(path))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


def listed(offenders: list[str]) -> str:
    """All of them, one a line: pytest's own comparison of lists leaves the most out."""
    return "\n" + "\n".join(offenders)
