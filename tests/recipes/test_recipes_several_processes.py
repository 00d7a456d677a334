"""Recipes started by torchrun in two processes, as a user starts them: the same result, and stopped they go on."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ulmfit_pipe.data.tokenization import train_tokenizer, vocab_hash
from ulmfit_pipe.models.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.modeling_awd_lstm import AwdLstmForCausalLM

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
        r"train_classifier\.py: told to stop \(SIGTERM\) after (\d+) steps, which are saved in (\S+); "
        r"run the same command again with --resume true\n",
        errors,
    )
    (steps, saved_in), *more = told
    assert more == []
    assert (place / saved_in).resolve() == progress.resolve()
    assert sorted(path.name for path in progress.glob("step-*"))[-1] == f"step-{int(steps):08d}"
    assert errors.index("told to stop (SIGTERM)") < errors.index("Traceback") < errors.index("SignalException")
    assert not (place / "stopped").exists()
    code, out, errors = ended(started(place, "train_classifier", *words, "stopped", "--resume", "true"))
    assert code == 0, errors[-4000:]
    assert f": {steps} steps done, in epoch" in out
    assert losses(place / "stopped") == losses(place / "whole")
    assert len(losses(place / "whole")) == 75
    assert model_files(place / "stopped") == model_files(place / "whole")
    assert not progress.exists()
