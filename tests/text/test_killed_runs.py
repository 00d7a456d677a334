"""Stages that were killed by SIGKILL and resumed end with the very files of stages that never were."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes.killed_runs import forked

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/support/processes/killed_runs.py"
KILLED = -9
EPOCHS = {"language_model": 3, "classifier": 5}  # over all phases; the first phase of both has one


def start(*words, launcher=(), timeout=900):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)


CLOCK = ("seconds", "items_per_second", "tokens_per_second", "finished_at", "time", "rss_gib", "record_sha256")


def timeless(record):
    """A record without what the clock and the memory say."""
    if isinstance(record, dict):
        return {name: timeless(value) for name, value in record.items() if name.split("/")[-1] not in CLOCK}
    return [timeless(value) for value in record] if isinstance(record, list) else record


def records_of(run, stage):
    """What a stage left in words and numbers, with the run's own place left out."""
    texts = [(run / stage / name).read_text().replace(str(run), "RUN") for name in ("stage.json", "log.jsonl")]
    return [timeless(json.loads(text)) for text in (texts[0], *texts[1].splitlines())]


def assert_same_files(whole, killed):
    for stage in ("language_model", "classifier"):
        names = sorted(file.name for file in (whole / stage).iterdir())
        assert names == sorted(file.name for file in (killed / stage).iterdir())
        assert "model.safetensors" in names
        contents = [{name: (run / stage / name).read_bytes() for name in names} for run in (whole, killed)]
        different = [name for name in names if contents[0][name] != contents[1][name]]
        assert set(different) <= {"stage.json", "log.jsonl"}, stage
        assert records_of(whole, stage) == records_of(killed, stage)
    assert not list(killed.glob(".*"))  # nothing is left of the checkpoints


@pytest.fixture
def killed_at(tmp_path, capfd):
    """Return a function that kills a run at moments; it returns how each process ended, and what all printed."""

    def killed(moments):
        prepared, whole, *legs, last = forked(tmp_path, moments)
        said = capfd.readouterr().out
        assert (prepared, whole, last) == (0, 0, 0), said[-5000:]
        assert_same_files(tmp_path / "whole", tmp_path / "killed")
        return legs, said

    return killed


def test_two_kills_in_a_save_and_at_a_phase_boundary_change_no_bit(killed_at):
    ends, said = killed_at([["language_model", "save", 0.25, 3], ["classifier", "phase", 2]])
    assert ends == [KILLED, KILLED]
    assert "steps done, in epoch 1 of phase 1" in said
    assert "steps done, at the start of phase 3" in said


def random_moments(stage, seed):
    """Ten moments of a stage in the order of their time, of every kind; steps are shares of all steps."""
    epochs = EPOCHS[stage]
    chance = random.Random(f"{stage} {seed}")
    moments = []
    for number in range(7):
        share = (number + chance.uniform(0.2, 0.9)) / 7
        kinds = [("step", share), ("save", share, chance.randint(1, 5)), ("rename", share, chance.randrange(2))]
        moments.append((share, [stage, *kinds[number % 3]]))
    ended = chance.randrange(epochs - 1)
    moments.append(((ended + 1) / epochs, [stage, "validation", ended]))
    moments.append((1 / epochs + 1e-9, [stage, "phase", 1]))  # just after the validation of the first epoch
    moments.append((1, [stage, "folder", 0]))
    return [moment for _, moment in sorted(moments)]


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("stage", list(EPOCHS))
def test_twenty_kills_at_random_moments_change_no_bit(killed_at, stage, half):
    moments = random_moments(stage, seed=0)
    assert len(moments) == 10
    ends, said = killed_at(moments[half::2])
    assert ends == [KILLED] * 5, said[-5000:]


@pytest.mark.slow
def test_kills_by_the_clock_change_no_bit(killed_at):
    """Nobody knows where these come: they are other moments in every run of the tests."""
    shares = [round(random.uniform(0.05, 0.3), 3) for _ in range(8)]
    ends, said = killed_at([["any", "clock", share] for share in shares])
    assert set(ends) <= {KILLED, 0}, (shares, said[-5000:])
    assert ends.count(KILLED) >= 3, (shares, ends)  # a leg may come to its end before its time


@pytest.mark.slow
@pytest.mark.two_process
def test_five_kills_of_one_of_two_processes_change_no_bit(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert start(tmp_path, "prepare").returncode == 0
    whole = start(tmp_path, "whole", launcher=launcher)
    assert whole.returncode == 0, whole.stderr[-3000:]
    moments = [
        ["language_model", "step", 0.1, 0, 1],
        ["language_model", "save", 0.4, 2, 0],
        ["language_model", "validation", 1, 0, 1],
        ["classifier", "phase", 1, 0, 0],
        ["classifier", "step", 0.7, 0, 1],
    ]
    for moment in moments:
        done = start(tmp_path, json.dumps(moment), launcher=launcher)
        assert done.returncode != 0
        assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode  : -9" in done.stderr, done.stderr[-3000:]
    done = start(tmp_path, json.dumps(["none", "", 0, 0, 0]), launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_files(tmp_path / "whole", tmp_path / "killed")
