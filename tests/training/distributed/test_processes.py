"""What processes say to one another, and whom they name when one of them is gone."""

import atexit
import time
from types import SimpleNamespace

import pytest
import torch

from tests.support.toy_models import text_rows
from ulmfit_pipe.training.distributed import processes
from ulmfit_pipe.training.distributed.processes import (
    EXIT_PAUSE,
    gather_bytes,
    leave_word,
    reduce_sum,
    settle_at_exit,
    to_device,
    why_others_ended,
)


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


class Store(dict):
    """Stands in for the store of three processes, of which this is the first."""

    set = dict.__setitem__

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key].encode()


@pytest.fixture
def store(monkeypatch):
    found = Store()
    monkeypatch.setattr(processes, "_store", lambda: found)
    monkeypatch.setattr(processes, "SECONDS_TO_ANSWER", 0.2)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    return found


GONE = RuntimeError("[../pair.cc:537] Connection closed by peer [127.0.0.1]:18243")
SILENT = RuntimeError("[../unbound_buffer.cc:81] Timed out waiting 600000ms for recv operation to complete")


def test_a_process_that_left_word_is_named_with_it(store, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    leave_word("there is no file x.csv")
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert why_others_ended(GONE) == "process 2 stopped: there is no file x.csv"


def test_the_processes_that_do_not_say_that_they_wait_are_named(store):
    store.set("ulmfit_pipe/waiting/1", "")
    assert why_others_ended(GONE) == "process 2 is gone"
    words = "process 2 does not answer within 600 seconds (ULMFIT_PIPE_TIMEOUT sets how many): it is stopped, or hangs"
    assert why_others_ended(SILENT) == words
    nccl = "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(OpType=ALLREDUCE, Timeout(ms)=45000) ran"
    assert why_others_ended(RuntimeError(nccl)) == words.replace("600", "45")
    assert why_others_ended(RuntimeError("collective operation timeout")) == (
        "process 2 does not answer: it is stopped, or hangs"
    )
    store.set("ulmfit_pipe/waiting/2", "")
    assert why_others_ended(SILENT) == ""


def test_without_its_store_the_process_that_keeps_it_is_named(store, monkeypatch):
    def fails(*_given):
        raise torch.distributed.DistNetworkError("Broken pipe")

    monkeypatch.setattr(store, "set", fails, raising=False)
    assert why_others_ended(GONE) == "process 0 is gone"
    monkeypatch.setattr(store, "set", lambda *_given: time.sleep(1), raising=False)  # it is stopped itself
    assert why_others_ended(SILENT).startswith("process 0 does not answer within 600 seconds (ULMFIT_PIPE_TIMEOUT")


def test_other_errors_are_no_word_of_another_process(store, monkeypatch):
    assert why_others_ended(RuntimeError("out of memory")) == why_others_ended(KeyError("Connection closed")) == ""
    monkeypatch.setattr(processes, "_store", lambda: None)
    assert why_others_ended(GONE) == ""
    leave_word("heard by nobody")
