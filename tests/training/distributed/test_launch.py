"""How many processes were asked for, and what is said where they are not there."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from ulmfit_pipe.training.distributed import launch
from ulmfit_pipe.training.distributed.launch import (
    LaunchError,
    missing_processes,
    new_accelerator,
    part_random_streams,
    share_of_work,
    started_processes,
)

LAUNCHER = [*launch.WORLD_SIZES, "RANK", "LOCAL_RANK", launch.OF_SEVERAL, launch.OF_ACCELERATE_LAUNCH, launch.OF_FSDP]
ONE_OF_TWO = {launch.OF_SEVERAL: "127.0.0.1", launch.OF_ACCELERATE_LAUNCH: "no"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_there_is_one_process_and_nothing_is_said():
    said = []
    assert launch.started_processes() == 1
    assert new_accelerator(say=said.append).num_processes == 1
    assert said == []


@pytest.mark.parametrize("name", launch.WORLD_SIZES)
def test_torchrun_and_mpi_say_how_many_they_started(monkeypatch, name):
    monkeypatch.setenv(name, "3")
    assert launch.started_processes() == 3
    assert missing_processes() == ""


@pytest.mark.parametrize(
    ("command", "count", "advice"),
    [
        ("accelerate launch --cpu --num_processes 2 recipe.py", "2 processes", "--nproc_per_node 2"),
        ("accelerate launch --cpu --num-processes=4 recipe.py", "4 processes", "--nproc_per_node 4"),
        ("accelerate launch --config_file cpu.yaml recipe.py", "several processes", "--nproc_per_node 2"),
    ],
)
def test_a_launch_that_started_one_of_several_is_told(monkeypatch, command, count, advice):
    for name, value in ONE_OF_TWO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "read_bytes", lambda _path: command.replace(" ", "\0").encode())
    said = []
    assert new_accelerator(cpu=True, say=said.append).num_processes == 1
    (line,) = said
    assert line.startswith(f"accelerate launch was asked for {count} and started one")
    assert "Continuing with one: it reaches the same result, in more time." in line
    assert f"torchrun {advice} RECIPE.py" in line


def test_a_launch_of_one_process_is_no_fault(monkeypatch):
    monkeypatch.setenv(launch.OF_ACCELERATE_LAUNCH, "no")
    assert missing_processes() == ""
    monkeypatch.setenv(launch.OF_SEVERAL, "127.0.0.1")  # the user's own
    monkeypatch.setattr(Path, "read_bytes", lambda _path: b"accelerate\0launch\0--num_processes\x001\0recipe.py")
    assert missing_processes() == ""


def test_where_the_command_line_cannot_be_seen_the_number_is_left_out(monkeypatch):
    for name, value in ONE_OF_TWO.items():
        monkeypatch.setenv(name, value)

    def hidden(_path):
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "read_bytes", hidden)
    assert missing_processes().startswith("accelerate launch was asked for several processes and started one")


def test_processes_that_did_not_find_one_another_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(launch, "Accelerator", lambda **_options: SimpleNamespace(num_processes=1))
    with pytest.raises(LaunchError, match="started 2 processes, but each of them would train alone.*torchrun"):
        new_accelerator()


@pytest.fixture
def launched(tmp_path):
    """Start a script that says how many processes there are, by accelerate launch, and return what was printed."""
    script = tmp_path / "ask.py"
    script.write_text(
        "from ulmfit_pipe.training.distributed.launch import new_accelerator\n"
        "accelerator = new_accelerator(say=print)\n"
        "print(f'processes {accelerator.num_processes} {accelerator.process_index}\\n', end='', flush=True)\n"
        "accelerator.end_training()\n"
    )

    def launch_with(*options):
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", "2", str(script)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, env=environment)
        return done.stdout.splitlines()

    return launch_with


def test_accelerate_launch_on_a_cpu_starts_one_process_and_the_recipe_says_so(launched):
    said, processes = launched("--cpu")[-2:]
    if processes.startswith("processes 2"):  # a version of accelerate that does as asked
        return
    assert processes == "processes 1 0"
    assert said.startswith("accelerate launch was asked for 2 processes and started one")


@pytest.mark.slow
@pytest.mark.two_process
def test_accelerate_launch_for_gpus_starts_all_processes_and_they_find_one_another_without_a_gpu(launched):
    found = [line for line in launched("--multi_gpu") if line.startswith("processes")]
    assert sorted(found) == ["processes 2 0", "processes 2 1"]


def test_each_process_draws_masks_of_its_own_and_one_process_draws_what_it_did():
    def draw(rank, processes):
        torch.manual_seed(7)
        place = SimpleNamespace(num_processes=processes, process_index=rank)
        part_random_streams(place)
        return torch.rand(4).tolist()

    torch.manual_seed(7)
    untouched = torch.rand(4).tolist()
    assert draw(0, 1) == untouched
    assert len({tuple(draw(rank, 3)) for rank in range(3)}) == 3
    assert draw(1, 3) == draw(1, 3)


def test_a_launcher_that_asks_for_another_precision_is_told_which_counts(monkeypatch):
    monkeypatch.setenv(launch.OF_ACCELERATE_LAUNCH, "bf16")
    said = []
    assert new_accelerator(cpu=True, mixed_precision="no", say=said.append).mixed_precision == "no"
    assert said == [
        "accelerate launch was asked for mixed_precision 'bf16', this run for 'no', which counts; to change it give "
        "the recipe --mixed_precision bf16"
    ]


def test_a_precision_that_the_launcher_asks_for_must_be_there_too(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv(launch.OF_ACCELERATE_LAUNCH, "fp16")
    with pytest.raises(ValueError, match="mixed_precision 'fp16' needs a GPU"):
        new_accelerator()


def test_fsdp_on_a_cpu_is_told_to_be_plain_data_parallelism(monkeypatch):
    monkeypatch.setenv(launch.OF_FSDP, "true")
    said = []
    new_accelerator(cpu=True, say=said.append)
    assert said == [
        "accelerate launch was asked for FSDP, which Accelerate has on several GPUs only: every process keeps the "
        "whole model. The result is the same"
    ]


def test_the_accelerator_has_what_is_asked_of_it(monkeypatch):
    assert isinstance(new_accelerator(cpu=True), Accelerator)
    seen = {}

    def noting(**options):
        seen.update(options)
        return SimpleNamespace(num_processes=2, mixed_precision="bf16", distributed_type=DistributedType.MULTI_CPU)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch, "Accelerator", noting)
    monkeypatch.setattr(launch, "_has_gpu", lambda: False)
    monkeypatch.setattr(launch, "cpu_precision", lambda asked: (asked, ""))
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    new_accelerator(mixed_precision="bf16")
    (limit,) = seen.pop("kwargs_handlers")
    assert limit.timeout == timedelta(seconds=60)
    assert seen == {"mixed_precision": "bf16", "cpu": True}


def test_processes_without_a_place_to_meet_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    words = (
        r"says that 3 processes were started, but not where .* \(MASTER_ADDR is not set\); torchrun --nproc_per_node 3"
    )
    with pytest.raises(LaunchError, match=words):
        new_accelerator(cpu=True)


def test_processes_that_do_not_come_are_named_with_the_seconds(monkeypatch):
    def waiting_in_vain(**_options):
        raise torch.distributed.DistStoreError("Timed out after 3 seconds waiting for clients. 1/2 clients joined.")

    monkeypatch.setattr(launch, "Accelerator", waiting_in_vain)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", launch.OWN_LIMIT: "3"}.items():
        monkeypatch.setenv(name, value)
    words = r"2 processes were started, and not all of them came to 10.0.0.1 within 3 seconds \(.*1/2 clients joined"
    with pytest.raises(LaunchError, match=words):
        new_accelerator(cpu=True)


def test_work_without_steps_is_shared_by_number_and_count_alone(monkeypatch):
    with share_of_work() as share:
        assert share is None
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with share_of_work() as share:
        assert share == (2, 3)
        assert started_processes() == 1 and "LOCAL_RANK" not in os.environ
    assert started_processes() == 3 and os.environ["LOCAL_RANK"] == "2"
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(LaunchError, match="says that 3 processes were started, so RANK must be 0 to 2, got '3'"):
        share_of_work().__enter__()
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    with share_of_work() as share:
        assert share is None


def test_an_accelerator_of_another_precision_in_one_process_leaves_the_first_as_it_was(monkeypatch):
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    monkeypatch.setattr(launch, "cpu_precision", lambda asked: (asked, ""))  # nothing is computed here
    precisions = ("no", "bf16", "bf16", "no")
    made = [new_accelerator(cpu=True, mixed_precision=precision) for precision in precisions]
    assert tuple(accelerator.mixed_precision for accelerator in made) == precisions
    assert {accelerator.device.type for accelerator in made} == {"cpu"}
    assert AcceleratorState().mixed_precision == "no"  # the last one's, which accelerate's own parts ask for
