"""What processes are about to do is compared, and the sum over a tensor's bits, by which they compare weights.

The comparison of weights itself needs processes, and is in training/distributed/test_several_processes.py.
"""

import json

import pytest
import torch
from torch import nn

from tests.support.toy_models import new_model
from ulmfit_pipe.training.distributed import agreement
from ulmfit_pipe.training.distributed.agreement import DisagreementError, check_agreement, checksum, find_alike
from ulmfit_pipe.training.distributed.processes import ProcessError

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


# What they are about to do


@pytest.fixture
def other_says(monkeypatch):
    """Return a function that makes up what the other one of two processes says."""

    def make_up(**said):
        monkeypatch.setattr(agreement, "gather_bytes", lambda own, _accelerator: [own, json.dumps(said).encode()])

    return make_up


def test_one_process_finds_what_it_finds_and_describes_nothing():
    one = Several()
    one.num_processes = 1
    assert find_alike(one, lambda: 7, lambda _found: pytest.fail("nobody compares")) == 7


def test_processes_that_find_the_same_go_on(other_says):
    other_says(found={"lr": 0.1, "files": ["a", "b"]})
    assert find_alike(Several(), lambda: ("a", "b"), lambda found: {"lr": 0.1, "files": found}) == ("a", "b")


def test_what_another_process_is_about_to_do_otherwise_is_named_with_both_values(other_says):
    other_says(found={"lr": 0.2, "epochs": 3})
    words = (
        r"^process 1 is not about to do what process 0 is; it differs in lr \(0.1 on process 0, 0.2 on process 1\): "
        "start all processes with the same settings, data and model$"
    )
    with pytest.raises(ProcessError, match=words):
        find_alike(Several(), lambda: None, lambda _found: {"lr": 0.1, "epochs": 3})


def test_an_error_of_another_process_is_raised_with_its_number(other_says):
    other_says(error="there is no file x.csv")
    with pytest.raises(ProcessError, match="^process 1 stopped: there is no file x.csv$"):
        find_alike(Several(), lambda: 7, lambda _found: {})


@pytest.mark.parametrize(
    ("error", "shown"), [(KeyError("lost"), "KeyError: 'lost'"), (ValueError("an empty table"), "an empty table")]
)
def test_an_error_is_raised_where_it_happened_and_told_to_the_others(monkeypatch, error, shown):
    heard = []
    monkeypatch.setattr(agreement, "gather_bytes", lambda own, _accelerator: heard.append(own) or [own, b"{}"])

    def fail():
        raise error

    with pytest.raises(type(error), match="lost|an empty table"):
        find_alike(Several(), fail, lambda _found: {})
    assert json.loads(heard[0]) == {"error": shown}


def test_a_process_that_is_gone_while_others_compare_is_named(monkeypatch):
    def gone(*_given):
        raise RuntimeError("[...pair.cc:537] Connection closed by peer [127.0.0.1]:18243")

    monkeypatch.setattr(agreement, "gather_bytes", gone)
    monkeypatch.setattr(agreement, "why_others_ended", lambda _error: "process 2 is gone")
    with pytest.raises(ProcessError, match="^process 2 is gone$"):
        find_alike(Several(), lambda: 7, lambda _found: {})
    monkeypatch.setattr(agreement, "why_others_ended", lambda _error: "")
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        find_alike(Several(), lambda: 7, lambda _found: {})
