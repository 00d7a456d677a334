"""Weights in pieces on two processes (torch's fully_shard over gloo): thawing is what it is with whole weights."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed.fsdp  # here, not in each of the processes
from accelerate import Accelerator
from torch import nn

from tests.support.processes.forked_processes import run_in_processes
from tests.support.processes.sharded_runs import everything
from tests.support.processes.two_process_runs import ORDERS
from tests.support.toy_models import NAMES, ToyLanguageModel, groups_of, lm_groups_of, new_model
from ulmfit_pipe.training.compute.accelerator_checks import UnsupportedAcceleratorError
from ulmfit_pipe.training.compute.wrapping import prepared
from ulmfit_pipe.training.distributed.sharding import is_sharded, modules_of_group, wants_sharding
from ulmfit_pipe.training.layer_groups import split_layer_groups
from ulmfit_pipe.training.records import Checkpoints, TrainingOptions

GRADUAL = ["gradual", "gradual, accumulated", "gradual, batch norm", "gradual, norms of frozen groups"]
AGAIN = [f"{name}, layers run again" for name in GRADUAL[:2]]
COMPARED = [*GRADUAL, *AGAIN, "language model", *ORDERS]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory, one):
    """The results of each of two processes; forked after all that they need was imported."""
    folder = tmp_path_factory.mktemp("pieces")
    return run_in_processes(lambda: everything(Accelerator(cpu=True)), folder, processes=2)


@pytest.fixture(scope="module")
def one():
    return everything(Accelerator(cpu=True))


@pytest.mark.two_process
@pytest.mark.parametrize("name", COMPARED)
def test_weights_in_pieces_take_the_steps_of_whole_ones(one, pieces, name):
    single = one[name]
    for result in (result[name] for result in pieces):
        assert result["lrs"] == single["lrs"]
        assert result["losses"] == pytest.approx(single["losses"], abs=1e-9)
        for mine, theirs in zip(result["metrics"], single["metrics"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-9)
        for key, value in single["weights"].items():
            torch.testing.assert_close(result["weights"][key], value, rtol=0, atol=1e-9, msg=key)


@pytest.mark.two_process
@pytest.mark.parametrize("name", COMPARED)
def test_both_processes_end_with_bit_identical_whole_weights(pieces, name):
    first, second = (result[name]["weights"] for result in pieces)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.two_process
@pytest.mark.parametrize("name", ["gradual", "gradual, batch norm"])
def test_every_phase_trains_its_thawed_groups_and_leaves_the_others_bit_identical(pieces, name):
    """Four phases of one epoch, the last of two: the head, then one group more each time."""
    after = pieces[0][name]["after_epochs"]
    assert len(after) == 5
    for epoch in range(1, 5):
        moved = {
            key.split(".")[0]
            for key, value in after[epoch].items()
            if value.is_floating_point() and not torch.equal(value, after[epoch - 1][key])
        }
        assert moved == set(NAMES[-min(epoch + 1, 4) :])


@pytest.mark.two_process
@pytest.mark.parametrize("name", AGAIN)
def test_layers_in_pieces_that_run_again_lead_where_layers_that_run_once_lead(one, pieces, name):
    """The body runs again where it trains or lies above what trains: in the last 3 of 5 epochs of 3 batches."""
    for result in (one, *pieces):
        again, once = result[name], result[name.removesuffix(", layers run again")]
        assert again["runs of the body"] == (5 + 3) * 3
        assert again["losses"] == pytest.approx(once["losses"], abs=1e-9)
        for key, value in once["weights"].items():
            torch.testing.assert_close(again["weights"][key], value, rtol=0, atol=1e-9, msg=key)


@pytest.mark.two_process
def test_a_process_holds_pieces_while_it_trains_and_a_plain_model_afterwards(one, pieces):
    total = sum(parameter.numel() for parameter in new_model().parameters())
    assert one["gradual"]["kinds"] == ["whole"]
    held = [result["gradual"]["held"] for result in pieces]
    for result in pieces:
        assert result["gradual"]["plain afterwards"]
        assert "in pieces" in result["gradual"]["kinds"]
    assert held[0][-1] + held[1][-1] == total
    assert all(0.4 * total < each[-1] < 0.6 * total for each in held)


@pytest.mark.two_process
def test_a_sweep_of_the_learning_rate_is_that_of_whole_weights(one, pieces):
    for result in pieces:
        assert result["sweep"]["lrs"] == one["sweep"]["lrs"]
        assert result["sweep"]["losses"] == pytest.approx(one["sweep"]["losses"], rel=1e-6)
        assert result["sweep"]["unchanged"]


@pytest.mark.two_process
def test_gradient_norms_are_those_of_whole_gradients(one, pieces):
    assert len(one["gradient norms"]) >= 3
    for mine, theirs in zip(pieces[0]["gradient norms"], one["gradient norms"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-9)
    assert pieces[1]["gradient norms"] == []  # the main process logs


@pytest.mark.two_process
def test_what_pieces_cannot_do_is_refused_on_every_process(pieces):
    for result in pieces:
        found = result["refusals"]
        assert found["compiled"].startswith("a sharded model is not compiled here: leave compile out")
        assert found["uneven"].startswith("ToyClassifier reads a text in as many windows as it is long, so processes")
        assert "before they shard their weights the processes no longer hold the same weights" in found["other weights"]
        assert "fsdp_cpu_ram_efficient_loading gives all processes but the first empty" in found["empty weights"]
        assert found["cached"] == (
            "cache_frozen: off in phase 'some', frozen groups run in every epoch: the weights are sharded over the "
            "processes, which must run all layers equally often"
        )


def test_one_process_has_nothing_to_part(accelerator):
    assert not wants_sharding(accelerator, TrainingOptions(shard=True))
    assert not is_sharded(new_model())


def test_accelerates_second_fsdp_asks_for_pieces_too():
    assert wants_sharding(SimpleNamespace(num_processes=2, is_fsdp2=True), TrainingOptions())
    assert not wants_sharding(SimpleNamespace(num_processes=2, is_fsdp2=False), TrainingOptions())


def test_a_whole_model_is_not_handed_to_accelerate_to_be_parted_in_place(accelerator, monkeypatch):
    model = new_model()
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(UnsupportedAcceleratorError, match="was given a whole model; hand it to fit or lr_find"):
        with prepared(model, torch.optim.SGD(model.parameters()), accelerator, TrainingOptions(shard=True)):
            pass


def test_checkpoints_within_a_phase_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="shard splits the weights .* no checkpoints of these are saved; leave one of the"
    ):
        TrainingOptions(shard=True, checkpoints=Checkpoints(tmp_path))


def test_a_unit_is_the_largest_module_of_a_layer_group_that_can_be_run():
    model = new_model()
    assert [modules_of_group(model, group) for group in groups_of(model)] == [
        [model.embeddings],
        [model.body],
        [model.middle],
        [model.head],
    ]
    language_model = ToyLanguageModel()
    units = [modules_of_group(language_model, group) for group in lm_groups_of(language_model)]
    assert units == [[language_model.lstm], [language_model.embeddings, language_model.lm_head]]


def test_a_list_of_layers_is_no_unit_but_each_of_its_layers_is():
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 4)])
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.layers[1](self.layers[0](x)) * self.scale

    model = Stacked()
    groups = split_layer_groups(model, [["layers"], ["scale"]])
    assert [modules_of_group(model, group) for group in groups] == [list(model.layers), []]
    (whole,) = split_layer_groups(model, [[""]])
    assert modules_of_group(model, whole) == [model]
