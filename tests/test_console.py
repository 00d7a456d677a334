import sys
import threading
from types import SimpleNamespace

import pytest

from ulmfit_pipe import console
from ulmfit_pipe.console import (
    SECONDS_BETWEEN_LINES,
    Work,
    clock_time,
    hide_working,
    is_watched,
    output_to,
    print_line,
    reported,
    send,
    working,
)


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


class Waits:
    """Stands for waiting: notes for how long, and lets the clock go on until a time."""

    def __init__(self, clock, until):
        self.clock, self.until, self.asked = clock, until, []

    def __call__(self, seconds):
        self.asked.append(seconds)
        self.clock.now += seconds
        return self.clock.now > self.until


class Thread:
    """Stands for a thread: notes what it would run, and never runs it."""

    started = []

    def __init__(self, *, target, args, daemon):
        self.args = args

    def start(self):
        self.started.append(self.args)


@pytest.fixture
def clock(monkeypatch):
    """A fake clock for all that runs, and no thread that would wait for a real one."""
    clock = Clock()
    monkeypatch.setattr(Thread, "started", [])
    monkeypatch.setattr(console, "_RUNNING", console._Running())
    monkeypatch.setattr(console, "threading", SimpleNamespace(Thread=Thread, Event=threading.Event))
    monkeypatch.setattr(console, "Work", lambda what, **rest: Work(what, clock=clock, **rest))
    return clock


def test_what_runs_is_reported_at_least_every_30_seconds(clock, capsys):
    with working("reading train.csv", unit="rows") as work:
        work.advance(4_000)
        waits = Waits(clock, until=80)
        console._RUNNING.report(waits)
    assert max(waits.asked) <= 30
    assert capsys.readouterr().out.splitlines() == [
        "reading train.csv: 4,000 rows, 0:25 so far",
        "reading train.csv: 4,000 rows, 0:50 so far",
        "reading train.csv: 4,000 rows, 1:15 so far",
    ]


def test_the_innermost_work_is_reported_and_then_the_one_around_it(clock, capsys):
    with working("running"):
        for _ in reported("ab", "scoring", total=2, unit="batches"):
            console._RUNNING.report(Waits(clock, until=SECONDS_BETWEEN_LINES + clock.now))
        console._RUNNING.report(Waits(clock, until=SECONDS_BETWEEN_LINES + clock.now))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scoring: 0:25 so far"
    assert lines[1].startswith("scoring: 1 of 2 batches (50%), ")
    assert lines[2].startswith("running: ")


def test_a_line_has_the_time_that_is_left_at_the_speed_of_this_run():
    clock = Clock()
    work = Work("all 2/3", total=100, unit="steps", done=20, clock=clock)
    clock.now = 60.0
    work.advance(30, note="loss 0.5000")
    assert work.line() == "all 2/3: 50 of 100 steps (50%), 1:00 so far, about 1:40 left; loss 0.5000"


def test_times_are_minutes_and_seconds_and_hours_where_there_are_some():
    assert [clock_time(each) for each in (7, 750, 7500)] == ["0:07", "12:30", "2:05:00"]


def test_nothing_is_reported_on_a_terminal_nor_where_it_is_hidden_nor_when_nothing_runs(clock, capsys, monkeypatch):
    console._RUNNING.report(Waits(clock, until=30))
    with working("reading"):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        console._RUNNING.report(Waits(clock, until=clock.now + 30))
        monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
        hide_working()
        with working("tokenizing"):
            console._RUNNING.report(Waits(clock, until=clock.now + 30))
    assert capsys.readouterr().out == ""
    with working("reading"):
        console._RUNNING.report(Waits(clock, until=clock.now + 30))
    assert "reading: " in capsys.readouterr().out


def test_output_can_go_elsewhere_and_then_no_bars_are_shown(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    found = []
    with output_to(lambda *each: found.append(each)):
        print_line("one")
        assert send("epoch", {"epoch": 1})
        assert not is_watched()
    print_line("two")
    assert not send("epoch", {"epoch": 2})
    assert is_watched()
    assert (found, capsys.readouterr().out) == ([("log", "one"), ("epoch", {"epoch": 1})], "two\n")


def test_the_thread_that_reports_starts_with_the_outermost_block_and_ends_with_it(clock):
    with working("running"), working("reading"):
        ((wait,),) = Thread.started
        assert not wait(0)
    assert wait(0)
    with working("running"):
        assert len(Thread.started) == 2


def test_other_processes_than_the_first_report_nothing(clock, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with working("running"):
        assert Thread.started == []
