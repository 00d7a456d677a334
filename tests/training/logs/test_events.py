"""What a training logs must be the numbers it trained with, and a log that was cut must go on as if it had not been."""

import errno
import json
import math
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support.toy_models import NAMES, groups_of, new_model, new_phase, new_task, weights_of
from ulmfit_pipe.storage import atomic
from ulmfit_pipe.training import loop
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.logs import events
from ulmfit_pipe.training.logs.events import JsonlLog, _norm, memory_in_use
from ulmfit_pipe.training.lr_finder import lr_find
from ulmfit_pipe.training.phases import Plan, gradual_unfreezing, run_phases
from ulmfit_pipe.training.records import Checkpoints, TrainingOptions

CLOCK = ("time", "rows_per_second", "tokens_per_second", "epoch/seconds", "epoch/items_per_second", "memory/rss_gib")


class Listed:
    """Keeps all that it is told."""

    def __init__(self):
        self.calls, self.lines = [], []

    def start(self, *, step, epochs):
        self.calls.append(("start", step, epochs))

    def log(self, values, *, step):
        self.lines.append({"step": step, **values})

    def finish(self):
        self.calls.append(("finish",))

    @property
    def steps(self):
        return [line for line in self.lines if "epoch" not in line]

    @property
    def epochs(self):
        return [line for line in self.lines if "epoch" in line]


def train(accelerator, phases, *trackers, task=None, model=None, **options):
    model = model or new_model()
    plan = Plan(tuple(phases), tuple(groups_of(model)))
    options = TrainingOptions(**{"log_every": 1, **options}, trackers=trackers)
    history = run_phases(model, plan, task or new_task(10), accelerator=accelerator, options=options)
    return SimpleNamespace(model=model, history=history, groups=plan.groups)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(lines):
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def gradients_by_hand(model, task):
    """The norm of each group's gradient of the first batch's mean loss, from plain torch."""
    task.train_batches.set_epoch(0)
    batch = next(iter(task.train_batches))
    loss = torch.nn.functional.cross_entropy(model(batch["input_ids"]).logits, batch["labels"])
    loss.backward()
    by_group = {name: [] for name in NAMES}
    for name, parameter in model.named_parameters():
        by_group[name.split(".")[0]].append(parameter.grad.flatten())
    norms = {name: float(torch.cat(parts).norm()) for name, parts in by_group.items()}
    return loss.item(), {**norms, "": math.hypot(*norms.values())}


# ---- the numbers


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1e-3}, {"accumulation_steps": 2}])
def test_a_step_is_logged_with_loss_rates_and_gradient_norms_computed_by_hand(accelerator, options):
    heard = Listed()
    lrs = [1e-3, 2e-3, 3e-3, 4e-3]
    size = 4 // options.get("accumulation_steps", 1)
    train(accelerator, [new_phase(0, 1, 2, 3, lr=lrs)], heard, task=new_task(10, batch_size=size), **options)
    loss, norms = gradients_by_hand(new_model(), new_task(10, batch_size=4))
    first = heard.steps[0]
    assert first["loss"] == pytest.approx(loss, rel=1e-6)
    assert [first[f"lr/{name}"] for name in NAMES] == lrs
    assert first["grad_norm"] == pytest.approx(norms[""], rel=1e-5)  # before clipping
    assert {name: first[f"grad_norm/{name}"] for name in NAMES} == pytest.approx(
        {name: norms[name] for name in NAMES}, rel=1e-5
    )
    assert first["trainable_parameters"] == sum(p.numel() for p in new_model().parameters())
    assert first["rows_per_second"] > 0
    assert len(heard.steps) == 3
    assert (first["step"], first["phase"]) == (0, 1)


def test_loss_scaling_is_taken_off_the_gradient_norms(accelerator):
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    heard = Listed()
    train(accelerator, [new_phase(0, 1, 2, 3)], heard)
    _, norms = gradients_by_hand(new_model(), new_task(10))
    assert heard.steps[0]["grad_norm"] == pytest.approx(norms[""], rel=1e-5)
    assert heard.steps[0]["grad_norm/body"] == pytest.approx(norms["body"], rel=1e-5)


def test_a_step_that_overflowed_is_logged_too_and_the_next_has_its_own_number(accelerator):
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    heard = Listed()
    train(accelerator, [new_phase(0, 1, 2, 3)], heard)
    assert [line["step"] for line in heard.steps] == [0, 1, 2]
    assert not math.isfinite(heard.steps[0]["grad_norm"])


def test_frozen_groups_have_rate_zero_and_no_gradient_norm_and_the_trained_scalars_are_counted(accelerator):
    heard = Listed()
    done = train(accelerator, gradual_unfreezing(4, lr=1e-2), heard)
    sizes = [group.num_parameters for group in done.groups]
    assert [line["phase"] for line in heard.steps] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    for line in heard.steps:
        frozen = NAMES[: 4 - line["phase"]]
        assert [name for name in NAMES if line[f"lr/{name}"] == 0] == frozen
        assert [name for name in NAMES if f"grad_norm/{name}" not in line] == frozen
        assert line["trainable_parameters"] == sum(sizes[4 - line["phase"] :])
        each = [line[f"grad_norm/{name}"] for name in NAMES if name not in frozen]
        assert line["grad_norm"] == pytest.approx(math.hypot(*each))
    assert [line["step"] for line in heard.steps] == list(range(12))
    rates = [tuple(line[f"lr/{name}"] for name in NAMES) for line in heard.steps]
    assert rates == [record.lrs for record in done.history.steps]
    assert [line["loss"] for line in heard.steps] == [record.loss for record in done.history.steps]


def test_norm_layers_that_train_in_a_frozen_group_show_their_gradient(accelerator):
    heard = Listed()
    train(accelerator, [new_phase(3)], heard, train_norm=True)
    assert heard.steps[0]["grad_norm/middle"] > 0
    assert heard.steps[0]["lr/middle"] == 0
    assert "grad_norm/embeddings" not in heard.steps[0]


def test_one_step_in_so_many_is_logged_with_the_mean_loss_since_the_one_before(accelerator):
    heard = Listed()
    phases = [new_phase(3, name="head", epochs=2), new_phase(2, 3, name="two")]  # 2 x 3 and 3 steps
    done = train(accelerator, phases, heard, log_every=4)
    losses = [record.loss for record in done.history.steps]
    assert [line["step"] for line in heard.steps] == [0, 4, 8]
    means = [losses[0], sum(losses[1:5]) / 4, sum(losses[6:9]) / 3]  # the second phase has three by then
    assert [line["loss"] for line in heard.steps] == pytest.approx(means)


def test_rows_a_second_count_what_came_since_the_line_before(accelerator, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))
    heard = Listed()
    train(accelerator, [new_phase(3, epochs=2)], heard, log_every=2, task=new_task(20, valid=0))  # 5 batches of 4
    # the clock is read once before an epoch's first step and once a step: a second each
    assert [line["rows_per_second"] for line in heard.steps] == [4.0, 4.0, 4.0, 4.0, 4.0]
    assert [line["step"] for line in heard.steps] == [0, 2, 4, 6, 8]


def test_tokens_are_counted_where_there_are_tokens(accelerator):
    heard = Listed()
    task = new_task(10)
    ids = task.train_batches.rows["input_ids"]
    task.train_batches.rows["attention_mask"] = torch.ones_like(ids)
    train(accelerator, [new_phase(3)], heard, task=replace(task, objective=IgnoringMasks(task.objective)))
    assert heard.steps[0]["tokens_per_second"] > 0
    assert "rows_per_second" not in heard.steps[0]


class IgnoringMasks:
    """Keeps the mask from a model that knows none."""

    def __init__(self, objective):
        self.objective = objective

    def count(self, batch):
        return self.objective.count(batch)

    def __call__(self, model, batch, carry):
        return self.objective(model, {key: value for key, value in batch.items() if key != "attention_mask"}, carry)


def test_an_epoch_is_logged_with_its_loss_and_validation_metrics(accelerator):
    heard = Listed()
    done = train(accelerator, [new_phase(3, name="head", epochs=2), new_phase(2, 3, name="two")], heard)
    assert [(line["step"], line["phase"], line["epoch"]) for line in heard.epochs] == [(2, 1, 1), (5, 1, 2), (8, 2, 3)]
    for line, record in zip(heard.epochs, done.history.epochs, strict=True):
        metrics = {f"validation/{name}": value for name, value in record.metrics.items()}
        assert {"validation/accuracy", "validation/loss"} <= metrics.keys()
        assert line.items() >= metrics.items()
        assert line["epoch/loss"] == record.train_loss
        assert line["epoch/seconds"] == record.seconds
        assert line["epoch/items_per_second"] == record.items_per_second


def test_memory_is_that_of_this_process_in_gibibytes(monkeypatch, tmp_path):
    held = memory_in_use(torch.device("cpu"))
    with mmap.mmap(-1, 2**28) as block:  # from the kernel: an allocator may have as much at hand
        block[:: mmap.PAGESIZE] = b"1" * (len(block) // mmap.PAGESIZE)
        more = memory_in_use(torch.device("cpu"))
    assert held.keys() == {"memory/rss_gib"}
    assert more["memory/rss_gib"] - held["memory/rss_gib"] == pytest.approx(0.25, abs=0.05)
    monkeypatch.setattr(events, "STATM", tmp_path / "none")
    assert memory_in_use(torch.device("cpu")) == {}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    assert memory_in_use(torch.device("cuda")) == {"memory/cuda_peak_gib": 1.5}


def test_the_norm_of_no_gradient_is_zero_on_the_device_of_the_others():
    assert _norm([], torch.device("cpu")).item() == 0
    assert _norm([], torch.device("meta")).device.type == "meta"  # a GPU would refuse to stack it with one of its own
    assert _norm([torch.tensor([3.0]), torch.tensor([[4.0]])], torch.device("cpu")).item() == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_norms_under_fp16_on_a_gpu_are_those_of_the_unscaled_gradient():
    from accelerate import Accelerator

    heard = Listed()
    train(Accelerator(mixed_precision="fp16"), [new_phase(0, 1, 2, 3)], heard, max_grad_norm=0.5)
    _, norms = gradients_by_hand(new_model(), new_task(10))
    finite = next(line for line in heard.steps if math.isfinite(line["grad_norm"]))
    assert finite["grad_norm"] == pytest.approx(norms[""], rel=0.2)
    assert finite["memory/cuda_peak_gib"] > 0


# ---- what logging leaves alone


def test_logging_changes_no_weight_and_draws_no_random_number(accelerator):
    def trained(*trackers):
        done = train(accelerator, gradual_unfreezing(4, lr=1e-2), *trackers, model=new_model(dropout=0.3))
        return {**weights_of(done.model), "random": torch.get_rng_state()}

    plain, logged = trained(), trained(Listed())
    assert [name for name, value in plain.items() if not torch.equal(value, logged[name])] == []


def test_a_sweep_of_the_learning_rate_is_not_logged(accelerator):
    heard = Listed()
    model = new_model()
    lr_find(model, groups_of(model), new_task(), accelerator=accelerator, options=TrainingOptions(trackers=(heard,)))
    assert (heard.calls, heard.lines) == ([], [])


def test_trackers_are_ended_also_where_the_training_fails(accelerator):
    heard = Listed()
    task = new_task()
    with pytest.raises(ZeroDivisionError):
        train(accelerator, [new_phase(3)], heard, task=replace(task, new_metric=lambda: 1 / 0))
    assert heard.calls == [("start", 0, 0), ("finish",)]
    assert len(heard.steps) == 3


def test_a_learners_second_fit_goes_on_with_numbers_and_log(accelerator, tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    model, heard = new_model(), Listed()
    options = TrainingOptions(trackers=(JsonlLog(path), heard), log_every=2)
    learner = Learner(model, groups_of(model), new_task(), options=options, accelerator=accelerator, say=str)
    learner.fit(2)
    learner.unfreeze()
    learner.fit(1)
    assert heard.calls == [("start", 0, 0), ("finish",), ("start", 6, 2), ("finish",)]
    assert [(line["step"], line.get("epoch")) for line in lines_of(path)] == [
        (0, None),
        (2, None),
        (2, 1),
        (4, None),
        (5, 2),
        (6, None),
        (8, None),
        (8, 3),
    ]
    saved = learner.save(tmp_path / "saved")  # trackers are no part of what a learner is
    assert not {"trackers", "log_every"} & json.loads((saved / "learner.json").read_text())["options"].keys()


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_a_step_out_of_less_than_one_is_refused(every):
    with pytest.raises(ValueError, match=f"log_every must be a whole number of 1 or more, got {every!r}; 1 logs each"):
        TrainingOptions(log_every=every)


# ---- the file


def test_each_line_is_strict_json_and_what_is_not_finite_is_null(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl")
    log.start(step=0, epochs=0)
    log.log({"loss": math.nan, "grad_norm": math.inf, "lr/head": 1e-3, "trainable_parameters": 28}, step=7)
    log.finish()
    text = (tmp_path / "log.jsonl").read_text()

    def refuse(name):
        raise AssertionError(name)

    record = json.loads(text, parse_constant=refuse)
    assert text.endswith("\n") and text.count("\n") == 1
    assert record.pop("time") > 1.7e9
    assert record == {"step": 7, "loss": None, "grad_norm": None, "lr/head": 1e-3, "trainable_parameters": 28}


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl")
    log.log({"loss": 1.0}, step=0)
    assert len(lines_of(log.path)) == 1
    log.finish()


def test_a_log_without_a_line_makes_no_file_and_takes_an_old_one_away(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl")
    log.start(step=0, epochs=0)
    log.finish()
    assert not log.path.exists()
    log.log({"loss": 1.0}, step=0)
    log.start(step=0, epochs=0)
    assert not log.path.exists()


class LogOnAFullDisk(JsonlLog):
    """A log on a disk that opens every file and takes no byte."""

    def __init__(self):
        super().__init__("/dev/full")

    def start(self, *, step, epochs):
        """Leave the file alone: it is without end."""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_at_a_line_is_the_one_error_and_names_the_file_and_what_stands(accelerator, tmp_path):
    kept = Checkpoints(tmp_path / "run", every_seconds=None, every_steps=1)
    with pytest.raises(OSError) as caught:
        train(accelerator, [new_phase(3)], LogOnAFullDisk(), checkpoints=kept, log_every=3)
    assert str(caught.value) == (
        "[Errno 28] could not write to the log /dev/full: No space left on device; checkpoints saved before remain. "
        "The disk is full: free some space, then run again"
    )
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.__cause__ is caught.value.__context__  # the log's end added none of its own


def test_a_log_whose_folder_cannot_be_made_names_the_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"could not write to the log .*/file/log.jsonl: .*; checkpoints saved before re"):
        JsonlLog(tmp_path / "file" / "log.jsonl").log({"loss": 1.0}, step=0)


def test_a_pipe_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match=r"log.jsonl is a pipe, a device or a folder, not a log; choose another file"):
        JsonlLog(tmp_path / "log.jsonl").start(step=0, epochs=0)


def test_a_file_that_is_no_log_is_not_overwritten(tmp_path):
    (tmp_path / "notes.jsonl").write_text('{"text": "dear"}\n')
    with pytest.raises(
        ValueError, match=r"notes.jsonl is not a log of a training and would be overwritten; choose anoth"
    ):
        JsonlLog(tmp_path / "notes.jsonl").start(step=0, epochs=0)
    assert (tmp_path / "notes.jsonl").read_text() == '{"text": "dear"}\n'


@pytest.mark.parametrize(
    ("step", "epochs", "kept"),
    [(0, 0, 0), (1, 0, 1), (2, 0, 2), (2, 1, 3), (3, 1, 4), (4, 1, 5), (4, 2, 6), (9, 9, 6)],
)
def test_going_on_drops_the_steps_and_epochs_that_come_again(tmp_path, step, epochs, kept):
    log = JsonlLog(tmp_path / "log.jsonl")
    lines = [(0, {}), (1, {}), (1, {"epoch": 1}), (2, {}), (3, {}), (3, {"epoch": 2})]
    for number, values in lines:
        log.log(values, step=number)
    log.start(step=step, epochs=epochs)
    found = lines_of(log.path) if log.path.exists() else []
    assert [(line["step"], line.get("epoch")) for line in found] == [
        (number, values.get("epoch")) for number, values in lines[:kept]
    ]
    log.log({}, step=step)
    log.finish()
    assert len(lines_of(log.path)) == kept + 1


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_last_line_that_was_cut_short_is_dropped(tmp_path, cut):
    log = JsonlLog(tmp_path / "log.jsonl")
    for step in range(3):
        log.log({"loss": 0.5}, step=step)
    log.finish()
    log.path.write_bytes(log.path.read_bytes()[:-cut])
    log.start(step=9, epochs=9)
    assert [line["step"] for line in lines_of(log.path)] == [0, 1]


# ---- going on after a kill


class Killed(BaseException):
    """Raised in the place of a kill."""


@pytest.mark.parametrize("every", [1, 3])
def test_a_killed_run_ends_with_the_log_of_one_that_never_was(accelerator, tmp_path, monkeypatch, every):
    monkeypatch.setattr(atomic, "_sync", lambda _path: None)
    phases = [new_phase(3, name="head", epochs=2), new_phase(1, 2, 3, name="upper")]

    def run(name, *, kill=10**9, resume=False):
        """Train, and be killed at the kill-th batch of training or validation."""
        left = iter(range(kill))
        task = new_task(14)

        class Fragile(type(task.objective)):
            def __call__(self, *args):
                if next(left, None) is None:
                    raise Killed
                return super().__call__(*args)

        checkpoints = Checkpoints(tmp_path / name, every_seconds=None, every_steps=every, resume=resume)
        log = JsonlLog(tmp_path / name / "log.jsonl")
        task = replace(task, objective=Fragile())
        train(accelerator, phases, log, task=task, log_every=2, checkpoints=checkpoints)
        return timeless(lines_of(log.path))

    whole = run("whole")
    batches = 3 * (4 + 2)  # an epoch trains on four batches and validates on two
    assert [line["step"] for line in whole if "epoch" not in line] == [0, 2, 4, 6, 8, 10]
    assert [line["step"] for line in whole if "epoch" in line] == [3, 7, 11]
    for kill in range(batches):
        with pytest.raises(Killed):
            run(f"killed at {kill}", kill=kill)
        assert run(f"killed at {kill}", resume=True) == whole, kill


def test_a_run_begun_anew_begins_its_log_anew(accelerator, tmp_path):
    for _ in range(2):
        train(accelerator, [new_phase(3)], JsonlLog(tmp_path / "log.jsonl"))
    assert [line["step"] for line in lines_of(tmp_path / "log.jsonl")] == [0, 1, 2, 2]


# ---- several processes


@pytest.mark.slow
@pytest.mark.two_process
def test_two_processes_log_once_and_the_numbers_of_one(accelerator, tmp_path):
    root = Path(__file__).parents[3]
    script = root / "tests/support/processes/two_process_log.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    heard = [json.loads((tmp_path / f"heard{rank}.json").read_text()) for rank in range(2)]
    assert [len(lines) for lines in heard] == [15 + 5, 0]  # rank 0 alone
    log = lines_of(tmp_path / "log.jsonl")
    assert [line["step"] for line in log] == [line["step"] for line in heard[0]]
    one = Listed()
    model = new_model().double()
    train(accelerator, gradual_unfreezing(4, lr=1e-2, final_epochs=2), one, task=new_task(11), model=model)
    assert len(log) == len(one.lines) == 20
    for mine, theirs in zip(timeless(log), timeless(one.lines), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-9)
    for line in log:
        assert line.get("rows_per_second", 1) > 0
    pieces = json.loads((tmp_path / "pieces.json").read_text())  # of torch's fully_shard
    assert pieces["sharded"] == pytest.approx(pieces["whole"], rel=1e-9)
