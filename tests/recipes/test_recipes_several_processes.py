"""Recipes started by torchrun in two processes, as a user starts them: the same result, and stopped they go on."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from ulmfit_pipe.data.text.tokenization import train_tokenizer, vocab_hash
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 280  # of a run, imports on busy cores included
MOST_SECONDS_TO_STOP = 35  # torchrun waits 30 s for its processes
TOLD = {"bad": "dull slow poor weak".split(), "good": "warm funny great fine".split()}
FILLER = "the film and its music were made by three brothers in two hours".split()
TEXTS = ["--train_file", "train.csv", "--validation_file", "validation.csv", "--model", "lm"]
LANGUAGE_MODEL = "--language_model.epochs 1 --language_model.batch_size 4 --language_model.drop_mult 0".split()
CLASSIFIER = "--classifier.epochs_per_phase 1 --classifier.batch_size 8".split()
LEARNING = "--classifier.final_epochs 10 --classifier.lr 0.02 --classifier.keep last".split()
WITHOUT_DROPOUT = [*LANGUAGE_MODEL, *CLASSIFIER, *LEARNING, "--classifier.drop_mult", "0"]
WITH_DROPOUT = [*CLASSIFIER, "--classifier.final_epochs", "12", "--classifier.keep", "last"]  # 75 steps

pytestmark = [pytest.mark.slow, pytest.mark.two_process]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with tables and a language model, whose classifier has no dropout in the head."""
    folder, chance = tmp_path_factory.mktemp("place"), random.Random(0)
    texts = []
    for name, count in (("train", 39), ("validation", 13), ("test", 11)):
        labels = [("bad", "good")[row % 2] for row in range(count)]
        rows = [" ".join([*chance.choices(FILLER, k=7), *chance.choices(TOLD[label], k=3)]) for label in labels]
        texts += rows
        lines = [f"{text}.,{label}" for text, label in zip(rows, labels, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines, ""]))
    tokenizer = train_tokenizer(texts, vocab_size=110)
    sizes = {"embedding_size": 10, "hidden_size": 14, "num_hidden_layers": 2, "head_hidden_size": 6, "bptt": 11}
    known = {"vocab_size": len(tokenizer), "vocab_hash": vocab_hash(tokenizer)}
    torch.manual_seed(0)
    model = AwdLstmForCausalLM(AwdLstmConfig(**sizes, **known, head_dropout=0.0))
    model.get_input_embeddings().weight.data *= 10.0  # so that its features tell texts apart, as a trained one's do
    model.save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    return folder


def started(place, recipe, *words, processes=2):
    """Start a recipe in that folder, by torchrun where it is for several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "recipes" / f"{recipe}.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *words], cwd=place, env=environment, start_new_session=True, **pipes)


def ended(running, *, within=MOST_SECONDS):
    """Wait for a recipe, and return its exit code and what was printed; none of its processes is left behind."""
    try:
        out, err = running.communicate(timeout=within)
    finally:
        if running.poll() is None:
            running.terminate()  # the launcher's processes are in sessions of their own, and end with it
            running.wait(timeout=60)
    return running.returncode, out, err


def numbers_in(record, name=""):
    """Return all numbers of a record but the seconds, by their places."""
    if not isinstance(record, dict):
        return {name: record} if isinstance(record, int | float) else {}
    parts = [numbers_in(value, f"{name}/{key}") for key, value in record.items() if key != "seconds"]
    return {key: value for part in parts for key, value in part.items()}


def lines_without_numbers(out, folder):
    """Return the printed lines with the folder's name and all numbers blanked, some of which are of the clock."""
    lines = out.replace(folder, "FOLDER").splitlines()
    return [" ".join(re.sub(r"[\d.,]*\d([eE][+-]?\d+)?", "#", line).split()) for line in lines]


@pytest.fixture(scope="module")
def pipelines(place):
    """The whole method by one process and by two."""
    words = [*TEXTS, "--test_file", "test.csv", *WITHOUT_DROPOUT]
    return {
        name: ended(started(place, "run_pipeline", *words, "--output_dir", name, processes=processes))
        for name, processes in (("alone", 1), ("together", 2))
    }


def test_the_pipeline_reaches_the_metrics_of_one_process(pipelines, place):
    for code, _, errors in pipelines.values():
        assert code == 0, errors[-4000:]
    alone, together = (json.loads((place / name / "metrics.json").read_text()) for name in pipelines)
    assert (alone["classifier"], together["classifier"]) == ("alone/classifier", "together/classifier")
    assert (alone["test"]["n"], alone["validation"]["n"]) == (11, 13)
    assert alone["test"]["loss"] < 0.65  # it did learn: guessing has ln 2, which is 0.693
    assert numbers_in(alone).keys() > {
        "/test/loss",
        "/validation/macro_f1",
        "/language_model/language_model/perplexity",
    }
    assert numbers_in(together) == pytest.approx(numbers_in(alone), rel=1e-6, abs=1e-6)
    for name in ("versions", "preset"):
        assert together[name] == alone[name]


def test_the_pipeline_prints_every_line_once(pipelines):
    printed = {name: lines_without_numbers(out, name) for name, (_, out, _) in pipelines.items()}
    assert printed["together"] == printed["alone"]
    assert len([line for line in printed["together"] if line.startswith("classifier saved in")]) == 1


def first_checkpoint(folder, running):
    """Wait for the first checkpoint of a stage."""
    until = time.monotonic() + MOST_SECONDS
    while not list(folder.glob("step-*")):
        assert running.poll() is None, running.communicate()[1][-4000:]
        assert time.monotonic() < until, f"no checkpoint in {folder}"
        time.sleep(0.05)


def model_files(folder):
    """Return what others load of a trained folder: all but the records, in which the clock has a say."""
    names = ["config.json", "model.safetensors", "tokenizer_config.json", "ulmfit_tokenizer.json"]
    return {name: (folder / name).read_bytes() for name in names}


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "epoch" not in line]


def test_a_launcher_told_to_stop_stops_its_processes_which_go_on_to_the_same_bits(place):
    words = [*TEXTS, *WITH_DROPOUT, "--checkpoint_seconds", "0", "--log_every", "1", "--output_dir"]
    code, _, errors = ended(started(place, "train_classifier", *words, "whole"))
    assert code == 0, errors[-4000:]
    progress = place / ".stopped.progress"
    running = started(place, "train_classifier", *words, "stopped")
    try:
        first_checkpoint(progress, running)
    finally:
        running.send_signal(signal.SIGTERM)
    code, _, errors = ended(running, within=MOST_SECONDS_TO_STOP)
    assert code == 1, errors[-4000:]  # torchrun's own; its processes end with 75
    told = re.findall(
        r"train_classifier\.py: stopped by SIGTERM after (\d+) steps, which are saved in (\S+); "
        r"run the same command again with --resume true\n",
        errors,
    )
    (steps, saved_in), *more = told
    assert more == []
    assert (place / saved_in).resolve() == progress.resolve()
    assert sorted(path.name for path in progress.glob("step-*"))[-1] == f"step-{int(steps):08d}"
    assert errors.index("stopped by SIGTERM") < errors.index("Traceback") < errors.index("SignalException")
    assert not (place / "stopped").exists()
    code, out, errors = ended(started(place, "train_classifier", *words, "stopped", "--resume", "true"))
    assert code == 0, errors[-4000:]
    assert f": {steps} steps done, in epoch" in out
    assert losses(place / "stopped") == losses(place / "whole")
    assert len(losses(place / "whole")) == 75
    assert model_files(place / "stopped") == model_files(place / "whole")
    assert not progress.exists()


# Processes that disagree, or are gone

TRAINING = [*TEXTS, *CLASSIFIER, "--output_dir", "never"]


def by_hand(place, recipe, *words, rank, port, folder=None, **environment):
    """Start one of two processes of a recipe without a launcher."""
    told = {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    if port is not None:
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *words]
    return subprocess.Popen(command, cwd=folder or place, env={**os.environ, **told}, **pipes)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def two_by_hand(place):
    """Return a function that starts two processes by hand, and ends what is left of them."""
    running = []

    def start(recipe, *words, more=(), folder=None, port=0, **environment):
        port = free_port() if port == 0 else port
        running.append(by_hand(place, recipe, *words, rank=0, port=port, **environment))
        running.append(by_hand(place, recipe, *words, *more, rank=1, port=port, folder=folder, **environment))
        return running

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("recipe", "words", "more", "differs"),
    [
        ("train_classifier", TRAINING, ["--seed", "3"], r"seed \(0 on process 0, 3 on process 1\)"),
        ("train_classifier", TRAINING, ["--classifier.lr", "0.5"], r"classifier.lr \(None on process 0, 0.5 on "),
        ("run_pipeline", TRAINING, ["--output_dir", "nowhere"], r"output_dir \('never' on process 0, 'nowhere' on "),
    ],
)
def test_a_process_with_another_setting_is_named_by_all_before_the_first_step(
    two_by_hand, place, recipe, words, more, differs
):
    for process in two_by_hand(recipe, *words, more=more):
        code, _, errors = ended(process)
        assert code == 2 and "Traceback" not in errors
        assert re.search(rf"process 1 is not about to do what process 0 is; it differs in {differs}", errors)
    assert not list(place.glob("*never*")) and not list(place.glob("*nowhere*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data", r"differs in data.train \('\w+\.\.\. on process 0, '\w+\.\.\. on process 1\), rows.train \(39 on pr"),
        ("model", r"differs in model \('folder with digest \w+' on process 0, 'folder with digest \w+' on process 1\)"),
        ("missing", "process 1 stopped: there is no file validation.csv;"),
    ],
)
def test_a_process_with_another_file_is_named_by_the_first_one(two_by_hand, place, tmp_path, change, words):
    for name in ("train.csv", "validation.csv", "lm"):
        copy = shutil.copytree if (place / name).is_dir() else shutil.copy
        copy(place / name, tmp_path / name)
    if change == "data":
        lines = (tmp_path / "train.csv").read_text().splitlines()
        (tmp_path / "train.csv").write_text("\n".join([*lines[:-1], ""]))
    elif change == "model":
        config = json.loads((tmp_path / "lm" / "config.json").read_text())
        (tmp_path / "lm" / "config.json").write_text(json.dumps({**config, "bptt": 12}))
    else:
        (tmp_path / "validation.csv").unlink()
    first, _ = two_by_hand("train_classifier", *TRAINING, folder=tmp_path)
    code, _, errors = ended(first)
    assert code != 0 and "Traceback" not in errors
    assert re.search(words, errors), errors


@pytest.mark.parametrize(("rank", "sent"), [(1, signal.SIGSTOP), (0, signal.SIGSTOP), (1, signal.SIGKILL)])
def test_a_process_that_is_stopped_or_killed_is_named_by_the_other(two_by_hand, place, tmp_path, rank, sent):
    words = [*TEXTS, *WITH_DROPOUT, "--checkpoint_seconds", "0", "--output_dir", str(tmp_path / "silent")]
    running = two_by_hand("train_classifier", *words, ULMFIT_PIPE_TIMEOUT="45")
    first_checkpoint(tmp_path / ".silent.progress", running[0])
    running[rank].send_signal(sent)
    code, _, errors = ended(running[1 - rank])
    what = "is gone" if sent == signal.SIGKILL else "does not answer within 45 seconds"
    assert code == 1
    assert f"train_classifier.py: process {1 - rank} ends, since process {rank} {what}" in errors


def test_a_training_that_its_launcher_restarts_after_a_kill_reaches_the_same_bits(place, tmp_path):
    words = [*TEXTS, *WITH_DROPOUT, "--checkpoint_seconds", "0", "--output_dir"]
    code, _, errors = ended(started(place, "train_classifier", *words, str(tmp_path / "whole")))
    assert code == 0, errors[-4000:]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    command = [sys.executable, *launcher, str(ROOT / "recipes" / "train_classifier.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(
        [*command, str(tmp_path / "killed"), "--resume", "true"], cwd=place, env=environment, **pipes
    )
    first_checkpoint(tmp_path / ".killed.progress", running)
    psutil.Process(running.pid).children()[-1].kill()
    code, out, errors = ended(running)
    assert code == 0, errors[-4000:]
    assert " steps done, in epoch" in out
    assert model_files(tmp_path / "killed") == model_files(tmp_path / "whole")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_predictions_of_processes_that_are_not_connected_are_complete_without_one_of_them(
    two_by_hand, place, pipelines, tmp_path, sent
):
    lines = (place / "train.csv").read_text().splitlines()
    (tmp_path / "in.csv").write_text("\n".join([lines[0], *lines[1:] * 10, ""]))
    words = ["--model", "alone/classifier", "--input_file", str(tmp_path / "in.csv"), "--part_rows", "3"]
    code, _, errors = ended(started(place, "predict", *words, "--output_dir", str(tmp_path / "one"), processes=1))
    assert code == 0, errors[-4000:]
    first, second = two_by_hand("predict", *words, "--output_dir", str(tmp_path / "parts"), port=None)
    until = time.monotonic() + MOST_SECONDS
    while len(list((tmp_path / "parts").glob("part-*"))) < 5 and time.monotonic() < until:
        time.sleep(0.02)
    second.send_signal(sent)
    code, out, errors = ended(first)
    assert code == 0, errors[-4000:]
    assert out.startswith("390 rows") or "\n390 rows" in out
    one, parts = (
        {file.name: file.read_bytes() for file in sorted((tmp_path / name).glob("part-*"))} for name in ("one", "parts")
    )
    assert parts == one and len(one) == 130
