"""Training from what was kept must lead where training without it leads; every test trains twice and compares."""

import re
import tempfile

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from tests.support.toy_models import (
    CLASSES,
    HIDDEN,
    VOCAB,
    Filler,
    ToyBatches,
    ToyOutput,
    groups_of,
    new_metric,
    new_model,
    new_task,
    text_rows,
    weights_of,
)
from ulmfit_pipe.models.heads.window_classifier import WindowsForSequenceClassification
from ulmfit_pipe.storage import atomic
from ulmfit_pipe.training import loop
from ulmfit_pipe.training.layer_groups import split_layer_groups
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.loop import fit
from ulmfit_pipe.training.objectives import ClassificationObjective
from ulmfit_pipe.training.phases import Plan, run_phases
from ulmfit_pipe.training.records import Checkpoints, Phase, Task, TrainingOptions
from ulmfit_pipe.training.schedules import Schedule

BERT_GROUPS = [["embeddings"], *([f"encoder.layer.{block}"] for block in range(3)), ["pooler"]]


class FixedBatches(ToyBatches):
    fixed_rows = True


class TextBatches(FixedBatches):
    """Texts of 1 to 7 tokens, right-padded to the longest of the batch; with windows, cut into pieces of 3."""

    windows = False

    def __iter__(self):
        for batch in super().__iter__():
            owners = torch.arange(len(batch["row"]))
            if self.windows:
                counts = (batch["lengths"] + 2) // 3
                owners = owners.repeat_interleave(counts)
                starts = torch.cat([3 * torch.arange(count) for count in counts])
            else:
                starts = torch.zeros_like(owners)
            lengths = batch["lengths"][owners] - starts
            lengths = lengths.clamp(max=3) if self.windows else lengths
            width = int(lengths.max())
            mask = (torch.arange(width) < lengths[:, None]).long()
            places = (starts[:, None] + torch.arange(width)).clamp(max=6)
            ids = batch["input_ids"][owners].gather(1, places) * mask
            made = {"input_ids": ids, "attention_mask": mask, "labels": batch["labels"], "row": batch["row"]}
            yield {**made, "document": owners} if self.windows else made


class WindowBatches(TextBatches):
    windows = True


class ShareOfTwo(TextBatches):
    """What the second of two processes is given of 13 rows: of the last batch, which has one, a row in its place."""

    def __init__(self, rows, **options):
        super().__init__({name: value[:13] for name, value in rows.items()}, **options, rank=1, world_size=2)

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            empty = len(self.order) - number * self.batch_size == 1
            yield Filler(batch) if empty else batch


def long_rows(count, *, seed):
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (count, 7), generator=chance)
    lengths = torch.randint(1, 8, (count,), generator=chance)
    return {"input_ids": ids, "lengths": lengths, "labels": ids[:, 0] % CLASSES, "row": torch.arange(count)}


def image_rows(count, *, seed):
    pixels = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixels, "labels": torch.arange(count) % CLASSES, "row": torch.arange(count)}


def task_of(kind, rows, *, order=0, objective=None):
    """14 rows to train on, 6 to validate on; ``order`` None gives the same batches in every epoch."""
    return Task(
        kind(rows(14, seed=1), seed=order), objective or ClassificationObjective(), kind(rows(6, seed=5)), new_metric
    )


def toy_task(**options):
    return task_of(FixedBatches, text_rows, **options)


def bert(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12}
    sizes["initializer_range"] = 0.2  # so that attention does something
    return BertForSequenceClassification(BertConfig(vocab_size=VOCAB, num_labels=CLASSES, **sizes, **options))


def bert_groups(model, prefix="bert."):
    prefixes = [[prefix + name for name in names] for names in BERT_GROUPS]
    prefixes[-1].append(prefix.replace("bert.", "classifier"))
    return split_layer_groups(model, prefixes)


def resnet():
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1,
        embedding_size=4,
        hidden_sizes=[4, 6, 10],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=CLASSES,
    )
    return ResNetForImageClassification(config)


def resnet_groups(model):
    stages = [[f"resnet.encoder.stages.{stage}"] for stage in range(3)]
    return split_layer_groups(model, [["resnet.embedder"], *stages, ["classifier"]])


class Run:
    """One phase of training, and what came of it."""

    def __init__(self, model, groups, task, first, *, cache, epochs=4, accelerator=None, on_epoch=None, **options):
        self.said: list[str] = []
        options = {"frozen_dropout": "off", "cache_frozen": cache, **options}
        rates = (3e-3,) * len(groups)
        phase = Phase("some", tuple(range(first, len(groups))), rates, Schedule.one_cycle(), epochs=epochs)
        torch.manual_seed(3)
        self.epochs, self.steps = fit(
            model,
            groups,
            phase,
            task,
            accelerator=accelerator or Accelerator(cpu=True),
            options=TrainingOptions(**options),
            on_epoch=on_epoch,
            say=self.said.append,
        )
        self.weights = weights_of(model)
        self.following = torch.rand(3)

    def gap(self, other):
        """The largest difference of any weight, loss or metric."""
        pairs = [(self.weights[name].double(), value.double()) for name, value in other.weights.items()]
        for mine, theirs in zip(self.epochs, other.epochs, strict=True):
            values = [(mine.train_loss, theirs.train_loss)]
            values += [(mine.metrics[name], value) for name, value in theirs.metrics.items()]
            pairs += [(torch.tensor(one).double(), torch.tensor(two).double()) for one, two in values]
        return max(float((one - two).abs().max()) for one, two in pairs)


def both(new, groups, task, first, **options):
    """Train without and with the cache."""
    runs = []
    for cache in (False, True):
        model = new()
        runs.append(Run(model, groups(model), task(), first, cache=cache, **options))
    assert runs[0].said == []
    return runs


def moved(run, model):
    return [name for name, value in model.state_dict().items() if not torch.equal(value, run.weights[name])]


# ---- it leads to the same weights


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_plain_module_ends_bit_identical_where_the_batches_are_the_same(norm, first):
    def new():
        return new_model(norm=norm, dropout=0.2)  # in training mode behind the boundary only

    plain, cached = both(new, groups_of, lambda: toy_task(order=None), first)
    assert cached.gap(plain) == 0
    assert torch.equal(cached.following, plain.following)  # chance was used alike
    assert cached.said[0].startswith("cache_frozen: embeddings")
    assert cached.said[-1].startswith("cache_frozen: 20 rows were kept")
    assert moved(plain, new_model(norm=norm))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("first", [1, 3, 4])
def test_a_text_classifier_ends_the_same_whatever_the_order_and_the_padding(first, double):
    def new():
        return bert().double() if double else bert()

    plain, cached = both(new, bert_groups, lambda: task_of(TextBatches, long_rows), first, weight_decay=0.3)
    assert cached.gap(plain) < (1e-12 if double else 1e-6)
    assert "20 rows were kept" in cached.said[-1]
    assert moved(plain, bert())


@pytest.mark.parametrize("first", [1, 3, 4])
def test_an_image_classifier_ends_the_same_with_its_frozen_batch_norms_held(first):
    plain, cached = both(resnet, resnet_groups, lambda: task_of(FixedBatches, image_rows), first, frozen_dropout="on")
    assert cached.gap(plain) < 1e-6
    assert "20 rows were kept" in cached.said[-1]
    statistics = [name for name in moved(cached, resnet()) if "running_mean" in name]
    held = [name for name in statistics if name.startswith("resnet.embedder")]
    assert held == [] and (statistics or first == 4)


def test_documents_in_windows_end_the_same_also_where_the_model_reads_them_in_pieces():
    def new():
        return WindowsForSequenceClassification(bert().double(), piece_tokens=9)

    def groups(model):
        return bert_groups(model, "model.bert.")

    plain, cached = both(new, groups, lambda: task_of(WindowBatches, long_rows), 3)
    assert cached.gap(plain) < 1e-12
    assert "20 rows were kept" in cached.said[-1]


def test_accumulated_and_clipped_steps_end_the_same():
    options = {"accumulation_steps": 2, "max_grad_norm": 0.1}
    plain, cached = both(lambda: new_model().double(), groups_of, toy_task, 2, **options)
    assert cached.gap(plain) < 1e-12


@pytest.mark.bf16
def test_mixed_precision_ends_the_same():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    plain, cached = both(new_model, groups_of, lambda: toy_task(order=None), 2, accelerator=accelerator)
    assert cached.gap(plain) == 0
    assert "20 rows were kept" in cached.said[-1]


# ---- frozen groups run once


class CountedRows:
    """How many rows a module was really run for: with gradients as in training, or without."""

    def __init__(self, module):
        self.counts = {True: 0, False: 0}
        module.register_forward_hook(self)

    def __call__(self, _module, _args, output):
        self.counts[torch.is_grad_enabled()] += len(output)


@pytest.mark.parametrize(("cache", "rows"), [(False, 4 * 14), (True, 4 + 14)])  # 4 to find the boundary
def test_frozen_groups_run_for_every_row_once(cache, rows):
    model = new_model()
    counted = CountedRows(model.body[0])
    Run(model, groups_of(model), toy_task(), 2, cache=cache)
    assert counted.counts[True] == rows


def test_rows_that_come_late_run_once_too():
    class Late(FixedBatches):
        """In the first epoch half of the rows only, as in a process that gets the others later."""

        def set_epoch(self, epoch):
            super().set_epoch(epoch)
            self.order = self.order[self.order < 7] if epoch == 0 else self.order

    plain, cached = both(lambda: new_model().double(), groups_of, lambda: task_of(Late, text_rows), 2)
    assert cached.gap(plain) < 1e-12
    assert "20 rows were kept" in cached.said[-1]


def test_validation_rows_that_may_change_are_not_kept():
    task = Task(FixedBatches(text_rows(14)), ClassificationObjective(), ToyBatches(text_rows(6, seed=5)), new_metric)
    plain, cached = both(new_model, groups_of, lambda: task, 2)
    assert cached.gap(plain) < 1e-6
    assert "14 rows were kept" in cached.said[-1]


# ---- memory and disk


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("rows", "where"),
    [(0, "560 B on disk"), (5, "140 B in memory and 420 B on disk"), (20, "560 B in memory")],
)
def test_rows_above_the_bound_are_on_disk_and_nothing_stays_behind(folder, rows, where):
    files = []

    def look(_record):
        files.extend(path for path in folder.iterdir())

    bound = rows * HIDDEN * 4 / 2**30  # a row is HIDDEN float32 numbers
    plain, cached = both(new_model, groups_of, lambda: toy_task(order=None), 2, cache_memory_gib=bound, on_epoch=look)
    assert cached.gap(plain) == 0
    assert cached.said[-1] == f"cache_frozen: 20 rows were kept, {where}"
    assert files == [] and list(folder.iterdir()) == []


def test_the_file_is_closed_also_when_training_fails(folder, monkeypatch):
    opened = []
    original = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: opened.append(original(**options)) or opened[-1])

    def stop(_record):
        raise KeyboardInterrupt

    model = new_model()
    with pytest.raises(KeyboardInterrupt):
        Run(model, groups_of(model), toy_task(), 2, cache=True, cache_memory_gib=0, on_epoch=stop)
    assert [file.closed for file in opened] == [True]
    assert list(folder.iterdir()) == []


def test_a_full_disk_gives_the_cache_up_and_training_goes_on(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: type("Usage", (), {"free": 400}))
    plain, cached = both(new_model, groups_of, toy_task, 2, cache_memory_gib=0)
    assert cached.gap(plain) == 0
    assert cached.said[-1] == (
        "cache_frozen: given up, frozen groups run in every epoch: 0 B in memory and 196 B on disk hold 7 rows, and "
        "there is room for 0 B and 200 B"
    )


# ---- off where it is not exact, with the reason


def refusal(model=None, task=None, **options):
    """Train with the cache asked for where it cannot be; return the one line that was said."""
    model = model or new_model()
    run = Run(model, groups_of(model), task or toy_task(), 2, cache=True, **options)
    assert len(run.said) == 1
    return run.said[0]


def test_dropout_in_the_frozen_part():
    assert refusal(new_model(dropout=0.1), frozen_dropout="on") == (
        "cache_frozen: off in phase 'some', frozen groups run in every epoch: what goes into middle is not the same "
        "each time: dropout runs below it (body.2); frozen_dropout='off' reaches dropout inside frozen groups, and "
        "where it is between groups set its probability to 0"
    )


def test_augmented_rows():
    assert "rows are the same in every epoch (fixed_rows), as they are not under augmentation" in refusal(
        task=new_task()
    )


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_norms_that_train_in_frozen_groups(norm):
    said = refusal(new_model(norm=norm), train_norm=True, frozen_dropout="on")
    assert "norm layers of the frozen groups body train (train_norm), so their output changes" in said


def test_weights_tied_across_the_boundary():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = nn.Embedding(CLASSES, 5)
            self.body, self.middle, self.head = nn.Linear(5, 7), nn.Linear(7, 5), nn.Linear(5, CLASSES)
            self.head.weight = self.embeddings.weight

        def forward(self, input_ids):
            return ToyOutput(self.head(self.middle(self.body(self.embeddings(input_ids % CLASSES).mean(1)))))

    model = Tied()
    groups = split_layer_groups(model, [["body"], ["middle"], ["embeddings", "head"]])
    said = Run(model, groups, toy_task(), 1, cache=True).said
    assert len(said) == 1 and "body reads what groups behind the boundary return" in said[0]


def test_batches_without_row_numbers():
    rows = {name: value for name, value in text_rows(14).items() if name != "row"}
    assert "batches name no rows: they have input_ids, labels and no 'row'" in refusal(
        task=Task(FixedBatches(rows), ClassificationObjective())
    )


def test_a_phase_of_one_epoch():
    assert "it has one epoch, so nothing would be used again" in refusal(epochs=1)


def test_nothing_is_said_where_nothing_is_frozen_or_nothing_asked_for():
    model = new_model()
    assert Run(model, groups_of(model), toy_task(), 0, cache=True).said == []
    assert Run(model, groups_of(model), toy_task(), 2, cache=False).said == []
    assert TrainingOptions().cache_frozen is False


# ---- given up where it turns out not to be exact


def given_up(new, groups, task):
    plain, cached = both(new, groups, task, 2)
    assert cached.gap(plain) < 1e-6
    assert len(cached.said) == 2
    return cached.said[-1]


def test_rows_that_change_although_they_were_said_not_to():
    class Changing(FixedBatches):
        def set_epoch(self, epoch):
            super().set_epoch(epoch)
            self.epoch = epoch

        def __iter__(self):
            for batch in super().__iter__():
                yield {**batch, "input_ids": (batch["input_ids"] + self.epoch) % VOCAB}

    said = given_up(new_model, groups_of, lambda: task_of(Changing, text_rows))
    assert "rows got other scores from what was kept than from the whole model" in said


def test_texts_that_change_their_length_although_they_were_said_not_to():
    class Shortened(TextBatches):
        def set_epoch(self, epoch):
            super().set_epoch(epoch)
            whole = long_rows(len(self.order), seed=1)["lengths"]
            self.rows = {**self.rows, "lengths": whole.clamp(max=7 - epoch)}

    said = given_up(bert, bert_groups, lambda: task_of(Shortened, long_rows))
    assert "a row has another length than it had before" in said


def test_a_boundary_that_a_batch_does_not_cross():
    class Forked(nn.Module):
        """Small batches take another way."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embeddings, self.body = nn.Embedding(VOCAB, 5), nn.Linear(5, 7)
            self.head, self.other = nn.Linear(7, CLASSES), nn.Linear(7, CLASSES)

        def forward(self, input_ids):
            hidden = self.body(self.embeddings(input_ids).mean(1))
            return ToyOutput(self.head(hidden) if len(input_ids) > 2 else self.other(hidden))

    def groups(model):
        return split_layer_groups(model, [["embeddings"], ["body"], ["head", "other"]])

    assert "head was not called with the rows of a batch this time" in given_up(Forked, groups, toy_task)


class Connected(nn.Module):
    """An embedding, a body and a head that a function of these three connects."""

    def __init__(self, connect):
        super().__init__()
        torch.manual_seed(0)
        self.embeddings, self.body, self.head = nn.Embedding(VOCAB, 5), nn.Linear(5, 7), nn.Linear(7, CLASSES)
        self.connect = connect

    def forward(self, input_ids):
        return ToyOutput(self.connect(self, self.body(self.embeddings(input_ids)), input_ids))


def past_the_head(net, hidden, _ids):
    return net.head(hidden.mean(1)) + hidden.mean(1)[:, :CLASSES]


def hardly_past_the_head(net, hidden, _ids):
    return net.head(hidden.mean(1)) + 1e-7 * hidden.mean(1)[:, :CLASSES]


def with_neighbours_mean(net, hidden, _ids):
    pooled = hidden.mean(1)
    return net.head(pooled - pooled.mean(0))


def token_by_token(net, hidden, ids):
    return net.head(hidden.flatten(0, 1)).unflatten(0, ids.shape).mean(1)


def twice(net, hidden, _ids):
    return net.head(hidden.mean(1)) + net.head(hidden.mean(1).flip(0)).flip(0)


def only_whole_batches(net, hidden, ids):
    return net.head(hidden.mean(1)) if len(ids) > 3 else hidden.mean(1) @ net.head.weight.T


def twice_for_a_few(net, hidden, ids):
    return net.head(hidden.mean(1)) + (0 if len(ids) > 3 else net.head(hidden.mean(1)))


class Smaller(FixedBatches):
    """In the second epoch two rows a batch, in place of seven."""

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        self.batch_size = 2 if epoch == 1 else 7


@pytest.mark.parametrize(
    ("connect", "words"),
    [
        (only_whole_batches, "head was called with 0 of the 2 rows of a batch"),
        (twice_for_a_few, "head was called with more than the 2 rows of a batch"),
    ],
)
def test_a_boundary_that_later_batches_do_not_cross_once(connect, words):
    model = Connected(connect)
    groups = split_layer_groups(model, [["embeddings"], ["body"], ["head"]])
    run = Run(model, groups, Task(Smaller(text_rows(14)), ClassificationObjective()), 2, cache=True)
    assert "given up, frozen groups run in every epoch" in run.said[-1] and words in run.said[-1]


@pytest.mark.parametrize(
    ("connect", "words"),
    [
        (past_the_head, "rows got other scores from what was kept than from the whole model, so .* past head"),
        (hardly_past_the_head, "rows got other scores from what was kept than from the whole model, so .* past head"),
        (with_neighbours_mean, "rows got other scores from what was kept than from the whole model"),
        (token_by_token, r"a batch of 4 rows gave a tensor of the shape \(12, 7\)"),
        (twice, r"a batch of 4 rows gave a tensor of the shape \(8, 7\)"),
    ],
)
def test_what_the_boundary_does_not_separate_by_row(connect, words):
    def groups(model):
        return split_layer_groups(model, [["embeddings"], ["body"], ["head"]])

    assert re.search(words, given_up(lambda: Connected(connect), groups, toy_task))


def test_weights_that_change_from_outside_while_a_phase_runs():
    def runs(cache):
        model = new_model()

        def change(record):
            if record.epoch == 1:
                with torch.no_grad():
                    model.body[0].weight.mul_(1.5)

        return Run(model, groups_of(model), toy_task(order=None), 2, cache=cache, on_epoch=change)

    plain, cached = runs(False), runs(True)
    assert cached.gap(plain) == 0
    assert (
        "given up, frozen groups run in every epoch: weights of frozen groups were changed from outside"
        in (cached.said[-1])
    )


# ---- killed and resumed


class Killed(BaseException):
    """Raised in the place of a kill."""


@pytest.mark.parametrize(
    ("kind", "accumulation", "kills"),  # kills in the first epoch, at the start of the second, in it, in the last
    [(TextBatches, 1, (3, 5, 6, 11)), (WindowBatches, 1, (3, 5, 6, 11)), (ShareOfTwo, 2, (2, 3, 4, 6))],
)
def test_a_phase_that_is_gone_on_with_keeps_the_same_rows_again_bit_for_bit(
    tmp_path, monkeypatch, kind, accumulation, kills
):
    """What is kept of a row depends in its last bits on the batch that the row stood in when it was kept."""
    monkeypatch.setattr(atomic, "_sync", lambda _path: None)
    real = loop.train_step

    def train(folder=None, *, kill=None, resume=False):
        model, taken, said = bert(), [], []
        model = WindowsForSequenceClassification(model) if kind is WindowBatches else model
        groups = bert_groups(model, "model.bert." if kind is WindowBatches else "bert.")
        phase = Phase("some", (3, 4), (3e-3,) * 5, Schedule.one_cycle(), epochs=3)
        task = task_of(kind, long_rows)  # 4 batches an epoch, in another order in each
        kept = None if folder is None else Checkpoints(folder, every_seconds=None, every_steps=1, resume=resume)
        choices = {"frozen_dropout": "off", "cache_frozen": True, "accumulation_steps": accumulation}
        options = TrainingOptions(**choices, checkpoints=kept)

        def step(*args):
            taken.append(1)
            if len(taken) == kill:
                raise Killed
            return real(*args)

        monkeypatch.setattr(loop, "train_step", step)
        torch.manual_seed(3)
        plan, accelerator = Plan((phase,), tuple(groups)), Accelerator(cpu=True)
        history = run_phases(model, plan, task, accelerator=accelerator, options=options, say=said.append)
        return weights_of(model), [one.loss for one in history.steps], [epoch.metrics for epoch in history.epochs], said

    weights, losses, metrics, told = train()
    assert "rows were kept" in told[-1]
    for kill in kills:
        with pytest.raises(Killed):
            train(tmp_path / str(kill), kill=kill)
        again, *numbers, said = train(tmp_path / str(kill), resume=True)
        assert numbers == [losses, metrics], kill
        assert [name for name, value in weights.items() if not torch.equal(again[name], value)] == [], kill
        assert said[-1] == told[-1], kill


# ---- the learner


def test_nothing_is_stale_after_freezing_otherwise_or_after_new_weights():
    ends = []
    for cache in (False, True):
        said = []
        model = new_model().double()
        options = TrainingOptions(cache_frozen=cache)
        task = toy_task()
        learner = Learner(
            model, groups_of(model), task, options=options, accelerator=Accelerator(cpu=True), say=said.append
        )
        learner.fit_one_cycle(2, 1e-2)
        learner.freeze_to(1)
        learner.fit_one_cycle(2, 1e-2)
        learner.freeze_to(2)  # what goes in there has changed: body has trained
        learner.fit_one_cycle(2, 1e-2)
        with torch.no_grad():
            model.embeddings.weight.mul_(1.5)
        learner.fit_one_cycle(3, 1e-2)
        ends.append((weights_of(model), [step.loss for step in learner.history.steps]))
        kept = [line for line in said if "rows were kept" in line]
        assert len(kept) == (4 if cache else 0)
    (plain, plain_losses), (cached, cached_losses) = ends
    assert all(torch.allclose(cached[name], value, rtol=0, atol=1e-12) for name, value in plain.items())
    assert cached_losses == pytest.approx(plain_losses, abs=1e-12)
