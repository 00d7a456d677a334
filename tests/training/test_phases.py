import math

import pytest
import torch

from tests.support.toy_models import groups_of, new_metric, new_model, new_phase, new_task, same, weights_of
from ulmfit_pipe.training import history as history_module
from ulmfit_pipe.training import phases as phases_module
from ulmfit_pipe.training.layer_groups import split_layer_groups
from ulmfit_pipe.training.phases import (
    History,
    Plan,
    chain_thaw,
    full,
    gradual_unfreezing,
    head_only,
    linear_probe_then_fine_tune,
    run_phases,
    trainable_parameters,
)
from ulmfit_pipe.training.records import EpochRecord, Phase, StepRecord, Task, TrainingOptions
from ulmfit_pipe.training.schedules import Schedule


def plan_for(model, phases, **options):
    return Plan(tuple(phases), tuple(groups_of(model)), **options)


def run(accelerator, model, phases, task=None, *, options=None, **settings):
    plan = plan_for(model, phases)
    task = task or new_task()
    return run_phases(model, plan, task, accelerator=accelerator, options=options or TrainingOptions(), **settings)


class ScriptedMetric:
    """Reports values from a list, whatever the model does."""

    def __init__(self, values, name):
        self.values, self.name = values, name

    def update(self, logits, labels, loss_sum, count):
        pass

    def compute(self, reduce=None):
        return {self.name: self.values.pop(0)}


def scripted_task(values, *, name="loss"):
    task = new_task()
    return Task(task.train_batches, task.objective, task.valid_batches, lambda: ScriptedMetric(values, name))


# ---- the plans


def test_gradual_unfreezing_thaws_one_more_group_each_phase():
    phases = gradual_unfreezing(4, lr=1e-2, epochs_per_phase=2, final_epochs=5, patience=3)
    assert [phase.trainable for phase in phases] == [(3,), (2, 3), (1, 2, 3), (0, 1, 2, 3)]
    assert [phase.epochs for phase in phases] == [2, 2, 2, 5]
    assert [phase.patience for phase in phases] == [None, None, None, 3]
    assert phases[0].lrs == pytest.approx((1e-2 / 2.6**3, 1e-2 / 2.6**2, 1e-2 / 2.6, 1e-2))
    assert {phase.schedule for phase in phases} == {Schedule.slanted_triangular()}


def test_chain_thaw_trains_the_head_then_each_group_alone_then_all():
    phases = chain_thaw(4, lr=1e-3)
    assert [phase.trainable for phase in phases] == [(3,), (0,), (1,), (2,), (0, 1, 2, 3)]
    assert all(phase.lrs == (1e-3,) * 4 for phase in phases)


def test_lp_ft_trains_the_head_to_convergence_then_all_from_its_best():
    head, rest = linear_probe_then_fine_tune(3, head_lr=1e-2, lr=1e-4, max_head_epochs=7, patience=2, epochs=3)
    assert (head.trainable, head.epochs, head.patience, head.from_best) == ((2,), 7, 2, False)
    assert (rest.trainable, rest.epochs, rest.from_best) == ((0, 1, 2), 3, True)
    assert (head.lrs, rest.lrs) == ((1e-2,) * 3, (1e-4,) * 3)


def test_full_and_head_only_are_one_phase():
    (everything,) = full(3, lr=1e-2, epochs=4)
    (head,) = head_only(3, lr=1e-2, patience=2)
    assert everything.trainable == (0, 1, 2)
    assert (head.trainable, head.patience) == ((2,), 2)
    assert full(1, lr=1e-2)[0].trainable == (0,)


@pytest.mark.parametrize("plan", [gradual_unfreezing, chain_thaw, head_only])
def test_thawing_needs_two_groups(plan):
    with pytest.raises(ValueError, match="at least 2 layer groups, got 1; use full"):
        plan(1, lr=1e-2)


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([], "at least one phase, got none"),
        (
            full(3, lr=1e-2),
            "phase 'full' is made for 3 layer groups, the model has 4 .embeddings, body, middle, head.: gi",
        ),
        ([new_phase(4)], "phase 'some' is made for 4 layer groups"),
        ([new_phase(3), new_phase(2)], r"phases of a plan need different names, got \['some', 'some'\]"),
    ],
)
def test_plans_that_do_not_fit_are_refused(phases, words):
    with pytest.raises(ValueError, match=words):
        plan_for(new_model(), phases)


def test_a_plan_describes_itself_before_anything_is_trained():
    model = new_model()
    phases = gradual_unfreezing(4, lr=1e-2, final_epochs=3, patience=2)
    lines = str(plan_for(model, phases).describe()).splitlines()
    assert lines[0].split() == "phase trains learning rates schedule epochs parameters".split()
    assert lines[2].split("  ")[0] == "1 last 1"
    assert "head" in lines[2]
    assert "-, -, -, 1.00e-02" in lines[2]
    assert "slanted triangular, cut_frac 0.1, ratio 32" in lines[2]
    assert lines[2].endswith("1       28 of 209")
    assert "middle head" in lines[3]
    assert "-, -, 3.85e-03, 1.00e-02" in lines[3]
    assert lines[3].endswith("88 of 209")
    assert "embeddings body middle head" in lines[5]
    assert "5.69e-04, 1.48e-03, 3.85e-03, 1.00e-02" in lines[5]
    assert lines[5].endswith("<= 3    209 of 209")
    assert len(lines) == 6


def test_the_plans_parameter_counts_are_those_of_training(accelerator):
    model = new_model(norm="batch")
    groups = groups_of(model)
    for train_norm in (False, True):
        expected = trainable_parameters(groups, (3,), train_norm=train_norm)
        run(accelerator, model, [new_phase(3)], options=TrainingOptions(train_norm=train_norm))
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert "norm layers of frozen groups train too" in plan_for(model, [new_phase(3)], train_norm=True).describe()
    assert repr(plan_for(model, [new_phase(3)]).describe()).startswith("phase")


# ---- running them


def test_each_step_of_gradual_unfreezing_trains_exactly_its_groups_at_its_rates(accelerator):
    model = new_model()
    schedule = Schedule.slanted_triangular()
    moved = []
    last = weights_of(model)

    def look(record):
        nonlocal last
        now = weights_of(model)
        unmoved = set(same(last, now))
        moved.append((record.phase, sorted({name.split(".")[0] for name in now if name not in unmoved})))
        last = now

    phases = gradual_unfreezing(4, lr=1e-2)
    history = run(accelerator, model, phases, keep_best=False, on_epoch=look)
    assert moved == [
        ("last 1", ["head"]),
        ("last 2", ["head", "middle"]),
        ("last 3", ["body", "head", "middle"]),
        ("all", ["body", "embeddings", "head", "middle"]),
    ]
    expected = []
    for count in (1, 2, 3, 4):
        for step in range(3):
            factor = schedule.factor(step, 3)
            ladder = [1e-2 / 2.6 ** (3 - index) * factor for index in range(4)]
            expected.append(tuple(lr if index >= 4 - count else 0.0 for index, lr in enumerate(ladder)))
    assert [step.lrs for step in history.steps] == [pytest.approx(lrs, rel=1e-12) for lrs in expected]


def test_chain_thaw_moves_one_group_at_a_time(accelerator):
    model = new_model()
    last, moved = weights_of(model), []

    def look(_record):
        nonlocal last
        now = weights_of(model)
        moved.append({name.split(".")[0] for name in now} - {name.split(".")[0] for name in same(last, now)})
        last = now

    run(accelerator, model, chain_thaw(4, lr=1e-2), keep_best=False, on_epoch=look)
    assert moved == [{"head"}, {"embeddings"}, {"body"}, {"middle"}, {"embeddings", "body", "middle", "head"}]


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.5, 0.9, 0.7, 0.8], 0),  # a later, worse phase does not overwrite
        ([0.9, 0.7, 0.5, 0.6], 2),
        ([0.9, 0.5, 0.5, 0.5], 1),  # a tie keeps the earlier
        ([math.nan, 0.9, math.nan, 0.9], 1),
    ],
)
def test_the_best_weights_over_all_phases_are_kept(accelerator, values, best):
    model, seen = new_model(), []
    phases = gradual_unfreezing(4, lr=1e-2)
    history = run(
        accelerator, model, phases, scripted_task(values), on_epoch=lambda _record: seen.append(weights_of(model))
    )
    assert history.best is history.epochs[best]
    assert same(seen[best], weights_of(model)) == list(seen[best])
    assert history.describe().splitlines()[2 + best].endswith("best")


def test_a_score_is_better_when_larger(accelerator):
    task = scripted_task([0.5, 0.9, 0.7, 0.9], name="accuracy")
    history = run(accelerator, new_model(), gradual_unfreezing(4, lr=1e-2), task, monitor="accuracy")
    assert history.best is history.epochs[1]


def test_without_keep_best_the_last_weights_stay(accelerator):
    model, seen = new_model(), []
    task = scripted_task([0.1, 0.9])
    phases = [new_phase(3, epochs=2)]
    history = run(
        accelerator, model, phases, task, keep_best=False, on_epoch=lambda _record: seen.append(weights_of(model))
    )
    assert history.best is None
    assert same(seen[-1], weights_of(model)) == list(seen[-1])


@pytest.mark.parametrize(("from_best", "copies"), [(False, 0), (True, 1)])
def test_without_keep_best_weights_are_kept_only_for_a_phase_that_starts_from_them(
    accelerator, monkeypatch, from_best, copies
):
    offers = []
    monkeypatch.setattr(history_module.BestWeights, "offer", lambda _self, record, _model: offers.append(record))
    phases = [new_phase(3), new_phase(2, 3, name="other", from_best=from_best)]
    run(accelerator, new_model(), phases, scripted_task([0.9, 0.1]), keep_best=False)
    assert len(offers) == 2 * copies


def test_an_unknown_monitor_names_those_there_are(accelerator):
    with pytest.raises(KeyError, match=r"no validation metric is called 'f1'; there are \['accuracy', 'loss'"):
        run(accelerator, new_model(), full(4, lr=1e-2), monitor="f1")


@pytest.mark.parametrize(
    ("patience", "values", "epochs"),
    [
        (1, [0.5, 0.6, 0.1], 2),
        (2, [0.5, 0.6, 0.4, 0.5, 0.5, 0.1], 5),
        (2, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 6),
        (1, [0.5, 0.5, 0.1], 2),  # a tie is no progress
    ],
)
def test_patience_ends_a_phase_by_its_own_best(accelerator, patience, values, epochs):
    phases = [new_phase(3, epochs=6, patience=patience)]
    history = run(accelerator, new_model(), phases, scripted_task(list(values)))
    assert len(history.epochs) == epochs


def test_early_stop_ends_one_phase_and_the_next_one_runs(accelerator):
    values = [0.1, 0.5, 0.6, 0.4, 0.3]
    phases = [new_phase(3, epochs=4, patience=1), new_phase(2, 3, epochs=3, patience=1, name="next")]
    history = run(accelerator, new_model(), phases, scripted_task(values))
    assert [record.phase for record in history.epochs] == ["some", "some", "next", "next", "next"]
    assert history.best is history.epochs[0]


def test_lp_ft_starts_its_second_phase_from_the_best_head(accelerator):
    model = new_model()
    seen, first_inputs = [], []
    phases = linear_probe_then_fine_tune(4, head_lr=0.1, lr=1e-3, max_head_epochs=9, patience=2)
    task = scripted_task([0.5, 0.3, 0.4, 0.6, 0.2])

    class Spy:
        def __init__(self, objective):
            self.objective, self.count = objective, objective.count

        def __call__(self, model, batch, carry):
            if model.embeddings.weight.requires_grad and not first_inputs:
                first_inputs.append(weights_of(model))
            return self.objective(model, batch, carry)

    task = Task(task.train_batches, Spy(task.objective), task.valid_batches, task.new_metric)
    history = run(accelerator, model, phases, task, on_epoch=lambda _record: seen.append(weights_of(model)))
    assert [record.phase for record in history.epochs] == ["head"] * 4 + ["all"]
    assert same(seen[1], first_inputs[0]) == list(seen[1])
    assert history.best is history.epochs[4]


def test_a_deadline_ends_the_plan_after_the_running_phase(accelerator):
    history = run(accelerator, new_model(), gradual_unfreezing(4, lr=1e-2), options=TrainingOptions(deadline=0.0))
    assert history.epochs == []


def test_phases_share_the_time_that_is_left_by_their_epochs(monkeypatch):
    monkeypatch.setattr(phases_module.time, "monotonic", lambda: 100.0)
    phases = gradual_unfreezing(4, lr=1e-2, final_epochs=3)
    assert phases_module._phase_deadline(160.0, phases) == pytest.approx(110.0)
    assert phases_module._phase_deadline(160.0, phases[2:]) == pytest.approx(115.0)
    assert phases_module._phase_deadline(160.0, phases[3:]) == pytest.approx(160.0)
    assert phases_module._phase_deadline(None, phases) is None


def test_no_validation_data_is_fine(accelerator):
    task = new_task(valid=0)
    history = run(
        accelerator, new_model(), linear_probe_then_fine_tune(4, head_lr=1e-2, lr=1e-3, max_head_epochs=2), task
    )
    assert len(history.epochs) == 3
    assert history.best is None
    assert all(record.metrics == {} for record in history.epochs)


def test_every_phase_goes_on_in_the_datas_order(accelerator):
    task = new_task()
    seen = []
    original = task.train_batches.set_epoch

    def spy(epoch):
        seen.append(epoch)
        original(epoch)

    task.train_batches.set_epoch = spy
    run(accelerator, new_model(), gradual_unfreezing(4, lr=1e-2, final_epochs=2), task, first_epoch=10)
    assert [epoch for index, epoch in enumerate(seen) if index in (1, 3, 5, 8, 9)] == [10, 11, 12, 13, 14]


def test_the_history_is_a_table_with_missing_values_shown():
    records = [
        EpochRecord("head", 0, 3, 3, 1.5, {"loss": 1.25, "n": 1200}, (1e-2,), 2.0, 12345.6),
        EpochRecord("all", 1, 3, 3, 0.5, {}, (1e-2,), 0.25, 10.0),
    ]
    lines = History(records, [], records[0]).describe().splitlines()
    assert lines[2].split() == ["head", "1", "1.5000", "1.2500", "1,200", "12,346", "2.0", "best"]
    assert lines[3].split() == ["all", "2", "0.5000", "nan", "nan", "10", "0.2"]


def test_the_table_of_a_running_training_grows_by_a_line_an_epoch():
    table = history_module.EpochTable(["head", "everything"])
    first = EpochRecord("head", 0, 3, 3, 1.5, {"loss": 1.25, "n": 1200}, (1e-2,), 2.0, 12345.6)
    second = EpochRecord("everything", 11, 3, 3, 0.5, {"loss": 0.75, "n": 1200}, (1e-2,), 0.25, 10.0)
    header, rule, line = table.line(first).splitlines()
    assert header.split() == ["phase", "epoch", "train", "loss", "loss", "n", "items/s", "seconds"]
    assert set(rule) == {"-", " "}
    assert line.split() == ["head", "1", "1.5000", "1.2500", "1,200", "12,346", "2.0"]
    assert table.line(second).split() == ["everything", "12", "0.5000", "0.7500", "1,200", "10", "0.2"]
    assert table.line(second).index("0.7500") == line.index("1.2500") == header.rindex("loss")


def test_a_history_shows_itself_in_a_line_and_as_a_table_in_a_notebook():
    records = [EpochRecord("<b>", 0, 3, 3, 1.5, {"loss": 1.25}, (1e-2,), 2.0, 10.0)]
    history = History(records, [StepRecord(1, 1.5, (1e-2,))] * 5000, records[0])
    assert repr(history) == "History(1 epochs, 5000 steps, best: <b>, epoch 1)"
    assert history._repr_html_().startswith("<table><thead><tr><th ")
    assert history._repr_html_().count("<tr>") == 2
    assert "&lt;b&gt;" in history._repr_html_()
    assert "<b>" not in history._repr_html_()


def test_plans_do_not_move_statistics_of_frozen_norms(accelerator):
    model = new_model(norm="batch")
    start = weights_of(model)
    run(accelerator, model, [new_phase(3, epochs=2)])
    assert torch.equal(start["body.1.running_mean"], model.body[1].running_mean)


def test_a_plan_for_one_group_runs(accelerator):
    model = new_model()
    plan = Plan(tuple(full(1, lr=1e-2)), tuple(split_layer_groups(model, [[""]])))
    task = new_task()
    task = Task(task.train_batches, task.objective, task.valid_batches, new_metric)
    history = run_phases(model, plan, task, accelerator=accelerator, options=TrainingOptions())
    assert isinstance(plan.phases[0], Phase)
    assert len(history.steps) == 3
