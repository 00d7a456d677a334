"""A process' share of a global batch; the batches that use it have tests of their own."""

import numpy as np
import pytest
import torch

from ulmfit_pipe.data.process_shares import FillerBatch, share_of


@pytest.mark.parametrize(("count", "world_size"), [(7, 1), (7, 2), (7, 3), (2, 3), (1, 4)])
def test_every_row_is_counted_once_whatever_the_number_of_processes(count, world_size):
    rows = np.arange(count) * 10
    shares = [share_of(rows, rank=rank, world_size=world_size) for rank in range(world_size)]
    counted = [row for own, kind in shares if kind is not FillerBatch for row in own.tolist()]
    assert sorted(counted) == rows.tolist()
    assert all(len(own) for own, _ in shares)  # each runs something, since the others wait for it
    assert max(len(own) for own, _ in shares) - min(len(own) for own, _ in shares) <= 1


def test_an_empty_share_is_the_first_row_in_a_batch_that_says_it_stands_in():
    own, kind = share_of(np.array([4, 9]), rank=2, world_size=3)
    batch = kind({"row": torch.from_numpy(own)})
    assert batch.filler and batch["row"].tolist() == [4]
    own, kind = share_of(np.array([4, 9]), rank=1, world_size=3)
    assert own.tolist() == [9] and not hasattr(kind({"row": torch.from_numpy(own)}), "filler")
