"""What a pickle would run, told from its instructions: they are listed, and nothing is run or loaded.

torch's reader of plain tensors stops at the first instruction it does not know, often before it has seen a name; so
that a refusal can say which class or function stands in the file, the names are read here.
"""

import io
import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_BYTES = 64_000_000  # read of a file: names stand beside the tensors, not in them
PICKLES_OF_OLD_FILE = 5  # that torch wrote one after the other before it wrote zip files; raw numbers follow
_STRINGS = ("UNICODE", "STRING")  # in the name of each instruction that pushes a string


@dataclass(frozen=True)
class PickleNames:
    """What stands in a file of pickles.

    Attributes:
        names: `module.name` of each class or function, in the file's order, once each.
        protocol: Version of the pickle's language; the oldest that has all its instructions, where it does not tell.
    """

    names: list[str]
    protocol: int


def names_in_file(path: Path | str) -> PickleNames | None:
    """List the classes and functions that a pickle, or torch's file of pickles, names; None if it holds no pickle.

    Raises:
        OSError: It cannot be opened.
    """
    found: list[PickleNames] = []
    for content in _pickles_in(Path(path)):
        stream = io.BytesIO(content)
        for _ in range(PICKLES_OF_OLD_FILE):
            if (names := _list_names(stream)) is None:
                break
            found.append(names)
    if not found:
        return None
    every = dict.fromkeys(name for part in found for name in part.names)
    return PickleNames(list(every), max(part.protocol for part in found))


def _pickles_in(path: Path) -> list[bytes]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return [file.read(MOST_BYTES)]
    contents = []
    with zipfile.ZipFile(path) as archive:
        for part in archive.namelist():
            if part.endswith(".pkl"):
                with archive.open(part) as file:
                    contents.append(file.read(MOST_BYTES))
    return contents


def _list_names(stream: io.BytesIO) -> PickleNames | None:
    """List what the next pickle of a file names; None if it is none: it neither says that it is one nor ends as one."""
    names: list[str] = []
    protocol, is_pickle = 0, False
    value: Any
    pushed: list[Any] = []  # strings as they are, None for anything else: STACK_GLOBAL takes the last two
    memo: dict[int, Any] = {}
    try:
        for instruction, value, _ in pickletools.genops(stream):
            kind = instruction.name
            is_pickle = is_pickle or kind in ("PROTO", "STOP")
            protocol = max(protocol, value if kind == "PROTO" else instruction.proto)
            if kind in ("GLOBAL", "INST"):
                names.append(_shown(value.replace(" ", ".")))
            elif kind == "STACK_GLOBAL":
                names.append(_shown(".".join(str(part) for part in pushed)))
            if kind == "MEMOIZE":
                memo[len(memo)] = pushed[-1] if pushed else None
            elif "PUT" in kind:
                memo[value] = pushed[-1] if pushed else None
            elif kind not in ("PROTO", "FRAME"):
                pushed.append(memo.get(value) if "GET" in kind else value if _is_string(kind) else None)
                del pushed[:-2]
    except Exception:  # a pickle that was cut short fails in many ways; what was seen before that stands
        pass
    return PickleNames(names, protocol) if is_pickle else None


def _is_string(kind: str) -> bool:
    return any(word in kind for word in _STRINGS)


def _shown(name: str) -> str:
    """A name as it may stand in a message: a file can hold control characters, and a long one fills a screen."""
    return re.sub(r"[^\w.<>]", "?", name)[:80]
