"""A run that is stopped anywhere and resumed must end with the bits of one that was never stopped."""

import errno
import json
import os
import random
import re
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from tests.support.toy_models import (
    ToyBatches,
    ToyLanguageModel,
    groups_of,
    lm_groups_of,
    new_model,
    new_phase,
    new_task,
    text_rows,
    token_rows,
    weights_of,
)
from ulmfit_pipe.storage import atomic
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.training import phases
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import ClassificationObjective, SequenceObjective
from ulmfit_pipe.training.phases import Plan, gradual_unfreezing, run_phases
from ulmfit_pipe.training.records import Checkpoints, Task, TrainingOptions
from ulmfit_pipe.training.resume import checkpoint_manager as resume
from ulmfit_pipe.training.resume.preemption import EXIT_PREEMPTED, Preempted
from ulmfit_pipe.training.schedules import Schedule

IDENTITY = {"settings": {"epochs": 2, "sizes": (3, 5)}, "data": "abc"}
OPTIONS = {"accumulation_steps": 2, "max_grad_norm": 0.3, "weight_decay": 0.1}


class Killed(BaseException):
    """Raised in the place of a kill."""


class KilledAt:
    """An objective that ends the run when it is asked for its n-th batch, of training or validation."""

    def __init__(self, objective, at):
        self.objective, self.left = objective, at

    def count(self, batch):
        return self.objective.count(batch)

    def __call__(self, *args):
        if self.left == 0:
            raise Killed
        self.left -= 1
        return self.objective(*args)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(atomic, "_sync", lambda _path: None)


def classifier(kill=10**9):
    """A plan with all that a run remembers: patience, the best weights, a momentum cycle, dropout, batch norm."""
    model = new_model(norm="batch", dropout=0.3)
    groups = groups_of(model)
    phases = [
        new_phase(3, name="head", lr=0.05, epochs=4, patience=1),
        new_phase(1, 2, 3, name="upper", schedule=Schedule.one_cycle(), epochs=2, from_best=True, lr=slice(1e-3, 1e-2)),
        new_phase(0, 1, 2, 3, name="all", schedule=Schedule.slanted_triangular(), epochs=2),
    ]
    task = new_task(18)
    return model, Plan(tuple(phases), tuple(groups)), replace(task, objective=KilledAt(task.objective, kill)), "loss"


def language_model(kill=10**9):
    """Tied weights, and a state that is carried from batch to batch."""
    torch.manual_seed(0)
    model = ToyLanguageModel()
    batches = ToyBatches(token_rows(24), batch_size=4)
    task = Task(batches, KilledAt(SequenceObjective(), kill), ToyBatches(token_rows(8), seed=None), LanguageModelMetric)
    plan = Plan(tuple(gradual_unfreezing(2, lr=1e-2, final_epochs=2)), tuple(lm_groups_of(model)))
    return model, plan, task, "loss"


def train(build, accelerator, checkpoints=None, *, kill=10**9, said=None, **changes):
    """Run a plan; return what it left."""
    model, plan, task, monitor = build(kill)
    torch.manual_seed(7)
    np.random.seed(8)
    random.seed(9)
    options = TrainingOptions(**{**OPTIONS, **changes}, checkpoints=checkpoints)
    say = (lambda _line: None) if said is None else said.append
    heard = []
    settings = {"accelerator": accelerator, "options": options, "monitor": monitor, "on_epoch": heard.append}
    history = run_phases(model, plan, task, say=say, **settings)
    batches = getattr(task.objective, "left", 0)
    return SimpleNamespace(
        model=model, history=history, heard=heard, random=torch.get_rng_state(), batches=kill - batches
    )


def kept(folder, **changes):
    return Checkpoints(**{"folder": folder, "every_seconds": None, "every_steps": 1, "identity": IDENTITY, **changes})


def timeless(records):
    return [replace(record, seconds=0, items_per_second=0) for record in records]


def assert_same(first, second):
    """Weights, history, best epoch and random state are the same, bit for bit."""
    different = [
        name for name, value in weights_of(first.model).items() if not torch.equal(value, second.weights[name])
    ]
    assert different == []
    assert first.history.steps == second.history.steps
    assert timeless(first.history.epochs) == timeless(second.history.epochs)
    assert [record is first.history.best for record in first.history.epochs] == second.best
    assert timeless(first.heard) == timeless(second.history.epochs)
    assert torch.equal(first.random, second.random)


@pytest.fixture(scope="module", params=[classifier, language_model], ids=lambda build: build.__name__)
def build(request):
    return request.param


def never_stopped(build, accelerator):
    whole = train(build, accelerator)
    best = [record is whole.history.best for record in whole.history.epochs]
    weights = weights_of(whole.model)
    return SimpleNamespace(**{**vars(whole), "weights": weights, "best": best})


def newest(folder):
    return sorted(folder.glob("step-*"))[-1]


# ---- the same bits


def test_checkpoints_change_nothing_and_draw_no_random_number(tmp_path, accelerator, build):
    assert_same(train(build, accelerator, kept(tmp_path / "run")), never_stopped(build, accelerator))


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_killed_at_any_batch_ends_bit_identical(tmp_path, accelerator, build, every):
    """Each fifth batch by a kill, all of them with the checkpoints that a kill there finds on the disk."""
    whole = never_stopped(build, accelerator)
    assert whole.batches >= 24

    class Copying(KilledAt):
        """An objective that puts what is on the disk aside before each batch."""

        def __call__(self, *args):
            if (tmp_path / "run").exists():
                shutil.copytree(tmp_path / "run", tmp_path / f"before {10**9 - self.left}")
            return super().__call__(*args)

    def copying(kill):
        model, plan, task, monitor = build(kill)
        return model, plan, replace(task, objective=Copying(task.objective.objective, kill)), monitor

    assert_same(train(copying, accelerator, kept(tmp_path / "run", every_steps=every)), whole)
    for kill in range(whole.batches):
        folder = tmp_path / f"before {kill}"
        if kill % 5 == 0:
            shutil.rmtree(folder, ignore_errors=True)
            with pytest.raises(Killed):
                train(build, accelerator, kept(folder, every_steps=every), kill=kill)
        if every == 1 or kill % 5 == 0:
            assert_same(train(build, accelerator, kept(folder, every_steps=every, resume=True)), whole)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_killed_again_and_again_ends_bit_identical(tmp_path, accelerator, build):
    whole, starts = never_stopped(build, accelerator), 0
    while True:
        try:
            done = train(build, accelerator, kept(tmp_path / "run", resume=True), kill=7)
            break
        except Killed:
            starts += 1
    assert starts >= 3
    assert_same(done, whole)


def test_what_is_saved_at_the_end_is_the_same_too_moments_carried_state_and_generators(tmp_path, accelerator, build):
    train(build, accelerator, kept(tmp_path / "whole"))
    with pytest.raises(Killed):
        train(build, accelerator, kept(tmp_path / "killed"), kill=20)
    train(build, accelerator, kept(tmp_path / "killed", resume=True))
    whole, killed = sorted((tmp_path / "whole").iterdir()), sorted((tmp_path / "killed").iterdir())
    assert [path.name for path in whole] == [path.name for path in killed]
    for one, other in zip(whole, killed, strict=True):
        files = sorted(file.name for file in one.glob("*.safetensors"))
        assert {"model.safetensors", "steps.safetensors", "best.safetensors", "rank-0.safetensors"} <= {*files}
        assert [name for name in files if (one / name).read_bytes() != (other / name).read_bytes()] == []
    last_step = load_file(whole[0] / "optimizer.safetensors")
    assert any(name.startswith("exp_avg_sq/") for name in last_step)


def test_pythons_and_numpys_generators_go_on_where_they_were(tmp_path, accelerator):
    class Drawing(ClassificationObjective):
        """Trains on loss times chance."""

        def __call__(self, model, batch, carry):
            output = super().__call__(model, batch, carry)
            if model.training:
                output.loss_sum = output.loss_sum * (random.gauss(1, 0.1) + np.random.normal() + random.random())
            return output

    def build(kill=10**9):
        model, plan, task, monitor = classifier()
        return model, plan, replace(task, objective=KilledAt(Drawing(), kill)), monitor

    whole = never_stopped(build, accelerator)
    for kill in (13, 21):
        with pytest.raises(Killed):
            train(build, accelerator, kept(tmp_path / str(kill)), kill=kill)
        assert_same(train(build, accelerator, kept(tmp_path / str(kill), resume=True)), whole)


def test_a_finished_run_that_is_gone_on_with_takes_no_step(tmp_path, accelerator, build):
    whole = never_stopped(build, accelerator)
    train(build, accelerator, kept(tmp_path / "run"))
    os.utime(tmp_path / "run")
    again = train(build, accelerator, kept(tmp_path / "run", resume=True, every_steps=10**6))
    assert_same(again, whole)


# ---- when and where


def test_without_resume_a_run_begins_anew_and_takes_the_old_checkpoints_away(tmp_path, accelerator):
    train(classifier, accelerator, kept(tmp_path / "run"))
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run"), kill=5)
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == ["step-00000002", "step-00000003"]


def test_nothing_to_go_on_from_is_said_and_the_run_begins(tmp_path, accelerator):
    said = []
    assert_same(
        train(classifier, accelerator, kept(tmp_path / "run", resume=True), said=said),
        never_stopped(classifier, accelerator),
    )
    assert said[0] == f"there is no checkpoint in {tmp_path / 'run'}: the training starts from the beginning"


def test_where_a_run_goes_on_is_said(tmp_path, accelerator):
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run"), kill=10)
    said = []
    train(classifier, accelerator, kept(tmp_path / "run", resume=True), said=said)
    path = tmp_path / "run" / "step-00000004"
    assert said == [f"resuming from {path}: 4 steps done, in epoch 2 of phase 1"]


@pytest.mark.parametrize(("keep", "names"), [(1, [6]), (2, [5, 6]), (3, [4, 5, 6])])
def test_the_last_checkpoints_are_kept(tmp_path, accelerator, keep, names):
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run", keep=keep), kill=12)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [f"step-{name:08d}" for name in names]


def test_the_clock_decides_unless_steps_do(tmp_path, accelerator, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    saved = []
    real = resume.store.write_checkpoint

    def write(path, *args, **options):
        saved.append(path.name)
        real(path, *args, **options)

    class Slow(ClassificationObjective):
        def __call__(self, *args):
            now[0] += 10.0
            return super().__call__(*args)

    monkeypatch.setattr(resume.store, "write_checkpoint", write)
    model, plan, task, _ = classifier()
    options = TrainingOptions(checkpoints=Checkpoints(tmp_path / "run", every_seconds=30.0))
    task = replace(task, objective=Slow(), valid_batches=None, new_metric=None)
    run_phases(model, Plan(plan.phases[2:], plan.groups), task, accelerator=accelerator, options=options)
    assert saved == ["step-00000003", "step-00000006", "step-00000009"]  # of ten steps


def test_saving_takes_no_more_than_a_twentieth_of_the_time(tmp_path, accelerator, monkeypatch):
    now, steps, saved = [0.0], [], []
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])

    def write(path, *_args, **_options):
        now[0] += 4.0  # so that 80 seconds have to pass, though 30 were asked for
        saved.append(int(path.name.removeprefix("step-")))

    class Slow(ClassificationObjective):
        def __call__(self, *args):
            now[0] += 5.0  # an epoch has 5 batches, and 3 steps
            steps.append(1)
            return super().__call__(*args)

    monkeypatch.setattr(resume.store, "write_checkpoint", write)
    model, plan, task, _ = classifier()
    options = TrainingOptions(**OPTIONS, checkpoints=Checkpoints(tmp_path / "run", every_seconds=30.0))
    task = replace(task, objective=Slow(), valid_batches=None, new_metric=None)
    phase = replace(plan.phases[2], epochs=8)
    run_phases(model, Plan((phase,), plan.groups), task, accelerator=accelerator, options=options)
    assert saved == [4, 14, 24]  # after 35 seconds, and 85 more, and 85 more
    assert now[0] == 5.0 * len(steps) + 4.0 * len(saved)


def test_two_checkpoints_share_no_file(tmp_path, accelerator):
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run"), kill=13)
    first, second = sorted((tmp_path / "run").iterdir())
    assert (first / "best.safetensors").read_bytes() == (second / "best.safetensors").read_bytes()
    assert {file.stat().st_nlink for file in (tmp_path / "run").rglob("*.*") if file.is_file()} == {1}


def test_best_weights_that_rot_on_the_disk_are_not_sealed_as_good_by_the_next_checkpoint(tmp_path, accelerator):
    found = []

    class Rotting(KilledAt):
        def __call__(self, *args):
            if self.left == 2:  # one more step comes
                last = newest(tmp_path / "run")
                found.append((last, (last / "best.safetensors").read_bytes()))
                altered(last / "best.safetensors")
            return super().__call__(*args)

    def build(kill=10**9):
        model, plan, task, monitor = classifier()
        return model, plan, replace(task, objective=Rotting(task.objective, kill)), monitor

    with pytest.raises(Killed):
        train(build, accelerator, kept(tmp_path / "run"), kill=13)
    ((before, content),) = found
    assert newest(tmp_path / "run") != before
    assert (newest(tmp_path / "run") / "best.safetensors").read_bytes() == content
    assert_same(
        train(classifier, accelerator, kept(tmp_path / "run", resume=True)), never_stopped(classifier, accelerator)
    )


def test_the_time_before_is_counted(tmp_path, accelerator):
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run"), kill=12)
    seconds = json.loads((newest(tmp_path / "run") / "state.json").read_text())["state"]["seconds"]
    again = train(classifier, accelerator, kept(tmp_path / "run", resume=True))
    assert again.history.earlier_seconds == seconds > 0


def test_what_all_processes_trained_on_in_an_epoch_is_kept_and_not_what_one_did(tmp_path, accelerator, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(resume, "reduce_sum", lambda _accelerator: lambda values: values * 3)  # the others did as much
        with pytest.raises(Killed):
            train(classifier, accelerator, kept(tmp_path / "run"), kill=4)
    state = json.loads((newest(tmp_path / "run") / "state.json").read_text())["state"]
    assert (state["sums"]["batch"], state["sums"]["items"]) == (4, 3 * 16)


def test_numbers_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every_steps must be 1 or more or None, got 0"):
        Checkpoints(tmp_path, every_steps=0)
    with pytest.raises(ValueError, match="every_seconds must be 0 or more or None, got -1; 60 is the default"):
        Checkpoints(tmp_path, every_seconds=-1)
    with pytest.raises(ValueError, match="keep must be 1 or more checkpoints, got 0; 2 outlive a damaged one"):
        Checkpoints(tmp_path, keep=0)


# ---- damaged checkpoints


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-3])


def altered(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def missing(file):
    file.unlink()


@pytest.mark.parametrize("damage", [cut_short, altered, missing])
@pytest.mark.parametrize("name", ["model", "optimizer", "best", "steps", "rank-0", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, accelerator, damage, name):
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run"), kill=13)
    before, last = sorted((tmp_path / "run").iterdir())
    file = last / (name if "." in name else f"{name}.safetensors")
    damage(file)
    said = []
    done = train(classifier, accelerator, kept(tmp_path / "run", resume=True), said=said)
    assert said[0].startswith(f"checkpoint {last.name} is damaged and left out, the one before it is taken: {file}")
    assert said[1].startswith(f"resuming from {before}")
    assert_same(done, never_stopped(classifier, accelerator))


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path, accelerator):
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run"), kill=13)
    for path in (tmp_path / "run").iterdir():
        cut_short(path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match="all 2 checkpoints in .*run are damaged; delete that folder to start over"
    ):
        train(classifier, accelerator, kept(tmp_path / "run", resume=True))


def test_a_checkpoint_of_another_format_is_left_out(tmp_path, accelerator, monkeypatch):
    monkeypatch.setattr(resume.store, "FORMAT", 2)
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run", keep=1), kill=13)
    monkeypatch.undo()
    said = []
    with pytest.raises(CheckpointError, match="all 1 checkpoints"):
        train(classifier, accelerator, kept(tmp_path / "run", resume=True), said=said)
    assert said[0].endswith("has format 2, this version reads 1")


@pytest.fixture
def killed_run(tmp_path_factory, accelerator):
    """Return the folder of a run of three phases that was killed inside the first epoch of the second."""
    folder = tmp_path_factory.getbasetemp() / "killed-run"
    if not folder.exists():  # made once for all tests that copy it
        with pytest.raises(Killed):
            train(classifier, accelerator, kept(folder, keep=1), kill=22)
    state = resume.store.read_state(next(folder.iterdir()))
    assert (state["position"]["phase"], state["position"]["epoch"], state["best"] is not None) == (1, 0, True)
    return folder


def forged(folder, where, value):
    """Change an entry of a checkpoint, or take it away, and seal it again."""
    (path,) = folder.iterdir()
    state = resume.store.read_state(path)
    *above, name = where.split(".")
    part = state
    for key in above:
        part = part[int(key) if isinstance(part, list) else key]
    if value is ...:
        del part[name]
    else:
        part[name] = value
    (path / "state.json").write_text(resume.store._sealed(state))


FORGED = [
    ("position.phase", 99, "it is in phase 100, the plan has 3"),
    ("position.phase", 3, "it is in phase 4, the plan has 3"),
    ("position.phase", -1, "its phase is -1"),
    ("position.phase", 2, "it has the records of 0 epochs of phase 2, which cannot be at its position"),
    ("position.epoch", 10**9, "it is in epoch 1000000000 .counted from 0. of a phase of 2 epochs"),
    ("position.epoch", 1, "it has the records of 0 epochs of phase 2"),
    ("position.epoch", "x", "it is in epoch 'x'"),
    ("position.step", 10**6, "it has taken 1000000 steps and .* batches of epoch 0, more than there are"),
    ("position.step", None, "its step is None"),
    ("position.steps_of_phase", 10**6, "steps_of_phase is 1000000, .* steps are recorded"),
    ("position.steps", [1], "more than there are|optimizer steps, they had"),
    ("sums.batch", 10**9, "1000000000 batches of epoch 0, more than there are"),
    ("sums.batch", ..., "an entry is missing or of another type .KeyError: 'batch'"),
    ("sums.items", "x", "cannot be continued from .TypeError"),
    ("history", [], "it has the records of 0 epochs of phase 1"),
    ("history.0.phase", "other", "it has the records of|it has a record of a phase 'other'"),
    ("history.0.step", ..., "cannot be continued from .TypeError"),
    ("best", 77, "its best epoch is number 77 of"),
    ("world_size", 10**9, "it lists no file rank-999999999.safetensors"),
    ("ties", [], r"its ties is \[\]"),
    ("optimizer", [], "cannot be continued from .ValueError"),
    ("files", {}, "it lists no file model.safetensors"),
    ("files", [1], "state.json cannot be read .TypeError: files is not an object"),
    ("files", {"../x": "0"}, "state.json names a file outside of its folder, '../x': it was altered"),
    *((name, ..., f"KeyError: '{name}'") for name in ("position", "history", "sums", "world_size", "seconds", "best")),
    ("plan", ..., "differs in plan"),
    ("identity", ..., "differs in identity"),
]


@pytest.mark.parametrize(("where", "value", "words"), FORGED, ids=[where for where, _, _ in FORGED])
def test_a_checkpoint_that_was_altered_and_sealed_again_is_one_line(
    killed_run, tmp_path, accelerator, where, value, words
):
    folder = shutil.copytree(killed_run, tmp_path / "run")
    forged(folder, where, value)
    said = []
    with pytest.raises(CheckpointError, match="delete that") as found:
        train(classifier, accelerator, kept(folder, resume=True), said=said)
    line = " ".join([*said, str(found.value)])
    assert re.search(words, line), line
    assert "\n" not in str(found.value)


def test_a_checkpoint_that_claims_to_be_at_the_end_without_having_trained_is_refused(killed_run, tmp_path, accelerator):
    folder = shutil.copytree(killed_run, tmp_path / "run")
    forged(folder, "position", {"phase": 3, "epoch": None, "step": 0, "steps_of_phase": 0, "steps": []})
    with pytest.raises(CheckpointError, match="it has the records of 0 epochs of phase 2, which cannot be at its posi"):
        train(classifier, accelerator, kept(folder, resume=True))


def test_a_checkpoint_that_was_not_altered_goes_on(killed_run, tmp_path, accelerator):
    folder = shutil.copytree(killed_run, tmp_path / "run")
    done = train(classifier, accelerator, kept(folder, resume=True))
    assert_same(done, never_stopped(classifier, accelerator))


def test_what_a_kill_in_the_middle_of_saving_left_is_taken_away(tmp_path, accelerator, monkeypatch):
    def killed(*_args):
        raise Killed

    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run"), kill=13)
    run = tmp_path / "run"
    last = newest(run)
    last.rename(run / f".{last.name}.12345678.old")  # killed between the two renames of a folder that is replaced
    half = run / f".{last.name}.12345678.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    said = []
    done = train(classifier, accelerator, kept(run, resume=True), said=said)
    assert said[0].startswith(f"resuming from {last}")
    assert not list(run.glob(".*"))
    assert_same(done, never_stopped(classifier, accelerator))


def test_checkpoints_after_the_one_gone_on_from_do_not_come_back(tmp_path, accelerator):
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run", every_steps=3), kill=17)
    before, last = sorted((tmp_path / "run").iterdir())
    assert [before.name, last.name] == ["step-00000003", "step-00000006"]
    cut_short(last / "model.safetensors")
    with pytest.raises(Killed):  # after a step that is not yet that of the damaged one
        train(classifier, accelerator, kept(tmp_path / "run", resume=True), kill=4)
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == ["step-00000003", "step-00000004"]
    assert_same(
        train(classifier, accelerator, kept(tmp_path / "run", resume=True)), never_stopped(classifier, accelerator)
    )


# ---- a full disk


def test_a_full_disk_stops_the_run_says_how_much_is_needed_and_the_one_before_stands(
    tmp_path, accelerator, monkeypatch
):
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run"), kill=13)
    last = newest(tmp_path / "run")

    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "_sync", full)
    with pytest.raises(CheckpointError) as caught:
        train(classifier, accelerator, kept(tmp_path / "run", resume=True))
    monkeypatch.undo()
    words = str(caught.value)
    assert words.startswith(f"could not save checkpoint {tmp_path / 'run'}/step-")
    assert "No space left on device; it takes about 1 MB and" in words
    assert (
        f"are free; the one before, {last.name}, remains. The disk is full: free some space, then run the sa" in words
    )
    assert words.endswith("with --resume true")
    assert not list((tmp_path / "run").glob(".*"))
    assert_same(
        train(classifier, accelerator, kept(tmp_path / "run", resume=True)), never_stopped(classifier, accelerator)
    )


def test_a_disk_that_is_full_from_the_start_is_told_so(tmp_path, accelerator, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "_sync", full)
    with pytest.raises(CheckpointError, match="are free; there is none before it. The disk is full: free some space"):
        train(classifier, accelerator, kept(tmp_path / "run"))


# ---- SIGTERM


def test_sigterm_saves_at_the_next_step_and_says_how_to_go_on(tmp_path, accelerator):
    class Terminated(ClassificationObjective):
        calls = 0

        def __call__(self, *args):
            type(self).calls += 1
            if self.calls == 10:  # the third batch of the second epoch
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(*args)

    def build(kill=10**9):
        model, plan, task, monitor = classifier()
        return model, plan, replace(task, objective=Terminated()), monitor

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted) as caught:
        train(build, accelerator, kept(tmp_path / "run", every_steps=None))
    assert signal.getsignal(signal.SIGTERM) == before
    assert caught.value.code == EXIT_PREEMPTED == 75
    assert str(caught.value) == (
        f"stopped by SIGTERM after 5 steps, which are saved in {tmp_path / 'run'}; run the same command again "
        "with --resume true"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-00000005"]
    assert_same(
        train(classifier, accelerator, kept(tmp_path / "run", resume=True)), never_stopped(classifier, accelerator)
    )


# ---- another run


def refused(tmp_path, accelerator, build=classifier, *, changed=None, **changes):
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run"), kill=13)
    files = sorted(str(path) for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        train(build, accelerator, kept(tmp_path / "run", resume=True, **(changed or {})), **changes)
    assert sorted(str(path) for path in (tmp_path / "run").rglob("*")) == files  # all is left as it was
    return str(caught.value)


def test_a_checkpoint_of_other_settings_is_refused_and_the_difference_named(tmp_path, accelerator):
    other = {"settings": {"epochs": 3, "sizes": (3, 5)}, "data": "abd"}
    words = refused(tmp_path, accelerator, changed={"identity": other})
    assert f"the checkpoints in {tmp_path / 'run'} are of another training; it differs in " in words
    assert "identity.data ('abc' there, 'abd' now), identity.settings.epochs (2 there, 3 now). " in words
    assert words.endswith("Give the same settings and data, or delete that folder to start over")


def test_a_checkpoint_of_another_plan_is_refused_and_the_difference_named(tmp_path, accelerator):
    def other(kill=10**9):
        model, plan, task, monitor = classifier()
        phases = [*plan.phases[:2], replace(plan.phases[2], epochs=3, lrs=(1.0, 1.0, 1.0, 2.0))]
        return model, Plan(tuple(phases), plan.groups), task, monitor

    words = refused(tmp_path, accelerator, other)
    assert "plan.phases.3.epochs (2 there, 3 now), plan.phases.3.lrs ([0.01, 0.01, 0.01, 0.01] there" in words


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight_decay": 0.2}, r"plan.options.weight_decay \(0.1 there, 0.2 now\)"),
        ({"accumulation_steps": 1}, r"plan.options.accumulation_steps \(2 there, 1 now\)"),
    ],
)
def test_other_numbers_of_the_loop_are_refused(tmp_path, accelerator, change, named):
    import re

    assert re.search(named, refused(tmp_path, accelerator, **change))


def test_other_data_are_refused_by_their_number_of_steps(tmp_path, accelerator):
    def other(kill=10**9):
        model, plan, task, monitor = classifier()
        return model, plan, replace(task, train_batches=ToyBatches(text_rows(26))), monitor

    words = refused(tmp_path, accelerator, other)
    assert "the epochs of this phase have [4, 4, 4, 4] optimizer steps, they had [3, 3, 3, 3] when" in words


def test_another_model_is_refused_by_its_first_tensor(tmp_path, accelerator):
    def other(kill=10**9):
        _, plan, task, monitor = classifier()
        model = new_model(norm="batch")
        model.head.register_buffer("extra", torch.ones(1))
        return model, Plan(plan.phases, tuple(groups_of(model))), task, monitor

    words = refused(tmp_path, accelerator, other)
    assert words == (
        "the checkpoint is of another model: head.extra, of which the checkpoint has none; build the model as it was "
        "then, or delete the folder of checkpoints to start over"
    )


def test_other_versions_are_named_and_the_run_goes_on(tmp_path, accelerator):
    with pytest.raises(Killed):
        train(classifier, accelerator, kept(tmp_path / "run", versions={"tokenizers": "1.0", "numpy": "2"}), kill=13)
    said = []
    versions = {"tokenizers": "1.1", "numpy": "2"}
    done = train(classifier, accelerator, kept(tmp_path / "run", resume=True, versions=versions), said=said)
    assert said[0] == (
        "the checkpoint was made with other versions or another machine: tokenizers ('1.0' there, '1.1' now); the "
        "training continues, but may not end bit for bit as it would have"
    )
    assert_same(done, never_stopped(classifier, accelerator))


def test_what_an_objective_carries_must_be_tensors(tmp_path, accelerator):
    class Strange(ClassificationObjective):
        def __call__(self, *args):
            output = super().__call__(*args)
            output.carry = {"state": [torch.ones(2), "text"]}
            return output

    model, plan, task, _ = classifier()
    options = TrainingOptions(checkpoints=kept(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="an objective carries a str, which no checkpoint can hold; carry tensor"):
        run_phases(model, plan, replace(task, objective=Strange()), accelerator=accelerator, options=options)


def test_a_tensor_may_be_carried_twice(tmp_path, accelerator):
    class Twice(ClassificationObjective):
        def __call__(self, *args):
            output = super().__call__(*args)
            output.carry = (output.logits, [output.logits[:1], output.logits])
            return output

    model, plan, task, _ = classifier()
    options = TrainingOptions(checkpoints=kept(tmp_path / "run"))
    history = run_phases(model, plan, replace(task, objective=Twice()), accelerator=accelerator, options=options)
    assert newest(tmp_path / "run").name == f"step-{len(history.steps):08d}"


def test_sharded_weights_are_not_kept_and_not_gone_on_with(tmp_path, accelerator, monkeypatch):
    monkeypatch.setattr(type(accelerator), "distributed_type", property(lambda _self: DistributedType.FSDP))
    said, before = [], signal.getsignal(signal.SIGTERM)

    def keeper(**changes):
        options = TrainingOptions(checkpoints=kept(tmp_path / "run", **changes))
        return phases._checkpoint_manager(None, None, None, accelerator, options, {}, said.append)

    with keeper() as nothing:
        assert nothing is None
        assert signal.getsignal(signal.SIGTERM) is before  # nobody would act on a signal that was noted
    assert said == ["no checkpoints are kept under FSDP, whose weights are sharded over the processes"]
    with pytest.raises(CheckpointError, match="a training under FSDP cannot be resumed: its weights are sharded"):
        with keeper(resume=True):
            raise AssertionError


def test_the_learner_goes_on_from_its_checkpoints(tmp_path, accelerator):
    from ulmfit_pipe.training.learner import Learner

    def learner(kill=10**9, **changes):
        model, plan, task, monitor = classifier(kill)
        options = TrainingOptions(**OPTIONS, checkpoints=kept(tmp_path / "run", **changes))
        torch.manual_seed(7)
        return Learner(model, plan.groups, task, options=options, accelerator=accelerator, say=lambda _line: None), plan

    with pytest.raises(Killed):
        made, plan = learner(kill=30)
        made.fit_plan(plan)
    made, plan = learner(resume=True)
    made.fit_plan(plan)
    whole = never_stopped(classifier, accelerator)
    assert weights_of(made.model).keys() == whole.weights.keys()
    assert all(torch.equal(value, whole.weights[name]) for name, value in weights_of(made.model).items())
    assert made.epochs_done == len(whole.history.epochs)
    assert made.position["phase"] == "all"
    made.save(tmp_path / "saved")
    assert "checkpoints" not in json.loads((tmp_path / "saved" / "learner.json").read_text())["options"]
