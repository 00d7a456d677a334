import math
import re

import pytest

from tests.support.tiny_runs import texts_of
from ulmfit_pipe.text.language_model_scores import compared_across_vocabularies, describe_perplexity, fitting_batch_size


def test_a_loss_is_spread_over_characters_and_words():
    found = compared_across_vocabularies(2.0, tokens=30, texts=texts_of("three short words", "and two"))
    assert found == pytest.approx(
        {"bits_per_character": 60 / (math.log(2) * 24), "perplexity_per_word": math.exp(60 / 5)}
    )


def test_a_causal_models_perplexity_is_described_a_token_a_word_and_a_character():
    metrics = {"perplexity": 12.345, "perplexity_per_word": 99.96, "bits_per_character": 1.2345, "token_accuracy": 0.5}
    assert describe_perplexity(metrics) == (
        "validation perplexity 12.35 per token, 100.0 per word, 1.234 bits per character, next-token accuracy 0.500"
    )


@pytest.mark.parametrize("text", ["房间很大床也舒服，下次还来。 早餐太差。", "ห้องพักสกปรกมาก", "x" * 30])
def test_texts_without_spaces_between_words_have_no_perplexity_of_a_word(text):
    found = compared_across_vocabularies(2.0, tokens=30, texts=texts_of(text))
    assert found["perplexity_per_word"] is None
    assert found["bits_per_character"] == pytest.approx(60 / (math.log(2) * len(text)))
    shown = describe_perplexity({**found, "perplexity": 7.389, "token_accuracy": 0.5})
    assert re.fullmatch(
        r"validation perplexity 7\.39 per token, [\d.]+ bits per character, next-token accuracy 0\.500", shown
    )


def test_a_huge_perplexity_is_described_in_scientific_form():
    metrics = {"perplexity": 2.5e7, "perplexity_per_word": 1e93, "bits_per_character": 9.0, "token_accuracy": 0.0}
    assert "perplexity 2.5e+07 per token, 1.0e+93 per word, 9.000 bits" in describe_perplexity(metrics)


def test_a_masked_models_pseudo_perplexity_is_named_as_such():
    shown = describe_perplexity({"pseudo_perplexity": 5.678, "token_accuracy": 0.25, "loss": 1.7, "n": 9})
    assert shown == "validation pseudo-perplexity 5.68 per masked token, masked-token accuracy 0.250"


@pytest.mark.parametrize(
    ("tokens", "wanted", "processes", "expected"),
    [(40_000, 64, 1, 64), (4_000, 64, 1, 10), (10, 64, 1, 1), (10, 64, 3, 1)],
)
def test_a_short_text_narrows_the_batch_the_same_for_any_number_of_processes(tokens, wanted, processes, expected):
    assert fitting_batch_size(tokens, wanted, processes=processes) == expected


def test_more_processes_than_rows_are_refused():
    with pytest.raises(ValueError, match="4 processes cannot share batch_size=3.*set batch_size to 4 or more"):
        fitting_batch_size(1_000_000, 3, processes=4)
