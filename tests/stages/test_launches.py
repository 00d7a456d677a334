"""How several processes end when one of them fails: all of them, soon, and with its error as the cause.

And how they end when their launcher does: they do not train on alone.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from started_processes import start

HERE = Path(__file__).parent
pytestmark = pytest.mark.two_process
MOST_SECONDS = 240  # for the start too, imports on busy cores included
WORDS = "the file reviews.csv vanished from this machine"
MOST_SECONDS_TO_END = 600  # torchrun kills after 30 s what does not heed its SIGTERM; torch itself waits 30 minutes


@pytest.fixture
def folder(tmp_path, tiny_language_model_folder):
    (tmp_path / "language_model").symlink_to(tiny_language_model_folder)
    return tmp_path


def failed(folder, kind, *, processes=2):
    """Start processes of which the last one fails, and see all of them end soon after."""
    done = start(HERE / "failing_process.py", folder, kind, processes=processes, timeout=MOST_SECONDS)
    seconds = time.time() - float((folder / "failed_at").read_text())
    assert 0 < seconds <= MOST_SECONDS_TO_END
    assert [path.name for path in (folder / ".failing.progress").iterdir()] == ["step-00000004"]
    assert done.returncode != 0
    assert "never reached" not in done.stdout
    return done


def cause_of(done):
    return done.stderr[done.stderr.index("Root Cause") :]


def told_by_recipes(done):
    return sorted(line for line in done.stderr.splitlines() if line.startswith("failing_process.py: "))


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_one_failing_process_stops_all_and_its_error_is_shown_as_the_cause(folder, processes):
    done = failed(folder, "user", processes=processes)
    last = processes - 1
    assert told_by_recipes(done) == [
        *[f"failing_process.py: process {rank} ends, since process {last} stopped: {WORDS}" for rank in range(last)],
        f"failing_process.py: process {last} of {processes}: error: {WORDS}",
    ]
    assert re.search(rf"rank +: {last} \(local_rank: {last}\)", cause_of(done))
    assert "ValueError: the file reviews.csv vanished from this machine" in cause_of(done)
    assert done.stderr.count("Traceback") <= 2  # the launcher's own, and the one that stands in the cause


@pytest.mark.slow
def test_a_fault_of_the_program_keeps_its_traceback_and_stops_all(folder):
    done = failed(folder, "program")
    assert "KeyError: 'a fault of the program'" in done.stderr
    assert re.search(r"rank +: 1 \(local_rank: 1\)", cause_of(done))


@pytest.mark.slow
def test_a_process_that_was_killed_stops_all_and_is_named(folder):
    done = failed(folder, "killed")
    assert told_by_recipes(done)[0].startswith(  # it sees the silence, or hears from the launcher, whichever is first
        ("failing_process.py: process 0 ends, since process 1 is gone", "failing_process.py: told to stop (SIGTERM)")
    )
    assert re.search(r"rank +: 1 \(local_rank: 1\)", cause_of(done))
    assert "Signal 9 (SIGKILL)" in cause_of(done)


def seen(file, seconds):
    """Wait for a file, and return what is in it."""
    until = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.1)
    return file.read_text()


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
ACCELERATE = ["accelerate.commands.launch", "--cpu", "--num_processes", "1"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize(
    ("launcher", "end"),
    [
        (ACCELERATE, signal.SIGTERM),
        pytest.param(ACCELERATE, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(TORCHRUN, signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_process_is_told_to_stop_when_its_launcher_ends(tmp_path, launcher, end):
    command = [sys.executable, "-m", *launcher, str(HERE / "launched_process.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    started = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    process = None
    try:
        process = int(seen(tmp_path / "process", MOST_SECONDS))
        assert process != started.pid
        started.send_signal(end)
        assert seen(tmp_path / "ended", 30) == "75"
    finally:
        started.kill()
        started.wait()
        with contextlib.suppress(ProcessLookupError, TypeError):
            os.kill(process, signal.SIGKILL)
