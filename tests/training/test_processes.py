import atexit
import time
from types import SimpleNamespace

import torch
from toy_models import text_rows

from ulmfit_pipe.training import processes
from ulmfit_pipe.training.processes import EXIT_PAUSE, gather_bytes, reduce_sum, settle_at_exit, to_device


class TwoAlike:
    """Stands in for an accelerator whose other process holds the same, and a little more."""

    num_processes = 2
    device = torch.device("cpu")

    def gather(self, tensor):
        if tensor.dtype == torch.uint8:
            return torch.cat([tensor, torch.full_like(tensor, 7)])
        return torch.cat([tensor, tensor + 1])

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        return 2 * tensor


def test_one_process_gathers_its_own_bytes(accelerator):
    assert gather_bytes(b"abc", accelerator) == [b"abc"]
    assert gather_bytes(b"", accelerator) == [b""]


def test_bytes_of_unequal_length_come_back_at_their_own_length():
    assert gather_bytes(b"abc", TwoAlike()) == [b"abc", b"\x07\x07\x07\x07"]
    assert gather_bytes(b"", TwoAlike()) == [b"", b"\x07"]


def test_sums_are_over_the_processes(accelerator):
    assert reduce_sum(accelerator)(torch.ones(2)).tolist() == [1.0, 1.0]
    assert reduce_sum(TwoAlike())(torch.ones(2)).tolist() == [2.0, 2.0]


def test_a_batch_is_moved_with_all_it_holds(accelerator):
    rows = text_rows(3)
    assert all(torch.equal(value, rows[name]) for name, value in to_device(rows, accelerator).items())


def test_several_processes_pause_once_before_python_shuts_down_and_a_single_one_does_not(monkeypatch):
    registered = []
    monkeypatch.setattr(atexit, "register", lambda *call: registered.append(call))
    processes._pause_at_exit.cache_clear()
    try:
        settle_at_exit(SimpleNamespace(num_processes=1))
        assert registered == []
        settle_at_exit(SimpleNamespace(num_processes=2))
        settle_at_exit(SimpleNamespace(num_processes=2))
    finally:
        processes._pause_at_exit.cache_clear()
    assert registered == [(time.sleep, EXIT_PAUSE)]
