"""The legs of a training: what each read, on what, and that older records still give one."""

import dataclasses
import json
import re

import pytest
import torch

from tests.support.tiny_runs import LM, heard, reviews, texts_of, write_csv
from ulmfit_pipe.data.streams.lm_batches import LanguageModelBatches
from ulmfit_pipe.settings.text import LanguageModelSettings
from ulmfit_pipe.settings.text_runs import LanguageModelJob
from ulmfit_pipe.stages.context import deadline_after
from ulmfit_pipe.text import lineage
from ulmfit_pipe.text.jobs import run_language_model
from ulmfit_pipe.text.language_model import train_language_model
from ulmfit_pipe.text.lineage import lineage_before, lineage_of, name_of_start, processor_name, tokens_seen
from ulmfit_pipe.tools.packaging.package_model import without_paths
from ulmfit_pipe.training.records import EpochRecord

TRAIN = texts_of(*[text for text, _ in reviews(120)])
VALIDATION = texts_of(*[text for text, _ in reviews(10, seed=7)])
ON = LanguageModelSettings(plan="pretrain", epochs=2, batch_size=4, lr=1e-3)
# What the stage wrote before it knew of legs: 911 steps of 16 rows of 64 tokens, cut short by a time limit.
OLDER = {
    "format": 1,
    "stage": "language_model",
    "finished_at": "2026-11-23T04:59:31+0000",
    "identity": {
        "settings": {"batch_size": 16, "bptt": 64, "accumulation_steps": 1, "tokenizer_of": "/home/me/tok"},
        "preset": "fastai",
        "seed": 3,
        "mixed_precision": "bf16",
    },
    "model": None,
    "metrics": {"loss": 5.4, "perplexity": 221.4, "bits_per_character": 2.0},
    "seconds": 270.5,
    "tokens": 15_405_549,
    "epochs": [{"phase": "full", "epoch": 0, "step": 911, "total_steps": 15_045}],
    "cut_short": True,
}


def epoch(phase, number, step):
    return EpochRecord(phase, number, step, 100, 1.0, {}, (0.1,), 1.0, 1.0)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Return the folder of a model from scratch, trained by a recipe's job on two files."""
    place = tmp_path_factory.mktemp("legs")
    files = [str(write_csv(place / f"{name}.csv", reviews(40, seed=seed))) for seed, name in enumerate(("one", "two"))]
    held_out = str(write_csv(place / "held_out.csv", reviews(10, seed=7)))
    job = LanguageModelJob(files, str(place / "lm"), validation_file=held_out, seed=5, language_model=LM)
    run_language_model(job)
    return place / "lm"


def record_of(folder):
    return json.loads((folder / "stage.json").read_text())


def test_a_leg_holds_what_was_read_where_and_what_came_of_it(first):
    record = record_of(first)
    (leg,) = record["lineage"]
    steps = record["epochs"][-1]["step"]
    assert (leg["started_from"], leg["steps"], leg["epochs"], leg["seed"]) == (None, steps, 1, 5)
    assert leg["train_files"] == ["one.csv", "two.csv"]
    assert 0 < leg["tokens_available"] - leg["tokens_seen"] <= 4  # the stream's end that fills no row
    assert (leg["precision"], leg["processes"], leg["threads"]) == ("fp32", 1, torch.get_num_threads())
    assert leg["processor"] == processor_name()
    assert {leg[name] == record["metrics"][name] for name in lineage.MEASURED} == {True}
    assert leg["seconds"] == record["seconds"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", leg["date"])


def test_going_on_from_a_model_puts_its_legs_first(first, tmp_path):
    train_language_model(
        TRAIN, VALIDATION, output_dir=tmp_path / "on", model=str(first), settings=ON, context=heard()[1]
    )
    before, after = record_of(tmp_path / "on")["lineage"]
    assert [before] == record_of(first)["lineage"]
    assert (after["started_from"], after["train_files"], after["epochs"]) == ("lm", None, 2)


def test_a_time_limit_does_not_count_what_was_not_read(first, tmp_path):
    context = heard()[1]
    context.deadline = deadline_after(1.0)
    settings = dataclasses.replace(ON, epochs=10_000)
    train_language_model(
        TRAIN, VALIDATION, output_dir=tmp_path / "cut", model=str(first), settings=settings, context=context
    )
    record = record_of(tmp_path / "cut")
    leg = record["lineage"][-1]
    assert record["cut_short"]
    assert leg["steps"] < record["epochs"][0]["total_steps"]
    batches = record["epochs"][0]["total_steps"] / 10_000
    assert leg["tokens_seen"] == pytest.approx(leg["tokens_available"] * leg["steps"] / batches, rel=0.2)


@pytest.mark.parametrize(
    ("epochs", "accumulation", "expected"),
    [
        ([], 1, 0),
        ([("full", 0, 3)], 1, 3 * 2 * 5),  # cut short after 3 windows of 5 tokens in 2 rows
        ([("full", 0, 11)], 1, 102),  # a whole epoch: its last window has one token a row
        ([("full", 0, 11), ("full", 1, 15)], 1, 102 + 4 * 10),  # a phase's steps go on counting
        ([("head", 0, 11), ("all", 0, 2)], 1, 102 + 2 * 10),  # another phase's start anew
        ([("full", 0, 3)], 2, 6 * 10),
        ([("full", 0, 6)], 2, 102),
    ],
)
def test_tokens_are_counted_from_the_steps_that_were_taken(epochs, accumulation, expected):
    batches = LanguageModelBatches([[7] * 103], batch_size=2, bptt=5)
    assert (len(batches), batches.tokens_per_epoch) == (11, 102)
    records = [epoch(*values) for values in epochs]
    assert tokens_seen(batches, records, accumulation_steps=accumulation) == expected


def test_windows_of_varying_length_count_by_their_share():
    batches = LanguageModelBatches([[7] * 2_001], batch_size=2, bptt=20, variable_bptt=True)
    count = batches.batches_in_epoch(0)
    assert tokens_seen(batches, [epoch("full", 0, count // 2)]) == round(2_000 * (count // 2) / count)


def test_a_record_without_legs_becomes_one():
    (leg,) = lineage_of(OLDER)
    assert leg == {
        "started_from": None,
        "tokens_seen": 911 * 16 * 64,
        "tokens_available": 15_405_549,
        "steps": 911,
        "epochs": 1,
        "seconds": 270.5,
        "precision": "bf16",
        "processes": None,
        "threads": None,
        "processor": None,
        "train_files": None,
        "perplexity": 221.4,
        "perplexity_per_word": None,
        "bits_per_character": 2.0,
        "seed": 3,
        "date": "2026-11-23",
    }


def test_a_record_without_legs_counts_no_more_than_its_epochs_and_takes_the_presets_numbers():
    whole = {**OLDER, "epochs": [{"phase": "full", "epoch": 0, "step": 15_045}]}
    assert lineage_of(whole)[0]["tokens_seen"] == 15_405_549
    settings = {"batch_size": None, "bptt": None}
    preset = {**OLDER, "model": "/home/me/other_lm", "identity": {**OLDER["identity"], "settings": settings}}
    assert lineage_of(preset)[0]["tokens_seen"] == 911 * 64 * 72
    assert lineage_of(preset)[0]["started_from"] == "other_lm"


def test_a_model_without_a_record_has_no_legs(tiny_language_model_folder, tmp_path, first):
    assert lineage_before(None) == lineage_before(tiny_language_model_folder) == []
    assert lineage_of({"stage": "package"}) == []
    older = {name: value for name, value in record_of(first).items() if name not in ("lineage", "record_sha256")}
    folder = tmp_path / "older"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((first / name).read_bytes())
    (folder / "stage.json").write_text(json.dumps(older))
    (leg,) = lineage_before(folder)
    known = record_of(first)["lineage"][0]
    assert leg["tokens_seen"] == pytest.approx(known["tokens_seen"], rel=0.01)
    assert leg["steps"] == known["steps"]


def test_the_processor_has_a_name_on_every_system(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage, "CPU_FILE", tmp_path / "cpuinfo")
    assert processor_name()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Slide Rule 7\nmodel name\t: Slide Rule 7\n")
    assert processor_name() == processor_name(torch.device("cpu")) == "Slide Rule 7"


def test_a_start_is_named_by_its_folder_or_by_the_address_of_its_owner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/lm").mkdir(parents=True)
    (tmp_path / "runs/lm/config.json").write_text("{}")
    starts = [None, "runs/lm", "runs/lm/", tmp_path / "runs/lm", "awd-lstm-en", "owner/name", "gpt2"]
    hub = "https://huggingface.co/owner/name"
    named = [None, "lm", "lm", "lm", "awd-lstm-en", hub, "gpt2"]
    assert [name_of_start(start) for start in starts] == named
    assert without_paths(named) == named
