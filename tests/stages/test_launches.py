"""How many processes a launcher gave, and how several of them end when one fails."""

import re
import time
from pathlib import Path

import pytest
from started_processes import start

HERE = Path(__file__).parent
MOST_SECONDS = 150  # for all processes to be gone, imports included; torch's own timeout is 30 minutes


@pytest.fixture
def folder(tmp_path, tiny_language_model_folder):
    (tmp_path / "language_model").symlink_to(tiny_language_model_folder)
    return tmp_path


def failed(folder, kind):
    began = time.monotonic()
    done = start(HERE / "failing_process.py", folder, kind, processes=2, timeout=MOST_SECONDS)
    return done, time.monotonic() - began


@pytest.mark.two_process
def test_one_failing_process_stops_all_and_its_error_is_shown_as_the_cause(folder):
    done, _ = failed(folder, "user")
    assert done.returncode != 0
    assert "never reached" not in done.stdout
    told = [line for line in done.stderr.splitlines() if line.startswith("failing_process.py: ")]
    assert told == [
        "failing_process.py: process 1 of 2: error: the file reviews.csv vanished from this machine",
        "failing_process.py: process 0 ends, since another one ended before it",
    ]
    cause = done.stderr[done.stderr.index("Root Cause") :]
    assert re.search(r"rank +: 1 \(local_rank: 1\)", cause)
    assert "ValueError: the file reviews.csv vanished from this machine" in cause
    assert done.stderr.count("Traceback") <= 2  # the launcher's own, and the one that stands in the cause


@pytest.mark.two_process
def test_a_fault_of_the_program_keeps_its_traceback_and_stops_all(folder):
    done, _ = failed(folder, "program")
    assert done.returncode != 0
    assert "KeyError: 'a fault of the program'" in done.stderr
    assert re.search(r"rank +: 1 \(local_rank: 1\)", done.stderr[done.stderr.index("Root Cause") :])
