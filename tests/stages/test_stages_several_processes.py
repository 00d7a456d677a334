"""Stages in two processes (and, among the slow tests, in three) must reach what they reach in one.

One start of the processes runs all of them; each test looks at one claim.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from several_process_runs import everything, write_inputs
from tiny_images import save_backbone
from tiny_transformers import save_bert, save_gpt2

HERE = Path(__file__).parent
EXACT = [  # in float64, through all phases
    "classifier",
    "classifier, several micro-batches",
    "classifier, few tokens a batch",
    "transformer classifier",
    "transformer classifier in windows",
    "language model",
    "masked language model",
    "causal language model",
    "images",
    "images over a still backbone",
]
WHOLE = ["classifier", "several labels", "language model", "images"]  # in float32, from tables to folders

pytestmark = pytest.mark.two_process


def start(script: Path, *arguments: object, processes: int, timeout: float = 560) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes as a user would, and return how it ended."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    paths = os.pathsep.join(map(str, (HERE.parents[1], HERE)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(
        [*command, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_language_model_folder):
    """Return models without dropout, and images."""
    place = tmp_path_factory.mktemp("inputs")
    write_inputs(place)
    (place / "language_model").symlink_to(tiny_language_model_folder)
    save_bert(place / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    save_gpt2(place / "gpt2")
    config = json.loads((place / "gpt2" / "config.json").read_text())
    config |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    (place / "gpt2" / "config.json").write_text(json.dumps(config))
    save_backbone(place / "resnet")
    return place


@pytest.fixture(scope="module")
def one(folder):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return everything(folder, folder / "of_1")


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def many(request, folder):
    done = start(HERE / "several_process_runs.py", folder, processes=request.param)
    assert done.returncode == 0, done.stderr[-4000:]
    files = [folder / f"{request.param}_process{rank}.pt" for rank in range(request.param)]
    return [torch.load(file, weights_only=False) for file in files]


@pytest.mark.parametrize("name", EXACT)
def test_several_processes_take_the_steps_of_one(one, many, name):
    single = one[name]
    for result in (result[name] for result in many):
        assert result["lrs"] == single["lrs"]
        assert result["losses"] == pytest.approx(single["losses"], abs=1e-9)
        assert result["train_losses"] == pytest.approx(single["train_losses"], abs=1e-9)
        for mine, theirs in zip(result["metrics"], single["metrics"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-9)
        for key, value in single["weights"].items():
            torch.testing.assert_close(result["weights"][key], value, rtol=0, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", EXACT)
def test_weights_are_bit_identical_on_all_processes_after_every_phase(one, many, name):
    first = many[0][name]["boundaries"]
    assert len(first) == len(one[name]["boundaries"]) > 2
    assert all(result[name]["boundaries"] == first for result in many[1:])


def test_every_run_did_train_for_a_few_dozen_steps(one):
    steps = {name: len(one[name]["losses"]) for name in EXACT}
    assert all(9 <= number <= 60 for number in steps.values()), steps
    for name in EXACT:
        assert len(set(one[name]["boundaries"][0]) & set(one[name]["boundaries"][-1])) < len(one[name]["weights"])


def test_the_sweep_suggests_the_same_on_all_processes(one, many):
    for result in many:
        assert result["sweep"]["lrs"] == one["sweep"]["lrs"]
        assert result["sweep"]["losses"] == pytest.approx(one["sweep"]["losses"], rel=1e-4)
        assert result["sweep"]["suggestions"] == pytest.approx(one["sweep"]["suggestions"], rel=1e-6)
    assert all(result["sweep"] == many[0]["sweep"] for result in many[1:])


@pytest.mark.parametrize("name", WHOLE)
def test_whole_stages_end_in_the_same_folder_in_single_precision(one, many, name):
    single = one["stages"][name]
    for result in (result["stages"][name] for result in many):
        assert result["metrics"] == pytest.approx(single["metrics"], abs=1e-5)
        for key, value in single["weights"].items():
            torch.testing.assert_close(result["weights"][key], value, rtol=0, atol=1e-5, msg=key)


def test_only_the_main_process_speaks_and_it_says_where_accumulation_is_not_exact(one, many):
    said = [line for line in many[0]["stages"]["said"] if line.startswith("accumulation_steps")]
    assert said == [
        "accumulation_steps 2: batch norm (classifier.blocks.0.norm and 1 more) takes its statistics over one "
        "micro-batch, so this is close to, but not the same as, a batch 2 times as large"
    ]
    assert len(many[0]["stages"]["said"]) == len(one["stages"]["said"])
    assert all(result["stages"]["said"] == [] for result in many[1:])
