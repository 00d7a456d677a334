"""Keep transformers' progress bars and load reports off the terminal while we load or save, and only then.

What transformers switches while it loads (no initial values, the default dtype) holds for the whole process: a model
that another thread builds or loads meanwhile would lack weights. So one thread at a time does either.
"""

import contextlib
import threading
from collections.abc import Iterator

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging

_ONE_BUILDS = threading.RLock()  # held by the thread that loads, saves or builds a model


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers inside the block; the caller's progress bars and verbosity are restored after it."""
    with _ONE_BUILDS, _silenced():
        yield


@contextlib.contextmanager
def one_builds() -> Iterator[None]:
    """Let no other thread load or build a model during the block."""
    with _ONE_BUILDS:
        yield


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    bars, hub_bars_off = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    verbosity = logging.get_verbosity()
    if bars:
        logging.disable_progress_bar()
    logging.set_verbosity(max(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
            if hub_bars_off:
                disable_progress_bars()
