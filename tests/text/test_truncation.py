"""How documents are read: bounds, what is said of long ones, and where it is kept."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, XLNetConfig

from tests.support.tiny_runs import reviews, table
from tests.support.tiny_transformers import decoder_tokenizer, encoder_tokenizer
from ulmfit_pipe.data.text.pretrained_tokenizers import encode_documents
from ulmfit_pipe.data.text.tokenization import tokenize_dataset
from ulmfit_pipe.models.heads.window_classifier import WindowsForSequenceClassification
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.config_notes import note, notes_of
from ulmfit_pipe.text.truncation import Reading, describe_long, pads_left, reading_for, saved_reading

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 10}
XLNET = XLNetConfig(vocab_size=60, d_model=8, n_head=2, n_layer=1, d_inner=10)


@pytest.fixture(scope="module")
def tokenizer():
    return encoder_tokenizer()


@pytest.fixture(scope="module")
def bert(tokenizer):
    config = BertConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=64)
    return AutoModelForSequenceClassification.from_config(config)


def reading(network, tokenizer, **settings):
    return reading_for(ClassifierSettings(**settings), network, tokenizer, model="my-bert")


def test_by_default_the_beginning_is_kept_as_far_as_the_model_reads(bert, tokenizer):
    assert reading(bert, tokenizer) == Reading("truncate", 64)
    assert reading(bert, tokenizer, max_length=20) == Reading("truncate", 20)
    assert reading(bert, tokenizer, long_documents="head-tail") == Reading("head-tail", 64)


def test_a_tokenizer_that_says_less_than_the_positions_is_believed(bert):
    assert reading(bert, encoder_tokenizer(model_max_length=48)).max_length == 48


def test_windows_are_as_long_as_the_model_reads_and_share_an_eighth(bert, tokenizer):
    assert reading(bert, tokenizer, long_documents="windows") == Reading("windows", None, 64, 8)
    given = reading(bert, tokenizer, long_documents="windows", window_length=20, window_overlap=3, max_length=200)
    assert given == Reading("windows", 200, 20, 3)
    assert (given.longest_pass, reading(bert, tokenizer).longest_pass) == (20, 64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"max_length": 65},
            "max_length 65 is more than my-bert reads, 64 tokens; take 64 or less, and long_documents",
        ),
        ({"max_length": 2}, "max_length 2 leaves no room for text beside the 2 special tokens of my-bert"),
        (
            {"long_documents": "windows", "window_length": 80},
            "80 is more than my-bert reads, 64 tokens; take 64 or less$",
        ),
        (
            {"long_documents": "windows", "window_length": 10, "window_overlap": 8},
            "window_overlap 8 leaves a window of 10 tokens, 2 of them special, no step forward; it must be below 8",
        ),
    ],
)
def test_what_the_model_cannot_read_is_refused(bert, tokenizer, settings, words):
    with pytest.raises(ValueError, match=words):
        reading(bert, tokenizer, **settings)


@pytest.mark.parametrize("name", ["window_length", "window_overlap"])
def test_numbers_of_windows_without_windows_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} 9 has a meaning with long_documents 'windows' only, got 'truncate'"):
        ClassifierSettings(**{name: 9})


def test_a_model_without_a_longest_input_reads_all_and_needs_a_windows_length(tokenizer):
    network = AutoModelForSequenceClassification.from_config(XLNET)
    assert reading(network, tokenizer) == Reading("truncate", None)
    with pytest.raises(ValueError, match="my-bert has no longest input to take for a window; set window_length"):
        reading(network, tokenizer, long_documents="windows")
    assert reading(network, tokenizer, long_documents="windows", window_length=32).window_length == 32


def test_only_xlnets_own_head_is_padded_on_the_left(bert):
    assert pads_left(XLNET)
    assert not pads_left(bert.config)


def test_what_is_cut_and_what_is_read_in_windows_is_said_with_its_share(tokenizer, bert):
    encoded = tokenize_dataset(table(reviews(20)), tokenizer)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    longer = sum(length > 14 for length in lengths)
    assert 0 < longer < 20
    for way, kept in (("truncate", "the beginning is"), ("head-tail", "beginning and end are")):
        chosen = Reading(way, 14)
        batches = chosen.batches(encoded, tokenizer=tokenizer, config=bert.config, batch_size=8)
        assert describe_long(batches, chosen, what="training texts") == [
            f"{longer} of 20 training texts ({100 * longer / 20:.1f} %) are longer than 14 tokens and are truncated, "
            f"{kept} kept; long_documents windows reads all of a text"
        ]
    chosen = Reading("windows", None, 14, 2)
    batches = chosen.batches(encoded, tokenizer=tokenizer, config=bert.config, batch_size=8)
    assert describe_long(batches, chosen, what="texts") == [
        f"{longer} of 20 texts ({100 * longer / 20:.1f} %) are longer than 14 tokens and are read in windows"
    ]
    chosen = Reading("truncate", 64)
    batches = chosen.batches(encoded, tokenizer=tokenizer, config=bert.config, batch_size=8)
    assert describe_long(batches, chosen, what="texts") == []


def test_beginning_and_end_are_kept_in_the_shares_of_the_source(tokenizer, bert):
    ids = [2, *range(5, 35), 3]
    chosen = Reading("head-tail", 12)  # 10 of the text: a quarter from the beginning
    (batch,) = chosen.batches([ids], tokenizer=tokenizer, config=bert.config, batch_size=1)
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, *range(28, 35), 3]]


def test_the_notes_of_a_configuration_hold_the_reading(tokenizer, bert):
    note(bert.config, **dataclasses.asdict(Reading("windows", None, 20, 3)))
    note(bert.config, thresholds=[0.3])
    assert notes_of(bert.config)["thresholds"] == [0.3]
    assert saved_reading(bert, tokenizer) == Reading("windows", None, 20, 3)
    assert isinstance(saved_reading(bert, tokenizer).wrap(bert), WindowsForSequenceClassification)
    del bert.config.ulmfit_pipe
    assert saved_reading(bert, tokenizer) == Reading("truncate", 64)
    assert saved_reading(bert, tokenizer).wrap(bert) is bert


def test_a_decoder_that_adds_nothing_is_cut_at_its_last_position():
    tokenizer = decoder_tokenizer(pad_token="<|endoftext|>")
    texts = ["the film was dull " * 9]
    whole = encode_documents(tokenizer, texts)
    (batch,) = Reading("truncate", 11).batches(
        whole, tokenizer=tokenizer, config=BertConfig(**SIZES, vocab_size=400), batch_size=1
    )
    assert torch.equal(batch["input_ids"], torch.tensor(whole)[:, :11])
