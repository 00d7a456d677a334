"""The bar of an epoch, and what it counts: tokens or rows."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

from accelerate import Accelerator
from tqdm import TqdmWarning, tqdm

from ulmfit_pipe.console import in_notebook, is_watched, working
from ulmfit_pipe.training.objectives import Batch

NOTEBOOK_DELAY = 2.0  # seconds; a notebook's bar without widgets leaves an empty line behind, so short epochs have none


def size_of(batch: Batch) -> int:
    """Count what a batch holds: real tokens where it has a mask, else positions of its targets, else rows."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return batch["targets"].numel() if "targets" in batch else len(next(iter(batch.values())))


def unit_of(batch: Batch) -> str:
    """Name what `size_of` counts."""
    return "tokens" if "attention_mask" in batch or "targets" in batch else "rows"


@contextlib.contextmanager
def progress_bar(
    steps: int, description: str, *, accelerator: Accelerator, progress: bool | None, done: int = 0
) -> Iterator[Callable[[str], None]]:
    """Give a function that moves the bar one step on, and takes a word to show beside it.

    Only the main process shows the bar, and only on a terminal or in a notebook unless asked; elsewhere there is a
    line now and then (`working`).
    """
    shown = is_watched() if progress is None else progress
    bar = _bar_class()(
        total=steps,
        initial=done,
        desc=description,
        disable=not (shown and accelerator.is_main_process),
        leave=False,
        delay=NOTEBOOK_DELAY if in_notebook() else 0,
        dynamic_ncols=True,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining} {postfix}",
    )
    with bar, working(description, total=steps, unit="steps", done=done) as work:

        def advance(note: str) -> None:
            """Note a step."""
            bar.set_postfix_str(note, refresh=False)
            bar.update()
            work.advance(note=note)

        yield advance


def _bar_class() -> type[tqdm]:
    """Return a notebook's own bar there, or a text bar where its widgets are not installed."""
    if not in_notebook():
        return tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # it advises to install the widgets
        from tqdm.auto import tqdm as chosen  # asks IPython when it is imported
    return chosen
