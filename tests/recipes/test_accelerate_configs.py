"""Accelerate's configuration files: read by Accelerate, right for layer groups, and honest about what was run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "ulmfit_pipe" / "settings" / "accelerate"
KINDS = {
    "fsdp2": "FSDP",
    "multi_gpu": "MULTI_GPU",
    "multi_node": "MULTI_GPU",
}


def arguments(name, *options):
    """Return what `accelerate launch` makes of a file and of options beside it."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), *options, "recipe.py"]
    return _validate_launch_command(launch_command_parser().parse_args(command))[0]


def header(name):
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def test_there_is_a_file_for_each_way():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_every_file_and_knows_all_its_keys(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type.value == KINDS[name]
    assert config.mixed_precision == "no"  # the recipe's own setting counts
    assert config.dynamo_config == {}
    assert arguments(name).num_processes == config.num_processes


@pytest.mark.parametrize("name", KINDS)
def test_every_header_gives_its_command_and_says_what_was_not_run(name):
    text = header(name)
    assert f"accelerate launch --config_file configs/{name}.yaml" in text
    assert "no such machine" in text
    assert "read by accelerate 1.15" in text or "tested on two CPU processes over gloo" in text


@pytest.mark.parametrize("name", ["fsdp2", "multi_node"])
def test_one_file_serves_several_machines(name):
    places = ["--num_machines", "3", "--machine_rank", "2", "--main_process_ip", "10.0.0.7", "--num_processes", "12"]
    found = arguments(name, *places, "--main_process_port", "29500")
    assert (found.num_machines, found.machine_rank, found.num_processes) == (3, 2, 12)
    assert (found.main_process_ip, found.main_process_port) == ("10.0.0.7", 29500)


def test_fsdp_is_the_second_one_with_whole_weights_on_every_process(monkeypatch):
    found = arguments("fsdp2")
    assert found.use_fsdp
    for key, value in prepare_multi_gpu_env(found).items():
        if key.startswith(("FSDP", "ACCELERATE")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.cpu_ram_efficient_loading) == (2, False)


@pytest.mark.slow
@pytest.mark.two_process
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, of which each process would need one")
@pytest.mark.parametrize("name", [pytest.param("multi_gpu", marks=pytest.mark.slow), "fsdp2"])
def test_processes_started_with_a_file_find_one_another_on_a_cpu(tmp_path, name):
    script = tmp_path / "ask.py"
    script.write_text(
        "import json\n"
        "from pathlib import Path\n"
        "from ulmfit_pipe import RunContext\n"
        "context = RunContext()\n"
        "place = context.shares()\n"
        # into a file each: two processes that share one pipe write into one another's lines
        "Path(__file__).with_name(f'process-{place[\"rank\"]}.json').write_text(json.dumps(place))\n"
        "context.accelerator.end_training()\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    answers = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("process-*.json"))]
    assert answers == [{"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2}]
    told = [line for line in done.stdout.splitlines() if line.startswith("accelerate launch was asked for FSDP")]
    assert len(told) == (name == "fsdp2")
