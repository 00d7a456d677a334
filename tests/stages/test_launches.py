"""How several processes end when one of them fails: all of them, soon, and with its error as the cause.

And how they end when their launcher does: they do not train on alone.
"""

import contextlib
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.support.processes import several_process_runs  # noqa: F401  # what the failing process imports, before it is forked
from tests.support.processes.started_processes import start

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests/support/processes"
pytestmark = pytest.mark.two_process
MOST_SECONDS = 240  # for the start too, imports on busy cores included
WORDS = "the file reviews.csv vanished from this machine"
MOST_SECONDS_TO_END = 600  # torchrun kills after 30 s what does not heed its SIGTERM; torch itself waits 30 minutes


@pytest.fixture
def folder(tmp_path, tiny_language_model_folder):
    (tmp_path / "language_model").symlink_to(tiny_language_model_folder)
    return tmp_path


def start_forked(script, *words, processes):
    """Do what `start` does, with torchrun's own agent; the processes are forked, so that none has to import torch."""
    out, errors = (Path(words[0], name) for name in ("out.txt", "errors.txt"))
    child = os.fork()
    if child == 0:
        try:
            AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier test in this process
            for number, file in enumerate((out, errors), start=1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            sys.argv = list(map(str, [script, *words]))
            sizes = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": processes, "run_id": "forked"}
            rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
            config = LaunchConfig(**sizes, **rendezvous, max_restarts=0, start_method="fork")
            elastic_launch(config, runpy.run_path)(str(script), None, "__main__")
        except ChildFailedError as error:
            print(error, file=sys.stderr)  # as torchrun ends
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return subprocess.CompletedProcess([], code, out.read_text(), errors.read_text())


def failed(folder, kind, *, processes=2, forked=False):
    """Start processes of which the last one fails, and see all of them end soon after."""
    if forked:
        done = start_forked(SCRIPTS / "failing_process.py", folder, kind, processes=processes)
    else:
        done = start(SCRIPTS / "failing_process.py", folder, kind, processes=processes, timeout=MOST_SECONDS)
    assert (folder / "failed_at").is_file(), done.stderr  # it ended before it was to fail
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


@pytest.mark.parametrize(
    ("processes", "forked"),
    [
        (2, True),
        pytest.param(2, False, marks=pytest.mark.slow),
        pytest.param(3, False, marks=pytest.mark.slow),
    ],
)
def test_one_failing_process_stops_all_and_its_error_is_shown_as_the_cause(folder, processes, forked):
    done = failed(folder, "user", processes=processes, forked=forked)
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
        ("failing_process.py: process 0 ends, since process 1 is gone", "failing_process.py: stopped by SIGTERM")
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
    command = [sys.executable, "-m", *launcher, str(SCRIPTS / "launched_process.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
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
