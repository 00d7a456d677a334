import math
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F  # noqa: N812

from tests.support.toy_models import (
    CLASSES,
    ToyBatches,
    ToyLanguageModel,
    groups_of,
    lm_groups_of,
    new_metric,
    new_model,
    new_phase,
    new_task,
    same,
    text_rows,
    token_rows,
    weights_of,
)
from ulmfit_pipe.training import loop
from ulmfit_pipe.training.compute import wrapping
from ulmfit_pipe.training.distributed import processes
from ulmfit_pipe.training.layer_groups import freeze, split_layer_groups
from ulmfit_pipe.training.loop import NonFiniteLossError, evaluate, fit, prepared
from ulmfit_pipe.training.objectives import ClassificationObjective, SequenceObjective
from ulmfit_pipe.training.optim import build_optimizer
from ulmfit_pipe.training.records import Phase, Task, TrainingOptions
from ulmfit_pipe.training.schedules import Schedule

ALL = (0, 1, 2, 3)


def run(accelerator, model, phase, task=None, **options):
    settings = {name: options.pop(name) for name in ("first_epoch", "on_epoch") if name in options}
    groups = groups_of(model)
    task = task or new_task()
    return fit(model, groups, phase, task, accelerator=accelerator, options=TrainingOptions(**options), **settings)


# ---- what is frozen stays


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_frozen_parameter_is_bit_identical_after_train_freeze_train(accelerator, accumulation, decoupled):
    model = new_model(norm="batch", dropout=0.1)
    options = {"weight_decay": 0.5, "accumulation_steps": accumulation, "decoupled": decoupled}
    run(accelerator, model, new_phase(*ALL, lr=0.1, epochs=2), **options)
    assert all(parameter.grad is None for parameter in model.parameters())
    before = weights_of(model)
    run(accelerator, model, new_phase(2, 3, lr=0.1, epochs=2), **options)
    unmoved = same(before, weights_of(model))
    assert [name for name in before if name.startswith(("embeddings", "body"))] == unmoved


def test_gradients_left_on_the_model_do_not_leak_into_the_first_step(accelerator):
    clean, stale = new_model(), new_model()
    stale(torch.zeros(2, 3, dtype=torch.long)).logits.sum().mul(1e3).backward()
    run(accelerator, clean, new_phase(*ALL))
    run(accelerator, stale, new_phase(*ALL))
    assert len(same(weights_of(clean), weights_of(stale))) == len(weights_of(clean))


def test_frozen_batch_norm_statistics_are_held_after_every_epoch(accelerator):
    model = new_model(norm="batch")
    start = weights_of(model)
    seen = []

    def look(_record):
        seen.append(same(start, weights_of(model)))
        return False

    run(accelerator, model, new_phase(2, 3, epochs=3), on_epoch=look)
    for unmoved in seen:
        assert {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"} <= set(unmoved)
        assert "middle.1.running_mean" not in unmoved


def test_frozen_batch_norm_moves_with_train_norm(accelerator):
    model = new_model(norm="batch")
    start = weights_of(model)
    run(accelerator, model, new_phase(3), train_norm=True)
    unmoved = same(start, weights_of(model))
    assert unmoved == ["embeddings.weight", "body.0.weight", "body.0.bias", "middle.0.weight", "middle.0.bias"]


def test_frozen_dropout_off_makes_every_pass_over_a_frozen_body_the_same(accelerator):
    def passes(choice):
        model, seen = new_model(dropout=0.5), []
        model.body.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().sort(dim=0).values))
        task = new_task(batch_size=10, valid=0)
        run(accelerator, model, new_phase(2, 3, epochs=2), task, frozen_dropout=choice)
        return torch.allclose(*seen, atol=1e-6)

    assert passes("off")
    assert not passes("on")


def test_everything_frozen_is_refused_clearly(accelerator):
    with pytest.raises(ValueError, match=r"trainable groups must be a non-empty subset of 0\.\.3, got \[\]"):
        run(accelerator, new_model(), new_phase())


# ---- learning rates and schedules


def test_every_step_has_the_schedules_learning_rate_in_every_group(accelerator):
    schedule = Schedule.one_cycle()
    lrs = (1e-4, 1e-3, 1e-2, 2e-2)
    phase = Phase("some", (2, 3), lrs, schedule, epochs=2)
    _, steps = run(accelerator, new_model(), phase)
    assert [step.step for step in steps] == [0, 1, 2, 3, 4, 5]
    for step in steps:
        factor = schedule.factor(step.step, 6)
        assert step.lrs == pytest.approx((0, 0, 1e-2 * factor, 2e-2 * factor), rel=1e-12)


def test_momentum_follows_the_one_cycle(accelerator, monkeypatch):
    seen = []
    original = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        seen.append(self.param_groups[0]["betas"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(accelerator, new_model(), new_phase(*ALL, schedule=Schedule.one_cycle(), epochs=2))
    assert seen == [(Schedule.one_cycle().momentum(step, 6), 0.99) for step in range(6)]


def test_the_learning_rates_do_not_depend_on_accumulation(accelerator):
    phase = new_phase(*ALL, schedule=Schedule.slanted_triangular(), epochs=3)
    _, one = run(accelerator, new_model(), phase, new_task(16, batch_size=8))
    _, four = run(accelerator, new_model(), phase, new_task(16, batch_size=2), accumulation_steps=4)
    assert [step.lrs for step in one] == [step.lrs for step in four]
    assert len(one) == 6


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0, 3.0])])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 8), (2, 4), (3, 3)])
def test_accumulated_micro_batches_are_one_large_batch(accelerator, batch_size, accumulation, weights):
    size = batch_size * accumulation
    runs = []
    for shape in ((size, 1), (batch_size, accumulation)):
        model = new_model().double()
        objective = ClassificationObjective(class_weights=weights, label_smoothing=0.1)
        task = Task(ToyBatches(text_rows(2 * size - 1), batch_size=shape[0]), objective)
        phase = new_phase(*ALL, lr=slice(1e-3, 1e-2), epochs=2, schedule=Schedule.one_cycle())
        _, steps = run(accelerator, model, phase, task, accumulation_steps=shape[1], max_grad_norm=0.05)
        runs.append((weights_of(model), [step.loss for step in steps]))
    assert len(runs[0][1]) == 4
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-12)
    for name, value in runs[0][0].items():
        assert torch.allclose(value, runs[1][0][name], rtol=0, atol=1e-9), name


def test_a_freeze_change_after_an_unfull_window_leaves_no_gradient_behind(accelerator):
    model = new_model()
    task = new_task(10, batch_size=2, valid=0)  # 5 micro-batches: a window of 4 and one of 1
    run(accelerator, model, new_phase(*ALL, lr=0.1), task, accumulation_steps=4, weight_decay=0.5)
    before = weights_of(model)
    run(accelerator, model, new_phase(3, lr=0.1), task, accumulation_steps=4, weight_decay=0.5)
    after = weights_of(model)
    assert [name for name in before if not name.startswith("head")] == same(before, after)


def test_a_skipped_step_does_not_advance_the_schedule(accelerator, monkeypatch):
    skipped = iter([True, False, False, True, False, False])
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda _self: next(skipped)))
    phase = new_phase(*ALL, schedule=Schedule.one_cycle(), epochs=2)
    records, steps = run(accelerator, new_model(), phase)
    assert [step.step for step in steps] == [0, 0, 1, 2, 2, 3]
    assert records[-1].step == 4
    assert [record.cut_short for record in records] == [False, False]
    assert steps[0].lrs == steps[1].lrs


def test_start_epoch_goes_on_in_the_middle_of_the_curve(accelerator):
    phase = new_phase(*ALL, lr=1e-2, schedule=Schedule.one_cycle(), epochs=2, start_epoch=1)
    records, steps = run(accelerator, new_model(), phase)
    assert len(records) == 1
    assert steps[0].lrs[-1] == pytest.approx(1e-2 * 0.7500025, rel=1e-9)  # golden, fastai 2.8


def test_skipped_epochs_keep_their_place_in_the_datas_order(accelerator):
    whole, parts = new_model(), new_model()
    run(accelerator, whole, new_phase(*ALL, epochs=2))
    seen = []
    task = new_task()
    task.train_batches.set_epoch = seen.append
    run(accelerator, parts, new_phase(*ALL, epochs=3, start_epoch=2), task, first_epoch=5)
    assert seen == [5, 6, 7, 7]


# ---- gradients


def test_clipping_bounds_the_norm_over_all_parameters(accelerator, monkeypatch):
    norms = []
    original = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(accelerator, new_model(), new_phase(*ALL), max_grad_norm=0.01)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_a_penalty_weighs_as_the_items_it_comes_with(accelerator):
    losses = []

    class WithPenalty(ClassificationObjective):
        def __call__(self, model, batch, carry):
            output = super().__call__(model, batch, carry)
            output.penalty = 3.0 * model.head.bias.sum() * len(batch["labels"])
            output.loss_sum = 0.0 * output.loss_sum
            return output

    def gradient_of_the_head(batch_size, accumulation):
        model = new_model()
        model.head.bias.register_hook(lambda grad: losses.append(grad.clone()))
        losses.clear()
        task = Task(ToyBatches(text_rows(3), batch_size=batch_size, seed=None), WithPenalty())
        run(accelerator, model, new_phase(*ALL), task, accumulation_steps=accumulation)
        return float(sum(losses)[0])

    assert gradient_of_the_head(3, 1) == pytest.approx(9.0)
    assert gradient_of_the_head(2, 2) == pytest.approx((2 * 6.0 + 1 * 3.0) / 3)


def test_the_reported_loss_leaves_penalties_out_and_weighs_every_token_alike(accelerator):
    model = ToyLanguageModel()
    rows = token_rows(6)
    rows["targets"][0, 1:] = -100
    task = Task(ToyBatches(rows, batch_size=3, seed=None), SequenceObjective(alpha=50.0))
    with torch.no_grad():
        expected = F.cross_entropy(model(rows["input_ids"]).logits.flatten(0, 1), rows["targets"].flatten())
    phase = Phase("some", (0, 1), (1e-9, 1e-9), Schedule.constant())
    records, _ = fit(model, lm_groups_of(model), phase, task, accelerator=accelerator, options=TrainingOptions())
    # the state is carried from batch to batch, so only the first batch can be compared exactly
    assert records[0].train_loss == pytest.approx(float(expected), rel=0.05)


def test_state_is_carried_within_an_epoch_and_starts_afresh_with_the_next(accelerator):
    carried = []

    class Spy(SequenceObjective):
        def __call__(self, model, batch, carry):
            carried.append(carry is not None)
            return super().__call__(model, batch, carry)

    model = ToyLanguageModel()
    task = Task(ToyBatches(token_rows(6), batch_size=2), Spy())
    phase = Phase("some", (0, 1), (1e-3, 1e-3), Schedule.constant(), epochs=2)
    options = TrainingOptions(accumulation_steps=2)
    fit(model, lm_groups_of(model), phase, task, accelerator=accelerator, options=options)
    assert carried == [False, True, True] * 2


# ---- what goes wrong


class Poison(ClassificationObjective):
    """Makes the loss of the n-th batch NaN."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def __call__(self, model, batch, carry):
        self.left -= 1
        if self.left == 0:
            for parameter in model.body[0].parameters():
                parameter.data = parameter.data * torch.nan if self.damage else parameter.data
        output = super().__call__(model, batch, carry)
        if self.left == 0:
            output.loss_sum = output.loss_sum * torch.nan
        return output

    damage = False


def test_a_nan_loss_stops_with_step_and_rates_and_what_to_try_and_keeps_the_weights(accelerator):
    reference, model = new_model(norm="batch"), new_model(norm="batch")
    rows = text_rows(12)
    phase = new_phase(2, 3, lr=slice(1e-3, 1e-2))
    two = Task(ToyBatches({key: value[:8] for key, value in rows.items()}, seed=None), ClassificationObjective())
    run(accelerator, reference, phase, two)
    words = (
        r"the loss became nan at step 2 with learning rates: middle 4\.64e-03, head 1\.00e-02\. The weights of the "
        r"step before are kept\. Try a learning rate 3 to 10 times lower .*max_grad_norm=1\.0"
    )
    with pytest.raises(NonFiniteLossError, match=words):
        run(accelerator, model, phase, Task(ToyBatches(rows, seed=None), Poison(3)))
    kept = weights_of(model)
    assert same(weights_of(reference), kept) == list(kept)  # running statistics too
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "forward" not in model.__dict__


def test_damaged_weights_are_not_called_kept(accelerator):
    objective = Poison(1)
    objective.damage = True
    with pytest.raises(NonFiniteLossError, match="The weights are damaged too: load the last save"):
        run(accelerator, new_model(), new_phase(*ALL), Task(ToyBatches(text_rows(4)), objective))


def test_a_gradient_that_is_not_finite_stops_where_clipping_sees_it(accelerator):
    model = new_model()
    model.head.weight.register_hook(lambda grad: grad * torch.inf)
    before = weights_of(model)
    with pytest.raises(NonFiniteLossError, match="the gradient's norm became (nan|inf) at step 0"):
        run(accelerator, model, new_phase(*ALL), max_grad_norm=1.0)
    assert same(before, weights_of(model)) == list(before)


def test_data_without_batches_is_refused(accelerator):
    task = Task(ToyBatches(text_rows(0)), ClassificationObjective())
    with pytest.raises(ValueError, match="has no batch to train on; give more rows or a smaller batch size"):
        run(accelerator, new_model(), new_phase(3), task)


def test_a_batch_in_which_nothing_counts_is_refused(accelerator):
    weights = torch.tensor([0.0, 1.0, 1.0, 1.0])
    rows = {"input_ids": torch.zeros(3, 3, dtype=torch.long), "labels": torch.zeros(3, dtype=torch.long)}
    task = Task(ToyBatches(rows), ClassificationObjective(class_weights=weights))
    with pytest.raises(ValueError, match=r"the batches of step 0 hold nothing that counts \(weight 0.0\)"):
        run(accelerator, new_model(), new_phase(3), task)


def test_an_accelerator_that_accumulates_itself_is_refused():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=4; make it without and set accumulation_steps"):
        run(accelerator, new_model(), new_phase(3))


# ---- epochs, deadlines, bars


def test_an_epochs_record_tells_what_happened(accelerator):
    records, steps = run(accelerator, new_model(), new_phase(2, 3, epochs=2, name="thaw"))
    first, second = records
    assert (first.phase, first.epoch, first.step, first.total_steps) == ("thaw", 0, 3, 6)
    assert (second.epoch, second.step) == (1, 6)
    weighed = (steps[0].loss * 4 + steps[1].loss * 4 + steps[2].loss * 2) / 10
    assert first.train_loss == pytest.approx(weighed)
    assert set(first.metrics) == {"accuracy", "macro_f1", "loss", "n"}
    assert first.metrics["n"] == 6
    assert first.lrs == (0.0, 0.0, 1e-2, 1e-2)
    assert first.seconds > 0
    assert first.items_per_second > 0


def test_training_learns_and_ends_in_evaluation_mode(accelerator):
    model = new_model()
    task = new_task(40, batch_size=8, valid=0)
    records, _ = run(accelerator, model, new_phase(*ALL, lr=3e-2, epochs=12), task)
    assert records[-1].train_loss < 0.3 * records[0].train_loss
    assert not model.training


def test_a_callback_that_returns_true_ends_the_phase(accelerator):
    records, _ = run(accelerator, new_model(), new_phase(3, epochs=5), on_epoch=lambda record: record.epoch == 1)
    assert len(records) == 2


def test_a_deadline_stops_at_the_next_step(accelerator):
    records, steps = run(accelerator, new_model(), new_phase(3, epochs=5), deadline=0.0)
    assert steps == []
    assert len(records) == 1
    assert math.isnan(records[0].train_loss)
    assert records[0].cut_short


# ---- wrapping and unwrapping


@pytest.mark.bf16
def test_bf16_runs_in_every_phase_and_leaves_the_bare_model_as_it_was():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = new_model()
    model.forward_calls = []
    kinds = []
    model.head.register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype))
    for trainable in ((3,), ALL):
        kinds.clear()
        run(accelerator, model, new_phase(*trainable))
        assert set(kinds) == {torch.bfloat16}  # training and validation, also in the second phase
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & set(model.__dict__)
    assert model.forward.__func__ is type(model).forward


@pytest.mark.bf16
def test_a_models_own_decorated_forward_survives_mixed_precision():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = new_model()
    original = model.forward

    def mine(input_ids):
        return original(input_ids)

    mine.__wrapped__ = original
    model.forward = mine
    run(accelerator, model, new_phase(3))
    assert model.forward is mine


@pytest.mark.bf16
def test_a_failing_phase_is_unwrapped_too():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = new_model()
    groups = groups_of(model)
    freeze(groups)
    with pytest.raises(RuntimeError, match="inside"):
        with prepared(model, build_optimizer(groups, [1e-3] * 4), accelerator):
            assert "forward" in model.__dict__
            raise RuntimeError("inside")
    assert "forward" not in model.__dict__


def test_evaluation_is_exact_and_leaves_weights_and_gradients_alone(accelerator):
    model = new_model(norm="batch", dropout=0.5).requires_grad_(False)
    before = weights_of(model)
    rows = text_rows(7)
    metrics = evaluate(model, ToyBatches(rows, batch_size=3), ClassificationObjective(), new_metric(), accelerator)
    logits = model.eval()(rows["input_ids"]).logits
    assert metrics["loss"] == pytest.approx(float(F.cross_entropy(logits, rows["labels"])), rel=1e-6)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == rows["labels"]).float().mean()))
    assert metrics["n"] == 7
    assert same(before, weights_of(model)) == list(before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_counts_batches_where_they_come_from(accelerator, monkeypatch):
    on_device, counted = [], []

    def moved(batch, _accelerator):
        on_device.append(dict(batch))
        return on_device[-1]

    class Counting(ClassificationObjective):
        def count(self, batch):
            counted.append(batch)
            return super().count(batch)

    monkeypatch.setattr(loop, "to_device", moved)
    evaluate(new_model(), ToyBatches(text_rows(7), batch_size=3), Counting(), new_metric(), accelerator)
    assert len(counted) == len(on_device) == 3
    assert not any(batch is copy for batch in counted for copy in on_device)  # no wait for the device


@pytest.mark.bf16
def test_evaluation_of_a_bare_model_uses_the_accelerators_precision():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model, kinds = new_model(), []
    model.head.register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype))
    evaluate(model, ToyBatches(text_rows(3)), ClassificationObjective(), new_metric(), accelerator)
    assert kinds == [torch.bfloat16]


def test_one_group_models_train_as_a_whole(accelerator):
    model = new_model()
    groups = split_layer_groups(model, [[""]])
    phase = Phase("all", (0,), (1e-2,), Schedule.constant())
    records, _ = fit(model, groups, phase, new_task(), accelerator=accelerator, options=TrainingOptions())
    assert records[0].lrs == (1e-2,)
    assert model(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, CLASSES)


def test_a_deadline_that_cuts_a_phase_short_still_brings_the_rate_down(accelerator, monkeypatch):
    began, elapsed = time.monotonic(), [0.0]
    clock = SimpleNamespace(monotonic=lambda: began + elapsed[0], perf_counter=time.perf_counter)
    for module in (loop, processes):
        monkeypatch.setattr(module, "time", clock)

    class TakesASecond(ClassificationObjective):
        def __call__(self, *args):
            elapsed[0] += 1.02  # a little more, so that no point falls on a border
            return super().__call__(*args)

    task = Task(ToyBatches(text_rows(40)), TakesASecond())  # 10 steps an epoch
    schedule = Schedule.slanted_triangular()
    phase = new_phase(3, lr=1e-2, schedule=schedule, epochs=2)
    _, steps = run(accelerator, new_model(), phase, task, deadline=began + 5.0)
    assert len(steps) == 5
    points = [0, 4, 8, 12, 16]  # of 20, at 0, 1, 2, 3, 4 of 5 seconds
    assert [step.lrs[-1] for step in steps] == pytest.approx(
        [1e-2 * schedule.factor(point, 20) for point in points], rel=1e-2
    )
    elapsed[0] = 0.0
    _, steps = run(accelerator, new_model(), phase, task, deadline=began + 1000.0)
    assert [step.lrs[-1] for step in steps] == [1e-2 * schedule.factor(step, 20) for step in range(20)]


@pytest.mark.parametrize(("device", "asked"), [("cpu", 1), ("meta", 0)])
def test_preparing_on_a_cpu_asks_the_allocator_to_keep_what_a_step_frees(monkeypatch, device, asked):
    calls = []
    monkeypatch.setattr(wrapping, "keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(wrapping, "check_accelerator", lambda _accelerator: None)
    model = torch.nn.Linear(3, 2)
    accelerator = SimpleNamespace(
        num_processes=1,
        device=torch.device(device),
        prepare=lambda *parts: parts,
        free_memory=lambda: None,
    )
    with loop.prepared(model, torch.optim.SGD(model.parameters()), accelerator):
        pass
    assert len(calls) == asked
