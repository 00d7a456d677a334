"""The bar of an epoch, and what it counts: tokens or rows."""

from accelerate import Accelerator
from tqdm import tqdm

from ulmfit_pipe.console import on_terminal
from ulmfit_pipe.training.objectives import Batch


def size_of(batch: Batch) -> int:
    """Count what a batch holds: real tokens where it has a mask, else positions of its targets, else rows."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return batch["targets"].numel() if "targets" in batch else len(next(iter(batch.values())))


def unit_of(batch: Batch) -> str:
    """Name what `size_of` counts."""
    return "tokens" if "attention_mask" in batch or "targets" in batch else "rows"


def progress_bar(
    steps: int, description: str, *, accelerator: Accelerator, progress: bool | None, done: int = 0
) -> tqdm:
    """Return a bar that only the main process shows, and only on a terminal unless asked."""
    shown = on_terminal() if progress is None else progress
    return tqdm(
        total=steps,
        initial=done,
        desc=description,
        disable=not (shown and accelerator.is_main_process),
        leave=False,
        dynamic_ncols=True,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining} {postfix}",
    )
