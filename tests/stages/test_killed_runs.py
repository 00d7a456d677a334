"""Stages that were killed by SIGKILL and gone on with end with the very files of stages that never were."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_runs.py")
KILLED = -9
STEPS = {  # of a whole stage, and of an epoch
    "language_model": (42, 14),  # a phase of one epoch with the last group, then one of two with all
    "classifier": (30, 6),  # three phases of one epoch, then one of two
}


def start(*words, launcher=(), timeout=900):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, *launcher, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)


def timeless(record):
    """A stage's record without what the clock says."""
    if isinstance(record, dict):
        clock = ("seconds", "per_second", "finished_at", "time", "rss_gib")
        return {name: timeless(value) for name, value in record.items() if not name.endswith(clock)}
    return [timeless(value) for value in record] if isinstance(record, list) else record


def assert_same_files(whole, killed):
    for stage in ("language_model", "classifier"):
        names = sorted(str(file.relative_to(whole / stage)) for file in (whole / stage).rglob("*") if file.is_file())
        assert names == sorted(str(path.relative_to(killed / stage)) for path in (killed / stage).rglob("*"))
        assert "model.safetensors" in names
        different = [
            name for name in names if (whole / stage / name).read_bytes() != (killed / stage / name).read_bytes()
        ]
        assert different == ["log.jsonl", "stage.json"], stage
        logs = [(run / stage / "log.jsonl").read_text().splitlines() for run in (whole, killed)]
        assert timeless([json.loads(line) for line in logs[0]]) == timeless([json.loads(line) for line in logs[1]])
        records = [json.loads((run / stage / "stage.json").read_text()) for run in (whole, killed)]
        assert timeless(records[0]) == timeless(records[1])
    assert not list(killed.glob(".*"))  # nothing is left of the checkpoints


def killed_at(folder, moments):
    done = start(folder, json.dumps(moments))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ends = json.loads((folder / "ends.json").read_text())
    assert ends == [0, 0, *[KILLED] * len(moments), 0], done.stdout[-5000:]
    assert_same_files(folder / "whole", folder / "killed")
    return done.stdout


def test_two_kills_in_a_save_and_at_a_phase_boundary_change_no_bit(tmp_path):
    said = killed_at(tmp_path, [["language_model", "save", 10, 3], ["classifier", "phase", 2]])
    assert "9 steps done, in epoch 1 of phase 1" in said
    assert "steps done, at the start of phase 3" in said


def random_moments(stage, seed):
    """Ten moments of a stage in the order of their time, of every kind."""
    steps, epoch = STEPS[stage]
    chance = random.Random(f"{stage} {seed}")
    moments = []
    for number, step in enumerate(sorted(chance.sample(range(1, steps), 7))):
        kinds = [("step", step), ("save", step, chance.randint(1, 6)), ("rename", step, chance.randrange(2))]
        moments.append((step, [stage, *kinds[number % 3]]))
    ended = chance.randrange(steps // epoch - 1)
    moments.append(((ended + 1) * epoch + 0.5, [stage, "validation", ended]))
    moments.append((epoch + 0.7, [stage, "phase", 1]))
    moments.append((steps + 1, [stage, "folder", 0]))
    return [moment for _, moment in sorted(moments)]


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("stage", list(STEPS))
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path, stage, half):
    moments = random_moments(stage, seed=0)
    assert len(moments) == 10
    killed_at(tmp_path, moments[half::2])


@pytest.mark.slow
@pytest.mark.two_process
def test_five_kills_of_one_of_two_processes_change_no_bit(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert start(tmp_path, "[]", "prepare").returncode == 0
    whole = start(tmp_path, "[]", "whole", launcher=launcher)
    assert whole.returncode == 0, whole.stderr[-3000:]
    moments = [
        ["language_model", "step", 5, 0, 1],
        ["language_model", "save", 11, 2, 0],
        ["language_model", "validation", 1, 0, 1],
        ["classifier", "phase", 1, 0, 0],
        ["classifier", "step", 17, 0, 1],
    ]
    for moment in moments:
        done = start(tmp_path, "[]", json.dumps(moment), launcher=launcher)
        assert done.returncode != 0
        assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode  : -9" in done.stderr, done.stderr[-3000:]
    done = start(tmp_path, "[]", json.dumps(["none", "", 0, 0, 0]), launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_files(tmp_path / "whole", tmp_path / "killed")
