"""Several processes must do what one does, and end bit-identical to one another: one start of two (and, among the slow
tests, one of three), many looks at it.
"""

import pytest
import torch
from accelerate import Accelerator

from tests.support.processes.forked_processes import run_in_processes
from tests.support.processes.two_process_runs import CACHED_NORMS, ORDERS, everything

pytestmark = pytest.mark.two_process
COMPARED = ["gradual", "gradual, accumulated", "language model", "cached prefix", "no cached prefix"]
COMPARED += ["batch norm", "batch norm, accumulated", "batch norm, larger batch", "batch norm of frozen groups"]
COMPARED += ["penalties", "1 x 8", "4 x 2", *CACHED_NORMS, "compiled", "not compiled"]
COMPARED += [f"{name}, layers run again" for name in ("gradual", "gradual, accumulated")]
COMPARED += [f"{name}, find_unused {find_unused}" for name in ORDERS for find_unused in (False, True)]


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def many(request, tmp_path_factory, one):
    """The results of each process; forked after one has imported all that they need."""
    folder = tmp_path_factory.mktemp("many")
    return run_in_processes(lambda: everything(Accelerator(cpu=True), folder), folder, processes=request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return everything(Accelerator(cpu=True), tmp_path_factory.mktemp("one"))


def test_all_processes_end_bit_identical_after_every_order_of_freezing(many):
    for name in COMPARED:
        first = many[0][name]["weights"]
        for other in many[1:]:
            different = [key for key in first if not torch.equal(first[key], other[name]["weights"][key])]
            assert different == [], name


def test_all_processes_are_bit_identical_after_every_epoch_of_gradual_unfreezing(many):
    for other in many[1:]:
        for first, second in zip(many[0]["gradual"]["after_epochs"], other["gradual"]["after_epochs"], strict=True):
            assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert len(many[0]["gradual"]["after_epochs"]) == 5


@pytest.mark.parametrize("name", COMPARED)
def test_several_processes_take_the_steps_of_one(one, many, name):
    single = one[name]
    for result in (result[name] for result in many):
        assert result["lrs"] == single["lrs"]
        assert result["losses"] == pytest.approx(single["losses"], abs=1e-9)
        assert result["train_losses"] == pytest.approx(single["train_losses"], abs=1e-9)
        for mine, theirs in zip(result["metrics"], single["metrics"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-9)
        for key, value in single["weights"].items():
            assert torch.allclose(result["weights"][key], value, rtol=0, atol=1e-9), key


def test_a_cached_prefix_leads_where_training_without_it_leads(one, many):
    for result in (one, *many):
        cached, plain = result["cached prefix"], result["no cached prefix"]
        assert cached["losses"] == pytest.approx(plain["losses"], abs=1e-9)
        for key, value in plain["weights"].items():
            assert torch.allclose(cached["weights"][key], value, rtol=0, atol=1e-9), key
        assert "rows were kept" in cached["said"][-1] and plain["said"] == []
    assert "18 rows were kept" in one["cached prefix"]["said"][-1]
    each = [int(result["cached prefix"]["said"][-1].split()[1]) for result in many]
    assert all(18 / len(many) - 2 <= kept <= 18 for kept in each)  # what it met itself, and no more than there is


@pytest.mark.parametrize("name", [name for name in CACHED_NORMS if not name.startswith("no")])
def test_a_cached_prefix_goes_well_with_norms_over_all_processes_behind_it(one, many, name):
    """Processes check what they kept at different batches; a norm that met the others there would hang."""
    for result in (one, *many):
        cached, plain = result[name], result[f"no {name}"]
        assert cached["losses"] == pytest.approx(plain["losses"], abs=1e-9)
        for key, value in plain["weights"].items():
            assert torch.allclose(cached["weights"][key], value, rtol=0, atol=1e-9), key
        assert "rows were kept" in cached["said"][-1] and plain["said"] == []


@pytest.mark.parametrize("name", ["gradual", "gradual, accumulated"])
def test_layers_that_run_again_lead_where_layers_that_run_once_lead(one, many, name):
    """The body runs again where it trains or lies above what trains: in the last 3 of 5 epochs of 3 batches."""
    for result in (one, *many):
        again, once = result[f"{name}, layers run again"], result[name]
        assert again["runs of the body"] == (5 + 3) * 3
        assert again["losses"] == pytest.approx(once["losses"], abs=1e-9)
        for key, value in once["weights"].items():
            assert torch.allclose(again["weights"][key], value, rtol=0, atol=1e-9), key


def test_compiled_code_leads_where_eager_code_leads(one, many):
    for result in (one, *many):
        made, eager = result["compiled"], result["not compiled"]
        assert (made["graphs"], eager["graphs"]) == (2, 0)  # one a phase
        assert len(made["losses"]) == 6
        assert made["losses"] == pytest.approx(eager["losses"], abs=1e-9)
        for key, value in eager["weights"].items():
            assert torch.allclose(made["weights"][key], value, rtol=0, atol=1e-9), key


def test_the_phases_did_train(one):
    single = one["gradual"]
    assert single["metrics"][0]["n"] == 7
    assert len(single["losses"]) == 15
    assert len(one["gradual, accumulated"]["losses"]) == 10
    first, last = single["after_epochs"][0], single["after_epochs"][-1]
    assert not any(torch.equal(first[key], last[key]) for key in first)


def test_accumulation_takes_the_steps_of_a_larger_batch_where_nothing_is_taken_over_a_batch(one, many):
    for result in (one, *many):
        at_once, in_parts = result["1 x 8"], result["4 x 2"]
        assert len(at_once["losses"]) == 2 * 4
        assert in_parts["losses"] == pytest.approx(at_once["losses"], abs=1e-9)
        for key, value in at_once["weights"].items():
            assert torch.allclose(in_parts["weights"][key], value, rtol=0, atol=1e-9), key


def test_accumulation_comes_close_to_a_larger_batch_where_statistics_are_taken_over_a_batch(one, many):
    for result in (one, *many):
        at_once, in_parts = result["batch norm, larger batch"], result["batch norm, accumulated"]
        assert in_parts["lrs"] == at_once["lrs"]
        assert in_parts["losses"] != pytest.approx(at_once["losses"], abs=1e-4)
        assert in_parts["losses"] == pytest.approx(at_once["losses"], rel=0.5)


@pytest.mark.parametrize("find_unused", [False, True])
def test_a_model_wrapped_once_and_thawed_afterwards_does_drift_apart(many, find_unused):
    first, *others = [result[f"wrapped once, find_unused {find_unused}"] for result in many]
    for other in others:
        gaps = {name: float((first[name] - other[name]).abs().max()) for name in first}
        assert gaps["head.weight"] == 0  # it was trained when the model was wrapped
        assert max(gaps.values()) > 1e-3, gaps


def test_running_statistics_did_move_and_are_those_of_one_process(one, many):
    for name in ("body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"):
        held, moved = one["batch norm"]["weights"][name], one["batch norm of frozen groups"]["weights"][name]
        assert not torch.equal(held, moved)
    for result in many:
        for key, value in one["recomputed statistics"].items():
            torch.testing.assert_close(result["recomputed statistics"][key], value, rtol=0, atol=1e-9)


def test_penalties_were_more_than_nothing(one):
    assert one["penalties"]["losses"][-1] > 0
    assert not torch.equal(
        one["penalties"]["weights"]["embeddings.weight"], one["1 x 8"]["weights"]["embeddings.weight"]
    )


def test_processes_that_drift_apart_are_told_at_the_end_of_the_phase(one, many):
    for result in many:
        said = result["disagreement"]
        assert said.startswith(
            "after phase 'head' the processes no longer hold the same weights: 'middle.0.weight' is the first of 2 "
            "tensors (of 17) that differ; process 1 has another one than process 0."
        )
        assert "TrainingOptions(check_agreement=False) trains on without this check" in said
        assert result["unchecked"] == "no one noticed"
    assert one["disagreement"] == "no one noticed"


def test_the_sweep_stops_together_with_the_curve_of_one_process(one, many):
    for result in many:
        assert result["sweep"]["lrs"] == one["sweep"]["lrs"]
        assert result["sweep"]["losses"] == pytest.approx(one["sweep"]["losses"], rel=1e-9)
        assert result["sweep"]["unchanged"]
    assert len(one["sweep"]["lrs"]) < 60  # it did diverge


def test_a_time_limit_ends_all_processes_at_the_same_step(many):
    steps = {result["time limit"] for result in many}
    assert len(steps) == 1
    assert 0 < steps.pop() < 2 * 300 * 3


def test_errors_are_raised_on_every_process(many):
    for result in many:
        found = result["refusals"]
        assert "non-empty subset of 0..3" in found["everything frozen"]
        assert "the loss became nan at step 0" in found["nan on one process"]
    assert "exists and is not a saved learner" in many[0]["refusals"]["save"]
    assert "the main process could not save to" in many[1]["refusals"]["save"]


def test_only_the_main_process_says_what_is_frozen(many):
    assert [result["refusals"]["said"] for result in many] == ["1", *["0"] * (len(many) - 1)]
