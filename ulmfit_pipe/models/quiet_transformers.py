"""Keep transformers' progress bars and load reports off the terminal while we load or save, and only then."""

import contextlib
from collections.abc import Iterator

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers inside the block; the caller's own choice of bars and verbosity holds again behind it."""
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
