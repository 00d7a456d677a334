import json
import os
import time
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator

from tests.support.folder_contents import files_of, no_space
from tests.support.toy_models import (
    NAMES,
    ToyBatches,
    ToyLanguageModel,
    groups_of,
    lm_groups_of,
    new_model,
    new_task,
    same,
    text_rows,
    token_rows,
    weights_of,
)
from ulmfit_pipe.console import output_to
from ulmfit_pipe.storage import atomic
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.training import lr_finder
from ulmfit_pipe.training.history import History
from ulmfit_pipe.training.layer_groups import split_layer_groups
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import SequenceObjective
from ulmfit_pipe.training.phases import full, gradual_unfreezing, linear_probe_then_fine_tune
from ulmfit_pipe.training.records import EpochRecord, StepRecord, Task, TrainingOptions
from ulmfit_pipe.training.schedules import Schedule


@pytest.fixture
def said():
    return []


@pytest.fixture
def new_learner(said):
    def build(model=None, groups=None, task=None, **options):
        model = model or new_model()
        groups = groups or groups_of(model)
        return Learner(model, groups, task or new_task(), accelerator=Accelerator(cpu=True), say=said.append, **options)

    return build


# ---- freezing


def test_a_pretrained_model_starts_frozen_up_to_its_head_and_makes_no_noise(new_learner, said):
    learner = new_learner()
    assert not said
    assert learner.describe_frozen() == "frozen: embeddings, body, middle | trains: head (28 of 209 parameters)"
    assert [name for name, frozen in learner.freeze_map().items() if not frozen] == ["head.weight", "head.bias"]


def test_a_model_from_scratch_starts_with_all_groups_trained(new_learner):
    learner = new_learner(pretrained=False)
    assert not any(learner.freeze_map().values())
    assert learner.describe_frozen() == (
        "frozen: nothing | trains: embeddings, body, middle, head (209 of 209 parameters)"
    )


def test_freezing_works_in_fastais_words(new_learner, said):
    learner = new_learner()
    learner.freeze_to(-2)
    learner.unfreeze()
    learner.freeze()
    assert [line.split(" | ")[1].split(" (")[0] for line in said] == [
        "trains: middle, head",
        "trains: embeddings, body, middle, head",
        "trains: head",
    ]
    assert learner.describe_frozen() == said[-1]
    assert [group.name for group in learner.layer_groups] == learner.names == NAMES


def test_mistakes_in_freezing_raise(new_learner):
    learner = new_learner()
    with pytest.raises(ValueError, match=r"freeze_to\(-5\) is out of range: the model has 4 layer groups"):
        learner.freeze_to(-5)
    model = new_model()
    single = new_learner(model, split_layer_groups(model, [[""]], names=["everything"]))
    for action in (single.freeze, lambda: single.fine_tune(1)):
        with pytest.raises(ValueError, match="this model has 1 layer group; split it"):
            action()


# ---- fitting


def test_each_fit_says_what_it_is_about_to_train(new_learner, said):
    learner = new_learner()
    learner.freeze_to(-2)
    learner.fit_one_cycle(2, slice(1e-6, 1e-4))
    assert said[1] == (
        "frozen: embeddings, body | trains: middle, head (88 of 209 parameters)\n"
        "2 epochs of one-cycle, pct_start 0.25, div 25; peak rates: middle 2.15e-05, head 1.00e-04"
    )
    assert said[2].splitlines()[0].split() == ["phase", "epoch", "train", "loss", "accuracy", "macro_f1", "loss", "n",
                                               "items/s", "seconds"]  # fmt: skip
    assert said[3].split()[:2] == ["one-cycle", "2"]
    assert len(said) == 4


def test_an_epoch_is_told_when_it_ends(new_learner, said):
    learner = new_learner()
    seen = []
    learner.task.train_batches.set_epoch = lambda _epoch: seen.append(len(said))
    learner.fit_one_cycle(3)
    assert [later - earlier for earlier, later in pairwise(seen)][-2:] == [1, 1]
    assert len(said) == seen[-1] + 1


def test_an_epoch_is_sent_as_numbers_where_the_output_is_no_text(new_learner, said):
    sent = []
    learner = new_learner()
    said.clear()
    with output_to(lambda *each: sent.append(each)):
        history = learner.fit(2, 1e-2)
    assert [(kind, values["epoch"]) for kind, values in sent] == [("epoch", 1), ("epoch", 2)]
    assert [values["train_loss"] for _, values in sent] == [record.train_loss for record in history.epochs]
    assert not [line for line in said if "train loss" in line]


def test_pictures_of_a_training_show_all_its_fits(new_learner):
    learner = new_learner()
    for draw in (learner.plot_losses, learner.plot_schedule):
        with pytest.raises(ValueError, match="there is nothing to draw: no step was taken yet; call a fit first"):
            draw()
    batches = len(learner.task.train_batches)
    learner.fit_plan(gradual_unfreezing(4, lr=1e-2, final_epochs=2))
    learner.fit_one_cycle(1)
    learner.fit_one_cycle(2)  # a phase of the same name, fitted again
    axes = learner.plot_losses().axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["validation"].get_xdata()) == [batches * (epoch + 1) for epoch in range(8)]
    expected = [record.metrics["loss"] for record in learner.history.epochs]
    assert list(lines["validation"].get_ydata()) == expected
    starts = [list(line.get_xdata())[0] - 0.5 for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert starts == [batches * epochs for epochs in (1, 2, 3, 5, 6)]
    rates = {line.get_label(): list(line.get_ydata()) for line in learner.plot_schedule().axes[0].get_lines()}
    assert [sum(value != value for value in rates[name]) for name in NAMES] == [3 * batches, 2 * batches, batches, 0]


def test_epochs_of_one_step_end_at_their_own_step():
    steps = [StepRecord(0, loss, (0.1,)) for loss in (3.0, 2.0)]
    epochs = [EpochRecord(name, 0, 1, 1, 1.0, {"loss": 1.0}, (0.1,), 1.0, 1.0) for name in ("one", "two")]
    lines = History(epochs, steps).plot_losses().axes[0].get_lines()
    assert list(next(line for line in lines if line.get_label() == "validation").get_xdata()) == [1, 2]


def test_the_kept_weights_are_told_at_the_end(new_learner, said):
    learner = new_learner()
    history = learner.fit_plan(learner.plan(full(4, lr=1e-2, epochs=2)))
    best = history.best
    assert said[-1] == (
        f"kept: the weights of full, epoch {best.epoch + 1}, the best by loss {best.metrics['loss']:.4f}"
    )


def test_fit_one_cycle_spreads_a_slice_over_the_groups(new_learner):
    learner = new_learner(pretrained=False)
    history = learner.fit_one_cycle(2, slice(1e-6, 1e-4))
    curve = Schedule.one_cycle()
    for step, record in enumerate(history.steps):
        peaks = [1e-6 * 100 ** (index / 3) for index in range(4)]
        assert record.lrs == pytest.approx([lr * curve.factor(step, 6) for lr in peaks], rel=1e-9)


def test_start_epoch_goes_on_where_fastai_does(new_learner, said):
    history = new_learner().fit_one_cycle(2, 1e-2, start_epoch=1)
    assert history.steps[0].lrs[-1] == pytest.approx(0.7500025e-2, rel=1e-9)  # golden, fastai 2.8
    assert len(history.epochs) == 1
    assert "2 epochs (from epoch 2 on) of one-cycle" in said[0]


def test_an_interrupted_cycle_gone_on_with_sees_the_data_of_a_whole_one(new_learner):
    def orders(learner, *fits):
        seen, original = [], ToyBatches.__iter__

        def spy(self):
            if self is learner.task.train_batches:
                seen.append(self.order.tolist())
            return original(self)

        ToyBatches.__iter__ = spy
        try:
            for options in fits:
                learner.fit_one_cycle(3, **options)
        finally:
            ToyBatches.__iter__ = original
        return seen

    whole = orders(new_learner(), {})
    learner = new_learner()
    learner.epochs_done = 2
    assert orders(learner, {"start_epoch": 2}) == whole[2:]


@pytest.mark.parametrize(
    ("fit", "schedule"),
    [
        ("fit_slanted_triangular", Schedule.slanted_triangular()),
        ("fit_flat_cosine", Schedule.flat_cosine()),
        ("fit", Schedule.constant()),
    ],
)
def test_every_fit_follows_its_curve(new_learner, said, fit, schedule):
    history = getattr(new_learner(), fit)(2, 1e-2)
    assert [step.lrs[-1] for step in history.steps] == pytest.approx([1e-2 * schedule.factor(i, 6) for i in range(6)])
    assert schedule.describe() in said[0]


def test_curves_take_their_options(new_learner):
    history = new_learner().fit_one_cycle(1, 1e-2, pct_start=0.5, div=10.0)
    assert history.steps[0].lrs[-1] == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="pct_strat"):
        new_learner().fit_one_cycle(1, 1e-2, pct_strat=0.5)


def test_the_learners_own_rate_is_used_where_none_is_named(new_learner):
    assert new_learner(lr=3e-3).fit(1).steps[0].lrs == (0.0, 0.0, 0.0, 3e-3)


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True])
def test_epochs_must_be_whole_and_positive(new_learner, epochs):
    with pytest.raises(ValueError, match=f"epochs must be a whole number of 1 or more, got {epochs}"):
        new_learner().fit_one_cycle(epochs)


@pytest.mark.parametrize(
    ("lr", "words"),
    [
        (0, "a learning rate must be a positive number, got 0"),
        (-1e-3, "got -0.001"),
        ([1e-3], r"got 1 learning rates for 4 layer groups \(embeddings, body, middle, head\)"),
        ({"haed": 1e-3}, "no layer group is called 'haed'; did you mean 'head'"),
    ],
)
def test_learning_rates_that_make_no_sense_train_nothing(new_learner, lr, words):
    learner = new_learner()
    before = weights_of(learner.model)
    with pytest.raises(ValueError, match=words):
        learner.fit_one_cycle(1, lr)
    assert same(before, weights_of(learner.model)) == list(before)


def test_fine_tune_reproduces_fastais_rates(new_learner):
    learner = new_learner(task=new_task(40, valid=0))
    history = learner.fine_tune(2, 2e-3)
    head = [step.lrs for step in history.steps[:10]]
    golden = [8.0e-5, 1.279317e-4, 2.669405e-4, 4.831454e-4, 7.549564e-4, 1.055231e-3, 1.353985e-3, 1.621385e-3,
              1.830729e-3, 1.961113e-3]  # fmt: skip
    assert [lrs[-1] for lrs in head] == pytest.approx(golden, rel=1e-6)
    assert all(lrs[:-1] == (0.0, 0.0, 0.0) for lrs in head)
    first = history.steps[10].lrs  # slice(1e-5, 1e-3), pct_start .3, div 5
    assert first == pytest.approx([1e-5 * 100 ** (index / 3) / 5 for index in range(4)], rel=1e-9)
    assert max(step.lrs[-1] for step in history.steps[10:]) == pytest.approx(1e-3, rel=1e-9)


def test_fit_plan_shows_the_table_before_it_trains(new_learner, said):
    learner = new_learner()
    plan = learner.plan(gradual_unfreezing(4, lr=1e-2))
    history = learner.fit_plan(plan)
    assert said[0] == str(plan.describe())
    assert history.best is not None
    assert learner.history.epochs == history.epochs
    assert not any(learner.freeze_map().values())
    with pytest.raises(ValueError, match="made for 3 layer groups, the model has 4"):
        learner.fit_plan(gradual_unfreezing(3, lr=1e-2))


def test_lp_ft_and_early_stop_work_by_the_learner(new_learner):
    learner = new_learner(monitor="accuracy")
    history = learner.fit_plan(linear_probe_then_fine_tune(4, head_lr=1e-5, lr=1e-5, max_head_epochs=30, patience=2))
    assert [record.phase for record in history.epochs] == ["head"] * 3 + ["all"]


def test_a_deadline_ends_training(new_learner):
    learner = new_learner(options=TrainingOptions(deadline=time.monotonic() + 0.2))
    history = learner.fit(10000, 1e-3)
    assert 0 < len(history.epochs) < 10000


def test_train_norm_reaches_every_fit(new_learner):
    learner = new_learner(new_model(norm="batch"), options=TrainingOptions(train_norm=True))
    before = weights_of(learner.model)
    learner.fit(1, 1e-2)
    unmoved = same(before, weights_of(learner.model))
    assert unmoved == ["embeddings.weight", "body.0.weight", "body.0.bias", "middle.0.weight", "middle.0.bias"]


# ---- looking


def test_lr_find_says_its_suggestions_and_changes_nothing(new_learner, said):
    learner = new_learner(task=new_task(40))
    before = weights_of(learner.model)
    result = learner.lr_find(num_steps=40, end_lr=1.0)
    assert isinstance(result, lr_finder.LRFinderResult)
    assert said[-1] == result.describe()
    assert said[-1].startswith("suggested learning rates for head: valley ")
    assert same(before, weights_of(learner.model)) == list(before)


def test_validate_gives_the_metrics_of_the_last_epoch(new_learner):
    learner = new_learner(new_model(norm="batch", dropout=0.5))
    history = learner.fit(1, 1e-2)
    assert learner.validate() == history.epochs[-1].metrics
    other = ToyBatches(text_rows(5, seed=9), seed=None)
    assert learner.validate(other)["n"] == 5


def test_a_fully_frozen_model_can_still_be_evaluated(new_learner):
    learner = new_learner()
    for parameter in learner.model.parameters():
        parameter.requires_grad_(False)
    assert learner.validate()["n"] == 6
    with pytest.raises(ValueError, match="trainable groups must be a non-empty subset"):
        learner.fit(1)


def test_validating_without_data_says_what_to_give(new_learner):
    with pytest.raises(ValueError, match="no validation data: give batches, or a Task with valid_batches"):
        new_learner(task=new_task(valid=0)).validate()


def test_the_summary_shows_the_rates_a_fit_would_use(new_learner):
    learner = new_learner()
    learner.freeze_to(-2)
    text = str(learner.summary(slice(1e-6, 1e-4)))
    assert "total 209 parameters: 88 trainable, 121 frozen" in text
    assert "1.00e-04" in text
    assert "2.15e-05" in text
    assert "1.00e-06" not in text
    assert "1.00e-03" in str(learner.summary())


# ---- saving


def trained(new_learner, **options):
    learner = new_learner(**options)
    learner.freeze_to(-2)
    learner.fit_one_cycle(2, 1e-2)
    return learner


def test_a_fresh_learner_loads_weights_freeze_state_and_position_and_says_so_in_one_line(new_learner, said, tmp_path):
    learner = trained(new_learner)
    assert learner.save(tmp_path / "run") == tmp_path / "run"
    fresh = new_learner(new_model(seed=1), pretrained=False)
    said.clear()
    assert fresh.load(tmp_path / "run") is fresh
    assert said == [
        f"loaded {tmp_path}/run as saved after epoch 2 of 2 of 'one-cycle' (step 6 of 6); "
        "frozen: embeddings, body | trains: middle, head (88 of 209 parameters)"
    ]
    assert same(weights_of(learner.model), weights_of(fresh.model)) == list(weights_of(fresh.model))
    assert fresh.freeze_map() == learner.freeze_map()
    assert fresh.position == learner.position
    assert fresh.position["schedule"] == Schedule.one_cycle().to_dict()
    assert fresh.epochs_done == 2
    assert fresh.validate() == learner.validate()


def test_going_on_after_a_load_equals_going_on_without(new_learner, tmp_path):
    learner = trained(new_learner)
    learner.save(tmp_path / "run")
    fresh = new_learner(new_model(seed=1)).load(tmp_path / "run")
    for each in (learner, fresh):
        each.fit_one_cycle(2, 1e-2)
    assert same(weights_of(learner.model), weights_of(fresh.model)) == list(weights_of(fresh.model))


def test_a_save_before_any_training_loads_too(new_learner, said, tmp_path):
    new_learner().save(tmp_path / "run")
    new_learner().load(tmp_path / "run")
    assert said[-1].startswith(f"loaded {tmp_path}/run as saved before any training; frozen: embeddings, body, middle")


def test_the_save_of_a_plan_says_whose_weights_it_holds(new_learner, said, tmp_path):
    learner = new_learner()
    history = learner.fit_plan(gradual_unfreezing(4, lr=1e-9, final_epochs=2))
    learner.save(tmp_path / "run")
    new_learner().load(tmp_path / "run")
    best = history.best
    assert "after epoch 2 of 2 of 'all' (step 6 of 6)" in said[-1]
    assert f"weights of epoch {best.epoch + 1} of {best.phase!r}" in said[-1]


def test_a_language_model_with_tied_weights_round_trips(new_learner, tmp_path):
    def build(seed):
        torch.manual_seed(seed)
        model = ToyLanguageModel()
        batches = ToyBatches(token_rows(4), batch_size=2)
        task = Task(batches, SequenceObjective(), batches, LanguageModelMetric)
        return new_learner(model, lm_groups_of(model), task)

    learner, fresh = build(0), build(1)
    learner.fit_one_cycle(1, 1e-2)
    learner.save(tmp_path / "run")
    fresh.load(tmp_path / "run")
    assert fresh.model.lm_head.weight is fresh.model.embeddings.weight
    assert fresh.validate() == learner.validate()


def test_saving_over_an_older_save_replaces_it_and_over_something_else_is_refused(new_learner, tmp_path):
    learner = new_learner()
    learner.save(tmp_path / "run")
    learner.fit(1, 1e-2)
    learner.save(tmp_path / "run", add_files=lambda folder: (folder / "vocab.txt").write_text("xxunk"))
    assert set(files_of(tmp_path)) == {"run/learner.json", "run/model.safetensors", "run/vocab.txt"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="other exists and is not a saved learner"):
        learner.save(tmp_path / "other")


def test_a_full_disk_leaves_the_last_save_loadable(new_learner, monkeypatch, tmp_path):
    learner = trained(new_learner)
    learner.save(tmp_path / "run")
    before, weights = files_of(tmp_path), weights_of(learner.model)
    learner.fit(1, 1e-2)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_sync", no_space)
        with pytest.raises(CheckpointError, match="No space left on device; what was there before is untouched"):
            learner.save(tmp_path / "run")
    assert files_of(tmp_path) == before
    fresh = new_learner(new_model(seed=1)).load(tmp_path / "run")
    assert same(weights, weights_of(fresh.model)) == list(weights)


def unsealed(run):
    """Take the digests out of a save, as older versions left them out."""
    record = json.loads((run / "learner.json").read_text())
    kept = {name: value for name, value in record.items() if name not in ("weights", "record_sha256")}
    (run / "learner.json").write_text(json.dumps(kept))
    return run


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: os.truncate(run / "model.safetensors", 300), "it was cut short or altered; take an earlier save"),
        (lambda run: os.truncate(unsealed(run) / "model.safetensors", 300), "it was cut short; take an earlier save"),
        (lambda run: os.truncate(run / "learner.json", 50), "is not a whole JSON file"),
        (lambda run: (run / "model.safetensors").unlink(), r"model\.safetensors does not exist"),
        (lambda run: torch.save({}, unsealed(run) / "model.safetensors"), "is a pickled checkpoint"),
    ],
)
def test_a_spoilt_save_is_refused_and_changes_nothing(new_learner, tmp_path, spoil, words):
    trained(new_learner).save(tmp_path / "run")
    spoil(tmp_path / "run")
    fresh = new_learner(new_model(seed=1))
    before, frozen = weights_of(fresh.model), fresh.freeze_map()
    with pytest.raises(CheckpointError, match=words):
        fresh.load(tmp_path / "run")
    assert same(before, weights_of(fresh.model)) == list(before)
    assert fresh.freeze_map() == frozen


def test_training_goes_on_with_other_data(new_learner, said, tmp_path):
    trained(new_learner).save(tmp_path / "run")
    learner = new_learner().load(tmp_path / "run")
    old_valid = learner.task.valid_batches
    learner.continue_on(ToyBatches(text_rows(21, seed=8)))
    assert said[-1] == (
        "new training data: 6 batches per epoch; frozen: embeddings, body | trains: middle, head (88 of 209 parameters)"
    )
    assert len(learner.fit(1, 1e-3).steps) == 6
    assert learner.task.valid_batches is old_valid
    learner.continue_on(ToyBatches(text_rows(5)), ToyBatches(text_rows(3)))
    assert learner.validate()["n"] == 3


def test_an_accelerator_is_made_when_first_needed_and_other_processes_stay_silent(monkeypatch):
    said = []
    monkeypatch.setenv("RANK", "1")
    model = new_model()
    Learner(model, groups_of(model), new_task(), say=said.append).freeze()
    assert said == []
    monkeypatch.delenv("RANK")
    learner = Learner(model, groups_of(model), new_task(), say=said.append)
    learner.freeze()
    assert len(said) == 1
    assert learner.accelerator is learner.accelerator


def test_another_librarys_name_for_the_rate_is_answered_with_ours(new_learner):
    with pytest.raises(TypeError, match=r"the peak rate is called lr here, not max_lr: fit_one_cycle\(2, slice"):
        new_learner().fit_one_cycle(2, max_lr=slice(1e-6, 1e-4))


def test_going_on_with_a_table_instead_of_batches_is_refused_at_once(new_learner):
    with pytest.raises(TypeError, match="continue_on takes batches, such as ClassifierBatches, got list"):
        new_learner().continue_on([{"text": "a"}])


def test_a_layer_group_shows_its_name_and_not_its_tensors(new_learner):
    assert "tensor" not in repr(new_learner().layer_groups)
