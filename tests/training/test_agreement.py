"""The sum over a tensor's bits, by which processes compare weights; the comparison itself needs processes, and stands
in test_several_processes.py.
"""

import pytest
import torch
from torch import nn
from toy_models import new_model

from ulmfit_pipe.training import agreement
from ulmfit_pipe.training.agreement import DisagreementError, check_agreement, checksum

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_changed_place_or_two_swapped_ones_change_the_sum(dtype, monkeypatch):
    monkeypatch.setattr(agreement, "CHUNK", 4)
    values = torch.arange(15).reshape(3, 5).to(dtype)
    before = int(checksum(values))
    assert int(checksum(values.clone())) == before
    for place in range(15):
        changed = values.clone()
        changed.view(-1)[place] = (1 - changed.view(-1)[place].int()).to(dtype)
        assert int(checksum(changed)) != before
    swapped = values.clone()
    swapped[0, 0], swapped[2, 3] = values[2, 3], values[0, 0]
    assert int(checksum(swapped)) != before


def test_the_last_bit_of_a_weight_counts_and_so_does_the_sign_of_zero():
    weights = torch.randn(1000)
    nudged = weights.clone()
    nudged[777] = torch.nextafter(weights[777], torch.tensor(torch.inf))
    assert int(checksum(nudged)) != int(checksum(weights))
    assert int(checksum(torch.tensor([0.0]))) != int(checksum(torch.tensor([-0.0])))


def test_the_sum_does_not_depend_on_chunks_or_layout(monkeypatch):
    values = torch.randn(7, 11)
    whole = int(checksum(values))
    assert int(checksum(values.t().contiguous().t())) == whole
    monkeypatch.setattr(agreement, "CHUNK", 5)
    assert int(checksum(values)) == whole


def test_a_single_number_and_no_number_have_sums_too():
    assert int(checksum(torch.tensor(3))) != 0
    assert int(checksum(torch.zeros(0, 4))) == 0


class Several:
    """Three processes, of which the last has something else."""

    num_processes, device = 3, torch.device("cpu")

    def __init__(self, change=0):
        self.change = change

    def gather(self, own):
        rows = own.repeat(3, 1)
        rows[2, 4:6] += self.change
        return rows


def test_the_first_tensor_that_differs_is_named_with_its_process():
    model = new_model()
    check_agreement(model, Several(), where="after phase 'head'")
    name = list(dict(model.named_parameters()))[4]
    with pytest.raises(
        DisagreementError, match=f"after phase 'head' .* '{name}' is the first of 2 tensors .*process 2 "
    ):
        check_agreement(model, Several(change=1), where="after phase 'head'")


def test_sharded_tensors_are_left_out():
    model = nn.Linear(2, 3)
    for parameter in model.parameters():
        parameter.to_local = lambda: None
    check_agreement(model, Several(change=1), where="at the end")
