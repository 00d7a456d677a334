"""Progress bars of `datasets`, shown to a person and kept out of log files."""

import contextlib
from collections.abc import Iterator

import datasets

from ulmfit_pipe.console import is_watched


@contextlib.contextmanager
def bars_on_a_terminal_only() -> Iterator[None]:
    """Switch the bars of `datasets` off where nobody sees them, and on again afterwards if they were."""
    silence = not is_watched() and not datasets.are_progress_bars_disabled()
    if silence:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            datasets.enable_progress_bars()
