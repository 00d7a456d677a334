"""Lines for a person: what a terminal would act on, or a console cannot show, is shown escaped.

Where nobody watches bars (a file, a pipe), what runs is reported by a line now and then (`working`).
"""

import contextlib
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

JOINERS = "\u200c\u200d"  # scripts and emoji are written with them
SECONDS_BETWEEN_LINES = 25.0  # 30 are promised; a thread of a busy process wakes late
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
    """Print a line, or a table of several, whatever the console is: one that is closed or missing gets nothing.

    Inside of `output_to` it goes there instead.
    """
    if send("log", text):
        return
    with contextlib.suppress(ValueError):  # a file that was closed; UnicodeEncodeError does not come, see VisibleStream
        print(text, file=VisibleStream(sys.stdout), flush=True)


def on_terminal() -> bool:
    """Return whether a person sees what is written to stderr, and wants to (see `output_to`)."""
    return (
        not _receivers and sys.stderr is not None and not getattr(sys.stderr, "closed", False) and sys.stderr.isatty()
    )


def in_notebook() -> bool:
    """Return whether this runs in a notebook's kernel: a person sees its output, though no stream is a terminal."""
    if _receivers:
        return False
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def is_watched() -> bool:
    """Return whether a person sees progress while it happens: on a terminal, or in a notebook."""
    return on_terminal() or in_notebook()


Receiver = Callable[[str, Any], None]  # of ("log", a line), ("epoch", its numbers), ...
_receivers: list[Receiver] = []


@contextlib.contextmanager
def output_to(receiver: Receiver) -> Iterator[None]:
    """Give what is printed while a program works to a function instead; bars are not shown meanwhile."""
    _receivers.append(receiver)
    try:
        yield
    finally:
        _receivers.remove(receiver)


def send(kind: str, value: Any) -> bool:
    """Give something to the receiver of `output_to`; False where there is none, and it has to be printed."""
    if _receivers:
        _receivers[-1](kind, value)
    return bool(_receivers)


# What runs


class Work:
    """Something that runs, and how far it is.

    Args:
        what: What it does, as a line begins: ``"reading train.csv"``.
        total: How much there is to do, or None where that is not known.
        unit: What is counted, in the plural.
        done: How much was done before.
        clock: Seconds; a test's own.
    """

    def __init__(
        self, what: str, *, total: int | None, unit: str, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.what, self.total, self.unit, self.done, self.note = what, total, unit, done, ""
        self._before, self._clock, self._began = done, clock, clock()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Note that more is done, and a word about it."""
        self.done += count
        self.note = note

    def line(self) -> str:
        """Return what is done, since when, and how long the rest takes at that speed."""
        seconds, now = self._clock() - self._began, self.done - self._before
        parts = [f"{clock_time(seconds)} so far"]
        if self.total and self.done:
            parts.insert(0, f"{self.done:,} of {self.total:,} {self.unit} ({min(self.done / self.total, 1):.0%})")
        elif self.done:
            parts.insert(0, f"{self.done:,} {self.unit}")
        if self.total and now > 0:
            parts.append(f"about {clock_time(max(self.total - self.done, 0) * seconds / now)} left")
        return f"{self.what}: {', '.join(parts)}" + (f"; {self.note}" if self.note else "")


def clock_time(seconds: float) -> str:
    """Return seconds as ``0:07``, ``12:30`` or ``2:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Running:
    """What runs in this process, outermost first, and the thread that reports the innermost."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.hidden = False
        self._ended = threading.Event()

    @contextlib.contextmanager
    def block(self, work: Work) -> Iterator[Work]:
        """Report a work while the block runs; the first block starts the thread and its end ends it."""
        self.works.append(work)
        if len(self.works) == 1:
            self.hidden, self._ended = False, threading.Event()
            if os.environ.get("RANK", "0") == "0":
                threading.Thread(target=self.report, args=(self._ended.wait,), daemon=True).start()
        try:
            yield work
        finally:
            self.works.remove(work)
            if not self.works:
                self._ended.set()

    def report(self, wait: Callable[[float], bool]) -> None:
        """Print a line each time that a wait is over, until it returns True."""
        while not wait(SECONDS_BETWEEN_LINES):
            shown = self.works[-1:]
            if shown and not self.hidden and not is_watched():
                print_line(shown[0].line())


_RUNNING = _Running()


def working(what: str, *, total: int | None = None, unit: str = "", done: int = 0) -> Any:
    """Return a block that reports what it does, by a line every 30 seconds, where nobody watches bars.

    Of blocks within blocks the innermost is reported; `Work`, which the block gets, has the arguments.
    """
    return _RUNNING.block(Work(what, total=total, unit=unit, done=done))


def reported(items: Iterable[Item], what: str, *, total: int | None = None, unit: str = "") -> Iterator[Item]:
    """Yield items, and report as `working` does how many were worked on."""
    with working(what, total=total, unit=unit) as work:
        for item in items:
            yield item
            work.advance()


def anything_works() -> bool:
    """Return whether there is a `working` around."""
    return bool(_RUNNING.works)


def hide_working() -> None:
    """Report nothing more until the outermost `working` that runs now has ended."""
    _RUNNING.hidden = True


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
