"""One process's share of a global batch, also where the batch has fewer rows than there are processes.

Batches are planned for all processes together and do not depend on how many there are, so that N processes train on
the batches of one. A process that gets no row of a small batch runs one of them all the same, since the others wait
for it; such a dummy batch is marked as `filler`, and the loop ignores it: no loss, no statistics.
"""

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

Share = dict[str, Tensor]


class FillerBatch(Share):
    """Dummy rows of an empty share; the training loop asks for the attribute `filler`."""

    filler = True


def share_of(
    rows: np.ndarray, *, rank: int, world_size: int
) -> tuple[np.ndarray, Callable[[Mapping[str, Tensor]], Share]]:
    """Return the rows r, r + world_size, ... of a global batch, and the kind of dict that they come in.

    Args:
        rows: The global batch's rows, one at least.
        rank: This process, from 0.
        world_size: Number of processes.
    """
    own = rows[rank::world_size]
    return (own, dict) if len(own) else (rows[:1], FillerBatch)
