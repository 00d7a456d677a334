import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.toy_models import ToyLanguageModel, groups_of, lm_groups_of, new_model
from ulmfit_pipe.training.layer_groups import split_layer_groups
from ulmfit_pipe.training.optim import build_optimizer, discriminative_lrs, set_schedule_point, spread_lrs
from ulmfit_pipe.training.schedules import Schedule

THREE = ["low", "middle", "high"]


def test_the_ladder_divides_by_2_6_from_the_last_group_down():
    assert discriminative_lrs(1e-2, 4) == pytest.approx([1e-2 / 2.6**3, 1e-2 / 2.6**2, 1e-2 / 2.6, 1e-2], rel=1e-15)
    assert discriminative_lrs(1e-2, 3, decay=1) == [1e-2] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0, "num_groups": 2}, "must be a positive number, got 0.0"),
        ({"lr": math.nan, "num_groups": 2}, "must be a positive number, got nan"),
        ({"lr": 1e-2, "num_groups": 0}, "num_groups must be at least 1, got 0"),
        ({"lr": 1e-2, "num_groups": 2, "decay": 0}, "decay must be positive, got 0; 2.6 is the paper's value"),
    ],
)
def test_ladders_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        discriminative_lrs(**options)


@pytest.mark.parametrize(
    ("lr", "expected"),
    [
        (slice(1e-4, 1e-2), [1e-4, 1e-3, 1e-2]),  # golden, fastai 2.8
        (slice(1e-2), [1e-3, 1e-3, 1e-2]),  # golden, fastai 2.8
        (slice(None, 1e-2), [1e-3, 1e-3, 1e-2]),
        (slice(0, 1e-2), [1e-3, 1e-3, 1e-2]),
        (3e-3, [3e-3, 3e-3, 3e-3]),
        (np.float32(0.5), [0.5, 0.5, 0.5]),
        ([1e-4, 2e-4, 3e-4], [1e-4, 2e-4, 3e-4]),
        ({"high": 3e-4, "low": 1e-4, "middle": 2e-4}, [1e-4, 2e-4, 3e-4]),
    ],
)
def test_learning_rates_are_spread_as_fastai_does(lr, expected):
    assert spread_lrs(lr, THREE) == pytest.approx(expected, rel=1e-12)


def test_a_slice_over_one_group_gives_its_end():
    assert spread_lrs(slice(1e-4, 1e-2), ["all"]) == [1e-2]
    assert spread_lrs(slice(1e-2), ["all"]) == [1e-2]


def test_a_slice_over_2_6_to_the_4_is_the_ladder_of_five_groups():
    spread = spread_lrs(slice(1e-2 / 2.6**4, 1e-2), ["a", "b", "c", "d", "e"])
    assert spread == pytest.approx(discriminative_lrs(1e-2, 5), rel=1e-12)


@pytest.mark.parametrize(
    ("lr", "words"),
    [
        (0, "must be a positive number, got 0"),
        (-1e-3, "must be a positive number, got -0.001"),
        (math.inf, "got inf"),
        (math.nan, "got nan"),
        (True, "got True"),
        ("1e-3", "got '1e-3'"),
        (None, "got None"),
        (slice(1e-4, None), "got None as the end of the slice"),
        (slice(-1e-4, 1e-2), "got -0.0001 as the start of the slice"),
        (slice(1e-4, 1e-2, 2), "a start and a stop only"),
        ([1e-3, 1e-2], r"got 2 learning rates for 3 layer groups \(low, middle, high\)"),
        ([1e-3, 0, 1e-2], "got 0 for layer group middle"),
        ({"low": 1e-3, "hihg": 1e-2}, "no layer group is called 'hihg'; did you mean 'high'"),
        ({"low": 1e-3}, r"no learning rate given for layer groups \['middle', 'high'\]"),
        ({"low": 1e-3, "middle": 1, "high": math.nan}, "got nan for layer group high"),
    ],
)
def test_learning_rates_that_make_no_sense_are_refused(lr, words):
    with pytest.raises(ValueError, match=words):
        spread_lrs(lr, THREE)


class Zoo(nn.Module):
    """One of every kind whose weight decay people get wrong."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 2)
        self.lstm = nn.LSTM(2, 3, bidirectional=True)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norms = nn.ModuleList([nn.LayerNorm(2), nn.BatchNorm1d(2), nn.GroupNorm(1, 2), nn.RMSNorm(2)])
        self.instance = nn.InstanceNorm1d(2, affine=True)
        self.head = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_only_weights_are_decayed_never_norms_or_any_bias():
    model = Zoo()
    groups = split_layer_groups(model, [["embedding", "lstm", "attention"], ["norms", "instance"], ["head"]])
    optimizer = build_optimizer(groups, [1e-3, 2e-3, 3e-3], weight_decay=0.1)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {name_of[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, value in decay.items() if value} == {
        "embedding.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "lstm.weight_ih_l0_reverse",
        "lstm.weight_hh_l0_reverse",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.1.weight",
    }
    assert len(decay) == len(list(model.parameters()))


def test_every_parameter_has_its_groups_learning_rate_by_name():
    model = new_model()
    optimizer = build_optimizer(groups_of(model), discriminative_lrs(2.6, 4))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {name_of[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == pytest.approx(
        {
            "embeddings.weight": 2.6 / 2.6**3,
            "body.0.weight": 2.6 / 2.6**2,
            "body.0.bias": 2.6 / 2.6**2,
            "body.1.weight": 2.6 / 2.6**2,
            "body.1.bias": 2.6 / 2.6**2,
            "middle.0.weight": 1.0,
            "middle.0.bias": 1.0,
            "middle.1.weight": 1.0,
            "middle.1.bias": 1.0,
            "head.weight": 2.6,
            "head.bias": 2.6,
        }
    )


def test_a_tied_weight_is_in_the_optimizer_once():
    optimizer = build_optimizer(lm_groups_of(ToyLanguageModel()), [1e-3, 1e-2])
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == 6


def test_frozen_groups_are_in_the_optimizer_from_the_start():
    model = new_model()
    for parameter in model.body.parameters():
        parameter.requires_grad_(False)
    optimizer = build_optimizer(groups_of(model), [1e-3] * 4)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("lrs", "options", "words"),
    [
        ([1e-3], {}, "got 1 learning rates for 4 layer groups"),
        ([1e-3, 0, 1, 1], {}, "got 0 for layer group body"),
        ([1e-3] * 4, {"weight_decay": -1}, "weight_decay must be 0 or more, got -1"),
    ],
)
def test_optimizers_that_make_no_sense_are_refused(lrs, options, words):
    with pytest.raises(ValueError, match=words):
        build_optimizer(groups_of(new_model()), lrs, **options)


def test_coupled_decay_is_plain_adam():
    groups = groups_of(new_model())
    assert type(build_optimizer(groups, [1e-3] * 4, decoupled=False)) is torch.optim.Adam
    assert type(build_optimizer(groups, [1e-3] * 4)) is torch.optim.AdamW


def test_a_schedule_point_scales_base_rates_and_sets_beta1():
    optimizer = build_optimizer(groups_of(new_model()), [1e-3, 2e-3, 3e-3, 4e-3])
    set_schedule_point(optimizer, 0.5, 0.7)
    set_schedule_point(optimizer, 0.25, None)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert {group["betas"] for group in optimizer.param_groups} == {(0.7, 0.99)}


def test_adamw_with_cycled_momentum_is_fastais_adam():
    steps, lr, decay, beta2, eps = 30, 1e-2, 0.01, 0.99, 1e-5
    schedule = Schedule.one_cycle()
    rng = np.random.default_rng(0)
    model = nn.Linear(5, 7, bias=False).double()
    ours = build_optimizer(split_layer_groups(model, [[""]]), [lr], weight_decay=decay, betas=(0.9, beta2), eps=eps)
    p = model.weight.detach().numpy().copy()
    m, v = np.zeros_like(p), np.zeros_like(p)
    for step in range(steps):
        gradient = rng.normal(size=p.shape)
        factor, beta1 = schedule.factor(step, steps), schedule.momentum(step, steps)
        set_schedule_point(ours, factor, beta1)
        model.weight.grad = torch.from_numpy(gradient.copy())
        ours.step()
        t = step + 1
        p *= 1 - lr * factor * decay
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        p -= lr * factor / (1 - beta1**t) * m / (np.sqrt(v / (1 - beta2**t)) + eps)
    assert np.abs(model.weight.detach().numpy() - p).max() < 3e-8
