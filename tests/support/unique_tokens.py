"""Documents in which every token is another one, and batches as lists: any misplaced token shows."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def make_documents(count: int, seed: int = 3, longest: int = 9) -> list[list[int]]:
    """Return documents of 0 to 8 tokens, numbered from 100 on."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, longest, count)
    values = iter(range(100, 100 + int(lengths.sum())))
    return [[next(values) for _ in range(length)] for length in lengths]


def as_lists(batches: Iterable[Any]) -> list[Any]:
    """Return inputs and targets of each batch."""
    return [(batch["input_ids"].tolist(), batch["targets"].tolist()) for batch in batches]
