"""Two processes must do what one does, and end bit-identical to one another: one start of two, many looks at it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from two_process_runs import ORDERS, everything

pytestmark = pytest.mark.two_process
COMPARED = ["gradual", "gradual, accumulated", "language model", "cached prefix", "no cached prefix"]
COMPARED += [f"{name}, find_unused {find_unused}" for name in ORDERS for find_unused in (False, True)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of both processes."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_process_runs.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [*command, str(script), str(folder)], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"process{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return everything(Accelerator(cpu=True), tmp_path_factory.mktemp("one"))


def test_both_processes_end_bit_identical_after_every_order_of_freezing(two):
    for name in [*COMPARED, "batch norm"]:
        first, second = two[0][name]["weights"], two[1][name]["weights"]
        different = [key for key in first if not torch.equal(first[key], second[key])]
        assert different == [], name


def test_both_processes_are_bit_identical_after_every_epoch_of_gradual_unfreezing(two):
    for first, second in zip(two[0]["gradual"]["after_epochs"], two[1]["gradual"]["after_epochs"], strict=True):
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert len(two[0]["gradual"]["after_epochs"]) == 5


@pytest.mark.parametrize("name", COMPARED)
def test_two_processes_take_the_steps_of_one(one, two, name):
    single = one[name]
    for many in (result[name] for result in two):
        assert many["lrs"] == single["lrs"]
        assert many["losses"] == pytest.approx(single["losses"], abs=1e-9)
        assert many["train_losses"] == pytest.approx(single["train_losses"], abs=1e-9)
        for mine, theirs in zip(many["metrics"], single["metrics"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-9)
        for key, value in single["weights"].items():
            assert torch.allclose(many["weights"][key], value, rtol=0, atol=1e-9), key


def test_a_cached_prefix_leads_where_training_without_it_leads(one, two):
    for result in (one, *two):
        cached, plain = result["cached prefix"], result["no cached prefix"]
        assert cached["losses"] == pytest.approx(plain["losses"], abs=1e-9)
        for key, value in plain["weights"].items():
            assert torch.allclose(cached["weights"][key], value, rtol=0, atol=1e-9), key
        assert "rows were kept" in cached["said"][-1] and plain["said"] == []
    assert "18 rows were kept" in one["cached prefix"]["said"][-1]
    both = [int(result["cached prefix"]["said"][-1].split()[1]) for result in two]
    assert all(4 + 5 <= kept <= 18 for kept in both)  # what it met itself, and no more than there is


def test_the_phases_did_train(one):
    single = one["gradual"]
    assert single["metrics"][0]["n"] == 7
    assert len(single["losses"]) == 15
    assert len(one["gradual, accumulated"]["losses"]) == 10
    first, last = single["after_epochs"][0], single["after_epochs"][-1]
    assert not any(torch.equal(first[key], last[key]) for key in first)


def test_the_sweep_stops_together_with_the_curve_of_one_process(one, two):
    for many in two:
        assert many["sweep"]["lrs"] == one["sweep"]["lrs"]
        assert many["sweep"]["losses"] == pytest.approx(one["sweep"]["losses"], rel=1e-6)
        assert many["sweep"]["unchanged"]
    assert len(one["sweep"]["lrs"]) < 60  # it did diverge


def test_batch_norm_metrics_are_the_same_on_both_processes(two):
    assert two[0]["batch norm"]["metrics"] == two[1]["batch norm"]["metrics"]


def test_errors_are_raised_on_every_process(two):
    for result in two:
        found = result["refusals"]
        assert "non-empty subset of 0..3" in found["everything frozen"]
        assert "the loss became nan at step 0" in found["nan on one process"]
    assert "exists and is no saved learner" in two[0]["refusals"]["save"]
    assert "the main process could not save to" in two[1]["refusals"]["save"]


def test_only_the_main_process_says_what_is_frozen(two):
    assert [result["refusals"]["said"] for result in two] == ["1", "0"]
