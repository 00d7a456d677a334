"""Lines for a person: what a terminal would act on, or a console cannot show, is shown escaped."""

import contextlib
import os
import sys
import unicodedata
from typing import Any

JOINERS = "\u200c\u200d"  # scripts and emoji are written with them
ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, bidi overrides, halves of surrogate pairs, line separators


def visible(text: str) -> str:
    """Return a text with control characters, bidi overrides and the like escaped; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter in "\n\t" + JOINERS else _escaped(letter) for letter in text)


def in_one_line(name: object) -> str:
    """Return a name, of a label or a file, as a part of a line: as `visible`, line ends and tabs escaped too."""
    return visible(str(name)).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(letter: str) -> str:
    if unicodedata.category(letter) not in ESCAPED:
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def escaped(text: str) -> str:
    """Return a text with all that is not printable escaped, unusual spaces too: for names that may look alike."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def print_line(text: str) -> None:
    """Print a line, or a table of several, whatever the console is: one that is closed or missing gets nothing."""
    with contextlib.suppress(ValueError):  # a file that was closed; UnicodeEncodeError does not come, see VisibleStream
        print(text, file=VisibleStream(sys.stdout), flush=True)


def on_terminal() -> bool:
    """Return whether a person sees what is written to stderr."""
    return sys.stderr is not None and not getattr(sys.stderr, "closed", False) and sys.stderr.isatty()


def in_notebook() -> bool:
    """Return whether this runs in a notebook's kernel: a person sees its output, though no stream is a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def is_watched() -> bool:
    """Return whether a person sees progress while it happens: on a terminal, or in a notebook."""
    return on_terminal() or in_notebook()


class VisibleStream:
    """A stream that shows what its console cannot.

    Args:
        stream: Where it goes; None, as where a program was started without a console, takes nothing.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, with escapes for what is not visible or not in the console's encoding."""
        if self.stream is not None:
            try:
                self.stream.write(visible(text))
            except UnicodeEncodeError:
                encoding = self.stream.encoding or "ascii"
                self.stream.write(visible(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        if self.stream is not None:
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Be like the stream in all else."""
        return getattr(self.stream, name)


def open_missing_streams() -> None:
    """Give a program that was started without stdin, stdout or stderr empty ones.

    Otherwise the next file it opens would take that number, and get what libraries write to stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # until the end
