import random

import numpy as np
import pytest
import torch

from tests.support.toy_models import ToyBatches, groups_of, new_model, new_phase, new_task, same, text_rows, weights_of
from ulmfit_pipe.training.layer_groups import freeze, freeze_map, freeze_to, train_mode, unfreeze
from ulmfit_pipe.training.loop import fit
from ulmfit_pipe.training.lr_finder import LRFinderResult, lr_find
from ulmfit_pipe.training.lr_suggestions import Advice
from ulmfit_pipe.training.objectives import ClassificationObjective
from ulmfit_pipe.training.optim import LR_DECAY
from ulmfit_pipe.training.records import Task, TrainingOptions


def sweep(accelerator, model, task=None, *, groups=None, options=None, **settings):
    return lr_find(
        model,
        groups or groups_of(model),
        task or new_task(40),
        accelerator=accelerator,
        options=options or TrainingOptions(),
        **{"num_steps": 40, "end_lr": 1.0, **settings},
    )


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def count_pass(model):
    model.unsaved += 1


class Noisy(ClassificationObjective):
    """Uses every generator, and raises on the n-th call if asked to."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, model, batch, carry):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("the disk of the data is gone")
        random.random()
        np.random.rand()
        return super().__call__(model, batch, carry)


@pytest.mark.parametrize("fail_at", [None, 4])
def test_a_sweep_leaves_no_trace_also_when_it_raises(accelerator, fail_at):
    model = new_model(norm="batch", dropout=0.3)
    model.register_buffer("unsaved", torch.zeros(2), persistent=False)
    model.middle.register_forward_hook(lambda *_: count_pass(model))
    groups = groups_of(model)
    freeze_to(groups, 2)
    train_mode(model, groups)
    model.body[2].eval()
    model.head.bias.grad = torch.full((4,), 7.0)
    model.body[0].bias.grad = torch.full((7,), 5.0)
    task = Task(ToyBatches(text_rows(40)), Noisy(fail_at), None, None)
    task.train_batches.set_epoch(3)
    weights, flags, frozen = weights_of(model), [m.training for m in model.modules()], freeze_map(groups)
    states, order = random_states(), task.train_batches.order.tolist()
    parameters = dict(model.named_parameters())
    if fail_at is None:
        sweep(accelerator, model, task, groups=groups)
    else:
        with pytest.raises(RuntimeError, match="the disk of the data is gone"):
            sweep(accelerator, model, task, groups=groups)
    assert same(weights, weights_of(model)) == list(weights)
    assert model.unsaved.tolist() == [0.0, 0.0]
    assert [m.training for m in model.modules()] == flags
    assert freeze_map(groups) == frozen
    assert random_states() == states
    assert task.train_batches.order.tolist() == order
    assert model.head.bias.grad.tolist() == [7.0] * 4
    assert model.body[0].bias.grad.tolist() == [5.0] * 7
    assert model.head.weight.grad is None
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_repeated_sweeps_give_the_same_curve(accelerator):
    model = new_model(dropout=0.5)
    first, second = sweep(accelerator, model), sweep(accelerator, model)
    assert first == second
    assert len(first.losses) == len(first.lrs) == 40


def test_gradients_left_on_the_model_do_not_bend_the_curve(accelerator):
    clean = sweep(accelerator, new_model())
    model = new_model()
    model(torch.zeros(2, 3, dtype=torch.long)).logits.sum().mul(1e4).backward()
    assert sweep(accelerator, model) == clean


def test_training_after_a_sweep_is_training_without_one(accelerator):
    def trained(*, swept):
        model = new_model(dropout=0.5)
        if swept:
            sweep(accelerator, model)
        fit(
            model,
            groups_of(model),
            new_phase(2, 3),
            new_task(),
            accelerator=accelerator,
            options=TrainingOptions(weight_decay=0.5),
        )
        return weights_of(model)

    without = trained(swept=False)
    assert same(without, trained(swept=True)) == list(without)


def test_frozen_weights_stay_bit_identical_after_an_unfrozen_sweep_and_a_freeze(accelerator):
    model = new_model()
    groups = groups_of(model)
    unfreeze(groups)
    sweep(accelerator, model, groups=groups, options=TrainingOptions(weight_decay=0.5))
    freeze(groups)
    before = weights_of(model)
    fit(model, groups, new_phase(3), new_task(), accelerator=accelerator, options=TrainingOptions(weight_decay=0.5))
    assert [name for name in before if not name.startswith("head")] == same(before, weights_of(model))


def test_rates_grow_exponentially_and_the_loss_is_a_debiased_mean(accelerator):
    losses = []

    class Spy(ClassificationObjective):
        def __call__(self, model, batch, carry):
            output = super().__call__(model, batch, carry)
            losses.append(float(output.loss_sum.detach()) / len(batch["labels"]))
            return output

    task = Task(ToyBatches(text_rows(8)), Spy())
    result = sweep(accelerator, new_model(), task, start_lr=1e-5, end_lr=1e-1, num_steps=30)
    assert result.lrs == pytest.approx([1e-5 * 1e4 ** (i / 30) for i in range(30)], rel=1e-12)
    mean = 0.0
    for index, (raw, smooth) in enumerate(zip(losses, result.losses, strict=True), start=1):
        mean = 0.98 * mean + 0.02 * raw
        assert smooth == pytest.approx(mean / (1 - 0.98**index), rel=1e-5)


def test_a_sweep_that_diverges_stops_early(accelerator):
    class Diverges(ClassificationObjective):
        calls = 0

        def __call__(self, model, batch, carry):
            self.calls += 1
            output = super().__call__(model, batch, carry)
            output.loss_sum = output.loss_sum * (1.0 if self.calls < 40 else 1e4)
            return output

    result = sweep(accelerator, new_model(), Task(ToyBatches(text_rows(40)), Diverges()), num_steps=100)
    assert len(result.lrs) == 40
    assert result.losses[-1] > 4 * min(result.losses[:-1])


def test_a_nan_ends_the_sweep_without_an_error(accelerator):
    class TurnsNan(ClassificationObjective):
        calls = 0

        def __call__(self, model, batch, carry):
            self.calls += 1
            output = super().__call__(model, batch, carry)
            output.loss_sum = output.loss_sum * (1.0 if self.calls < 50 else torch.nan)
            return output

    result = sweep(accelerator, new_model(), Task(ToyBatches(text_rows(40)), TurnsNan()), num_steps=100)
    assert len(result.lrs) == 49


def test_suggestions_have_all_four_rules_and_a_line(accelerator):
    model = new_model()
    groups = groups_of(model)
    freeze_to(groups, -2)
    result = sweep(accelerator, model, groups=groups)
    assert set(result.suggestions) == {"valley", "slide", "minimum", "steep"}
    assert result.valley == result.suggestions["valley"]
    assert result.trained == ("middle", "head")
    assert result.describe().startswith("suggested learning rates for middle, head: valley ")
    assert result.taken == result.suggestions[result.advice.name]
    assert f"; take {result.advice.name} {result.taken:.2e}: it is " in result.describe()


def test_a_warning_stands_beside_the_suggestions_of_a_curve_that_is_not_to_be_believed():
    suggestions = {"valley": 1e-3, "minimum": 1e-2}
    result = LRFinderResult((1e-3,), (1.0,), suggestions, ("head",), Advice("minimum", "it is so", ("it is short",)))
    assert result.taken == 1e-2
    assert result.advice_lines() == ["take minimum 1.00e-02: it is so", "warning: it is short"]


def test_a_sweep_of_chosen_groups_trains_only_them(accelerator):
    model = new_model()
    groups = groups_of(model)
    freeze(groups)
    result = sweep(accelerator, model, groups=groups, sweep_groups=[1])
    assert result.trained == ("body",)
    assert not any(frozen for name, frozen in freeze_map(groups).items() if name.startswith("head"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start_lr": 0}, "needs 0 < start_lr < end_lr, got 0 and 1.0"),
        ({"start_lr": 2.0}, "got 2.0 and 1.0"),
        ({"num_steps": 6}, "usable points, suggestions need at least 16"),
    ],
)
def test_ranges_and_short_curves_are_refused_clearly(accelerator, settings, words):
    with pytest.raises(ValueError, match=words):
        sweep(accelerator, new_model(), **settings)


def test_no_data_to_sweep_over_is_refused(accelerator):
    with pytest.raises(ValueError, match="no batch to sweep over; give more rows or a smaller batch size"):
        sweep(accelerator, new_model(), Task(ToyBatches(text_rows(0)), ClassificationObjective()))


def test_a_sweep_after_training_works(accelerator):
    model = new_model()
    groups = groups_of(model)
    fit(model, groups, new_phase(2, 3), new_task(), accelerator=accelerator, options=TrainingOptions())
    assert len(sweep(accelerator, model, groups=groups).lrs) == 40
    assert LR_DECAY == 2.6
