"""Work shared out to processes: all go on together, and an error of one is an error of all.

Here the other process is made up; test_predict_shards_several_processes.py has real ones.
"""

import json
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from ulmfit_pipe.stages import in_step
from ulmfit_pipe.stages.in_step import ProcessError, describe, meet, run_in_step


def counting_to(number: int, *, error: Exception | None = None):
    for _ in range(number):
        yield
    if error is not None:
        raise error
    return {"counted": number}


@pytest.fixture
def other(monkeypatch):
    """Return a function that makes up what a second process says, meeting by meeting; the last one is said again."""

    def say(*sayings: dict | str) -> list[bytes]:
        heard: list[bytes] = []
        left = [json.dumps(saying).encode() for saying in sayings]

        def gather(content: bytes, _accelerator: Accelerator) -> list[bytes]:
            heard.append(content)
            return [content, left.pop(0) if len(left) > 1 else left[0]]

        monkeypatch.setattr(in_step, "gather_bytes", gather)
        return heard

    return say


DONE = {"finished": True, "error": None}
BUSY = {"finished": False, "error": None}


def test_one_process_gets_its_own_result():
    assert run_in_step(Accelerator(cpu=True), counting_to(3)) == [{"counted": 3}]
    meet(Accelerator(cpu=True))


def test_results_come_in_the_order_of_the_processes(other):
    other(DONE, "of the other")
    assert run_in_step(Accelerator(cpu=True), counting_to(3)) == [{"counted": 3}, "of the other"]


def test_a_process_that_is_done_meets_one_that_is_not_until_it_is(other):
    heard = other(BUSY, BUSY, DONE, "late")
    assert run_in_step(Accelerator(cpu=True), counting_to(1)) == [{"counted": 1}, "late"]
    assert [json.loads(content) for content in heard] == [DONE, DONE, DONE, {"counted": 1}]


def test_long_work_is_interrupted_by_meetings_so_that_no_one_gives_up_waiting(other, monkeypatch):
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr(in_step, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(in_step, "BEAT_SECONDS", 10)
    heard = other(DONE, DONE, DONE, "done")
    assert run_in_step(Accelerator(cpu=True), counting_to(8)) == [{"counted": 8}, "done"]
    assert [json.loads(content) for content in heard] == [BUSY, BUSY, DONE, {"counted": 8}]


def test_an_error_is_raised_where_it_happened_and_told_to_the_others(other):
    heard = other(BUSY)
    with pytest.raises(KeyError, match="lost"):
        run_in_step(Accelerator(cpu=True), counting_to(2, error=KeyError("lost")))
    assert json.loads(heard[0]) == {"finished": True, "error": "KeyError: 'lost'"}


def test_an_error_of_another_process_ends_this_one_at_the_next_meeting(other):
    other({"finished": True, "error": "row 7 is no row"})
    with pytest.raises(ProcessError, match="^process 1 stopped: row 7 is no row$"):
        run_in_step(Accelerator(cpu=True), counting_to(2))


def test_errors_written_for_users_are_told_as_they_are():
    assert describe(ValueError("the table is empty")) == "the table is empty"
    assert describe(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"
    assert describe(RuntimeError("out of memory")) == "RuntimeError: out of memory"
