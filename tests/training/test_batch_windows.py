import pytest
import torch

from tests.support.toy_models import ToyBatches, text_rows
from ulmfit_pipe.training.loop import batches_from, count_steps, windows_of


def test_steps_are_counted_by_epoch():
    batches = ToyBatches(text_rows(10), batch_size=3)
    assert count_steps(batches, 2, 1) == [4, 4]
    assert count_steps(batches, 3, 3) == [2, 2, 2]
    assert [len(window) for window in windows_of(batches, 3)] == [3, 1]


class FromAnywhere(ToyBatches):
    """Batches that know how to begin in the middle."""

    made = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.made += 1
            yield batch

    def from_batch(self, first):
        assert first == 2
        return ["the third"]


@pytest.mark.parametrize("first", [0, 1, 3])
def test_an_epoch_begins_at_any_batch(first):
    batches = ToyBatches(text_rows(11), batch_size=4)
    batches.set_epoch(2)
    rest, whole = list(batches_from(batches, first)), list(batches)[first:]
    assert len(rest) == 3 - first
    for mine, theirs in zip(rest, whole, strict=True):
        assert torch.equal(mine["row"], theirs["row"])


def test_batches_that_can_begin_in_the_middle_are_asked_to():
    batches = FromAnywhere(text_rows(11), batch_size=4)
    assert list(batches_from(batches, 2)) == ["the third"]
    assert batches.made == 0
