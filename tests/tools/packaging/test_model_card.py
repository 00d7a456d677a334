"""What a model card says, and that it says so where nothing is known."""

import copy
import re
import shlex

import pytest
import yaml

from ulmfit_pipe import (
    ClassifierJob,
    LanguageModelJob,
    LanguageModelSettings,
    LowShotSettings,
    PackageSettings,
    PipelineSettings,
    parse_settings,
)
from ulmfit_pipe.tools.packaging.model_card import model_card

LEG = {
    "started_from": None,
    "tokens_seen": 1_234_567,
    "tokens_available": 9_876_543,
    "steps": 4_321,
    "epochs": 1,
    "seconds": 5_400.0,
    "precision": "bf16",
    "processes": 1,
    "threads": 2,
    "processor": "Slide Rule 7",
    "train_files": ["wiki-0.parquet", "wiki-1.parquet"],
    "perplexity": 61.25,
    "perplexity_per_word": 123.45,
    "bits_per_character": 1.4567,
    "seed": 3,
    "date": "2026-11-23",
}
RECORD = {
    "name": "awd-lstm-en",
    "parameters": 7_550_688,
    "weight_bytes": 15_102_736,
    "direction": "forward",
    "tokenizer": "unigram",
    "sizes": {"vocab_size": 12_000, "embedding_size": 256, "hidden_size": 512, "num_hidden_layers": 3},
    "metrics": {
        "perplexity": 60.5,
        "perplexity_per_word": 120.25,
        "bits_per_character": 1.4321,
        "token_accuracy": 0.314,
        "n": 186_816,
    },
    "measured_on": "validation.parquet",
    "measured_in": "fp32",
    "sample": {
        "prompt": "The city",
        "text": "The city lies\non a river.",
        "tokens": 5,
        "seed": 9,
        "temperature": 0.7,
        "top_k": 40,
    },
    "lineage": [
        LEG,
        {**LEG, "started_from": "en_lm", "tokens_seen": 1_000_000, "seconds": 1_800.0, "precision": "fp32"},
    ],
    "settings": {
        "epochs": 1,
        "frozen_epochs": None,
        "lr": 0.004,
        "plan": "pretrain",
        "batch_size": 32,
        "bptt": 64,
        "variable_bptt": True,
        "drop_mult": 0.0,
        "alpha": 0.0,
        "beta": 0.5,
        "tokenizer": "unigram",
        "tokenizer_of": "older",
        "vocab_size": 12_000,
        "min_count": 3,
        "embedding_size": 256,
        "hidden_size": 512,
        "num_hidden_layers": 3,
        "direction": "forward",
        "accumulation_steps": 2,
    },
    "preset": "paper",
    "trained_with": {"torch": "2.13.0"},
    "hardware": None,
    "data_note": "English Wikipedia: plain text.",
    "license": "cc-by-sa-4.0",
    "license_note": "Given under CC BY-SA 4.0.",
}


def card(**changes):
    return model_card({**copy.deepcopy(RECORD), **changes})


def test_the_front_matter_is_the_hubs():
    text = card()
    assert text.startswith("---\n")
    header = yaml.safe_load(text.split("---\n")[1])
    assert (header["language"], header["license"], header["pipeline_tag"]) == (
        ["en"],
        "cc-by-sa-4.0",
        "text-generation",
    )
    (result,) = header["model-index"][0]["results"]
    assert header["model-index"][0]["name"] == "awd-lstm-en"
    assert [(metric["name"], metric["value"]) for metric in result["metrics"]] == [
        ("perplexity of a token", 60.5),
        ("perplexity of a word", 120.25),
    ]
    assert result["dataset"] == {"name": "English Wikipedia: plain text.", "type": "validation.parquet"}


@pytest.mark.parametrize(
    "words",
    [
        "an AWD-LSTM of\n3 layers (embedding 256, hidden 512) over\n12,000 tokens (unigram), 7,550,688 parameters",
        "15.1 MB in float16 and are loaded as float32",
        'pipe = TextPipeline("awd-lstm-en")',
        "import ulmfit_pipe.stages",
        "English Wikipedia: plain text.\n\nGiven under CC BY-SA 4.0.",
        "- Tokens seen: 2,234,567 (over 2 legs of training).",
        "- Wall time: 2.00 hours",
        "- Hardware: Slide Rule 7 (1 x 2 threads).",
        "- Precision: bf16, fp32;",
        "- Made with: torch 2.13.0.",
        "| 1 | 2026-11-23 | random weights | wiki-0.parquet, wiki-1.parquet | 1,234,567 | 9,876,543 | 4,321 | 1.50 "
        "| bf16 | 61.25 | 123.5 | 1.457 | 3 |",
        "| 2 | 2026-11-23 | en_lm |",
        "| perplexity a token | 60.50 |",
        "| perplexity a word (words as white space cuts them) | 120.2 |",
        "| bits a character | 1.432 |",
        "| next token right | 31.4% |",
        "Measured with these float16 weights, computing in fp32, on `validation.parquet`.",
        "`generate` with seed 9, temperature 0.7, the 40 likeliest tokens and\n5 new tokens",
        "The text begins with the prompt `The city`:\n\n> The city lies\n> on a river.",
        "- It is small: 7.6 million parameters.",
        "It reads English only",
        "this bias was neither\n  measured nor reduced",
        "ulmfit pretrain-lm --model awd-lstm-en",
        "--output_dir ulmfit_pipe/models/pretrained/awd-lstm-en",
    ],
)
def test_the_card_says(words):
    assert words in card()


def test_what_the_record_does_not_know_is_not_recorded():
    unknown = {name: None for name in LEG if name not in ("tokens_seen", "tokens_available", "steps", "epochs")}
    text = card(lineage=[{**LEG, **unknown}], trained_with=None, metrics={"perplexity": 60.5}, measured_on=None)
    assert "- Tokens seen: 1,234,567 (over 1 leg of training)." in text
    for line in ("- Wall time: not recorded,", "- Hardware: not recorded.", "- Made with: not recorded."):
        assert line in text
    row = "| 1 | not recorded | random weights | not recorded | 1,234,567 | 9,876,543 | 4,321 | not recorded |"
    assert row in text
    assert "| bits a character | not recorded |" in text
    assert "Measured by the training stage on the text it held out, before the weights were rounded" in text


def test_hardware_in_words_comes_before_what_was_recorded():
    assert "- Hardware: 2 cores of a server." in card(hardware="2 cores of a server")


def test_a_first_leg_that_started_from_an_unknown_model_says_so():
    text = card(lineage=[{**LEG, "started_from": "older_lm"}])
    assert "The first leg started from `older_lm`, whose own training was not recorded." in text
    assert "whose own training" not in card()


def test_a_backward_model_says_how_it_is_used():
    text = card(name="awd-lstm-en-backward", direction="backward")
    assert "It reads text from its end to its start" in text
    assert 'TextPipeline("awd-lstm-en")' in text
    assert 'model_backward="awd-lstm-en-backward", ensemble=True' in text
    assert "--language_model.direction backward" in text
    assert "The text ends with the prompt" in text


def commands(text):
    """The commands that a card tells to call, each with its words."""
    block = text.split("```bash\n")[-1].split("```")[0].replace("\\\n", " ")
    return {re.search(r"ulmfit ([a-z-]+)", line)[1]: shlex.split(line)[2:] for line in block.splitlines() if line}


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_training_command_has_every_setting_of_the_last_leg_and_the_next_seed(direction, precision):
    settings = {**RECORD["settings"], "direction": direction}
    text = card(direction=direction, settings=settings, lineage=[LEG, {**LEG, "seed": 8, "precision": precision}])
    job = parse_settings(LanguageModelJob, commands(text)["pretrain-lm"], description="")
    assert (job.model, job.preset, job.seed) == ("awd-lstm-en", "paper", 9)
    assert job.mixed_precision == {"bf16": "bf16", "fp32": "no"}[precision]
    assert (job.validation_file, job.output_dir) == ("validation.parquet", "runs/awd-lstm-en")
    assert job.language_model == LanguageModelSettings(
        epochs=1,
        lr=0.004,
        plan="pretrain",
        batch_size=32,
        bptt=64,
        variable_bptt=True,
        drop_mult=0.0,
        alpha=0.0,
        beta=0.5,
        direction=direction,
        accumulation_steps=2,
    )


def test_a_word_model_is_gone_on_from_with_its_vocabulary():
    words = commands(card(tokenizer="word"))["pretrain-lm"]
    assert parse_settings(LanguageModelJob, words, description="").language_model.tokenizer == "keep"


def test_a_leg_without_a_seed_or_precision_leaves_them_out():
    words = commands(card(lineage=[{**LEG, "seed": None, "precision": None}]))["pretrain-lm"]
    job = parse_settings(LanguageModelJob, words, description="")
    assert (job.seed, job.mixed_precision) == (0, "no")


@pytest.mark.parametrize(("measured_in", "precision"), [("fp32", "no"), ("bf16", "bf16"), (None, "no")])
def test_the_packaging_command_measures_as_the_card_was_measured(measured_in, precision):
    words = commands(card(measured_in=measured_in, measured_on="held_out.csv"))["package-lm"]
    assert parse_settings(PackageSettings, words, description="") == PackageSettings(
        "runs/awd-lstm-en",
        "ulmfit_pipe/models/pretrained/awd-lstm-en",
        name="awd-lstm-en",
        validation_file="held_out.csv",
        mixed_precision=precision,
    )


def test_commands_keep_a_flag_beside_its_value_and_fit_on_a_screen():
    lines = card().split("```bash\n")[-1].split("```")[0].splitlines()
    assert max(map(len, lines)) <= 102
    assert all(line.split()[0].startswith(("--", "ulmfit")) for line in lines)


def told(text, names_of):
    """The flags that a card's sentence on the command line tells for the commands named before them."""
    sentence = " ".join(text.split("On the command line ")[1].split("\n\n")[0].split())
    for part in sentence.split(";"):
        names, _, flags = part.partition(" take `")
        if set(re.findall(r"`ulmfit ([a-z-]+)`", names)) >= set(names_of):
            return shlex.split(flags.split("`")[0])
    return None


def test_the_flags_that_a_card_tells_for_the_command_line_are_those_of_the_commands():
    need = ["--train_file", "t.csv", "--output_dir", "o"]
    backward = card(name="awd-lstm-en-backward", direction="backward")
    flags = told(backward, ["run", "low-shot"])
    for settings in (PipelineSettings, LowShotSettings):
        words = [*need, *(["--test_file", "t.csv"] if settings is LowShotSettings else []), *flags]
        assert parse_settings(settings, words, description="").model_backward == "awd-lstm-en-backward"
    for settings in (LanguageModelJob, PipelineSettings):
        flags = told(backward, ["pretrain-lm", "finetune-lm", "run"])
        found = parse_settings(settings, [*need, *flags], description="")
        assert (found.model, found.language_model.direction) == ("awd-lstm-en-backward", "backward")
    flags = told(card(), ["pretrain-lm", "finetune-lm", "train-classifier"])
    for settings in (LanguageModelJob, ClassifierJob):
        assert parse_settings(settings, [*need, *flags], description="").model == "awd-lstm-en"
    assert "`ulmfit run` and `ulmfit low-shot` start from it by default" in card()
    assert {PipelineSettings(["t"], "o").model, LowShotSettings(["t"], "t", "o").model} == {"awd-lstm-en"}
