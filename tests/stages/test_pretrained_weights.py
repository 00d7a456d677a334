"""The language models that come with the package: whole, small, offline, and able to read English."""

import json
import re
import socket

import pytest
import torch
from transformers import AutoModelForCausalLM

from ulmfit_pipe import TextPipeline
from ulmfit_pipe.models.builtin_models import BUILTIN_NAMES, builtin_models
from ulmfit_pipe.reports.model_card import model_card
from ulmfit_pipe.stages.artifacts import load_config, load_model, load_tokenizer, read_stage

TEXT = (
    "The old town lies on both banks of the river. In the eleventh century a stone bridge was built there, and soon "
    "the place became a centre of trade. During the war most of the houses were destroyed, but the church was rebuilt "
    "after a few years. Today it is visited by many people from all over the country."
)


@pytest.fixture(params=BUILTIN_NAMES)
def name(request):
    return request.param


@pytest.fixture
def no_network(monkeypatch):
    """Let every attempt to open a connection fail the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_installation_has_both_directions():
    assert set(builtin_models()) == set(BUILTIN_NAMES)


def test_a_folder_is_whole_small_and_says_nothing_of_the_machine_it_was_made_on(name):
    folder = builtin_models()[name]
    files = {file.name: file for file in folder.iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "stage.json",
        "tokenizer_config.json",
        "ulmfit_tokenizer.json",
    }
    assert files["model.safetensors"].stat().st_size <= 32_000_000
    for file in ("README.md", "config.json", "stage.json", "tokenizer_config.json"):
        assert not re.search(r"/(home|tmp|root|work|usr|mnt)\b", files[file].read_text(encoding="utf-8")), file


def test_the_card_has_the_numbers_of_the_record(name):
    folder = builtin_models()[name]
    record, card = read_stage(folder), (folder / "README.md").read_text(encoding="utf-8")
    seen = sum(leg["tokens_seen"] for leg in record["lineage"])
    assert seen > 10_000_000
    for number in (f"{seen:,}", f"{record['metrics']['perplexity']:.2f}", f"{record['parameters']:,}"):
        assert number in card
    assert f"{record['metrics']['perplexity_per_word']:.1f}" in card
    assert card == model_card(record)  # nothing in it was typed by hand


def test_it_loads_as_float32_without_a_network_and_predicts_english(name, no_network):
    model = load_model(name, AutoModelForCausalLM).eval()
    tokenizer = load_tokenizer(name, config=load_config(name))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    def perplexity(words):
        ids = tokenizer(" ".join(words))["input_ids"]
        if model.config.direction == "backward":
            ids = ids[::-1]
        tokens = torch.tensor([ids])
        with torch.no_grad():
            return float(model(tokens, labels=tokens).loss.exp())

    words = TEXT.split()
    assert perplexity(words) < 150  # of 12,000 tokens
    assert perplexity(sorted(words)) > 3 * perplexity(words)  # the order is what it has learned


def test_the_two_directions_share_their_vocabulary():
    first, second = (json.loads((folder / "config.json").read_text()) for folder in builtin_models().values())
    assert first["vocab_hash"] == second["vocab_hash"]
    assert {first["direction"], second["direction"]} == {"forward", "backward"}


def test_the_pipeline_starts_from_it_by_default(no_network):
    assert TextPipeline().model == "awd-lstm-en"
