"""Two processes that are stopped and resumed end as if they had not been; what other numbers may go on with."""

import pytest
import torch
from accelerate import Accelerator

from tests.support.processes.forked_processes import run_in_processes
from tests.support.processes.resumed_two_processes import (
    ALONE,
    begin_alone,
    classifier,
    everything,
    language_model,
    train,
)
from ulmfit_pipe.storage.atomic import CheckpointError

pytestmark = pytest.mark.two_process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder):
    """The results of both processes, some of which go on with what one process, this one, has begun."""
    assert set(begin_alone(Accelerator(cpu=True), folder).values()) == {"Stopped: "}
    return run_in_processes(lambda: everything(Accelerator(cpu=True), folder), folder, processes=2)


@pytest.mark.parametrize("stop", [3, 5, 9, 22])
@pytest.mark.parametrize("name", ["classifier", "language model"])
def test_two_processes_go_on_bit_for_bit(two, name, stop):
    for result in two:
        whole, resumed = result[name], result[f"{name}, {stop}"]
        assert resumed["first"] == "Stopped: "
        assert resumed["losses"] == whole["losses"]
        assert [key for key, value in whole["weights"].items() if not torch.equal(resumed["weights"][key], value)] == []
    first, second = (result[f"{name}, {stop}"]["weights"] for result in two)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_each_process_goes_on_with_its_share_of_what_all_had_trained_on(two):
    """All 19 rows of the first epoch; the first process trained on 10, the second on 9."""
    assert [result["classifier, 5"]["items"][0] for result in two] == [19 / 2, 19 / 2]


def test_a_signal_to_one_process_stops_and_saves_both(two, folder):
    words = f"Preempted: stopped by SIGTERM after 3 steps, which are saved in {folder / 'told'}; run the same"
    assert all(result["told to stop"].startswith(words) for result in two)
    assert sorted(path.name for path in (folder / "told" / "step-00000003").iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "rank-0.safetensors",
        "rank-1.safetensors",
        "state.json",
        "steps.safetensors",
    ]


def test_a_full_disk_is_an_error_on_both_processes(two, folder):
    assert two[0]["full disk"].startswith(f"CheckpointError: could not save checkpoint {folder / 'full'}/step-00000001")
    assert two[1]["full disk"] == ("CheckpointError: the main process could not save a checkpoint; see its own message")


def test_one_process_goes_on_with_what_two_began_where_nothing_is_drawn_or_carried(two, folder, accelerator):
    assert two[0]["exact"] == "Stopped: "
    whole = train(accelerator, classifier(accelerator, dropout=0.0), None)
    resumed = train(accelerator, classifier(accelerator, dropout=0.0), folder / "exact", resume=True)
    assert resumed["said"][0] == "2 processes wrote the checkpoint and 1 resume from it: the same up to rounding"
    assert resumed["losses"] == pytest.approx(whole["losses"], abs=1e-9)
    for key, value in whole["weights"].items():
        assert torch.allclose(resumed["weights"][key].double(), value.double(), rtol=0, atol=1e-9), key


def test_one_process_does_not_go_on_with_dropout_masks_of_two(two, folder, accelerator):
    assert two[0]["dropout"] == "Stopped: "
    with pytest.raises(CheckpointError) as caught:
        train(accelerator, classifier(accelerator, dropout=0.3), folder / "dropout", resume=True)
    assert str(caught.value) == (
        f"the checkpoints in {folder / 'dropout'} are of 2 processes, now there is 1, and each draws random numbers of "
        "its own (dropout), so that other values would be dropped: resume with 2, or delete that folder to start over"
    )


def test_one_process_does_not_go_on_with_a_state_carried_by_two(two, folder, accelerator):
    assert two[0]["carried"] == "Stopped: "
    with pytest.raises(CheckpointError, match="and the state that is carried from batch to batch is split among them:"):
        train(accelerator, language_model(accelerator), folder / "carried", resume=True)


PLACES = {3: "3 steps done, in epoch 1 of phase 1", 17: "13 steps done, in epoch 1 of phase 2"}


@pytest.mark.parametrize("stop", ALONE)
def test_two_processes_go_on_with_what_one_began_where_nothing_is_drawn_or_carried(two, accelerator, stop):
    whole = train(accelerator, classifier(accelerator, dropout=0.0), None)
    for result in two:
        resumed = result[f"alone {stop}"]
        assert resumed["losses"] == pytest.approx(whole["losses"], abs=1e-9)
        for key, value in whole["weights"].items():
            assert torch.allclose(resumed["weights"][key].double(), value.double(), rtol=0, atol=1e-9), key
    said = "1 process wrote the checkpoint and 2 resume from it: the same up to rounding"
    assert two[0][f"alone {stop}"]["said"][0] == said
    assert two[0][f"alone {stop}"]["said"][1].endswith(PLACES[stop])


def test_two_processes_do_not_go_on_with_dropout_masks_of_one(two, folder):
    assert {result["alone dropout"] for result in two} == {
        f"CheckpointError: the checkpoints in {folder / 'alone dropout'} are of 1 process, now there are 2, and each "
        "draws random numbers of its own (dropout), so that other values would be dropped: resume with 1, or delete "
        "that folder to start over"
    }


def test_two_processes_do_not_go_on_with_a_state_carried_by_one(two):
    for result in two:
        assert "are of 1 process, now there are 2, and the state that is carried from batch" in result["alone carried"]
        assert result["alone carried"].startswith("CheckpointError: ")
