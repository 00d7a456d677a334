"""What a pickle would run, found from its instructions: they are listed, and nothing is run or loaded.

torch's reader of plain tensors stops at the first instruction it does not know, often before it has seen a name; so
that a refusal can say which class or function is in the file, the names are read here. What would keep a reader
busy for hours or fill its memory is found as well, before anything reads the file.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_BYTES = 64_000_000  # read of a file: names are beside the tensors, not in them
MOST_INSTRUCTIONS = 500_000  # listed of a file; tensors by name take some thousands, 60,000 words up to 180,000
MOST_IN_TUPLE = 1000  # values in a tuple and in the tuples in it; the tuples of a tensor hold about 15
PICKLES_OF_OLD_FILE = 5  # that torch wrote one after the other before it wrote zip files; raw numbers follow
ZIP_START = b"PK\x03\x04"  # by which torch's reader, too, recognizes its zip files
_STRINGS = ("UNICODE", "STRING")  # in the name of each instruction that pushes a string
_CALLABLE = object()  # stands for a class or function


@dataclass(frozen=True)
class PickleNames:
    """What is in a file of pickles.

    Attributes:
        names: `module.name` of each class or function, in the file's order, once each.
        protocol: Version of the pickle's language; the oldest that has all its instructions, where it is not recorded.
        odd: What no file of tensors has and a reader could hang or crash on; the names stop there.
    """

    names: list[str]
    protocol: int
    odd: str | None = None


class _OddError(ValueError):
    """The pickle does what no file of tensors does; the message says what."""


def names_in_file(path: Path | str) -> PickleNames | None:
    """List the classes and functions that a pickle, or torch's file of pickles, names; None if it holds no pickle.

    Raises:
        OSError: It cannot be opened.
    """
    found: list[PickleNames] = []
    budget = iter(range(MOST_INSTRUCTIONS))  # of all pickles together
    for content in _pickles_in(Path(path)):
        stream = io.BytesIO(content)
        for _ in range(PICKLES_OF_OLD_FILE):
            if (names := _list_names(stream, budget)) is None:
                break
            found.append(names)
    if not found:
        return None
    every = dict.fromkeys(name for part in found for name in part.names)
    odd = next((part.odd for part in found if part.odd), None)
    return PickleNames(list(every), max(part.protocol for part in found), odd)


def odd_archive(path: Path | str) -> str | None:
    """Return how a zip file differs from those of `torch.save`; None for one of these, and for other files.

    Raises:
        OSError: It cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) != ZIP_START:
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError:
        raise
    except Exception as error:  # torch's reader may see a file in it all the same
        return f"it is not a file of tensors by name, or was cut short ({shown_text(str(error))})"
    counts: dict[str, int] = {}
    for entry in entries:
        name = entry.filename.lower()  # torch finds an entry in either case
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            return f"its entry {shown(entry.filename)} is there twice in it, and which one is meant is unknown"
        if entry.compress_type != zipfile.ZIP_STORED:
            return f"its entry {shown(entry.filename)} is compressed, and torch.save compresses nothing"
    claimed, size = sum(entry.file_size for entry in entries), path.stat().st_size
    return f"its entries claim {claimed:,} bytes, and it has {size:,}" if claimed > size else None


def _pickles_in(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) != ZIP_START:
            file.seek(0)
            yield file.read(MOST_BYTES)
            return
    left = MOST_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.filename.lower().endswith(".pkl"):
                    with archive.open(part) as entry:
                        content = entry.read(left)
                    left -= len(content)
                    yield content
    except OSError:
        raise
    except Exception:  # a broken zip file fails in many ways; what was seen before that stands
        return


def _list_names(stream: io.BytesIO, budget: Iterator[int]) -> PickleNames | None:
    """List what the next pickle of a file names; None if it is not a pickle, by its first and last opcodes."""
    names: list[str] = []
    protocol, kind, odd = 0, "", None
    is_pickle = False
    value: Any
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for (instruction, value, _), _ in zip(pickletools.genops(stream), budget, strict=False):
            kind = instruction.name
            is_pickle = is_pickle or kind in ("PROTO", "STOP")
            protocol = max(protocol, value if kind == "PROTO" else instruction.proto)
            if kind in ("GLOBAL", "INST"):
                names.append(shown(value.replace(" ", ".")))
            elif kind == "STACK_GLOBAL":
                names.append(shown(".".join(str(part)[:80] for part in stack[-2:])))
            _follow(instruction, value, stack, memo)
        if kind != "STOP":
            odd = f"it has more than {MOST_INSTRUCTIONS:,} instructions, and tensors by name take some thousands"
    except _OddError as error:
        odd = str(error)
    except Exception:  # a pickle that was cut short fails in many ways; what was seen before that stands
        pass
    return PickleNames(names, protocol, odd) if is_pickle or odd else None


def _follow(instruction: pickletools.OpcodeInfo, value: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Do to the stack what an instruction does to it; see `_outcome` for what is there instead of the values.

    Raises:
        _OddError: A tuple holds too much, or something is called that is not a class or function.
    """
    kind = instruction.name
    if "GET" in kind:
        stack.append(memo[value])
    elif kind == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif "PUT" in kind:
        memo[value] = stack[-1]
    else:
        taken = _take(stack, instruction.stack_before)
        if kind in ("REDUCE", "NEWOBJ", "NEWOBJ_EX") and taken[0] is not _CALLABLE:
            # torch writes the whole of what is called into its error, and lists in lists can be of any length
            raise _OddError("it calls something that is not a class or function")
        for pushed in instruction.stack_after:
            is_mark = pushed is pickletools.markobject
            stack.append(pushed if is_mark else taken[0] if kind == "DUP" else _outcome(kind, value, taken))


def _take(stack: list[Any], before: list[Any]) -> list[Any]:
    """Take what an instruction asks for off the stack: a number of values, and those back to the last mark."""
    above: list[Any] = []
    if pickletools.stackslice in before:
        before = before[: before.index(pickletools.markobject)]
        while (value := stack.pop()) is not pickletools.markobject:
            above.append(value)
    below = [stack.pop() for _ in before]
    return below[::-1] + above[::-1]


def _outcome(kind: str, value: Any, taken: list[Any]) -> Any:
    """Give a string as it is, `_CALLABLE` for a name, and for anything else how many values a hash of it reads."""
    if any(word in kind for word in _STRINGS):
        return value
    if kind in ("GLOBAL", "STACK_GLOBAL"):
        return _CALLABLE
    if not kind.startswith("TUPLE"):
        return 1
    size = 1 + sum(part if isinstance(part, int) else 1 for part in taken)
    if size > MOST_IN_TUPLE:
        raise _OddError(f"a tuple in it holds more than {MOST_IN_TUPLE:,} values, those of the tuples in it counted")
    return size


def shown(name: str) -> str:
    """Make a name fit for a message: a file can hold control characters, and a long one fills a screen."""
    return re.sub(r"[^\w.<>]", "?", name[:80])


def shown_text(text: str) -> str:
    """Make a text fit for a message, as `shown` a name."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text[:2000].split())[:160])
