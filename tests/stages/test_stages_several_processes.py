"""Stages in two processes (and, among the slow tests, in three) must reach what they reach in one.

One start of the processes runs all of them; each test looks at one claim.
"""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.support.processes.forked_processes import run_in_processes
from tests.support.processes.several_process_runs import accuracies_with_dropout, everything, write_inputs

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return models without dropout, and images."""
    place = tmp_path_factory.mktemp("inputs")
    write_inputs(place)
    return place


@pytest.fixture(scope="module")
def one(folder):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return everything(folder, folder / "of_1")


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def many(request, folder):
    output = folder / f"of_{request.param}"
    return run_in_processes(lambda: everything(folder, output), output, processes=request.param)


def test_every_run_did_train_for_a_few_dozen_steps(one):
    steps = {name: len(one[name]["losses"]) for name in EXACT}
    assert all(9 <= number <= 60 for number in steps.values()), steps
    for name in EXACT:
        assert len(set(one[name]["boundaries"][0]) & set(one[name]["boundaries"][-1])) < len(one[name]["weights"])


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


def test_the_sweep_suggests_the_same_on_all_processes(one, many):
    for result in many:
        assert result["sweep"]["lrs"] == one["sweep"]["lrs"]
        assert result["sweep"]["losses"] == pytest.approx(one["sweep"]["losses"], rel=1e-9)
        assert result["sweep"]["suggestions"] == pytest.approx(one["sweep"]["suggestions"], rel=1e-9)
    assert all(result["sweep"] == many[0]["sweep"] for result in many[1:])


def as_losses(metrics):
    """Metrics with perplexities as logarithms: the numbers of float32 lie 8e-6 apart around 75, and 2e-5 around 158."""
    return {name: np.log(value) if "perplexity" in name else value for name, value in metrics.items()}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_stages_end_in_the_same_folder_in_single_precision(one, many, name):
    """What the recipes promise in float32: no number that a stage logs or saves is off by more than 1e-5."""
    single, bound = one["stages"][name], {"rel": 0, "abs": 1e-5}
    for result in (result["stages"][name] for result in many):
        assert result["lrs"] == single["lrs"]
        assert result["losses"] == pytest.approx(single["losses"], **bound)
        for mine, theirs in zip(result["epochs"], single["epochs"], strict=True):
            assert as_losses(mine) == pytest.approx(as_losses(theirs), **bound)
        assert as_losses(result["metrics"]) == pytest.approx(as_losses(single["metrics"]), **bound)
        assert result["weights"].keys() == single["weights"].keys()
        for key, value in single["weights"].items():
            torch.testing.assert_close(result["weights"][key], value, rtol=0, atol=1e-5, msg=f"{key}: {{}}".format)


def test_a_head_that_starts_from_a_probe_is_the_same_whoever_read_the_rows(one, many):
    """The rounding of features moves the end of scikit-learn's search a little, by less than its own tolerance."""
    single = one["after a probe"]
    for result in (result["after a probe"] for result in many):
        assert result["held_out"] == single["held_out"]
        assert result["held_out"]["rows"] == 26
        assert result["metrics"] == pytest.approx(single["metrics"], abs=1e-3)
        for key, value in single["weights"].items():
            torch.testing.assert_close(result["weights"][key], value, rtol=0, atol=1e-3, msg=f"{key}: {{}}".format)
    first = many[0]["after a probe"]["weights"]
    for result in many[1:]:
        assert all(torch.equal(result["after a probe"]["weights"][key], value) for key, value in first.items())


@pytest.mark.parametrize("name", WHOLE)
def test_whole_stages_learnt_for_about_twenty_steps(one, name):
    single = one["stages"][name]
    assert 18 <= len(single["losses"]) <= 22
    assert all(max(rates.values()) > 0 for rates in single["lrs"])
    losses = [epoch["epoch/loss"] for epoch in single["epochs"]]
    assert min(losses) < losses[0] - 1e-3  # a hundred times more than processes may differ by
    assert single["epochs"][0].keys() > {"epoch/loss"}  # and validated


def test_only_the_main_process_speaks_and_it_says_where_accumulation_is_not_exact(one, many):
    said = [line for line in many[0]["stages"]["said"] if line.startswith("accumulation_steps")]
    assert said == [
        "accumulation_steps 2: batch norm (classifier.blocks.0.norm and 1 more) takes its statistics over one "
        "micro-batch and AR and TAR are means over the tokens of one micro-batch, so this is close to, but not the "
        "same as, a batch 2 times as large"
    ]
    assert len(many[0]["stages"]["said"]) == len(one["stages"]["said"])
    assert all(result["stages"]["said"] == [] for result in many[1:])


@pytest.mark.slow
def test_with_dropout_the_mean_accuracy_of_five_seeds_is_within_its_noise(folder):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    alone = np.array(accuracies_with_dropout(folder))
    shares = run_in_processes(lambda: accuracies_with_dropout(folder), folder / "dropout", processes=2)
    assert shares[0] == shares[1]
    together = np.array(shares[0])
    assert alone.tolist() != together.tolist()  # the masks are others
    noise = np.sqrt((alone.var(ddof=1) + together.var(ddof=1)) / 5)  # standard error of the difference
    assert min(alone.mean(), together.mean()) > 0.7  # it did learn; half of the texts are of each label
    assert noise < 0.05  # with more of it the next line would let anything pass
    assert abs(alone.mean() - together.mean()) < 2 * noise + 0.01, (alone, together)
