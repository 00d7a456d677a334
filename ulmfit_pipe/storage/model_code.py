"""The Python code that a saved model's folder holds, so that transformers loads it where this package is missing.

A module and all that it imports from the package become flat files with relative imports, which transformers' loader of
remote code follows (``trust_remote_code=True``). In a process that has imported the package nothing of it is executed.
"""

import os
import re
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

HEADER = "# From ulmfit_pipe: transformers reads this folder with it where trust_remote_code=True.\n"
_OURS = re.compile(r"^from (ulmfit_pipe\.[\w.]+|\.\w+) import ", re.MULTILINE)


def code_of(module: str) -> dict[str, str]:
    """Return the text of a module's file and of every file that it needs, by the name of the flat copy.

    Args:
        module: Dotted name of a module of the package, or of such a copy that transformers has imported.

    Returns:
        File name -> text; empty where Python has no source of the module.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = f"{name.rpartition('.')[2]}.py"
        if file in found:
            continue
        spec: Any = find_spec(name)
        text = spec.loader.get_source(name)
        if text is None:  # a frozen program, or .pyc files alone
            return {}
        waiting += [resolve_name(other, spec.parent) for other in _OURS.findall(text)]
        text = _OURS.sub(lambda match: f"from .{match[1].rpartition('.')[2]} import ", text)
        found[file] = HEADER + text.removeprefix(HEADER)
    return found


def save_code(folder: str | os.PathLike[str], module: str) -> list[str]:
    """Write the files of `code_of` into a model's folder; return their paths."""
    paths = []
    for name, text in sorted(code_of(module).items()):
        paths.append(os.path.join(folder, name))
        Path(paths[-1]).write_text(text, encoding="utf-8", newline="\n")
    return paths


def is_copied_code(file: Path) -> bool:
    """Tell whether a file of a model's folder is one that `save_code` wrote."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline() == HEADER
