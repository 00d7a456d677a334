"""Checkpoints of a stage that is not finished: where they lie, whose they are, when they go."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.processes.forked_processes import kill, other_process
from tests.support.tiny_images import QUICK, save_backbone, write_images
from tests.support.tiny_runs import CLASSIFIER, folder_bytes, reviews, table, write_csv
from tests.support.tiny_transformers import save_bert
from ulmfit_pipe.data.images.files import load_images
from ulmfit_pipe.images.classifier import train_image_classifier
from ulmfit_pipe.program import run_recipe
from ulmfit_pipe.settings.text import LanguageModelSettings
from ulmfit_pipe.stages import progress, stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.progress import drop_progress, keep_progress, progress_folder
from ulmfit_pipe.storage import atomic
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.storage.locks import held, lock
from ulmfit_pipe.text import classifier
from ulmfit_pipe.text.classifier import train_classifier
from ulmfit_pipe.text.language_model import train_language_model
from ulmfit_pipe.training import loop
from ulmfit_pipe.training.records import TrainingOptions
from ulmfit_pipe.training.resume.checkpoint_store import checkpoint_path, write_checkpoint
from ulmfit_pipe.training.resume.preemption import Preempted

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """Raised in the place of a kill."""


class BareLearner:
    """All that `keep_progress` knows of a learner."""

    def __init__(self):
        self.options = TrainingOptions()


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(atomic, "_sync", lambda _path: None)


def stop_at(monkeypatch, step):
    """Let the n-th step raise, counted from 0."""
    real, done = loop.train_step, []

    def train_step(*args):
        if len(done) == step:
            raise Killed
        done.append(1)
        return real(*args)

    monkeypatch.setattr(loop, "train_step", train_step)


def train(folder, model, *, said=None, settings=CLASSIFIER, **changes):
    context = RunContext(
        say=(lambda _line: None) if said is None else said.append, **{"checkpoint_seconds": 0.0, **changes}
    )
    parts = table(reviews(24, seed=3)), table(reviews(12, seed=4))
    return train_classifier(*parts, model=str(model), output_dir=folder, settings=settings, context=context)


def test_the_folder_lies_hidden_beside_the_stages_own():
    assert progress_folder("runs/reviews") == Path("runs/.reviews.progress").absolute()


def test_without_checkpoints_nothing_is_kept(tmp_path):
    learner = BareLearner()
    keep_progress(learner, tmp_path / "c", identity={}, vocabulary=None, context=RunContext())
    assert learner.options.checkpoints is None
    keep_progress(learner, tmp_path / "c", identity={"a": 1}, vocabulary="v", context=RunContext(resume=True))
    made = learner.options.checkpoints
    assert (made.every_seconds, made.resume, made.identity) == (None, True, {"a": 1, "vocabulary": "v"})
    assert "torch" in made.versions


def test_a_killed_stage_keeps_its_checkpoints_and_a_finished_one_takes_them_away(
    tmp_path, tiny_language_model_folder, monkeypatch
):
    folder, said = tmp_path / "c", []
    with monkeypatch.context() as patched:
        stop_at(patched, 5)
        with pytest.raises(Killed):
            train(folder, tiny_language_model_folder)
    kept = progress_folder(folder)
    assert [path.name for path in sorted(kept.glob("step-*"))] == ["step-00000004", "step-00000005"]
    train(folder, tiny_language_model_folder, resume=True, said=said)
    assert any(line.startswith(f"resuming from {kept / 'step-00000005'}") for line in said)
    assert not kept.exists()
    kept.mkdir()  # as if it had been killed between its last two acts
    assert train(folder, tiny_language_model_folder, resume=True).skipped
    assert not kept.exists()
    drop_progress(folder)


def image_stage(folder, place, context):
    data = load_images(str(write_images(place / "images"))), load_images(str(write_images(place / "more", seed=1)))
    return train_image_classifier(
        *data, model=str(save_backbone(place / "resnet")), output_dir=folder, settings=QUICK, context=context
    )


def masked_language_model(folder, place, context):
    texts = [table(reviews(count)).select_columns(["text"]) for count in (40, 12)]
    settings = LanguageModelSettings(epochs=2, batch_size=4, block_size=24)
    return train_language_model(
        *texts, model=str(save_bert(place / "bert")), output_dir=folder, settings=settings, context=context
    )


@pytest.mark.parametrize("stage", [image_stage, masked_language_model])
@pytest.mark.parametrize("step", [1, 5])
def test_every_kind_of_stage_goes_on_bit_for_bit(tmp_path, monkeypatch, stage, step):
    said, files = [], []
    stage(tmp_path / "whole", tmp_path, RunContext(say=str))
    with monkeypatch.context() as patched:
        stop_at(patched, step)
        with pytest.raises(Killed):
            stage(tmp_path / "killed", tmp_path, RunContext(say=str, checkpoint_seconds=0.0))
    stage(tmp_path / "killed", tmp_path, RunContext(say=said.append, resume=True))
    assert any(f"step-{step:08d}: {step} steps done" in line for line in said)
    for name in ("whole", "killed"):
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_without_resume_an_unfinished_training_is_named_and_left_as_it_is(
    tmp_path, tiny_language_model_folder, monkeypatch
):
    folder = tmp_path / "c"
    with monkeypatch.context() as patched:
        stop_at(patched, 5)
        with pytest.raises(Killed):
            train(folder, tiny_language_model_folder)
    before = folder_bytes(progress_folder(folder))
    words = (
        f"an unfinished training of c is in {progress_folder(folder)} (step-00000005); resume it with --resume "
        "true (resume=True in Python), or delete that folder to start over"
    )
    monkeypatch.setattr(classifier, "build_classifier_learner", None)  # it does not come to that
    for seconds in (0.0, None):
        with pytest.raises(CheckpointError) as caught:
            train(folder, tiny_language_model_folder, checkpoint_seconds=seconds)
        assert str(caught.value) == words
    assert folder_bytes(progress_folder(folder)) == before
    with pytest.raises(CheckpointError) as caught:
        train(folder, tiny_language_model_folder, settings=replace(CLASSIFIER, final_epochs=2), seed=3)
    assert str(caught.value) == (
        f"an unfinished training of c is in {progress_folder(folder)} (step-00000005); it cannot be resumed now, "
        "since it differs in identity.seed (0 there, 3 now), identity.settings.final_epochs (1 there, "
        "2 now): give the old settings and data with --resume true (resume=True in Python), or delete that folder to "
        "start over"
    )
    assert folder_bytes(progress_folder(folder)) == before


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_keeping_progress_refuses_another_ones_whether_it_saves_or_not(tmp_path, seconds):
    path = checkpoint_path(progress_folder(tmp_path / "c"), 7)
    write_checkpoint(path, {"identity": {"a": [1], "vocabulary": "v"}}, tensors={}, contents={})
    learner = BareLearner()
    context = RunContext(checkpoint_seconds=seconds)
    lies = f"an unfinished training of c is in {path.parent} (step-00000007); "
    expected = {
        ("v", (1,)): "resume it with --resume true (resume=True in Python), or delete that folder to start over",
        ("w", (1,)): "it cannot be resumed now, since it differs in identity.vocabulary ('v' there, "
        "'w' now): give the old settings and data with --resume true (resume=True in Python), or delete that folder to "
        "start over",
    }
    for (vocabulary, numbers), words in expected.items():
        with pytest.raises(CheckpointError) as caught:
            keep_progress(learner, tmp_path / "c", identity={"a": numbers}, vocabulary=vocabulary, context=context)
        assert str(caught.value) == lies + words
    newer = checkpoint_path(path.parent, 8)
    newer.mkdir()  # its state cannot be read, so that of the one before counts
    with pytest.raises(CheckpointError, match=r"\(step-00000008\); it cannot be resumed .* identity.a \(\[1\] there"):
        keep_progress(learner, tmp_path / "c", identity={"a": [2]}, vocabulary="v", context=context)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"\(step-00000008\); resume it with --resume true"):
        keep_progress(learner, tmp_path / "c", identity={"a": [2]}, vocabulary="v", context=context)


@pytest.fixture
def another_process(tmp_path):
    """Return the number of a process that trains the stage c, as far as its lock goes."""

    def train(say):
        file = lock(progress_folder(tmp_path / "c") / "lock")
        say("locked")
        time.sleep(600)
        file.close()  # not before

    with other_process(train) as (process, _):
        yield process


def test_a_stage_that_another_process_trains_is_refused_on_all_processes_until_that_ends(
    tmp_path, another_process, monkeypatch
):
    folder, going_on = progress_folder(tmp_path / "c"), RunContext(resume=True)
    words = (
        rf"^another process trains here \(process {another_process} on .*\), its checkpoints are in {folder}; wait "
        r"for it, or end it and continue by --resume true \(resume=True in Python\)$"
    )

    def keep(context):
        keep_progress(BareLearner(), tmp_path / "c", identity={}, vocabulary=None, context=context)

    for context in (going_on, RunContext(), RunContext(checkpoint_seconds=60.0)):
        with pytest.raises(CheckpointError, match=words) as caught:
            keep(context)
    with monkeypatch.context() as patched:  # a process that is not the main one looks at no lock, and hears of it
        patched.setattr(type(going_on.accelerator), "is_main_process", False)
        patched.setattr(progress, "gather_bytes", lambda said, _: [str(caught.value).encode(), said])
        with pytest.raises(CheckpointError, match=words):
            keep(going_on)
    write_checkpoint(checkpoint_path(folder, 7), {"identity": {"vocabulary": None}}, tensors={}, contents={})
    with pytest.raises(CheckpointError, match=words):  # and not: delete that folder
        keep(RunContext())
    kill(another_process)
    keep(going_on)
    drop_progress(tmp_path / "c")


def test_a_training_that_failed_keeps_its_own_process_out_never_and_others_until_its_learner_is_gone(tmp_path):
    path, context = progress_folder(tmp_path / "c") / "lock", RunContext(resume=True)
    learners = [BareLearner(), BareLearner()]
    for learner in learners:
        keep_progress(learner, tmp_path / "c", identity={}, vocabulary=None, context=context)
    with held(path, wait=False) as free:
        assert not free
    learners.pop(0)
    with held(path, wait=False) as free:
        assert not free
    learner = learners.pop()
    del learner
    with held(path, wait=False) as free:
        assert free


def test_the_end_of_a_stage_lets_its_lock_go(tmp_path):
    learner = BareLearner()
    keep_progress(learner, tmp_path / "c", identity={}, vocabulary=None, context=RunContext(resume=True))
    drop_progress(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
    with held(progress_folder(tmp_path / "c") / "lock", wait=False) as free:
        assert free


def test_other_settings_another_vocabulary_and_other_versions_are_named(
    tmp_path, tiny_language_model_folder, monkeypatch
):
    folder, said = tmp_path / "c", []
    with monkeypatch.context() as patched:
        stop_at(patched, 5)
        with pytest.raises(Killed):
            train(folder, tiny_language_model_folder)
    other = replace(CLASSIFIER, final_epochs=2)
    with pytest.raises(
        CheckpointError, match=r"identity.settings.final_epochs \(1 there, 2 now\), plan.phases.4.epoch"
    ):
        train(folder, tiny_language_model_folder, resume=True, settings=other)
    with monkeypatch.context() as patched:
        patched.setattr(stage, "vocabulary_digest", lambda _tokenizer: "another")
        with pytest.raises(
            CheckpointError, match=r"it differs in identity.vocabulary \('[0-9a-f]+... there, 'another' n"
        ):
            train(folder, tiny_language_model_folder, resume=True)
    monkeypatch.setattr(progress, "library_versions", lambda: {"tokenizers": "9.9"})
    train(folder, tiny_language_model_folder, resume=True, said=said)
    line = next(line for line in said if "made with other versions" in line)
    assert "tokenizers ('" in line and "there, '9.9' now)" in line


def test_a_recipe_ends_with_code_75_after_sigterm_and_says_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/recipe.py"])

    def saved():
        raise Preempted("told to stop after 3 steps; --resume true")

    for main, words in (
        (saved, "told to stop after 3 steps; --resume true"),
        (
            lambda: os.kill(os.getpid(), signal.SIGTERM),
            "stopped by SIGTERM; run the same command again, with --resume true where the recipe has it; stages "
            "that had finished are kept",
        ),
    ):
        with pytest.raises(SystemExit) as caught:
            run_recipe(main)
        assert caught.value.code == 75
        assert capsys.readouterr().err == f"recipe.py: {words}\n"
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        run_recipe(saved)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_recipe_told_to_stop_saves_and_goes_on(tmp_path, tiny_language_model_folder):
    """The whole way once: a signal from outside, exit code 75, and the same command again with --resume true."""
    write_csv(tmp_path / "train.csv", reviews(60, seed=3))
    words = ["--model", tiny_language_model_folder, "--train_file", tmp_path / "train.csv", "--seed", "1"]
    words += ["--output_dir", tmp_path / "out", "--classifier.final_epochs", "500", "--classifier.batch_size", "8"]
    command = [sys.executable, "recipes/train_classifier.py", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--checkpoint_seconds", "0"], **started)
    kept = progress_folder(tmp_path / "out")
    while process.poll() is None and len(list(kept.glob("step-*"))) < 2:
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "stopped by SIGTERM after " in errors and errors.rstrip().endswith("again with --resume true")
    steps = int(max(path.name for path in kept.glob("step-*")).removeprefix("step-"))
    process = subprocess.Popen([*command, "--resume", "true"], **started)
    shown = next(line for line in process.stdout if line.startswith("resuming from"))
    process.kill()
    process.communicate()
    assert f": {steps} steps done, " in shown
    assert json.loads((kept / f"step-{steps:08d}" / "state.json").read_text())["state"]["world_size"] == 1


def test_a_link_among_the_progress_of_a_stage_is_not_written_through(tmp_path):
    victim, folder = tmp_path / "victim.txt", progress_folder(tmp_path / "c")
    victim.write_text("precious")
    folder.mkdir()
    (folder / "log.jsonl").symlink_to(victim)
    rows, model = table(reviews(20)), save_bert(tmp_path / "b")
    words = r".c.progress/log.jsonl is a link to .*victim.txt; a run writes there itself and follows no link: remove it"
    with pytest.raises(CheckpointError, match=words):
        train_classifier(rows, rows, model=str(model), output_dir=tmp_path / "c", settings=CLASSIFIER)
    assert victim.read_text() == "precious"
