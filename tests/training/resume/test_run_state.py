import random

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.toy_models import ToyLanguageModel, groups_of, new_model, weights_of
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.training.optim import build_optimizer
from ulmfit_pipe.training.records import StepRecord
from ulmfit_pipe.training.resume.run_state import (
    flatten_carry,
    model_tensors,
    optimizer_tensors,
    random_tensors,
    rebuild_carry,
    restore_model,
    restore_optimizer,
    restore_random,
    same_random,
    step_tensors,
    steps_from,
    with_ties,
    without_ties,
)

CPU = torch.device("cpu")


def stepped(model, optimizer, times, *, frozen=()):
    torch.manual_seed(3)
    for _ in range(times):
        loss = model(torch.randint(13, (4, 3))).logits.square().sum()
        loss.backward()
        for name, parameter in model.named_parameters():
            if name.startswith(tuple(frozen)):
                parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()


def test_weights_and_all_buffers_come_back(monkeypatch):
    model, other = new_model(norm="batch"), new_model(norm="batch", seed=1)
    for one in (model, other):
        one.head.register_buffer("left_out", torch.rand(2), persistent=False)  # a state dict would not hold it
    restore_model(other, {name: value.clone() for name, value in model_tensors(model).items()})
    assert all(torch.equal(value, weights_of(other)[name]) for name, value in weights_of(model).items())
    assert torch.equal(other.head.left_out, model.head.left_out)
    assert list(model_tensors(ToyLanguageModel())).count("lm_head.weight") == 0  # tied: once, as the embedding


def test_another_model_is_named_by_its_first_tensor():
    model = new_model()
    with pytest.raises(CheckpointError, match="another model: body.1.bias, of which the model has none"):
        restore_model(new_model(norm="none"), model_tensors(model))
    wide = new_model()
    wide.head = nn.Linear(6, 9)
    with pytest.raises(
        CheckpointError, match=r"another model: head.weight is \(9, 6\) there and \(4, 6\) in the model"
    ):
        restore_model(model, model_tensors(wide))


@pytest.mark.parametrize("decoupled", [True, False])
def test_an_optimizer_goes_on_with_its_moments_also_where_some_groups_have_none(decoupled):
    model, frozen = new_model(), ("embeddings", "body")
    optimizer = build_optimizer(groups_of(model), [1e-2] * 4, decoupled=decoupled)
    stepped(model, optimizer, 2, frozen=frozen)
    tensors = {name: value.clone() for name, value in optimizer_tensors(optimizer, model).items()}
    assert {name.split("/")[0] for name in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    assert not any("embeddings" in name for name in tensors)
    twin = new_model()
    restore_model(twin, model_tensors(model))
    second = build_optimizer(groups_of(twin), [1e-2] * 4, decoupled=decoupled)
    restore_optimizer(second, twin, tensors)
    stepped(model, optimizer, 2)
    stepped(twin, second, 2)
    assert all(torch.equal(value, weights_of(twin)[name]) for name, value in weights_of(model).items())
    assert second.param_groups[0]["layer_group"] == 0


def test_generators_go_on_where_they_were():
    random.gauss(0, 1), np.random.normal()  # both keep the second of a pair for later
    states = random_tensors(CPU)
    drawn = [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(2).tolist()]
    assert not same_random(states, random_tensors(CPU))
    restore_random(states, CPU)
    assert same_random(states, random_tensors(CPU))
    assert [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(2).tolist()] == drawn


def test_generators_of_another_kind_are_refused(monkeypatch):
    monkeypatch.setattr(random, "getstate", lambda: (4, (), None))
    with pytest.raises(
        CheckpointError, match=r"random generators of unknown kind \(version 4, MT19937\) cannot be save"
    ):
        random_tensors(CPU)


@pytest.mark.parametrize(
    "carry",
    [None, torch.ones(2), (torch.ones(2), None, [torch.zeros(1), (torch.ones(1),)]), {"h": torch.ones(3), "c": ()}],
)
def test_a_carried_state_keeps_its_shape(carry):
    tensors, outline = flatten_carry(carry)
    again = rebuild_carry({name: value.clone() for name, value in tensors.items()}, outline, CPU)
    assert str(again) == str(carry)


def test_a_carried_number_is_refused():
    with pytest.raises(
        CheckpointError, match="carries a float, which no checkpoint can hold; carry tensors in tuples, l"
    ):
        flatten_carry((torch.ones(1), 0.5))


def test_tied_weights_are_written_once_and_come_back_under_both_names():
    shared = torch.ones(3)
    tensors, ties = without_ties({"a": shared, "b": torch.zeros(3), "c": shared})
    assert (sorted(tensors), ties) == (["a", "b"], {"c": "a"})
    again = with_ties(tensors, ties)
    assert again["c"] is again["a"] and sorted(again) == ["a", "b", "c"]


def test_records_of_steps_keep_every_bit():
    steps = [StepRecord(0, 1 / 3, (0.0, 1e-300)), StepRecord(1, float("inf"), (0.1, 0.2))]
    assert steps_from(step_tensors(steps)) == steps
    assert steps_from(step_tensors([])) == []
